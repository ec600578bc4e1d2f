"""Commands to a live Trainer, from this process or another; knows nothing of how they are obeyed.

Another process drops a file into the run's control/ folder: written under a temporary name, then renamed, so that the
Trainer never sees half of one. File names begin with the time: commands are obeyed in the order they were given.
"""

import os
import queue
import secrets
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from tuitrain.atomic import write_text_atomic

_SUFFIX = ".command"


class Command(StrEnum):
    """A request, obeyed between two optimizer steps: STOP saves a checkpoint first, DISCARD does not."""

    PAUSE = "pause"
    RESUME = "resume"
    SAVE = "save"
    SAMPLE = "sample"
    STOP = "stop"
    DISCARD = "discard"


def send_command(control_dir: Path, command: Command) -> None:
    """Ask the process that trains the run of `control_dir` for `command`; returns before it is obeyed."""
    name = f"{time.time_ns():020d}-{secrets.token_hex(4)}{_SUFFIX}"
    write_text_atomic(control_dir / name, command, mode=0o600)


def poll_control_dir(control_dir: Path) -> Command | None:
    """Take the oldest command out of `control_dir`; None when there is none.

    Costs 10 µs when the folder is empty. A command file that holds no Command of this version is removed and passed
    over; what else lies there stays.
    """
    try:
        names = os.listdir(control_dir)
    except FileNotFoundError:  # a user who tidies up must not end the training
        return None
    for name in sorted(name for name in names if name.endswith(_SUFFIX) and not name.startswith(".")):
        path = control_dir / name
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            path.unlink()
            with suppress(ValueError):
                return Command(text)
    return None


def drop_commands(control_dir: Path) -> None:
    """Remove all commands of `control_dir`, half-written ones too; for who will train, before it begins."""
    for path in control_dir.iterdir():
        if path.name.endswith(_SUFFIX) and not path.is_dir():
            path.unlink()


class CommandQueue:
    """Commands from this process, first, and from the control folder of a run.

    Args:
        control_dir: also polled when given.
    """

    def __init__(self, control_dir: Path | None = None) -> None:
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._control_dir = control_dir

    def put(self, command: Command) -> None:
        """Add `command`; from any thread."""
        self._commands.put(command)

    def poll(self) -> Command | None:
        """Take the oldest command, or None; never waits."""
        try:
            return self._commands.get_nowait()
        except queue.Empty:
            return poll_control_dir(self._control_dir) if self._control_dir else None
