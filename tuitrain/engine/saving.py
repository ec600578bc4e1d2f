"""Checkpoints of a run: written when the disk has room, then older ones pruned; knows neither loop nor optimizer."""

import errno
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tuitrain.config.files import config_hash
from tuitrain.config.schema import TrainConfig
from tuitrain.engine.checkpoint import num_saved_bytes, write_frozen_parts, write_unet
from tuitrain.engine.diffusion import NoiseSchedule
from tuitrain.engine.failure import is_disk_full
from tuitrain.engine.phase import Emit, Phase, Pulse, running_phase
from tuitrain.engine.preparation import DTYPES
from tuitrain.engine.sdxl import SDXLModels
from tuitrain.engine.state import TrainingState, write_state
from tuitrain.errors import CheckpointError
from tuitrain.runs import events
from tuitrain.runs.checkpoints import checkpoint_name, prune_checkpoints, publish_checkpoint
from tuitrain.runs.control import Command
from tuitrain.runs.states import list_states, remove_states
from tuitrain.wording import format_bytes

PAUSE_POLL_SECONDS = 0.2
WRITE_PATIENCE_SECONDS = 300.0  # fsync on a slow disk
SMALL_FILES_BYTES = 4 << 20  # of a checkpoint beside its tensors: configs, tokenizers, headers, manifests
ROOM_RETRY_SECONDS = 60.0  # a quota that is used up shows in no number but the failed write


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


