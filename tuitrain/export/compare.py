"""The same pictures from a base model, what was trained from it, and the base with LoRAs; knows no terminal.

Prompts are encoded once, by the base's text encoders. Then one UNet after the other is in memory, never two, and draws
all pictures with the sampler of a run's samples. The VAE comes last, and only then is anything written. Who owns a
terminal calls `quiet_libraries` before importing this, which imports classes of diffusers.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL.Image import Image
from torch import Tensor

from tuitrain.atomic import atomic_dir
from tuitrain.engine.base_model import BaseModel
from tuitrain.engine.diffusion import build_noise_schedule
from tuitrain.engine.sampling import ValidationPrompt, build_sampling_scheduler, decode_latents, sample_latents
from tuitrain.engine.sdxl import build_network, encode_prompt, load_network, load_text_models
from tuitrain.engine.validation import encode_validation_prompts, moved
from tuitrain.engine.weights import LazyTensor, hash_weights
from tuitrain.errors import ConfigError, ExportError, ModelError, printable
from tuitrain.export.comparison import (
    ComparedModel,
    ComparedPicture,
    CompareOptions,
    Comparison,
    Distance,
    ModelKind,
    check_comparison,
    check_size,
)
from tuitrain.export.device import lack_of_memory_told, open_device
from tuitrain.export.grid import GridPrompt, draw_grid
from tuitrain.export.lora_weights import apply_lora
from tuitrain.export.package import name_of
from tuitrain.export.progress import Progress, ProgressReport, WorkCount, no_progress
from tuitrain.export.target import writing
from tuitrain.export.trained_unet import (
    TrainedUnet,
    base_name,
    lazy_part,
    open_base,
    open_trained_unet,
    scheduler_config_of,
    with_trained_unet,
)
from tuitrain.runs.checkpoints import reading

GRID = "grid.png"
DESCRIPTION = "comparison.json"

Latents = list[list[Tensor]]
"""(1, 4, h, w) on the CPU in float32, by prompt and image."""
Pictures = list[list[Image]]
"""By prompt and image."""


def compare(
    checkpoints: Sequence[Path],
    out: Path,
    options: CompareOptions,
    *,
    loras: Sequence[Path] = (),
    base: str | None = None,
    device: torch.device | str | None = None,
    progress: Progress = no_progress,
) -> Comparison:
    """Draw `options.prompts` with the base, each of `checkpoints`, and the base with each of `loras`, into `out`.

    Args:
        checkpoints: published checkpoints, or UNet folders, which need `base`.
        out: the folder to make; must not exist. It appears whole or not at all.
        loras: sampled as the first checkpoint is, where a training changed what the UNet predicts.
        base: the base model; None is the one of the first checkpoint.
        device: where to draw, on a GPU in float16; None is CUDA where torch can use it.
        progress: told after each denoising step; see `Progress`.

    Raises:
        ConfigError: the request cannot be met: `out` exists, something is not there, a LoRA does not fit.
        CheckpointError: a checkpoint is damaged or being deleted.
        DeviceError: there is no such device, or its memory is too small.
        ExportError: a weight or a picture is not finite, or the disk is full.
        ModelError: the base is not there, or of another architecture than a UNet.
    """
    check_comparison(checkpoints, loras, out)
    canvas = _Canvas(open_device(device), options, progress)
    with ExitStack() as held:
        for checkpoint in checkpoints:
            held.enter_context(reading(checkpoint))
        trained = [open_trained_unet(checkpoint) for checkpoint in checkpoints]
        original = open_base(trained[0], base)
        base_model = base_name(trained[0], base)
        size_hw = options.size_hw or _own_size(trained[0], original)
        check_size(size_hw)
        subjects = _open_subjects(original, base_model, trained, loras, canvas.device)
        _check_steps(options, subjects)
        warnings = _compare_bases(original, trained, progress)
        latents, pictures = canvas.draw(original, subjects, size_hw)
    models = tuple(subject.model for subject in subjects)
    comparison = Comparison(
        path=out,
        grid=GRID,
        base_model=base_model,
        prompts=options.prompts,
        negative_prompt=options.negative_prompt,
        seed=options.seed,
        num_images=options.num_images,
        size_hw=size_hw,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        device=str(canvas.device),
        dtype=name_of(canvas.dtype),
        models=models,
        pictures=tuple(_measure(models, latents)),
        warnings=warnings,
    )
    _write(comparison, pictures, progress)
    return comparison


# ---- what is compared


@dataclass(frozen=True)
class _Subject:
    """A UNet to sample from, checked and not yet read.

    Args:
        model: what it is called.
        config: of the network.
        tensors: of the network.
        scheduler: the sampler over the schedule it was trained on.
    """

    model: ComparedModel
    config: dict[str, Any]
    tensors: Mapping[str, LazyTensor]
    scheduler: DDPMScheduler


def _open_subjects(
    base: BaseModel, base_model: str, trained: Sequence[TrainedUnet], loras: Sequence[Path], device: torch.device
) -> list[_Subject]:
    """The base, the checkpoints, the LoRAs, in this order."""
    unet, base_tensors = base.parts["unet"], lazy_part(base.parts["unet"])
    labels = _distinct(["base", *map(_label, trained), *(lora.stem for lora in loras)])
    scheduler = _sampler(base.scheduler_config, base_model)
    model = _model("base", "base", labels[0], base_model, scheduler)
    subjects = [_Subject(model, unet.config, base_tensors, scheduler)]
    for index, (label, one) in enumerate(zip(labels[1:], trained, strict=False)):
        with_trained_unet(base, one)  # for its check
        scheduler = _sampler(scheduler_config_of(one, base), one.path)
        model = _model("checkpoint", f"checkpoint_{index:04d}", label, one.path, scheduler)
        subjects.append(_Subject(model, one.part.config, lazy_part(one.part), scheduler))
    scheduler = subjects[1].scheduler
    for index, (label, lora) in enumerate(zip(labels[1 + len(trained) :], loras, strict=True)):
        model = _model("lora", f"lora_{index:04d}", label, lora, scheduler)
        tensors = apply_lora(lora, unet, base_tensors, device=device)
        subjects.append(_Subject(model, unet.config, tensors, scheduler))
    return subjects


def _model(kind: ModelKind, name: str, label: str, path: object, scheduler: DDPMScheduler) -> ComparedModel:
    return ComparedModel(
        name=name,
        kind=kind,
        label=label,
        path=str(path),
        prediction_type=scheduler.config.prediction_type,
        zero_terminal_snr=scheduler.config.rescale_betas_zero_snr,
    )


def _sampler(scheduler_config: Mapping[str, Any], model: object) -> DDPMScheduler:
    try:
        return build_sampling_scheduler(scheduler_config, build_noise_schedule(scheduler_config))
    except ValueError as error:
        raise ModelError(f"the noise schedule of {model} cannot be sampled: {error}") from error


def _label(trained: TrainedUnet) -> str:
    if trained.manifest is not None:
        return f"step {trained.manifest.step}"
    folder = trained.path.absolute()
    return folder.parent.name if folder.name == "unet" else folder.name


def _distinct(labels: Sequence[str]) -> list[str]:
    """`labels`, printable, with a number behind those that came before."""
    distinct: list[str] = []
    for label in map(printable, labels):
        candidates = (label, *(f"{label} ({number})" for number in range(2, len(labels) + 1)))
        distinct.append(next(candidate for candidate in candidates if candidate not in distinct))
    return distinct


def _own_size(trained: TrainedUnet, base: BaseModel) -> tuple[int, int]:
    """(height, width) of the run's samples; without a run, of the pictures the model was made for."""
    config = trained.run_config
    resolution = (config.get("data_loader") or {}).get("resolution")
    vae_scale_factor = 2 ** (len(base.parts["vae"].config["block_out_channels"]) - 1)
    own = int(base.parts["unet"].config.get("sample_size") or 128) * vae_scale_factor
    size = config.get("validation_size") or resolution or own
    height, width = size if isinstance(size, list) else (size, size)
    return height, width


