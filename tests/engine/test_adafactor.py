"""Adafactor against torch's own."""

import pytest
import torch
from torch.nn import Parameter

from tuitrain.engine.adafactor import Adafactor

SETTINGS = {"lr": 3e-2, "beta2_decay": -0.8, "weight_decay": 0.1}


def pair(shape: tuple[int, ...], stored: tuple[int, ...]) -> tuple[Parameter, Parameter]:
    """The same weights twice, in the shape of ours and in that of torch's."""
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.3
    return Parameter(weights.clone()), Parameter(weights.reshape(stored).clone())


@pytest.mark.parametrize("clip_threshold", [1.0, 2.0])
@pytest.mark.parametrize(
    ("shape", "as_torch_sees_it"), [((7,), (7,)), ((6, 10), (6, 10)), ((4, 5, 3, 3), (4, 45))], ids=str
)
def test_steps_are_torchs_where_a_convolution_is_a_matrix(
    shape: tuple[int, ...], as_torch_sees_it: tuple[int, ...], clip_threshold: float
) -> None:
    ours, theirs = pair(shape, as_torch_sees_it)
    optimizer = Adafactor([ours], eps=1e-3, clip_threshold=clip_threshold, **SETTINGS)
    reference = torch.optim.Adafactor([theirs], eps=(None, 1e-3), d=clip_threshold, foreach=False, **SETTINGS)
    for step in range(6):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(10 + step)) * 10.0 ** (step - 3)
        ours.grad, theirs.grad = gradient.clone(), gradient.reshape(as_torch_sees_it).clone()
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours.reshape(as_torch_sees_it), theirs, rtol=1e-5, atol=1e-7)


def test_a_gradient_of_zeros_moves_nothing() -> None:
    param = Parameter(torch.ones(3, 4))
    param.grad = torch.zeros(3, 4)
    Adafactor([param], lr=0.1, beta2_decay=-0.8, eps=1e-3, clip_threshold=1.0, weight_decay=0.0).step()
    assert torch.equal(param, torch.ones(3, 4))


def test_a_convolution_keeps_one_row_and_one_column() -> None:
    param = Parameter(torch.randn(8, 6, 3, 3))
    param.grad = torch.randn(8, 6, 3, 3)
    optimizer = Adafactor([param], eps=1e-3, clip_threshold=1.0, **SETTINGS)
    optimizer.step()
    sizes = [value.numel() for value in optimizer.state[param].values() if isinstance(value, torch.Tensor)]
    assert sorted(sizes) == [8, 54]


def test_no_number_is_read_on_the_host() -> None:
    """Tensors without content, as on the meta device, cannot be read: the step works on them all the same."""
    param = Parameter(torch.empty(4, 5, 3, 3, device="meta"))
    param.grad = torch.empty_like(param)
    Adafactor([param], eps=1e-3, clip_threshold=1.0, **SETTINGS).step()
