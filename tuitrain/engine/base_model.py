"""Where the parts of an SDXL base model lie: a diffusers folder, a Hub snapshot, a single file; builds no network.

Everything a header or a config can tell is checked here, before the first tensor is read.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuitrain.engine.weights import TensorRef, read_header
from tuitrain.errors import ModelError

PART_NAMES = ("unet", "vae", "text_encoder", "text_encoder_2")
_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}


@dataclass(frozen=True)
class Part:
    """One network of the base model, not yet read.

    Args:
        name: "unet", "vae", "text_encoder" or "text_encoder_2".
        where: the folder or file, for messages.
        config: its diffusers or transformers config.
        tensors: by the Hub's names, whatever the file calls them.
        files: what to hash to know whether it changed.
    """

    name: str
    where: Path
    config: dict[str, Any]
    tensors: dict[str, TensorRef]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class BaseModel:
    """The parts of one base model, and the folder that holds its tokenizers."""

    parts: Mapping[str, Part]
    scheduler_config: dict[str, Any]
    force_zeros_for_empty_prompt: bool
    tokenizer_root: Path
    folder: Path | None


def open_base_model(model: str, *, hf_variant: str | None) -> BaseModel:
    """Find the parts of `model` and check that they are SDXL's.

    Raises:
        ModelError: it is not there, incomplete, damaged, or another architecture.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _open_folder(path, hf_variant)
    raise ModelError(f"there is no model at {model}")


def _open_folder(folder: Path, hf_variant: str | None) -> BaseModel:
    index = _read_json(folder / "model_index.json")
    return BaseModel(
        parts={name: open_part(folder / name, name, hf_variant) for name in PART_NAMES},
        scheduler_config=_read_json(folder / "scheduler" / "scheduler_config.json"),
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
        tokenizer_root=folder,
        folder=folder,
    )


def open_part(folder: Path, name: str, hf_variant: str | None) -> Part:
    """The network in `folder`, from the first of its files in style `hf_variant`, without variant, `fp16`."""
    files = _weight_files(folder, _STEMS[name], hf_variant)
    tensors: dict[str, TensorRef] = {}
    for file in files:
        tensors.update(read_header(file))
    return Part(name, folder, _read_json(folder / "config.json"), tensors, files)


def _weight_files(folder: Path, stem: str, hf_variant: str | None) -> tuple[Path, ...]:
    for variant in dict.fromkeys((hf_variant, None, "fp16")):
        suffix = f".{variant}" if variant else ""
        whole = folder / f"{stem}{suffix}.safetensors"
        if whole.exists():
            return (whole,)
        shard_index = folder / f"{stem}.safetensors.index{suffix}.json"
        if shard_index.exists():
            names = sorted(set(_read_json(shard_index)["weight_map"].values()))
            return tuple(folder / name for name in names)
    raise ModelError(f"{folder} has no {stem}.safetensors")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object")
    return content


def hub_name(model: str) -> str | None:
    """`model` where it can be a repository on the Hugging Face Hub, `owner/name`, else None."""
    return model if re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", model) else None
