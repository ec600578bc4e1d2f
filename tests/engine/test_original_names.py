"""The names of the original single-file layout, against diffusers' converter on the true SDXL architecture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tuitrain.engine.base_model import SDXL_BASE, hub_tensor_name
from tuitrain.engine.original_names import PREFIXES, original_tensor
from tuitrain.engine.weight_files import read_json


def build_text_encoder_2(config: dict[str, Any]) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(CLIPTextConfig(**config))


def convert_text_encoder_2(checkpoint: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    with torch.device("meta"):
        network = build_text_encoder_2(config)
    return convert_open_clip_checkpoint(network, checkpoint, prefix=PREFIXES["text_encoder_2"])


@pytest.mark.parametrize(
    ("part", "build", "convert", "num_tensors"),
    [
        ("unet", UNet2DConditionModel.from_config, convert_ldm_unet_checkpoint, 1680),
        ("vae", AutoencoderKL.from_config, convert_ldm_vae_checkpoint, 248),
        ("text_encoder_2", build_text_encoder_2, convert_text_encoder_2, 517),
    ],
)
def test_every_name_of_sdxl_is_where_diffusers_looks_for_it(
    part: str, build: Callable[..., Any], convert: Callable[..., dict[str, Tensor]], num_tensors: int
) -> None:
    config = read_json(SDXL_BASE / part / "config.json")
    with torch.device("meta"):
        hub_tensors = {hub_tensor_name(part, name): tensor for name, tensor in build(config).state_dict().items()}
    assert len(hub_tensors) == num_tensors

    checkpoint: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}  # those stored as they are, where identity tells
    for name, tensor in hub_tensors.items():
        original = original_tensor(part, name, config)
        key = PREFIXES[part] + original.name
        if original.third is not None:
            checkpoint[key] = torch.empty((3 * tensor.shape[0], *tensor.shape[1:]), device="meta")
        else:
            assert key not in checkpoint
            checkpoint[key] = whole[name] = tensor.T if original.is_transposed else tensor

    converted = convert(dict(checkpoint), config=config)
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: tensor.shape for name, tensor in hub_tensors.items()
    }
    moved = [name for name, tensor in whole.items() if converted[name] is not tensor]
    assert all("attentions.0.to_" in name or name == "text_projection.weight" for name in moved)


def test_names_of_the_original_files_are_spelled_as_published() -> None:
    unet = read_json(SDXL_BASE / "unet" / "config.json")
    vae = read_json(SDXL_BASE / "vae" / "config.json")
    spelled = {
        ("unet", "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k.weight"): (
            "input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight"
        ),
        ("unet", "up_blocks.0.upsamplers.0.conv.bias"): "output_blocks.2.2.conv.bias",
        ("unet", "mid_block.resnets.1.time_emb_proj.weight"): "middle_block.2.emb_layers.1.weight",
        ("vae", "decoder.up_blocks.3.resnets.0.conv_shortcut.weight"): "decoder.up.0.block.0.nin_shortcut.weight",
        ("text_encoder", "text_model.final_layer_norm.bias"): "text_model.final_layer_norm.bias",
        ("text_encoder_2", "text_model.encoder.layers.31.self_attn.k_proj.bias"): (
            "transformer.resblocks.31.attn.in_proj_bias"
        ),
    }
    configs = {"unet": unet, "vae": vae, "text_encoder": {}, "text_encoder_2": {}}
    assert {(part, name): original_tensor(part, name, configs[part]).name for part, name in spelled} == spelled
