"""What the paths of an export request tell by themselves; reads no file and loads no library."""

import os
from pathlib import Path

from tuitrain.errors import ConfigError
from tuitrain.runs.checkpoints import check_is_published, list_checkpoints
from tuitrain.runs.run import Run


def check_checkpoint(checkpoint: Path) -> None:
    """Check that `checkpoint` is a folder that may be a checkpoint or hold a UNet.

    Raises:
        ConfigError: there is no such folder, it is not whole, or it is a run.
    """
    if not checkpoint.is_dir():
        raise ConfigError(f"there is no folder {checkpoint}", hint="`tuitrain checkpoints RUN` lists those of a run")
    check_is_published(checkpoint)
    if (checkpoint / "journal.jsonl").is_file():
        raise ConfigError(f"{checkpoint} is a run, not a checkpoint", hint=_newest_checkpoint(Run(checkpoint)))


def _newest_checkpoint(run: Run) -> str:
    checkpoints = list_checkpoints(run.checkpoints_dir)
    return f"its newest checkpoint is {checkpoints[-1].path}" if checkpoints else "it has no checkpoint yet"


def check_target(out: Path, checkpoint: Path) -> None:
    """Check that `out` can be made.

    Raises:
        ConfigError: it exists, a file is in the place of its folder, or it lies in the checkpoint, which would be
            damaged by it.
    """
    if os.path.lexists(out):
        raise ConfigError(f"{out} exists already, nothing is overwritten", hint="name another place with --out")
    if not existing_folder(out).is_dir():
        raise ConfigError(f"{existing_folder(out)} is not a folder", hint="name another place with --out")
    if out.resolve().is_relative_to(checkpoint.resolve()):
        raise ConfigError(f"{out} lies inside the checkpoint", hint="name a place outside with --out")


def existing_folder(out: Path) -> Path:
    """The nearest thing above `out` that is there already."""
    return next(folder for folder in out.absolute().parents if folder.exists())
