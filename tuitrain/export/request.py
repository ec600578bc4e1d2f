"""What the words of an export request tell by themselves; reads no file and loads no library."""

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


def parse_ranks(text: str) -> tuple[int, ...]:
    """The ranks in "32" or "8,32,128".

    Raises:
        ConfigError: they are no numbers above 0, or one is named twice.
    """
    try:
        ranks = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"the rank is {text}", hint="a number, or several: 8,32,128") from None
    if min(ranks) < 1:
        raise ConfigError(f"the rank is {text}, it must be at least 1", hint="try 32")
    if len(set(ranks)) < len(ranks):
        raise ConfigError(f"the rank is {text}, it names one twice")
    return ranks


def parse_size(text: str) -> int:
    """Bytes in "200MB", "1.5 GiB" or "200000000".

    Raises:
        ConfigError: it is no size above 0.
    """
    units = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    number = text.strip().lower().rstrip("kmgib ")
    unit = text.strip().lower().removeprefix(number).strip()
    try:
        num_bytes = round(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        raise ConfigError(f"the size is {text}", hint="a number of bytes, or with a unit: 200MB, 1GiB") from None
    if num_bytes < 1:
        raise ConfigError(f"the size is {text}, it must be above 0", hint="try 200MB")
    return num_bytes
