"""The device an export calculates on; knows no model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tuitrain.errors import DeviceError


def open_device(device: torch.device | str | None) -> torch.device:
    """`device`; None is CUDA where torch can use it, else the CPU.

    Raises:
        DeviceError: it is CUDA, and torch cannot use it.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise DeviceError("there is no CUDA device that torch can use", hint="`tuitrain doctor` tells why")
    return torch.device(device)


@contextmanager
def lack_of_memory_told(device: torch.device, work: str, hint: str) -> Iterator[None]:
    """While entered, too little memory for `work` is a DeviceError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"the memory of {device} is too small for {work}", hint=hint) from error
