"""The log of the run on show, straight from its file; knows no engine."""

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, Static
from textual.worker import Worker, WorkerState

from tuitrain.tui.actions import bindings
from tuitrain.tui.screens.base import TuitrainScreen
from tuitrain.tui.widgets.log_view import LogView
from tuitrain.wording import escape_control

if TYPE_CHECKING:
    from pathlib import Path

    from tuitrain.tui.live import LiveRun


class LogScreen(TuitrainScreen):
    """Search, filter, follow."""

    SCOPE = "log"
    BINDINGS: ClassVar[list[BindingType]] = bindings(SCOPE)
    AUTO_FOCUS = "LogView"  # not the search: unseen, it would take every key
    DEFAULT_CSS = """
    LogScreen .body { height: 1fr; }
    LogScreen LogView { height: 1fr; }
    LogScreen #nothing { height: 1fr; content-align: center middle; text-align: center; }
    LogScreen #search { height: 1; border: none; padding: 0 1; display: none; }
    LogScreen #search.shown { display: block; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._path: Path | None = None
        self._subtitle = ""

    def compose_body(self) -> ComposeResult:
        with Vertical(classes="body"):
            yield Static("No run on show.\n\n1  choose a run", id="nothing", markup=False)
            search = Input(placeholder="search; Enter finds the last one, n and N go on", id="search", compact=True)
            search.cursor_blink = False
            yield search
            yield LogView(id="log", classes="panel")

    @property
    def view(self) -> LogView:
        """The lines."""
        return self.query_one(LogView)

    def show_live(self, live: "LiveRun | None") -> None:
        self.query_one("#nothing").display = live is None
        self.view.display = live is not None
        if live is None:
            return
        if live.run.log_path != self._path:
            self._path = live.run.log_path
            self.view.border_title = Content(escape_control(str(self._path)))
            self.view.show_file(self._path)
            self.view.focus()
        self.view.poll()
        level = "warnings and errors   " if self.view.is_serious_only else ""
        subtitle = f"{level}{self.view.position}"
        if subtitle != self._subtitle:
            self._subtitle = subtitle
            self.view.border_subtitle = Content(subtitle)

    def action_search(self) -> None:
        box = self.query_one(Input)
        box.add_class("shown")
        box.focus()

    def key_escape(self) -> None:
        self.query_one(Input).remove_class("shown")
        self.view.needle = ""
        self.view.refresh()
        self.view.focus()

    @on(Input.Submitted)
    def _search(self, event: Input.Submitted) -> None:
        self.view.needle = event.value
        self.view.focus()
        self.action_previous_match()

    def action_next_match(self) -> None:
        self._find(backwards=False)

    def action_previous_match(self) -> None:
        self._find(backwards=True)

    def _find(self, *, backwards: bool) -> None:
        needle = self.view.needle
        if not needle:
            self.action_search()
            return
        view = self.view
        self.run_worker(lambda: view.find(needle, backwards=backwards), group="find", thread=True, exclusive=True)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        event.stop()
        if event.state != WorkerState.SUCCESS:
            return
        if event.worker.result is None:
            self.tuitrain.toast(f"{self.view.needle}: not found in this direction (32 MiB read); / searches anew")
            self.view.refresh()
        else:
            self.view.go_to(event.worker.result)

    def action_level(self) -> None:
        self.view.set_serious_only(not self.view.is_serious_only)
        self.draw_live()

    def action_follow(self) -> None:
        self.view.follow()

    def action_start(self) -> None:
        self.view.to_start()

    def action_end(self) -> None:
        self.view.follow()

    def action_copy_line(self) -> None:
        line = self.view.current
        if line is not None:
            self.tuitrain.send_to_clipboard(escape_control(line.content.decode("utf-8", "backslashreplace")))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        del parameters, action
        return self.tuitrain.live is not None
