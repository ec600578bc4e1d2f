"""Tensors in safetensors files: what a file holds, reading one tensor, streaming many; knows no network.

A safetensors file is 8 bytes of header length, a JSON header, and the tensors' bytes; see
https://huggingface.co/docs/safetensors. The library's writer takes a whole state dict in its final dtype and does not
fsync; the one here casts and copies one tensor at a time.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tuitrain.atomic import atomic_file, crash_point
from tuitrain.errors import CheckpointError, ModelError
from tuitrain.runs.manifest import hash_file

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES_BY_NAME = {name: dtype for dtype, name in _DTYPE_NAMES.items()}
"""The dtype that a safetensors header means by "F32", "BF16" and so on."""
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class TensorRef:
    """A tensor that lies in a file, with everything its header says.

    Args:
        path: the safetensors file.
        key: its name in that file.
        dtype: as the header spells it: "F32", "BF16", "I64".
        shape: as stored.
    """

    path: Path
    key: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is made when it is asked for.

    Args:
        shape: that `read` will give.
        dtype: that `read` will give.
        read: makes it, anew at every call.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def numel(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorRef]:
    """Every tensor of the safetensors file at `path`, by name; reads the header alone.

    Raises:
        ModelError: not a safetensors file, cut short, or its header is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            refs = {}
            for key in file.keys():  # noqa: SIM118 - the file is no mapping
                entry = file.get_slice(key)
                refs[key] = TensorRef(path, key, entry.get_dtype(), tuple(entry.get_shape()))
            return refs
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} ({path.stat().st_size:,} bytes) is not a complete safetensors file: {error}",
            hint="fetch or copy it again",
        ) from error


def write_safetensors(
    path: Path,
    tensors: Iterable[tuple[str, Tensor | LazyTensor]],
    *,
    dtype: torch.dtype | None,
    metadata: Mapping[str, str] | None = None,
    written: Callable[[int], None] | None = None,
) -> str:
    """Write `tensors` to `path`, floating ones cast to `dtype` unless that is None, and return the file's sha256.

    Each tensor is cast on its own device, copied to the CPU, written and let go, so one tensor is the most memory this
    takes. The tensors themselves are only read. The file appears whole, fsynced, or not at all.

    Args:
        tensors: (name, tensor) pairs, as from `state_dict().items()`; their order is the file's.
        metadata: strings for the header, beside the `{"format": "pt"}` that the libraries ask for.
        written: called after each tensor with its number of bytes; what it raises undoes the file.

    Raises:
        CheckpointError: a tensor is not finite, or becomes infinite in `dtype`.
    """
    entries = [
        (name, tensor, dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype)
        for name, tensor in tensors
    ]
    digest = hashlib.sha256()
    with atomic_file(path) as temporary, temporary.open("wb") as file:

        def append(content: bytes | memoryview) -> None:
            file.write(content)
            digest.update(content)

        append(_header(entries, {"format": "pt", **(metadata or {})}))
        for name, tensor, stored_dtype in entries:
            append(_stored_bytes(name, tensor, stored_dtype))  # unnamed, so that the copy goes before the next is made
            crash_point()
            if written is not None:
                written(tensor.numel() * stored_dtype.itemsize)
    return digest.hexdigest()


def _header(entries: Sequence[tuple[str, Tensor | LazyTensor, torch.dtype]], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, tensor, stored_dtype in entries:
        end = start + tensor.numel() * stored_dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[stored_dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    return struct.pack("<Q", len(text)) + text


def _stored_bytes(name: str, tensor: Tensor | LazyTensor, stored_dtype: torch.dtype) -> memoryview:
    source = tensor.read() if isinstance(tensor, LazyTensor) else tensor.detach()
    stored = source.to(stored_dtype)
    if stored.is_floating_point() and not bool(stored.isfinite().all()):  # host-device sync, once per tensor saved
        raise CheckpointError(_why_not_finite(name, source, stored_dtype))
    flat = stored.cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _why_not_finite(name: str, tensor: Tensor, stored_dtype: torch.dtype) -> str:
    if not bool(tensor.isfinite().all()):
        return f"{name} holds NaN or infinity, it is not saved"
    largest = tensor.abs().max().item()
    limit = torch.finfo(stored_dtype).max
    return f"{name} holds {largest:g}, {_dtype_word(stored_dtype)} ends at {limit:g}; save in a wider dtype"


def _dtype_word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def hash_weights(paths: Iterable[Path], *, read: Callable[[int], None] | None = None) -> str:
    """sha256 over the content of files: for one file what `sha256sum` prints, for several the hash of their hashes.

    The files' names and places do not count, their order does.

    Args:
        read: see `hash_file`.
    """
    hashes = [hash_file(path, read=read) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def hash_tensor(tensor: Tensor) -> str:
    """sha256 of a tensor's numbers, hex."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
