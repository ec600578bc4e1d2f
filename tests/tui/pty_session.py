"""A real terminal for tests: a program in a pty, its screen as pyte sees it, and every byte it sent."""

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import pyte

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DEADLINE_SECONDS = 60.0

KEYS = {
    "enter": "\r",
    "esc": "\x1b",
    "space": " ",
    "tab": "\t",
    "up": "\x1b[A",
    "down": "\x1b[B",
    "right": "\x1b[C",
    "left": "\x1b[D",
    "f1": "\x1bOP",
    "f5": "\x1b[15~",
    "ctrl+c": "\x03",
    "ctrl+p": "\x10",
    "ctrl+z": "\x1a",
}


class PtySession:
    """A program that runs in a terminal of its own, as the leader of its session.

    Args:
        arguments: of tuitrain, or the whole command when `is_tuitrain` is false.
        size: columns and rows.
        env: added to this process's environment.
        cwd: where it runs.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        size: tuple[int, int] = (80, 24),
        env: Mapping[str, str] | None = None,
        cwd: Path = REPOSITORY,
        is_tuitrain: bool = True,
    ) -> None:
        command = [sys.executable, "-m", "tuitrain", *arguments] if is_tuitrain else [*arguments]
        environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "PYTHONPATH": str(REPOSITORY),
            **(env or {}),
        }
        for name in ("COLUMNS", "LINES", "TMUX", "NO_COLOR", "TEXTUAL"):
            if name not in (env or {}):
                environment.pop(name, None)
        self.received = bytearray()
        """Every byte the program has sent."""
        self.started = time.monotonic()
        self._screen = _Screen(*size)
        self._stream = pyte.ByteStream(self._screen)
        self._num_shown = 0
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            # In the child: the size must stand before the program asks for it.
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
            os.chdir(cwd)
            os.execvpe(command[0], command, environment)
        os.set_inheritable(self.master, False)  # else a later program keeps this terminal open when it hangs up
        self._status: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        """End the program and all that belongs to it."""
        for pid in (*_descendants(self.pid), self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(OSError):
            os.close(self.master)
        if self._status is None:
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)

    # What the program shows

    @property
    def screen(self) -> "_Screen":
        """As the bytes received so far make it; pyte takes in 0.3 MB a second, so only when somebody looks."""
        self._stream.feed(bytes(self.received[self._num_shown :]))
        self._num_shown = len(self.received)
        return self._screen

    @property
    def text(self) -> str:
        """The screen, a line for each row, without trailing blanks."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def read(self, seconds: float = 0.0) -> int:
        """Take in what arrives within `seconds`; the number of bytes."""
        end = time.monotonic() + seconds
        num_bytes = 0
        while num_new := self._read_next(end - time.monotonic()):
            num_bytes += num_new
        return num_bytes

    def _read_next(self, seconds: float) -> int:
        """Take in what comes next, waiting at most `seconds`; the number of bytes."""
        ready, _, _ = select.select([self.master], [], [], max(seconds, 0.0))
        if not ready:
            return 0
        try:
            data = os.read(self.master, 65536)
        except OSError:  # Linux says so when the last process on the other side has gone
            return 0
        self.received += data
        return len(data)

    def forget(self) -> None:
        """Keep the screen, and not the bytes that made it."""
        _ = self.screen
        self.received.clear()
        self._num_shown = 0

    def wait_until(self, is_true: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> float:
        """Read until `is_true`; gives the seconds it took."""
        start = time.monotonic()
        while not is_true():
            self.read(0.02)
            if time.monotonic() - start > seconds:
                raise AssertionError(f"not within {seconds:.0f} s: {what}\n{self.text}")
        return time.monotonic() - start

    def wait_for(self, *texts: str, seconds: float = DEADLINE_SECONDS) -> float:
        """Read until each of `texts` stands on the screen; gives the seconds it took."""
        return self.wait_until(lambda: all(text in self.text for text in texts), f"{texts} on the screen", seconds)

    def wait_for_bytes(self, *texts: str, start: int = 0, seconds: float = DEADLINE_SECONDS) -> float:
        """Read until each of `texts` has come, in one style and not before `start`; gives the seconds it took.

        For times: pyte takes longer for a screen than the app does.
        """
        begun = time.monotonic()
        while not all(text.encode() in self.received[start:] for text in texts):
            self._read_next(0.1)
            assert time.monotonic() - begun < seconds, f"{texts} did not come within {seconds:.0f} s\n{self.text}"
        return time.monotonic() - begun

    def wait_without(self, text: str, seconds: float = DEADLINE_SECONDS) -> float:
        """Read until `text` has gone from the screen."""
        return self.wait_until(lambda: text not in self.text, f"no {text!r} on the screen", seconds)

    def settle(self, quiet_seconds: float = 0.3, seconds: float = 10.0) -> None:
        """Read until nothing arrives for a while, or `seconds` have passed."""
        end = time.monotonic() + seconds
        while self.read(quiet_seconds) and time.monotonic() < end:
            pass

    # What is done to it

    def press(self, *keys: str) -> None:
        """Send keys, by name or as characters."""
        for key in keys:
            os.write(self.master, KEYS.get(key, key).encode())

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the terminal."""
        self.screen.resize(rows, columns)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send_signal(self, number: signal.Signals) -> None:
        """To the program alone, as `kill` does."""
        os.kill(self.pid, number)

    def hang_up(self) -> None:
        """Close the terminal, as a dropped connection does."""
        os.close(self.master)

    # How it ends

    def wait(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for the end of the program; its exit status, negative for a signal."""
        end = time.monotonic() + seconds
        while self._status is None:
            with suppress(OSError, ValueError):  # a closed master has nothing to read
                self.read(0.02)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                raise AssertionError(f"it did not end within {seconds:.0f} s\n{self.text}")
        with suppress(OSError, ValueError):
            self.read(0.1)
        return self._status

    @property
    def is_terminal_restored(self) -> bool:
        """Whether a shell could go on here: normal screen, cursor, no mouse, bracketed paste or focus reports."""
        return not self.screen.is_alternate and self.screen.private_modes == {"?7h", "?25h"}

    @property
    def app_pid(self) -> int:
        """The process that draws: the child of the one that was started."""
        (child,) = _children(self.pid)
        return child


class _Screen(pyte.Screen):
    """Remembers, beyond what pyte does, which private modes are on."""

    def __init__(self, columns: int, lines: int) -> None:
        self.private_modes = {"?7h", "?25h"}
        super().__init__(columns, lines)

    @property
    def is_alternate(self) -> bool:
        """Whether the program has the alternate screen."""
        return "?1049h" in self.private_modes

    def set_mode(self, *modes: int, **flags: bool) -> None:
        if flags.get("private"):
            self.private_modes |= {f"?{mode}h" for mode in modes}
        super().set_mode(*modes, **flags)

    def reset_mode(self, *modes: int, **flags: bool) -> None:
        if flags.get("private"):
            self.private_modes -= {f"?{mode}h" for mode in modes}
            if 1049 in modes:
                self.erase_in_display(2)  # pyte has one screen only
                self.cursor_position()
        super().reset_mode(*modes, **flags)

    def report_device_status(self, mode: int, **_flags: bool) -> None:
        """A terminal would answer; nobody listens here."""

    def select_graphic_rendition(self, *attributes: int, **flags: bool) -> None:
        if not flags.get("private"):  # the keyboard protocol's CSI > m
            super().select_graphic_rendition(*attributes)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _descendants(pid: int) -> list[int]:
    return [found for child in _children(pid) for found in (*_descendants(child), child)]
