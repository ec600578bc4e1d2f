"""Optimizers and learning-rate schedules; knows parameters, not models.

Low-precision weights are stepped in float32 and rounded back stochastically: a bfloat16 weight near 0.02 moves by
6e-5 or not at all, so that round-to-nearest would drop most updates of a learning rate of 1e-5.
"""

import contextlib
import io
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, overload

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from tuitrain.engine.adafactor import Adafactor

# 32 Mi values a chunk: 128 MiB of float32 copies at a time, and few enough kernel launches.
CHUNK_NUMEL = 32 * 1024 * 1024

OptimizerBuilder = Callable[[list[Parameter]], torch.optim.Optimizer]


def stochastic_round_(low: Tensor, high: Tensor, generator: torch.Generator) -> None:
    """Write float32 `high` into bfloat16 `low`, rounding up or down with the probability that keeps the mean.

    bfloat16 is the upper half of float32: adding uniform 16-bit noise to the bits and cutting the lower half off
    rounds away from zero with probability equal to the fraction that is cut.

    Args:
        low: bfloat16, any shape, overwritten.
        high: float32 and finite, the same shape and device.
        generator: on the same device.

    Source: Gupta et al. 2015 (arXiv 1502.02551), section 3.
    """
    noise = torch.randint(0, 1 << 16, high.shape, dtype=torch.int32, device=high.device, generator=generator)
    low.copy_(noise.add_(high.view(torch.int32)).bitwise_and_(-(1 << 16)).view(torch.float32))


class StochasticRoundingOptimizer(torch.optim.Optimizer):
    """Steps bfloat16 weights in float32 chunk by chunk; states are float32, or 8 bit, never bfloat16.

    For the time of its step a chunk's weights and gradients are float32 copies in twins of the parameters; the inner
    optimizer, any torch optimizer, sees nothing else. The parameters themselves keep their dtype throughout: were it to
    change, autograd would forget their hooks, and with them DistributedDataParallel's sum over ranks. Gradients are
    freed chunk by chunk.

    Args:
        params: bfloat16 parameters.
        build: makes the inner optimizer of one chunk.
        chunk_numel: values stepped at a time; None steps all together, for optimizers with global statistics.
        seed: of the rounding; equal on all ranks, since all round the same weights.
    """

    def __init__(
        self, params: Iterable[Parameter], build: OptimizerBuilder, *, chunk_numel: int | None, seed: int
    ) -> None:
        params = list(params)
        self._chunks = [
            [(param, Parameter(torch.empty(0, device=param.device))) for param in chunk]
            for chunk in _chunks(params, chunk_numel)
        ]
        self._inner = [build([twin for _, twin in chunk]) for chunk in self._chunks]
        super().__init__(params, {"lr": self._inner[0].param_groups[0]["lr"], "num_steps": 0})
        self._seed = seed
        self._generator = torch.Generator(params[0].device)

    @property
    def d(self) -> float | None:
        """Prodigy's estimate of the distance to the solution; None for other optimizers."""
        return prodigy_d(self._inner[0])

    @property
    def with_inner(self) -> list[torch.optim.Optimizer]:
        """Itself and the inner optimizers, one a chunk."""
        return [self, *self._inner]

    @overload
    def step(self, closure: None = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        assert closure is None, "closures are not supported"
        group = self.param_groups[0]
        # seeded by the step, as all randomness here, so that a resumed step rounds as it would have
        self._generator.manual_seed(random.Random(f"rounding/{self._seed}/{group['num_steps']}").getrandbits(63))
        group["num_steps"] += 1
        for inner, chunk in zip(self._inner, self._chunks, strict=True):
            inner.param_groups[0]["lr"] = group["lr"]
            pairs = [(param, twin) for param, twin in chunk if param.grad is not None]
            for param, twin in pairs:
                inner.state[twin] = self.state[param]  # one and the same dict, kept under the parameter
            with _in_float32(pairs, self._generator):
                inner.step()
        return None


@contextlib.contextmanager
def _in_float32(pairs: Sequence[tuple[Parameter, Parameter]], generator: torch.Generator) -> Iterator[None]:
    """Let the second of each pair be the first in float32 inside, and round it back at the end."""
    for param, twin in pairs:
        assert param.grad is not None
        twin.data = param.data.float()
        twin.grad, param.grad = param.grad.float(), None
    yield
    for param, twin in pairs:
        stochastic_round_(param.data, twin.data, generator)
        twin.grad = None
        twin.data = torch.empty(0, device=param.device)


def _chunks(params: Sequence[Parameter], chunk_numel: int | None) -> list[list[Parameter]]:
    if chunk_numel is None:
        return [list(params)]
    chunks: list[list[Parameter]] = []
    room = 0
    for param in params:
        if not chunks or param.numel() > room:
            chunks.append([])
            room = chunk_numel
        chunks[-1].append(param)
        room -= param.numel()
    return chunks


def build_adamw(
    params: list[Parameter], *, lr: float, betas: tuple[float, float], weight_decay: float, eps: float, use_8bit: bool
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), or bitsandbytes' with block-wise 8-bit states (Dettmers et al. 2022)."""
    if use_8bit:
        import bitsandbytes

        optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
            params, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps
        )
        return optimizer
    # foreach would hold a second copy of all weights while it steps
    return torch.optim.AdamW(params, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps, fused=True)


