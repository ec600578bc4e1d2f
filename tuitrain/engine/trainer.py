"""The Trainer: builds everything a run needs, then steps; knows neither threads nor screens nor signals."""

import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from importlib.metadata import version

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
from tuitrain.engine.checkpoint import UNET_WEIGHTS
from tuitrain.engine.checkpoint_writer import CheckpointContent, CheckpointWriter
from tuitrain.engine.ema import ExponentialMovingAverage
from tuitrain.engine.failure import is_device_lost, is_out_of_memory
from tuitrain.engine.inputs import to_device
from tuitrain.engine.metrics import HostScalars, StepMeter, TrackerMirror, take_memory
from tuitrain.engine.optimizer import build_lr_scheduler, build_optimizer, prodigy_d, restore_lr_scheduler
from tuitrain.engine.passes import cut_batch, largest
from tuitrain.engine.phase import RANK_PATIENCE, Emit, Phase, Pulse, StopRequested, running_phase
from tuitrain.engine.preparation import DTYPES, Preparation, Prepared, optimizer_builder
from tuitrain.engine.resume import (
    OPTIMIZER_SETTINGS,
    STEPS_IN_AN_EPOCH,
    ResumePoint,
    check_changes,
    library_versions,
    numeric_settings,
)
from tuitrain.engine.saving import PAUSE_POLL_SECONDS, Saver
from tuitrain.engine.state import MovingParts, TrainingState, plan_files, restore_tensors, take_state
from tuitrain.engine.validation import Validator
from tuitrain.engine.weights import hash_tensor
from tuitrain.errors import CheckpointError, DeviceError, NonFiniteLossError
from tuitrain.runs import events
from tuitrain.runs.checkpoints import reading, set_aside_checkpoints
from tuitrain.runs.control import Command
from tuitrain.runs.events import Event, SampleImage
from tuitrain.runs.run import Run

# How long a single call into a library may take before the run counts as silent.
FIRST_STEP_PATIENCE_SECONDS = 600.0  # kernels are compiled and chosen, and an SDXL step on a CPU takes minutes
STEP_PATIENCE_SECONDS, STEP_PATIENCE_STEPS = 20.0, 20.0  # the longer of the two
WRITE_PATIENCE_SECONDS = 300.0  # decoding pictures on a CPU, a slow disk
NUM_LAST_LOSSES = 10
JPEG_QUALITY = 95
MAX_SKIPPED_STEPS = 5  # in a row; a model that has lost its way does not find back
MIN_LOSS_SCALE = 1.0  # below, float16's gradients overflow unscaled
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "bitsandbytes")

