"""What the NVIDIA driver says of its GPUs, by NVML; knows no torch and starts nothing on the device."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import pynvml


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """One GPU now. What a device or driver does not tell is None.

    Args:
        index: the driver's, which CUDA_VISIBLE_DEVICES does not change.
        name: "NVIDIA H100 80GB HBM3".
        memory_used_gib: by all processes, GiB.
        memory_total_gib: GiB.
        utilization_pct: share of the last second or so in which a kernel ran.
        temperature_c: of the chip, °C.
        power_w: drawn, W.
        power_limit_w: enforced, W.
        memory_by_pid_gib: what each process that computes holds, GiB; empty where the driver does not tell, and
            numbered by the driver, which inside a container are not the process ids seen there.
    """

    index: int
    name: str
    memory_used_gib: float | None
    memory_total_gib: float | None
    utilization_pct: float | None
    temperature_c: float | None
    power_w: float | None
    power_limit_w: float | None
    memory_by_pid_gib: dict[int, float] = field(default_factory=dict)


def read_gpus() -> list[GpuReading]:
    """All GPUs of this machine; empty without an NVIDIA driver."""
    if not _start_nvml():
        return []
    return [_read_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]


@functools.cache
def _start_nvml() -> bool:
    """Once a process, because it takes the driver tens of milliseconds."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def _read_gpu(index: int) -> GpuReading:
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    return GpuReading(
        index=index,
        name=pynvml.nvmlDeviceGetName(gpu),
        memory_used_gib=_ask(lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**30),
        memory_total_gib=_ask(lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).total / 2**30),
        utilization_pct=_ask(lambda: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
        temperature_c=_ask(lambda: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU)),
        power_w=_ask(lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
        power_limit_w=_ask(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000),
        memory_by_pid_gib=_memory_by_pid(gpu),
    )


def _memory_by_pid(gpu: "pynvml.c_nvmlDevice_t") -> dict[int, float]:
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    except pynvml.NVMLError:
        return {}
    return {process.pid: process.usedGpuMemory / 2**30 for process in processes if process.usedGpuMemory is not None}


def _ask(read: Callable[[], float]) -> float | None:
    """The reading, or None where there is none: a passive card, a MIG slice, unified memory, a GPU off the bus."""
    try:
        return read()
    except pynvml.NVMLError:
        return None
