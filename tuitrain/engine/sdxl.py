"""The networks of SDXL: loading them, a caption to its embeddings, an image to its latents; knows no training.

Shapes: n captions, B images, (H, W) pixels, (h, w) latent height and width, D1 and D2 the widths of the text encoders,
P the width of the pooled embedding.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn

from tuitrain.engine.base_model import BaseModel, Part, open_base_model
from tuitrain.engine.quiet import quiet_libraries
from tuitrain.engine.weights import TensorRef, hash_weights, open_tensors, read_tensor
from tuitrain.errors import ModelError


@dataclass
class SDXLModels:
    """A base model in memory, on the CPU, in eval mode.

    The hashes are of content, so that a changed model never meets what an older one left in a cache: `vae_hash` of the
    VAE's tensors and config, `text_hash` of both encoders' tensors (in the dtype they run in), configs and tokenizers.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    text_encoder_2: Any
    tokenizer: Any
    tokenizer_2: Any
    scheduler_config: dict[str, Any]
    base_model: str
    base_path: Path | None
    vae_hash: str
    text_hash: str
    unet_files: tuple[Path, ...]
    force_zeros_for_empty_prompt: bool

    @cached_property
    def unet_hash(self) -> str:
        """Hash of the UNet's weight files, as they are on disk at the first call; about 1 GB a second."""
        return hash_weights(self.unet_files)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of an image side per latent pixel: 8 in SDXL."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


def load_sdxl(
    model: str,
    *,
    hf_variant: str | None = "fp16",
    vae_model: str | None = None,
    model_config_dir: str | None = None,
    weight_dtype: torch.dtype = torch.float32,
) -> SDXLModels:
    """Read a base model into memory, every tensor checked.

    Args:
        model: a diffusers folder, a single `.safetensors` in the original SDXL layout, or a name on the Hub.
        hf_variant: the style of file name to prefer; then plain names, then `fp16`.
        vae_model: a folder or Hub name whose VAE replaces the model's own.
        model_config_dir: diffusers folder with the configs and tokenizers of a single-file `model`; None is SDXL 1.0's.
        weight_dtype: of the UNet and the text encoders. The VAE is float32: it overflows in float16.

    Raises:
        ModelError: the model is not there, incomplete, damaged, or not an SDXL base model.
    """
    quiet_libraries()
    base = open_base_model(model, hf_variant=hf_variant)
    vae_part = base.parts["vae"]
    text_digest = hashlib.sha256()
    vae_digest = hashlib.sha256()
    text_encoder = _load_text_encoder(base, "text_encoder", weight_dtype, text_digest)
    text_encoder_2 = _load_text_encoder(base, "text_encoder_2", weight_dtype, text_digest)
    return SDXLModels(
        unet=_load_part(base.parts["unet"], _empty_unet, weight_dtype, None),
        vae=_load_part(vae_part, _empty_vae, torch.float32, vae_digest),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=_load_tokenizer(base.tokenizer_root / "tokenizer", text_digest),
        tokenizer_2=_load_tokenizer(base.tokenizer_root / "tokenizer_2", text_digest),
        scheduler_config=base.scheduler_config,
        base_model=model,
        base_path=base.folder,
        vae_hash=vae_digest.hexdigest(),
        text_hash=text_digest.hexdigest(),
        unet_files=base.parts["unet"].files,
        force_zeros_for_empty_prompt=base.force_zeros_for_empty_prompt,
    )


@torch.no_grad()
def encode_prompt(models: SDXLModels, captions: Sequence[str], *, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Turn captions into what the UNet is conditioned on.

    The second to last hidden states of both encoders, without final norm, side by side, and the second encoder's
    projection of the end token. Captions are padded and cut to 77 tokens.

    Args:
        captions: n of them; "" is encoded like any other.
        device: where the text encoders are and the result will be.

    Returns:
        prompt_embeds (n, 77, D1 + D2) and pooled_prompt_embeds (n, P), in the encoders' dtype.

    Source: diffusers StableDiffusionXLPipeline.encode_prompt.
    """
    hidden_states = []
    for tokenizer, text_encoder in (
        (models.tokenizer, models.text_encoder),
        (models.tokenizer_2, models.text_encoder_2),
    ):
        tokens = tokenizer(
            list(captions),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        output = text_encoder(tokens.input_ids.to(device), output_hidden_states=True)
        hidden_states.append(output.hidden_states[-2])
    return torch.cat(hidden_states, dim=-1), output.text_embeds


@torch.no_grad()
def encode_image(vae: Any, pixel_values: Tensor, generator: torch.Generator | None) -> Tensor:
    """Turn pixels into the latents the UNet learns.

    Args:
        vae: in float32, on the device of `pixel_values`.
        pixel_values: (B, 3, H, W) in [-1, 1].
        generator: of the VAE's sampling noise; a CPU generator gives the same noise on every device.

    Returns:
        latents (B, 4, h, w) in float32, shifted and scaled as the VAE's config says.
    """
    distribution = vae.encode(pixel_values.float()).latent_dist
    latents: Tensor = distribution.sample(generator).float()
    config = vae.config
    if getattr(config, "latents_mean", None) is not None:
        mean = torch.tensor(config.latents_mean, device=latents.device).view(1, -1, 1, 1)
        std = torch.tensor(config.latents_std, device=latents.device).view(1, -1, 1, 1)
        return (latents - mean) * config.scaling_factor / std
    return (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


def _empty_unet(config: dict[str, Any]) -> nn.Module:
    model: nn.Module = diffusers.UNet2DConditionModel.from_config(config)
    return model


def _empty_vae(config: dict[str, Any]) -> nn.Module:
    model: nn.Module = diffusers.AutoencoderKL.from_config(config)
    return model


def _load_text_encoder(base: BaseModel, name: str, dtype: torch.dtype, digest: "hashlib._Hash") -> nn.Module:
    model_class = transformers.CLIPTextModel if name == "text_encoder" else transformers.CLIPTextModelWithProjection

    def empty(config: dict[str, Any]) -> nn.Module:
        model: nn.Module = model_class(transformers.CLIPTextConfig(**config))
        return model

    return _load_part(base.parts[name], empty, dtype, digest)


def _load_part(
    part: Part,
    build_empty: Callable[[dict[str, Any]], nn.Module],
    dtype: torch.dtype,
    digest: "hashlib._Hash | None",
) -> nn.Module:
    with init_empty_weights(include_buffers=False):
        model = build_empty(part.config)
    refs = _match(model, part)
    tensors = {}
    for path, group in groupby(sorted(refs.items(), key=lambda item: item[1].path), key=lambda item: item[1].path):
        with open_tensors(path) as file:
            for name, ref in group:
                tensors[name] = read_tensor(file, ref).to(dtype, copy=True)
    if digest is not None:
        for name in sorted(tensors):
            digest.update(name.encode())
            digest.update(memoryview(tensors[name].reshape(-1).view(torch.uint8).numpy()))
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _match(model: nn.Module, part: Part) -> dict[str, TensorRef]:
    expected = {_hub_name_of(name) if part.name.startswith("text") else name: name for name in model.state_dict()}
    found = {
        _hub_name_of(name) if part.name.startswith("text") else name: ref
        for name, ref in part.tensors.items()
        if not name.endswith("position_ids")
    }
    if expected.keys() != found.keys():
        raise ModelError(f"{part.where} does not hold the tensors of its config")
    return {expected[name]: ref for name, ref in found.items()}


def _hub_name_of(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def _load_tokenizer(folder: Path, digest: "hashlib._Hash") -> Any:
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
