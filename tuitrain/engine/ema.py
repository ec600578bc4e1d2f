"""Exponential moving average of the trained weights, in float32; knows parameters, not models."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter


class ExponentialMovingAverage:
    """Averages weights over steps: average <- decay * average + (1 - decay) * weights.

    The averages are float32 whatever the weights are: in bfloat16 a decay of 0.999 would round every change away.

    Args:
        params: the weights, averaged from their present values on.
        decay: 0.999 averages over about the last 1000 steps.
    """

    def __init__(self, params: Iterable[Parameter], decay: float) -> None:
        self.decay = decay
        self.params = list(params)
        self.averages = [param.detach().float().clone() for param in self.params]

    @torch.no_grad()
    def update(self) -> None:
        """Take one step's weights in."""
        for average, param in zip(self.averages, self.params, strict=True):
            average.lerp_(param.float(), 1.0 - self.decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew with the present weights."""
        for average, param in zip(self.averages, self.params, strict=True):
            average.copy_(param)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the parameters be the averages, in their own dtype, inside; afterwards they are the very same tensors."""
        weights = [param.data for param in self.params]
        for param, average in zip(self.params, self.averages, strict=True):
            param.data = average.to(param.dtype)
        try:
            yield
        finally:
            for param, weight in zip(self.params, weights, strict=True):
                param.data = weight

    def by_parameter(self) -> Mapping[Tensor, Tensor]:
        """The average of each parameter."""
        return dict(zip(self.params, self.averages, strict=True))
