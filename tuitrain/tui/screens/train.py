"""The run on show: progress, chart, GPU, events; and the commands to whoever trains it. Knows no engine."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from tuitrain.errors import TuitrainError
from tuitrain.runs.control import Command
from tuitrain.runs.events import RunFinished
from tuitrain.runs.states import list_states
from tuitrain.tui.actions import actions_of, bindings
from tuitrain.tui.screens.base import TuitrainScreen
from tuitrain.tui.snapshot import State
from tuitrain.tui.widgets.chart import LossChart
from tuitrain.tui.widgets.confirm import Choice, ConfirmScreen
from tuitrain.tui.widgets.event_list import EventList
from tuitrain.tui.widgets.failure_panel import FailurePanel
from tuitrain.tui.widgets.gpu_panel import GpuPanel
from tuitrain.tui.widgets.latest_samples import LatestSamples
from tuitrain.tui.widgets.progress_lines import ProgressLines
from tuitrain.wording import format_duration

if TYPE_CHECKING:
    from tuitrain.tui.live import LiveRun

_OF_THE_CHART = {
    "metric",
    "log_y",
    "smoother",
    "rougher",
    "zoom_in",
    "zoom_out",
    "whole_run",
    "follow",
    "cursor_left",
    "cursor_right",
    "previous_mark",
    "next_mark",
    "zoom_panel",
}
_OF_A_RUN = {action.name for action in actions_of("train")}
_NOTHING = "No run on show.\n\n1  choose a preset or a run\n2  edit a config; F5 there starts it"


class TrainScreen(TuitrainScreen):
    """Watches and steers one run."""

    SCOPE = "train"
    BINDINGS: ClassVar[list[BindingType]] = bindings(SCOPE)
    AUTO_FOCUS = "LossChart"
    DEFAULT_CSS = """
    TrainScreen #nothing { height: 1fr; content-align: center middle; text-align: center; }
    TrainScreen #run { height: 1fr; display: none; }
    TrainScreen #upper { height: 1fr; }
    TrainScreen LossChart { width: 1fr; height: 1fr; }
    TrainScreen GpuPanel { width: 30; height: 1fr; }
    TrainScreen.-wide GpuPanel { width: 54; }
    TrainScreen #ending { height: auto; padding: 0 2; display: none; border: round $success; }
    TrainScreen #lower { height: 6; }
    TrainScreen.-medium #lower { height: 10; }
    TrainScreen.-tall #lower { height: 18; }
    TrainScreen.-low #lower { display: none; }
    TrainScreen EventList { width: 1fr; height: 1fr; }
    TrainScreen LatestSamples { width: 1fr; height: 1fr; display: none; }
    TrainScreen.-wide.-tall LatestSamples { display: block; }
    TrainScreen FailurePanel { height: 1fr; display: none; }
    TrainScreen.failed #upper { display: none; }
    TrainScreen.failed FailurePanel { display: block; }
    TrainScreen.ended #ending { display: block; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._told_ending: RunFinished | None = None

    def compose_body(self) -> ComposeResult:
        yield Static(_NOTHING, id="nothing", markup=False)
        with Vertical(id="run"):
            yield ProgressLines()
            with Horizontal(id="upper"):
                yield LossChart(id="chart", classes="panel")
                yield GpuPanel(id="gpu", classes="panel")
            yield FailurePanel(id="failure")
            yield Static(id="ending", markup=False)
            with Horizontal(id="lower"):
                yield LatestSamples(id="samples", classes="panel")
                events = EventList(id="events", classes="panel")
                events.border_title = "events"
                yield events

    @property
    def chart(self) -> LossChart:
        """The chart of the run."""
        return self.query_one(LossChart)

    def show_live(self, live: "LiveRun | None") -> None:
        is_shown = live is not None
        self.query_one("#nothing").display = not is_shown
        self.query_one("#run").display = is_shown
        if live is None:
            return
        snapshot = live.snapshot
        has_failed = snapshot.state in (State.FAILED, State.LOST)
        self.set_class(has_failed, "failed")
        self.set_class(snapshot.ending is not None and not live.is_alive, "ended")
        self.query_one(ProgressLines).show_live(live)
        self.query_one(EventList).show_lines(snapshot.lines)
        if has_failed:
            self.query_one(FailurePanel).show_live(live)
            return
        self.chart.show(live.series)
        self.query_one(GpuPanel).show_live(live)
        self.query_one(LatestSamples).show_live(live)
        if snapshot.ending is not None and snapshot.ending is not self._told_ending:
            self._told_ending = snapshot.ending
            self.query_one("#ending", Static).update(
                _describe_ending(live, is_resumable=bool(self.check_action("resume", ())))
            )

    # Commands to the engine

    def _send(self, command: Command, said: str) -> None:
        live = self.tuitrain.live
        assert live is not None
        live.send(command)
        self.tuitrain.toast(said)

    def action_pause(self) -> None:
        live = self.tuitrain.live
        if live is not None and live.snapshot.paused_since is not None:
            self._send(Command.RESUME, "going on")
        else:
            self._send(Command.PAUSE, "pausing after this step; space goes on")

    def action_sample(self) -> None:
        self._send(Command.SAMPLE, "samples come after this step")

    def action_save(self) -> None:
        self._send(Command.SAVE, "saving after this step")

    def action_stop(self) -> None:
        live = self.tuitrain.live
        assert live is not None
        if live.snapshot.state == State.STOPPING:
            self.tuitrain.toast("It is stopping; this takes until the step, or the save, is done.")
            return
        choices: list[Choice[Command | None]] = [
            Choice("n", "train on", None),
            Choice("y", "stop after this step and save a checkpoint", Command.STOP),
            Choice("d", "stop after this step and discard what was not saved", Command.DISCARD),
        ]
        question: ConfirmScreen[Command | None] = ConfirmScreen("Stop this run?", choices)
        self.app.push_screen(question, self._stop)

    def _stop(self, command: Command | None) -> None:
        if command is not None:
            self._send(command, "stopping after this step" + (", then saving" if command is Command.STOP else ""))

    def action_detach(self) -> None:
        self.tuitrain.detach()

    # The chart

    def action_metric(self) -> None:
        self.chart.next_metric()

    def action_log_y(self) -> None:
        self.chart.toggle_log_y()

    def action_smoother(self) -> None:
        self.chart.change_smoothing(1)

    def action_rougher(self) -> None:
        self.chart.change_smoothing(-1)

    def action_zoom_in(self) -> None:
        self.chart.zoom(1)

    def action_zoom_out(self) -> None:
        self.chart.zoom(-1)

    def action_whole_run(self) -> None:
        self.chart.show_all()

    def action_follow(self) -> None:
        self.chart.follow()

    def action_cursor_left(self) -> None:
        self.chart.move_cursor(-1)

    def action_cursor_right(self) -> None:
        self.chart.move_cursor(1)

    def action_previous_mark(self) -> None:
        self._move_to_mark(-1)

    def action_next_mark(self) -> None:
        self._move_to_mark(1)

    def _move_to_mark(self, direction: int) -> None:
        if not self.chart.move_to_mark(direction):
            self.tuitrain.toast("No checkpoint, no samples and no spike further on this side.")

    def action_log(self) -> None:
        self.tuitrain.action_log()

    def action_explore(self) -> None:
        from tuitrain.tui.screens.chart import ChartScreen

        live = self.tuitrain.live
        assert live is not None
        self.app.push_screen(ChartScreen(live.run))

    # After the end

    def action_start_again(self) -> None:
        self._edit_config(())

    @on(FailurePanel.Chosen)
    def _carry_out(self, event: FailurePanel.Chosen) -> None:
        live, remedy = self.tuitrain.live, event.remedy
        assert live is not None
        if remedy.resume_from is None:
            self._edit_config(remedy.overrides, focus=remedy.focus)
        else:
            self.tuitrain.resume(live.run, None, [f"{path}={json.dumps(value)}" for path, value in remedy.overrides])

    def action_resume(self) -> None:
        live = self.tuitrain.live
        assert live is not None
        self.tuitrain.resume(live.run)

    def _edit_config(self, overrides: Iterable[tuple[str, Any]], *, focus: str = "") -> None:
        """Open the config of the run with some settings changed, for the user to look at and to start."""
        from tuitrain.tui.document import ConfigDocument

        live = self.tuitrain.live
        assert live is not None
        try:
            document = ConfigDocument.open(live.run.config_path)
        except TuitrainError as error:
            self.tuitrain.toast(str(error), is_warning=True)
            return
        for path, value in overrides:
            document.set_value(path, value)
        self.tuitrain.open_document(document, focus=focus)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        del parameters
        live = self.tuitrain.live
        if action in ("pause", "sample", "save", "stop", "detach"):
            return live is not None and live.is_alive
        if action == "resume":
            is_unfinished = live is not None and not live.is_alive and live.snapshot.state is not State.FINISHED
            return live is not None and is_unfinished and bool(list_states(live.run.checkpoints_dir))
        if action == "start_again":
            return live is not None and not live.is_alive and not self.has_class("failed")
        if action in _OF_THE_CHART:
            return live is not None and not self.has_class("failed")
        return live is not None or action not in _OF_A_RUN


def _describe_ending(live: "LiveRun", *, is_resumable: bool) -> Text:
    snapshot = live.snapshot
    assert snapshot.ending is not None
    text = Text.assemble(
        ("Completed" if snapshot.ending.reason == "completed" else "Stopped", "bold"),
        f" at step {snapshot.step} after {format_duration(snapshot.ending.seconds)}",
    )
    if live.series.best is not None and snapshot.loss is not None:
        best_step, best_loss = live.series.best
        text.append(f"   loss {snapshot.loss:.4f}, best smooth {best_loss:.4f} @{best_step}")
    for key, words in (
        ("\n4", "package a checkpoint or extract a LoRA"),
        ("a", "start again"),
        *((("r", "train on"),) if is_resumable else ()),
    ):
        text.append(key, style="bold").append(f" {words}   ")
    return text
