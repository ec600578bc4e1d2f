"""A chart of one metric as rows of text in braille dots; knows nothing of Textual.

A cell is two dots wide and four high. The raw values are a dim band from the lowest to the highest in each dot column,
the smoothed ones a bright line.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Final, Literal, NamedTuple

from tuitrain.runs.decimation import Envelope, Window
from tuitrain.runs.series import DEFAULT_SMOOTHING, METRIC_LABELS, NOISY_METRICS, Metric, RunSeries, Smoothed

Ink = Literal[" ", "band", "line", "axis", "text", "cursor", "checkpoint", "sample", "spike"]

WAITING = "waiting for the first step"
SMOOTHINGS: Final = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
GUTTER: Final = 8  # label, space, axis
MIN_WIDTH: Final = GUTTER + 8
MIN_HEIGHT: Final = 4
_FARTHEST: Final = 1e100  # beyond, axes would overflow
_LEGEND_FROM_HEIGHT = 8  # rows, from which the marks are told in words, too

_LEFT_DOTS = (0x40, 0x04, 0x02, 0x01)  # from the bottom
_RIGHT_DOTS = (0x80, 0x20, 0x10, 0x08)
_CELLS = tuple(
    tuple(
        chr(
            0x2800
            + sum(bit for index, bit in enumerate(_LEFT_DOTS) if left >> index & 1)
            + sum(bit for index, bit in enumerate(_RIGHT_DOTS) if right >> index & 1)
        )
        for right in range(16)
    )
    for left in range(16)
)
_MARKS: Final[tuple[tuple[Ink, str], ...]] = (("checkpoint", "▏"), ("sample", "▣"), ("spike", "!"))


class Row(NamedTuple):
    """One line of the chart.

    Args:
        text: one character a cell.
        inks: what each character is drawn with.
    """

    text: str
    inks: tuple[Ink, ...]

    @classmethod
    def of(cls, cells: Sequence[tuple[str, Ink]]) -> "Row":
        """A row of single cells."""
        return cls("".join(character for character, _ in cells), tuple(ink for _, ink in cells))

    def pieces(self) -> Iterable[tuple[str, Ink]]:
        """The text in pieces of one ink."""
        start = 0
        for ink, group in groupby(self.inks):
            end = start + len(list(group))
            yield self.text[start:end], ink
            start = end

    def changed_span(self, other: "Row") -> tuple[int, int] | None:
        """First and last + 1 cell in which `other`, as long as this one, differs."""
        if self == other:
            return None
        cells, others = (list(zip(row.text, row.inks, strict=True)) for row in (self, other))
        changed = [index for index, (cell, new) in enumerate(zip(cells, others, strict=True)) if cell != new]
        return changed[0], changed[-1] + 1


@dataclass(frozen=True)
class ChartOptions:
    """What is drawn, and how.

    Args:
        metric: whose values.
        is_log: whether the y axis is logarithmic.
        smoothing: factor of the exponential moving average, for noisy metrics.
        zoom: how many times the steps on show are halved.
        start: first step on show; None follows the newest.
        cursor: a step whose values are told; None for none.
    """

    metric: Metric = "loss"
    is_log: bool = False
    smoothing: float = DEFAULT_SMOOTHING
    zoom: int = 0
    start: int | None = None
    cursor: int | None = None

    @property
    def factor(self) -> float:
        """The smoothing that this metric gets."""
        return self.smoothing if self.metric in NOISY_METRICS else 0.0


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
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1 / _FARTHEST):  # constant
        margin = 0.1 * abs(high) if abs(high) > 1 / _FARTHEST else 1.0
        low, high = low - margin, high + margin
    step = _nice_step((high - low) / max(max_ticks - 1, 1))
    while math.ceil(high / step - 1e-9) - math.floor(low / step + 1e-9) > max(max_ticks - 1, 2):  # 2 around 0 at least
        step = _nice_step(step * 1.01)
    multiples = range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)
    ticks = tuple(multiple * step for multiple in multiples)
    labels = tuple(_multiple_label(multiple, step) for multiple in multiples)
    return Scale(low=ticks[0], high=ticks[-1], is_log=False, ticks=ticks, labels=labels)


def _nice_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `least`."""
    exponent = math.floor(math.log10(least))
    return next(mantissa * 10.0**exponent for mantissa in (1, 2, 5, 10) if mantissa * 10.0**exponent >= least)


def _multiple_label(multiple: int, step: float) -> str:
    exponent = math.floor(math.log10(step) + 1e-9)
    if -4 <= exponent < 5:
        return f"{multiple * step:.{max(0, -exponent)}f}"
    return f"{round(multiple * step / 10.0**exponent)}e{exponent}" if multiple else "0"


