"""Fills one network with the tensors of its files, every one checked; knows no architecture.

`from_pretrained` leaves missing tensors without memory, ignores what is too much, turns integers into zeros, and
prints; here each of these is an error, and the four ways a base model is stored go one road.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tuitrain.engine.base_model import Part, count, few, hub_tensor_name
from tuitrain.engine.original_names import OriginalTensor, original_tensor
from tuitrain.engine.weights import DTYPES_BY_NAME, LazyTensor, TensorRef
from tuitrain.errors import ModelError, Problem

# What older exporters left in files and no network of SDXL needs.
_BENIGN = ("position_ids", "logit_scale")


@dataclass(frozen=True)
class _Source:
    """A tensor of the network: where it is stored, and how it is stored there."""

    ref: TensorRef
    original: OriginalTensor

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.ref.shape
        if self.original.third is not None:
            shape = (shape[0] // 3, *shape[1:])
        return shape[::-1] if self.original.is_transposed else shape


def load_part(
    part: Part,
    build: Callable[[dict[str, Any]], nn.Module],
    *,
    dtype: torch.dtype,
    read: Callable[[int], None] = lambda num_bytes: None,
) -> nn.Module:
    """The network of `part` on the CPU in `dtype`, in eval mode.

    One tensor is the most memory this takes beside the network itself.

    Args:
        build: makes the network from its config; called where tensors have no memory.
        read: called after each tensor with its bytes as stored; what it raises ends the loading.

    Raises:
        ModelError: tensors are missing, too many, of another shape, not finite, zero, or too large for `dtype`.
    """
    network = _build_without_memory(part, build)
    expected = network.state_dict()
    tensors = _read_all(_match(expected, part), expected, dtype, part, read)
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def lazy_tensors(part: Part, build: Callable[[dict[str, Any]], nn.Module]) -> dict[str, LazyTensor]:
    """The tensors of `part` by their names on the Hub, as stored and none of them read yet.

    The files are opened here and stay open, so that they can be read to the end even when they are deleted meanwhile.

    Args:
        build: makes the network from its config; called where tensors have no memory.

    Raises:
        ModelError: tensors are missing, too many, or of another shape.
    """
    expected = _build_without_memory(part, build).state_dict()
    sources = _match(expected, part)
    files = {path: safe_open(path, framework="pt") for path in {source.ref.path for source in sources.values()}}

    def lazy(source: _Source, shape: torch.Size) -> LazyTensor:
        file = files[source.ref.path]
        return LazyTensor(tuple(shape), DTYPES_BY_NAME[source.ref.dtype], lambda: _read(file, source).reshape(shape))

    return {hub_tensor_name(part.name, name): lazy(source, expected[name].shape) for name, source in sources.items()}


def num_stored_bytes(part: Part) -> int:
    """What `load_part` reads, but for leftovers that no network of SDXL needs."""
    return sum(math.prod(ref.shape) * DTYPES_BY_NAME[ref.dtype].itemsize for ref in part.tensors.values())


def hash_network(network: nn.Module, config: Mapping[str, Any]) -> str:
    """sha256 of a network on the CPU: names, dtypes and bytes of its tensors, and its config; about 1 GB a second."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _build_without_memory(part: Part, build: Callable[[dict[str, Any]], nn.Module]) -> nn.Module:
    try:
        with torch.device("meta"):
            return build(part.config)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"the config of {part.name} describes no network: {error}", where=str(part.where)) from error


def _match(expected: Mapping[str, Tensor], part: Part) -> dict[str, _Source]:
    sources: dict[str, _Source] = {}
    missing, reshaped, used = [], [], set()
    for name, tensor in expected.items():
        hub_name = hub_tensor_name(part.name, name)
        original = original_tensor(part.name, hub_name, part.config) if part.is_original else OriginalTensor(hub_name)
        ref = part.tensors.get(original.name)
        if ref is None:
            missing.append(original.name)
            continue
        used.add(original.name)
        sources[name] = _Source(ref, original)
        if not _is_shaped(sources[name].shape, tuple(tensor.shape)):
            reshaped.append(f"{original.name} is {list(ref.shape)} (the config asks for {list(tensor.shape)})")
    extra = [name for name in part.tensors.keys() - used if not name.endswith(_BENIGN)]
    _raise_problems(
        part,
        (f"{part.name} lacks {len(missing)} of {len(expected)} tensors", missing),
        (f"{part.name} has {count(extra)} that its config does not know", sorted(extra)),
        (f"{part.name} has {count(reshaped)} of another shape than its config's", reshaped),
    )
    return sources


def _is_shaped(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether the shapes are one; a matrix may be stored as a 1x1 convolution, as the original VAE does."""
    return stored == wanted or (len(wanted) == 2 and stored == (*wanted, 1, 1))


def _read_all(
    sources: Mapping[str, _Source],
    expected: Mapping[str, Tensor],
    dtype: torch.dtype,
    part: Part,
    read: Callable[[int], None],
) -> dict[str, Tensor]:
    tensors = {}
    not_finite, zero, overflowing = [], [], []
    by_path = sorted(sources.items(), key=lambda item: item[1].ref.path)
    for path, group in groupby(by_path, key=lambda item: item[1].ref.path):
        with safe_open(path, framework="pt") as file:
            for name, source in group:
                stored = _read(file, source)
                low, high = torch.aminmax(stored)
                tensors[name] = stored.to(dtype, copy=True).reshape(expected[name].shape)
                if not (low.isfinite() and high.isfinite()):
                    not_finite.append(source.ref.key)
                elif low == 0 and high == 0 and stored.ndim > 1:  # biases of zero are usual, matrices are not
                    zero.append(source.ref.key)
                elif max(-low, high) > torch.finfo(dtype).max:
                    overflowing.append(source.ref.key)
                read(stored.nbytes)
    _raise_problems(
        part,
        (f"{part.name} has {count(not_finite)} with NaN or infinity", not_finite),
        (f"{part.name} has {count(zero)} of zeros alone, its file was never written to the end", zero),
        (f"{part.name} has {count(overflowing)} with values too large for {dtype}", overflowing),
    )
    return tensors


def _read(file: Any, source: _Source) -> Tensor:
    key, third = source.ref.key, source.original.third
    rows = source.ref.shape[0] // 3 if third is not None else 0
    tensor: Tensor = file.get_tensor(key) if third is None else file.get_slice(key)[third * rows : (third + 1) * rows]
    return tensor.T.contiguous() if source.original.is_transposed else tensor


def _raise_problems(part: Part, *findings: tuple[str, Iterable[str]]) -> None:
    """One error with every finding that names a tensor."""
    problems = [
        Problem(f"{what}: {few(names)}", hint="fetch or copy the model again", where=str(part.where))
        for what, names in findings
        if names
    ]
    if problems:
        raise ModelError.from_problems(problems)
