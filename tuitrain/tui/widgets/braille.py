"""A chart of one metric as rows of text in braille dots; knows nothing of Textual.

A cell is two dots wide and four high. The raw values are a dim band from the lowest to the highest in each dot column,
the smoothed ones a bright line.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from tuitrain.runs.decimation import Envelope, Window
from tuitrain.runs.scale import Scale, choose_scale, nice_step
from tuitrain.runs.series import DEFAULT_SMOOTHING, METRIC_LABELS, NOISY_METRICS, Metric, RunSeries, Smoothed

Ink = Literal[" ", "band", "line", "axis", "text", "cursor", "checkpoint", "sample", "spike"]

WAITING = "waiting for the first step"
SMOOTHINGS: Final = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
GUTTER: Final = 8  # label, space, axis
MIN_WIDTH: Final = GUTTER + 8
MIN_HEIGHT: Final = 4
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
        """The text in pieces of one ink. A blank shows none: it goes with the ink before it, as each change is sent."""
        start, current = 0, self.inks[0] if self.inks else " "
        for place, (character, ink) in enumerate(zip(self.text, self.inks, strict=True)):
            if character != " " and ink != current:
                if place > start:
                    yield self.text[start:place], current
                start, current = place, ink
        yield self.text[start:], current

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
        told = (
            _padded(describe_step(series, options, self._line_of(series, options), width), "text", width)
            if options.cursor is not None
            else None
        )
        if has_legend:
            rows.append(told or _legend(series, width))
        elif told is not None:
            rows[-1] = told
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
        """For the values on show, the one before if it will do; None when there is nothing to draw."""
        limits = self._envelope.value_range(is_log=options.is_log)
        if limits is None:
            return None
        max_ticks = max(2, (num_rows + 1) // 2)
        self._scale = choose_scale(*limits, is_log=options.is_log, max_ticks=max_ticks, previous=self._scale)
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
        step = max(1, round(nice_step(max(window.num_steps * widest / num_cells, 1.0))))
        for tick in range(-(-window.start // step) * step, window.end, step):
            cell = window.column(tick) // 2
            texts[cell] = "┬"
            label = str(tick)
            begin = GUTTER + cell - len(label) // 2
            if begin + len(label) <= len(labels):
                labels[begin : begin + len(label)] = label
        for (ink, mark), steps in zip(_MARKS, marked_steps(series), strict=True):
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


def marked_steps(series: RunSeries) -> tuple[Sequence[int], ...]:
    """The steps with a checkpoint, with samples, with a spike, in the order of the marks."""
    return series.checkpoints, series.samples, [step for step, _ in series.spikes]


def describe_step(series: RunSeries, options: ChartOptions, line: Sequence[float], width: int) -> str:
    """What was measured at the cursor, as much as fits: half a number would be another one."""
    assert options.cursor is not None
    index = max(bisect_right(series.steps, options.cursor) - 1, 0)
    marks = "".join(
        mark for (_, mark), steps in zip(_MARKS, marked_steps(series), strict=True) if options.cursor in steps
    )
    facts = [f"step {series.steps[index]} {marks}".rstrip()]
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
    while len(facts) > 1 and len("  ".join(facts)) > width:
        facts.pop()
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


def next_mark(series: RunSeries, cursor: int | None, direction: int) -> int | None:
    """The nearest marked step before (-1) or after (1) `cursor`, or the last or first without one; None if none."""
    marks = [step for steps in marked_steps(series) for step in steps if series.steps and step >= series.steps[0]]
    if direction < 0:
        return max((step for step in marks if cursor is None or step < cursor), default=None)
    return min((step for step in marks if cursor is None or step > cursor), default=None)


def in_view(options: ChartOptions, window: Window) -> ChartOptions:
    """`options` with the window moved, where that is needed, to have the cursor in it."""
    if options.cursor is None or window.start <= options.cursor < window.end:
        return options
    return replace(options, start=max(options.cursor - window.num_steps // 2, 0))