log = logging.getLogger("tuitrain")


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
        self.pictures_per_pass: int | None = None  # all of a micro-batch, until memory runs out
        self.num_skipped = 0  # steps in a row
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
        # no GPU waits for it
        self.command_group = None if is_alone else torch.distributed.new_group(backend="gloo", timeout=RANK_PATIENCE)

    # The story

    def train(self) -> None:
        """Prepare, then step until done: obey, report, sample, save, done?, step.

        A checkpoint may be written while the steps go on; it stands before the run ends.

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
        with closing(self.saver):
            steps = iter(self.loader)
            while True:
                self.obey_commands()
                self.collect_save()
                if self.should_report():
                    self.report()
                if self.should_sample():
                    self.sample()
                if self.should_save():
                    self.save()
                if self.is_done():
                    self.finish_save()
                    break
                if self.pulse.is_stop_wanted and self.command_group is None:  # asked for while sampling or saving
                    continue
                self.train_step(self.next_micro_batches(steps))

    def prepare(self) -> None:
        """Pictures, model, caches, optimizer: everything that the first step needs."""
        config = self.config
        if self.resume is None:
            self.tell_start()
        elif self.device.type == "cpu" and (num_threads := self.resume.state.num_threads) is not None:
            torch.set_num_threads(num_threads)  # the order of sums depends on it
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
        self.settings = numeric_settings(config)
        self.world = self.describe_world(prepared)
        if self.resume is not None:
            self.restore(self.resume)
        self.saver = Saver(
            CheckpointWriter(
                config,
                checkpoints_dir=self.run.checkpoints_dir,
                models=self.models,
                schedule=self.schedule,
                base_model_hash=self.base_model_hash,
            ),
            max_checkpoints=config.max_checkpoints,
            is_one_state_kept=config.save_state == "last",
            total_steps=self.total_steps,
            resumed_from=None if self.resume is None else self.resume.checkpoint,
            emit=self.emit,
            pulse=self.pulse,
        )
        self.trackers = TrackerMirror(self.accelerator, self.warn)
        self.trackers.start(config_to_yaml(config), resumed_from=None if self.resume is None else self.step)
        # its clock runs from here
        self.meter = StepMeter() if self.resume is None else StepMeter.from_state(self.resume.state.meter)

    def describe_world(self, prepared: Prepared) -> dict[str, str]:
        """What decides the numbers of a step beside the settings, by name."""
        models, schedule = self.models, self.schedule
        is_gpu = self.device.type == "cuda"
        return {
            **library_versions(self.config),
            "dataset": prepared.dataset_hash,
            STEPS_IN_AN_EPOCH: str(self.steps_per_epoch),
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
        with_optimizer = not any(change.key in OPTIMIZER_SETTINGS for change in changes)
        with_ema = not any(change.key == "ema_decay" and change.then == "null" for change in changes)
        with reading(point.checkpoint):
            restore_tensors(
                point.checkpoint, state, self.moving_parts, with_optimizer=with_optimizer, with_ema=with_ema
            )
        restore_lr_scheduler(self.lr_scheduler, step=self.step)
        epoch, step_in_epoch = divmod(self.step, self.steps_per_epoch)
        position = {"epoch": epoch, "step_in_epoch": step_in_epoch}
        if not changes and state.loader != position:
            raise CheckpointError(f"the saved position in the data is {state.loader}, step {self.step} is {position}")
        self.loader.load_state_dict(position)
        self.last_losses.extend(state.last_losses)
        self.sampled_step, self.saved_step, self.reported_step = state.sampled_step, self.step, self.step
        self.pictures_per_pass, self.num_skipped = state.pictures_per_pass, state.num_skipped
        for damage in point.damages:
            self.warn(f"a newer state is damaged: {damage}", f"the run goes on from step {self.step}")
        for change in changes:
            self.warn(f"resumed in spite of a change: {change}", "the run is not what it would have been without")
        if not with_optimizer:
            self.warn("the optimizer begins anew, as it or its precision has changed", "")
        if self.accelerator.is_main_process:
            self.leave_branch()
            self.run.write_config(config_yaml=config_to_yaml(self.config), config_json=config_to_json(self.config))
        self.tell_start()  # not before: readers of the journal leave the branch here

    def leave_branch(self) -> None:
        """Set the checkpoints beyond the present step aside: the steps will be trained anew, and saved again.

        Raises:
            CheckpointError: one is being read; all stand where they stood.
        """
        folder = self.run.abandoned_dir / f"{time.time():.0f}"
        if names := set_aside_checkpoints(self.run.checkpoints_dir, folder, beyond=self.step):
            noun = "checkpoint was" if len(names) == 1 else "checkpoints were"
            what = f"{len(names)} {noun} set aside, as the steps after {self.step} are trained anew"
            self.warn(what, f"delete {folder} when you do not need it")

    def close(self, *, is_device_lost: bool = False) -> None:
        """Finish the trackers and forget accelerate's process-wide state, so that another run can follow.

        Args:
            is_device_lost: ask nothing of the device; the group of processes falls with this one.
        """
        with suppress(OSError):  # a full disk must not hide the run's own outcome
            if is_device_lost:
                for tracker in self.accelerator.trackers:
                    tracker.finish()
            else:
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

        A step that is not finite counts, whether or not it may be left out: data and learning rate go on behind it.

        Args:
            micro_batches: this rank's share of the step: `gradient_accumulation_steps` of them or, at the end of an
                epoch, fewer.

        Raises:
            NonFiniteLossError: before the optimizer has moved.
            DeviceError: memory does not suffice for a single picture, or for the optimizer.
        """
        step_loss = self.accumulate_gradients(micro_batches)
        self.accelerator.unscale_gradients()
        grad_norm = torch.nn.utils.get_total_norm(self.gradients())
        step_loss = self.accelerator.reduce(step_loss, reduction="mean")
        # the one wait for the GPU in a step: what is not finite must stop before the optimizer moves
        loss_value, grad_norm_value = self.host_scalars.read(step_loss, grad_norm)
        if what := self.describe_non_finite(loss_value, grad_norm_value):
            self.skip_step(what, micro_batches)
        else:
            self.num_skipped = 0
            lr, max_norm = self.optimizer.param_groups[0]["lr"], self.config.max_grad_norm
            if max_norm is not None and grad_norm_value > max_norm:
                torch.nn.utils.clip_grads_with_norm_(self.models.unet.parameters(), max_norm, grad_norm)
            self.move_weights(grad_norm_value)
            self.lr_scheduler.step()
            num_images = sum(batch["num_global"] for batch in micro_batches)
            self.meter.add(loss_value, num_images=num_images, lr=lr, grad_norm=grad_norm_value)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.step % self.steps_per_epoch == 0:
            self.emit(events.EpochFinished(epoch=self.epoch, step=self.step))

    def accumulate_gradients(self, micro_batches: list[Batch]) -> Tensor:
        """Forward and backward of every micro-batch, in passes as large as memory allows; gives the step's loss.

        Where memory runs out, the gradients are dropped, the passes halved for the rest of the run, and the whole step
        is computed anew: pictures, noise and their weights are the same, as the sums of floats allow.

        Raises:
            DeviceError: memory has run out, and passes cannot be made smaller.
        """
        limit = self.pictures_per_pass or self.config.train_batch_size
        while True:
            passes = [part for batch in micro_batches for part in cut_batch(batch, limit)]
            try:
                return self.run_passes(passes, num_micro_batches=len(micro_batches))
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.config.on_oom == "stop":
                    raise
                limit = self.halve_passes(largest(passes), error)
            # only now, without the error, has all that the passes held gone
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def run_passes(self, passes: list[Batch], *, num_micro_batches: int) -> Tensor:
        """Forward and backward of each; gradients are summed over ranks in the last."""
        step_loss = torch.zeros((), device=self.device)
        for index, batch in enumerate(passes):
            if index:
                self.pulse.beat(patience_seconds=self.step_patience_seconds)
            is_last = index == len(passes) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.unet):
                loss = self.compute_loss(batch) / num_micro_batches
                step_loss += loss.detach()
                self.accelerator.backward(loss)
        return step_loss

    def halve_passes(self, num_pictures: int, error: RuntimeError) -> int:
        """Let passes hold half as many pictures from here on; gives how many.

        Args:
            num_pictures: in the largest pass of the step that memory did not suffice for.

        Raises:
            DeviceError: it cannot be done.
        """
        if self.command_group is not None:  # the others wait for this rank's gradients and cannot begin anew
            raise DeviceError(
                f"out of memory at step {self.step + 1}, and several processes cannot halve their batches in a step: "
                f"{error}",
                hint="lower train_batch_size and raise gradient_accumulation_steps by the same factor",
            ) from error
        if num_pictures == 1:
            raise DeviceError(
                f"out of memory at step {self.step + 1} with one picture in a pass, which cannot be halved: {error}",
                hint="set gradient_checkpointing to true, optimizer.use_8bit to true, or data_loader.resolution lower",
            ) from error
        self.pictures_per_pass = half = (num_pictures + 1) // 2
        self.warn(
            f"out of memory at step {self.step + 1}: it and all steps after it are trained in passes of at most {half} "
            f"picture{'s' if half > 1 else ''} instead of {num_pictures}; the pictures of a step stay the same",
            "lower train_batch_size and raise gradient_accumulation_steps by the same factor to begin like this",
        )
        return self.pictures_per_pass

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

    def describe_non_finite(self, loss: float, grad_norm: float) -> str:
        """What of a step's numbers, which are the same on all ranks, is not finite; "" when they are."""
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if not math.isfinite(grad_norm) and self.accelerator.scaler is None:  # float16's scaler expects some
            return f"norm of the gradient is {grad_norm}"
        return ""

    def skip_step(self, what: str, micro_batches: list[Batch]) -> None:
        """Leave a step out that is not finite: weights, optimizer and average stay as they are.

        Raises:
            NonFiniteLossError: it may not be left out, or too many were; on all ranks, which decide alike.
        """
        self.num_skipped += 1
        names = self.names_on_all_ranks(micro_batches)
        if self.config.on_non_finite == "stop" or self.num_skipped == MAX_SKIPPED_STEPS:
            in_a_row = f", the {MAX_SKIPPED_STEPS}th such in a row" if self.num_skipped == MAX_SKIPPED_STEPS else ""
            raise NonFiniteLossError(
                f"the {what} at step {self.step + 1}{in_a_row}; the weights were not touched by it",
                hint="lower optimizer.learning_rate, or set max_grad_norm to 1.0, and start again",
                where=f"pictures {', '.join(names)}",
            )
        if (scaler := self.accelerator.scaler) is not None:  # it has nothing to learn from this step
            scaler.update(scaler.get_scale())
        restore_lr_scheduler(self.lr_scheduler, step=self.step + 1)  # its step() warns when the optimizer has made none
        self.warn(
            f"step {self.step + 1} is left out, as its {what}; its pictures are {', '.join(names)}",
            f"look at these pictures; {MAX_SKIPPED_STEPS} such steps in a row stop the run",
        )

    def names_on_all_ranks(self, micro_batches: list[Batch]) -> list[str]:
        """The pictures of a step; every rank has to ask."""
        names = [[name for batch in micro_batches for name in batch["image_names"]]]
        if self.command_group is not None:
            names = names * self.accelerator.num_processes
            torch.distributed.all_gather_object(names, names[0], group=self.command_group)
        return [name for of_rank in names for name in of_rank]

    def move_weights(self, grad_norm: float) -> None:
        """The optimizer's step, and the average's.

        Args:
            grad_norm: before the gradient was clipped.

        Raises:
            DeviceError: memory has run out on the way. Some weights may have moved, so it cannot be tried again.
            NonFiniteLossError: float16's gradients overflow however small the loss is made.
        """
        try:
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceError(
                f"the optimizer ran out of memory at step {self.step + 1}; some weights may have moved and others not, "
                f"so the step cannot be tried again: {error}",
                hint="set optimizer.use_8bit and gradient_checkpointing to true, or train_batch_size lower",
            ) from error
        scaler = self.accelerator.scaler
        if scaler is not None and not math.isfinite(grad_norm) and scaler.get_scale() < MIN_LOSS_SCALE:
            raise NonFiniteLossError(
                f"the gradients of step {self.step + 1} overflow float16 however small the loss is scaled",
                hint="set mixed_precision to bf16, lower optimizer.learning_rate, or set max_grad_norm to 1.0",
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
                        self.finish_save()
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
                    if is_paused:
                        self.finish_save()
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
            lr=self.meter.lr,
            grad_norm=self.meter.grad_norm,
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
            self.sampled_images = []
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
                except Exception as error:  # whatever it is, the training does not need samples
                    if is_device_lost(error):
                        raise
                    phase.detail = "failed"
                    self.warn_of_no_samples(error)
            self.models.unet.to(self.device)  # where it is, unless memory ran out on its way back
        self.accelerator.wait_for_everyone()
        self.sampled_step = self.step
        self.meter.skip(time.monotonic() - started)

    def warn_of_no_samples(self, error: Exception) -> None:
        if is_out_of_memory(error):
            what, hint = f"{error}", "lower validation_size, or set enable_cpu_offload_during_validation to true"
        elif isinstance(error, OSError):
            what, hint = f"{error}", "make room on the disk"
        else:
            log.exception("no samples at step %d", self.step)
            what, hint = f"{type(error).__name__}: {error}", "the run's log has the details"
        self.warn(f"no samples at step {self.step}: {what}", hint)

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

        with closing(self.validator.pictures(after_step)) as prompts:  # a failure takes the networks home at once
            for prompt_index, (prompt, pictures) in enumerate(prompts):
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
        """Make a checkpoint of this step: training goes on when it is copied, or waits for it when it is the last."""
        if self.step == self.saved_step:
            return
        with self.meter.skipping():
            if self.accelerator.is_main_process:
                self.saver.save(self.checkpoint_content(), in_background=not self.is_done())
            self.accelerator.wait_for_everyone()
        self.saved_step = self.step

    def collect_save(self) -> None:
        """Journal the checkpoint that came to stand during the last step; what kept it from that ends the run here."""
        with self.meter.skipping():
            self.saver.collect(step=self.step)

    def finish_save(self) -> None:
        """Wait until the checkpoint that is being written stands."""
        with self.meter.skipping():
            self.saver.finish(step=self.step)

    def checkpoint_content(self) -> CheckpointContent:
        """All that a checkpoint of now is made of; its tensors are the living ones."""
        averages = {} if self.ema is None else self.ema.by_parameter()
        weights = self.models.unet.state_dict(keep_vars=True)
        return CheckpointContent(
            step=self.step,
            epoch=self.epoch,
            weights={name: averages.get(tensor, tensor) for name, tensor in weights.items()},
            is_average=self.ema is not None,
            state=self.training_state() if self.config.save_state != "none" else None,
            last_losses=list(self.last_losses),
            validation_images=self.sampled_images if self.sampled_step == self.step else [],
        )

    def training_state(self) -> TrainingState:
        parts, save_dtype = self.moving_parts, DTYPES[self.config.save_dtype]
        return take_state(
            parts,
            plan_files(parts, checkpoint_weights=UNET_WEIGHTS, save_dtype=save_dtype),
            step=self.step,
            epoch=self.epoch,
            steps_per_epoch=self.steps_per_epoch,
            loader=self.loader.state_dict(),
            meter=self.meter.to_state(),
            last_losses=list(self.last_losses),
            sampled_step=self.sampled_step,
            pictures_per_pass=self.pictures_per_pass,
            num_skipped=self.num_skipped,
            settings=self.settings,
            world=self.world,
        )

    # The journal

    def tell_start(self) -> None:
        """Journal who trains what, where, and from which step on."""
        device = self.device
        self.emit(
            events.RunStarted(
                run_id=self.run.run_id,
                pid=os.getpid(),
                host=socket.gethostname(),
                tuitrain_version=version("tuitrain"),
                versions={name: version(name) for name in LIBRARIES},
                device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
                world_size=self.accelerator.num_processes,
                config_hash=config_hash(self.config),
                seed=self.seed,
                resumed_from=None if self.resume is None else self.step,
            )
        )

    def emit(self, event: Event) -> None:
        """Journal a fact, once for all ranks."""
        if self.accelerator.is_main_process:
            self._emit(event)

    def warn(self, what: str, hint: str) -> None:
        self.emit(events.WarningRaised(what=what, hint=hint))
