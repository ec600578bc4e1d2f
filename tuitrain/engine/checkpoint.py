"""The files of a checkpoint: the UNet alone or a whole pipeline; knows neither when to save nor what to prune."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import diffusers
import torch
from torch import Tensor

from tuitrain.atomic import write_text_atomic
from tuitrain.engine.base_model import BaseModel, hub_tensor_name
from tuitrain.engine.diffusion import NoiseSchedule
from tuitrain.engine.sdxl import SDXLModels, load_network
from tuitrain.engine.weights import write_safetensors

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FROZEN_WEIGHTS = {
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


def num_saved_bytes(models: SDXLModels, *, dtype: torch.dtype, with_frozen_parts: bool) -> int:
    """What the tensors of a checkpoint take on disk."""
    networks = [models.unet]
    if with_frozen_parts:
        networks += [models.vae, models.text_encoder, models.text_encoder_2]
    tensors = [tensor for network in networks for tensor in network.state_dict().values()]
    return sum(t.numel() * (dtype if t.dtype.is_floating_point else t.dtype).itemsize for t in tensors)


def write_unet(
    folder: Path,
    models: SDXLModels,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype,
    written: Callable[[int], None],
) -> dict[str, str]:
    """Write `unet/` as diffusers lays it out, tensor by tensor; the live weights are only read.

    Args:
        tensors: the (name, tensor) pairs to save under the UNet's names.
        dtype: of the file.
        written: called after each tensor with its number of bytes.

    Returns:
        The sha256 of the weight file, by its path in `folder`.
    """
    (folder / "unet").mkdir()
    models.unet.save_config(folder / "unet")
    return {UNET_WEIGHTS: write_safetensors(folder / UNET_WEIGHTS, tensors, dtype=dtype, written=written)}


def write_frozen_parts(
    folder: Path,
    models: SDXLModels,
    schedule: NoiseSchedule,
    *,
    dtype: torch.dtype,
    written: Callable[[int], None],
) -> dict[str, str]:
    """Write all of an SDXL pipeline but its UNet, with a scheduler config that says what was trained.

    The tensors come from the base model's files, not from memory, where weight_dtype may have rounded them, and keep
    the names they have on the Hub, which every version of transformers reads.

    Args:
        written: called after each tensor with its number of bytes.

    Returns:
        The sha256 of each weight file, by its path in `folder`.
    """
    hashes = {}
    for name, file_name in FROZEN_WEIGHTS.items():
        (folder / name).mkdir()
        _write_json(folder / name / "config.json", models.base.parts[name].config)
        weights = load_network(models.base, name, dtype=dtype).state_dict()
        tensors = [(hub_tensor_name(name, key), tensor) for key, tensor in weights.items()]
        path = folder / name / file_name
        hashes[f"{name}/{file_name}"] = write_safetensors(path, tensors, dtype=dtype, written=written)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(models.base.tokenizer_root / name, folder / name)
    (folder / "scheduler").mkdir()
    scheduler_config = trained_scheduler_config(
        models.base.scheduler_config,
        prediction_type=schedule.prediction_type,
        zero_terminal_snr=schedule.zero_terminal_snr,
    )
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config)
    _write_json(folder / "model_index.json", pipeline_index(models.base))
    return hashes


def trained_scheduler_config(
    scheduler_config: Mapping[str, object], *, prediction_type: str, zero_terminal_snr: bool
) -> dict[str, object]:
    """The base model's scheduler config, changed where the training differed from it."""
    config = {**scheduler_config, "prediction_type": prediction_type}
    if zero_terminal_snr:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    elif config.get("rescale_betas_zero_snr"):
        config["rescale_betas_zero_snr"] = False
    return config


def pipeline_index(base: BaseModel) -> dict[str, object]:
    """The model_index.json of an SDXL pipeline made of the networks of `base`."""
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": diffusers.__version__,
        "force_zeros_for_empty_prompt": base.force_zeros_for_empty_prompt,
        "scheduler": ["diffusers", base.scheduler_config.get("_class_name", "EulerDiscreteScheduler")],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _write_json(path: Path, values: dict[str, object]) -> None:
    write_text_atomic(path, json.dumps(values, indent=2) + "\n")
