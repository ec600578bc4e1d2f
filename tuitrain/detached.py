"""A training in a process of its own, without a terminal: starts it, and is what runs in it. Knows no screen.

It has its own session, so that neither a closed terminal nor its shell's end reaches it, and says what it has to say in
the run's folder. `tuitrain attach` and `tuitrain control` steer it.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tuitrain.config.files import load_config
from tuitrain.config.schema import TrainConfig
from tuitrain.engine.launch import create_run, train_run
from tuitrain.errors import TuitrainError
from tuitrain.foreground import StopOnSignal
from tuitrain.runs.control import CommandQueue
from tuitrain.runs.run import LockHolder, Run

START_SECONDS = 60.0
"""Within which the new process must have taken its run: it loads no library before that."""

# -P and the package's place at the end of sys.path: modules in the user's working directory replace none of Python's.
_PROGRAM = (
    "import sys; sys.path.append(sys.argv.pop(1)); from tuitrain.detached import main; sys.exit(main(sys.argv[1]))"
)


def start_detached(config: TrainConfig) -> tuple[Run, LockHolder]:
    """Begin to train `config` in a new run's folder and a new process; returns as soon as that holds the run.

    Returns:
        The run, and the process that trains it.

    Raises:
        ConfigError: the config names files that are not there; nothing was written.
        TuitrainError: the process ended at once, or did not start in time.
    """
    _, run = create_run(config)
    arguments = [sys.executable, "-P", "-c", _PROGRAM, str(Path(__file__).parent.parent), str(run.path)]
    descriptor = os.open(run.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, start_new_session=True
        )
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if holder := run.lock_holder():
            return run, holder
        time.sleep(0.02)
    process.kill()
    raise TuitrainError(f"{run.path} could not be trained in a new process", hint=f"{run.log_path} tells why")


def main(run_path: str) -> int:
    """Train the new run at `run_path`; SIGINT and SIGTERM make it finish its step, save and stop."""
    run = Run.open(Path(run_path))
    commands = CommandQueue(run.control_dir)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopOnSignal(commands, lambda: None, numbers=(signal.SIGINT, signal.SIGTERM)):
        return train_run(load_config(run.config_path), run, commands.poll)