def _check_steps(options: CompareOptions, subjects: Sequence[_Subject]) -> None:
    most = min(subject.scheduler.config.num_train_timesteps for subject in subjects)
    if options.num_inference_steps >= most:  # the sampler begins one timestep above the last step's
        raise ConfigError(f"the number of steps is {options.num_inference_steps}, it can be {most - 1} at most")


def _compare_bases(base: BaseModel, trained: Sequence[TrainedUnet], progress: Progress) -> tuple[str, ...]:
    """A warning for each checkpoint that was trained from another UNet than `base` has; reads it, 1 GB a second."""
    if all(one.manifest is None for one in trained):
        return ()
    files = base.parts["unet"].files
    work = WorkCount(sum(path.stat().st_size for path in files), progress)
    work.begin("check", len(files), "files")
    base_hash = hash_weights(files, read=work.add_bytes)
    return tuple(
        f"the UNet in {files[0]} is not the one that {one.path} was trained from ({one.manifest.base_model}):"
        " the same model in another dtype or layout draws nearly the same, another model makes the comparison wrong"
        for one in trained
        if one.manifest is not None and one.manifest.base_model_hash != base_hash
    )


# ---- drawing


class _Canvas:
    """Draws the same pictures with one UNet after the other.

    Args:
        device: of the networks while they work; on a GPU the UNets and text encoders are float16.
        options: which pictures.
        progress: told after each denoising step and each decoded picture.
    """

    def __init__(self, device: torch.device, options: CompareOptions, progress: Progress) -> None:
        self.device = device
        self.dtype = torch.float32 if device.type == "cpu" else torch.float16
        self._options = options
        self._progress = progress

    def draw(
        self, base: BaseModel, subjects: Sequence[_Subject], size_hw: tuple[int, int]
    ) -> tuple[dict[str, Latents], dict[str, Pictures]]:
        """Final latents and pictures by the names of the models.

        Raises:
            DeviceError: the device has too little memory.
            ExportError: a weight or a picture is not finite.
        """
        hint = "end what else uses it, try a smaller --size, or --device cpu"
        with lack_of_memory_told(self.device, f"pictures of {size_hw[0]}x{size_hw[1]}", hint):
            return self._draw(base, subjects, size_hw)

    def _draw(
        self, base: BaseModel, subjects: Sequence[_Subject], size_hw: tuple[int, int]
    ) -> tuple[dict[str, Latents], dict[str, Pictures]]:
        prompts = self._encode(base)
        vae = load_network(base, "vae", dtype=torch.float32)
        num_pictures = len(subjects) * len(prompts) * self._options.num_images
        after_step = self._counter("draw", num_pictures * self._options.num_inference_steps, "steps")
        latents = {
            subject.model.name: self._sample(subject, vae, prompts, size_hw=size_hw, after_step=after_step)
            for subject in subjects
        }
        after_picture = self._counter("decode", num_pictures, "pictures")
        with moved(vae, self.device):
            pictures = {name: _decode(vae, of_model, after_picture) for name, of_model in latents.items()}
        return latents, pictures

    def _encode(self, base: BaseModel) -> list[ValidationPrompt]:
        models = load_text_models(base, dtype=self.dtype)
        negative = self._options.negative_prompt
        with moved(models.text_encoder, self.device), moved(models.text_encoder_2, self.device):
            return encode_validation_prompts(
                self._options.prompts,
                None if negative is None else [negative] * len(self._options.prompts),
                lambda captions: encode_prompt(models, captions, device=self.device),
            )

    def _sample(
        self,
        subject: _Subject,
        vae: AutoencoderKL,
        prompts: Sequence[ValidationPrompt],
        *,
        size_hw: tuple[int, int],
        after_step: Callable[[], None],
    ) -> Latents:
        unet = _load_unet(subject, self.device, self.dtype)
        latents = [
            sample_latents(
                unet,
                vae,
                subject.scheduler,
                prompt,
                num_images=self._options.num_images,
                size_hw=size_hw,
                num_inference_steps=self._options.num_inference_steps,
                guidance_scale=self._options.guidance_scale,
                seed=self._options.seed,
                after_step=after_step,
            )
            for prompt in prompts
        ]
        on_cpu = [[latent.float().cpu() for latent in of_prompt] for of_prompt in latents]
        if not all(bool(latent.isfinite().all()) for of_prompt in on_cpu for latent in of_prompt):
            raise ExportError(
                f"{subject.model.path} draws NaN or infinity", hint="its weights are broken: take an earlier checkpoint"
            )
        return on_cpu

    def _counter(self, phase: str, total: int, unit: str) -> Callable[[], None]:
        """A function that tells one more of `total` things."""
        done = itertools.count(1)
        self._progress(ProgressReport(phase, 0, total, unit))
        return lambda: self._progress(ProgressReport(phase, next(done), total, unit))


