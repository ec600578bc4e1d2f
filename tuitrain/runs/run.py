"""A Run: one folder that holds all there is to know of one training; knows nothing of what trains.

<base_output_dir>/<Unix time>/
    config.yaml config.json     the resolved config
    journal.jsonl               the Events; the file that makes a folder a run
    lock                        who trains it: pid, host, since
    heartbeat                   when the trainer last moved
    control/                    Commands from other processes
    checkpoints/ validation/ logs/ log.txt
    abandoned/                  checkpoints of steps that were trained anew
"""

import difflib
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from tuitrain.atomic import remove_leftovers, write_text_atomic
from tuitrain.errors import ConfigError, TuitrainError
from tuitrain.runs.checkpoints import NAME_PATTERN, list_checkpoints, step_of_name
from tuitrain.runs.control import drop_commands
from tuitrain.runs.events import (
    CheckpointSaved,
    DatasetScanned,
    EpochFinished,
    Event,
    RunFailed,
    RunFinished,
    RunStarted,
    StepLogged,
    event_from_line,
    step_of,
)
from tuitrain.runs.heartbeat import read_beat
from tuitrain.runs.records import from_values, to_json
from tuitrain.runs.states import STATE_DIR, list_states

SomeEvent = TypeVar("SomeEvent", bound=Event)
RunState = Literal["running", "finished", "stopped", "failed", "died"]

_JOURNAL_NAME = "journal.jsonl"
_FIND_DEPTH = 4


@dataclass(frozen=True)
class LockHolder:
    """The process that trains a run.

    Args:
        pid: its process id, 0 when the lock file does not tell.
        host: its machine.
        since: when it took the run, Unix seconds.
    """

    pid: int
    host: str
    since: float


