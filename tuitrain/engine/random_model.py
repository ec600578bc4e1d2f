"""A full-size SDXL of random numbers in diffusers layout, to measure with: it has learned nothing. Knows no config."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tuitrain.atomic import atomic_dir
from tuitrain.engine.base_model import SDXL_BASE
from tuitrain.engine.quiet import quiet_libraries
from tuitrain.engine.sdxl import build_network
from tuitrain.engine.weight_files import PARTS, read_json, weight_name
from tuitrain.engine.weights import write_safetensors
from tuitrain.errors import TuitrainError

STD = 0.02
"""Of the random weights: activations stay below 100 in every network, far from float16's end at 65504."""

_SEED = 0
_SPREAD = 1 << 20
_STRIDE = 7919  # a prime: where the next tensor starts in the random block
_SPARE_BYTES = 1 << 30  # left free on the disk


def write_random_model(folder: Path, *, description: Path = SDXL_BASE) -> None:
    """Write a base model into `folder`, which appears whole or not at all: 6.9 GB in float16 for SDXL.

    Matrices are cut from one block of random numbers, which is a hundred times faster than drawing each; norms are 1
    and biases 0, as at the start of a training.

    Args:
        folder: must not exist.
        description: a diffusers folder; its configs and tokenizers are copied, its weights are not.

    Raises:
        TuitrainError: the disk has too little room; nothing is written.
    """
    quiet_libraries()
    shapes = {name: _shapes(name, description) for name in PARTS}
    numel = sum(shape.numel() for part in shapes.values() for shape in part.values())
    folder.parent.mkdir(parents=True, exist_ok=True)
    _check_free_disk(folder.parent, numel * torch.float16.itemsize)
    block = _random_block(max(shape.numel() for part in shapes.values() for shape in part.values()))
    with atomic_dir(folder) as temporary:
        shutil.copytree(
            description,
            temporary,
            ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index*.json", "*.bin", "NOTICE"),
            dirs_exist_ok=True,
        )
        for name, part in shapes.items():
            path = temporary / name / weight_name(PARTS[name], None)
            write_safetensors(path, _random_tensors(part, block), dtype=torch.float16)


def _shapes(name: str, description: Path) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = build_network(name, read_json(description / name / "config.json"))
    return {key: tensor.shape for key, tensor in network.state_dict().items()}


def _check_free_disk(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes + _SPARE_BYTES:
        raise TuitrainError(
            f"a random SDXL takes {num_bytes / 2**30:.1f} GiB, {folder} has {free / 2**30:.1f} GiB free, "
            "and 1 GiB more must stay free",
            hint="set XDG_CACHE_HOME to a folder on a larger disk, or name a base model with --model",
        )


def _random_block(largest_numel: int) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randn(largest_numel + _SPREAD, generator=generator).mul_(STD).half()


def _random_tensors(shapes: Mapping[str, torch.Size], block: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a network; those of random numbers share the block's memory."""
    for index, (name, shape) in enumerate(shapes.items()):
        if len(shape) > 1:
            start = index * _STRIDE % _SPREAD
            yield name, block[start : start + shape.numel()].view(shape)
        else:
            yield name, torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
