"""A mini SDXL trains and saves after each step, and after the first save its disk breaks; what it then says and did.

As a program, `python -m tests.reliability.broken_disk FAULT FOLDER MODEL JSONL`, to be run in a mount namespace of its
own (`unshare -Urm`): the faults that take a mount. Prints the Outcome as JSON.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import of_kind, small_config, train
from tuitrain.runs import events
from tuitrain.runs.checkpoints import verify_checkpoint
from tuitrain.runs.control import Command
from tuitrain.runs.journal import JournalTail
from tuitrain.runs.run import Run
from tuitrain.tui.failures import explain, facts_of, with_machine
from tuitrain.tui.live import LiveRun

NUM_STEPS = 3


@dataclass(frozen=True)
class Outcome:
    """How a run fared whose disk broke after the save of step 1.

    Args:
        exit_code: of the training.
        saved: steps that the journal says were saved.
        silent: those of them, after the fault, whose checkpoint does not stand whole on the disk.
        not_saved: why, for each save that failed while the run went on.
        error, what: of the failure; empty when there is none.
        told: what the screen says is saved, when the run has failed.
        num_pauses: times that the run waited for room.
    """

    exit_code: int
    saved: list[int]
    silent: list[int]
    not_saved: list[str]
    error: str
    what: str
    told: str
    num_pauses: int


class _Steer:
    """Polled as commands are: breaks the disk once step 1 is saved, and ends the second pause for good."""

    def __init__(self, runs: Path, before: Callable[[Path], object], break_it: Callable[[Path], object]) -> None:
        self.runs = runs
        self.before: Callable[[Path], object] | None = before
        self.break_it: Callable[[Path], object] | None = break_it
        self.num_pauses = 0

    def __call__(self) -> Command | None:
        (run,) = map(Run, self.runs.iterdir())
        journal = JournalTail(run.journal_path).read_new()
        is_training = any(event.phase == "train" for event in of_kind(journal, events.PhaseStarted))
        if is_training and self.before is not None:
            self.before(run.checkpoints_dir)
            self.before = None
        if of_kind(journal, events.CheckpointSaved) and self.break_it is not None:
            self.break_it(run.checkpoints_dir)
            self.break_it = None
        num_pauses = len(of_kind(journal, events.Paused))
        if num_pauses > self.num_pauses:
            self.num_pauses = num_pauses
            return Command.RESUME
        return None


def train_on(
    folder: Path,
    model: Path,
    jsonl: Path,
    break_it: Callable[[Path], object],
    *,
    before: Callable[[Path], object] = lambda checkpoints_dir: None,
) -> Outcome:
    """Train, and break the disk under checkpoints/ by `break_it`; `before` prepares it."""
    config = small_config(
        folder,
        model,
        jsonl,
        "data_loader.resolution=32",
        max_train_steps=NUM_STEPS,
        save_every_n_steps=1,
        cache_dir=str(jsonl.parent / "cache"),
    )
    run, journal, exit_code = train(config, _Steer(folder / "runs", before, break_it))
    saved = of_kind(journal, events.CheckpointSaved)
    failures = of_kind(journal, events.RunFailed)
    told = ""
    if failures:
        live = LiveRun.watch(run)
        live.load()
        told = explain(with_machine(facts_of(live))).saved
    return Outcome(
        exit_code=exit_code,
        saved=[event.step for event in saved],
        silent=[event.step for event in saved[1:] if verify_checkpoint(run.checkpoints_dir / event.name)],
        not_saved=[event.what for event in of_kind(journal, events.SaveFailed)],
        error=failures[0].error if failures else "",
        what=failures[0].what if failures else "",
        told=told,
        num_pauses=len(of_kind(journal, events.Paused)),
    )


# ------------------------------------------------------------------------------------------------ faults without mounts


def remove(checkpoints_dir: Path) -> None:
    shutil.rmtree(checkpoints_dir)


def replace_by_file(checkpoints_dir: Path) -> None:
    shutil.rmtree(checkpoints_dir)
    checkpoints_dir.touch()


def lose_linked_disk(checkpoints_dir: Path) -> None:
    shutil.rmtree(checkpoints_dir)
    checkpoints_dir.symlink_to("/nowhere/checkpoints")


@contextmanager
def failing_call(name: str, number: int) -> Iterator[Callable[[Path], None]]:
    """From the break on os.`name` raises error `number` for what lies in checkpoints/, as a failing disk does."""
    call: Callable[..., Any] = getattr(os, name)

    with pytest.MonkeyPatch.context() as patch:

        def break_it(checkpoints_dir: Path) -> None:
            def fail(place: object, *arguments: object, **options: object) -> object:
                path = Path(f"/proc/self/fd/{place}").readlink() if isinstance(place, int) else place
                if str(path).startswith(str(checkpoints_dir)):
                    raise OSError(number, os.strerror(number), str(path))
                return call(place, *arguments, **options)

            patch.setattr(os, name, fail)

        yield break_it


# --------------------------------------------------------------------------------------------------- faults with mounts


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _mount_tmpfs(size: str) -> Callable[[Path], None]:
    return lambda checkpoints_dir: _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(checkpoints_dir))


def _make_read_only(checkpoints_dir: Path) -> None:
    _mount("-o", "remount,ro", str(checkpoints_dir))


def _unmount(checkpoints_dir: Path) -> None:
    subprocess.run(["umount", "-l", str(checkpoints_dir)], check=True)


def _fill(checkpoints_dir: Path) -> None:
    with (checkpoints_dir / "filler").open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError as error:
            assert error.errno == errno.ENOSPC


MOUNT_FAULTS = {
    "read-only disk": (_mount_tmpfs("100m"), _make_read_only),
    "disk gone": (_mount_tmpfs("100m"), _unmount),
    "full disk": (_mount_tmpfs("30m"), _fill),
}

if __name__ == "__main__":
    fault, *places = sys.argv[1:]
    prepare, break_disk = MOUNT_FAULTS[fault]
    found = train_on(*map(Path, places), break_disk, before=prepare)  # type: ignore[arg-type, misc]
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
