"""Writes one checkpoint, in a thread of its own if need be; knows neither when to save, nor commands, nor journal."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

from torch import Tensor

from tuitrain.config.files import config_hash
from tuitrain.config.schema import TrainConfig
from tuitrain.engine.checkpoint import num_saved_bytes, write_frozen_parts, write_unet
from tuitrain.engine.diffusion import NoiseSchedule
from tuitrain.engine.preparation import DTYPES
from tuitrain.engine.sdxl import SDXLModels
from tuitrain.engine.state import TrainingState, write_state
from tuitrain.errors import CheckpointError
from tuitrain.runs.checkpoints import checkpoint_name, publish_checkpoint

SMALL_FILES_BYTES = 4 << 20  # of a checkpoint beside its tensors: configs, tokenizers, headers, manifests


@dataclass(frozen=True, kw_only=True)
class CheckpointContent:
    """What a checkpoint is made of, as it is after one step.

    Args:
        step: completed optimizer steps.
        epoch: completed epochs.
        weights: the UNet's tensors by name, averaged where an average is kept.
        is_average: they are.
        state: what a resume needs; None when no state is saved.
        last_losses: the last logged ones, oldest first.
        validation_images: of this step, relative to the run's folder.
    """

    step: int
    epoch: int
    weights: dict[str, Tensor]
    is_average: bool
    state: TrainingState | None
    last_losses: list[float]
    validation_images: list[str]

    @property
    def name(self) -> str:
        """Of the checkpoint's folder."""
        return checkpoint_name(self.epoch, self.step)

    @property
    def tensors(self) -> list[Tensor]:
        """Each once, also when it goes into two files."""
        of_state = {} if self.state is None else self.state.tensors
        return list(dict.fromkeys(chain(self.weights.values(), *(tensors.values() for tensors in of_state.values()))))

    def with_tensors(self, others: Mapping[Tensor, Tensor]) -> "CheckpointContent":
        """The same of other tensors, given by those that they replace."""

        def replaced(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: others[tensor] for name, tensor in tensors.items()}

        state = self.state
        if state is not None:
            state = replace(state, tensors={path: replaced(tensors) for path, tensors in state.tensors.items()})
        return replace(self, weights=replaced(self.weights), state=state)


class HostCopies:
    """Copies of a checkpoint's tensors, which no optimizer step changes.

    Their memory is kept for the next checkpoint: into fresh memory a copy takes five times as long (0.65 s against
    0.12 s for 0.8 GB), and freed memory would stay with the process anyway, as most tensors are small enough for the C
    library's heap.
    """

    def __init__(self) -> None:
        self._copies: list[Tensor] = []

    def num_missing_bytes(self, content: CheckpointContent) -> int:
        """Memory that a copy takes beside what is kept."""
        return sum(tensor.nbytes for tensor in content.tensors) - sum(copy.nbytes for copy in self._copies)

    def copy(self, content: CheckpointContent, copied: Callable[[int], None]) -> CheckpointContent:
        """The same content in memory of its own, over the copy that was made before.

        Args:
            copied: called after each tensor with its number of bytes.
        """
        earlier, self._copies = self._copies, []
        copies = {}
        for tensor, former in zip_longest(content.tensors, earlier[: len(content.tensors)]):
            if former is not None and (former.shape, former.dtype) == (tensor.shape, tensor.dtype):
                copies[tensor] = former.copy_(tensor.detach())  # waits for the device, as the other does
            else:
                copies[tensor] = tensor.detach().to("cpu", copy=True)
            self._copies.append(copies[tensor])
            copied(tensor.nbytes)
        return content.with_tensors(copies)


