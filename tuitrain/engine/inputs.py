"""From a Batch on the CPU to what the UNet is trained on; knows models and devices, not losses.

Letters: B micro-batch of this rank, h and w latent height and width, H and W pixels, D width of both text encoders
together, P width of the pooled output.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tuitrain.data.loader import Batch
from tuitrain.engine.diffusion import position_generators
from tuitrain.engine.sdxl import SDXLModels, encode_image, encode_prompt


@dataclass(frozen=True)
class ModelInputs:
    """One micro-batch on the device.

    Args:
        latents: (B, 4, h, w) float32, times the VAE's scaling factor.
        prompt_embeds: (B, 77, D) in the UNet's dtype.
        pooled_prompt_embeds: (B, P) in the UNet's dtype.
        time_ids: (B, 6) float32. They stay float32: bfloat16 knows no 1001, and the embedding is of sines.
        loss_weight: (B,) float32.
        mask: (B, 1, h, w) float32 in [0, 1], or None.
    """

    latents: Tensor
    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    time_ids: Tensor
    loss_weight: Tensor
    mask: Tensor | None


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`, queued behind its work: a copy from memory that is not pinned may wait for that."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class InputBuilder:
    """Moves cached parts of a batch to the device and encodes the others.

    Args:
        models: VAE and text encoders are used when a batch lacks latents or embeddings.
        empty_prompt: embeddings of "" (1, 77, D) and (1, P).
        caption_dropout_mode: what a dropped caption becomes: "zeros" (diffusers' unconditional), "encoded" ("" encoded,
            as ComfyUI, A1111 and InvokeAI do), or "mix", either by the toss of a coin. Both encoders and the pooled
            output are always replaced together.
        seed: of the run.
    """

    def __init__(
        self,
        models: SDXLModels,
        *,
        device: torch.device,
        empty_prompt: tuple[Tensor, Tensor],
        caption_dropout_mode: Literal["zeros", "encoded", "mix"],
        seed: int,
    ) -> None:
        self._models = models
        self._device = device
        self._empty_prompt = empty_prompt
        self._caption_dropout_mode = caption_dropout_mode
        self._seed = seed

    @torch.no_grad()
    def build(self, batch: Batch, *, step: int) -> ModelInputs:
        """The inputs of one micro-batch; `step` seeds what is drawn here."""
        dtype = self._models.unet.dtype
        latents = self._latents(batch, step)
        prompt_embeds, pooled_prompt_embeds = self._embeds(batch, step)
        mask = batch.get("mask")
        return ModelInputs(
            latents=latents,
            prompt_embeds=prompt_embeds.to(dtype),
            pooled_prompt_embeds=pooled_prompt_embeds.to(dtype),
            time_ids=self._move(batch["time_ids"]),
            loss_weight=self._move(batch["loss_weight"]),
            mask=None if mask is None else F.interpolate(self._move(mask), size=latents.shape[-2:], mode="nearest"),
        )

    def _move(self, tensor: Tensor) -> Tensor:
        return to_device(tensor, self._device)

    def _latents(self, batch: Batch, step: int) -> Tensor:
        if "latents" in batch:
            return self._move(batch["latents"])
        generators = position_generators("vae", self._seed, step, batch["positions"])
        pictures = self._move(batch["pixel_values"]).split(1)  # one by one: at 1024 pixels each takes GiBs in float32
        vae = self._models.vae
        return torch.cat([encode_image(vae, *pair) for pair in zip(pictures, generators, strict=True)])

    def _embeds(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        if "prompt_embeds" in batch:
            prompt_embeds = self._move(batch["prompt_embeds"])
            pooled_prompt_embeds = self._move(batch["pooled_prompt_embeds"])
        else:
            prompt_embeds, pooled_prompt_embeds = encode_prompt(self._models, batch["captions"], device=self._device)
        for index, is_dropped in enumerate(batch["drop_caption"]):
            if is_dropped:
                keep = self._empty_prompt_factor(step, batch["positions"][index])
                prompt_embeds[index] = keep * self._empty_prompt[0][0]
                pooled_prompt_embeds[index] = keep * self._empty_prompt[1][0]
        return prompt_embeds, pooled_prompt_embeds

    def _empty_prompt_factor(self, step: int, position: int) -> int:
        """1 for the encoded empty text, 0 for zeros."""
        if self._caption_dropout_mode == "mix":
            (generator,) = position_generators("empty prompt", self._seed, step, [position])
            return int(torch.randint(0, 2, (), generator=generator))
        return int(self._caption_dropout_mode == "encoded")
