"""A window of steps reduced to the columns of a chart, so that no spike is lost; knows neither metrics nor screens.

A column covers 2^k steps, or a step 2^-k columns: as a run grows its columns stay where they are, until k grows by one
and neighbours merge.
"""

import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from tuitrain.runs.scale import FARTHEST

MIN_EXPONENT = -3
"""A step is at most eight columns wide."""


@dataclass(frozen=True)
class Window:
    """Which steps are drawn, and how many to a column.

    Args:
        start: the first step.
        exponent: k; a column covers 2^k steps. Where it is negative, a step covers 2^-k columns.
        num_columns: how many there are.
    """

    start: int
    exponent: int
    num_columns: int

    @property
    def num_steps(self) -> int:
        """How many steps the columns cover."""
        return max(1, _scaled(self.num_columns, self.exponent))

    @property
    def end(self) -> int:
        """The first step behind the window."""
        return self.start + self.num_steps

    def column(self, step: int) -> int:
        """The column of `step`; outside 0..num_columns-1 when it is not in the window."""
        return _scaled(step - self.start, -self.exponent)

    def first_step(self, column: int) -> int:
        """The first step of `column`."""
        return self.start + _scaled(column, self.exponent)

    def end_step(self, column: int) -> int:
        """The first step behind `column`."""
        return max(self.first_step(column + 1), self.first_step(column) + 1)

    @classmethod
    def whole(cls, first: int, last: int, num_columns: int) -> "Window":
        """All steps from `first` to `last`, in the widest columns that hold them."""
        exponent = MIN_EXPONENT
        while True:
            window = cls(start=_aligned(first, exponent), exponent=exponent, num_columns=num_columns)
            if window.column(last) < num_columns:
                return window
            exponent += 1

    def zoomed(self, times: int) -> "Window":
        """From the same start, half as many steps, `times` over, as far as that goes."""
        exponent = max(self.exponent - times, min(self.exponent, MIN_EXPONENT))
        return Window(start=self.start, exponent=exponent, num_columns=self.num_columns)

    def moved(self, start: int) -> "Window":
        """From `start` on, or what lies at the edge of a column before it."""
        return Window(start=_aligned(start, self.exponent), exponent=self.exponent, num_columns=self.num_columns)

    def moved_to_show(self, step: int) -> "Window":
        """The same, or moved on by quarters of itself until `step` is in it, so that it moves rarely."""
        quarter = max(1, _scaled(self.num_columns // 4, self.exponent))
        if step < self.end:
            return self
        return Window(
            start=self.start + quarter * math.ceil((step - self.end + 1) / quarter),
            exponent=self.exponent,
            num_columns=self.num_columns,
        )


def _scaled(number: int, exponent: int) -> int:
    """`number` times 2^exponent, rounded down."""
    return number << exponent if exponent >= 0 else number >> -exponent


def _aligned(step: int, exponent: int) -> int:
    return _scaled(_scaled(step, -exponent), exponent) if exponent > 0 else step


class Envelope:
    """Lowest, highest and smoothed value in each column of a window; grows with a run.

    Args:
        window: what is drawn.

    Attributes:
        lows, highs: of the finite values in each column, NaN where there are none.
        line: the smoothed value at each column's last step.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        empty = array("d", [math.nan]) * window.num_columns
        self.lows, self.highs, self.line = empty[:], empty[:], empty[:]
        self._num_taken = 0

    def take(self, steps: Sequence[int], values: Sequence[float], smoothed: Sequence[float]) -> None:
        """Take in what has been appended to the columns since the last call, as far as it is in the window."""
        window = self.window
        index = max(self._num_taken, bisect_left(steps, window.start))
        end = bisect_left(steps, window.end)
        while index < end:
            column = window.column(steps[index])
            next_index = bisect_left(steps, window.end_step(column), index, end)
            finite = [value for value in values[index:next_index] if math.isfinite(value)]
            if finite:
                if not math.isnan(self.lows[column]):
                    finite += [self.lows[column], self.highs[column]]
                self.lows[column], self.highs[column] = min(finite), max(finite)
            self.line[column] = smoothed[next_index - 1]
            index = next_index
        self._num_taken = len(steps)

    def value_range(self, *, is_log: bool) -> tuple[float, float] | None:
        """Lowest and highest value an axis must hold; None when there is none.

        The whole line and all but the farthest 2 % of the columns' extremes, so that spikes may be cut off.
        """
        line, lows, highs = (
            sorted(value for value in values if math.isfinite(value) and (value > 0.0 or not is_log))
            for values in (self.line, self.lows, self.highs)
        )
        if not line or not highs:
            return None
        few = (len(highs) - 1) * 2 // 100
        lows = lows or highs  # on a logarithmic axis there may be columns whose lowest value is not positive
        low = min(line[0], lows[min(few, len(lows) - 1)])
        high = max(line[-1], highs[len(highs) - 1 - few])
        least = 1 / FARTHEST if is_log else -FARTHEST
        return min(max(low, least), FARTHEST), min(max(high, least), FARTHEST)
