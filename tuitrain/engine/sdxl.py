"""The networks of SDXL: loading them, a caption to its embeddings, an image to its latents; knows no training.

Shapes: n captions, B images, (H, W) pixels, (h, w) latent height and width, D1 and D2 the widths of the text encoders,
P the width of the pooled embedding.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn

from tuitrain.engine.base_model import BaseModel, Part, open_base_model
from tuitrain.engine.part_loader import hash_network, load_part, num_stored_bytes
from tuitrain.engine.quiet import quiet_libraries
from tuitrain.engine.weights import hash_weights
from tuitrain.errors import ModelError


@dataclass(kw_only=True)
class TextModels:
    """What turns captions into embeddings, on the CPU, in eval mode."""

    text_encoder: Any
    text_encoder_2: Any
    tokenizer: Any
    tokenizer_2: Any


@dataclass(kw_only=True)
class SDXLModels(TextModels):
    """A base model in memory, on the CPU, in eval mode.

    The hashes are of content, so that a changed model never meets what an older one left in a cache: `vae_hash` of the
    VAE's tensors and config, `text_hash` of both encoders' tensors (in the dtype they run in), configs and tokenizers.
    """

    unet: Any
    vae: Any
    scheduler_config: dict[str, Any]
    base: BaseModel
    vae_hash: str
    text_hash: str

    @cached_property
    def unet_hash(self) -> str:
        """Hash of the UNet's weight files, as they are on disk at the first call; about 1 GB a second."""
        return hash_weights(self.base.parts["unet"].files)

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
    unet_dtype: torch.dtype = torch.float32,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> SDXLModels:
    """Read a base model into memory, every tensor checked.

    Args:
        model: a diffusers folder, a single `.safetensors` in the original SDXL layout, or a name on the Hub.
        hf_variant: the style of file name to prefer; then plain names, then `fp16`.
        vae_model: a folder or Hub name whose VAE replaces the model's own.
        model_config_dir: diffusers folder with the configs and tokenizers of a single-file `model`; None is SDXL 1.0's.
        weight_dtype: of the text encoders. The VAE is float32: it overflows in float16.
        unet_dtype: of the UNet, read in this dtype without a detour through another.
        report: called with (done, total) bytes after every tensor; what it raises passes through.

    Raises:
        ModelError: the model is not there, incomplete, damaged, or not an SDXL base model.
    """
    quiet_libraries()
    base = open_base_model(model, hf_variant=hf_variant, vae_model=vae_model, model_config_dir=model_config_dir)
    total = sum(map(num_stored_bytes, base.parts.values()))
    done = 0

    def read(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        report(done, total)

    text = load_text_models(base, dtype=weight_dtype, read=read)
    vae = load_network(base, "vae", dtype=torch.float32, read=read)
    unet = load_network(base, "unet", dtype=unet_dtype, read=read)
    return SDXLModels(
        unet=unet,
        vae=vae,
        text_encoder=text.text_encoder,
        text_encoder_2=text.text_encoder_2,
        tokenizer=text.tokenizer,
        tokenizer_2=text.tokenizer_2,
        scheduler_config=base.scheduler_config,
        base=base,
        vae_hash=hash_network(vae, base.parts["vae"].config),
        text_hash=_hash_text(base, text.text_encoder, text.text_encoder_2),
    )


def load_text_models(
    base: BaseModel, *, dtype: torch.dtype, read: Callable[[int], None] = lambda num_bytes: None
) -> TextModels:
    """The text encoders of a base model in `dtype`, and their tokenizers; see `load_sdxl` for the errors.

    Args:
        read: see `load_network`.
    """
    return TextModels(
        tokenizer=_load_tokenizer(base.tokenizer_root / "tokenizer", base.parts["text_encoder"]),
        tokenizer_2=_load_tokenizer(base.tokenizer_root / "tokenizer_2", base.parts["text_encoder_2"]),
        text_encoder=load_network(base, "text_encoder", dtype=dtype, read=read),
        text_encoder_2=load_network(base, "text_encoder_2", dtype=dtype, read=read),
    )


def load_network(
    base: BaseModel, name: str, *, dtype: torch.dtype, read: Callable[[int], None] = lambda num_bytes: None
) -> nn.Module:
    """The network called `name` of a base model, read from its files into the CPU's memory, every tensor checked.

    Args:
        read: called after each tensor with its bytes as stored; what it raises ends the loading.
    """
    return load_part(base.parts[name], partial(build_network, name), dtype=dtype, read=read)


def build_network(name: str, config: dict[str, Any]) -> nn.Module:
    """The network called `name` as its diffusers or transformers config describes it, not yet filled."""
    build: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
        "unet": diffusers.UNet2DConditionModel.from_config,
        "vae": diffusers.AutoencoderKL.from_config,
        "text_encoder": _build_text_encoder,
        "text_encoder_2": _build_text_encoder_2,
    }
    return build[name](config)