def _load_unet(subject: _Subject, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """The network on `device`; beside it one tensor is the most memory this takes."""
    with torch.device("meta"):
        unet = build_network("unet", subject.config)
    weights = {}
    for name, tensor in subject.tensors.items():
        # A copy: what is read may be the mapped file itself.
        weights[name] = tensor.read().to(device, dtype, copy=True)
        if not bool(weights[name].isfinite().all()):
            raise ExportError(
                f"{name} in {subject.model.path} holds NaN, infinity, or more than {name_of(dtype)} can hold",
                hint="take an earlier checkpoint or another LoRA",
            )
    unet.load_state_dict(weights, assign=True)
    return unet.eval()


def _decode(vae: AutoencoderKL, latents: Latents, after_picture: Callable[[], None]) -> Pictures:
    pictures: Pictures = []
    for of_prompt in latents:
        pictures.append([])
        for latent in of_prompt:
            pictures[-1] += decode_latents(vae, [latent])
            after_picture()
    return pictures


# ---- what came out


def _measure(models: Sequence[ComparedModel], latents: Mapping[str, Latents]) -> Iterator[ComparedPicture]:
    """Every picture with its distances, in the order of the grid."""
    for prompt_index, of_prompt in enumerate(latents["base"]):
        for image_index in range(len(of_prompt)):
            of_image = {name: of_model[prompt_index][image_index] for name, of_model in latents.items()}
            for model in models:
                yield ComparedPicture(
                    file=f"prompt_{prompt_index:04d}/{image_index:04d}-{model.name}.png",
                    model=model.name,
                    prompt_index=prompt_index,
                    image_index=image_index,
                    distances={
                        other.name: _distance(of_image[model.name], of_image[other.name])
                        for other in models
                        if other.is_reference and other != model
                    },
                )


def _distance(a: Tensor, b: Tensor) -> Distance:
    norm = float((a.double() - b.double()).norm())
    return Distance(relative=norm / float(b.double().norm()), rms=norm / math.sqrt(b.numel()))


def _write(comparison: Comparison, pictures: Mapping[str, Pictures], progress: Progress) -> None:
    total = len(comparison.pictures)
    with writing(comparison.path), atomic_dir(comparison.path) as folder:
        for index, picture in enumerate(comparison.pictures):
            progress(ProgressReport("write", index, total, "pictures"))
            path = folder / picture.file
            path.parent.mkdir(exist_ok=True)
            pictures[picture.model][picture.prompt_index][picture.image_index].save(path)
        _grid_of(comparison, pictures).save(folder / comparison.grid)
        text = json.dumps(comparison.as_values(), indent=2)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        progress(ProgressReport("write", total, total, "pictures"))  # the last moment to cancel


def _grid_of(comparison: Comparison, pictures: Mapping[str, Pictures]) -> Image:
    height, width = comparison.size_hw
    names = [model.name for model in comparison.models]
    prompts = [
        GridPrompt(text, [[pictures[name][index][image] for name in names] for image in range(comparison.num_images)])
        for index, text in enumerate(comparison.prompts)
    ]
    footer = (
        f"seed {comparison.seed}, {comparison.num_inference_steps} steps,"
        f" guidance {comparison.guidance_scale:g}, {width}x{height}"
    )
    return draw_grid([model.label for model in comparison.models], prompts, footer=footer)
