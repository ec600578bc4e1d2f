"""The heartbeat of a run: one line that says when its trainer last moved and how long it may be silent.

The trainer's own thread writes it, wherever it comes by, so that a loop that hangs falls silent. Whether the process
is alive at all the run's lock tells, at once. One thing alone cannot beat, a call into a library that takes long:
before such a call the trainer promises a longer patience.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PATIENCE_SECONDS = 30.0
"""How long the silence between two beats may be, unless a beat says otherwise."""

_INTERVAL_SECONDS = 1.0
_LINE_BYTES = 40


@dataclass(frozen=True)
class Beat:
    """The last sign of life.

    Args:
        time: Unix seconds.
        patience_seconds: within which the next one was promised.
    """

    time: float
    patience_seconds: float


class Heartbeat:
    """The writing end.

    Args:
        path: the file; made when it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = float("-inf")
        self._patience_seconds = 0.0

    def beat(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Say that the trainer is alive; at most once a second, unless the promise changes. A write costs 20 µs."""
        now = time.monotonic()
        if now - self._written < _INTERVAL_SECONDS and patience_seconds == self._patience_seconds:
            return
        self._written, self._patience_seconds = now, patience_seconds
        line = f"{time.time():.3f} {patience_seconds:.3f}".ljust(_LINE_BYTES - 1) + "\n"
        with suppress(OSError):  # a full disk must not end a run that could go on
            descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600)
            try:
                os.pwrite(descriptor, line.encode("ascii"), 0)  # over the last line, so that no reader finds it empty
            finally:
                os.close(descriptor)


class HeartbeatWatch:
    """The reading end, for one run.

    From the first look on it counts by this process's own clock: nobody sets that one, and it stands still while the
    machine sleeps.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beat: Beat | None = None
        self._seen = 0.0

    def is_silent(self) -> bool:
        """Whether the trainer has moved, and not again within the time that it promised itself.

        While a process holds the run this means that it hangs; its lock tells whether one does.
        """
        beat = read_beat(self._path)
        if beat is None:
            return False
        if beat != self._beat:
            age = max(time.time() - beat.time, 0.0) if self._beat is None else 0.0
            self._beat, self._seen = beat, time.monotonic() - age
        return time.monotonic() - self._seen > beat.patience_seconds


def read_beat(path: Path) -> Beat | None:
    """The last beat at `path`, or None when there is none that can be read."""
    try:
        written, patience_seconds = path.read_text(encoding="ascii").split()
        return Beat(float(written), float(patience_seconds))
    except (OSError, ValueError):
        return None
