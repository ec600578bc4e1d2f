"""Keeps the terminal for the app: whatever else this process, its threads, its C libraries and its children print goes
to a log. Knows neither the app nor what is printed.
"""

import faulthandler
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on

_OUTPUTS = (1, 2)


class TerminalGuard:
    """While entered, only what is written to `terminal` reaches the terminal.

    File descriptors 1 and 2 lead to the log, and so do sys.stdout and sys.stderr.

    Args:
        log_path: made when it does not exist, private to the user.
        lends_stdout: let sys.__stdout__ be the terminal while an app runs: the kitty pictures of textual-image are
            written there. Whatever else writes to it draws on the screen.

    Attributes:
        terminal: writes to it never fail: they vanish once the terminal has gone.
        log_path: where everything else goes now.
    """

    def __init__(self, log_path: Path, *, lends_stdout: bool = False) -> None:
        self.log_path = log_path
        self._lends_stdout = lends_stdout

    def __enter__(self) -> Self:
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved_descriptors = [os.dup(number) for number in _OUTPUTS]
        self._saved_streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
        self._device = _TerminalDevice(os.dup(sys.stdout.fileno()))
        self.terminal = _text_file(io.BufferedWriter(self._device), line_buffering=False)
        self._stdout, self._stderr = (
            _text_file(io.FileIO(number, "w", closefd=False), line_buffering=True) for number in _OUTPUTS
        )
        self._sized_stdout = io.TextIOWrapper(
            io.BufferedWriter(_LogOfTerminalSize(self._device.fileno())),
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )
        self.log_to(self.log_path)
        self.capture_streams()
        faulthandler.enable(file=_OUTPUTS[1])
        return self

    def __exit__(self, *_exception: object) -> None:
        self.terminal.flush()
        self._stdout.flush()
        self._stderr.flush()
        self._sized_stdout.flush()
        sys.stdout, sys.stderr, *originals = self._saved_streams
        _set_originals(*originals)
        self._connect(*self._saved_descriptors)
        for descriptor in self._saved_descriptors:
            os.close(descriptor)

    def lend_terminal(self) -> None:
        """Let sys.__stderr__ be the terminal: Textual draws on it, and takes it when an app begins to run."""
        _set_originals(self._sized_stdout, self.terminal)

    def capture_streams(self) -> None:
        """Let whoever asks for sys.stdout, sys.stderr or their originals reach the log.

        To be called once an app runs: Textual puts streams of its own there, and drops what is written to them. It asks
        sys.__stdout__ for the size of the terminal, and still can.
        """
        sys.stdout, sys.stderr = self._stdout, self._stderr
        _set_originals(self.terminal if self._lends_stdout else self._sized_stdout, self._stderr)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """While entered, file descriptors 1 and 2 are the terminal: for a program of the user's, an editor."""
        self._connect(*self._saved_descriptors)
        try:
            yield
        finally:
            self.log_to(self.log_path)

    def log_to(self, path: Path) -> None:
        """Let everything but `terminal` go to the file at `path` from now on, or nowhere if it cannot be made."""
        self.log_path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError:
            descriptor = os.open(os.devnull, os.O_WRONLY)
        self._connect(descriptor, descriptor)
        os.close(descriptor)

    def _connect(self, *descriptors: int) -> None:
        for descriptor, number in zip(descriptors, _OUTPUTS, strict=True):
            os.dup2(descriptor, number)

    @property
    def is_gone(self) -> bool:
        """Whether the terminal has hung up, as far as a write has noticed."""
        return self._device.is_gone

    def abandon(self) -> None:
        """Let go of the terminal: nothing reaches it any more, and nothing is read from it."""
        self.terminal.flush()
        self._device.is_gone = True
        null_device = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null_device, 0)
        os.close(null_device)
        for descriptor in self._saved_descriptors:  # what __exit__ brings back
            os.dup2(_OUTPUTS[0], descriptor)


class _TerminalDevice(io.RawIOBase):
    """A terminal that may hang up at any moment: no error to whoever writes, but a SIGHUP to this process.

    Textual's writer thread would die of the error, and leave the app waiting for it for ever. The kernel sends the
    signal only to the processes in the terminal's foreground.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.is_gone = False

    def write(self, data: "Buffer", /) -> int:
        view = memoryview(data)
        if not self.is_gone:
            try:
                return os.write(self._descriptor, view)
            except OSError:
                self.is_gone = True
                os.kill(os.getpid(), signal.SIGHUP)
        return view.nbytes

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return True

    def writable(self) -> bool:
        return True


class _LogOfTerminalSize(io.FileIO):
    """File descriptor 1, but whoever asks how large it is learns the size of the terminal."""

    def __init__(self, terminal_descriptor: int) -> None:
        super().__init__(_OUTPUTS[0], "w", closefd=False)
        self._terminal_descriptor = terminal_descriptor

    def fileno(self) -> int:
        return self._terminal_descriptor


def _set_originals(stdout: TextIO | None, stderr: TextIO | None) -> None:
    for name, stream in (("__stdout__", stdout), ("__stderr__", stderr)):
        setattr(sys, name, stream)


def _text_file(binary: io.FileIO | io.BufferedWriter, *, line_buffering: bool) -> TextIO:
    writer = io.BufferedWriter(binary) if isinstance(binary, io.FileIO) else binary
    return io.TextIOWrapper(
        writer, encoding="utf-8", errors="backslashreplace", line_buffering=line_buffering, newline="\n"
    )
