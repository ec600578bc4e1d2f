"""The average of the weights."""

import pytest
import torch
from torch.nn import Parameter

from tuitrain.engine.ema import ExponentialMovingAverage


def test_the_average_follows_its_formula_in_float32() -> None:
    param = Parameter(torch.zeros(3))
    ema = ExponentialMovingAverage([param], decay=0.9)
    for _ in range(4):
        param.data.fill_(1.0)
        ema.update()
    torch.testing.assert_close(ema.averages[0], torch.full((3,), 1 - 0.9**4))


def test_the_average_of_bfloat16_weights_does_not_stall() -> None:
    param = Parameter(torch.full((3,), 1.0, dtype=torch.bfloat16))
    ema = ExponentialMovingAverage([param], decay=0.999)
    param.data.fill_(1.0078125)  # one step of bfloat16: 0.001 of it is far below the next
    for _ in range(1000):
        ema.update()
    expected = 1.0 + 0.0078125 * (1 - 0.999**1000)
    assert ema.averages[0][0].item() == pytest.approx(expected, rel=1e-5)


def test_applying_the_average_gives_back_the_very_same_weights() -> None:
    param = Parameter(torch.full((3,), 2.0, dtype=torch.bfloat16))
    ema = ExponentialMovingAverage([param], decay=0.5)
    param.data.fill_(4.0)
    ema.update()
    storage = param.data_ptr()
    with ema.applied():
        assert param.tolist() == [3.0, 3.0, 3.0]
        assert param.dtype == torch.bfloat16
    assert param.tolist() == [4.0, 4.0, 4.0]
    assert param.data_ptr() == storage
