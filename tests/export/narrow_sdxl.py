"""Builds an SDXL with every tensor name of the real one and the widths that clients know it by, but few channels.

Blocks, depths and text embeddings (768 and 1280 wide, 2048 together) are those of SDXL base 1.0; only the UNet's
channels, the text encoders' depth and the VAE are small. Knows nothing of what reads it.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.tiny_sdxl import build_tiny_sdxl, write_text_encoder
from tuitrain.engine.base_model import SDXL_BASE
from tuitrain.engine.weight_files import read_json

TEXT_1 = {"hidden_size": 768, "intermediate_size": 64, "projection_dim": 768, "hidden_act": "quick_gelu"}
TEXT_2 = {"hidden_size": 1280, "intermediate_size": 64, "projection_dim": 1280, "hidden_act": "gelu"}


def narrow_unet_config(channels: tuple[int, int, int]) -> dict[str, Any]:
    """SDXL's UNet config with other channels."""
    config = read_json(SDXL_BASE / "unet" / "config.json")
    return {**config, "block_out_channels": channels, "attention_head_dim": [4, 4, 4]}


def build_narrow_sdxl(folder: Path, *, channels: tuple[int, int, int] = (32, 64, 96), seed: int = 0) -> Path:
    """Write the model into `folder` as float32 safetensors in diffusers layout and return `folder`.

    Args:
        channels: of the UNet's three resolutions, three different multiples of 32, so that all shortcuts exist.
    """
    build_tiny_sdxl(folder, seed=seed)
    config = narrow_unet_config(channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
        write_text_encoder(folder / "text_encoder", CLIPTextModel, TEXT_1)
        write_text_encoder(folder / "text_encoder_2", CLIPTextModelWithProjection, TEXT_2)
    return folder
