"""The full training state as files: weights as trained, optimizer, average; knows neither loop nor config.

Tensors go into safetensors files, numbers into state.json, and nothing is pickled: reading a state executes no code.
What it is for, and the folder, is described in runs/states.py.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tuitrain.atomic import write_text_atomic
from tuitrain.engine.ema import ExponentialMovingAverage
from tuitrain.engine.optimizer import optimizer_progress, restore_progress
from tuitrain.engine.weights import write_safetensors
from tuitrain.errors import CheckpointError
from tuitrain.runs.manifest import describe_files, manifest_to_json
from tuitrain.runs.states import FORMAT_VERSION, STATE_DIR, STATE_NAME, MeterState, StateManifest

OPTIMIZER_PATH = f"{STATE_DIR}/optimizer.safetensors"
_WEIGHTS_PATH = f"{STATE_DIR}/weights.safetensors"
_EMA_PATH = f"{STATE_DIR}/ema.safetensors"

Scaler = torch.amp.GradScaler


@dataclass(frozen=True)
class MovingParts:
    """What an optimizer step changes.

    Args:
        unet: the network itself, not what accelerate wraps around it.
        optimizer: idem.
        ema: None when no average is kept.
        scaler: of float16's loss; None elsewhere.
    """

    unet: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ExponentialMovingAverage | None
    scaler: Scaler | None


@dataclass(frozen=True)
class StateFiles:
    """Where a state has its tensors, by path in the checkpoint's folder.

    Args:
        weights: as trained.
        ema: None when no average is kept.
    """

    weights: str
    ema: str | None


def plan_files(parts: MovingParts, *, checkpoint_weights: str, save_dtype: torch.dtype) -> StateFiles:
    """Which files a state needs beside the checkpoint's own: what that holds bit by bit is not stored again.

    Args:
        checkpoint_weights: the file of the checkpoint: the average where one is kept, else the weights.
        save_dtype: of that file.
    """
    trained_dtype = next(parts.unet.parameters()).dtype
    if parts.ema is None:
        return StateFiles(checkpoint_weights if save_dtype == trained_dtype else _WEIGHTS_PATH, None)
    return StateFiles(_WEIGHTS_PATH, checkpoint_weights if save_dtype == torch.float32 else _EMA_PATH)


@dataclass(frozen=True)
class TrainingState:
    """A state in memory.

    Args:
        manifest: what state.json will say, all but the files.
        tensors: by name, of each file that the state has beside the checkpoint's own.
    """

    manifest: StateManifest
    tensors: dict[str, dict[str, Tensor]]

    @property
    def num_bytes(self) -> int:
        """What the tensors take on disk."""
        return sum(tensor.nbytes for tensors in self.tensors.values() for tensor in tensors.values())


def take_state(
    parts: MovingParts,
    files: StateFiles,
    *,
    step: int,
    epoch: int,
    steps_per_epoch: int,
    loader: dict[str, int],
    meter: MeterState,
    last_losses: list[float],
    sampled_step: int,
    pictures_per_pass: int | None,
    num_skipped: int,
    settings: dict[str, str],
    world: dict[str, str],
) -> TrainingState:
    """The state of now: numbers are copied, tensors are the living ones; the fields are those of StateManifest."""
    is_on_cpu = next(parts.unet.parameters()).device.type == "cpu"
    manifest = StateManifest(
        format_version=FORMAT_VERSION,
        step=step,
        epoch=epoch,
        steps_per_epoch=steps_per_epoch,
        time=time.time(),
        weights_path=files.weights,
        optimizer_path=OPTIMIZER_PATH,
        ema_path=files.ema,
        optimizer_scalars=_optimizer_scalars(parts),
        optimizer_progress=optimizer_progress(parts.optimizer),
        scaler=parts.scaler.state_dict() if parts.scaler is not None else None,
        loader=loader,
        meter=meter,
        last_losses=last_losses,
        sampled_step=sampled_step,
        pictures_per_pass=pictures_per_pass,
        num_skipped=num_skipped,
        num_threads=torch.get_num_threads() if is_on_cpu else None,
        settings=settings,
        world=world,
        files=[],
    )
    return TrainingState(manifest, _tensors_by_file(parts, files))


def write_state(
    folder: Path, state: TrainingState, *, written: Callable[[int], None], known_sha256: Mapping[str, str]
) -> None:
    """Write a state into the folder of a checkpoint whose own weights are there already.

    Args:
        written: called after each tensor with its number of bytes.
        known_sha256: hashes of the checkpoint's files, by path in `folder`, taken while they were written.
    """
    (folder / STATE_DIR).mkdir()
    hashes = {
        path: write_safetensors(folder / path, tensors.items(), dtype=None, written=written)
        for path, tensors in state.tensors.items()
    }
    paths = (state.manifest.weights_path, state.manifest.optimizer_path, state.manifest.ema_path)
    files = describe_files(folder, [path for path in paths if path is not None], {**known_sha256, **hashes})
    write_text_atomic(folder / STATE_NAME, manifest_to_json(replace(state.manifest, files=files)))


def _tensors_by_file(parts: MovingParts, files: StateFiles) -> dict[str, dict[str, Tensor]]:
    tensors: dict[str, dict[str, Tensor]] = {}
    if files.weights == _WEIGHTS_PATH:
        tensors[files.weights] = parts.unet.state_dict(keep_vars=True)
    tensors[OPTIMIZER_PATH] = _optimizer_tensors(parts)
    if files.ema == _EMA_PATH:
        tensors[files.ema] = _ema_tensors(parts)
    return tensors


def _optimizer_tensors(parts: MovingParts) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, values in _optimizer_values(parts).items()
        for key, value in sorted(values.items())  # in the order of their names, so that equal states are equal files
        if isinstance(value, Tensor)
    }


def _optimizer_scalars(parts: MovingParts) -> dict[str, dict[str, float]]:
    """The optimizer's numbers of each parameter that are no tensors, such as the count of its steps."""
    return {
        name: {key: value for key, value in values.items() if not isinstance(value, Tensor)}
        for name, values in _optimizer_values(parts).items()
    }


