"""Validation images from the live UNet, with fixed seeds; knows nothing of runs and files.

Sampling never touches the training weights nor any global random state: with the same seed a run's weights are
the same with validation on or off.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from PIL.Image import Image
from torch import Tensor

from tuitrain.engine.diffusion import NoiseSchedule

ZERO_SNR_GUIDANCE_RESCALE = 0.7  # Lin et al. 2023 (arXiv 2305.08891), section 3.4


@dataclass(frozen=True)
class ValidationPrompt:
    """A prompt with the embeddings that stand for it and for its negative.

    Args:
        prompt_embeds, negative_prompt_embeds: (1, 77, D).
        pooled_prompt_embeds, negative_pooled_prompt_embeds: (1, P).
    """

    text: str
    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    negative_prompt_embeds: Tensor
    negative_pooled_prompt_embeds: Tensor


def build_sampling_scheduler(scheduler_config: Mapping[str, Any], schedule: NoiseSchedule) -> DDPMScheduler:
    """A DDPM sampler over the schedule that was trained.

    A zero terminal SNR is only reached with trailing timesteps, so both go together (Lin et al. 2023, section 3.3).
    """
    keys = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps", "steps_offset")
    config = {key: scheduler_config[key] for key in keys if key in scheduler_config}
    return DDPMScheduler(
        **config,
        clip_sample=False,
        prediction_type=schedule.prediction_type,
        rescale_betas_zero_snr=schedule.zero_terminal_snr,
        timestep_spacing="trailing" if schedule.zero_terminal_snr else "leading",
    )


@torch.no_grad()
def sample_latents(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    scheduler: DDPMScheduler,
    prompt: ValidationPrompt,
    *,
    num_images: int,
    size_hw: tuple[int, int],
    num_inference_steps: int,
    guidance_scale: float,
    seed: int,
    after_step: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """Denoise the images of one prompt, one after the other from one generator, so that image k is reproducible.

    Args:
        vae: only its configuration is used, for the size of the latents.
        size_hw: height and width in pixels.
        seed: of the prompt's generator, on the CPU: the same noise on every device.
        after_step: called after each denoising step; what it raises ends the sampling.

    Returns:
        `num_images` latents (1, 4, h, w) in the UNet's dtype, still scaled.
    """
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    embeds = {
        name: getattr(prompt, name).to(unet.device, unet.dtype)
        for name in (
            "prompt_embeds",
            "pooled_prompt_embeds",
            "negative_prompt_embeds",
            "negative_pooled_prompt_embeds",
        )
    }

    def step_ended(*_: object) -> dict[str, Tensor]:
        after_step()
        return {}  # no tensor is replaced

    rescale = ZERO_SNR_GUIDANCE_RESCALE if scheduler.config.rescale_betas_zero_snr else 0.0
    return [
        pipeline(
            **embeds,
            height=size_hw[0],
            width=size_hw[1],
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=rescale,
            generator=generator,
            callback_on_step_end=step_ended,
            output_type="latent",
        ).images
        for _ in range(num_images)
    ]


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Sequence[Tensor]) -> list[Image]:
    """Pictures of scaled latents (1, 4, h, w), decoded one at a time in the VAE's own dtype (float32)."""
    processor = VaeImageProcessor()
    pictures: list[Image] = []
    for latent in latents:
        unscaled = unscale_latents(latent.to(vae.device, vae.dtype), vae)
        pictures += processor.postprocess(vae.decode(unscaled, return_dict=False)[0], output_type="pil")
    return pictures


def unscale_latents(latents: Tensor, vae: AutoencoderKL) -> Tensor:
    """Undo the scaling of `encode_image`. Source: diffusers `pipeline_stable_diffusion_xl.py:__call__`."""
    scaled: Tensor = latents / vae.config.scaling_factor
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        return scaled
    shape = (1, -1, 1, 1)
    unscaled: Tensor = scaled * torch.tensor(std).view(shape).to(scaled) + torch.tensor(mean).view(shape).to(scaled)
    return unscaled
