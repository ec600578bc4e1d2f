"""A LoRA as a file: names, shapes, alphas, metadata, size; knows neither models nor how factors are found.

For each layer `KEY.lora_down.weight` is A (r, in[, kh, kw]), `KEY.lora_up.weight` is B (out, r[, 1, 1]) and
`KEY.alpha` is r, so that clients scale B A by alpha / r = 1. Nothing else may be in it: one more kind of key makes
diffusers refuse the whole file.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from tuitrain.export.lora_modules import BlockModule

_HEADER_BYTES = 4096  # of a file without tensors, at most
_HEADER_BYTES_PER_TENSOR = 100  # at most, beside its name
_TENSORS = (".alpha", ".lora_down.weight", ".lora_up.weight")


class FactorStore:
    """The factors of all layers, in a file that has no name and goes with this object; memory holds none of them.

    Args:
        folder: on the disk that has room for them.
        modules: that may come, with the rank of each; a lower rank is the beginning of it.
        dtype: of the factors.

    Raises:
        OSError: the disk has no room.
    """

    def __init__(self, folder: Path, modules: Mapping[BlockModule, int], dtype: torch.dtype) -> None:
        self._starts: dict[BlockModule, int] = {}
        numel = 0
        for module, rank in modules.items():
            self._starts[module] = numel
            numel += rank * (module.m + module.n)
        self._ranks = dict(modules)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".tmp-") as file:
            # A mapped file that outgrows the disk would kill the process.
            os.posix_fallocate(file.fileno(), 0, max(numel, 1) * dtype.itemsize)
            self._numbers = torch.from_file(file.name, shared=True, size=numel, dtype=dtype)

    def put(self, module: BlockModule, B: Tensor, A: Tensor) -> None:
        """Keep B (m, r) and A (r, n) with the rank r that was announced."""
        at = self._starts[module]
        for factor in (B.T, A):  # rank first, so that the beginning is the lower rank
            self._numbers[at : at + factor.numel()].view(factor.shape).copy_(factor)
            at += factor.numel()

    def get(self, module: BlockModule, rank: int) -> tuple[Tensor, Tensor]:
        """B (m, rank) and A (rank, n), as stored."""
        at, split = self._starts[module], self._ranks[module] * module.m
        B = self._numbers[at : at + rank * module.m].view(rank, module.m).T
        A = self._numbers[at + split : at + split + rank * module.n].view(rank, module.n)
        return B, A


def lora_tensors(store: FactorStore, ranks: Mapping[BlockModule, int], dtype: torch.dtype) -> list[tuple[str, Tensor]]:
    """The names and tensors of a LoRA in the order of the file."""
    tensors = []
    for module, rank in ranks.items():
        B, A = store.get(module, rank)
        alpha, down, up = (module.key + name for name in _TENSORS)
        tensors.append((alpha, torch.tensor(float(rank), dtype=dtype)))
        tensors.append((down, A.reshape(rank, *module.down_shape)))
        tensors.append((up, B.reshape(module.m, rank, *module.up_shape)))
    return tensors


def lora_num_bytes(ranks: Mapping[BlockModule, int], dtype: torch.dtype) -> int:
    """What a LoRA takes as a file, at most; within 0.1 MB for SDXL."""
    numel = sum(rank * (module.m + module.n) + 1 for module, rank in ranks.items())
    names = sum(len(module.key) + len(name) + _HEADER_BYTES_PER_TENSOR for module in ranks for name in _TENSORS)
    return _HEADER_BYTES + names + numel * dtype.itemsize


def lora_metadata(
    title: str,
    tensors: Sequence[tuple[str, Tensor]],
    *,
    rank: int | None,
    conv_rank: int | None,
    prediction_type: str,
    time: float | None,
) -> dict[str, str]:
    """What kohya's tools, A1111 and Forge read of a LoRA; the others look at the tensors.

    Args:
        title: the file's name without suffix.
        tensors: of the file, in its order and dtype.
        rank: of all layers, None where they differ.
        conv_rank: of the convolutions, None where it is `rank`.
        prediction_type: "epsilon" or "v_prediction".
        time: when the weights were trained, Unix seconds.

    Source: https://github.com/Stability-AI/ModelSpec; kohya's sd-scripts and A1111 for the names with `ss`.
    """
    dim = "Dynamic" if rank is None else str(rank)
    conv_dim = dim if conv_rank is None else str(conv_rank)
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else "epsilon",
        "modelspec.resolution": "1024x1024",
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0",  # A1111 hides a LoRA without it from SDXL
        "ss_network_module": "networks.lora",
        "ss_network_dim": dim,
        "ss_network_alpha": dim,
        "ss_network_args": json.dumps({"conv_dim": conv_dim, "conv_alpha": conv_dim}),
        # A1111 has no LoRA of these names.
        "ss_output_name": f"{title}-lora" if title in ("none", "Addams") else title,
        "sshs_model_hash": _hash_data(tensors),
    }
    if time is not None:
        metadata["modelspec.date"] = datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")
    return metadata


def _hash_data(tensors: Sequence[tuple[str, Tensor]]) -> str:
    """sha256 of the file's bytes behind its header, by which A1111 knows a LoRA again."""
    digest = hashlib.sha256()
    for _, tensor in tensors:
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
