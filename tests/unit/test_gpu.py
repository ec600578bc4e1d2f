"""GPU readings, as far as the machine has any."""

import pytest

from tuitrain.gpu import read_gpus


def test_every_gpu_of_the_driver_is_read_and_none_without_a_driver() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert read_gpus() == []
        return
    readings = read_gpus()
    assert [reading.index for reading in readings] == list(range(pynvml.nvmlDeviceGetCount()))
    for reading in readings:
        assert reading.memory_used_gib is None or reading.memory_used_gib >= 0