class CheckpointWriter:
    """Turns contents into published checkpoints; touches nothing that trains.

    Args:
        config: which files, in which dtype.
        checkpoints_dir: where to.
        models: the base model; of its UNet the config and the sizes are read, not the weights.
        schedule: what is trained.
        base_model_hash: of the UNet's files when the run began.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        checkpoints_dir: Path,
        models: SDXLModels,
        schedule: NoiseSchedule,
        base_model_hash: str,
    ) -> None:
        self.config = config
        self.checkpoints_dir = checkpoints_dir
        self.models = models
        self.schedule = schedule
        self.base_model_hash = base_model_hash
        self.config_hash = config_hash(config)
        self.dtype = DTYPES[config.save_dtype]
        self.is_full = config.save_checkpoint_format == "full_diffusers"

    def num_bytes(self, content: CheckpointContent) -> int:
        """What the tensors of a checkpoint take on the disk, those of the state included."""
        num_bytes = num_saved_bytes(self.models, dtype=self.dtype, with_frozen_parts=self.is_full)
        return num_bytes + (content.state.num_bytes if content.state is not None else 0)

    def num_needed_bytes(self, content: CheckpointContent) -> int:
        """What the disk must have free."""
        return self.num_bytes(content) + SMALL_FILES_BYTES

    def num_free_bytes(self) -> int:
        """What the disk has free.

        Raises:
            CheckpointError: it does not tell: it fails, or the folder is lost.
        """
        try:
            return shutil.disk_usage(self.checkpoints_dir).free
        except OSError as error:
            what = f"cannot write to {self.checkpoints_dir}: {error.strerror}"
            raise CheckpointError(what, hint="see that the folder is there and its disk works") from error

    def write(
        self, content: CheckpointContent, *, written: Callable[[int], None], read_back: Callable[[int], None]
    ) -> int:
        """Write, verify and publish a checkpoint.

        Args:
            written: called after each tensor with its number of bytes.
            read_back: called after each piece of a file that is verified with its number of bytes.

        Returns:
            The size of its files, bytes, without those of the state.

        Raises:
            CheckpointError: there is no room for it on the disk, or it cannot be written; nothing is left of it.
        """
        if self.num_free_bytes() < self.num_needed_bytes(content):
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise CheckpointError(f"{content.name} does not fit on the disk") from full
        with publish_checkpoint(self.checkpoints_dir, epoch=content.epoch, step=content.step, read=read_back) as staged:
            tensors = content.weights.items()
            hashes = write_unet(staged.path, self.models, tensors, dtype=self.dtype, written=written)
            if self.is_full:
                hashes |= write_frozen_parts(staged.path, self.models, self.schedule, dtype=self.dtype, written=written)
            if content.state is not None:
                write_state(staged.path, content.state, written=written, known_sha256=hashes)
            manifest = staged.finish(
                kind=self.config.save_checkpoint_format,
                weights="ema" if content.is_average else "trained",
                config_hash=self.config_hash,
                base_model=self.config.model,
                base_model_hash=self.base_model_hash,
                prediction_type=self.schedule.prediction_type,
                save_dtype=self.config.save_dtype,
                last_losses=content.last_losses,
                validation_images=content.validation_images,
                known_sha256=hashes,
            )
        return sum(file.size for file in manifest.files)


class WriterThread(threading.Thread):
    """Writes one checkpoint; whoever started it reads how far it is and how it ended, nothing else passes between them.

    Not a daemon: a process that ends waits for it.

    Attributes:
        content: what is written.
        num_written_bytes: of tensors, so far.
        num_read_bytes: of files that are verified, so far.
        num_published_bytes: the size of its files, once it stands.
        failure: why it does not, after the end.
        ended: when, on the monotonic clock.
    """

    def __init__(self, writer: CheckpointWriter, content: CheckpointContent) -> None:
        super().__init__(name=f"writer of step {content.step}", daemon=False)
        self.content = content
        self.num_written_bytes = 0
        self.num_read_bytes = 0
        self.num_published_bytes = 0
        self.failure: BaseException | None = None
        self.ended = 0.0
        self._writer = writer

    @property
    def has_ended(self) -> bool:
        return self.ident is not None and not self.is_alive()

    @property
    def num_moved_bytes(self) -> int:
        """Written or read: it does not hang while they become more."""
        return self.num_written_bytes + self.num_read_bytes

    def run(self) -> None:
        try:
            self.num_published_bytes = self._writer.write(
                self.content, written=self._count_written, read_back=self._count_read
            )
        except BaseException as error:  # noqa: BLE001  the thread's edge: the one that trains raises it
            self.failure = error
        self.ended = time.monotonic()

    def _count_written(self, num_bytes: int) -> None:
        self.num_written_bytes += num_bytes

    def _count_read(self, num_bytes: int) -> None:
        self.num_read_bytes += num_bytes
