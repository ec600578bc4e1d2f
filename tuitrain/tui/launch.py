"""From the shell into the app and back: terminal, signals, and a training that outlives the screen.

Knows nothing of what the screens show. The process that the shell started stays behind as the keeper (keeper.py); in
its child the main thread runs the app, and afterwards, while a thread of the child still trains, waits for that.
"""

import asyncio
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, cast

from tuitrain.errors import EXIT_INTERRUPTED, ConfigError, Problem
from tuitrain.runs.control import Command
from tuitrain.runs.events import PhaseName, PhaseStarted
from tuitrain.runs.journal import JournalTail
from tuitrain.tui.app import TuitrainApp
from tuitrain.tui.collector import leave_out_libraries
from tuitrain.tui.graphics import Graphics, choose_graphics
from tuitrain.tui.keeper import Keeper, run_kept
from tuitrain.tui.snapshot import State
from tuitrain.tui.terminal_guard import TerminalGuard
from tuitrain.tui.widgets.confirm import Choice, ConfirmScreen
from tuitrain.wording import escape_control

if TYPE_CHECKING:
    from tuitrain.tui.live import LiveRun

EXIT_FAILED = 1
DUPLICATE_SECONDS = 1.0
"""A signal to the whole job reaches the app twice, directly and through the keeper: within this time it is one."""

TIDY_SECONDS = 10.0
"""For which a training that says it has ended may keep the prompt from coming back."""

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Leaving(Enum):
    """What becomes of a training here when the screen closes."""

    KEEP = "it goes on here, below the prompt that started the app"
    DETACH = "it goes on without the terminal, and the shell comes back"
    STOP = "it finishes its step, saves and stops"


def run_app(
    on_ready: Callable[[TuitrainApp], None],
    *,
    first_mode: str = TuitrainApp.DEFAULT_MODE,
    runs_dir: Path = Path(),
    images: str = "auto",
    is_ascii: bool = False,
) -> int:
    """Run the app in this terminal, from the first screen to the end of the last training.

    Args:
        on_ready: called with the app when the first screen stands.
        first_mode: that screen, one of `TuitrainApp.MODES`.
        runs_dir: where the home screen looks for runs.
        images: how pictures are drawn, one of `GRAPHICS`.
        is_ascii: whether frames are drawn with ASCII.

    Returns:
        The process's exit status.

    Raises:
        ConfigError: there is no terminal to draw on, or `images` cannot be had.
    """
    check_terminal()
    graphics = replace(choose_graphics(images), is_ascii=is_ascii)

    def run_here(keeper: Keeper) -> int:
        with TerminalGuard(log_path(), lends_stdout=graphics.mode == "kitty") as guard:
            return _Host(keeper, guard, runs_dir, graphics).run(on_ready, first_mode)

    return run_kept(run_here)


def check_terminal() -> None:
    """Check that a person sits at both ends.

    Raises:
        ConfigError: standard input or output is no terminal, or one that cannot place a cursor.
    """
    for name, stream in (("input", sys.stdin), ("output", sys.stdout)):
        if stream is None or not stream.isatty():
            hint = "`tuitrain train` trains without a screen, `tuitrain --help` lists what else does"
            raise ConfigError(f"the app needs a terminal, and standard {name} is none", hint=hint)
    if os.environ.get("TERM", "dumb") in ("", "dumb", "unknown"):
        raise ConfigError(
            f"the app cannot draw on a terminal of the type {os.environ.get('TERM') or 'unset'}",
            hint="set TERM, for example TERM=xterm-256color; `tuitrain train` trains without a screen",
        )


def log_path() -> Path:
    """Where the app's own troubles are told, and what would otherwise be printed while nothing trains here."""
    state_dir = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state_dir) / "tuitrain" / "tuitrain.log"


