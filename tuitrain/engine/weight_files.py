"""The file names that diffusers and transformers give to weights in a folder; reads no weight.

One style is a variant, or None for plain names. A file is whole, `{stem}.{variant}.safetensors`, or in shards that
`{stem}.safetensors.index.{variant}.json` lists.
"""

import json
import struct
from pathlib import Path
from typing import Any

from tuitrain.errors import ModelError

PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
"""The networks of a base model, each with the stem of its file names."""

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def styles(hf_variant: str | None) -> tuple[str | None, ...]:
    """The styles to look for, in order: the one asked for, plain, fp16."""
    return tuple(dict.fromkeys((hf_variant, None, "fp16")))


def find_weight_files(folder: Path, stem: str, style: str | None) -> tuple[Path, ...] | None:
    """The weight files of `folder` in one style, shards in order; None where it has none.

    Raises:
        ModelError: the list of shards is damaged, or a shard it lists is not there.
    """
    whole = folder / weight_name(stem, style)
    if whole.is_file():
        return (whole,)
    index = folder / index_name(stem, style)
    return _read_shard_index(index) if index.is_file() else None


def weight_name(stem: str, style: str | None) -> str:
    """`model.fp16.safetensors`."""
    return f"{stem}.{style}.safetensors" if style else f"{stem}.safetensors"


def index_name(stem: str, style: str | None) -> str:
    """`model.safetensors.index.fp16.json`."""
    return f"{stem}.safetensors.index.{style}.json" if style else f"{stem}.safetensors.index.json"


def shard_pattern(stem: str, style: str | None) -> str:
    """A glob over the shards: `model.fp16-*.safetensors`."""
    return f"{stem}.{style}-*.safetensors" if style else f"{stem}-*.safetensors"


def _read_shard_index(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map, it lists no shards")
    names = sorted({str(name) for name in weight_map.values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise ModelError(f"{index} lists {outside[0]}, a shard outside its folder")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise ModelError(
            f"{index.parent} lacks {len(absent)} of its {len(names)} shards: {', '.join(absent[:3])}",
            hint="the download or copy stopped early; fetch it again",
        )
    return tuple(index.parent / name for name in names)


def read_shapes(path: Path, prefix: str = "") -> list[list[int]]:
    """Shapes of the tensors of the safetensors file at `path` whose names start with `prefix`, by its header alone.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ModelError(f"{path} is not a safetensors file")
            header = json.loads(file.read(length))
        return [
            [int(side) for side in tensor["shape"]]
            for name, tensor in header.items()
            if name != "__metadata__" and name.startswith(prefix)
        ]
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (struct.error, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is not a complete safetensors file") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        ModelError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, it must be a JSON object")
    return content
