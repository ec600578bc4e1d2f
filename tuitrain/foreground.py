"""Trains a config in this process and shows its journal; knows neither how to train nor how to draw.

The trainer runs in a thread of its own. The main thread reads the run's journal, as any other process could, and turns
signals into commands: the first asks the trainer to finish its step, save and stop, the second leaves at once. A
terminal that hangs up ends nothing: `tuitrain attach` and `tuitrain control` reach the training all the same.
"""

import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Self

from tuitrain.config.schema import TrainConfig
from tuitrain.engine.resume import ResumePoint
from tuitrain.engine.thread import TrainerThread
from tuitrain.errors import EXIT_INTERRUPTED, Problem
from tuitrain.runs.control import Command, CommandQueue
from tuitrain.runs.events import RunFailed
from tuitrain.runs.journal import JournalTail
from tuitrain.runs.run import Run, summarize
from tuitrain.terminal import EventView, event_view, write_json, write_line, write_problems

_POLL_SECONDS = 0.25
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def train_in_foreground(
    config: TrainConfig, run: Run, *, resume: ResumePoint | None, as_json: bool, debug: bool
) -> int:
    """Train `config` in the folder of `run` to its end, showing what happens on stdout.

    Args:
        resume: where to go on, from `resume_run`; None begins.
        as_json: one JSON object a line: the events, then {"run", "state", "exit_code"}.
        debug: after a failure, show the run's log with its traceback.

    Returns:
        The process's exit status.

    Raises:
        TuitrainError, OSError: the run is locked by another process, or its journal cannot be written.
    """
    commands = CommandQueue(run.control_dir)
    thread = TrainerThread(config, run, control=commands, resume=resume)
    tail = JournalTail(run.journal_path, offset=run.journal_path.stat().st_size)  # what is there is of another session
    with (
        closing(event_view(as_json=as_json)) as view,
        StopOnSignal(commands, view.close) as signals,
        OutlivedTerminal(run.log_path) as terminal,
    ):
        view.notice(f"run {run.path}")
        thread.start()
        failure = follow(thread, tail, view, signals, is_over=terminal.look)
        if terminal.has_taken_stdout:
            terminal.close_view(view)
            thread.join()
    if thread.failure is not None:
        raise thread.failure
    exit_code = EXIT_INTERRUPTED if signals.is_stop_requested and thread.exit_code == 0 else thread.exit_code
    if as_json:
        write_json({"run": str(run.path), "state": summarize(run).state, "exit_code": exit_code})
    elif failure is not None:
        explain(failure, run, debug=debug)
    return exit_code


class StopOnSignal:
    """While entered, a signal puts Command.STOP; the second one ends the process.

    Args:
        commands: to the trainer.
        before_exit: called before the process ends at the second signal.
        is_stop_requested: the command has been given already, so that the first signal counts as the second.
    """

    def __init__(
        self,
        commands: CommandQueue,
        before_exit: Callable[[], None],
        *,
        is_stop_requested: bool = False,
    ) -> None:
        self.is_stop_requested = is_stop_requested
        self._commands = commands
        self._before_exit = before_exit

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in _STOP_SIGNALS}
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.is_stop_requested:
            self._before_exit()
            os._exit(EXIT_INTERRUPTED)  # the trainer's thread would keep sys.exit waiting for the end of its step
        self.is_stop_requested = True
        self._commands.put(Command.STOP)


def follow(
    thread: TrainerThread,
    tail: JournalTail,
    view: EventView,
    signals: StopOnSignal,
    *,
    is_over: Callable[[], bool] = lambda: False,
) -> RunFailed | None:
    """Show events until the thread has ended or `is_over` says so; gives the failure it ended with, if any."""
    failure = None
    is_stop_told = False
    is_alive = True
    while is_alive and not is_over():
        thread.join(_POLL_SECONDS)
        is_alive = thread.is_alive()  # before the read, so that the last read sees everything
        events = tail.read_new()
        failure = next((event for event in events if isinstance(event, RunFailed)), failure)
        try:
            if signals.is_stop_requested and is_alive and not is_stop_told:
                view.notice("stopping after this step and a save; once more to leave at once, without a save")
                is_stop_told = True
            for event in events:
                view.show(event)
            view.tick()
        except OSError:  # nobody reads stdout any more: the training goes on, and its journal tells all
            _discard_stdout()
    return failure


def _discard_stdout() -> None:
    _redirect(sys.stdout.fileno(), os.devnull)


def _redirect(number: int, path: str | Path) -> None:
    """Let a file descriptor of this process be the file at `path`."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(descriptor, number)
    os.close(descriptor)


class OutlivedTerminal:
    """While entered, a terminal that hangs up takes nothing with it.

    What is read from it is empty from then on, and what is written to it, by any thread or library, goes to a log: a
    write to the terminal would fail, in the middle of whatever wrote.

    Args:
        log_path: made when it does not exist.

    Attributes:
        has_taken_stdout: whether standard output was that terminal.
    """

    def __init__(self, log_path: Path) -> None:
        self.has_taken_stdout = False
        self._log_path = log_path

    def __enter__(self) -> Self:
        self._numbers = [number for number in range(3) if os.isatty(number)]
        self._previous = signal.signal(signal.SIGHUP, lambda _number, _frame: self.look())
        return self

    def __exit__(self, *_exception: object) -> None:
        signal.signal(signal.SIGHUP, self._previous)

    def look(self) -> bool:
        """See whether it has hung up, and leave it; tells whether standard output was there. Costs 5 µs.

        The signal comes at once, but not to a process outside the terminal's session.
        """
        poll = select.poll()
        for number in self._numbers:
            poll.register(number, 0)  # a hangup is told unasked
        for number, _ in poll.poll(0):
            self._numbers.remove(number)
            _redirect(number, self._log_path if number == 2 else os.devnull)
            self.has_taken_stdout |= number == 1
        return self.has_taken_stdout

    def close_view(self, view: EventView) -> None:
        """End what was drawn there; later output goes to the log."""
        view.close()
        _redirect(1, self._log_path)


def explain(failure: RunFailed, run: Run, *, debug: bool) -> None:
    """Tell on stderr why `run` failed and where the details are."""
    first, *others = failure.what.splitlines() or [""]
    write_problems([Problem(first, failure.hint, failure.where), *(Problem(line) for line in others)])
    if debug and run.log_path.exists():
        for line in run.log_path.read_text(encoding="utf-8", errors="replace").splitlines():
            write_line(line, stream=sys.stderr)
    else:
        write_line(f"details: {run.log_path}", stream=sys.stderr)
