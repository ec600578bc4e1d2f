"""The files of a base model that a training leaves as they are, and how they get into a package; knows no UNet.

They are the base's own bytes: text encoders saved again by one version of transformers load as random numbers in
another, without an error.
"""

import errno
import fcntl
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from tuitrain.engine.base_model import BaseModel, Part
from tuitrain.engine.weight_files import PARTS, index_name, weight_name
from tuitrain.engine.weights import DTYPES_BY_NAME, FLOAT_DTYPES
from tuitrain.export.progress import WorkCount

FROZEN_PARTS = ("text_encoder", "text_encoder_2", "vae")
TOKENIZERS = ("tokenizer", "tokenizer_2")

_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_LICENCES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file until one of the two is written
_NO_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
_CHUNK_BYTES = 16 << 20

CopyKind = Literal["linked", "cloned", "copied"]


@dataclass(frozen=True)
class FrozenFiles:
    """What a package takes from its base.

    Args:
        copies: the source of each file, by its path in the package.
        texts: what is written anew, by its path in the package.
        originals: networks that lie inside a single file and have to be written as files of their own.
    """

    copies: Mapping[str, Path]
    texts: Mapping[str, str]
    originals: tuple[Part, ...]


def list_frozen_files(base: BaseModel, style: str | None) -> FrozenFiles:
    """The files of `base` that a diffusers folder needs beside UNet, scheduler and model_index.json.

    Args:
        style: the variant the weights are named by, None for plain names; the bytes are the base's either way.
    """
    copies: dict[str, Path] = {}
    texts: dict[str, str] = {}
    originals = []
    for name in FROZEN_PARTS:
        part = base.parts[name]
        if part.is_original:
            copies[f"{name}/config.json"] = base.tokenizer_root / name / "config.json"
            originals.append(part)
            continue
        copies[f"{name}/config.json"] = part.where / "config.json"
        targets = _target_names(part, style)
        copies |= {f"{name}/{target}": file for target, file in zip(targets, part.files, strict=True)}
        if len(targets) > 1:
            texts[f"{name}/{index_name(PARTS[name], style)}"] = _shard_index(part, targets)
    for name in TOKENIZERS:
        folder = base.tokenizer_root / name
        copies |= {f"{name}/{file}": folder / file for file in _TOKENIZER_FILES if (folder / file).is_file()}
    for path in sorted(base.tokenizer_root.iterdir()):
        if path.is_file() and path.name.upper().startswith(_LICENCES):
            copies[path.name] = path
    return FrozenFiles(copies, texts, tuple(originals))


def _target_names(part: Part, style: str | None) -> list[str]:
    stem = PARTS[part.name]
    if len(part.files) == 1:
        return [weight_name(stem, style)]
    whole = weight_name(stem, style).removesuffix(".safetensors")
    return [f"{whole}-{index + 1:05d}-of-{len(part.files):05d}.safetensors" for index in range(len(part.files))]


def _shard_index(part: Part, targets: list[str]) -> str:
    target_of = dict(zip(part.files, targets, strict=True))
    refs = part.tensors.values()
    num_bytes = sum(math.prod(ref.shape) * DTYPES_BY_NAME[ref.dtype].itemsize for ref in refs)
    weight_map = {ref.key: target_of[ref.path] for ref in sorted(refs, key=lambda ref: ref.key)}
    return json.dumps({"metadata": {"total_size": num_bytes}, "weight_map": weight_map}, indent=2) + "\n"


def style_of(part: Part) -> str | None:
    """The variant that the part's weight files are named by; None for plain names."""
    name = part.files[0].name
    found = re.fullmatch(rf"{PARTS[part.name]}\.(\w+?)(-\d+-of-\d+)?\.safetensors", name)
    return found[1] if found and not part.is_original else None


def dtype_of(part: Part) -> torch.dtype:
    """The narrowest dtype that holds every tensor of the part as it is stored: float16, bfloat16 or float32."""
    dtypes = {ref.dtype for ref in part.tensors.values() if ref.dtype in FLOAT_DTYPES}
    if dtypes == {"F16"}:
        return torch.float16
    return torch.bfloat16 if dtypes == {"BF16"} else torch.float32


def copy_file(source: Path, target: Path, *, link: bool, work: WorkCount) -> CopyKind:
    """Put the bytes of `source` at `target`, which must not exist; symbolic links are followed, none is made.

    Args:
        link: share the file itself where that is possible and `source` is not in a Hub cache, where an edit of one
            would reach every model that has the file.
        work: told the bytes as they are written.
    """
    if link and not _is_in_hub_cache(source):
        try:
            target.hardlink_to(source)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise
        else:
            work.add(source.stat().st_size)
            return "linked"
    with source.open("rb") as reader, target.open("xb") as writer:
        if _clone(reader.fileno(), writer.fileno()):
            work.add(os.fstat(reader.fileno()).st_size)
            return "cloned"
        while chunk := reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            work.add_bytes(len(chunk))
    work.add(0)
    return "copied"


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        return False
    return True


def _is_in_hub_cache(path: Path) -> bool:
    return path.is_symlink() or any(name.startswith("models--") for name in path.resolve().parts)
