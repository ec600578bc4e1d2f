"""What a training hangs in: the stack of every thread, in a log, when it does not move for too long. Knows no run."""

import faulthandler
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def stacks_logged_on_silence(log_path: Path) -> Iterator[Callable[[float], None]]:
    """Watch a loop; gives the function for it to call again and again, with the seconds until the next call is due.

    When that does not come in time, the stacks of all threads are appended to the log, once. Python's watchdog writes
    them from a thread of its own without the interpreter's lock, so a library that hangs with the lock held is seen,
    too. Only one loop of a process is watched, the last one that called. A call costs 0.1 ms.
    """
    with log_path.open("ab") as log_file:
        try:
            yield lambda patience_seconds: faulthandler.dump_traceback_later(patience_seconds, file=log_file)
        finally:
            faulthandler.cancel_dump_traceback_later()
