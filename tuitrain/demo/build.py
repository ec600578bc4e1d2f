"""Trains the shipped mini SDXL from nothing on drawn pictures; knows nothing of fine-tuning.

    python -m tuitrain.demo.build [FOLDER]

rewrites `tuitrain/demo/base` (or FOLDER). It took 2415 s with one thread on two busy CPU cores. Seeds are fixed; the
weights still differ between CPUs and torch versions.

B batch, H, W picture height and width, h = H/4, w = W/4 latent height and width.
"""

import logging
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tuitrain.demo.autoencoder import SEED, as_model_input, pixels_of, refine_decoder, train_vae
from tuitrain.demo.draw import draw_flat, random_scene
from tuitrain.demo.text_encoders import TEXT_WIDTH, TextEncoders, framed_caption, train_text_encoders
from tuitrain.demo.vocabulary import write_tokenizers
from tuitrain.engine.base_model import hub_tensor_name

logger = logging.getLogger(__name__)

SIZES_HW = {(64, 64): 10000, (64, 48): 800, (48, 64): 800, (64, 96): 600, (96, 64): 600, (96, 96): 300}
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


@dataclass(frozen=True)
class LatentSet:
    """Pictures of one size, encoded.

    Args:
        latents: (n, 4, h, w), times scaling_factor.
        time_ids: (n, 6).
        prompt_embeds: (n, 77, 128), float16 to halve 0.5 GB.
        pooled_prompt_embeds: (n, 64).
    """

    latents: Tensor
    time_ids: Tensor
    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, encoders: TextEncoders, size_hw: tuple[int, int], count: int) -> LatentSet:
    """Draw and encode `count` pictures; a fifth of them are crops of a larger picture, with the true crop corner."""
    rng = random.Random(f"{SEED} {size_hw}")
    pictures, time_ids, captions = [], [], []
    height, width = size_hw
    for _ in range(count):
        scene = random_scene(rng)
        if rng.random() < 0.2:
            original_hw = (height + rng.randrange(0, 24), width + rng.randrange(0, 24))
            top, left = rng.randint(0, original_hw[0] - height), rng.randint(0, original_hw[1] - width)
            pictures.append(draw_flat(scene, original_hw).crop((left, top, left + width, top + height)))
        else:
            scale = rng.choice((1, 1, 1, 1.5, 2, 4, 8))
            original_hw, top, left = (round(height * scale), round(width * scale)), 0, 0
            pictures.append(draw_flat(scene, size_hw))
        time_ids.append((*original_hw, top, left, height, width))
        captions.append(framed_caption(scene, rng))
    latents = [
        vae.encode(as_model_input(pixels_of(pictures[i : i + 64]))).latent_dist.mean * vae.config.scaling_factor
        for i in range(0, count, 64)
    ]
    embeds = [encoders(captions[i : i + 64]) for i in range(0, count, 64)]
    return LatentSet(
        torch.cat(latents),
        torch.tensor(time_ids, dtype=torch.float32),
        torch.cat([prompt_embeds.half() for prompt_embeds, _ in embeds]),
        torch.cat([pooled for _, pooled in embeds]),
    )


def build_unet() -> UNet2DConditionModel:
    """SDXL's UNet with its block types, 1.8 M parameters."""
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(2, 4, 4),
        norm_num_groups=16,
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + TEXT_WIDTH,
    )


def draw_timesteps(count: int, *, favour_high_noise: bool) -> Tensor:
    """(count,) in [0, 1000), uniform; or a third of them from the noisiest 300, where the prompt decides most."""
    timesteps = torch.randint(1000, (count,))
    if favour_high_noise:
        timesteps = torch.where(torch.rand(count) < 1 / 3, torch.randint(700, 1000, (count,)), timesteps)
    return timesteps


