"""The app: five screens over one run and one config. Knows which screen shows what, and nothing of how."""

import logging
import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.filter import LineFilter
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.worker import Worker, WorkerState

from tuitrain.atomic import write_text_atomic
from tuitrain.errors import ConfigError, TuitrainError
from tuitrain.tui.actions import actions_of, bindings
from tuitrain.tui.graphics import Graphics
from tuitrain.tui.line_filter import AsciiFilter, ControlFilter
from tuitrain.tui.screens.base import TuitrainScreen
from tuitrain.tui.stylesheet import LastingStylesheet
from tuitrain.tui.widgets.confirm import Choice, ConfirmScreen
from tuitrain.tui.widgets.status_bar import terminal_title
from tuitrain.wording import escape_control

if TYPE_CHECKING:
    from tuitrain.config.schema import TrainConfig
    from tuitrain.runs.run import Run
    from tuitrain.tui.document import ConfigDocument
    from tuitrain.tui.jobs import Job
    from tuitrain.tui.live import LiveRun

POLL_SECONDS = 0.5
DRAW_SECONDS = 1.0
# Of the terminal's window, tab or pane: keep the title it has, bring it back, give it another. Source: xterm, ctlseqs.
_KEEP_TITLE, _RESTORE_TITLE, _TITLE = "\x1b[22;2t", "\x1b[23;2t", "\x1b]2;{}\x07"
_NUM_CHANGES_SHOWN = 12

log = logging.getLogger("tuitrain")


def _home() -> Screen[None]:
    from tuitrain.tui.screens.home import HomeScreen

    return HomeScreen()


def _config() -> Screen[None]:
    from tuitrain.tui.screens.config import ConfigScreen  # the config's schema: 0.1 s

    return ConfigScreen()


def _train() -> Screen[None]:
    from tuitrain.tui.screens.train import TrainScreen

    return TrainScreen()


def _checkpoints() -> Screen[None]:
    from tuitrain.tui.screens.checkpoints import CheckpointsScreen

    return CheckpointsScreen()


def _log() -> Screen[None]:
    from tuitrain.tui.screens.log import LogScreen

    return LogScreen()