class HostedApp(TuitrainApp):
    """The app in a real terminal: it asks before it leaves a training, and its own failure ends nothing but itself.

    Args:
        guard: of the terminal it runs in.
        keeper: of its process.

    Attributes:
        leaving: what shall become of a training here.
        failure: what ended the app, if it failed.
    """

    def __init__(
        self,
        guard: TerminalGuard,
        keeper: Keeper,
        *,
        runs_dir: Path,
        first_mode: str,
        graphics: Graphics,
        on_ready: Callable[[TuitrainApp], None],
    ) -> None:
        super().__init__(runs_dir=runs_dir, first_mode=first_mode, graphics=graphics, on_ready=on_ready)
        self.leaving = Leaving.KEEP
        self.failure: BaseException | None = None
        self._guard = guard
        self._keeper = keeper
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._is_ending = False

    def on_mount(self) -> None:
        self._guard.capture_streams()
        self._event_loop = asyncio.get_running_loop()
        if self._is_ending:  # a signal came before the loop
            self.exit(0)

    def show_run(self, live: "LiveRun") -> None:
        if live.is_here:
            self._guard.log_to(live.run.log_path)
            path = live.run.path
            self._keeper.leave_note([f"log: {live.run.log_path}", f"look at the run: tuitrain open {path}"])
        super().show_run(live)

    @contextmanager
    def suspend(self) -> Iterator[None]:
        """Lend the terminal to another program, an editor."""
        with super().suspend(), self._guard.lifted():
            yield

    def end(self, leaving: Leaving) -> None:
        """Leave without a question; from a signal handler."""
        self.leaving = leaving
        self._is_ending = True
        if self._event_loop is not None:
            self._event_loop.call_soon_threadsafe(self.exit, 0)

    def leave(self) -> None:
        """Leave; asks what a training here shall do."""
        if self.hosted is None or self.hosted.join(0) or self.hosted.has_ended:
            self.exit(0)
            return
        choices: list[Choice[Leaving | None]] = [
            Choice("s", "stay", None),
            Choice("l", "leave; training goes on in this terminal", Leaving.KEEP),
            Choice("d", "detach; training goes on without a terminal", Leaving.DETACH),
            Choice("x", "stop training, save, and leave", Leaving.STOP),
        ]
        question = f"{self.hosted.run.run_id} is being trained here."
        self.push_screen(ConfirmScreen[Leaving | None](question, choices), self._leave_for)

    def detach(self) -> None:
        """Leave at once; a training here goes on without the terminal."""
        self._leave_for(Leaving.DETACH)

    def _leave_for(self, leaving: Leaving | None) -> None:
        if leaving is not None:
            self.leaving = leaving
            self.exit(0)

    def _handle_exception(self, error: Exception) -> None:
        """Write the traceback to the log, without the values of variables, and leave.

        Textual would print it to the terminal, values included.
        """
        self._note_failure(error)
        self._return_code = EXIT_FAILED
        self._close_messages_no_wait()

    def break_off(self, error: BaseException) -> None:
        """Give back the terminal after an error that Textual did not catch: one while it started, or no Exception."""
        self._note_failure(error)
        if self._driver is not None:
            self._driver.stop_application_mode()
            self._driver.close()

    def _note_failure(self, error: BaseException) -> None:
        """Keep the first thing that went wrong, and write all to the log."""
        self.failure = self.failure or error
        sys.stderr.write("".join(traceback.format_exception(error)))


