"""The small process that stands between the shell and the app: it waits, and knows nothing of what the app does.

The shell waits for the process it started. That one forks before anything is loaded and stays behind as the keeper; the
child is the app. So a training in a thread of the app can leave the shell without ending (`Keeper.release`), and when
the app's process dies, the terminal is put right and somebody is left to say so.
"""

import mmap
import os
import signal
import sys
import termios
from collections.abc import Callable, Sequence
from contextlib import suppress

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_WATCHED = (*FORWARDED, signal.SIGCHLD, signal.SIGUSR1)
_NOTE_BYTES = 4096

RESTORE_TERMINAL = (
    "\x1b[?1000l\x1b[?1003l\x1b[?1015l\x1b[?1006l"  # no mouse
    "\x1b[?2004l\x1b[?2048l\x1b[?1004l\x1b[<u"  # no bracketed paste, resize or focus reports, ordinary keys
    "\x1b[?2026l"  # the frame that it was drawing is over
    "\x1b[?7h\x1b[0m\x1b[?1049l\x1b[?25h"  # line wrap, plain colours, the normal screen, a cursor
    "\x1b[23;2t"  # the title that it had
)
"""What a terminal needs after a full-screen program that could not tidy up."""


class Keeper:
    """The way from the app back to the process that keeps it.

    Args:
        pid: of that process.
        note: memory shared with it.
    """

    def __init__(self, pid: int, note: mmap.mmap) -> None:
        self._pid = pid
        self._note = note

    def leave_note(self, lines: Sequence[str]) -> None:
        """Set what the keeper tells the user should this process die: at most 4000 bytes."""
        text = "\n".join(lines).encode("utf-8", "backslashreplace")[: _NOTE_BYTES - 1]
        self._note[:] = text.ljust(_NOTE_BYTES, b"\0")

    def release(self) -> None:
        """Let the shell go on, while this process continues in a session of its own, without a terminal."""
        os.setsid()
        os.kill(self._pid, signal.SIGUSR1)


def run_kept(run_app: Callable[[Keeper], int]) -> int:
    """Call `run_app` in a child of this process; to be called before any thread exists.

    Returns:
        In the child what `run_app` returned; in the keeper the child's exit status, or 0 once it was released.
    """
    note = mmap.mmap(-1, _NOTE_BYTES)
    terminal_modes = termios.tcgetattr(sys.stdin.fileno())
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    sys.stdout.flush()
    keeper_pid = os.getpid()
    app_pid = os.fork()
    if app_pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return run_app(Keeper(keeper_pid, note))
    status = _wait(app_pid)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if status is None:
        return 0
    if os.WIFEXITED(status):
        return os.WEXITSTATUS(status)
    _repair(terminal_modes)
    _tell_death(os.WTERMSIG(status), note)
    return 128 + os.WTERMSIG(status)


def _wait(app_pid: int) -> int | None:
    """Pass signals on until the app ends; gives its wait status, None when it released this process."""
    while True:
        received = signal.sigwaitinfo(_WATCHED)
        match received.si_signo:
            case signal.SIGUSR1:
                if received.si_pid == app_pid:
                    return None
            case signal.SIGCHLD:
                pid, status = os.waitpid(app_pid, os.WNOHANG)
                if pid:
                    return status
            case number if received.si_code <= 0:  # by `kill`; those of the terminal reach the app by themselves
                os.kill(app_pid, number)


def _repair(terminal_modes: list[object]) -> None:
    with suppress(termios.error, OSError):  # the terminal may have gone, too
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, terminal_modes)  # type: ignore[arg-type]
        sys.stdout.write(RESTORE_TERMINAL)
        sys.stdout.flush()


def _tell_death(number: int, note: mmap.mmap) -> None:
    from tuitrain.terminal import write_line  # rich: the keeper stays small while all is well

    with suppress(OSError):
        write_line(f"error: tuitrain was ended by {signal.Signals(number).name}", stream=sys.stderr)
        for line in note[:].rstrip(b"\0").decode("utf-8", "replace").splitlines():
            write_line(line, stream=sys.stderr)
