"""A training in a process of its own, without a terminal: starts it, and is what runs in it. Knows no screen.

It has its own session, so that neither a closed terminal nor its shell's end reaches it, and says what it has to say in
the run's folder. `tuitrain attach` and `tuitrain control` steer it.
"""

import atexit
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tuitrain.config.files import load_config
from tuitrain.config.schema import TrainConfig
from tuitrain.engine.launch import create_run, resume_run, train_run
from tuitrain.errors import TuitrainError
from tuitrain.foreground import StopOnSignal
from tuitrain.runs.control import CommandQueue
from tuitrain.runs.run import LockHolder, Run

START_SECONDS = 60.0
"""Within which the new process must have taken its run: it loads no library before that."""

# -P and the package's place at the end of sys.path: modules in the user's working directory replace none of Python's.
_PROGRAM = (
    "import sys; sys.path.append(sys.argv.pop(1)); from tuitrain.detached import main; sys.exit(main(*sys.argv[1:]))"
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
    return run, _start(run)


def resume_detached(run: Run, checkpoint: Path | None, overrides: Sequence[str], *, accept_changes: bool) -> LockHolder:
    """Go on with `run` in a new process; returns as soon as that holds the run.

    Args:
        checkpoint: as the rest, of `resume_run`.

    Returns:
        The process that trains it.

    Raises:
        ConfigError, CheckpointError: as `resume_run`; no process was started.
        TuitrainError: the process ended at once, or did not start in time.
    """
    resume_run(run, checkpoint, overrides, accept_changes=accept_changes)
    request = {
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "overrides": list(overrides),
        "accept_changes": accept_changes,
    }
    return _start(run, json.dumps(request))


def _start(run: Run, *resume_request: str) -> LockHolder:
    with run.lock():  # refused here, and in words, while another process trains it
        pass
    arguments = [sys.executable, "-P", "-c", _PROGRAM, str(Path(__file__).parent.parent), str(run.path)]
    descriptor = os.open(run.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        process = subprocess.Popen(
            [*arguments, *resume_request],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if holder := run.lock_holder():
            return holder
        time.sleep(0.02)
    process.kill()
    raise TuitrainError(f"{run.path} could not be trained in a new process", hint=f"{run.log_path} tells why")


def main(run_path: str, resume_request: str | None = None) -> int:
    """Train the new run at `run_path`, or go on with it; SIGINT and SIGTERM make it finish its step, save and stop.

    Args:
        resume_request: the arguments of `resume_run` as JSON.
    """
    run = Run.open(Path(run_path))
    commands = CommandQueue(run.control_dir)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    atexit.register(gc.freeze)  # as in cli.main
    if resume_request is None:
        config, resume = load_config(run.config_path), None
    else:
        request = json.loads(resume_request)
        checkpoint = None if request["checkpoint"] is None else Path(request["checkpoint"])
        config, resume = resume_run(run, checkpoint, request["overrides"], accept_changes=request["accept_changes"])
    with StopOnSignal(commands, lambda: None):
        return train_run(config, run, commands.poll, resume=resume)