class _Host:
    """The process of the app: the screen while there is one, then whatever a training here needs."""

    def __init__(self, keeper: Keeper, guard: TerminalGuard, runs_dir: Path, graphics: Graphics) -> None:
        self._keeper = keeper
        self._guard = guard
        self._runs_dir = runs_dir
        self._graphics = graphics
        self._hosted: LiveRun | None = None
        self._is_interrupted = False

    def run(self, on_ready: Callable[[TuitrainApp], None], first_mode: str) -> int:
        """Show the screen until the user has left it and nothing trains here any more; gives the exit status."""
        while True:
            app = self._run_screen(on_ready, first_mode)
            if self._hosted is None or self._hosted.join(TIDY_SECONDS if self._hosted.has_ended else 0):
                return self._say_goodbye(app)
            if app.leaving is Leaving.DETACH:
                return self._detach(self._hosted)
            if not self._go_on_below(app, self._hosted):
                return self._say_goodbye(app)
            on_ready, first_mode = self._show_again, "train"

    def _run_screen(self, on_ready: Callable[[TuitrainApp], None], first_mode: str) -> HostedApp:
        app = HostedApp(
            self._guard,
            self._keeper,
            runs_dir=self._runs_dir,
            first_mode=first_mode,
            graphics=self._graphics,
            on_ready=partial(self._settle, on_ready),
        )
        app.hosted = self._hosted
        self._guard.lend_terminal()
        with self._signals_end(app):
            try:
                app.run()
            except (Exception, SystemExit) as error:  # noqa: BLE001  the screen's edge: a training must not end with it
                self._guard.capture_streams()
                app.break_off(error)
        self._hosted = app.hosted
        return app

    @staticmethod
    def _settle(on_ready: Callable[[TuitrainApp], None], app: TuitrainApp) -> None:
        leave_out_libraries()
        on_ready(app)

    def _show_again(self, app: TuitrainApp) -> None:
        if self._hosted is not None:
            app.show_run(self._hosted)

    @contextmanager
    def _signals_end(self, app: HostedApp) -> Iterator[None]:
        """While entered, signals close the screen: SIGTERM and SIGINT stop a training, SIGHUP lets it go on."""
        first: float | None = None

        def handle(number: int, _frame: FrameType | None) -> None:
            nonlocal first
            if number == signal.SIGHUP:
                app.end(Leaving.KEEP)
            elif first is None:
                first = monotonic()
                self._is_interrupted = True
                if app.hosted is not None and app.hosted.thread is not None:
                    app.hosted.thread.control.put(
                        Command.STOP
                    )  # at once: a terminal that stands still delays the screen
                app.end(Leaving.STOP)
            elif monotonic() - first > DUPLICATE_SECONDS:
                os._exit(EXIT_INTERRUPTED)

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        job_control = (signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)  # Textual does not give these back
        before = {number: signal.getsignal(number) for number in (*numbers, *job_control)}
        for number in numbers:
            signal.signal(number, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that hangs up ends no training
            for number in {*before} - {signal.SIGHUP}:
                signal.signal(number, before[number])

    # A training that goes on

    def _go_on_below(self, app: HostedApp, live: "LiveRun") -> bool:
        """Show on the normal screen how the training goes on; gives whether the user wants the screen back."""
        from rich.console import Console  # these three take 0.2 s, and the first screen needs none

        from tuitrain.foreground import StopOnSignal, follow
        from tuitrain.terminal import ProgressView

        thread = live.thread
        assert thread is not None
        if app.leaving is Leaving.STOP and not self._is_interrupted:
            live.send(Command.STOP)
        self._tell(self._lines_while_training(app, live))
        console = Console(file=self._guard.terminal, force_terminal=True, markup=False, highlight=False)
        is_recalled = False

        def is_over() -> bool:
            nonlocal is_recalled
            is_recalled = app.leaving is not Leaving.STOP and self._is_enter_pressed()
            return is_recalled or self._guard.is_gone

        snapshot = live.snapshot
        with closing(ProgressView(console, step=snapshot.step, total_steps=snapshot.total_steps)) as view:
            console.show_cursor()  # the bar hides it; whatever ends the process, a shell with a cursor comes back
            if snapshot.phase is not None:
                view.show(PhaseStarted(phase=cast("PhaseName", snapshot.phase.name)))
            tail = JournalTail(live.run.journal_path, offset=live.run.journal_path.stat().st_size)
            is_stopping = app.leaving is Leaving.STOP
            with StopOnSignal(thread.control, view.close, is_stop_requested=is_stopping) as signals:
                follow(thread, tail, view, signals, is_over=is_over)
                if not is_recalled:
                    thread.join()  # a terminal that has gone needs no drawing
        self._is_interrupted |= signals.is_stop_requested and not is_stopping
        return is_recalled

    def _is_enter_pressed(self) -> bool:
        if self._guard.is_gone or not select.select([0], [], [], 0)[0]:
            return False
        try:
            return b"\n" in os.read(0, 4096)
        except OSError:  # the terminal has hung up
            return False

    def _detach(self, live: "LiveRun") -> int:
        """Let the shell go on, and train to the end without a terminal."""
        from tuitrain.foreground import StopOnSignal

        thread = live.thread
        assert thread is not None
        self._tell(
            [
                f"training goes on in the background, process {os.getpid()}: {live.run.path}",
                f"log: {live.run.log_path}",
                f"watch and steer it: tuitrain attach {live.run.path}",
            ]
        )
        self._guard.abandon()
        self._keeper.release()
        with StopOnSignal(thread.control, lambda: None):
            thread.join()
        return thread.exit_code

    # What stands on the normal screen afterwards

    def _lines_while_training(self, app: HostedApp, live: "LiveRun") -> list[str]:
        log = self._guard.log_path
        if app.failure is not None:
            what = f"error: the screen failed ({type(app.failure).__name__}: {app.failure}); training goes on"
            return [what, f"details: {log}", *self._ways_back(live)]
        if app.leaving is Leaving.STOP:
            return [f"stopping {live.run.path}", f"log: {log}"]
        return [
            f"training goes on here: {live.run.path}",
            f"log: {log}",
            *self._ways_back(live),
        ]

    def _ways_back(self, live: "LiveRun") -> list[str]:
        return [
            "Enter opens the screen again, Ctrl-C stops after this step and saves",
            f"from another terminal: tuitrain attach {live.run.path}",
        ]

    def _say_goodbye(self, app: HostedApp) -> int:
        """Say how it ended and how to continue; gives the exit status."""
        hosted = self._hosted
        if hosted is not None and hosted.thread is not None:
            hosted.poll()
            self._tell(_lines_of(hosted))
            exit_code = hosted.thread.exit_code  # the training's, even when the screen failed on the way
            return EXIT_INTERRUPTED if self._is_interrupted and exit_code == 0 else exit_code
        if app.live is not None and app.live.is_alive:
            self._tell(
                [
                    f"{app.live.run.path} goes on in another process",
                    f"log: {app.live.run.log_path}",
                    f"watch and steer it: tuitrain attach {app.live.run.path}",
                ]
            )
        if app.failure is not None:
            what = f"error: the screen failed ({type(app.failure).__name__}: {app.failure})"
            self._tell([what, f"details: {log_path()}", "start again: tuitrain"])
            return EXIT_FAILED
        return EXIT_INTERRUPTED if self._is_interrupted else 0

    def _tell(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._guard.terminal.write(escape_control(line) + "\n")
        self._guard.terminal.flush()


def _lines_of(live: "LiveRun") -> list[str]:
    """How a run that was trained here ended, where its log is, how to go on."""
    snapshot, run = live.snapshot, live.run
    log = f"log: {run.log_path}"
    if snapshot.failure is not None:
        failure = snapshot.failure
        problem = Problem(
            failure.what.splitlines()[0] if failure.what else "the run failed", failure.hint, failure.where
        )
        return [f"error: {problem}", log, f"look at it: tuitrain open {run.path}"]
    word = "trained to the end" if snapshot.state is State.FINISHED else "stopped"
    of_total = f"/{snapshot.total_steps}" if snapshot.total_steps else ""
    since = snapshot.unprotected_since
    return [
        f"{word}, step {snapshot.step}{of_total}: {run.path}",
        *([] if since is None else [f"not saved: what came after step {since}"]),
        log,
        f"samples, checkpoints, exports: tuitrain open {run.path}",
    ]
