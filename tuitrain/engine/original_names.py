"""The names SDXL's tensors have in an original single file, by the name they have on the Hub; knows no file.

The original layout is that of Stability AI's generative-models: the UNet under `model.diffusion_model.`, the VAE under
`first_stage_model.`, the text encoders under `conditioner.embedders.{0,1}.`. Names here are without these prefixes.
diffusers converts that way only, and drops tensors it does not know; asking name by name finds every one that is
missing or too many.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}


@dataclass(frozen=True)
class OriginalTensor:
    """Where an original file keeps a tensor.

    Args:
        name: its name there, without the part's prefix.
        third: it is this third of the rows of a matrix that holds query, key and value.
        is_transposed: rows and columns change places.
    """

    name: str
    third: int | None = None
    is_transposed: bool = False


def original_tensor(part: str, name: str, config: Mapping[str, Any]) -> OriginalTensor:
    """Where the original layout keeps tensor `name` of `part`, whose diffusers config is `config`."""
    if part == "unet":
        return OriginalTensor(_unet_name(name, config))
    if part == "vae":
        return OriginalTensor(_vae_name(name, config))
    if part == "text_encoder_2":
        return _open_clip_tensor(name)
    return OriginalTensor(name)


_UNET_FIXED = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}
_UNET_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}


def _unet_name(name: str, config: Mapping[str, Any]) -> str:
    layers: int = config["layers_per_block"]
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
        side, kind, rest = match[1], match[3], match[5]
        block, layer = int(match[2]), int(match[4])
        if side == "down":
            # input_blocks.0 is conv_in; then each block has its layers and a downsampler.
            place = f"input_blocks.{1 + block * (layers + 1) + (layers if kind == 'downsamplers' else layer)}"
            position = 1 if kind == "attentions" else 0
            rest = rest.replace("conv.", "op.", 1) if kind == "downsamplers" else rest
        else:
            # Each block has one layer more than on the way down; the upsampler sits in the last layer's place.
            place = f"output_blocks.{block * (layers + 1) + (layers if kind == 'upsamplers' else layer)}"
            has_attention = config["up_block_types"][block].startswith("CrossAttn")
            position = {"resnets": 0, "attentions": 1, "upsamplers": 2 if has_attention else 1}[kind]
        return f"{place}.{position}.{_renamed(rest, _UNET_RESNET) if kind == 'resnets' else rest}"
    fixed = _renamed(name, _UNET_FIXED)
    return _renamed_after(fixed, ("middle_block.0.", "middle_block.2."), _UNET_RESNET)


_VAE_FIXED = {
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.attentions.0.": "mid.attn_1.",
    "mid_block.resnets.1.": "mid.block_2.",
    "conv_norm_out.": "norm_out.",
}
_VAE_ATTENTION = {"group_norm.": "norm.", "to_q.": "q.", "to_k.": "k.", "to_v.": "v.", "to_out.0.": "proj_out."}


def _vae_name(name: str, config: Mapping[str, Any]) -> str:
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name  # quant_conv, post_quant_conv
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", rest):
        block = int(match[2])
        if match[1] == "up":  # counted from the latents here, from the pixels there
            block = len(config["block_out_channels"]) - 1 - block
        inside = {
            "resnets": f"block.{match[4]}.{match[5].replace('conv_shortcut.', 'nin_shortcut.')}",
            "downsamplers": f"downsample.{match[5]}",
            "upsamplers": f"upsample.{match[5]}",
        }[match[3]]
        return f"{side}.{match[1]}.{block}.{inside}"
    return f"{side}.{_renamed_after(_renamed(rest, _VAE_FIXED), ('mid.attn_1.',), _VAE_ATTENTION)}"


_OPEN_CLIP_FIXED = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}


def _open_clip_tensor(name: str) -> OriginalTensor:
    if name == "text_projection.weight":
        return OriginalTensor("text_projection", is_transposed=True)
    if match := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)", name):
        layer = f"transformer.resblocks.{match[1]}"
        if attention := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", match[2]):
            return OriginalTensor(f"{layer}.attn.in_proj_{attention[2]}", third="qkv".index(attention[1]))
        return OriginalTensor(f"{layer}.{_renamed(match[2], _OPEN_CLIP_LAYER)}")
    return OriginalTensor(_OPEN_CLIP_FIXED.get(name, name))


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """`name` with its beginning replaced where `prefixes` has it."""
    for prefix, original in prefixes.items():
        if name.startswith(prefix):
            return original + name.removeprefix(prefix)
    return name


def _renamed_after(name: str, places: tuple[str, ...], prefixes: Mapping[str, str]) -> str:
    """`name` with what follows one of `places` renamed."""
    for place in places:
        if name.startswith(place):
            return place + _renamed(name.removeprefix(place), prefixes)
    return name
