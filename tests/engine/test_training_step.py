"""One training step against a plain diffusers and torch loop written here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from tests.engine.harness import prepared_trainer, small_config, write_pictures
from tuitrain.config.schema import TrainConfig
from tuitrain.data.loader import Batch
from tuitrain.engine import diffusion
from tuitrain.engine.trainer import Trainer
from tuitrain.errors import NonFiniteLossError


@contextmanager
def ready(config: TrainConfig) -> Iterator[Trainer]:
    trainer = prepared_trainer(config)
    try:
        yield trainer
    finally:
        trainer.close()


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def masked_jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("masked"), masks=True)


def reference_loss(
    model: Path, unet: UNet2DConditionModel, batch: Batch, *, seed: int, step: int, prediction_type: str
) -> torch.Tensor:
    """The loss of a batch as the diffusers example script for SDXL computes it, with min-SNR at gamma 5."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(model)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, prediction_type=prediction_type)
    latents = batch["latents"]
    noise, timesteps = diffusion.draw_noise(
        latents.shape[1:], seed=seed, step=step, positions=batch["positions"], num_timesteps=1000
    )
    prediction = unet(
        scheduler.add_noise(latents, noise, timesteps),
        timesteps,
        batch["prompt_embeds"],
        added_cond_kwargs={"text_embeds": batch["pooled_prompt_embeds"], "time_ids": batch["time_ids"]},
    ).sample
    abar = scheduler.alphas_cumprod[timesteps]
    snr = abar / (1 - abar)
    if prediction_type == "epsilon":
        wanted, weight = noise, torch.clamp(snr, max=5.0) / snr
    else:
        wanted, weight = scheduler.get_velocity(latents, noise, timesteps), torch.clamp(snr, max=5.0) / (snr + 1)
    error = (prediction - wanted) ** 2
    if "mask" in batch:
        mask = batch["mask"].expand_as(error)
        per_sample = (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)
    else:
        per_sample = error.flatten(1).mean(1)
    return (per_sample * weight * batch["loss_weight"]).mean()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("use_masks", [False, True])
