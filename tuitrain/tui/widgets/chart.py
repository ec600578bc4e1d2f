"""The live chart of a run's metrics: repaints only the cells that changed. Knows how to show, not how to draw."""

from dataclasses import replace

from rich.segment import Segment
from textual import events
from textual.content import Content
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from tuitrain.runs.decimation import MIN_EXPONENT
from tuitrain.runs.series import METRIC_LABELS, NOISY_METRICS, RunSeries
from tuitrain.tui.widgets.braille import (
    SMOOTHINGS,
    ChartDrawing,
    ChartOptions,
    Row,
    in_view,
    nearest_step,
    next_mark,
)


class LossChart(Widget, can_focus=True):
    """One metric of a run over its steps: the raw values as a band, the smoothed ones as a line."""

    COMPONENT_CLASSES = {
        "chart--axis",
        "chart--band",
        "chart--checkpoint",
        "chart--cursor",
        "chart--line",
        "chart--sample",
        "chart--spike",
        "chart--text",
    }
    DEFAULT_CSS = """
    LossChart {
        & .chart--axis { color: $text-muted; }
        & .chart--band { color: $primary; text-style: dim; }
        & .chart--line { color: $text; text-style: bold; }
        & .chart--cursor { color: $accent; }
        & .chart--text { color: $text; }
        & .chart--checkpoint { color: $success; text-style: bold; }
        & .chart--sample { color: $accent; text-style: bold; }
        & .chart--spike { color: $error; text-style: bold; }
    }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._series = RunSeries()
        self._seen: tuple[object, ...] = ()
        self._options = ChartOptions()
        self._drawing = ChartDrawing()
        self._rows: list[Row] = []
        self._shown_title = ""
        self._tell_options()

    @property
    def options(self) -> ChartOptions:
        """What is on show."""
        return self._options

    def show(self, series: RunSeries) -> None:
        """Chart `series`, and what it has grown by; costs nothing when it has not."""
        seen = (series, len(series), series.revision, len(series.checkpoints), len(series.samples))
        if seen == self._seen:
            return
        if series is not self._series:
            self._options = replace(self._options, metric="loss", zoom=0, start=None, cursor=None)
        self._series, self._seen = series, seen
        self._tell_options()
        self._redraw()

    # What keys do

    def next_metric(self) -> None:
        """Chart the next of the metrics that were measured."""
        metrics = self._series.metrics
        index = metrics.index(self._options.metric) if self._options.metric in metrics else -1
        self._change(replace(self._options, metric=metrics[(index + 1) % len(metrics)]))

    def toggle_log_y(self) -> None:
        """Make the y axis logarithmic, or linear again."""
        self._change(replace(self._options, is_log=not self._options.is_log))

    def change_smoothing(self, by: int) -> None:
        """Smooth more (1) or less (-1)."""
        index = SMOOTHINGS.index(self._options.smoothing) + by
        self._change(replace(self._options, smoothing=SMOOTHINGS[min(max(index, 0), len(SMOOTHINGS) - 1)]))

    def zoom(self, by: int) -> None:
        """Chart half as many steps (1) or twice as many (-1), around the cursor or up to the newest."""
        options, window = self._options, self._drawing.window
        if not (options.zoom + by >= 0) or (by > 0 and window.exponent <= MIN_EXPONENT):
            return
        start = options.start
        if options.zoom + by == 0:
            start = None
        elif options.cursor is not None:
            num_steps = window.num_steps // 2 if by > 0 else window.num_steps * 2
            start = max(options.cursor - num_steps // 2, 0)
        self._change(replace(options, zoom=options.zoom + by, start=start))

    def show_all(self) -> None:
        """Chart the whole run."""
        self._change(replace(self._options, zoom=0, start=None))

    def follow(self) -> None:
        """Put the cursor away and keep the newest step in view."""
        self._change(replace(self._options, start=None, cursor=None))

    def move_cursor(self, by: int) -> None:
        """Tell the values one cell to the left (-1) or right (1); at first those of the newest step."""
        if not self._series.steps:
            return
        if self._options.cursor is None:
            self._put_cursor(self._series.steps[-1])
        else:
            self._put_cursor(nearest_step(self._series, self._options.cursor, by, self._drawing.window))

    def move_to_mark(self, direction: int) -> bool:
        """Tell the values at the mark before (-1) or after (1) the cursor; at first at the last mark, or the first.

        Returns:
            Whether there is such a mark.
        """
        step = next_mark(self._series, self._options.cursor, direction)
        if step is not None:
            self._put_cursor(step)
        return step is not None

    def _put_cursor(self, cursor: int) -> None:
        options, window = self._options, self._drawing.window
        if options.zoom and options.start is None:  # what is being read shall stand still
            options = replace(options, start=window.start)
        self._change(in_view(replace(options, cursor=cursor), window))

    def _change(self, options: ChartOptions) -> None:
        if options != self._options:
            self._options = options
            self._tell_options()
            self._redraw()

    # Drawing

    def _tell_options(self) -> None:
        """Say in the border how the chart is to be read; only when that changed, for it repaints everything."""
        options = self._options
        facts = ["log y"] if options.is_log else []
        if options.metric in NOISY_METRICS:
            facts.append(f"EMA {options.smoothing:g}".replace("0.", ".") if options.smoothing else "not smoothed")
        if options.zoom:
            facts.append(f"zoom {2**options.zoom}x")
        facts.append("► live" if options.start is None else "held")
        title = f"{METRIC_LABELS[options.metric]} ── {'  '.join(facts)}"
        if title != self._shown_title:
            self._shown_title = title
            self.border_title = Content(title)

    def _redraw(self) -> None:
        """Draw again and have the cells repainted that changed."""
        rows = self._drawing.draw(self._series, self.size.width, self.size.height, self._options)
        if len(rows) != len(self._rows) or (rows and len(rows[0].text) != len(self._rows[0].text)):
            self._rows = rows
            self.refresh()
            return
        spans = [before.changed_span(after) for before, after in zip(self._rows, rows, strict=True)]
        self._rows = rows
        regions = [Region(span[0], y, span[1] - span[0], 1) for y, span in enumerate(spans) if span is not None]
        if regions:
            self.refresh(*regions)

    def on_resize(self, _event: events.Resize) -> None:
        self._redraw()

    def render_line(self, y: int) -> Strip:
        """Line `y` from the rows drawn last."""
        if y >= len(self._rows):
            return Strip.blank(self.size.width, self.rich_style)
        segments = [
            Segment(text, self.rich_style if ink == " " else self.get_component_rich_style(f"chart--{ink}"))
            for text, ink in self._rows[y].pieces()
        ]
        return Strip(segments, len(self._rows[y].text)).adjust_cell_length(self.size.width, self.rich_style)