@torch.no_grad()
def encode_prompt(models: TextModels, captions: Sequence[str], *, device: torch.device | str) -> tuple[Tensor, Tensor]:
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
            max_length=77,
            truncation=True,
            return_tensors="pt",
        )
        output = text_encoder(tokens.input_ids.to(device), output_hidden_states=True)
        hidden_states.append(output.hidden_states[-2])
    return torch.cat(hidden_states, dim=-1), output.text_embeds


@torch.no_grad()
def encode_image(vae: Any, pixel_values: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Turn pixels into the latents the UNet learns.

    Args:
        vae: in float32, on the device of `pixel_values`.
        pixel_values: (B, 3, H, W) in [-1, 1].
        generator: of the VAE's sampling noise, or one for each image; generators on the CPU give the same
            noise on every device.

    Returns:
        latents (B, 4, h, w) in float32, shifted and scaled as the VAE's config says.
    """
    distribution = vae.encode(pixel_values.float()).latent_dist
    latents: Tensor = distribution.sample(generator).float()
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is not None and std is not None:  # per channel, as EDM-trained variants have it
        latents = (latents - _per_channel(mean, latents)) / _per_channel(std, latents)
    scaled: Tensor = (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor
    return scaled


def _per_channel(values: Sequence[float], latents: Tensor) -> Tensor:
    return torch.tensor(values, device=latents.device).view(1, -1, 1, 1)


def _build_text_encoder(config: dict[str, Any]) -> nn.Module:
    network: Any = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    return _with_position_ids(network, network)


def _build_text_encoder_2(config: dict[str, Any]) -> nn.Module:
    network: Any = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config))
    return _with_position_ids(network, network.text_model)


def _with_position_ids(network: nn.Module, text_model: Any) -> nn.Module:
    """`network` with the one buffer that is in no file: 0 ... 76."""
    embeddings = getattr(text_model, "text_model", text_model).embeddings  # transformers < 5.6 nests once more
    embeddings.position_ids = torch.arange(embeddings.position_ids.shape[-1], device="cpu").unsqueeze(0)
    return network


def _load_tokenizer(folder: Path, text_encoder: Part) -> Any:
    """The CLIP tokenizer in `folder`; without its vocabulary transformers would build an empty one in silence."""
    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise ModelError(f"{folder} has no {name}", hint="fetch or copy the model again")
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the tokenizer in {folder} cannot be read: {error}") from error
    num_known = text_encoder.config.get("vocab_size")
    if len(tokenizer) != num_known:
        raise ModelError(f"{folder} has {len(tokenizer)} tokens, its text encoder knows {num_known}")
    return tokenizer


def _hash_text(base: BaseModel, text_encoder: nn.Module, text_encoder_2: nn.Module) -> str:
    tokenizer_files = [
        path for name in ("tokenizer", "tokenizer_2") for path in sorted((base.tokenizer_root / name).iterdir())
    ]
    hashes = (
        hash_network(text_encoder, base.parts["text_encoder"].config),
        hash_network(text_encoder_2, base.parts["text_encoder_2"].config),
        hash_weights(path for path in tokenizer_files if path.is_file()),
    )
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