def test_loss_and_gradients_equal_a_plain_diffusers_step(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, masked_jsonl: Path, prediction_type: str, use_masks: bool
) -> None:
    source = masked_jsonl if use_masks else jsonl
    config = small_config(tmp_path, tiny_sdxl, source, prediction_type=prediction_type, use_masks=use_masks)
    with ready(config) as trainer:
        (batch,) = next(iter(trainer.loader))
        loss = trainer.compute_loss(batch)
        loss.backward()
        reference_unet = UNet2DConditionModel.from_pretrained(tiny_sdxl / "unet")
        expected = reference_loss(tiny_sdxl, reference_unet, batch, seed=1, step=0, prediction_type=prediction_type)
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        gradients = {name: param.grad for name, param in trainer.models.unet.named_parameters()}
        for name, param in reference_unet.named_parameters():
            torch.testing.assert_close(gradients[name], param.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_the_optimizer_step_equals_torchs_adamw_on_the_reference_gradients(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    with ready(small_config(tmp_path, tiny_sdxl, jsonl)) as trainer:
        steps = iter(trainer.loader)
        reference_unet = UNet2DConditionModel.from_pretrained(tiny_sdxl / "unet")
        reference = torch.optim.AdamW(reference_unet.parameters(), lr=1e-3, weight_decay=1e-2)
        for step in range(2):
            micro_batches = next(steps)
            trainer.train_step(micro_batches)
            reference.zero_grad()
            reference_loss(
                tiny_sdxl, reference_unet, micro_batches[0], seed=1, step=step, prediction_type="epsilon"
            ).backward()
            reference.step()
        trained = dict(trainer.models.unet.named_parameters())
        moved = [
            ((trained[name] - param).norm() / param.norm()).item() for name, param in reference_unet.named_parameters()
        ]
        assert max(moved) < 1e-3  # Adam turns rounding of a near-zero gradient into a step; the bulk agrees far better
        assert sorted(moved)[len(moved) // 2] < 1e-5


@pytest.mark.parametrize(("step", "num_micro_batches"), [(0, 3), (1, 2)], ids=["full step", "rest of the epoch"])
def test_accumulated_micro_batches_give_the_gradient_of_their_mean_loss(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, step: int, num_micro_batches: int
) -> None:
    overrides = ["train_batch_size=1", "gradient_accumulation_steps=3"]
    with ready(small_config(tmp_path, tiny_sdxl, jsonl, *overrides)) as trainer:
        steps = iter(trainer.loader)
        micro_batches = [next(steps) for _ in range(step + 1)][step]
        assert [batch["positions"] for batch in micro_batches] == [[place] for place in range(num_micro_batches)]
        losses = [trainer.compute_loss(batch) for batch in micro_batches]
        (sum(losses) / num_micro_batches).backward()
        expected = [param.grad.clone() for param in trainer.models.unet.parameters()]
        trainer.optimizer.zero_grad()
        seen: list[torch.Tensor] = []

        def spy(*_: object) -> None:
            seen.extend(param.grad.clone() for param in trainer.models.unet.parameters())

        trainer.optimizer.optimizer.register_step_pre_hook(spy)
        trainer.train_step(micro_batches)
        for gradient, wanted in zip(seen, expected, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6)


def test_gradients_are_clipped_to_the_configs_norm(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    with ready(small_config(tmp_path, tiny_sdxl, jsonl, max_grad_norm=0.1)) as trainer:
        norms: list[float] = []

        def spy(*_: object) -> None:
            gradients = [param.grad for param in trainer.models.unet.parameters()]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())

        trainer.optimizer.optimizer.register_step_pre_hook(spy)
        trainer.train_step(next(iter(trainer.loader)))
        assert norms[0] == pytest.approx(0.1, rel=1e-4)
        assert trainer.meter.grad_norm > 0.1


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    results = []
    for gradient_checkpointing in (False, True):
        config = small_config(tmp_path, tiny_sdxl, jsonl, gradient_checkpointing=gradient_checkpointing)
        with ready(config) as trainer:
            (batch,) = next(iter(trainer.loader))
            trainer.compute_loss(batch).backward()
            results.append([param.grad.clone() for param in trainer.models.unet.parameters()])
            assert trainer.models.unet.is_gradient_checkpointing == gradient_checkpointing
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-7)


def test_sizes_reach_the_sinusoids_in_float32_when_the_unet_is_bfloat16(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    with ready(small_config(tmp_path, tiny_sdxl, jsonl, weight_dtype="bfloat16")) as trainer:
        seen = []
        trainer.models.unet.add_time_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        (batch,) = next(iter(trainer.loader))
        batch["time_ids"] = batch["time_ids"] + 1001.0
        trainer.compute_loss(batch)
        assert seen[0].dtype == torch.float32
        assert torch.equal(seen[0], batch["time_ids"].flatten())


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_moves(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    with ready(small_config(tmp_path, tiny_sdxl, jsonl)) as trainer:
        before = [param.detach().clone() for param in trainer.models.unet.parameters()]
        micro_batches = next(iter(trainer.loader))
        micro_batches[0]["latents"][0, 0, 0, 0] = float("nan")
        with pytest.raises(NonFiniteLossError, match=r"the loss is nan at step 1") as caught:
            trainer.train_step(micro_batches)
        assert micro_batches[0]["image_names"][0] in str(caught.value)
        for param, weight in zip(trainer.models.unet.parameters(), before, strict=True):
            assert torch.equal(param, weight)


@pytest.mark.parametrize("weight_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bad_value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_optimizer_moves(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, weight_dtype: str, bad_value: float
) -> None:
    config = small_config(tmp_path, tiny_sdxl, jsonl, weight_dtype=weight_dtype, max_grad_norm=1.0)
    with ready(config) as trainer:
        before = [param.detach().clone() for param in trainer.models.unet.parameters()]
        bias = trainer.models.unet.conv_in.bias
        bias.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([3]), bad_value))
        micro_batches = next(iter(trainer.loader))
        with pytest.raises(NonFiniteLossError, match=r"the norm of the gradient is (nan|inf) at step 1") as caught:
            trainer.train_step(micro_batches)
        assert micro_batches[0]["image_names"][1] in str(caught.value)
        for param, weight in zip(trainer.models.unet.parameters(), before, strict=True):
            assert torch.equal(param, weight)


def test_a_launchers_accumulation_setting_does_not_scale_the_gradient(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    for number in ("1", "4"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", number)
        with ready(small_config(tmp_path, tiny_sdxl, jsonl)) as trainer:
            trainer.train_step(next(iter(trainer.loader)))
            norms.append(trainer.meter.grad_norm)
    assert norms[0] == norms[1]


def test_dropped_captions_train_the_empty_prompt_of_both_encoders_together(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    overrides = ["caption_dropout=1.0"]
    for mode in ("zeros", "encoded"):
        config = small_config(tmp_path, tiny_sdxl, jsonl, *overrides, caption_dropout_mode=mode)
        with ready(config) as trainer:
            (batch,) = next(iter(trainer.loader))
            inputs = trainer.inputs.build(batch, step=0)
            pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
            expected, _, expected_pooled, _ = pipeline.encode_prompt("", do_classifier_free_guidance=False)
            scale = 1.0 if mode == "encoded" else 0.0
            for index in range(2):
                torch.testing.assert_close(inputs.prompt_embeds[index], scale * expected[0], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(
                    inputs.pooled_prompt_embeds[index], scale * expected_pooled[0], rtol=1e-4, atol=1e-5
                )


def test_mixed_dropout_uses_zeros_about_half_of_the_time(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    with ready(small_config(tmp_path, tiny_sdxl, jsonl, "caption_dropout=1.0")) as trainer:
        (batch,) = next(iter(trainer.loader))
        zeros = sum(
            not trainer.inputs.build(batch, step=step).prompt_embeds[index].any()
            for step in range(100)
            for index in range(2)
        )
        assert 70 <= zeros <= 130  # of 200; standard deviation 7


def test_cached_and_live_encoders_give_the_same_embeddings(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    embeddings = []
    for is_cached in (True, False):
        config = small_config(
            tmp_path, tiny_sdxl, jsonl, cache_text_encoder_outputs=is_cached, cache_vae_outputs=is_cached
        )
        with ready(config) as trainer:
            (batch,) = next(iter(trainer.loader))
            assert ("latents" in batch) == is_cached
            inputs = trainer.inputs.build(batch, step=0)
            embeddings.append((batch["image_ids"], inputs.prompt_embeds, inputs.pooled_prompt_embeds))
            assert inputs.latents.shape == (2, 4, 16, 16)
            assert inputs.latents.dtype == torch.float32
    assert embeddings[0][0] == embeddings[1][0]
    torch.testing.assert_close(embeddings[0][1], embeddings[1][1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embeddings[0][2], embeddings[1][2], rtol=1e-4, atol=1e-5)


def test_live_pictures_are_encoded_one_at_a_time(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    with ready(small_config(tmp_path, tiny_sdxl, jsonl, cache_vae_outputs=False)) as trainer:
        seen = []
        trainer.models.vae.encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
        (batch,) = next(iter(trainer.loader))
        assert len(trainer.inputs.build(batch, step=0).latents) == 2
        assert seen == [1, 1]


def test_target_sizes_are_the_buckets_and_under_compat_the_resolution(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    buckets = {"target_resolution": 64, "start_dim": 32, "end_dim": 96, "divisible_by": 16}
    targets = {}
    for compat in ("none", "invoke-training"):
        config = small_config(tmp_path, tiny_sdxl, jsonl, f"data_loader.aspect_ratio_buckets={buckets}", compat=compat)
        with ready(config) as trainer:
            steps = iter(trainer.loader)
            batches = [batch for _ in range(trainer.steps_per_epoch) for batch in next(steps)]
            pixel_sizes = [[side * 4 for side in batch["latents"].shape[-2:]] for batch in batches]
            targets[compat] = {tuple(row[4:].tolist()) for batch in batches for row in batch["time_ids"]}
            if compat == "none":
                assert targets[compat] == {tuple(map(float, size)) for size in pixel_sizes}
    assert len(targets["none"]) > 1
    assert targets["invoke-training"] == {(64.0, 64.0)}
