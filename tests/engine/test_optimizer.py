"""Optimizer steps: nothing is lost in low precision, and every optimizer is the library's."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import Parameter

from tuitrain.engine.optimizer import (
    StochasticRoundingOptimizer,
    build_adafactor,
    build_adamw,
    build_lr_scheduler,
    build_optimizer,
    build_prodigy,
    prodigy_d,
    stochastic_round_,
)

Builder = Callable[[list[Parameter]], torch.optim.Optimizer]


def adamw(lr: float = 1e-5, weight_decay: float = 0.0, use_8bit: bool = False) -> Builder:
    def build(params: list[Parameter]) -> torch.optim.Optimizer:
        return build_adamw(params, lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay, eps=1e-8, use_8bit=use_8bit)

    return build


def adafactor(params: list[Parameter]) -> torch.optim.Optimizer:
    return build_adafactor(params, lr=1e-3, beta2_decay=-0.8, eps=1e-3, clip_threshold=1.0, weight_decay=0.0)


def prodigy(params: list[Parameter]) -> torch.optim.Optimizer:
    return build_prodigy(params, lr=1.0, weight_decay=0.01, use_bias_correction=True, safeguard_warmup=False)


def weights(dtype: torch.dtype, seed: int = 0, shape: tuple[int, ...] = (128, 128)) -> Parameter:
    return Parameter((torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype))


def train(optimizer: torch.optim.Optimizer, param: Parameter, num_steps: int) -> None:
    for step in range(num_steps):
        generator = torch.Generator().manual_seed(1000 + step)
        param.grad = (torch.randn(param.shape, generator=generator) * 1e-3 + 1e-3).to(param.dtype)
        optimizer.step()
        optimizer.zero_grad()


def test_rounding_is_one_of_the_two_neighbours_and_right_on_average() -> None:
    high = torch.full((100_000,), 1.0 + 0.25 * 2**-7)  # a quarter of the way from 1 to the next bfloat16
    low = torch.empty_like(high, dtype=torch.bfloat16)
    stochastic_round_(low, high, torch.Generator().manual_seed(0))
    assert set(low.tolist()) == {1.0, 1.0 + 2**-7}
    assert (low == 1.0 + 2**-7).float().mean().item() == pytest.approx(0.25, abs=0.01)  # 7 standard errors


def test_values_that_bfloat16_holds_are_not_changed_by_rounding() -> None:
    exact = torch.tensor([0.0, -1.5, 3.0, 2.0**-20, -(2.0**10)])
    low = torch.empty_like(exact, dtype=torch.bfloat16)
    stochastic_round_(low, exact, torch.Generator().manual_seed(0))
    assert torch.equal(low.float(), exact)


def test_negative_values_round_symmetrically() -> None:
    high = torch.full((100_000,), -(1.0 + 0.75 * 2**-7))
    low = torch.empty_like(high, dtype=torch.bfloat16)
    stochastic_round_(low, high, torch.Generator().manual_seed(0))
    assert low.float().mean().item() == pytest.approx(-(1.0 + 0.75 * 2**-7), abs=1e-4)


def test_bfloat16_weights_follow_float32_ones_where_plain_bfloat16_stands_still() -> None:
    exact, rounded, plain = weights(torch.float32), weights(torch.bfloat16), weights(torch.bfloat16)
    exact.data = rounded.detach().float()
    start = exact.detach().clone()
    train(build_optimizer([exact], adamw(), has_global_statistics=False, seed=0), exact, 20)
    train(build_optimizer([rounded], adamw(), has_global_statistics=False, seed=0), rounded, 20)
    train(torch.optim.AdamW([plain], lr=1e-5, weight_decay=0.0), plain, 20)
    wanted = (exact - start).mean().item()
    assert (rounded.float() - start).mean().item() == pytest.approx(wanted, rel=0.03)
    assert abs((plain.float() - start).mean().item()) < 0.6 * abs(wanted)


def test_weight_decay_is_not_lost_in_bfloat16() -> None:
    param = weights(torch.bfloat16)
    start = param.detach().float().clone()
    optimizer = build_optimizer([param], adamw(lr=1e-3, weight_decay=0.1), has_global_statistics=False, seed=0)
    for _ in range(50):
        param.grad = torch.zeros_like(param)
        optimizer.step()
    shrunk = (param.float().norm() / start.norm()).item()
    assert shrunk == pytest.approx((1 - 1e-3 * 0.1) ** 50, abs=5e-4)


@pytest.mark.parametrize("use_8bit", [False, True])
def test_optimizer_states_of_bfloat16_weights_are_never_bfloat16(use_8bit: bool) -> None:
    param = weights(torch.bfloat16)
    optimizer = build_optimizer([param], adamw(use_8bit=use_8bit), has_global_statistics=False, seed=0)
    train(optimizer, param, 2)
    state_dtypes = {
        value.dtype for value in optimizer.state[param].values() if isinstance(value, torch.Tensor) and value.ndim
    }
    assert state_dtypes == ({torch.uint8, torch.float32} if use_8bit else {torch.float32})


def test_the_second_moment_decays_for_bfloat16_weights() -> None:
    param = weights(torch.bfloat16)
    optimizer = build_optimizer([param], adamw(), has_global_statistics=False, seed=0)
    param.grad = torch.ones_like(param)
    optimizer.step()
    before = optimizer.state[param]["exp_avg_sq"].clone()
    param.grad = torch.zeros_like(param)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[param]["exp_avg_sq"], before * 0.999)


@pytest.mark.parametrize("build", [adamw(1e-3), adamw(1e-3, use_8bit=True), adafactor, prodigy])
def test_stepping_in_float32_is_what_the_librarys_own_step_does(build: Builder) -> None:
    low = weights(torch.bfloat16, seed=3)
    high = Parameter(low.detach().float())
    optimizer = StochasticRoundingOptimizer([low], build, chunk_numel=None, seed=0)
    reference = build([high])
    for seed in range(3):
        high.data = low.detach().float()  # one step from the same weights, with states carried on
        gradient = torch.randn(low.shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
        low.grad, high.grad = gradient.clone(), gradient.float()
        optimizer.step()
        reference.step()
        spacing = torch.maximum(high.abs(), torch.tensor(1e-30)) * 2**-7
        assert ((low.float() - high).abs() <= spacing).all()


def test_chunks_do_not_change_the_optimizers_arithmetic() -> None:
    together = [weights(torch.bfloat16, seed) for seed in range(4)]
    apart = [weights(torch.bfloat16, seed) for seed in range(4)]
    one = StochasticRoundingOptimizer(together, adamw(1e-3), chunk_numel=None, seed=0)
    many = StochasticRoundingOptimizer(apart, adamw(1e-3), chunk_numel=128 * 128, seed=0)
    assert len(many._inner) == 4
    for params, optimizer in ((together, one), (apart, many)):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    for first, second in zip(together, apart, strict=True):
        torch.testing.assert_close(one.state[first]["exp_avg"], many.state[second]["exp_avg"])


def test_the_same_seed_rounds_the_same_way() -> None:
    results = []
    for seed in (5, 5, 6):
        param = weights(torch.bfloat16)
        train(build_optimizer([param], adamw(), has_global_statistics=False, seed=seed), param, 3)
        results.append(param.detach().clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_step_keeps_the_weights_storage_and_frees_the_gradients() -> None:
    param = weights(torch.bfloat16)
    address = param.data_ptr()
    train(build_optimizer([param], adamw(), has_global_statistics=False, seed=0), param, 1)
    assert param.data_ptr() == address
    assert param.dtype == torch.bfloat16
    assert param.grad is None


def test_the_learning_rate_schedule_reaches_every_chunk() -> None:
    params = [weights(torch.bfloat16, seed) for seed in range(3)]
    optimizer = StochasticRoundingOptimizer(params, adamw(1e-3), chunk_numel=128 * 128, seed=0)
    scheduler = build_lr_scheduler(optimizer, name="constant_with_warmup", num_warmup_steps=4, num_training_steps=10)
    seen = []
    for _ in range(6):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        seen.append([inner.param_groups[0]["lr"] for inner in optimizer._inner])
        scheduler.step()
    assert seen == [[pytest.approx(1e-3 * min(1.0, step / 4))] * 3 for step in range(6)]


def test_prodigy_steps_all_weights_together_and_tells_its_d(capsys: pytest.CaptureFixture[str]) -> None:
    params = [weights(torch.bfloat16, seed) for seed in range(3)]
    optimizer = build_optimizer(params, prodigy, has_global_statistics=True, seed=0)
    assert prodigy_d(optimizer) == pytest.approx(1e-6)
    assert capsys.readouterr().out == ""
    plain = build_optimizer([weights(torch.float32)], prodigy, has_global_statistics=True, seed=0)
    assert prodigy_d(plain) == pytest.approx(1e-6)
    assert prodigy_d(build_optimizer([weights(torch.float32)], adamw(), has_global_statistics=False, seed=0)) is None


def test_a_step_leaves_autograds_hooks_in_place() -> None:
    """DistributedDataParallel sums gradients over ranks in hooks like this one."""
    param = weights(torch.bfloat16)
    accumulator = param.view_as(param).grad_fn.next_functions[0][0]
    calls = []
    accumulator.register_hook(lambda *_: calls.append(1))
    optimizer = build_optimizer([param], adamw(), has_global_statistics=False, seed=0)
    for _ in range(3):
        param.float().square().sum().backward()
        optimizer.step()
    assert len(calls) == 3
