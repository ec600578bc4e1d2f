"""The mathematics of diffusion training as pure functions; knows no models, no config, no devices.

Letters: B micro-batch, C latent channels, h and w latent height and width, T number of training timesteps.
abar_t is the cumulative product of alphas (Ho et al. 2020, eq. 4), SNR(t) = abar_t / (1 - abar_t).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class NoiseSchedule:
    """How much signal is left at each timestep, and what the model predicts.

    Args:
        alphas_cumprod: abar_t, shape (T,), float32.
        prediction_type: "epsilon" or "v_prediction".
        zero_terminal_snr: whether abar at the last timestep is exactly 0.
    """

    alphas_cumprod: Tensor
    prediction_type: PredictionType
    zero_terminal_snr: bool

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def to(self, device: torch.device) -> "NoiseSchedule":
        return NoiseSchedule(self.alphas_cumprod.to(device), self.prediction_type, self.zero_terminal_snr)


def build_noise_schedule(
    scheduler_config: Mapping[str, Any],
    *,
    prediction_type: PredictionType | None = None,
    zero_terminal_snr: bool | None = None,
) -> NoiseSchedule:
    """The training schedule that the model's own scheduler config describes.

    The betas are rescaled to zero terminal SNR before anything is derived from them, so that SNR weights and noise
    agree; trainers that tabulate the SNR first get the weights of another schedule.

    Args:
        scheduler_config: contents of `scheduler/scheduler_config.json`.
        prediction_type: overrides the model's own; None keeps it.
        zero_terminal_snr: overrides `rescale_betas_zero_snr`; None keeps it.

    Raises:
        ValueError: no betas (flow matching, EDM), an unknown beta schedule or prediction type, or epsilon prediction
            with zero terminal SNR, where the last timestep holds no signal to predict noise from.

    Source: Lin et al. 2023 (arXiv 2305.08891), algorithm 1.
    """
    num_timesteps = int(scheduler_config.get("num_train_timesteps", 1000))
    betas = _betas(scheduler_config, num_timesteps)
    alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
    if zero_terminal_snr is None:
        zero_terminal_snr = bool(scheduler_config.get("rescale_betas_zero_snr", False))
    if zero_terminal_snr:
        alphas_cumprod = _rescale_to_zero_terminal_snr(alphas_cumprod)
    kind = prediction_type or scheduler_config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction type {kind!r} is neither epsilon nor v_prediction")
    if kind == "epsilon" and zero_terminal_snr:
        raise ValueError("epsilon prediction cannot be trained with zero terminal SNR")
    return NoiseSchedule(alphas_cumprod.float(), kind, zero_terminal_snr)


def _betas(scheduler_config: Mapping[str, Any], num_timesteps: int) -> Tensor:
    """Betas in float64, shape (T,)."""
    trained = scheduler_config.get("trained_betas")
    if trained is not None:
        return torch.tensor(trained, dtype=torch.float64)
    if "beta_start" not in scheduler_config or "beta_end" not in scheduler_config:
        raise ValueError(f"{scheduler_config.get('_class_name', 'its scheduler')} has no beta_start and beta_end")
    start, end = float(scheduler_config["beta_start"]), float(scheduler_config["beta_end"])
    match scheduler_config.get("beta_schedule", "linear"):
        case "linear":
            return torch.linspace(start, end, num_timesteps, dtype=torch.float64)
        case "scaled_linear":
            return torch.linspace(start**0.5, end**0.5, num_timesteps, dtype=torch.float64) ** 2
        case other:
            raise ValueError(f"beta schedule {other!r} is neither linear nor scaled_linear")


def _rescale_to_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    root = alphas_cumprod.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def draw_noise(
    shape: Sequence[int],
    *,
    seed: int,
    step: int,
    positions: Sequence[int],
    num_timesteps: int,
    noise_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Noise and timesteps of one micro-batch, a function of (seed, step, position) alone.

    A sample's position counts over ranks and micro-batches, so that the same pictures get the same noise however
    they are spread over processes, and a resumed step is the same step. Drawn on the CPU: equal on every device.

    Args:
        shape: of one sample's latents, (C, h, w).
        positions: index of each sample within the optimizer step, length B.
        noise_offset: standard deviation of one extra value per sample and channel (0 is off).

    Returns:
        noise (B, C, h, w) float32 and timesteps (B,) int64, uniform in [0, T).

    Source: https://www.crosslabs.org/blog/diffusion-with-offset-noise for the offset.
    """
    noises, timesteps = [], []
    for generator in position_generators("noise", seed, step, positions):
        timesteps.append(torch.randint(0, num_timesteps, (), generator=generator))
        noise = torch.randn(*shape, generator=generator)
        if noise_offset:
            noise = noise + noise_offset * torch.randn(shape[0], 1, 1, generator=generator)
        noises.append(noise)
    return torch.stack(noises), torch.stack(timesteps)


