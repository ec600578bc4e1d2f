"""Builds a complete SDXL of random weights, small enough for a CPU test; knows nothing of tuitrain.

Same classes and block types as SDXL base 1.0, the file layout and tensor names of its Hub repository, and every size
different from every other where the architecture allows it, so that a mixed-up axis shows. VAE factor 4, not 8.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

START, END = "<|startoftext|>", "<|endoftext|>"

MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0.dev0",
    "force_zeros_for_empty_prompt": True,
    "add_watermarker": None,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}

UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "norm_num_groups": 16,
    "cross_attention_dim": 32 + 48,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 40,
}

VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "sample_size": 64,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}

# The ids 0, 1 and 2 are those of SDXL's own configs; CLIP reads 2 as "the end is the highest id of the sequence".
TEXT: dict[str, Any] = {
    "vocab_size": 514,
    "max_position_embeddings": 77,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}
TEXT_1 = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 32, "hidden_act": "quick_gelu"}
TEXT_2 = {"hidden_size": 48, "intermediate_size": 96, "projection_dim": 40, "hidden_act": "gelu"}


def build_tiny_sdxl(folder: Path, *, seed: int = 0) -> Path:
    """Write the model into `folder` as float32 safetensors in diffusers layout and return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "model_index.json", MODEL_INDEX)
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_tokenizer(folder / "tokenizer", pad_token=END)
    _write_tokenizer(folder / "tokenizer_2", pad_token="!")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
        AutoencoderKL(**VAE).save_pretrained(folder / "vae")
        write_text_encoder(folder / "text_encoder", CLIPTextModel, TEXT_1)
        write_text_encoder(folder / "text_encoder_2", CLIPTextModelWithProjection, TEXT_2)
    return folder


def write_text_encoder(folder: Path, model_class: type[CLIPTextModel], sizes: dict[str, Any]) -> None:
    model = model_class(CLIPTextConfig(**TEXT, **sizes))
    # The Hub's files carry these names whatever the installed transformers calls the modules.
    tensors = {
        name if name.startswith("text_") else f"text_model.{name}": tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("position_ids")
    }
    _write_json(
        folder / "config.json",
        {"architectures": [model_class.__name__], "model_type": "clip_text_model", **TEXT, **sizes},
    )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(folder: Path, *, pad_token: str) -> None:
    """CLIP's byte-level vocabulary without merges: one token per byte, and one per byte that ends a word."""
    characters = sorted(ByteLevel.alphabet())
    tokens = [*characters, *(f"{character}</w>" for character in characters), START, END]
    tokens.remove("!")
    tokens.insert(0, "!")  # id 0 is the second encoder's padding
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    _write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special},
    )


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