def build_adafactor(
    params: list[Parameter],
    *,
    lr: float,
    beta2_decay: float,
    eps: float,
    clip_threshold: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Adafactor (Shazeer & Stern 2018): second moments as row and column means, 18 MiB for the whole UNet."""
    return Adafactor(
        params, lr=lr, beta2_decay=beta2_decay, eps=eps, clip_threshold=clip_threshold, weight_decay=weight_decay
    )


def build_prodigy(
    params: list[Parameter], *, lr: float, weight_decay: float, use_bias_correction: bool, safeguard_warmup: bool
) -> torch.optim.Optimizer:
    """Prodigy (Mishchenko & Defazio 2023), which finds its own step size."""
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):  # it announces its weight decay with print
        optimizer: torch.optim.Optimizer = Prodigy(
            params,
            lr=lr,
            weight_decay=weight_decay,
            use_bias_correction=use_bias_correction,
            safeguard_warmup=safeguard_warmup,
        )
    return optimizer


def build_optimizer(
    params: Iterable[Parameter], build: OptimizerBuilder, *, has_global_statistics: bool, seed: int
) -> torch.optim.Optimizer:
    """An optimizer that is right for the dtype: plain for float32 weights, with stochastic rounding for bfloat16.

    Args:
        build: makes the optimizer of a list of parameters.
        has_global_statistics: it needs all parameters in the same step (Prodigy).
        seed: of the rounding.
    """
    trainable = [param for param in params if param.requires_grad]
    if trainable[0].dtype == torch.float32:
        return build(trainable)
    chunk_numel = None if has_global_statistics else CHUNK_NUMEL
    return StochasticRoundingOptimizer(trainable, build, chunk_numel=chunk_numel, seed=seed)


def prodigy_d(optimizer: torch.optim.Optimizer) -> float | None:
    """Prodigy's `d`, by which the learning rate is multiplied; None for other optimizers."""
    if isinstance(optimizer, StochasticRoundingOptimizer):
        return optimizer.d
    d: Any = optimizer.param_groups[0].get("d")
    return float(d) if isinstance(d, (int, float, Tensor)) and "d_max" in optimizer.param_groups[0] else None


def optimizer_progress(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """What steps have changed in each group of parameters, beside the states and the learning rate: Prodigy's d.

    What a group was built with is a setting, and not in here.
    """
    return [
        {key: value for key, value in group.items() if key not in _NOT_PROGRESS and value != one.defaults.get(key)}
        for one in _with_inner(optimizer)
        for group in one.param_groups
    ]


def restore_progress(optimizer: torch.optim.Optimizer, progress: Sequence[dict[str, float]]) -> None:
    """Give a newly built optimizer the progress of another, which is built alike.

    Raises:
        ValueError: that one had other groups.
    """
    groups = [group for one in _with_inner(optimizer) for group in one.param_groups]
    for group, changed in zip(groups, progress, strict=True):
        group.update(changed)


_NOT_PROGRESS = {"params", "lr", "initial_lr"}


def _with_inner(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    return optimizer.with_inner if isinstance(optimizer, StochasticRoundingOptimizer) else [optimizer]


def build_lr_scheduler(
    optimizer: torch.optim.Optimizer,
    *,
    name: Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"],
    num_warmup_steps: int,
    num_training_steps: int,
) -> LambdaLR:
    """A learning-rate schedule counted in optimizer steps, whatever the number of processes.

    Source: diffusers `optimization.py:get_scheduler`.
    """
    scheduler: LambdaLR = get_scheduler(
        name, optimizer, num_warmup_steps=num_warmup_steps, num_training_steps=num_training_steps
    )
    return scheduler


def restore_lr_scheduler(scheduler: LambdaLR, *, step: int) -> None:
    """Put a newly built schedule where it stands after `step` steps, and its learning rates into the optimizer.

    The rate is a function of the settings and the step alone, so that a changed setting applies from here on.
    """
    scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": step, "_step_count": step + 1})
    rates = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    for group, base_lr, factor in rates:
        group["lr"] = base_lr * factor(step)
