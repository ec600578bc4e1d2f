"""What to compare and what came out, as plain values and rows of a table; loads no library, knows no tensors."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from tuitrain.engine.sample_size import why_not_sampled
from tuitrain.errors import ConfigError
from tuitrain.export.request import check_checkpoint, check_target

MAX_SEED = 2**63 - 1

ModelKind = Literal["base", "checkpoint", "lora"]


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Which pictures to compare; the same for every model.

    Args:
        prompts: one or more; "" is a prompt like any other.
        negative_prompt: of all prompts; None stands for zeros, as in a run without negative prompts.
        seed: of each prompt's noise.
        num_images: of each prompt, one after the other from its noise.
        size_hw: in pixels; None is the size of the run's samples, else the model's own.
        num_inference_steps: of the DDPM sampler that draws a run's samples.
        guidance_scale: 1 is without guidance.

    Raises:
        ConfigError: one of them is out of bounds.
    """

    prompts: tuple[str, ...]
    negative_prompt: str | None = None
    seed: int = 0
    num_images: int = 1
    size_hw: tuple[int, int] | None = None
    num_inference_steps: int = 30
    guidance_scale: float = 5.0

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConfigError("there is no prompt", hint='add --prompt "a robot cat in the snow"')
        for prompt in (*self.prompts, self.negative_prompt or ""):
            if any("\ud800" <= character <= "\udfff" for character in prompt):
                raise ConfigError(f"the prompt {prompt!r} is no text", hint="type it in UTF-8")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"the seed is {self.seed}, it must lie between 0 and {MAX_SEED}")
        if self.num_images < 1:
            raise ConfigError(f"the number of images is {self.num_images}, it must be at least 1")
        if self.num_inference_steps < 1:
            raise ConfigError(f"the number of steps is {self.num_inference_steps}, it must be at least 1")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise ConfigError(f"the guidance scale is {self.guidance_scale:g}, it must be 0 or more")
        if self.size_hw is not None:
            check_size(self.size_hw)


def check_size(size_hw: tuple[int, int]) -> None:
    """Check that pictures of (height, width) pixels can be sampled.

    Raises:
        ConfigError: they cannot.
    """
    if what := why_not_sampled(size_hw):
        raise ConfigError(what, hint="try --size 1024, or the size the model was trained at")


def check_comparison(checkpoints: Sequence[Path], loras: Sequence[Path], out: Path) -> None:
    """Check what the paths of a comparison tell by themselves.

    Raises:
        ConfigError: one is not there, or `out` is.
    """
    if not checkpoints:
        raise ConfigError("there is no checkpoint to compare", hint="`tuitrain checkpoints RUN` lists those of a run")
    for checkpoint in checkpoints:
        check_checkpoint(checkpoint)
        check_target(out, checkpoint)
    for lora in loras:
        if not lora.is_file():
            raise ConfigError(f"there is no file {lora}", hint="`tuitrain extract-lora` makes one of a checkpoint")


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """A UNet that drew pictures.

    Args:
        name: in the names of files and in distances: "base", "checkpoint_0000", "lora_0000".
        kind: a LoRA is the base with its change.
        label: for a person; no two are the same.
        path: as given.
        prediction_type: "epsilon" or "v_prediction".
        zero_terminal_snr: whether the sampler begins at pure noise.
    """

    name: str
    kind: ModelKind
    label: str
    path: str
    prediction_type: str
    zero_terminal_snr: bool

    @property
    def is_reference(self) -> bool:
        """Whether distances to its pictures are told."""
        return self.kind != "lora"


@dataclass(frozen=True)
class Distance:
    """How far the final latents a lie from the latents b of another model with the same prompt and noise.

    Both as the UNet leaves them, before the VAE's scaling is undone, in float32.

    Args:
        relative: ||a - b|| / ||b||; 0 is the same picture.
        rms: ||a - b|| / sqrt(number of latents).
    """

    relative: float
    rms: float


@dataclass(frozen=True, kw_only=True)
class ComparedPicture:
    """One picture.

    Args:
        file: relative to the comparison's folder.
        model: the name of its model.
        prompt_index: of its prompt.
        image_index: of the images of its prompt.
        distances: to the pictures of the base and of each checkpoint, by their names; not to itself.
    """

    file: str
    model: str
    prompt_index: int
    image_index: int
    distances: dict[str, Distance]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was compared, and how far apart the pictures are.

    Args:
        path: the folder.
        grid: all pictures with labels, relative to the folder.
        base_model: as the user or the run calls it.
        prompts, negative_prompt, seed, num_images, size_hw, num_inference_steps, guidance_scale: see `CompareOptions`.
        device: that drew.
        dtype: of the UNets while they drew.
        models: the columns of the grid.
        pictures: prompt by prompt, image by image, in the order of the models.
        warnings: what the user should know, as sentences.
    """

    path: Path
    grid: str
    base_model: str
    prompts: tuple[str, ...]
    negative_prompt: str | None
    seed: int
    num_images: int
    size_hw: tuple[int, int]
    num_inference_steps: int
    guidance_scale: float
    device: str
    dtype: str
    models: tuple[ComparedModel, ...]
    pictures: tuple[ComparedPicture, ...]
    warnings: tuple[str, ...]

    def mean_distance(self, model: str, reference: str) -> Distance:
        """The mean over all pictures of the distances of one model to another."""
        distances = [picture.distances[reference] for picture in self.pictures if picture.model == model]
        return Distance(fmean(one.relative for one in distances), fmean(one.rms for one in distances))

    def as_values(self) -> dict[str, Any]:
        """JSON-ready, with the mean distances."""
        references = [model.name for model in self.models if model.is_reference]
        means = {
            model.name: {
                name: asdict(self.mean_distance(model.name, name)) for name in references if name != model.name
            }
            for model in self.models
        }
        return {**asdict(self), "path": str(self.path), "mean_distances": means}


def distance_rows(comparison: Comparison) -> list[dict[str, str]]:
    """A row for each model: its mean distance, relative and rms, to the base and to each checkpoint."""
    return [
        {
            "model": model.label,
            **{
                f"to {other.label}": _cell(comparison, model, other)
                for other in comparison.models
                if other.is_reference
            },
        }
        for model in comparison.models
    ]


def _cell(comparison: Comparison, model: ComparedModel, reference: ComparedModel) -> str:
    if model == reference:
        return "-"
    distance = comparison.mean_distance(model.name, reference.name)
    return f"{distance.relative:.3f} (rms {distance.rms:.3f})"
