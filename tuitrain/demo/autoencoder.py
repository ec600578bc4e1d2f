"""Trains the mini SDXL's VAE on drawn pictures; knows nothing of captions.

B batch, H, W picture height and width, h = H/4, w = W/4 latent height and width.
"""

import logging
import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from tuitrain.demo.draw import SHAPES, Scene, draw_flat, draw_woodcut, random_scene

logger = logging.getLogger(__name__)

SEED = 20


def pixels_of(pictures: Sequence[Image.Image]) -> Tensor:
    """(B, 3, H, W) uint8."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()


def as_model_input(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def draw_patchwork(rng: random.Random, size_hw: tuple[int, int] = (64, 64)) -> Image.Image:
    """Overlapping shapes of arbitrary colour and size: what keeps the VAE from knowing the palette alone."""
    picture = Image.effect_noise((size_hw[1], size_hw[0]), rng.uniform(0, 60)).convert("RGB")
    tint = Image.new("RGB", picture.size, (rng.randrange(256), rng.randrange(256), rng.randrange(256)))
    picture = Image.blend(picture, tint, rng.uniform(0.6, 1.0))
    for _ in range(rng.randrange(2, 6)):
        scene = Scene(
            shape=rng.choice(sorted(SHAPES)),
            colour="white",
            background="black",
            offset=(rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)),
            radius=rng.uniform(0.05, 0.5),
            angle=rng.uniform(0, 2 * math.pi),
        )
        mask = draw_flat(scene, size_hw).convert("L").point([0] * 128 + [255] * 128)
        picture.paste((rng.randrange(256), rng.randrange(256), rng.randrange(256)), (0, 0), mask)
    return picture


def _gradients(pictures: Tensor) -> tuple[Tensor, Tensor]:
    return pictures.diff(dim=2), pictures.diff(dim=3)


def train_vae(steps: int, *, batch_size: int, learning_rate: float) -> AutoencoderKL:
    """A VAE of factor 4 that, as SDXL's, has seen more than the UNet will: both styles and arbitrary colours.

    Its scaling_factor is 1 / standard deviation of the latents of the pictures it was trained on.
    """
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )
    with torch.no_grad():  # a posterior that starts narrow: e^-4 of variance instead of 1
        vae.quant_conv.bias[4:] = -4.0
    pictures = [draw_flat(random_scene(rng)) for _ in range(3000)]
    pictures += [draw_woodcut(random_scene(rng)) for _ in range(2000)]
    pictures += [draw_patchwork(rng) for _ in range(1000)]
    pixels = pixels_of(pictures)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    vae.train()
    for step in range(1, steps + 1):
        batch = as_model_input(pixels[torch.randint(len(pixels), (batch_size,))])  # (B, 3, H, W)
        posterior = vae.encode(batch).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        rebuilt = functional.l1_loss(decoded, batch)
        edges = sum(functional.l1_loss(a, b) for a, b in zip(_gradients(decoded), _gradients(batch), strict=True))
        loss = rebuilt + 0.5 * edges + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel() * 4
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            logger.info("vae step %d: l1 %.4f, posterior std %.3f", step, rebuilt.item(), posterior.std.mean().item())
    vae.eval()
    with torch.no_grad():
        latents = vae.encode(as_model_input(pixels[:512])).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae


def refine_decoder(vae: AutoencoderKL, steps: int, *, batch_size: int, learning_rate: float) -> None:
    """Sharpen the decoder for the encoder as it is: cheaper than training both, and the latents stay what they are."""
    torch.manual_seed(SEED + 1)
    rng = random.Random(SEED + 1)
    pictures = [draw_flat(random_scene(rng)) for _ in range(4000)]
    pictures += [draw_woodcut(random_scene(rng)) for _ in range(2500)]
    pictures += [draw_patchwork(rng) for _ in range(500)]
    pixels = pixels_of(pictures)
    with torch.no_grad():
        latents = torch.cat([vae.encode(as_model_input(part)).latent_dist.mean for part in pixels.split(64)])
    trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    losses: list[float] = []
    for step in range(1, steps + 1):
        chosen = torch.randint(len(pixels), (batch_size,))
        batch = as_model_input(pixels[chosen])  # (B, 3, H, W)
        # As much noise as a sampled latent is likely to be wrong by.
        noisy = latents[chosen] + 0.05 / vae.config.scaling_factor * torch.randn_like(latents[chosen])
        decoded = vae.decode(noisy).sample
        loss = functional.l1_loss(decoded, batch)
        losses.append(loss.item())
        loss = loss + 0.5 * sum(
            functional.l1_loss(a, b) for a, b in zip(_gradients(decoded), _gradients(batch), strict=True)
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            logger.info("decoder step %d: l1 %.4f", step, sum(losses[-100:]) / len(losses[-100:]))
