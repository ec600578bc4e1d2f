"""The mathematics of diffusion against closed forms and diffusers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from tuitrain.engine import diffusion

SDXL_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}


def reference_scheduler(**overrides: object) -> DDPMScheduler:
    return DDPMScheduler(**{**SDXL_SCHEDULER, "clip_sample": False, **overrides})


def random_latents(seed: int, num: int = 3) -> torch.Tensor:
    return torch.randn(num, 4, 6, 5, generator=torch.Generator().manual_seed(seed))


def abar_of_snr(snr: float) -> torch.Tensor:
    return torch.tensor([snr / (1.0 + snr)], dtype=torch.float64)


def test_the_schedule_is_that_of_diffusers() -> None:
    schedule = diffusion.build_noise_schedule(SDXL_SCHEDULER)
    torch.testing.assert_close(schedule.alphas_cumprod, reference_scheduler().alphas_cumprod, rtol=1e-5, atol=0)
    assert schedule.prediction_type == "epsilon"
    assert not schedule.zero_terminal_snr


def test_a_zero_terminal_snr_schedule_ends_in_pure_noise_and_starts_as_before() -> None:
    plain = diffusion.build_noise_schedule(SDXL_SCHEDULER)
    config = {**SDXL_SCHEDULER, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    rescaled = diffusion.build_noise_schedule(config)
    assert rescaled.alphas_cumprod[-1] == 0.0
    assert rescaled.alphas_cumprod[0] == plain.alphas_cumprod[0]
    reference = reference_scheduler(rescale_betas_zero_snr=True).alphas_cumprod[:-1]
    torch.testing.assert_close(rescaled.alphas_cumprod[:-1], reference[:], rtol=1e-3, atol=1e-6)


def test_the_models_own_scheduler_decides_and_the_config_overrides_it() -> None:
    config = {**SDXL_SCHEDULER, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    own = diffusion.build_noise_schedule(config)
    assert (own.prediction_type, own.zero_terminal_snr) == ("v_prediction", True)
    overridden = diffusion.build_noise_schedule(config, prediction_type="epsilon", zero_terminal_snr=False)
    assert (overridden.prediction_type, overridden.zero_terminal_snr) == ("epsilon", False)


def test_a_scheduler_without_betas_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no beta_start"):
        diffusion.build_noise_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler"})


def test_epsilon_prediction_with_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(ValueError, match="zero terminal SNR"):
        diffusion.build_noise_schedule(SDXL_SCHEDULER, zero_terminal_snr=True)


def test_noise_is_added_as_diffusers_adds_it() -> None:
    latents, noise, timesteps = random_latents(1), random_latents(2), torch.tensor([0, 500, 999])
    abar = diffusion.build_noise_schedule(SDXL_SCHEDULER).alphas_cumprod[timesteps]
    expected = reference_scheduler().add_noise(latents, noise, timesteps)
    torch.testing.assert_close(diffusion.add_noise(latents, noise, abar), expected, rtol=1e-4, atol=1e-5)


def test_the_target_is_the_noise_or_diffusers_velocity() -> None:
    latents, noise, timesteps = random_latents(1), random_latents(2), torch.tensor([0, 500, 999])
    abar = diffusion.build_noise_schedule(SDXL_SCHEDULER).alphas_cumprod[timesteps]
    assert diffusion.target("epsilon", latents, noise, abar) is noise
    expected = reference_scheduler().get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(diffusion.target("v_prediction", latents, noise, abar), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("snr", "for_epsilon", "for_v"), [(0.5, 1.0, 1 / 3), (5.0, 1.0, 5 / 6), (20.0, 0.25, 5 / 21), (0.0, 1.0, 0.0)]
)
def test_min_snr_weights_are_those_of_the_paper(snr: float, for_epsilon: float, for_v: float) -> None:
    abar = abar_of_snr(snr)
    weight = diffusion.min_snr_weight("epsilon", abar, 5.0, invoke_v_weight=False)
    assert weight.item() == pytest.approx(for_epsilon)
    weight = diffusion.min_snr_weight("v_prediction", abar, 5.0, invoke_v_weight=False)
    assert weight.item() == pytest.approx(for_v)


def test_compat_gives_invoke_trainings_v_weight_and_leaves_epsilon_alone() -> None:
    for snr in (0.5, 20.0):
        abar = abar_of_snr(snr)
        old = diffusion.min_snr_weight("v_prediction", abar, 5.0, invoke_v_weight=True)
        assert old.item() == pytest.approx(min(snr, 5.0) / snr + 1.0)
        epsilon = diffusion.min_snr_weight("epsilon", abar, 5.0, invoke_v_weight=True)
        assert epsilon.item() == pytest.approx(min(snr, 5.0) / snr)


def test_snr_weights_follow_the_rescaled_schedule_and_stay_finite_at_zero_snr() -> None:
    config = {**SDXL_SCHEDULER, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    schedule = diffusion.build_noise_schedule(config)
    timesteps = torch.arange(1000)
    weights = diffusion.min_snr_weight("v_prediction", schedule.alphas_cumprod, 5.0, invoke_v_weight=False)
    assert weights.isfinite().all()
    snr = compute_snr(reference_scheduler(rescale_betas_zero_snr=True), timesteps)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr + 1.0)
    torch.testing.assert_close(weights[:-1], expected[:-1], rtol=2e-3, atol=1e-5)


def test_noise_of_a_sample_depends_on_seed_step_and_position_alone() -> None:
    def draw(*positions: int, seed: int = 7, step: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
        return diffusion.draw_noise((4, 2, 2), seed=seed, step=step, positions=positions, num_timesteps=1000)

    noise, timesteps = draw(0, 1, 2, 3)
    second_rank_noise, second_rank_timesteps = draw(2, 3)
    assert torch.equal(noise[2:], second_rank_noise)
    assert torch.equal(timesteps[2:], second_rank_timesteps)
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, draw(0, 1, 2, 3, seed=8)[0])
    assert not torch.equal(noise, draw(0, 1, 2, 3, step=4)[0])


def test_noise_is_standard_normal_and_timesteps_are_uniform_over_all_of_them() -> None:
    noise, timesteps = diffusion.draw_noise((4, 8, 8), seed=0, step=0, positions=range(2000), num_timesteps=10)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.01)  # 512,000 values: 5 standard errors are 0.007
    assert noise.std().item() == pytest.approx(1.0, abs=0.01)
    counts = torch.bincount(timesteps, minlength=10)
    assert counts.min() > 140  # expected 200, standard deviation 13
    assert counts.max() < 260


def test_noise_offset_shifts_whole_channels_with_its_own_variance() -> None:
    plain, _ = diffusion.draw_noise((4, 8, 8), seed=0, step=0, positions=range(500), num_timesteps=10)
    offset, _ = diffusion.draw_noise(
        (4, 8, 8), seed=0, step=0, positions=range(500), num_timesteps=10, noise_offset=0.5
    )
    shift = offset - plain
    torch.testing.assert_close(shift, shift.mean(dim=(2, 3), keepdim=True).expand_as(shift), rtol=0, atol=1e-5)
    assert shift[:, :, 0, 0].std().item() == pytest.approx(0.5, rel=0.1)


def test_the_loss_of_a_sample_is_its_mean_squared_error_in_float32() -> None:
    prediction, wanted = random_latents(1), random_latents(2)
    losses = diffusion.per_sample_loss(prediction.bfloat16(), wanted)
    assert losses.dtype == torch.float32
    expected = ((prediction.bfloat16().float() - wanted) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(losses, expected)


def test_huber_loss_equals_mse_for_small_errors_and_grows_linearly_for_large_ones() -> None:
    wanted = torch.zeros(1, 1, 1, 1)
    small = diffusion.per_sample_loss(wanted + 0.05, wanted, loss_type="huber", huber_delta=0.1)
    large = diffusion.per_sample_loss(wanted + 3.0, wanted, loss_type="huber", huber_delta=0.1)
    assert small.item() == pytest.approx(0.05**2)
    assert large.item() == pytest.approx(2 * 0.1 * (3.0 - 0.05))


def test_a_masked_loss_is_the_mean_over_the_masks_area() -> None:
    prediction, wanted = random_latents(1), random_latents(2)
    mask = torch.zeros(3, 1, 6, 5)
    mask[:, :, :2, :2] = 1.0
    losses = diffusion.per_sample_loss(prediction, wanted, mask=mask)
    torch.testing.assert_close(losses, ((prediction - wanted)[:, :, :2, :2] ** 2).flatten(1).mean(1))
    full = diffusion.per_sample_loss(prediction, wanted, mask=torch.ones(3, 1, 6, 5))
    torch.testing.assert_close(full, diffusion.per_sample_loss(prediction, wanted))


def test_a_half_transparent_mask_weights_pixels_without_changing_the_scale() -> None:
    prediction, wanted = random_latents(1), random_latents(2)
    half = diffusion.per_sample_loss(prediction, wanted, mask=torch.full((3, 1, 6, 5), 0.5))
    torch.testing.assert_close(half, diffusion.per_sample_loss(prediction, wanted))


def test_an_empty_mask_costs_nothing() -> None:
    losses = diffusion.per_sample_loss(random_latents(1), random_latents(2), mask=torch.zeros(3, 1, 6, 5))
    assert losses.tolist() == [0.0, 0.0, 0.0]
    assert not any(map(math.isnan, losses.tolist()))