def _log_scale(low: float, high: float, max_ticks: int) -> Scale:
    """Decades, parted by as many of the round numbers between as there is room for."""
    if high <= low * (1 + 1e-9):
        low, high = low / 1.1, high * 1.1
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for mantissas in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        candidates = [(m, e) for e in range(first - 1, last + 1) for m in mantissas]
        values = [m * 10.0**e for m, e in candidates]
        begin = max(index for index, value in enumerate(values) if value <= low * (1 + 1e-9))
        end = min(index for index, value in enumerate(values) if value >= high * (1 - 1e-9))
        if end - begin < max(max_ticks, 2):
            break
    stride = max(1, math.ceil((end - begin) / max(max_ticks - 1, 1)))
    kept = range(begin, end + 1, stride)
    ticks = tuple(values[index] for index in kept)
    labels = tuple(_log_label(*candidates[index]) for index in kept)
    return Scale(low=values[begin], high=values[end], is_log=True, ticks=ticks, labels=labels)


def _log_label(mantissa: float, exponent: int) -> str:
    if -4 <= exponent < 4:
        return f"{mantissa * 10.0**exponent:.6g}"
    return f"{mantissa:g}e{exponent}"


class ChartDrawing:
    """Draws a run's series again and again as it grows; keeps what has not changed in between."""

    def __init__(self) -> None:
        self.window = Window(start=0, exponent=0, num_columns=1)
        self._subject: tuple[object, ...] = ()
        self._envelope = Envelope(self.window)
        self._smoothed = Smoothed(0.0)
        self._smoothed_subject: tuple[object, ...] = ()
        self._scale: Scale | None = None

    def draw(self, series: RunSeries, width: int, height: int, options: ChartOptions) -> list[Row]:
        """`height` rows of `width` cells; 0.5 ms, once what is on show has been taken in (0.1 µs a step)."""
        if width < MIN_WIDTH or height < MIN_HEIGHT:
            return [_blank(width)] * height
        has_legend = height >= _LEGEND_FROM_HEIGHT
        num_rows = height - 2 - has_legend
        if not series.steps:
            return _centered(WAITING, width, height)
        self._take(series, width - GUTTER, num_rows, options)
        scale = self._choose_scale(options, num_rows)
        if scale is None:
            return _centered(f"no {METRIC_LABELS[options.metric]} that could be drawn yet", width, height)
        cursor = self._cell(options.cursor)
        rows = _plot_rows(self._envelope, scale, num_rows, cursor)
        axis, labels = self._x_axis(series, width - GUTTER, cursor)
        rows += [axis, labels]
        if has_legend:
            told = (
                describe_step(series, options, self._line_of(series, options)) if options.cursor is not None else None
            )
            rows.append(_padded(told, "text", width) if told is not None else _legend(series, width))
        return rows

    def _take(self, series: RunSeries, num_cells: int, num_rows: int, options: ChartOptions) -> None:
        """Bring window and envelope up to date."""
        window = Window.whole(series.steps[0], series.steps[-1], 2 * num_cells).zoomed(options.zoom)
        last = series.steps[-1]
        window = window.moved_to_show(last) if options.start is None else window.moved(options.start)
        subject = (series, series.revision, window, options.metric, options.factor, options.is_log, num_rows)
        if subject != self._subject:
            if subject[3:] != self._subject[3:]:
                self._scale = None
            self._subject, self.window, self._envelope = subject, window, Envelope(window)
        self._envelope.take(series.steps, series.values(options.metric), self._line_of(series, options))

    def _line_of(self, series: RunSeries, options: ChartOptions) -> Sequence[float]:
        """The smoothed values, as long as the series."""
        values = series.values(options.metric)
        if options.factor == 0.0:
            return values
        if options.metric == "loss" and options.factor == DEFAULT_SMOOTHING:
            return series.smoothed_loss
        subject = (series, series.revision, options.metric, options.factor)
        if subject != self._smoothed_subject:
            self._smoothed_subject, self._smoothed = subject, Smoothed(options.factor)
        self._smoothed.extend(values[len(self._smoothed.values) :])
        return self._smoothed.values

    def _choose_scale(self, options: ChartOptions, num_rows: int) -> Scale | None:
        """The whole line and nearly all of the band; None when there is nothing to draw."""
        envelope = self._envelope
        line, lows, highs = (
            sorted(value for value in values if math.isfinite(value) and (value > 0.0 or not options.is_log))
            for values in (envelope.line, envelope.lows, envelope.highs)
        )
        if not line or not highs:
            return None
        few = (len(highs) - 1) * 2 // 100  # columns at each end whose spikes are cut off
        lows = lows or highs  # on a logarithmic axis there may be columns whose lowest value is not positive
        low = min(line[0], lows[min(few, len(lows) - 1)])
        high = max(line[-1], highs[len(highs) - 1 - few])
        least = 1 / _FARTHEST if options.is_log else -_FARTHEST
        low, high = min(max(low, least), _FARTHEST), min(max(high, least), _FARTHEST)
        max_ticks = max(2, (num_rows + 1) // 2)
        self._scale = choose_scale(low, high, is_log=options.is_log, max_ticks=max_ticks, previous=self._scale)
        return self._scale

    def _cell(self, step: int | None) -> int | None:
        """The cell column of `step`, None outside the window."""
        if step is None or not self.window.start <= step < self.window.end:
            return None
        return self.window.column(step) // 2

    def _x_axis(self, series: RunSeries, num_cells: int, cursor: int | None) -> tuple[Row, Row]:
        """The axis with its marks, and the labels below."""
        window = self.window
        texts = ["─"] * num_cells
        inks: list[Ink] = ["axis"] * num_cells
        labels = [" "] * (GUTTER + num_cells)
        widest = len(str(window.end)) + 3
        step = max(1, round(_nice_step(max(window.num_steps * widest / num_cells, 1.0))))
        for tick in range(-(-window.start // step) * step, window.end, step):
            cell = window.column(tick) // 2
            texts[cell] = "┬"
            label = str(tick)
            begin = GUTTER + cell - len(label) // 2
            if begin + len(label) <= len(labels):
                labels[begin : begin + len(label)] = label
        marked = (series.checkpoints, series.samples, [step for step, _ in series.spikes])
        for (ink, mark), steps in zip(_MARKS, marked, strict=True):
            for marked_step in steps[bisect_right(steps, window.start - 1) :]:
                marked_cell = self._cell(marked_step)
                if marked_cell is not None:
                    texts[marked_cell], inks[marked_cell] = mark, ink
        if cursor is not None:
            texts[cursor], inks[cursor] = "▲", "cursor"
        corner: tuple[Ink, ...] = ("axis",) * GUTTER
        return (
            Row(" " * (GUTTER - 1) + "└" + "".join(texts), (*corner, *inks)),
            _padded("".join(labels), "axis", GUTTER + num_cells),
        )


def describe_step(series: RunSeries, options: ChartOptions, line: Sequence[float]) -> str:
    """What was measured at the cursor."""
    assert options.cursor is not None
    index = max(bisect_right(series.steps, options.cursor) - 1, 0)
    facts = [f"step {series.steps[index]}"]
    value = series.values(options.metric)[index]
    if options.metric == "speed":
        facts.append(f"{value:.3g} it/s")
    else:
        facts.append(f"{METRIC_LABELS[options.metric]} {value:.4g}")
    if options.factor:
        facts.append(f"ema {line[index]:.4g}")
    if options.metric != "loss":
        facts.append(f"loss {series.values('loss')[index]:.4g}")
    if options.metric != "lr":
        facts.append(f"lr {series.values('lr')[index]:.3g}")
    if options.metric != "speed":
        facts.append(f"{series.values('speed')[index]:.3g} it/s")
    return "  ".join(facts)


def _plot_rows(envelope: Envelope, scale: Scale, num_rows: int, cursor: int | None) -> list[Row]:
    num_dots = 4 * num_rows
    bands = _band_masks(envelope, scale, num_dots)
    lines = _line_masks(envelope.line, scale, num_dots)
    columns = [
        _cell_column(bands[index], bands[index + 1], lines[index], lines[index + 1], num_rows)
        for index in range(0, len(bands), 2)
    ]
    if cursor is not None:
        columns[cursor] = _with_cursor(*columns[cursor])
    texts = zip(*(text for text, _ in columns), strict=True)
    inks = zip(*(inks for _, inks in columns), strict=True)
    gutters = [" " * (GUTTER - 1) + "│"] * num_rows
    for tick, label in zip(scale.ticks, scale.labels, strict=True):
        row = num_rows - 1 - _dot(tick, scale, num_dots) // 4
        gutters[row] = f"{label[: GUTTER - 2]:>{GUTTER - 2}} ┤"
    axis: tuple[Ink, ...] = ("axis",) * GUTTER
    return [Row(gutter + "".join(text), (*axis, *ink)) for gutter, text, ink in zip(gutters, texts, inks, strict=True)]


def _dot(value: float, scale: Scale, num_dots: int) -> int:
    """The dot row of `value`, 0 at the bottom."""
    return round(scale.fraction(value) * (num_dots - 1))


def _band_masks(envelope: Envelope, scale: Scale, num_dots: int) -> list[int]:
    """For each dot column the dots of its raw values, bit 0 at the bottom."""
    masks = []
    for low, high in zip(envelope.lows, envelope.highs, strict=True):
        if low == low:
            masks.append(_dots(_dot(low, scale, num_dots), _dot(high, scale, num_dots)))
        else:
            masks.append(0)
    return masks


def _line_masks(line: Sequence[float], scale: Scale, num_dots: int) -> list[int]:
    """The same for a line through the finite values."""
    masks = [0] * len(line)
    before: tuple[int, int] | None = None
    for column, value in enumerate(line):
        if not math.isfinite(value):
            continue
        dot = _dot(value, scale, num_dots)
        if before is None:
            masks[column] = 1 << dot
        else:
            start, last = before
            for between in range(start + 1, column + 1):
                here = last + round((dot - last) * (between - start) / (column - start))
                there = last + round((dot - last) * (between - 1 - start) / (column - start))
                # the dots between two columns belong to the right one
                low, high = (there + 1, here) if here > there else (here, there - 1) if here < there else (here, here)
                masks[between] = _dots(low, high)
        before = column, dot
    return masks


def _dots(low: int, high: int) -> int:
    return ((1 << (high - low + 1)) - 1) << low


@lru_cache(maxsize=4096)
def _cell_column(
    left_band: int, right_band: int, left_line: int, right_line: int, num_rows: int
) -> tuple[str, tuple[Ink, ...]]:
    """The cells of two dot columns, from the top; where the line is, the band gives way to it."""
    text: list[str] = []
    inks: list[Ink] = []
    band_and_line: tuple[tuple[int, int, Ink], ...] = ((left_line, right_line, "line"), (left_band, right_band, "band"))
    for shift in range(4 * num_rows - 4, -4, -4):
        for left, right, ink in band_and_line:
            left_dots, right_dots = left >> shift & 15, right >> shift & 15
            if left_dots or right_dots:
                text.append(_CELLS[left_dots][right_dots])
                inks.append(ink)
                break
        else:
            text.append(" ")
            inks.append(" ")
    return "".join(text), tuple(inks)


def _with_cursor(text: str, inks: tuple[Ink, ...]) -> tuple[str, tuple[Ink, ...]]:
    """A cell column under the cursor: only the line is left of it."""
    return (
        "".join(cell if ink == "line" else "│" for cell, ink in zip(text, inks, strict=True)),
        tuple("line" if ink == "line" else "cursor" for ink in inks),
    )


def _legend(series: RunSeries, width: int) -> Row:
    """The marks in words, with as many of their newest steps as there is room for."""
    kinds: tuple[tuple[Ink, str, str, list[int]], ...] = (
        ("checkpoint", "▏", "ckpt", series.checkpoints),
        ("sample", "▣", " samples", series.samples),
        ("spike", "!", " spike", [step for step, _ in series.spikes]),
    )
    blank: tuple[str, Ink] = (" ", " ")
    for num_told in (8, 6, 5, 4, 3, 2, 1):
        cells: list[tuple[str, Ink]] = [blank]
        for ink, mark, word, steps in kinds:
            if steps:
                told = " ".join(str(step) for step in steps[-num_told:])
                cells += [(mark, ink), *_cells(f"{word} {told}   ", "axis")]
        if len(cells) <= width:
            break
    return Row.of([*cells, *[blank] * width][:width])


def _cells(text: str, ink: Ink) -> list[tuple[str, Ink]]:
    return [(character, ink) for character in text]


def _blank(width: int) -> Row:
    return _padded("", " ", width)


def _padded(text: str, ink: Ink, width: int) -> Row:
    return Row(text[:width].ljust(width), (ink,) * width)


def _centered(text: str, width: int, height: int) -> list[Row]:
    rows = [_blank(width)] * height
    rows[height // 2] = _padded(text[:width].center(width), "text", width)
    return rows


def nearest_step(series: RunSeries, step: int, direction: int, window: Window) -> int:
    """The logged step one cell to the left (-1) or right (1) of `step`, or the next there is in that direction."""
    steps = series.steps
    index = max(bisect_right(steps, step) - 1, 0)
    target = bisect_right(steps, steps[index] + direction * max(1, window.end_step(1) - window.start)) - 1
    moved = min(target, index - 1) if direction < 0 else max(target, index + 1)
    return steps[min(max(moved, 0), len(steps) - 1)]


def in_view(options: ChartOptions, window: Window) -> ChartOptions:
    """`options` with the window moved, where that is needed, to have the cursor in it."""
    if options.cursor is None or window.start <= options.cursor < window.end:
        return options
    return replace(options, start=max(options.cursor - window.num_steps // 2, 0))
