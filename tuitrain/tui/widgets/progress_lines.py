"""Two lines: how far the run is, and its newest numbers. Knows the snapshot of a run."""

import math
import time
from typing import TYPE_CHECKING

from rich.text import Text
from textual.widget import Widget

from tuitrain.tui.widgets.changed_cells import changed_cells
from tuitrain.wording import escape_control, format_duration, format_speed

if TYPE_CHECKING:
    from tuitrain.runs.series import RunSeries
    from tuitrain.tui.live import LiveRun
    from tuitrain.tui.snapshot import Phase, RunSnapshot

_MIN_BAR = 10


class ProgressLines(Widget):
    """A bar with percentage and time left, and under it loss, learning rate, gradient norm and speed."""

    DEFAULT_CSS = """
    ProgressLines { height: 2; width: 100%; padding: 0 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._fraction: float | None = None
        self._right = ""
        self._values: tuple[tuple[str, str], ...] = ()

    def show_live(self, live: "LiveRun | None") -> None:
        """Draw what changed."""
        if live is None:
            facts: tuple[float | None, str, tuple[tuple[str, str], ...]] = (None, "", ())
        else:
            facts = (*progress_of(live.snapshot, time.time()), values_of(live.snapshot, live.series))
        if facts != (self._fraction, self._right, self._values):
            before = self._draw().plain.split("\n")
            self._fraction, self._right, self._values = facts
            self.refresh(*changed_cells(before, self._draw().plain.split("\n")))

    def render(self) -> Text:
        return self._draw()

    def _draw(self) -> Text:
        width = self.size.width
        bar = Text(self._right, no_wrap=True)
        if self._fraction is not None:
            bar = draw_bar(self._fraction, max(width - len(self._right) - 2, _MIN_BAR))
            bar.append(f"  {self._right}")
        bar.truncate(width)
        numbers = Text(no_wrap=True)
        for label, value in self._values:
            if numbers.cell_len + len(label) + len(value) + 4 > width:
                break
            numbers.append(f"{label} ", style="dim")
            numbers.append(f"{value}   ", style="bold" if label == "loss" else "")
        return Text.assemble(bar, "\n", numbers)


def draw_bar(fraction: float, width: int) -> Text:
    """A bar of `width` columns, filled to the half column."""
    halves = round(max(0.0, min(fraction, 1.0)) * width * 2)
    full, half = divmod(halves, 2)
    return Text.assemble(("━" * full + "╸" * half, "bold"), ("─" * (width - full - half), "dim"), no_wrap=True)


def progress_of(snapshot: "RunSnapshot", now: float) -> tuple[float | None, str]:
    """Fraction done of what the run is at, and words for it."""
    is_over = snapshot.state.has_ended
    phase = snapshot.phase
    if phase is not None and phase.name != "train" and not is_over:
        return phase.fraction, escape_control(_describe_phase(phase, now))
    if snapshot.progress is None:
        return None, "" if is_over else "starting ..."
    percent = f"{100 * snapshot.progress:.1f} %"
    if is_over:
        took = "" if snapshot.finished_seconds is None else f"  in {format_duration(snapshot.finished_seconds)}"
        return snapshot.progress, f"{percent}{took}"
    if snapshot.paused_since is not None:
        return snapshot.progress, f"{percent}  paused for {format_duration(now - snapshot.paused_since)}"
    eta = snapshot.eta_seconds(now)
    return snapshot.progress, percent + ("" if eta is None else f"  {format_duration(eta)} left")


def _describe_phase(phase: "Phase", now: float) -> str:
    if phase.total is None:
        return f"{phase.label} ...  {format_duration(now - phase.since)}"
    words = f"{phase.label} {phase.done}/{phase.total}"
    if phase.rate is not None and phase.name.startswith("cache"):
        words += f"  {phase.rate:.1f}/s"
    return words if phase.eta_seconds is None else f"{words}  {format_duration(phase.eta_seconds)} left"


def values_of(snapshot: "RunSnapshot", series: "RunSeries") -> tuple[tuple[str, str], ...]:
    """The newest numbers, the most wanted first."""
    if snapshot.loss is None:
        return ()
    values = [("loss", f"{snapshot.loss:.4f}")]
    if series.smoothed_loss and math.isfinite(series.smoothed_loss[-1]):
        values.append(("smooth", f"{series.smoothed_loss[-1]:.4f}"))
    if snapshot.lr is not None:
        values.append(("lr", f"{snapshot.lr:.2e}"))
    if snapshot.grad_norm is not None:
        values.append(("grad", f"{snapshot.grad_norm:.3g}"))
    if snapshot.seconds_per_step:
        values.append(("speed", format_speed(snapshot.seconds_per_step)))
    if snapshot.memory_peak_gib is not None:
        values.append(("peak", f"{snapshot.memory_peak_gib:.1f} GiB"))
    if series.best is not None:
        best_step, best_loss = series.best
        values.append(("best smooth", f"{best_loss:.4f} @{best_step}"))
    return tuple(values)
