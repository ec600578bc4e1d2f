"""The Trainer: builds everything a run needs, then steps; knows neither threads nor screens nor signals."""

import errno
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from torch import Tensor

from tuitrain.atomic import atomic_file
from tuitrain.config.files import config_hash, config_to_json, config_to_yaml
from tuitrain.config.schema import TrainConfig
from tuitrain.data.loader import Batch
from tuitrain.engine import diffusion
from tuitrain.engine.checkpoint import UNET_WEIGHTS, num_saved_bytes, write_frozen_parts, write_unet
from tuitrain.engine.ema import ExponentialMovingAverage
from tuitrain.engine.failure import is_disk_full
from tuitrain.engine.inputs import to_device
from tuitrain.engine.metrics import HostScalars, StepMeter, TrackerMirror, take_memory
from tuitrain.engine.optimizer import build_lr_scheduler, build_optimizer, prodigy_d, restore_lr_scheduler
from tuitrain.engine.phase import Emit, Phase, Pulse, StopRequested, running_phase
from tuitrain.engine.preparation import DTYPES, Preparation, Prepared, optimizer_builder
from tuitrain.engine.resume import OPTIMIZER_SETTINGS, ResumePoint, check_changes, library_versions, numeric_settings
from tuitrain.engine.state import (
    MovingParts,
    num_state_bytes,
    plan_files,
    restore_tensors,
    write_manifest,
    write_tensors,
)
from tuitrain.engine.validation import Validator
from tuitrain.engine.weights import hash_tensor
from tuitrain.errors import CheckpointError, NonFiniteLossError
from tuitrain.runs import events
from tuitrain.runs.checkpoints import checkpoint_name, prune_checkpoints, publish_checkpoint, reading, step_of_name
from tuitrain.runs.control import Command
from tuitrain.runs.events import Event, SampleImage
from tuitrain.runs.run import Run
from tuitrain.runs.states import list_states, remove_states
from tuitrain.wording import format_bytes

PAUSE_POLL_SECONDS = 0.2
# How long a single call into a library may take before the run counts as silent.
FIRST_STEP_PATIENCE_SECONDS = 600.0  # kernels are compiled and chosen, and an SDXL step on a CPU takes minutes
STEP_PATIENCE_SECONDS, STEP_PATIENCE_STEPS = 20.0, 20.0  # the longer of the two
WRITE_PATIENCE_SECONDS = 300.0  # decoding pictures on a CPU, fsync on a slow disk
NUM_LAST_LOSSES = 10
SMALL_FILES_BYTES = 4 << 20  # of a checkpoint beside its tensors: configs, tokenizers, headers, manifests
ROOM_RETRY_SECONDS = 60.0  # a quota that is used up shows in no number but the failed write
JPEG_QUALITY = 95


