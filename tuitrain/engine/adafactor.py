"""Adafactor with no word between host and GPU; knows parameters, not models.

torch's own reads two numbers of every tensor on the host, 3360 waits for the GPU in a step of SDXL, and keeps the
second moment of a 3x3 convolution as rows and columns of its 3x3 planes, 0.9 GiB for SDXL. Here a convolution is the
matrix (out, in * 3 * 3), which takes 18 MiB for all of SDXL; for matrices and vectors the arithmetic is torch's.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn import Parameter

_TINY = torch.finfo(torch.float32).eps


class Adafactor(torch.optim.Optimizer):
    """Adafactor (Shazeer & Stern 2018, arXiv 1804.04235), steps relative to the size of the weights.

    Args:
        params: float32 parameters.
        lr: the largest relative step size; 1 / sqrt(step) where that is smaller.
        beta2_decay: at step t the second moment keeps 1 - t ** beta2_decay.
        eps: least root mean square that a tensor is taken to have.
        clip_threshold: largest root mean square of an update, before the learning rate.
        weight_decay: pull towards zero, times the learning rate.
    """

    def __init__(
        self,
        params: Iterable[Parameter],
        *,
        lr: float,
        beta2_decay: float,
        eps: float,
        clip_threshold: float,
        weight_decay: float,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._step_one(param, param.grad, group)
        return None

    def _step_one(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        state["step"] = state.get("step", 0) + 1
        relative_lr = min(group["lr"], state["step"] ** -0.5)
        step_size = _root_mean_square(param).clamp_(min=group["eps"]).mul_(relative_lr)
        if group["weight_decay"]:
            param.mul_(1.0 - group["lr"] * group["weight_decay"])
        update = self._normalized(grad, state, state["step"] ** group["beta2_decay"])
        excess = (_root_mean_square(update) / group["clip_threshold"]).clamp_(min=1.0)
        param.sub_(update.mul_(step_size.div_(excess)))

    def _normalized(self, grad: Tensor, state: dict[str, Any], forgotten: float) -> Tensor:
        """`grad` over the root of its second moment, after that has taken `grad` in."""
        if grad.ndim < 2:
            if "variance" not in state:
                state["variance"] = torch.zeros_like(grad)
            second_moment: Tensor = state["variance"].lerp_(grad.square(), forgotten).clone()
            return second_moment.clamp_(min=_TINY**2).rsqrt_().mul_(grad)
        matrix = grad.flatten(1)
        if "row_var" not in state:
            state["row_var"] = matrix.new_zeros(matrix.shape[0], 1)
            state["col_var"] = matrix.new_zeros(1, matrix.shape[1])
        squares = matrix.square()
        row_var = state["row_var"].lerp_(squares.mean(dim=1, keepdim=True), forgotten)
        col_var = state["col_var"].lerp_(squares.mean(dim=0, keepdim=True), forgotten)
        estimate = torch.mul(row_var / row_var.mean().clamp_(min=_TINY), col_var, out=squares)
        return estimate.clamp_(min=_TINY**2).rsqrt_().mul_(matrix).view(grad.shape)


def _root_mean_square(tensor: Tensor) -> Tensor:
    """Scalar, on the tensor's device."""
    norm: Tensor = torch.linalg.vector_norm(tensor)
    return norm / math.sqrt(tensor.numel())
