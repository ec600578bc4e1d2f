"""Everything between a config and the first step: pictures, model, caches, loader; knows no loop and no optimizer."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from accelerate import Accelerator
from torch import Tensor

from tuitrain.config.datasets import DreamboothDataLoaderConfig
from tuitrain.config.optimizers import AdafactorConfig, AdamWConfig, OptimizerConfig, ProdigyConfig
from tuitrain.config.schema import TrainConfig
from tuitrain.data.cache import FillResult, TensorCache, fill_latents, fill_text
from tuitrain.data.captions import with_prefix
from tuitrain.data.dataset import Dataset, load_dataset, total_epochs, total_steps
from tuitrain.data.loader import TrainLoader
from tuitrain.engine import sdxl
from tuitrain.engine.diffusion import NoiseSchedule, build_noise_schedule
from tuitrain.engine.inputs import InputBuilder
from tuitrain.engine.optimizer import OptimizerBuilder, build_adafactor, build_adamw, build_prodigy
from tuitrain.engine.phase import Emit, Phase, Pulse, running_phase
from tuitrain.engine.sample_size import SAMPLE_MULTIPLE, why_not_sampled
from tuitrain.engine.sampling import ValidationPrompt
from tuitrain.engine.sdxl import SDXLModels, load_sdxl
from tuitrain.engine.validation import encode_validation_prompts, moved
from tuitrain.errors import ConfigError, Problem
from tuitrain.runs import events
from tuitrain.runs.events import CacheName, PhaseName

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DOWNLOAD_PATIENCE_SECONDS = 3600.0
CAPTIONS_PER_ENCODING = 8


@dataclass(frozen=True)
class Prepared:
    """What the loop works with; the networks are where the steps need them, the UNet is ready to be trained."""

    models: SDXLModels
    schedule: NoiseSchedule
    loader: TrainLoader
    inputs: InputBuilder
    validation_prompts: list[ValidationPrompt]
    steps_per_epoch: int
    total_steps: int
    dataset_hash: str


class Preparation:
    """Prepares a run, and journals what it finds.

    The UNet is the last to go to the device: the encoders that fill the caches have it for themselves before.

    Args:
        seed: of the run.
        emit: takes every Event; called on all ranks.
        pulse: beaten after every picture, tensor and batch of captions.
        can_stop: let a stop end the preparation; ranks prepare apart, so only alone.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        seed: int,
        accelerator: Accelerator,
        emit: Emit,
        pulse: Pulse,
        can_stop: bool,
    ) -> None:
        self.config = config
        self.seed = seed
        self.accelerator = accelerator
        self.device = accelerator.device
        self.emit = emit
        self.pulse = pulse
        self.can_stop = can_stop

    def prepare(self) -> Prepared:
        """Scan the pictures, load the model, fill the caches.

        Raises:
            DatasetError, ModelError, ConfigError: with every picture, tensor or setting that cannot be used.
            StopRequested: the user asked for it; what is cached stays.
        """
        self.check_trackers()
        dataset = self.scan_images()
        self.models = self.load_models()
        self.check_sizes(dataset)
        schedule = self.build_schedule()
        loader = self.build_loader(dataset)
        inputs = self.build_inputs()
        prompts = encode_validation_prompts(
            self.config.validation_prompts, self.config.negative_validation_prompts, self.encode_prompt
        )
        self.place_networks()
        self.warn_of_settings()
        steps_per_epoch = loader.steps_per_epoch
        return Prepared(
            models=self.models,
            schedule=schedule,
            loader=loader,
            inputs=inputs,
            validation_prompts=prompts,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps(self.config, steps_per_epoch),
            dataset_hash=dataset.content_hash,
        )

    def check_trackers(self) -> None:
        """Refuse a tracker that is not installed: accelerate would leave it out without a word."""
        module = {"wandb": "wandb", "comet_ml": "comet_ml"}.get(self.config.report_to)
        if module is not None and find_spec(module) is None:
            raise ConfigError(
                f"report_to is {self.config.report_to}, which is not installed",
                hint=f"pip install {module}, or set report_to to tensorboard",
            )

    def scan_images(self) -> Dataset:
        """Decode every picture once, journal what is wrong with any, and plan the batches."""
        with self.phase("scan_images") as phase:
            dataset = load_dataset(
                self.config, seed=self.seed, world_size=self.accelerator.num_processes, report=phase.report
            )
            phase.detail = f"{len(dataset.records)} pictures, {len(dataset.rejected)} skipped"
        for problem in dataset.rejected:
            self.emit(events.ImageRejected(path=problem.where, reason=problem.what))
        for problem in dataset.notes:
            self.emit(events.ImageNoted(path=problem.where, note=problem.what))
        steps_per_epoch = dataset.plan.steps_per_epoch
        self.emit(
            events.DatasetScanned(
                num_images=len(dataset.records),
                num_skipped=len(dataset.rejected),
                buckets=dataset.bucket_counts,
                steps_per_epoch=steps_per_epoch,
                total_steps=total_steps(self.config, steps_per_epoch),
                num_epochs=total_epochs(self.config, steps_per_epoch),
            )
        )
        return dataset

    def load_models(self) -> SDXLModels:
        """Read the base model into the CPU's memory."""
        config = self.config
        with self.phase("load_model") as phase:
            phase.detail = config.model
            self.pulse.beat(patience_seconds=DOWNLOAD_PATIENCE_SECONDS)
            models = load_sdxl(
                config.model,
                hf_variant=config.hf_variant,
                vae_model=config.vae_model,
                model_config_dir=config.model_config_dir,
                weight_dtype=DTYPES[config.weight_dtype],
                # mixed precision keeps float32 weights: read as such, not through weight_dtype, which would round them
                unet_dtype=DTYPES[config.weight_dtype if config.mixed_precision == "no" else "float32"],
                report=phase.report,
            )
        self.load_seconds = phase.seconds
        return models

    def check_sizes(self, dataset: Dataset) -> None:
        """Refuse sizes that the VAE would round, or that diffusers' pipeline cannot sample.

        Raises:
            ConfigError: before anything is encoded.
        """
        factor = self.models.vae_scale_factor
        problems = [
            Problem(
                f"pictures would be trained at {height}x{width}, the VAE needs multiples of {factor}",
                hint="change data_loader.resolution or data_loader.aspect_ratio_buckets.divisible_by",
            )
            for height, width in sorted(set(dataset.target_hw))
            if height % factor or width % factor
        ]
        if self.config.validation_prompts and (what := why_not_sampled(self.config.validation_hw)):
            problems.append(Problem(what, hint=f"set validation_size to a multiple of {SAMPLE_MULTIPLE}"))
        if problems:
            raise ConfigError.from_problems(problems)

    def build_schedule(self) -> NoiseSchedule:
        """The noise schedule of the model's own scheduler, with the config's overrides, on the device."""
        try:
            schedule = build_noise_schedule(
                self.models.scheduler_config,
                prediction_type=self.config.prediction_type,
                zero_terminal_snr=self.config.zero_terminal_snr,
            )
        except ValueError as error:
            raise ConfigError(
                f"the noise schedule of {self.config.model} cannot be trained: {error}",
                hint="set prediction_type and zero_terminal_snr to what the model was made with, or to null",
            ) from error
        self.emit(
            events.ModelLoaded(
                model=self.config.model,
                prediction_type=schedule.prediction_type,
                zero_terminal_snr=schedule.zero_terminal_snr,
                num_trainable_parameters=sum(param.numel() for param in self.models.unet.parameters()),
                seconds=self.load_seconds,
            )
        )
        return schedule.to(self.device)

    def build_loader(self, dataset: Dataset) -> TrainLoader:
        """Fill the caches that are asked for, then put the loader on them."""
        config, settings = self.config, self.config.data_loader
        caption_prefix = None if isinstance(settings, DreamboothDataLoaderConfig) else settings.caption_prefix
        captions = [with_prefix(record.caption, caption_prefix) for record in dataset.records]
        latent_cache = TensorCache(config.cache_path / "latents") if config.cache_vae_outputs else None
        text_cache = TensorCache(config.cache_path / "text") if config.cache_text_encoder_outputs else None
        return TrainLoader(
            dataset.records,
            dataset.target_hw,
            dataset.plan,
            seed=self.seed,
            background=config.alpha_background,
            rank=self.accelerator.process_index,
            latent_cache=latent_cache,
            latent_keys=self.fill_latents(latent_cache, dataset).keys if latent_cache else (),
            text_cache=text_cache,
            text_keys=self.fill_text(text_cache, captions).keys if text_cache else (),
            center_crop=settings.center_crop,
            random_flip=settings.random_flip,
            caption_prefix=caption_prefix,
            caption_shuffle=config.caption_shuffle,
            keep_tokens=config.keep_tokens,
            caption_dropout=config.caption_dropout,
            time_ids_target_hw=settings.resolution_hw if config.compat == "invoke-training" else None,
            num_workers=settings.dataloader_num_workers,
            warn=lambda what, hint: self.emit(events.WarningRaised(what=what, hint=hint)),
        )

    def fill_latents(self, cache: TensorCache, dataset: Dataset) -> FillResult:
        """Encode the pictures that are not cached yet."""
        with self.filling("latents") as filling, moved(self.models.vae, self.device):
            filling.result = fill_latents(
                dataset.records,
                dataset.target_hw,
                cache=cache,
                encode_image=self.encode_image,
                vae_hash=self.models.vae_hash,
                background=self.config.alpha_background,
                report=filling.phase.report,
            )
        return filling.result

    def fill_text(self, cache: TensorCache, captions: list[str]) -> FillResult:
        """Encode the captions that are not cached yet."""
        models = self.models
        with (
            self.filling("text") as filling,
            moved(models.text_encoder, self.device),
            moved(models.text_encoder_2, self.device),
        ):
            filling.result = fill_text(
                captions,
                cache=cache,
                encode_prompt=self.encode_prompt,
                text_hash=models.text_hash,
                dtype=models.text_encoder.dtype,
                batch_size=CAPTIONS_PER_ENCODING,
                report=filling.phase.report,
            )
        return filling.result

    def encode_image(self, pixel_values: Tensor, generator: torch.Generator) -> Tensor:
        """(B, 3, H, W) on the CPU -> (B, 4, h, w) on the device, by the VAE where it is."""
        return sdxl.encode_image(self.models.vae, pixel_values.to(self.models.vae.device), generator)

    def encode_prompt(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """n captions -> (n, 77, D) and (n, P) on the device; the text encoders come there for the while."""
        models = self.models
        with moved(models.text_encoder, self.device), moved(models.text_encoder_2, self.device):
            return sdxl.encode_prompt(models, captions, device=self.device)

    def build_inputs(self) -> InputBuilder:
        return InputBuilder(
            self.models,
            device=self.device,
            empty_prompt=self.encode_prompt([""]),
            caption_dropout_mode=self.config.caption_dropout_mode,
            seed=self.seed,
        )

    def place_networks(self) -> None:
        """The UNet goes to the device, and of the frozen networks those that every step needs."""
        config, models = self.config, self.models
        for network in (models.vae, models.text_encoder, models.text_encoder_2):
            network.requires_grad_(False)
        if not config.cache_vae_outputs:
            models.vae.to(self.device)
        if not config.cache_text_encoder_outputs:
            models.text_encoder.to(self.device)
            models.text_encoder_2.to(self.device)
        models.unet.to(self.device).train()
        if config.gradient_checkpointing:
            models.unet.enable_gradient_checkpointing()

    def warn_of_settings(self) -> None:
        """Journal the settings that do not do what they seem to."""
        config, loader = self.config, self.config.data_loader
        if config.caption_dropout and config.caption_dropout_mode == "encoded" and self.validates_without_negatives():
            what = "samples are guided away from zeros, and caption_dropout teaches only the encoded empty prompt"
            self.emit(events.WarningRaised(what=what, hint='set negative_validation_prompts to one "" for each prompt'))
        if config.xformers:
            what = "xformers is on in the config and not used: PyTorch's own attention takes as little memory"
            self.emit(events.WarningRaised(what=what, hint="set xformers to false"))
        sets = [getattr(loader, name, None) for name in ("dataset", "instance_dataset", "class_dataset")]
        if any(getattr(pictures, "keep_in_memory", False) for pictures in sets) and not config.cache_vae_outputs:
            what = "keep_in_memory is on in the config and not used: pictures are read at each use"
            self.emit(events.WarningRaised(what=what, hint="set cache_vae_outputs to true"))

    def validates_without_negatives(self) -> bool:
        return bool(self.config.validation_prompts) and self.config.negative_validation_prompts is None

    @contextmanager
    def filling(self, cache: CacheName) -> Iterator["Filling"]:
        """The phase of filling a cache: the main process of each machine first, the others then find it filled."""
        name: PhaseName = "cache_latents" if cache == "latents" else "cache_text"
        with self.accelerator.local_main_process_first(), self.phase(name) as phase:
            filling = Filling(phase)
            yield filling
            encoded, reused = filling.result.encoded, filling.result.reused
            phase.detail = f"{encoded} encoded, {reused} reused"
        self.emit(events.CacheFilled(cache=cache, encoded=encoded, reused=reused, seconds=phase.seconds))

    def phase(self, name: PhaseName) -> AbstractContextManager[Phase]:
        """Journal the start, the progress and the end of a part of the preparation."""
        return running_phase(name, self.emit, self.pulse, can_stop=self.can_stop)


class Filling:
    """A cache being filled.

    Attributes:
        result: set by whoever fills it.
    """

    result: FillResult

    def __init__(self, phase: Phase) -> None:
        self.phase = phase


def optimizer_builder(settings: OptimizerConfig) -> OptimizerBuilder:
    """From the config's optimizer section to the function that makes it."""
    match settings:
        case AdamWConfig():
            return partial(
                build_adamw,
                lr=settings.learning_rate,
                betas=(settings.beta1, settings.beta2),
                weight_decay=settings.weight_decay,
                eps=settings.epsilon,
                use_8bit=settings.use_8bit,
            )
        case AdafactorConfig():
            return partial(
                build_adafactor,
                lr=settings.learning_rate,
                beta2_decay=settings.beta2_decay,
                eps=settings.eps2,
                clip_threshold=settings.clip_threshold,
                weight_decay=settings.weight_decay,
            )
        case ProdigyConfig():
            return partial(
                build_prodigy,
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                use_bias_correction=settings.use_bias_correction,
                safeguard_warmup=settings.safeguard_warmup,
            )
