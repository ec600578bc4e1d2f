"""What is measured while training, and its copy for TensorBoard and its kin; the journal is the original."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import torch
from accelerate import Accelerator
from PIL.Image import Image
from torch import Tensor

from tuitrain.runs.events import StepLogged
from tuitrain.runs.states import MeterState

TRACKER_NAME = "finetune"


@dataclass
class StepMeter:
    """Sums over the optimizer steps since the last report, and numbers of the last of them.

    Sampling and saving are not training: `skip` takes their time out.

    Args:
        data_seconds: waited for data; counts as training.
        grad_norm: before it was clipped.
    """

    loss_sum: float = 0.0
    data_seconds: float = 0.0
    num_steps: int = 0
    num_images: int = 0
    lr: float = 0.0
    grad_norm: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def add(self, loss: float, *, num_images: int, lr: float, grad_norm: float) -> None:
        self.loss_sum += loss
        self.num_steps += 1
        self.num_images += num_images
        self.lr, self.grad_norm = lr, grad_norm

    def skip(self, seconds: float) -> None:
        self.started += seconds

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Take out what is done inside."""
        started = time.monotonic()
        yield
        self.skip(time.monotonic() - started)

    def to_state(self) -> MeterState:
        """What the next report needs, for a saved state."""
        return MeterState(
            loss_sum=self.loss_sum,
            data_seconds=self.data_seconds,
            num_steps=self.num_steps,
            num_images=self.num_images,
            lr=self.lr,
            grad_norm=self.grad_norm,
            seconds=self.seconds,
        )

    @classmethod
    def from_state(cls, state: MeterState) -> "StepMeter":
        """A meter that goes on from a saved state."""
        return cls(
            loss_sum=state.loss_sum,
            data_seconds=state.data_seconds,
            num_steps=state.num_steps,
            num_images=state.num_images,
            lr=state.lr,
            grad_norm=state.grad_norm,
            started=time.monotonic() - state.seconds,
        )

    @property
    def loss(self) -> float:
        """Mean loss of the steps."""
        return self.loss_sum / self.num_steps

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class DeviceMemory(TypedDict):
    """GiB of device memory by this process's tensors; all None on a CPU."""

    allocated_memory_gib: float | None  # in use now
    reserved_memory_gib: float | None  # held for tensors, in use or not
    peak_memory_gib: float | None  # most in use since the last reading


def take_memory(device: torch.device) -> DeviceMemory:
    """Read the memory of `device` and begin a new peak; waits for nothing."""
    if device.type != "cuda":
        return DeviceMemory(allocated_memory_gib=None, reserved_memory_gib=None, peak_memory_gib=None)
    memory = DeviceMemory(
        allocated_memory_gib=torch.cuda.memory_allocated(device) / 2**30,
        reserved_memory_gib=torch.cuda.memory_reserved(device) / 2**30,
        peak_memory_gib=torch.cuda.max_memory_allocated(device) / 2**30,
    )
    torch.cuda.reset_peak_memory_stats(device)
    return memory


class HostScalars:
    """Scalars of a step on the host; reading them waits for what made them and for nothing queued after it."""

    def __init__(self, device: torch.device, *, num: int) -> None:
        self._is_cuda = device.type == "cuda"
        self._scalars = torch.zeros(num, pin_memory=self._is_cuda)
        self._copied = torch.cuda.Event() if self._is_cuda else None

    def read(self, *scalars: Tensor) -> list[float]:
        """Their values, in order; one wait for all of them."""
        self._scalars.copy_(torch.stack([scalar.float() for scalar in scalars]), non_blocking=True)
        if self._copied is not None:
            self._copied.record()
            self._copied.synchronize()
        return self._scalars.tolist()


class TrackerMirror:
    """Copies losses, learning rates and pictures to the trackers that `report_to` names.

    A tracker that cannot write (a full disk) is dropped with one warning: it must never end a run.

    Args:
        accelerator: its trackers are started by `start`.
        warn: takes what happened and a hint.
    """

    def __init__(self, accelerator: Accelerator, warn: Callable[[str, str], None]) -> None:
        self._accelerator = accelerator
        self._warn = warn

    def start(self, config_text: str, *, resumed_from: int | None) -> None:
        """Open `logs/finetune`, which may hold what is there from before, and write the configuration as text.

        Args:
            resumed_from: the step that is gone on from; TensorBoard shows nothing older beyond it.
        """
        options = {} if resumed_from is None else {"tensorboard": {"purge_step": resumed_from + 1}}
        with _Guard(self):
            self._accelerator.init_trackers(TRACKER_NAME, init_kwargs=options)
            for tracker in self._accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.writer.add_text("configuration", f"```yaml\n{config_text}\n```")

    def log_step(self, event: StepLogged) -> None:
        values = {"train_loss": event.loss, "lr/unet": event.lr}
        if event.d is not None:
            values["lr/d*lr/unet"] = event.d * event.lr
        if event.grad_norm is not None:
            values["grad_norm"] = event.grad_norm
        with _Guard(self):
            self._accelerator.log(values, step=event.step)

    def log_images(self, prompt_index: int, pictures: Sequence[Image], *, step: int) -> None:
        """The pictures of one prompt, as (N, H, W, 3)."""
        with _Guard(self):
            values = {f"validation (prompt {prompt_index})": np.stack([np.asarray(picture) for picture in pictures])}
            for tracker in self._accelerator.trackers:
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(values, step=step, **layout)

    def drop(self, error: OSError) -> None:
        self._accelerator.trackers = []
        self._warn(f"the trackers were switched off: {error}", "the journal still has every number")


class _Guard:
    """Turns a tracker's failure to write into a warning."""

    def __init__(self, mirror: TrackerMirror) -> None:
        self._mirror = mirror

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if isinstance(error, OSError):
            self._mirror.drop(error)
            return True
        return False