def _optimizer_values(parts: MovingParts) -> dict[str, Mapping[str, Any]]:
    """By the parameter's name; empty before the first step."""
    states = parts.optimizer.state
    return {name: states[param] for name, param in parts.unet.named_parameters() if param in states}


def _ema_tensors(parts: MovingParts) -> dict[str, Tensor]:
    assert parts.ema is not None
    averages = parts.ema.by_parameter()
    return {name: averages[param] for name, param in parts.unet.named_parameters()}


@torch.no_grad()
def restore_tensors(
    checkpoint: Path, state: StateManifest, parts: MovingParts, *, with_optimizer: bool, with_ema: bool
) -> None:
    """Make newly built parts what they were when the state was saved.

    Args:
        checkpoint: its folder; verified.
        with_optimizer: else the optimizer and the scaler stay as they were built, because they are of another kind.
        with_ema: else the average, where one is kept, begins with the weights, because none was kept before.

    Raises:
        CheckpointError: the state is of another network or optimizer, lacks a part, or cannot be read.
    """
    listed = {file.path for file in state.files}
    for path in (state.weights_path, state.optimizer_path, state.ema_path):
        if path is not None and path not in listed:
            raise CheckpointError(f"{path} is not among the files of the state", where=str(checkpoint))
    _copy_into(parts.unet.state_dict(), checkpoint / state.weights_path)
    if parts.ema is not None:
        if not with_ema:
            parts.ema.restart()
        elif state.ema_path is None:
            raise CheckpointError("the state lacks the average of the weights", where=str(checkpoint))
        else:
            _copy_into(_ema_tensors(parts), checkpoint / state.ema_path)
    if with_optimizer:
        _restore_optimizer(checkpoint / state.optimizer_path, state, parts)


def _copy_into(targets: Mapping[str, Tensor], path: Path) -> None:
    with _reading(path) as stored:
        if missing := sorted(targets.keys() ^ set(stored.keys())):
            raise CheckpointError(f"{path} is of another network: {missing[0]} is in one of them only")
        for name, target in targets.items():
            tensor = stored.get_tensor(name)
            if tensor.shape != target.shape:
                what = f"{name} has the shape {list(tensor.shape)}, the network's is {list(target.shape)}"
                raise CheckpointError(f"{path} is of another network: {what}")
            target.copy_(tensor)


def _restore_optimizer(path: Path, state: StateManifest, parts: MovingParts) -> None:
    params = dict(parts.unet.named_parameters())
    values: dict[str, dict[str, Any]] = {name: dict(scalars) for name, scalars in state.optimizer_scalars.items()}
    with _reading(path) as stored:
        for full_name in stored.keys():  # noqa: SIM118  the file is no mapping
            name, _, key = full_name.rpartition("/")
            if name not in params:
                raise CheckpointError(f"{path} is of another network: it speaks of {name}")
            values.setdefault(name, {})[key] = stored.get_tensor(full_name).to(params[name].device, copy=True)
    has_moved = parts.scaler is None and state.step > state.num_skipped  # else no step may have reached the optimizer
    if (values or has_moved) and values.keys() != params.keys():
        missing = sorted(values.keys() ^ params.keys())
        raise CheckpointError(f"{path} is of another network: {missing[0]} is in one of them only")
    for name, of_param in values.items():
        parts.optimizer.state[params[name]] = of_param
    try:
        restore_progress(parts.optimizer, state.optimizer_progress)
    except ValueError:
        raise CheckpointError(f"{path} is of an optimizer with other groups of parameters") from None
    if parts.scaler is not None:
        if state.scaler is None:
            raise CheckpointError(f"{path.parent} lacks the scale of float16's loss")
        parts.scaler.load_state_dict(state.scaler)


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as stored:
            yield stored
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