def position_generators(purpose: str, seed: int, step: int, positions: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator for each sample, a function of (purpose, seed, step, position) alone.

    The parts are hashed, because neighbouring seeds of a Mersenne Twister are not independent enough as they are.
    """
    generators = []
    for position in positions:
        digest = hashlib.blake2b(f"{purpose}/{seed}/{step}/{position}".encode(), digest_size=8).digest()
        generators.append(torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1))
    return generators


def add_noise(latents: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al. 2020, eq. 4).

    Args:
        latents, noise: (B, C, h, w).
        abar: (B,), the schedule at each sample's timestep.
    """
    abar = abar.view(-1, 1, 1, 1)
    return abar.sqrt() * latents + (1.0 - abar).sqrt() * noise


def target(prediction_type: PredictionType, latents: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """What the model should predict: eps, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0 (Salimans & Ho 2022, D)."""
    if prediction_type == "epsilon":
        return noise
    abar = abar.view(-1, 1, 1, 1)
    return abar.sqrt() * noise - (1.0 - abar).sqrt() * latents


def min_snr_weight(prediction_type: PredictionType, abar: Tensor, gamma: float, *, invoke_v_weight: bool) -> Tensor:
    """Loss weight of each sample, (B,): min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v.

    Written in abar so that SNR = 0 (zero terminal SNR) and SNR = inf need no special case.

    Args:
        abar: (B,).
        gamma: 5 in the paper.
        invoke_v_weight: invoke-training's weight for v, min(SNR, gamma) / SNR + 1, for its old results.

    Source: Hang et al. 2023 (arXiv 2303.09556), section 3.4.
    """
    weight_for_epsilon = torch.clamp(gamma * (1.0 - abar) / abar, max=1.0)  # gamma / SNR, at most 1
    if prediction_type == "epsilon":
        return weight_for_epsilon
    if invoke_v_weight:
        return weight_for_epsilon + 1.0
    return torch.minimum(abar, gamma * (1.0 - abar))  # SNR / (SNR + 1) = abar, 1 / (SNR + 1) = 1 - abar


def per_sample_loss(
    prediction: Tensor,
    wanted: Tensor,
    *,
    loss_type: Literal["mse", "huber"] = "mse",
    huber_delta: float = 0.1,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean error of each sample, (B,), in float32.

    Args:
        prediction, wanted: (B, C, h, w).
        loss_type: "mse", or "huber": twice torch's Huber loss, so that both agree below `huber_delta`.
        mask: (B, 1, h, w) in [0, 1]; the mean is over its area, so that a small mask does not mean a small learning
            rate. A sample whose mask is empty costs nothing.
    """
    prediction, wanted = prediction.float(), wanted.float()
    if loss_type == "mse":
        error = F.mse_loss(prediction, wanted, reduction="none")
    else:
        error = 2.0 * F.huber_loss(prediction, wanted, reduction="none", delta=huber_delta)
    if mask is None:
        return error.mean(dim=(1, 2, 3))
    area = mask.sum(dim=(1, 2, 3)) * error.shape[1]
    return (error * mask).sum(dim=(1, 2, 3)) / area.clamp(min=1.0)