class Trainer:
    """Fine-tunes the UNet of one SDXL model.

    Args:
        config: fully determines the run; its seed is set.
        run: the folder everything is written to.
        emit: takes every Event; called in the main process only.
        pulse: beaten all along, and asked for the next Command between optimizer steps.
        resume: where to go on; its state is verified. None begins.
    """

    def __init__(
        self, config: TrainConfig, run: Run, emit: Emit, pulse: Pulse, *, resume: ResumePoint | None = None
    ) -> None:
        assert config.seed is not None, "the seed is chosen before the run's config is written"
        self.config = config
        self.seed = config.seed
        self.run = run
        self._emit = emit
        self.pulse = pulse
        self.resume = resume
        self.step = 0 if resume is None else resume.state.step
        self.is_stopping = False
        self.is_discarding = False
        self.steps_per_epoch = 1 if resume is None else resume.state.steps_per_epoch  # until the pictures are counted
        self.step_seconds: float | None = None  # a step's, as last reported
        self.reported_step = self.sampled_step = self.saved_step = -1
        self.sampled_images: list[str] = []
        self.last_losses: deque[float] = deque(maxlen=NUM_LAST_LOSSES)
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=config.report_to,
            project_dir=str(run.tensorboard_dir),
            cpu=not torch.cuda.is_available(),  # else accelerate takes processes without a GPU for strangers
            # train_step divides by the micro-batches; left out, accelerate asks the environment and divides once more
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            # else every GPU holds its gradients twice
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        self.device = self.accelerator.device
        is_alone = self.accelerator.num_processes == 1
        self.command_group = None if is_alone else torch.distributed.new_group(backend="gloo")  # no GPU waits for it

    # The story

    def train(self) -> None:
        """Prepare, then step until done: obey, report, sample, save, done?, step.

        Raises:
            TuitrainError: the dataset, the model or the config cannot be used, or the loss is not finite.
        """
        try:
            self.prepare()
        except StopRequested:
            self.is_stopping = True
            self.emit(events.CommandObeyed(command=Command.STOP))
            return
        self.emit(events.PhaseStarted(phase="train"))
        steps = iter(self.loader)
        while True:
            self.obey_commands()
            if self.should_report():
                self.report()
            if self.should_sample():
                self.sample()
            if self.should_save():
                self.save()
            if self.is_done():
                break
            if self.pulse.is_stop_wanted and self.command_group is None:  # asked for while sampling or saving
                continue
            self.train_step(self.next_micro_batches(steps))

    def prepare(self) -> None:
        """Pictures, model, caches, optimizer: everything that the first step needs."""
        config = self.config
        prepared = Preparation(
            config,
            seed=self.seed,
            accelerator=self.accelerator,
            emit=self.emit,
            pulse=self.pulse,
            can_stop=self.command_group is None,
        ).prepare()
        self.models, self.schedule = prepared.models, prepared.schedule
        self.base_model_hash = self.models.unet_hash  # now: no save shall fail because the model's files have gone
        self.loader, self.inputs = prepared.loader, prepared.inputs
        self.steps_per_epoch, self.total_steps = prepared.steps_per_epoch, prepared.total_steps
        params = list(self.models.unet.parameters())
        optimizer = build_optimizer(
            params,
            optimizer_builder(config.optimizer),
            has_global_statistics=config.optimizer.optimizer_type == "Prodigy",
            seed=self.seed,
        )
        self.lr_scheduler = build_lr_scheduler(
            optimizer,
            name=config.lr_scheduler,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=self.total_steps,
        )
        # optimizers make their states where the weights are, accelerate need not move them
        self.unet, self.optimizer = self.accelerator.prepare(
            self.models.unet, optimizer, device_placement=[True, False]
        )
        self.ema = ExponentialMovingAverage(params, config.ema_decay) if config.ema_decay is not None else None
        self.validator = Validator(
            self.models,
            self.schedule,
            prepared.validation_prompts,
            ema=self.ema,
            num_images=config.num_validation_images_per_prompt,
            size_hw=config.validation_hw,
            num_inference_steps=config.validation_steps,
            guidance_scale=config.validation_guidance_scale,
            seed=self.seed,
            offload=config.enable_cpu_offload_during_validation,
        )
        self.host_scalars = HostScalars(self.device, num=2)
        self.meter = StepMeter()
        self.settings = numeric_settings(config)
        self.world = self.describe_world(prepared)
        if self.resume is not None:
            self.restore(self.resume)
        self.trackers = TrackerMirror(self.accelerator, self.warn)
        self.trackers.start(config_to_yaml(config), resumed_from=None if self.resume is None else self.step)

    def describe_world(self, prepared: Prepared) -> dict[str, str]:
        """What decides the numbers of a step beside the settings, by name."""
        models, schedule = self.models, self.schedule
        is_gpu = self.device.type == "cuda"
        return {
            **library_versions(self.config),
            "dataset": prepared.dataset_hash,
            "steps in an epoch": str(self.steps_per_epoch),
            "UNet of the base model": self.base_model_hash,
            "VAE of the base model": models.vae_hash,
            "text encoders of the base model": models.text_hash,
            "noise schedule": f"{schedule.prediction_type} {hash_tensor(schedule.alphas_cumprod)}",
            "device": torch.cuda.get_device_name(self.device) if is_gpu else self.device.type,
            "number of processes": str(self.accelerator.num_processes),
        }

    @property
    def moving_parts(self) -> MovingParts:
        """What a saved state is of."""
        return MovingParts(self.models.unet, self.optimizer.optimizer, self.ema, self.accelerator.scaler)

    def restore(self, point: ResumePoint) -> None:
        """Stand where the saved state was, and leave behind what was done since.

        Raises:
            ConfigError: something has changed that decides the numbers, and changes are not accepted.
            CheckpointError: the state is of another network.
        """
        state = point.state
        changes = check_changes(point, settings=self.settings, world=self.world)
        with_optimizer = not any(change.partition(" ")[0] in OPTIMIZER_SETTINGS for change in changes)
        with reading(point.checkpoint):
            restore_tensors(point.checkpoint, state, self.moving_parts, with_optimizer=with_optimizer)
        restore_lr_scheduler(self.lr_scheduler, step=self.step)
        if state.num_threads is not None and self.device.type == "cpu":
            torch.set_num_threads(state.num_threads)  # the order of sums depends on it
        epoch, step_in_epoch = divmod(self.step, self.steps_per_epoch)
        position = {"epoch": epoch, "step_in_epoch": step_in_epoch}
        if not changes and state.loader != position:
            raise CheckpointError(f"the saved position in the data is {state.loader}, step {self.step} is {position}")
        self.loader.load_state_dict(position)
        self.meter = StepMeter.from_state(state.meter)
        self.last_losses.extend(state.last_losses)
        self.sampled_step, self.saved_step, self.reported_step = state.sampled_step, self.step, self.step
        for damage in point.damages:
            self.warn(f"a newer state is damaged: {damage}", f"the run goes on from step {self.step}")
        for change in changes:
            self.warn(f"resumed in spite of a change: {change}", "the run is not what it would have been without")
        if not with_optimizer:
            self.warn("the optimizer begins anew, as it or its precision has changed", "")
        if self.accelerator.is_main_process:
            self.leave_branch()
            self.run.write_config(config_yaml=config_to_yaml(self.config), config_json=config_to_json(self.config))

    def leave_branch(self) -> None:
        """Set the checkpoints beyond the present step aside: the steps will be trained anew, and saved again."""
        names = [
            path.name
            for path in self.run.checkpoints_dir.iterdir()
            if (step := step_of_name(path.name)) is not None and step > self.step
        ]
        if not names:
            return
        folder = self.run.abandoned_dir / f"{time.time():.0f}"
        folder.mkdir(parents=True)
        for name in names:
            (self.run.checkpoints_dir / name).rename(folder / name)
        self.warn(
            f"{len(names)} checkpoints of steps beyond {self.step} were set aside in {folder}",
            "delete that folder when you do not need them",
        )

    def close(self) -> None:
        """Finish the trackers and forget accelerate's process-wide state, so that another run can follow."""
        with suppress(OSError):  # a full disk must not hide the run's own outcome
            self.accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)

    # One optimizer step

    def next_micro_batches(self, steps: Iterator[list[Batch]]) -> list[Batch]:
        """What the loader has ready, and the time that the step waited for it."""
        started = time.monotonic()
        micro_batches = next(steps)
        self.meter.data_seconds += time.monotonic() - started
        return micro_batches

    def train_step(self, micro_batches: list[Batch]) -> None:
        """Forward and backward of every micro-batch, then one optimizer step.

        Args:
            micro_batches: this rank's share of the step: `gradient_accumulation_steps` of them or, at the end of an
                epoch, fewer.

        Raises:
            NonFiniteLossError: before the optimizer has moved.
        """
        step_loss = torch.zeros((), device=self.device)
        for index, batch in enumerate(micro_batches):
            if index:
                self.pulse.beat(patience_seconds=self.step_patience_seconds)
            is_last = index == len(micro_batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.unet):
                loss = self.compute_loss(batch) / len(micro_batches)
                step_loss += loss.detach()
                self.accelerator.backward(loss)
        self.accelerator.unscale_gradients()
        grad_norm = torch.nn.utils.get_total_norm(self.gradients())
        step_loss = self.accelerator.reduce(step_loss, reduction="mean")
        # the one wait for the GPU in a step: what is not finite must stop before the optimizer moves
        loss_value, self.grad_norm = self.host_scalars.read(step_loss, grad_norm)
        if not math.isfinite(loss_value):
            raise self.non_finite(f"loss is {loss_value}", micro_batches)
        if not math.isfinite(self.grad_norm) and self.accelerator.scaler is None:  # float16's scaler expects some
            raise self.non_finite(f"norm of the gradient is {self.grad_norm}", micro_batches)
        max_norm = self.config.max_grad_norm
        if max_norm is not None and self.grad_norm > max_norm:
            torch.nn.utils.clip_grads_with_norm_(self.models.unet.parameters(), max_norm, grad_norm)
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        self.meter.add(loss_value, num_images=sum(batch["num_global"] for batch in micro_batches))
        if self.step % self.steps_per_epoch == 0:
            self.emit(events.EpochFinished(epoch=self.epoch, step=self.step))

    def compute_loss(self, batch: Batch) -> Tensor:
        """Loss of one micro-batch, scalar: its gradient, averaged over ranks, is that of the mean over all samples."""
        inputs = self.inputs.build(batch, step=self.step)
        noise, timesteps = diffusion.draw_noise(
            inputs.latents.shape[1:],
            seed=self.seed,
            step=self.step,
            positions=batch["positions"],
            num_timesteps=self.schedule.num_timesteps,
            noise_offset=self.config.noise_offset,
        )
        noise, timesteps = to_device(noise, self.device), to_device(timesteps, self.device)
        abar = self.schedule.alphas_cumprod[timesteps]
        prediction = self.unet(
            diffusion.add_noise(inputs.latents, noise, abar).to(inputs.prompt_embeds.dtype),
            timesteps,
            encoder_hidden_states=inputs.prompt_embeds,
            added_cond_kwargs={"text_embeds": inputs.pooled_prompt_embeds, "time_ids": inputs.time_ids},
            return_dict=False,
        )[0]
        losses = diffusion.per_sample_loss(
            prediction,
            diffusion.target(self.schedule.prediction_type, inputs.latents, noise, abar),
            loss_type=self.config.loss_type,
            huber_delta=self.config.huber_delta,
            mask=inputs.mask,
        )
        losses = losses * inputs.loss_weight
        if self.config.min_snr_gamma is not None:
            losses = losses * diffusion.min_snr_weight(
                self.schedule.prediction_type,
                abar,
                self.config.min_snr_gamma,
                invoke_v_weight=self.config.compat == "invoke-training",
            )
        loss: Tensor = losses.sum() * self.accelerator.num_processes / batch["num_global"]
        return loss

    def gradients(self) -> list[Tensor]:
        return [param.grad for param in self.models.unet.parameters() if param.grad is not None]

    def non_finite(self, what: str, micro_batches: list[Batch]) -> NonFiniteLossError:
        """The error that ends the run, with the pictures of the step on all ranks, which all raise it."""
        names = [[name for batch in micro_batches for name in batch["image_names"]]]
        if self.command_group is not None:
            names = names * self.accelerator.num_processes
            torch.distributed.all_gather_object(names, names[0], group=self.command_group)
        return NonFiniteLossError(
            f"the {what} at step {self.step + 1}; the weights were not touched by it",
            hint="lower optimizer.learning_rate, or set max_grad_norm to 1.0, and start again",
            where=f"pictures {', '.join(name for of_rank in names for name in of_rank)}",
        )

    # When

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self.step // self.steps_per_epoch

    def is_done(self) -> bool:
        return self.is_stopping or self.step >= self.total_steps

    def is_due(self, every_n_steps: int | None, every_n_epochs: int | None) -> bool:
        """Whether the step just done completes a multiple of the interval.

        The last step ends its epoch, complete or not, as in invoke-training: its completed epochs are looked at again.
        """
        if self.step == 0:
            return False
        if every_n_steps is not None:
            return self.step % every_n_steps == 0
        ends_epoch = self.step % self.steps_per_epoch == 0 or self.step == self.total_steps
        return every_n_epochs is not None and ends_epoch and self.epoch % every_n_epochs == 0

    def should_report(self) -> bool:
        if self.meter.num_steps == 0 or self.step == self.reported_step:
            return False
        return self.step % self.config.log_every_n_steps == 0 or self.is_done()

    def should_sample(self) -> bool:
        if not self.validator.prompts or self.step == self.sampled_step or self.is_stopping:
            return False
        if self.step == 0:
            return self.config.validate_at_start
        return self.is_due(self.config.validate_every_n_steps, self.config.validate_every_n_epochs)

    def should_save(self) -> bool:
        if self.step in (0, self.saved_step) or self.is_discarding:
            return False
        is_last = self.is_stopping or (self.is_done() and self.config.save_at_end)
        return is_last or self.is_due(self.config.save_every_n_steps, self.config.save_every_n_epochs)

    # What is done between steps

    def obey_commands(self) -> None:
        """Obey what was asked for since the last step; while paused, wait for more."""
        is_paused = False
        while True:
            match self.next_command():
                case None if not is_paused:
                    return
                case None:
                    time.sleep(PAUSE_POLL_SECONDS)
                    self.meter.skip(PAUSE_POLL_SECONDS)
                    continue
                case Command.PAUSE as command:
                    if not is_paused:
                        self.emit(events.Paused(step=self.step))
                    is_paused = True
                case Command.RESUME as command:
                    if is_paused:
                        self.emit(events.Unpaused(step=self.step))
                    is_paused = False
                case Command.SAMPLE as command:
                    self.sample()
                case Command.SAVE as command:
                    if self.should_report():  # a state knows of no report that is due
                        self.report()
                    self.save()
                case Command.STOP | Command.DISCARD as command:
                    self.is_stopping = True
                    self.is_discarding = command is Command.DISCARD
                    is_paused = False
            self.emit(events.CommandObeyed(command=command))

    @property
    def step_patience_seconds(self) -> float:
        """Within which the current step comes by the pulse again."""
        if self.step_seconds is None:
            return FIRST_STEP_PATIENCE_SECONDS
        return max(STEP_PATIENCE_SECONDS, STEP_PATIENCE_STEPS * self.step_seconds)

    def next_command(self) -> Command | None:
        """The main process's next command, the same on every rank."""
        command = self.pulse.next_command(patience_seconds=self.step_patience_seconds)
        if self.command_group is None:
            return command
        shared = [command]
        torch.distributed.broadcast_object_list(shared, src=0, group=self.command_group)
        return shared[0]

    def report(self) -> None:
        """Journal the steps since the last report, and mirror them."""
        event = events.StepLogged(
            step=self.step,
            epoch=self.epoch,
            loss=self.meter.loss,
            lr=self.lr,
            grad_norm=self.grad_norm,
            seconds_per_step=self.meter.seconds / self.meter.num_steps,
            images_per_second=self.meter.num_images / self.meter.seconds,
            data_seconds=self.meter.data_seconds / self.meter.num_steps,
            **take_memory(self.device),
            d=prodigy_d(self.optimizer.optimizer),
        )
        self.emit(event)
        self.step_seconds = event.seconds_per_step
        self.trackers.log_step(event)
        self.last_losses.append(event.loss)
        self.reported_step = self.step
        if self.step % self.config.log_every_n_steps == 0:  # else the run ends early: resumed, it makes the mean whole
            self.meter = StepMeter()

    def sample(self) -> None:
        """Generate the validation images of every prompt, write and journal them."""
        if not self.validator.prompts:
            self.warn("there is nothing to sample", "set validation_prompts")
            return
        started = time.monotonic()
        if self.accelerator.is_main_process:
            with running_phase("sample", self.emit, self.pulse, can_stop=True) as phase:
                try:
                    images = self.write_samples(phase)
                    self.sampled_images = [image.path for image in images]
                    self.emit(
                        events.SamplesSaved(step=self.step, epoch=self.epoch, images=images, seconds=phase.seconds)
                    )
                    phase.detail = f"{len(images)} samples"
                except StopRequested:  # it is obeyed when its turn comes, between steps
                    phase.detail = "left for a stop"
                except torch.OutOfMemoryError as error:
                    self.warn(f"no samples at step {self.step}: {error}", "set validation_size to a smaller size")
                except OSError as error:
                    self.warn(f"no samples at step {self.step}: {error}", "make room on the disk")
        self.accelerator.wait_for_everyone()
        self.sampled_step = self.step
        self.meter.skip(time.monotonic() - started)

    def write_samples(self, phase: Phase) -> list[SampleImage]:
        """The images of all prompts, as files in invoke-training's layout.

        Raises:
            StopRequested: before all are denoised.
        """
        folder = self.run.validation_dir / f"epoch_{self.epoch:08d}-step_{self.step:08d}"
        images = []
        num_images, num_steps = self.validator.num_images, self.validator.num_steps
        done = 0

        def after_step() -> None:
            nonlocal done
            done += 1
            phase.detail = f"sample {min(done * num_images // num_steps + 1, num_images)}/{num_images}"
            phase.report(done, num_steps)

        for prompt_index, (prompt, pictures) in enumerate(self.validator.pictures(after_step)):
            self.pulse.beat(patience_seconds=WRITE_PATIENCE_SECONDS)
            self.trackers.log_images(prompt_index, pictures, step=self.step)
            for image_index, picture in enumerate(pictures):
                path = folder / f"prompt_{prompt_index:04d}" / f"{image_index:04d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(path) as temporary:
                    picture.save(temporary, format="JPEG", quality=JPEG_QUALITY)
                images.append(
                    SampleImage(
                        path=path.relative_to(self.run.path).as_posix(),
                        prompt_index=prompt_index,
                        image_index=image_index,
                        prompt=prompt.text,
                    )
                )
        return images

    def save(self) -> None:
        """Publish a checkpoint of this step; only then prune older ones. A full disk makes it wait for room."""
        if self.step == self.saved_step:
            return
        started = time.monotonic()
        if self.accelerator.is_main_process:
            path = self.write_checkpoint_when_there_is_room()
            if path is not None:
                self.prune()
            if path is not None and self.config.save_state == "last":
                self.keep_one_state(path)
        self.accelerator.wait_for_everyone()
        self.saved_step = self.step
        self.meter.skip(time.monotonic() - started)

    def prune(self) -> None:
        """Delete the checkpoints that max_checkpoints leaves no room for, now that a newer one stands."""
        if self.config.max_checkpoints is None:
            return
        is_complete = self.step >= self.total_steps  # then nobody goes back to where it was resumed
        protected = {self.resume.checkpoint} if self.resume is not None and not is_complete else set()
        try:
            names = prune_checkpoints(self.run.checkpoints_dir, self.config.max_checkpoints, protected=protected)
        except OSError as error:
            self.warn(f"old checkpoints cannot be deleted: {error}", "delete them by hand")
            return
        for name in names:
            self.emit(events.CheckpointPruned(name=name))

    def keep_one_state(self, checkpoint: Path) -> None:
        """Remove all states but that of `checkpoint`, which was verified when it was published."""
        others = [path for path in list_states(self.run.checkpoints_dir) if path != checkpoint]
        try:
            remove_states(others)
        except OSError as error:
            self.warn(f"older states cannot be deleted: {error}", "delete them by hand")

    def write_checkpoint_when_there_is_room(self) -> Path | None:
        """Write a checkpoint of this step; on a full disk pause, and try again when there is room or on a resume.

        A resume that finds no room either trains on without this checkpoint; a stop ends the run without it.

        Returns:
            Its folder, or None when it is not written.
        """
        is_last_try = False
        while True:
            needed = self.num_checkpoint_bytes() + SMALL_FILES_BYTES
            saved = None
            with running_phase("save", self.emit, self.pulse, can_stop=False) as phase:
                try:
                    self.check_room(needed)
                    saved = self.write_checkpoint(phase)
                except CheckpointError as error:
                    if not is_disk_full(error):
                        raise
                    phase.detail = "no room on the disk"
                    reason = error.problems[0].what
            if saved is not None:
                self.emit(saved)
                return self.run.checkpoints_dir / saved.name
            free = self.num_free_bytes()
            self.warn(
                f"step {self.step} is not saved: {reason} ({format_bytes(needed)} needed, {format_bytes(free)} free in "
                f"{self.run.checkpoints_dir})",
                "make room; the older checkpoints are untouched",
            )
            if is_last_try:
                return None
            command = self.wait_for_room(needed, has_had_room=free >= needed)
            if command in (Command.STOP, Command.DISCARD):
                return None
            is_last_try = command is Command.RESUME

    def wait_for_room(self, needed: int, *, has_had_room: bool) -> Command | None:
        """Pause until the disk has room, or a command ends the pause; gives that command.

        Args:
            needed: bytes.
            has_had_room: the disk seemed to have room when the write failed: try again after a while.
        """
        self.emit(events.Paused(step=self.step))
        started = time.monotonic()
        while True:
            time.sleep(PAUSE_POLL_SECONDS)
            self.pulse.beat()
            if command := self.pulse.take(Command.RESUME):
                self.emit(events.CommandObeyed(command=command))
                break
            if self.pulse.is_stop_wanted:
                # one that came first is obeyed between steps, where all ranks hear of it
                command = self.pulse.take(Command.STOP, Command.DISCARD) if self.is_stopping else Command.STOP
                break
            waited = time.monotonic() - started
            if self.num_free_bytes() >= needed and (not has_had_room or waited > ROOM_RETRY_SECONDS):
                break
        self.emit(events.Unpaused(step=self.step))
        return command

    def num_free_bytes(self) -> int:
        return shutil.disk_usage(self.run.checkpoints_dir).free

    def check_room(self, needed: int) -> None:
        """Check that a checkpoint fits, before any of it is written.

        Raises:
            CheckpointError: it does not, by the number of free bytes.
        """
        if self.num_free_bytes() < needed:
            name = checkpoint_name(self.epoch, self.step)
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise CheckpointError(f"{name} does not fit on the disk") from full

    def num_checkpoint_bytes(self) -> int:
        """What the tensors of a checkpoint of now take on the disk, those of the state included."""
        config, dtype = self.config, DTYPES[self.config.save_dtype]
        is_full = config.save_checkpoint_format == "full_diffusers"
        num_bytes = num_saved_bytes(self.models, dtype=dtype, with_frozen_parts=is_full)
        if config.save_state == "none":
            return num_bytes
        parts = self.moving_parts
        return num_bytes + num_state_bytes(parts, plan_files(parts, checkpoint_weights=UNET_WEIGHTS, save_dtype=dtype))

    def write_checkpoint(self, phase: Phase) -> events.CheckpointSaved:
        """Write and publish a checkpoint of this step; gives the event that tells of it."""
        config, dtype = self.config, DTYPES[self.config.save_dtype]
        is_full = config.save_checkpoint_format == "full_diffusers"
        num_bytes = self.num_checkpoint_bytes()
        parts, meter = self.moving_parts, self.meter.to_state()
        files = plan_files(parts, checkpoint_weights=UNET_WEIGHTS, save_dtype=dtype)
        done = 0
        with publish_checkpoint(
            self.run.checkpoints_dir, epoch=self.epoch, step=self.step, read=lambda _num_bytes: self.pulse.beat()
        ) as staged:
            phase.detail = checkpoint_name(self.epoch, self.step)

            def written(num_tensor_bytes: int) -> None:
                nonlocal done
                done += num_tensor_bytes
                phase.report(done, num_bytes)

            hashes = write_unet(staged.path, self.models, self.tensors_to_save(), dtype=dtype, written=written)
            if is_full:
                hashes |= write_frozen_parts(staged.path, self.models, self.schedule, dtype=dtype, written=written)
            if config.save_state != "none":
                state_hashes = write_tensors(staged.path, parts, files, written=written)
                write_manifest(
                    staged.path,
                    parts,
                    files,
                    step=self.step,
                    epoch=self.epoch,
                    steps_per_epoch=self.steps_per_epoch,
                    loader=self.loader.state_dict(),
                    meter=meter,
                    last_losses=list(self.last_losses),
                    sampled_step=self.sampled_step,
                    settings=self.settings,
                    world=self.world,
                    known_sha256=hashes | state_hashes,
                )
            self.pulse.beat(patience_seconds=WRITE_PATIENCE_SECONDS)
            manifest = staged.finish(
                kind=config.save_checkpoint_format,
                weights="trained" if self.ema is None else "ema",
                config_hash=config_hash(config),
                base_model=config.model,
                base_model_hash=self.base_model_hash,
                prediction_type=self.schedule.prediction_type,
                save_dtype=config.save_dtype,
                last_losses=list(self.last_losses),
                validation_images=self.sampled_images if self.sampled_step == self.step else [],
                known_sha256=hashes,
            )
        return events.CheckpointSaved(
            step=self.step,
            epoch=self.epoch,
            name=checkpoint_name(self.epoch, self.step),
            num_bytes=sum(file.size for file in manifest.files),
            seconds=phase.seconds,
        )

    def tensors_to_save(self) -> Iterator[tuple[str, Tensor]]:
        """The UNet's tensors by name: averaged where an average is kept, as trained elsewhere."""
        averages = {} if self.ema is None else self.ema.by_parameter()
        for name, tensor in self.models.unet.state_dict(keep_vars=True).items():
            yield name, averages.get(tensor, tensor)

    # The journal

    def emit(self, event: Event) -> None:
        """Journal a fact, once for all ranks."""
        if self.accelerator.is_main_process:
            self._emit(event)

    def warn(self, what: str, hint: str) -> None:
        self.emit(events.WarningRaised(what=what, hint=hint))