class Saver:
    """Makes the checkpoints of a run and prunes older ones; a full disk makes it wait for room.

    Args:
        config: which files, in which dtype, and how many checkpoints stay.
        checkpoints_dir: where they are.
        models: the base model with the trained UNet.
        schedule: what was trained.
        base_model_hash: of the UNet's files when the run began.
        total_steps: optimizer steps of the run.
        resumed_from: the checkpoint that the run went on from, which stays until the run is complete.
        emit: takes every Event.
        pulse: beaten while writing and waiting.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        checkpoints_dir: Path,
        models: SDXLModels,
        schedule: NoiseSchedule,
        base_model_hash: str,
        total_steps: int,
        resumed_from: Path | None,
        emit: Emit,
        pulse: Pulse,
    ) -> None:
        self.config = config
        self.checkpoints_dir = checkpoints_dir
        self.models = models
        self.schedule = schedule
        self.base_model_hash = base_model_hash
        self.total_steps = total_steps
        self.resumed_from = resumed_from
        self._emit = emit
        self._pulse = pulse
        self._config_hash = config_hash(config)
        self._dtype = DTYPES[config.save_dtype]
        self._is_full = config.save_checkpoint_format == "full_diffusers"

    def save(self, content: CheckpointContent) -> None:
        """Publish a checkpoint; only then prune older ones."""
        if not self.write_when_there_is_room(content):
            return
        self.prune(content.step)
        if self.config.save_state == "last":
            self.keep_one_state(self.checkpoints_dir / content.name)

    def prune(self, step: int) -> None:
        """Delete the checkpoints that max_checkpoints leaves no room for, now that the one of `step` stands."""
        if self.config.max_checkpoints is None:
            return
        is_complete = step >= self.total_steps  # then nobody goes back to where it was resumed
        protected = {self.resumed_from} if self.resumed_from is not None and not is_complete else set()
        try:
            names = prune_checkpoints(self.checkpoints_dir, self.config.max_checkpoints, protected=protected)
        except OSError as error:
            self._warn(f"old checkpoints cannot be deleted: {error}", "delete them by hand")
            return
        for name in names:
            self._emit(events.CheckpointPruned(name=name))

    def keep_one_state(self, checkpoint: Path) -> None:
        """Remove all states but that of `checkpoint`, which was verified when it was published."""
        others = [path for path in list_states(self.checkpoints_dir) if path != checkpoint]
        try:
            remove_states(others)
        except OSError as error:
            self._warn(f"older states cannot be deleted: {error}", "delete them by hand")

    def write_when_there_is_room(self, content: CheckpointContent) -> bool:
        """Write a checkpoint; on a full disk pause, and try again when there is room or on a resume.

        A resume that finds no room either trains on without this checkpoint; a stop ends the run without it.

        Returns:
            Whether it stands.
        """
        is_last_try = False
        while True:
            needed = self.num_bytes(content) + SMALL_FILES_BYTES
            saved = None
            with running_phase("save", self._emit, self._pulse, can_stop=False) as phase:
                try:
                    self.check_room(content, needed)
                    saved = self.write(content, phase)
                except CheckpointError as error:
                    if not is_disk_full(error):
                        raise
                    phase.detail = "no room on the disk"
                    reason = error.problems[0].what
            if saved is not None:
                self._emit(saved)
                return True
            free = self.num_free_bytes()
            self._warn(
                f"step {content.step} is not saved: {reason} ({format_bytes(needed)} needed, {format_bytes(free)} free "
                f"in {self.checkpoints_dir})",
                "make room; the older checkpoints are untouched",
            )
            if is_last_try:
                return False
            command = self.wait_for_room(content.step, needed, has_had_room=free >= needed)
            if command is Command.STOP:
                return False
            is_last_try = command is Command.RESUME

    def wait_for_room(self, step: int, needed: int, *, has_had_room: bool) -> Command | None:
        """Pause until the disk has room, or a command ends the pause; gives that command.

        Args:
            step: completed steps.
            needed: bytes.
            has_had_room: the disk seemed to have room when the write failed: try again after a while.
        """
        self._emit(events.Paused(step=step))
        started = time.monotonic()
        while True:
            time.sleep(PAUSE_POLL_SECONDS)
            self._pulse.beat()
            if command := self._pulse.take(Command.RESUME):
                self._emit(events.CommandObeyed(command=command))
                break
            if self._pulse.is_stop_wanted:  # it is obeyed between steps, where all ranks hear of it
                command = Command.STOP
                break
            waited = time.monotonic() - started
            if self.num_free_bytes() >= needed and (not has_had_room or waited > ROOM_RETRY_SECONDS):
                break
        self._emit(events.Unpaused(step=step))
        return command

    def num_free_bytes(self) -> int:
        return shutil.disk_usage(self.checkpoints_dir).free

    def check_room(self, content: CheckpointContent, needed: int) -> None:
        """Check that a checkpoint fits, before any of it is written.

        Raises:
            CheckpointError: it does not, by the number of free bytes.
        """
        if self.num_free_bytes() < needed:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise CheckpointError(f"{content.name} does not fit on the disk") from full

    def num_bytes(self, content: CheckpointContent) -> int:
        """What the tensors of a checkpoint take on the disk, those of the state included."""
        num_bytes = num_saved_bytes(self.models, dtype=self._dtype, with_frozen_parts=self._is_full)
        return num_bytes + (content.state.num_bytes if content.state is not None else 0)

    def write(self, content: CheckpointContent, phase: Phase) -> events.CheckpointSaved:
        """Write and publish a checkpoint; gives the event that tells of it."""
        phase.detail = content.name
        num_bytes, done = self.num_bytes(content), 0

        def written(num_tensor_bytes: int) -> None:
            nonlocal done
            done += num_tensor_bytes
            phase.report(done, num_bytes)

        with publish_checkpoint(
            self.checkpoints_dir, epoch=content.epoch, step=content.step, read=lambda _num_bytes: self._pulse.beat()
        ) as staged:
            tensors = content.weights.items()
            hashes = write_unet(staged.path, self.models, tensors, dtype=self._dtype, written=written)
            if self._is_full:
                hashes |= write_frozen_parts(
                    staged.path, self.models, self.schedule, dtype=self._dtype, written=written
                )
            if content.state is not None:
                write_state(staged.path, content.state, written=written, known_sha256=hashes)
            self._pulse.beat(patience_seconds=WRITE_PATIENCE_SECONDS)
            manifest = staged.finish(
                kind=self.config.save_checkpoint_format,
                weights="ema" if content.is_average else "trained",
                config_hash=self._config_hash,
                base_model=self.config.model,
                base_model_hash=self.base_model_hash,
                prediction_type=self.schedule.prediction_type,
                save_dtype=self.config.save_dtype,
                last_losses=content.last_losses,
                validation_images=content.validation_images,
                known_sha256=hashes,
            )
        return events.CheckpointSaved(
            step=content.step,
            epoch=content.epoch,
            name=content.name,
            num_bytes=sum(file.size for file in manifest.files),
            seconds=phase.seconds,
        )

    def _warn(self, what: str, hint: str) -> None:
        self._emit(events.WarningRaised(what=what, hint=hint))
