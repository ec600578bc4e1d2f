"""The chart explorer: several metrics and runs in one picture, drawn in a thread; knows what is wanted, not how."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import Worker, WorkerState

from tuitrain.plot import PlotOptions, draw_plot, name_runs
from tuitrain.runs.run import Run, find_runs
from tuitrain.runs.series import METRIC_LABELS, LoadedJournal, Metric, RunSeries, load_journal
from tuitrain.tui.actions import bindings
from tuitrain.tui.screens.base import TuitrainScreen
from tuitrain.tui.widgets.braille import SMOOTHINGS
from tuitrain.tui.widgets.list_box import ListBox
from tuitrain.wording import escape_control

if TYPE_CHECKING:
    from tuitrain.tui.live import LiveRun

Choice = TypeVar("Choice")

MAX_NEIGHBOURS = 100
_SECONDS_BETWEEN_DRAWINGS = 10.0
"""A picture of a run that trains is sent whole, 10 kB and more: so rarely that it costs no more than the live chart."""


@dataclass(frozen=True)
class _Request:
    """What a thread shall draw: `runs`, in a picture of `width` times `height` cells."""

    runs: tuple[Run, ...]
    options: PlotOptions
    width: int
    height: int


@dataclass(frozen=True)
class _Picture:
    """What a thread has drawn.

    Args:
        text: the picture.
        metrics: those that any of its runs has measured.
        first, last: the steps its runs have, 0 and 0 when they have none.
    """

    text: str
    metrics: tuple[Metric, ...]
    first: int
    last: int


class ChartScreen(TuitrainScreen):
    """One picture of metrics of `run` and of the runs beside it.

    Args:
        run: the one that is shown at first.
    """

    SCOPE = "chart"
    BINDINGS: ClassVar[list[BindingType]] = bindings(SCOPE)
    DEFAULT_CSS = """
    ChartScreen #picture { height: 1fr; padding: 0 1; }
    ChartScreen #runs { height: 6; }
    ChartScreen.-tall #runs { height: 10; }
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._shown: list[Run] = [run]
        self._runs: list[Run] = [run]
        self._options = PlotOptions()
        self._picture = _Picture(text="", metrics=("loss",), first=0, last=0)
        self._archive = _Archive()
        # Held, not looked up: a thread may be done after the screen was left and its widgets removed.
        self._canvas = Static("Drawing ...", id="picture", markup=False)
        self._list = ListBox(id="runs", classes="panel")

    def compose_body(self) -> ComposeResult:
        yield self._canvas
        self._list.border_title = "Runs"
        yield self._list

    def on_mount(self) -> None:
        self._list.focus()
        self._list_runs(self._runs)
        self.set_interval(_SECONDS_BETWEEN_DRAWINGS, self._redraw_live)
        self.action_refresh()

    def on_resize(self) -> None:
        self.call_after_refresh(self._redraw)

    def show_live(self, live: "LiveRun | None") -> None:
        del live  # drawn again every ten seconds, not twice a second

    def _redraw_live(self) -> None:
        live = self.tuitrain.live
        if self.may_timers_draw and live is not None and live.run in self._shown:
            self._redraw()

    # What is drawn

    def action_toggle_run(self) -> None:
        run = self._highlighted
        if run is not None:
            others = [shown for shown in self._shown if shown != run]
            self._shown = others if run in self._shown else [*others, run]
            self._list_runs(self._runs)
            self._redraw()

    @on(OptionList.OptionSelected)
    def _select_run(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.action_toggle_run()

    def action_metric(self) -> None:
        first, *others = self._options.metrics
        following = _next(self._picture.metrics, first)
        self._change(metrics=(following, *(other for other in others if other != following)))

    def action_second_metric(self) -> None:
        first, *others = self._options.metrics
        candidates: list[Metric | None] = [None, *(metric for metric in self._picture.metrics if metric != first)]
        second = _next(candidates, others[0] if others else None)
        self._change(metrics=(first,) if second is None else (first, second))

    def action_log_y(self) -> None:
        self._change(is_log_y=not self._options.is_log_y)

    def action_log_x(self) -> None:
        self._change(is_log_x=not self._options.is_log_x)

    def action_smoother(self) -> None:
        self._smooth(1)

    def action_rougher(self) -> None:
        self._smooth(-1)

    def _smooth(self, by: int) -> None:
        index = SMOOTHINGS.index(self._options.smoothing) + by
        self._change(smoothing=SMOOTHINGS[min(max(index, 0), len(SMOOTHINGS) - 1)])

    # Which steps

    def action_zoom_in(self) -> None:
        first, last = self._steps()
        quarter = (last - first) // 4
        if quarter:
            self._show_steps(first + quarter, last - quarter)

    def action_zoom_out(self) -> None:
        first, last = self._steps()
        half = max((last - first) // 2, 1)
        self._show_steps(first - half, last + half)

    def action_earlier(self) -> None:
        self._pan(-1)

    def action_later(self) -> None:
        self._pan(1)

    def _pan(self, direction: int) -> None:
        first, last = self._steps()
        by = max((last - first) // 4, 1) * direction
        by = min(max(by, self._picture.first - first), self._picture.last - last)
        self._show_steps(first + by, last + by)

    def action_all_steps(self) -> None:
        self._change(first=None, last=None)

    def _steps(self) -> tuple[int, int]:
        """The first and the last step on show."""
        first, last = self._options.first, self._options.last
        return self._picture.first if first is None else first, self._picture.last if last is None else last

    def _show_steps(self, first: int, last: int) -> None:
        """Show these; an end that there is nothing behind follows the runs."""
        self._change(
            first=first if first > self._picture.first else None, last=last if last < self._picture.last else None
        )

    # Drawing

    def action_refresh(self) -> None:
        self.run_worker(self._find_runs, group="find", thread=True, exclusive=True, exit_on_error=False)
        self._redraw()

    def action_back(self) -> None:
        self.dismiss()

    def _change(self, **options: object) -> None:
        changed = replace(self._options, **options)  # type: ignore[arg-type]
        if changed != self._options:
            self._options = changed
            self._redraw()

    def _redraw(self) -> None:
        size = self._canvas.content_size
        if size:
            request = _Request(tuple(self._shown), self._options, size.width, size.height)
            self.run_worker(
                lambda: self._archive.draw(request), group="draw", thread=True, exclusive=True, exit_on_error=False
            )

    def _find_runs(self) -> list[Run]:
        """In a thread: the folder may lie on a slow disk."""
        return find_runs(self._runs[0].path.parent)[:MAX_NEIGHBOURS]

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        event.stop()
        if event.state == WorkerState.ERROR:
            self._canvas.update(Text(escape_control(f"cannot draw: {event.worker.error}")))
        elif event.state == WorkerState.SUCCESS:
            match event.worker.result:
                case _Picture() as picture if picture != self._picture:
                    self._picture = picture
                    text = picture.text if self._shown else "No run is shown: choose one with up and down, space."
                    self._canvas.update(Text.from_ansi(text))
                case list() as found:
                    self._list_runs([*(run for run in self._shown if run not in found), *found])
                case _:
                    pass  # the same picture as before

    def _list_runs(self, runs: list[Run]) -> None:
        """Show `runs` with marks; the highlight stays on its run."""
        if self._highlighted is not None and self._highlighted in runs:
            highlighted = runs.index(self._highlighted)
        else:
            highlighted = 0
        self._runs = runs
        self._list.set_options([Option(_run_line(run, is_shown=run in self._shown)) for run in runs])
        self._list.highlighted = highlighted

    @property
    def _highlighted(self) -> Run | None:
        index = self._list.highlighted
        return None if index is None else self._runs[index]


class _Archive:
    """The journals that were opened, followed as they grow; for one thread at a time, whichever it is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._journals: dict[Path, LoadedJournal] = {}

    def draw(self, request: _Request) -> _Picture:
        """Read what is new in the journals, and draw."""
        with self._lock:
            series = {name: self._read(run) for name, run in name_runs(request.runs).items()}
            text = draw_plot(
                series,
                request.options,
                width=request.width,
                height=request.height,
                has_color=not os.environ.get("NO_COLOR"),
            )
            return _Picture(
                text=text,
                metrics=tuple(
                    metric for metric in METRIC_LABELS if any(metric in run.metrics for run in series.values())
                ),
                first=min((run.steps[0] for run in series.values() if len(run)), default=0),
                last=max((run.steps[-1] for run in series.values() if len(run)), default=0),
            )

    def _read(self, run: Run) -> RunSeries:
        if run.path in self._journals:
            journal = self._journals[run.path]
            journal.series.feed(journal.tail.read_new())
        else:
            journal = self._journals[run.path] = load_journal(run.journal_path)
        return journal.series


def _next(choices: Sequence[Choice], chosen: Choice) -> Choice:
    """The one after `chosen`, round and round; the first, when it is not among them."""
    return choices[(choices.index(chosen) + 1) % len(choices)] if chosen in choices else choices[0]


def _run_line(run: Run, *, is_shown: bool) -> Text:
    """Mark, name and time of start."""
    try:
        started = f"   {datetime.fromtimestamp(float(run.run_id)):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):  # renamed
        started = ""
    return Text(f"{'●' if is_shown else '○'} {escape_control(run.run_id)}{started}", "bold" if is_shown else "")