def train_unet(
    unet: UNet2DConditionModel,
    sets: Sequence[LatentSet],
    empty_embeds: tuple[Tensor, Tensor],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    favour_high_noise: bool,
) -> UNet2DConditionModel:
    """Train in place on sets drawn by their size; a tenth of the captions is empty, half of these zeroed embeddings.

    A plain epsilon loss hardly rewards obeying the prompt: what is wrong in the picture weighs SNR in it, 0.005 at the
    noisiest step, where the prompt alone knows the colours. `favour_high_noise` weighs by 1 + 1 / SNR, the weight of
    a v-prediction loss (Salimans and Ho 2022, arXiv 2202.00512), up to 25.

    Returns:
        A copy with the exponential moving average of the weights.
    """
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    noise_schedule = DDPMScheduler(**SCHEDULE, clip_sample=False)
    snr = noise_schedule.alphas_cumprod / (1 - noise_schedule.alphas_cumprod)  # (1000,)
    weights = (1 + 1 / snr).clamp(max=25) if favour_high_noise else torch.ones(1000)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    losses: list[float] = []
    for step in range(1, steps + 1):
        latent_set = rng.choices(sets, weights=[len(each.latents) for each in sets])[0]
        chosen = torch.randint(len(latent_set.latents), (batch_size,))
        latents = latent_set.latents[chosen]  # (B, 4, h, w)
        prompt_embeds = latent_set.prompt_embeds[chosen].float()  # (B, 77, 128)
        pooled_prompt_embeds = latent_set.pooled_prompt_embeds[chosen]  # (B, 64)
        draw = torch.rand(batch_size)
        is_zeroed, is_empty = draw < 0.05, (draw >= 0.05) & (draw < 0.1)
        prompt_embeds[is_empty], pooled_prompt_embeds[is_empty] = empty_embeds
        prompt_embeds[is_zeroed], pooled_prompt_embeds[is_zeroed] = 0.0, 0.0
        noise = torch.randn_like(latents)
        timesteps = draw_timesteps(batch_size, favour_high_noise=favour_high_noise)
        predicted = unet(
            noise_schedule.add_noise(latents, noise, timesteps),
            timesteps,
            encoder_hidden_states=prompt_embeds,
            added_cond_kwargs={"text_embeds": pooled_prompt_embeds, "time_ids": latent_set.time_ids[chosen]},
        ).sample
        error = functional.mse_loss(predicted, noise, reduction="none").mean(dim=(1, 2, 3))  # (B,)
        loss = (weights[timesteps] * error).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(unet)
        losses.append(loss.item())
        if step % 100 == 0 or step == steps:
            logger.info("unet step %d: loss %.4f", step, sum(losses[-100:]) / len(losses[-100:]))
    trained = average.module
    assert isinstance(trained, UNet2DConditionModel)
    return trained.eval()


def build_base(folder: Path) -> None:
    """Train the mini SDXL and write it to `folder` in diffusers layout, float16 safetensors."""
    started = time.monotonic()
    vae = train_vae(1600, batch_size=8, learning_rate=2e-3)
    refine_decoder(vae, 2500, batch_size=8, learning_rate=1.5e-3)
    write_tokenizers(folder)
    torch.manual_seed(SEED)
    encoders = TextEncoders(folder)
    train_text_encoders(encoders, 600, batch_size=48, learning_rate=2e-3)
    sets = [encode_pictures(vae, encoders, size_hw, count) for size_hw, count in SIZES_HW.items()]
    with torch.no_grad():
        empty_embeds = encoders([""])
    torch.manual_seed(SEED)
    unet = build_unet()
    # First to draw at all, then to draw what the prompt says.
    for steps, favour_high_noise in ((2000, False), (5400, True)):
        unet = train_unet(
            unet,
            sets,
            empty_embeds,
            steps=steps,
            batch_size=16,
            learning_rate=1.2e-3,
            favour_high_noise=favour_high_noise,
        )
    save_base(folder, vae, encoders, unet)
    logger.info("built in %.0f s", time.monotonic() - started)


def save_base(folder: Path, vae: AutoencoderKL, encoders: TextEncoders, unet: UNet2DConditionModel) -> None:
    """Write the whole pipeline; the tokenizers are in `folder` already."""
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=encoders.text_encoder,
        text_encoder_2=encoders.text_encoder_2,
        tokenizer=encoders.tokenizer,
        tokenizer_2=encoders.tokenizer_2,
        unet=unet,
        # clip_sample is for who makes a DDPM scheduler of it; SDXL's config has it too.
        scheduler=EulerDiscreteScheduler.from_config({**SCHEDULE, "clip_sample": False}),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    # Files and tensor names as SDXL has them on the Hub, which every version of transformers reads.
    for name in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(folder / name)
    write_tokenizers(folder)
    for name in ("text_encoder", "text_encoder_2"):
        weights = folder / name / "model.safetensors"
        tensors = {hub_tensor_name(name, key): tensor for key, tensor in load_file(weights).items()}
        save_file(tensors, weights, metadata={"format": "pt"})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    build_base(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "base")