@dataclass(frozen=True)
class Run:
    """The places inside one run's folder, and the right to train there.

    Args:
        path: the folder.
    """

    path: Path

    @classmethod
    def create(cls, base_output_dir: Path, *, config_yaml: str, config_json: str) -> "Run":
        """Make a new run's folder, private to the user, named by the time.

        Args:
            base_output_dir: made when it does not exist.
            config_yaml: the resolved config, for config.yaml.
            config_json: the same, for config.json.
        """
        base_output_dir.mkdir(parents=True, exist_ok=True)
        run = cls(base_output_dir.absolute() / repr(time.time()))
        run.path.mkdir(mode=0o700)
        run.control_dir.mkdir(mode=0o700)
        for folder in (run.checkpoints_dir, run.validation_dir, run.tensorboard_dir):
            folder.mkdir()
        run.write_config(config_yaml=config_yaml, config_json=config_json)
        run.journal_path.touch(mode=0o600)  # last: until it is there, nobody takes the folder for a run
        return run

    @classmethod
    def open(cls, path: Path) -> "Run":
        """The run at `path`.

        Raises:
            ConfigError: there is none; the hint names runs with a similar name.
        """
        if (path / _JOURNAL_NAME).is_file():
            return cls(path.absolute())
        neighbours = {run.path.name: run for run in find_runs(path.parent)} if path.parent.is_dir() else {}
        near = [str(neighbours[name].path) for name in difflib.get_close_matches(path.name, neighbours)]
        hint = f"did you mean {' or '.join(near)}?" if near else "`tuitrain runs DIR` lists the runs below DIR"
        raise ConfigError(f"{path} is not a run: it holds no {_JOURNAL_NAME}", hint=hint)

    def write_config(self, *, config_yaml: str, config_json: str) -> None:
        """Put the resolved config into the folder, in both forms."""
        write_text_atomic(self.config_path, config_yaml, mode=0o600)
        write_text_atomic(self.config_json_path, config_json, mode=0o600)

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def config_path(self) -> Path:
        """The resolved config, YAML."""
        return self.path / "config.yaml"

    @property
    def config_json_path(self) -> Path:
        """The same as JSON."""
        return self.path / "config.json"

    @property
    def journal_path(self) -> Path:
        """The Events, one line each."""
        return self.path / _JOURNAL_NAME

    @property
    def log_path(self) -> Path:
        """Free text for humans: tracebacks, messages of libraries."""
        return self.path / "log.txt"

    @property
    def lock_path(self) -> Path:
        """Held while a process trains this run."""
        return self.path / "lock"

    @property
    def heartbeat_path(self) -> Path:
        """The trainer's last sign of life."""
        return self.path / "heartbeat"

    @property
    def control_dir(self) -> Path:
        """Commands from other processes."""
        return self.path / "control"

    @property
    def checkpoints_dir(self) -> Path:
        """Checkpoints, one folder each."""
        return self.path / "checkpoints"

    @property
    def abandoned_dir(self) -> Path:
        """Checkpoints of branches that were left, one folder a branch; made when there is one."""
        return self.path / "abandoned"

    @property
    def validation_dir(self) -> Path:
        """Validation images."""
        return self.path / "validation"

    @property
    def tensorboard_dir(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "logs"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run: one process trains it, all others are refused.

        The kernel lets go when the process dies, however it dies, so no lock is ever stale. Commands left over from
        the last holder are dropped.

        Raises:
            TuitrainError: another process holds it, the text names its pid and host; or a file that a trainer writes
                or empties is a link to elsewhere.
        """
        self._check_own_files()
        descriptor = os.open(self.lock_path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            if not _take(descriptor):
                holder = self._read_holder()
                since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
                what = f"{self.path} is being trained by process {holder.pid} on {holder.host} since {since}"
                raise TuitrainError(what, hint="stop that one first: `tuitrain control RUN stop`")
            holder = LockHolder(pid=os.getpid(), host=socket.gethostname(), since=time.time())
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, to_json(vars(holder)).encode(), 0)
            self.control_dir.mkdir(mode=0o700, exist_ok=True)  # copies of a run may lack an empty folder
            drop_commands(self.control_dir)
            yield
        finally:
            os.close(descriptor)

    def remove_leftovers(self) -> list[str]:
        """Remove what a process that died while it wrote or deleted has left; only for who holds the lock.

        Looks where a run writes, for the names that it writes there; never through a link that leads out of the run.

        Returns:
            The removed ones, relative to the folder.

        Raises:
            OSError: one cannot be removed.
        """
        places = [
            (self.path, r"config\.(yaml|json)", False),
            (self.checkpoints_dir, NAME_PATTERN.pattern, True),
            *((path, STATE_DIR, True) for path in self.checkpoints_dir.glob("checkpoint-*")),
            *((path, r"\d+\.jpg", False) for path in self.validation_dir.glob("*/prompt_*")),
        ]
        return [
            str((folder / name).relative_to(self.path))
            for folder, pattern, are_folders in places
            if folder.is_dir() and folder.resolve().is_relative_to(self.path.resolve())
            for name in remove_leftovers(folder, re.compile(pattern), are_folders=are_folders)
        ]

    def _check_own_files(self) -> None:
        """A copied run may hold links; what is truncated, appended to or emptied must be the run's own."""
        own = (self.lock_path, self.control_dir, self.journal_path, self.log_path, self.heartbeat_path)
        for path in own:
            if path.is_symlink():
                hint = "remove the link; of a run only checkpoints, validation and logs may be links to another disk"
                raise TuitrainError(f"{path} is a link to {path.readlink()}", hint=hint)

    def lock_holder(self) -> LockHolder | None:
        """The process that trains this run now, or None."""
        try:
            descriptor = os.open(self.lock_path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._read_holder()
        finally:
            os.close(descriptor)
        return None

    def heartbeat_age(self) -> float | None:
        """Seconds since the trainer last moved; None when it never has. Grows without end once a run is over."""
        beat = read_beat(self.heartbeat_path)
        return None if beat is None else max(time.time() - beat.time, 0.0)

    def _read_holder(self) -> LockHolder:
        try:
            return from_values(LockHolder, json.loads(self.lock_path.read_bytes()))
        except ValueError:
            return LockHolder(pid=0, host="an unknown host", since=0.0)


def _take(lock_descriptor: int) -> bool:
    """Lock exclusively; tries for 0.2 s, because a `lock_holder` elsewhere holds every lock for microseconds."""
    for _ in range(10):
        try:
            fcntl.flock(lock_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.02)
    return False


def find_runs(directory: Path) -> list[Run]:
    """The runs at or below `directory`, at most four levels down, newest first.

    Looks neither into runs nor through symbolic links, and passes over folders it may not read.
    """
    return sorted(_walk(directory.absolute(), _FIND_DEPTH), key=_start_time, reverse=True)


def _walk(directory: Path, depth: int) -> Iterator[Run]:
    if (directory / _JOURNAL_NAME).is_file():
        yield Run(directory)
    elif depth:
        try:
            with os.scandir(directory) as entries:
                folders = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except (PermissionError, FileNotFoundError):
            return
        for folder in folders:
            yield from _walk(Path(folder), depth - 1)


def _start_time(run: Run) -> float:
    """The time a run's folder is named by, or, where a user renamed it, the time of its last change."""
    try:
        return float(run.path.name)
    except ValueError:
        return run.path.stat().st_mtime


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A line in a list of runs.

    Args:
        path: the run's folder.
        state: "running" while a process holds the run, "died" when none does and the journal tells of no end.
        step: completed optimizer steps, as far as journalled.
        total_steps: as planned; None before the pictures were scanned.
        epoch: completed epochs.
        loss: last logged.
        started: Unix seconds of the first start.
        updated: Unix seconds of the last event.
        num_checkpoints: complete ones on disk.
        resumable_step: where it can go on, the step of its newest saved state; None when it left none, is running or
            was trained to its end.
        pid: the process that trains it, None when none does.
    """

    path: Path
    state: RunState
    step: int
    total_steps: int | None
    epoch: int
    loss: float | None
    started: float
    updated: float
    num_checkpoints: int
    resumable_step: int | None
    pid: int | None


def summarize(run: Run) -> RunSummary:
    """How `run` stands, from its journal, its lock and its checkpoints.

    Parses only the few lines it needs, found by the kind they begin with.
    """
    holder = run.lock_holder()  # before the journal, so that a run that ends between the two has not "died"
    journal = run.journal_path.read_bytes() if run.journal_path.exists() else b""
    journal = journal[: journal.rfind(b"\n") + 1]  # without a torn last line
    session = journal[max(0, journal.rfind(_line_head(RunStarted))) :]

    start = _find_last(session, RunStarted)
    scan = _find_last(journal, DatasetScanned)  # a resumed run prepares before it is said to start
    logged = _find_last(session, StepLogged)
    ending = _find_last(session, RunFinished) or _find_last(session, RunFailed)
    facts = [logged, ending, _find_last(session, EpochFinished), _find_last(session, CheckpointSaved)]
    resumed_from = start.resumed_from or 0 if start else 0
    state = _state(ending, holder)
    states = [] if state in ("running", "finished") else list_states(run.checkpoints_dir)
    return RunSummary(
        path=run.path,
        state=state,
        step=max([resumed_from, *(step_of(fact) or 0 for fact in facts if fact)]),
        total_steps=scan.total_steps if scan else None,
        epoch=max(getattr(fact, "epoch", 0) for fact in facts),
        loss=logged.loss if logged else None,
        started=_event_at(journal, 0).time if journal else _start_time(run),
        updated=_event_at(journal, journal.rfind(b"\n", 0, -1) + 1).time if journal else _start_time(run),
        num_checkpoints=len(list_checkpoints(run.checkpoints_dir)),
        resumable_step=step_of_name(states[-1].name) if states else None,
        pid=holder.pid if holder else None,
    )


def _state(ending: Event | None, holder: LockHolder | None) -> RunState:
    if holder and (ending is None or ending.time < holder.since):  # an ending from before is that of an earlier start
        return "running"
    match ending:
        case RunFinished():
            return "finished" if ending.reason == "completed" else "stopped"
        case RunFailed():
            return "failed"
        case _:
            return "died"


def _line_head(kind: type[Event]) -> bytes:
    """How lines of `kind` begin; no line holds this elsewhere, because JSON escapes quotes inside strings."""
    return f'{{"kind":"{kind.__name__}"'.encode()


def _find_last(lines: bytes, kind: type[SomeEvent]) -> SomeEvent | None:
    position = lines.rfind(_line_head(kind))
    event = _event_at(lines, position) if position >= 0 else None
    return event if isinstance(event, kind) else None


def _event_at(lines: bytes, position: int) -> Event:
    return event_from_line(lines[position : lines.index(b"\n", position)])
