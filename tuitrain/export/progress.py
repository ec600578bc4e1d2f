"""Counts the bytes an export has worked through and tells whoever wants to know; knows no file."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total) bytes from the thread that works; what it raises cancels the work and leaves nothing."""


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""


class ByteCount:
    """How far a piece of work is.

    Args:
        total: bytes to read and write in all.
        progress: told after each piece.
    """

    def __init__(self, total: int, progress: Progress) -> None:
        self._done = 0
        self._total = total
        self._progress = progress
        progress(0, total)

    def add(self, num_bytes: int) -> None:
        """`num_bytes` more are done."""
        self._done += num_bytes
        self._progress(self._done, self._total)
