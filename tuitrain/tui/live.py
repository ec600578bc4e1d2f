"""The run on show: its journal folded into what the screens draw, and the commands to whoever trains it.

The only module that knows both sides: the TrainerThread of this process and the JournalTail that follows any run.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from tuitrain.errors import Problem, TuitrainError
from tuitrain.runs.control import Command, CommandQueue, send_command
from tuitrain.runs.events import PhaseFinished, RunFailed
from tuitrain.runs.heartbeat import HeartbeatWatch
from tuitrain.runs.journal import JournalTail
from tuitrain.runs.run import Run
from tuitrain.runs.series import RunSeries, load_journal
from tuitrain.tui.collector import leave_out_libraries, spare_imports
from tuitrain.tui.snapshot import RunSnapshot, State

if TYPE_CHECKING:
    from tuitrain.config.schema import TrainConfig
    from tuitrain.engine.thread import TrainerThread

SWITCH_SECONDS = 0.001
"""How long a thread may keep the interpreter while others wait: the default of 5 ms makes keys slow while training."""

_CHECK_SECONDS = 1.0


class LiveRun:
    """One run, watched; made by `start` or `watch`.

    `load` reads what is in the journal already and may take seconds: call it in a thread. `poll` folds in what came
    since and belongs to the thread that draws.

    Attributes:
        run: its folder.
        snapshot: how it stands.
        series: its metrics over the steps.
        config_values: its config as plain values; empty when its config.json cannot be read.
        is_alive: whether a process trains it, as `poll` saw it last. When it is LOST all the same, the trainer hangs.
    """

    def __init__(self, run: Run, *, thread: "TrainerThread | None" = None) -> None:
        self.run = run
        self.snapshot = RunSnapshot()
        self.series = RunSeries()
        self.config_values: Mapping[str, Any] = {}
        self.is_alive = thread is not None
        self.thread = thread
        self._tail = JournalTail(run.journal_path)
        self._heartbeat = HeartbeatWatch(run.heartbeat_path)
        self._is_loaded = False
        self._checked = float("-inf")
        self._is_silent = False
        self._is_failure_told = False

    @classmethod
    def start(cls, config: "TrainConfig") -> "LiveRun":
        """Train `config` in a new run's folder, in a thread of this process.

        Raises:
            TuitrainError: the config names files that are not there; nothing was written.
            OSError: the run's folder cannot be made.
        """
        from tuitrain.engine.launch import create_run  # these two take 0.1 s, and the first screen needs neither
        from tuitrain.engine.thread import TrainerThread

        leave_a_core_to_the_screen()
        config, run = create_run(config)
        thread = TrainerThread(config, run, control=CommandQueue(run.control_dir))
        live = cls(run, thread=thread)
        thread.start()
        live.load()
        return live

    @classmethod
    def resume(
        cls, run: Run, checkpoint: Path | None = None, overrides: Sequence[str] = (), *, accept_changes: bool = False
    ) -> "LiveRun":
        """Go on with `run` in a thread of this process; call `load` before it is shown.

        Args:
            checkpoint: as the rest, of `resume_run`.
            overrides: settings that the user chose to change, with what follows from that.

        Raises:
            TuitrainError: it cannot go on; nothing was written.
        """
        from tuitrain.engine.launch import resume_run
        from tuitrain.engine.thread import TrainerThread

        leave_a_core_to_the_screen()
        config, point = resume_run(run, checkpoint, overrides, accept_changes=accept_changes, accept_overrides=True)
        thread = TrainerThread(config, run, control=CommandQueue(run.control_dir), resume=point)
        live = cls(run, thread=thread)
        thread.start()
        return live

    @classmethod
    def watch(cls, run: Run) -> "LiveRun":
        """Follow `run`, whoever trains it or did; call `load` before it is shown."""
        return cls(run)

    def load(self) -> None:
        """Read the config and what is in the journal; seconds when it is long."""
        with suppress(OSError, ValueError):  # a run without it can be looked at all the same
            self.config_values = json.loads(self.run.config_json_path.read_bytes())
        self._look_for_life()  # before the journal is read, so that a run that ends between the two is not lost
        loaded = load_journal(self.run.journal_path)
        self.series, self._tail = loaded.series, loaded.tail
        self.snapshot.feed(loaded.events)
        self._is_loaded = True

    def poll(self) -> bool:
        """Fold in what was journalled since the last call; tells whether anything changed. Does nothing before `load`.

        Costs 10 µs when nothing happened.
        """
        if not self._is_loaded:
            return False
        state = self.snapshot.state
        self._look_for_life()
        events = self._tail.read_new()
        if failure := self._failure_beside_the_journal():
            events.append(failure)
        if events:
            self.snapshot.feed(events)
            self.series.feed(events)
        if self.is_here and any(
            isinstance(event, PhaseFinished) and event.phase == "import_libraries" for event in events
        ):
            leave_out_libraries()
        return bool(events) or self.snapshot.state != state

    @property
    def refusal(self) -> str:
        """Why the last attempt to go on ended: what has changed, a thing a line; "" when it ended otherwise."""
        failure = self.snapshot.failure
        return failure.what if failure is not None and asks_to_accept_changes(failure.hint) else ""

    @property
    def is_here(self) -> bool:
        """Whether a thread of this process trains it, or did."""
        return self.thread is not None

    def send(self, command: Command) -> None:
        """Ask the trainer for `command`, which obeys after its step.

        Raises:
            TuitrainError: nobody trains the run.
        """
        if not self.is_alive:
            raise TuitrainError(f"{self.run.path} is not being trained", hint="start it again")
        if self.thread is not None:
            self.thread.control.put(command)
        else:
            send_command(self.run.control_dir, command)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the trainer of this process, `timeout` seconds at most; tells whether it has ended."""
        if self.thread is None:
            return True
        self.thread.join(timeout)
        return not self.thread.is_alive()

    @property
    def has_ended(self) -> bool:
        """Whether it says so itself; the trainer of this process may still tidy up for a moment."""
        return self.snapshot.state in (State.FINISHED, State.STOPPED, State.FAILED)

    def _look_for_life(self) -> None:
        """See whether somebody trains the run, and whether that somebody moves; once a second where it costs a file.

        The kernel frees a run's lock however the process that held it ends.
        """
        if self.thread is not None:
            self.is_alive = self.thread.is_alive()
        if monotonic() - self._checked >= _CHECK_SECONDS:
            self._checked = monotonic()
            if self.thread is None:
                self.is_alive = self.run.lock_holder() is not None
            self._is_silent = self._heartbeat.is_silent()
        self.snapshot.is_lost = not self.is_alive or self._is_silent  # heeded unless the journal tells of an end

    def _failure_beside_the_journal(self) -> RunFailed | None:
        """What ended the thread before it could write to the journal, once."""
        if self.thread is None or self.thread.failure is None or self.is_alive or self._is_failure_told:
            return None
        self._is_failure_told = True
        error = self.thread.failure
        problem = error.problems[0] if isinstance(error, TuitrainError) else Problem(str(error))
        return RunFailed(
            what=problem.what, hint=problem.hint, where=problem.where, step=self.snapshot.step, exit_code=1
        )


def asks_to_accept_changes(hint: str) -> bool:
    """Whether a refusal with this hint is over once the user accepts that the run will not go on exactly."""
    return "--accept-changes" in hint


def leave_a_core_to_the_screen() -> None:
    """Make the threads of this process take turns quickly, not wait for the garbage collector, and torch, once
    imported, use all cores but one.

    A user's own OMP_NUM_THREADS stands.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    spare_imports()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) - 1)))
