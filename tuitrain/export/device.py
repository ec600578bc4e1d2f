"""The device an export calculates on; knows no model."""

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
