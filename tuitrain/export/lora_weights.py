"""A LoRA file on a UNet: which weights it changes, and the changed weights; knows no prompt and no picture.

For each layer W becomes W + alpha / r * B A, with A `lora_down` (r, in[, kh, kw]), B `lora_up` (out, r[, 1, 1]) and
alpha = r where the file has none. Both spellings of the layers' names are read; what is left over is an error, because
a LoRA that is applied in part looks like a bad one.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tuitrain.engine.base_model import Part, few
from tuitrain.engine.sdxl import build_network
from tuitrain.engine.weights import FLOAT_DTYPES, LazyTensor, TensorRef, read_header
from tuitrain.errors import ConfigError
from tuitrain.export.lora_modules import lora_key

_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
_TEXT_ENCODERS = ("lora_te_", "lora_te1_", "lora_te2_")


def apply_lora(
    path: Path, unet: Part, tensors: Mapping[str, LazyTensor], *, device: torch.device
) -> dict[str, LazyTensor]:
    """`tensors` of `unet` with the LoRA at `path` applied when they are read, in float32.

    Everything but the numbers is checked here, and the file stays open.

    Args:
        device: where the mathematics is done and the changed tensors are.

    Raises:
        ConfigError: it is no LoRA of this UNet; the message names the keys.
        ModelError: it is no safetensors file.
    """
    header = read_header(path)
    file = safe_open(path, framework="pt")
    changes = {
        weight: _open_change(path, file, key, parts, tensors[weight].shape)
        for weight, (key, parts) in _by_weight(path, header, unet).items()
    }
    changed = {
        name: LazyTensor(tensors[name].shape, torch.float32, partial(_changed, tensors[name], change, device))
        for name, change in changes.items()
    }
    return {**tensors, **changed}


@dataclass(frozen=True)
class _Change:
    """scale * B A, in the file.

    Args:
        file: an open safetensors file.
        down: the name of A there.
        up: the name of B there.
        scale: alpha / r.
    """

    file: Any
    down: str
    up: str
    scale: float

    def read(self, device: torch.device) -> Tensor:
        """(out, in * kh * kw) in float32."""
        B, A = (self.file.get_tensor(key).to(device, torch.float32).flatten(1) for key in (self.up, self.down))
        BA: Tensor = B @ A
        return self.scale * BA


def _changed(base: LazyTensor, change: _Change, device: torch.device) -> Tensor:
    W = base.read().to(device, torch.float32)
    return W + change.read(device).reshape(W.shape)


def _by_weight(path: Path, header: Mapping[str, TensorRef], unet: Part) -> dict[str, tuple[str, dict[str, TensorRef]]]:
    """The beginning of its keys and its tensors by suffix, for each changed weight of the UNet."""
    found: dict[str, dict[str, TensorRef]] = defaultdict(dict)
    strangers = []
    for key, ref in header.items():
        suffix = next((suffix for suffix in (_DOWN, _UP, _ALPHA) if key.endswith(suffix)), None)
        if suffix is None:
            strangers.append(key)
        else:
            found[key.removesuffix(suffix)][suffix] = ref
    if not found:
        raise ConfigError(f"{path} is no LoRA, it holds {few(sorted(header)) or 'nothing'}", hint=_HINT)
    if strangers:
        raise ConfigError(f"{path} holds more than a LoRA's up, down and alpha: {few(sorted(strangers))}", hint=_HINT)
    if texts := sorted(key for key in found if key.startswith(_TEXT_ENCODERS)):
        raise ConfigError(
            f"{path} changes the text encoders too, which are not compared: {few(texts)}",
            hint="give a LoRA of the UNet alone",
        )
    weights = _weights_by_key(unet)
    if unknown := sorted(key for key in found if key not in weights):
        raise ConfigError(f"the UNet has no layer for these keys of {path}: {few(unknown)}", hint=_HINT)
    by_weight: dict[str, tuple[str, dict[str, TensorRef]]] = {}
    for key, parts in found.items():
        weight = weights[key]
        if weight in by_weight:
            raise ConfigError(f"{path} names one layer twice: {by_weight[weight][0]}, {key}", hint=_HINT)
        by_weight[weight] = (key, parts)
    return by_weight


_HINT = "give a LoRA for this UNet, such as `tuitrain extract-lora` writes"


def _weights_by_key(unet: Part) -> dict[str, str]:
    """The weight of each linear layer and convolution by both names it may have in a LoRA."""
    with torch.device("meta"):
        network = build_network("unet", unet.config)
    paths = [path for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    by_diffusers_key = {f"lora_unet_{path.replace('.', '_')}": f"{path}.weight" for path in paths}
    return by_diffusers_key | {lora_key(f"{path}.weight", unet.config): f"{path}.weight" for path in paths}


def _open_change(path: Path, file: Any, key: str, parts: Mapping[str, TensorRef], shape: tuple[int, ...]) -> _Change:
    if missing := [suffix for suffix in (_DOWN, _UP) if suffix not in parts]:
        raise ConfigError(f"{path} has no {key}{missing[0]}", hint="make or fetch the LoRA again")
    if integers := [ref.key for ref in parts.values() if ref.dtype not in FLOAT_DTYPES]:
        raise ConfigError(f"{path} holds no floating-point numbers in {few(integers)}")
    down, up = parts[_DOWN], parts[_UP]
    rank = down.shape[0] if down.shape else 0
    wanted_down, wanted_up = (rank, *shape[1:]), (shape[0], rank, *(1,) * (len(shape) - 2))
    if rank < 1 or (down.shape, up.shape) != (wanted_down, wanted_up):
        raise ConfigError(
            f"{key} in {path} does not fit: lora_down {list(down.shape)} and lora_up {list(up.shape)}"
            f" for a weight {list(shape)}",
            hint=_HINT,
        )
    return _Change(file, down.key, up.key, _alpha(path, file, parts.get(_ALPHA), rank) / rank)


def _alpha(path: Path, file: Any, ref: TensorRef | None, rank: int) -> float:
    if ref is None:
        return float(rank)
    alpha = file.get_tensor(ref.key)
    if alpha.numel() != 1:
        raise ConfigError(f"{ref.key} in {path} has {alpha.numel()} numbers, an alpha is one", hint=_HINT)
    return float(alpha)
