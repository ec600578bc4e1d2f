"""Parts of a run that say how far they are and hear Commands meanwhile; knows nothing of what they do."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from tuitrain.runs.control import Command
from tuitrain.runs.events import CommandReceived, Event, PhaseFinished, PhaseName, PhaseProgressed, PhaseStarted
from tuitrain.runs.heartbeat import PATIENCE_SECONDS, Heartbeat

PROGRESS_SECONDS = 1.0
RANK_PATIENCE = timedelta(days=1)
"""How long the other processes wait for the main one, which fills caches and waits for room on a full disk."""

Emit = Callable[[Event], None]


class StopRequested(Exception):  # noqa: N818  not an error
    """The user asked to stop, in a part of the run that can be left."""


class Pulse:
    """The trainer's signs of life, and its ear: a Command is acknowledged when heard, and obeyed when its turn comes.

    Args:
        emit: takes every Event.
        poll: gives the next Command, or None.
        heartbeat: beaten at every chance; None on a rank that is not the main one.
    """

    def __init__(self, emit: Emit, poll: Callable[[], Command | None], heartbeat: Heartbeat | None = None) -> None:
        self._emit = emit
        self._poll = poll
        self._heartbeat = heartbeat
        self._waiting: deque[Command] = deque()

    def beat(self, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Give a sign of life and take a Command that has come; 10 µs.

        Args:
            patience_seconds: when the next sign may be due at the latest.
        """
        self.give_sign(patience_seconds=patience_seconds)
        self.hear()

    def give_sign(self, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Give a sign of life, and hear nothing."""
        if self._heartbeat is not None:
            self._heartbeat.beat(patience_seconds)

    def hear(self) -> None:
        """Take a Command that has come, and give no sign of life: while another thread may hang."""
        if command := self._poll():
            self._waiting.append(command)
            self._emit(CommandReceived(command=command))

    def next_command(self, *, patience_seconds: float = PATIENCE_SECONDS) -> Command | None:
        """Beat, and give the oldest Command that waits, or None."""
        self.beat(patience_seconds=patience_seconds)
        return self._waiting.popleft() if self._waiting else None

    def take(self, *commands: Command) -> Command | None:
        """The oldest of `commands` that waits, ahead of its turn, or None."""
        command = next((waiting for waiting in self._waiting if waiting in commands), None)
        if command is not None:
            self._waiting.remove(command)
        return command

    @property
    def is_stop_wanted(self) -> bool:
        """Whether a stop waits to be obeyed."""
        return Command.STOP in self._waiting or Command.DISCARD in self._waiting


class Phase:
    """A part of a run at work; made by `running_phase`.

    Attributes:
        detail: what is at work now, and in the end the outcome, in words.
    """

    def __init__(self, name: PhaseName, emit: Emit, pulse: Pulse, *, can_stop: bool) -> None:
        self.name = name
        self.detail = ""
        self._emit = emit
        self._pulse = pulse
        self._can_stop = can_stop
        self._started = time.monotonic()
        self._reported = -math.inf

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def report(self, done: int, total: int) -> None:
        """Say how far it is, and listen; journalled at most once a second, and at the end.

        Raises:
            StopRequested: the phase can be left, and should be.
        """
        self._pulse.beat()
        if self._can_stop and self._pulse.is_stop_wanted:
            raise StopRequested
        seconds = self.seconds
        if seconds - self._reported >= PROGRESS_SECONDS or done == total:
            self._reported = seconds
            self._emit(PhaseProgressed(phase=self.name, done=done, total=total, detail=self.detail, seconds=seconds))


@contextmanager
def running_phase(name: PhaseName, emit: Emit, pulse: Pulse, *, can_stop: bool) -> Iterator[Phase]:
    """Journal the start, the progress and the end of a part of the run.

    Args:
        can_stop: let a stop leave it by StopRequested.
    """
    phase = Phase(name, emit, pulse, can_stop=can_stop)
    emit(PhaseStarted(phase=name))
    yield phase
    emit(PhaseFinished(phase=name, seconds=phase.seconds, detail=phase.detail))
