"""Round numbers for the axes of charts; pure arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FARTHEST: Final = 1e100
"""Values beyond it, and on a logarithmic axis below its inverse, have no place on an axis: they would overflow."""


_MANTISSAS: Final = ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,))


@dataclass(frozen=True)
class Scale:
    """The y axis.

    Args:
        low, high: its ends.
        is_log: whether it is logarithmic.
        ticks: the values that are labelled.
        labels: their texts.
    """

    low: float
    high: float
    is_log: bool
    ticks: tuple[float, ...]
    labels: tuple[str, ...]

    def fraction(self, value: float) -> float:
        """Where `value` is, 0 at the low end and 1 at the high one, which nothing leaves."""
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return min(max((value - low) / (high - low), 0.0), 1.0)

    @property
    def extent(self) -> float:
        """Its length, in decades when it is logarithmic."""
        return math.log10(self.high / self.low) if self.is_log else self.high - self.low


def choose_scale(low: float, high: float, *, is_log: bool, max_ticks: int, previous: Scale | None = None) -> Scale:
    """The y axis for values from `low` to `high`, at round numbers.

    `previous` stays while it holds them and is not more than 1.3 times too long, so that the chart stands still.
    """
    scale = _log_scale(low, high, max_ticks) if is_log else _linear_scale(low, high, max_ticks)
    if (
        previous is not None
        and previous.is_log == is_log
        and previous.low <= low
        and high <= previous.high
        and previous.extent <= 1.3 * scale.extent
    ):
        return previous
    return scale


def _linear_scale(low: float, high: float, max_ticks: int) -> Scale:
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1 / FARTHEST):  # constant
        margin = 0.1 * abs(high) if abs(high) > 1 / FARTHEST else 1.0
        low, high = low - margin, high + margin
    step = nice_step((high - low) / max(max_ticks - 1, 1))
    while math.ceil(high / step - 1e-9) - math.floor(low / step + 1e-9) > max(max_ticks - 1, 2):  # 2 around 0 at least
        step = nice_step(step * 1.01)
    multiples = range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)
    ticks = tuple(multiple * step for multiple in multiples)
    labels = tuple(_multiple_label(multiple, step) for multiple in multiples)
    return Scale(low=ticks[0], high=ticks[-1], is_log=False, ticks=ticks, labels=labels)


def nice_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `least`."""
    exponent = math.floor(math.log10(least))
    return next(mantissa * 10.0**exponent for mantissa in (1, 2, 5, 10) if mantissa * 10.0**exponent >= least)


def _multiple_label(multiple: int, step: float) -> str:
    exponent = math.floor(math.log10(step) + 1e-9)
    if -4 <= exponent < 5:
        return f"{multiple * step:.{max(0, -exponent)}f}"
    return f"{round(multiple * step / 10.0**exponent)}e{exponent}" if multiple else "0"


def _log_scale(low: float, high: float, max_ticks: int) -> Scale:
    """From round number to round number, with labels at as many of those between as there is room for."""
    if high <= low * (1 + 1e-9):
        low, high = low / 1.1, high * 1.1
    fine = _round_numbers(low, high, _MANTISSAS[0])
    low = max(value for value, _ in fine if value <= low * (1 + 1e-9))
    high = min(value for value, _ in fine if value >= high * (1 - 1e-9))
    for mantissas in _MANTISSAS:
        inside = [tick for tick in _round_numbers(low, high, mantissas) if low <= tick[0] <= high]
        if len(inside) <= max(max_ticks, 2):
            break
    inside = inside[:: math.ceil(len(inside) / max(max_ticks, 2))] if inside else []
    if len(inside) < 2:
        inside = [tick for tick in fine if tick[0] in (low, high)]
    return Scale(
        low=low,
        high=high,
        is_log=True,
        ticks=tuple(value for value, _ in inside),
        labels=tuple(label for _, label in inside),
    )


def _round_numbers(low: float, high: float, mantissas: Sequence[float]) -> list[tuple[float, str]]:
    """`mantissas` times the powers of ten from below `low` to above `high`, and their labels."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    return [(m * 10.0**exponent, _log_label(m, exponent)) for exponent in exponents for m in mantissas]


def _log_label(mantissa: float, exponent: int) -> str:
    if -4 <= exponent < 4:
        return f"{mantissa * 10.0**exponent:.6g}"
    return f"{mantissa:g}e{exponent}"
