"""Training states: what a run needs to go on exactly where a checkpoint was saved; knows no tensors.

A state is the folder `state/` inside a checkpoint, so that the two appear and disappear together. It has a manifest of
its own, state.json, so that it can be removed and the checkpoint stays as it is. Weights that the checkpoint holds as
they were trained are not stored again: the state's manifest names the checkpoint's file.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from tuitrain.atomic import remove_dir_atomic
from tuitrain.errors import CheckpointError, Problem
from tuitrain.runs.manifest import ManifestFile, find_damages, list_files, load_manifest

FORMAT_VERSION = 1
STATE_DIR = "state"
STATE_NAME = f"{STATE_DIR}/state.json"


@dataclass(frozen=True, kw_only=True)
class MeterState:
    """What goes into the next StepLogged; see engine/metrics.py."""

    loss_sum: float
    data_seconds: float
    num_steps: int
    num_images: int
    lr: float
    grad_norm: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StateManifest:
    """What state.json says; a path in it is relative to the checkpoint's folder.

    Args:
        format_version: of this description.
        step: completed optimizer steps.
        epoch: completed epochs.
        steps_per_epoch: optimizer steps in an epoch.
        time: when it was written, Unix seconds.
        weights_path: the weights as trained.
        optimizer_path: the optimizer's tensors, "<parameter>/<name>" each.
        ema_path: the average of the weights; null when none is kept.
        optimizer_scalars: the optimizer's numbers of each parameter.
        optimizer_progress: of each group of parameters what steps have changed, such as Prodigy's d.
        scaler: of float16's GradScaler; null when there is none.
        loader: the position in the data.
        meter: since the last report.
        last_losses: the last logged ones, oldest first.
        sampled_step: the last step that was sampled, -1 for none.
        pictures_per_pass: in a forward pass at most, since memory ran out; null when it never did.
        num_skipped: steps just before this state that were left out, one after the other, for not being finite.
        num_threads: of the CPU, which decide the order of sums; null on a GPU.
        settings: the settings that decide the numbers, by key.
        world: what else decides them: pictures, base model, device, versions.
        files: all files but this one, those of the checkpoint that belong to the state included.
    """

    format_version: int
    step: int
    epoch: int
    steps_per_epoch: int
    time: float
    weights_path: str
    optimizer_path: str
    ema_path: str | None
    optimizer_scalars: dict[str, dict[str, float]]
    optimizer_progress: list[dict[str, float]]
    scaler: dict[str, float] | None
    loader: dict[str, int]
    meter: MeterState
    last_losses: list[float]
    sampled_step: int
    pictures_per_pass: int | None
    num_skipped: int
    num_threads: int | None
    settings: dict[str, str]
    world: dict[str, str]
    files: list[ManifestFile]


def has_state(checkpoint: Path) -> bool:
    """Whether there is a state in the folder `checkpoint`, sound or not."""
    return (checkpoint / STATE_DIR).is_dir()


def list_states(checkpoints_dir: Path) -> list[Path]:
    """The checkpoints with a state, sound or not, lowest step first."""
    checkpoints = (path for path in checkpoints_dir.glob("checkpoint-*") if has_state(path))
    return sorted(checkpoints, key=lambda path: path.name.rpartition("_")[2])  # the step, with leading zeros


def read_state(checkpoint: Path) -> StateManifest:
    """What the state.json in the folder `checkpoint` says.

    Raises:
        CheckpointError: it is missing, damaged, edited or made by a newer version.
    """
    try:
        return load_manifest(checkpoint / STATE_NAME, StateManifest, newest_format=FORMAT_VERSION)
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint} holds no {STATE_NAME}") from None


def verify_state(
    checkpoint: Path, *, already: Collection[ManifestFile] = (), read: Callable[[int], None] | None = None
) -> list[Problem]:
    """All that is not as state.json says; reads every byte (1 GB/s). Empty when the state is sound.

    Args:
        already: files that were verified a moment ago and are not read again.
        read: called after each piece of a file with its number of bytes; what it raises ends the reading.
    """
    try:
        state = read_state(checkpoint)
    except CheckpointError as error:
        return list(error.problems)
    present = list_files(checkpoint)
    damages = find_damages(checkpoint, [file for file in state.files if file not in already], present, read=read)
    known = {STATE_NAME, *(file.path for file in state.files)}
    damages += [
        f"{name} does not belong here" for name in present if name.startswith(f"{STATE_DIR}/") and name not in known
    ]
    return [Problem(damage, where=str(checkpoint)) for damage in damages]


def remove_states(checkpoints: Iterable[Path]) -> None:
    """Remove the state of each of `checkpoints`, whole or not at all; the checkpoints stay, and links with all in them.

    Raises:
        OSError: one cannot be removed.
    """
    for checkpoint in checkpoints:
        if not checkpoint.is_symlink():
            remove_dir_atomic(checkpoint / STATE_DIR)
