"""Tensors and numbers of a training state: what comes back is what was there, and nothing else is taken."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.engine.harness import hash_tensors, prepared_trainer, small_config, write_pictures
from tuitrain.engine.ema import ExponentialMovingAverage
from tuitrain.engine.metrics import StepMeter
from tuitrain.engine.optimizer import (
    OptimizerBuilder,
    build_adafactor,
    build_adamw,
    build_lr_scheduler,
    build_optimizer,
    build_prodigy,
    optimizer_progress,
    restore_lr_scheduler,
)
from tuitrain.engine.state import MovingParts, plan_files, restore_tensors, take_state, write_state
from tuitrain.errors import CheckpointError
from tuitrain.runs.states import read_state

WEIGHTS = "unet/weights.safetensors"


def adamw(params: list[nn.Parameter], use_8bit: bool = False) -> torch.optim.Optimizer:
    return build_adamw(params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, eps=1e-8, use_8bit=use_8bit)


def adamw_8bit(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return adamw(params, use_8bit=True)


def adafactor(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return build_adafactor(params, lr=1e-2, beta2_decay=-0.8, eps=1e-3, clip_threshold=1.0, weight_decay=0.0)


def prodigy(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return build_prodigy(params, lr=1.0, weight_decay=0.01, use_bias_correction=True, safeguard_warmup=False)


def parts(
    build: OptimizerBuilder = adamw, *, dtype: torch.dtype = torch.float32, width: int = 80, ema: bool = False
) -> MovingParts:
    """Two layers, one of them large enough for 8 bits, and an output that starts at zero."""
    torch.manual_seed(0)
    unet = nn.Sequential(nn.Linear(8, width), nn.Linear(width, 64))
    nn.init.zeros_(unet[1].bias)
    unet = unet.to(dtype)
    params = list(unet.parameters())
    optimizer = build_optimizer(params, build, has_global_statistics=build is prodigy, seed=3)
    return MovingParts(unet, optimizer, ExponentialMovingAverage(params, 0.9) if ema else None, None)


def step(moving: MovingParts, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for param in moving.unet.parameters():
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
    moving.optimizer.step()
    if moving.ema is not None:
        moving.ema.update()


def save(moving: MovingParts, folder: Path) -> None:
    folder.mkdir()
    files = plan_files(moving, checkpoint_weights=WEIGHTS, save_dtype=torch.float16)
    state = take_state(
        moving,
        files,
        step=2,
        epoch=0,
        steps_per_epoch=3,
        loader={},
        meter=StepMeter(loss_sum=0.1, num_steps=1, num_images=2, lr=1e-3, grad_norm=0.5).to_state(),
        last_losses=[],
        sampled_step=-1,
        pictures_per_pass=None,
        num_skipped=0,
        settings={},
        world={},
    )
    write_state(folder, state, written=lambda num_bytes: None, known_sha256={})


def content(moving: MovingParts) -> list[object]:
    """Everything a step depends on."""
    states = [moving.optimizer.state[param] for param in moving.unet.parameters()]
    tensors = [value for state in states for _, value in sorted(state.items()) if isinstance(value, torch.Tensor)]
    numbers = [value for state in states for _, value in sorted(state.items()) if not isinstance(value, torch.Tensor)]
    averages = [] if moving.ema is None else moving.ema.averages
    hashes = [hash_tensors(some) for some in (moving.unet.parameters(), tensors, averages)]
    return [*hashes, numbers, optimizer_progress(moving.optimizer)]


def test_what_the_checkpoint_holds_bit_by_bit_is_not_stored_again() -> None:
    plans = [
        plan_files(parts(ema=ema, dtype=dtype), checkpoint_weights=WEIGHTS, save_dtype=save_dtype)
        for ema, dtype, save_dtype in (
            (False, torch.float32, torch.float32),
            (False, torch.float32, torch.float16),
            (False, torch.bfloat16, torch.bfloat16),
            (True, torch.float32, torch.float32),  # the checkpoint holds the average
            (True, torch.bfloat16, torch.bfloat16),
        )
    ]
    own, own_ema = "state/weights.safetensors", "state/ema.safetensors"
    assert [(plan.weights, plan.ema) for plan in plans] == [
        (WEIGHTS, None),
        (own, None),
        (WEIGHTS, None),
        (own, WEIGHTS),
        (own, own_ema),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("build", [adamw, adamw_8bit, adafactor, prodigy])
def test_every_optimizer_goes_on_from_its_files_as_it_would_have(
    build: OptimizerBuilder, dtype: torch.dtype, tmp_path: Path
) -> None:
    whole = parts(build, dtype=dtype, ema=True)
    for number in range(2):
        step(whole, number)
    save(whole, tmp_path / "checkpoint")
    resumed = parts(build, dtype=dtype, ema=True)
    state = read_state(tmp_path / "checkpoint")
    restore_tensors(tmp_path / "checkpoint", state, resumed, with_optimizer=True, with_ema=True)
    assert content(resumed) == content(whole)
    for moving in (whole, resumed):
        for number in range(2, 5):
            step(moving, number)
    assert content(resumed) == content(whole)


def test_a_changed_setting_of_the_optimizer_is_not_undone_by_a_state(tmp_path: Path) -> None:
    saved = parts(prodigy)
    step(saved, 0)
    save(saved, tmp_path / "checkpoint")

    def with_more_decay(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return build_prodigy(params, lr=1.0, weight_decay=0.5, use_bias_correction=True, safeguard_warmup=False)

    resumed = parts(with_more_decay)
    restore_tensors(
        tmp_path / "checkpoint", read_state(tmp_path / "checkpoint"), resumed, with_optimizer=True, with_ema=True
    )
    (group,) = resumed.optimizer.param_groups
    assert group["weight_decay"] == 0.5
    assert group["k"] == 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: parts(width=81), r"0\.weight has the shape \[80, 8\], the network's is \[81, 8\]"),
        (lambda: MovingParts(nn.Linear(8, 80), parts().optimizer, None, None), "0.bias is in one of them only"),
        (lambda: parts(prodigy, dtype=torch.bfloat16), "other groups of parameters"),
    ],
    ids=["shapes", "names", "optimizer"],
)
def test_a_state_of_something_else_is_refused(other: object, message: str, tmp_path: Path) -> None:
    saved = parts()
    step(saved, 0)
    save(saved, tmp_path / "checkpoint")
    state = read_state(tmp_path / "checkpoint")
    assert callable(other)
    with pytest.raises(CheckpointError, match=message):
        restore_tensors(tmp_path / "checkpoint", state, other(), with_optimizer=True, with_ema=True)


def test_a_path_that_is_not_among_the_verified_files_is_refused(tmp_path: Path) -> None:
    saved = parts()
    step(saved, 0)
    save(saved, tmp_path / "checkpoint")
    state = replace(read_state(tmp_path / "checkpoint"), weights_path="../elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="not among the files"):
        restore_tensors(tmp_path / "checkpoint", state, parts(), with_optimizer=True, with_ema=True)


def test_a_state_without_the_average_or_the_scale_that_is_needed_is_refused(tmp_path: Path) -> None:
    saved = parts()
    step(saved, 0)
    save(saved, tmp_path / "checkpoint")
    state = read_state(tmp_path / "checkpoint")
    with_ema = parts(ema=True)
    with pytest.raises(CheckpointError, match="lacks the average"):
        restore_tensors(tmp_path / "checkpoint", state, with_ema, with_optimizer=True, with_ema=True)
    restore_tensors(tmp_path / "checkpoint", state, with_ema, with_optimizer=True, with_ema=False)
    assert with_ema.ema is not None
    assert hash_tensors(with_ema.ema.averages) == hash_tensors(saved.unet.parameters())
    with_scaler = replace(parts(), scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(CheckpointError, match="lacks the scale"):
        restore_tensors(tmp_path / "checkpoint", state, with_scaler, with_optimizer=True, with_ema=True)


def test_a_state_of_an_optimizer_that_has_moved_nothing_is_one_of_steps_that_were_left_out(tmp_path: Path) -> None:
    save(parts(), tmp_path / "checkpoint")
    state = read_state(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="is in one of them only"):
        restore_tensors(tmp_path / "checkpoint", state, parts(), with_optimizer=True, with_ema=True)
    left_out = replace(state, num_skipped=state.step)
    restore_tensors(tmp_path / "checkpoint", left_out, parts(), with_optimizer=True, with_ema=True)


def test_the_scale_of_float16_comes_back(tmp_path: Path) -> None:
    saved = replace(parts(), scaler=torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3))
    assert saved.scaler is not None
    for number in range(4):  # grows once, and one step on the way to the next
        (saved.scaler.scale(torch.ones((), requires_grad=True))).backward()
        for param in saved.unet.parameters():
            param.grad = torch.full_like(param, 1e-3 * number)
        saved.scaler.step(saved.optimizer)
        saved.scaler.update()
    save(saved, tmp_path / "checkpoint")
    resumed = replace(parts(), scaler=torch.amp.GradScaler("cpu"))
    assert resumed.scaler is not None
    restore_tensors(
        tmp_path / "checkpoint", read_state(tmp_path / "checkpoint"), resumed, with_optimizer=True, with_ema=True
    )
    assert resumed.scaler.state_dict() == saved.scaler.state_dict()
    assert (resumed.scaler.get_scale(), resumed.scaler.state_dict()["_growth_tracker"]) == (16.0, 1)


@pytest.mark.parametrize(
    "name", ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
)
def test_a_restored_schedule_gives_the_rates_of_one_that_was_stepped(name: str) -> None:
    rates = []
    for start in (0, 4):
        optimizer = adamw([nn.Parameter(torch.zeros(1))])
        schedule = build_lr_scheduler(optimizer, name=name, num_warmup_steps=3, num_training_steps=9)
        restore_lr_scheduler(schedule, step=start)
        of_steps = []
        for _ in range(start, 9):
            of_steps.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        rates.append(of_steps)
    assert rates[0][4:] == rates[1]


def test_a_step_draws_nothing_from_the_global_generators(tmp_path: Path, tiny_sdxl: Path) -> None:
    """So a state need not hold them."""
    jsonl = write_pictures(tmp_path / "pictures")
    config = small_config(tmp_path, tiny_sdxl, jsonl, weight_dtype="bfloat16", caption_dropout=0.5)
    trainer = prepared_trainer(config)
    try:
        steps = iter(trainer.loader)
        before = torch.get_rng_state()
        for _ in range(2):
            trainer.train_step(trainer.next_micro_batches(steps))
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        trainer.close()