class TuitrainApp(App[int]):
    """Presets, editor, live run, checkpoints and log.

    Args:
        runs_dir: where the home screen looks for runs.
        first_mode: the screen to begin with, one of `MODES`.
        graphics: how pictures and frames are drawn.
        on_ready: called with the app when the first screen stands.

    Attributes:
        live: the run on show, None before one was chosen.
        hosted: the run that a thread of this process trains, or trained last.
        document: the config being edited, None before one was chosen.
        document_focus: the path of the setting to begin with; "" is the top.
        job: the export at work, or the last one.
    """

    class ResumeRefused(Message):
        """A run would not go on exactly as it would have; its user may accept that.

        Args:
            words: what has changed, a thing a line.
            resume: tries once more when told whether changes are accepted.
            is_past: whether an attempt before this one was refused, so that all may be well by now.
        """

        def __init__(self, words: str, resume: Callable[..., None], *, is_past: bool) -> None:
            super().__init__()
            self.words = words
            self.resume = resume
            self.is_past = is_past

    TITLE = "tuitrain"
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("app"),
        Binding("ctrl+z", "suspend_refused", show=False),  # in a text it is undo
    ]
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {
        "home": _home,
        "config": _config,
        "train": _train,
        "checkpoints": _checkpoints,
        "log": _log,
    }
    DEFAULT_MODE = "home"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-normal"), (140, "-wide")]
    VERTICAL_BREAKPOINTS = [
        (0, "-low"),
        (24, "-short"),
        (34, "-medium"),
        (46, "-tall"),
    ]
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"

    def __init__(
        self,
        *,
        runs_dir: Path = Path(),
        first_mode: str = DEFAULT_MODE,
        graphics: Graphics = Graphics("half"),  # noqa: B008  frozen
        on_ready: "Callable[[TuitrainApp], None]" = lambda app: None,
    ) -> None:
        self.DEFAULT_MODE = first_mode  # type: ignore[misc]  # Textual knows one for all apps of a class
        super().__init__()
        self.stylesheet = LastingStylesheet(variables=self.theme_variables)
        self.runs_dir = runs_dir
        self.graphics = graphics
        self.live: LiveRun | None = None
        self.hosted: LiveRun | None = None
        self.document: ConfigDocument | None = None
        self.document_focus = ""
        self.job: Job[Any] | None = None
        self._on_ready = on_ready
        self._drawn_state: object = None
        self._terminal_title = ""
        self._next_draw = 0.0
        self._own_filters: list[LineFilter] = [ControlFilter(lets_cursor_move=graphics.mode == "sixel")]
        if graphics.is_ascii:
            self._own_filters.append(AsciiFilter())

    def on_mount(self) -> None:
        self._tell_terminal(_KEEP_TITLE)
        self.set_interval(POLL_SECONDS, self._poll)
        self.call_after_refresh(self._on_ready, self)
        if self.graphics.note:
            self.toast(self.graphics.note)

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [*super().get_line_filters(), *self._own_filters]

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Every action of the app and of the screen on show."""
        scopes = [(self, "app")]
        if isinstance(screen, TuitrainScreen):
            scopes.insert(0, (screen, screen.SCOPE))  # type: ignore[arg-type]
        for owner, scope in scopes:
            for action in actions_of(scope):
                obey = getattr(owner, f"action_{action.name}")
                if owner.check_action(action.name, ()):
                    yield SystemCommand(f"{action.label} ({action.key_text})", action.help, obey)

    async def on_event(self, event: events.Event) -> None:
        """While letters lie over the panels, the next key is for them, whoever has the focus."""
        if (
            isinstance(event, events.Key)
            and not event.is_forwarded
            and isinstance(self.screen, TuitrainScreen)
            and self.screen.letters.are_shown
        ):
            self.screen.letters.take(event.key)
        else:
            await super().on_event(event)

    @property
    def escape_to_minimize(self) -> bool:
        return not (isinstance(self.screen, TuitrainScreen) and self.screen.keeps_esc)

    # What the screens ask for

    def open_document(self, document: "ConfigDocument", *, focus: str = "") -> None:
        """Edit `document`, beginning with the setting at the path `focus`, or at the top."""
        self.document = document
        self.document_focus = focus
        self.switch_mode("config")

    def open_run(self, run: "Run") -> None:
        """Show `run`, whoever trains it or did; its journal is read in a thread."""
        from tuitrain.tui.live import LiveRun

        if self.hosted is not None and self.hosted.run == run:
            self.show_run(self.hosted)
        else:
            self._hand_over(partial(_load, LiveRun.watch(run)))

    def start(self, config: "TrainConfig") -> None:
        """Train `config` in a thread of this process, and show it."""
        if self.hosted is not None and self.hosted.is_alive:
            self.notify("A run is training here already: open it from the home screen, x there stops it.")
            return
        self._hand_over(partial(self._start, config))

    def _start(self, config: "TrainConfig") -> "LiveRun":
        from tuitrain.tui.live import LiveRun

        self.hosted = LiveRun.start(config)  # at once, in the worker: whoever ends the app must know of the thread
        return self.hosted

    def resume(
        self,
        run: "Run",
        checkpoint: Path | None = None,
        overrides: Sequence[str] = (),
        *,
        accept_changes: bool | None = None,
    ) -> None:
        """Train on with `run` in a thread of this process, and show it.

        Args:
            checkpoint: by default the one with the newest state.
            overrides: settings that the user chose to change, as `--set` takes them; these changes are accepted.
            accept_changes: go on although it will not be exact; None asks the user, where that is the question.
        """
        if self.hosted is not None and self.hosted.is_alive:
            self.notify("A run is training here already: open it from the home screen, x there stops it.")
            return
        self._hand_over(partial(self._resume, run, checkpoint, overrides, accept_changes=accept_changes))

    def _resume(
        self, run: "Run", checkpoint: Path | None, overrides: Sequence[str], *, accept_changes: bool | None
    ) -> "LiveRun | None":
        """In a thread; gives None where the user has to be asked first."""
        from tuitrain.tui.live import LiveRun, asks_to_accept_changes

        again = partial(self.resume, run, checkpoint, overrides)
        if accept_changes is None and (refusal := _load(LiveRun.watch(run)).refusal):
            self.post_message(self.ResumeRefused(refusal, again, is_past=True))
            return None
        try:  # hosted at once, as in `_start`
            self.hosted = LiveRun.resume(run, checkpoint, overrides, accept_changes=bool(accept_changes))
        except ConfigError as error:
            if not asks_to_accept_changes(error.problems[0].hint):
                raise
            words = "\n".join(problem.what for problem in error.problems)
            self.post_message(self.ResumeRefused(words, again, is_past=False))
            return None
        return _load(self.hosted)

    def on_tuitrain_app_resume_refused(self, event: ResumeRefused) -> None:
        lines = event.words.splitlines()
        if len(lines) > _NUM_CHANGES_SHOWN:
            lines[_NUM_CHANGES_SHOWN:] = [f"and {len(lines) - _NUM_CHANGES_SHOWN} more"]
        choices: list[Choice[bool | None]] = [
            Choice("n", "go back", None),
            Choice("y", "train on with what has changed; it will not be exact", True),
        ]
        if event.is_past:
            choices.insert(1, Choice("e", "try again: all is as it was by now", False))

        def resume(wish: bool | None) -> None:
            if wish is not None:
                event.resume(accept_changes=wish)

        self.push_screen(ConfirmScreen[bool | None]("\n".join(lines), choices), resume)

    def show_run(self, live: "LiveRun") -> None:
        """Show `live`, which has been loaded."""
        self.live = live
        self.switch_mode("train")
        self._draw()

    def toast(self, text: str, *, is_warning: bool = False) -> None:
        """A sentence that needs no answer, for four seconds."""
        self.notify(escape_control(text), markup=False, timeout=4, severity="warning" if is_warning else "information")

    def send_to_clipboard(self, text: str) -> None:
        """Give `text` to the terminal's clipboard, and to clipboard.txt in the run: nobody can tell if it came."""
        place = "the terminal's clipboard"
        if self.live is not None:
            copy = self.live.run.path / "clipboard.txt"
            write_text_atomic(copy, text, mode=0o600)
            place += f" and {copy.name} in the run"
        if os.environ.get("TMUX"):
            # tmux keeps OSC 52 to itself unless it was told otherwise; this asks it to pass the text on.
            subprocess.run(["tmux", "load-buffer", "-w", "-"], input=text.encode(), check=False, capture_output=True)
        else:
            self.copy_to_clipboard(text)
        self.toast(f"sent to {place}")

    def _hand_over(self, make: "Callable[[], LiveRun | None]") -> None:
        self.run_worker(make, name="open run", group="live", thread=True, exclusive=True, exit_on_error=False)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        if event.worker.group != "live":
            return
        if event.state == WorkerState.SUCCESS:
            if event.worker.result is not None:
                self.show_run(event.worker.result)
        elif event.state == WorkerState.ERROR:
            error = event.worker.error
            words = str(error) if isinstance(error, TuitrainError | OSError) else f"{type(error).__name__}: {error}"
            log.error("a run could not be opened or started", exc_info=error)
            shown = "\n".join(map(escape_control, words.splitlines()))
            self.notify(shown, markup=False, severity="error", timeout=20)

    # The run on show

    def _poll(self) -> None:
        for live in {self.live, self.hosted}:
            if live is not None:
                live.poll()
        state = None if self.live is None else (self.live.run, self.live.snapshot.state)
        if state != self._drawn_state or monotonic() >= self._next_draw:  # a new state at once, numbers every second
            self._drawn_state, self._next_draw = state, monotonic() + DRAW_SECONDS - POLL_SECONDS / 2
            self._draw()

    def _draw(self) -> None:
        title = terminal_title(self.live)
        if title != self._terminal_title:
            self._terminal_title = title
            self._tell_terminal(_TITLE.format(title))
        if isinstance(self.screen, TuitrainScreen) and self.screen.is_mounted and self.screen.may_timers_draw:
            self.screen.draw_live()

    def _tell_terminal(self, sequence: str) -> None:
        if self._driver is not None:
            self._driver.write(sequence)

    # Actions

    def action_home(self) -> None:
        self._switch("home")

    def action_config(self) -> None:
        self._switch("config")

    def action_train(self) -> None:
        self._switch("train")

    def action_checkpoints(self) -> None:
        self._switch("checkpoints")

    def action_log(self) -> None:
        self._switch("log")

    def _switch(self, mode: str) -> None:
        while len(self.screen_stack) > 1 and not isinstance(self.screen, ModalScreen):
            self.pop_screen()
        if len(self.screen_stack) == 1:  # not from under a question
            self.switch_mode(mode)

    def action_help(self) -> None:
        from tuitrain.tui.screens.help import HelpScreen

        if isinstance(self.screen, TuitrainScreen):
            self.push_screen(HelpScreen(self.screen.SCOPE))

    def action_jump(self) -> None:
        if isinstance(self.screen, TuitrainScreen):
            self.screen.letters.show()

    def action_cancel_job(self) -> None:
        if self.job is not None:
            self.job.cancel()

    def action_leave(self) -> None:
        is_unsaved = self.document is not None and self.document.is_modified
        if is_unsaved and len(self.screen_stack) > 1:
            self.toast("The config has changes that are not saved: first answer the question on the screen, or esc.")
        elif is_unsaved and self.current_mode != "config":
            self.switch_mode("config")
            self.call_after_refresh(self.action_leave)
        elif not isinstance(self.screen, TuitrainScreen) or self.screen.confirm_leave():
            if self.job is not None and self.job.is_running:
                choices = [Choice("n", "stay", False), Choice("y", "cancel it and leave", True)]
                self.push_screen(ConfirmScreen(f"{self.job.title} is at work.", choices), self._leave_job)
            else:
                self.leave()

    def _leave_job(self, is_wanted: bool | None) -> None:
        if is_wanted:
            self.action_cancel_job()
            self.leave()

    def on_unmount(self) -> None:
        self._tell_terminal(_RESTORE_TITLE)
        self.action_cancel_job()  # its thread would keep the process; it leaves nothing behind

    def leave(self) -> None:
        """End the app, or first ask what a training here shall do."""
        self.exit(0)

    def detach(self) -> None:
        """End the app at once; a training here goes on without the terminal."""
        self.exit(0)

    def action_help_quit(self) -> None:
        """What ctrl+c does: nothing is lost by a habit."""
        self.toast("q leaves the app, a training here can go on; x on the train screen stops it.")

    def action_suspend_refused(self) -> None:
        self.toast("ctrl+z would halt a training here, so it does nothing; q leaves the app.")

    async def action_quit(self) -> None:
        self.action_leave()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "cancel_job":
            return self.job is not None and self.job.is_running
        if action == "change_theme":  # `t` shows the traceback there; the palette, a screen of its own, has the theme
            return not any(screen.has_class("failed") for screen in self.screen_stack[-1:])  # none while the app ends
        return super().check_action(action, parameters)


def _load(live: "LiveRun") -> "LiveRun":
    live.load()
    return live
