"""A trained UNet and its base model as one diffusers folder that every client loads; knows no terminal."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from tuitrain.atomic import atomic_dir
from tuitrain.engine.base_model import BaseModel, open_base_model
from tuitrain.engine.checkpoint import pipeline_index
from tuitrain.engine.quiet import quiet_libraries
from tuitrain.engine.weight_files import PARTS, read_json, weight_name
from tuitrain.engine.weights import LazyTensor, write_safetensors
from tuitrain.errors import ConfigError, ModelError
from tuitrain.export.base_files import FROZEN_PARTS, FrozenFiles, copy_file, dtype_of, list_frozen_files, style_of
from tuitrain.export.loading import folder_in_clients, folder_in_diffusers
from tuitrain.export.model_card import card_text
from tuitrain.export.progress import Progress, WorkCount, no_progress
from tuitrain.export.request import check_target
from tuitrain.export.target import check_free_disk, writing
from tuitrain.export.trained_unet import (
    TrainedUnet,
    base_name,
    check_origin,
    lazy_part,
    num_checked_bytes,
    open_base,
    open_trained_unet,
    scheduler_config_of,
    with_trained_unet,
)
from tuitrain.export.verification import verify_copies, verify_tensors
from tuitrain.runs.checkpoints import reading

Variant = Literal["auto", "fp16", "none"]
DtypeName = Literal["float16", "bfloat16", "float32"]

DEFAULT_DTYPE: DtypeName = "float16"
"""Of what is packaged, whatever the base's: every client loads it, at half the size of the trained float32."""

_PIPELINE = "StableDiffusionXLPipeline"


@dataclass(frozen=True, kw_only=True)
class Package:
    """A finished export, and how to use it.

    Args:
        path: the folder or file.
        layout: "diffusers" for a folder, "single_file" for one file in the original layout.
        base_model: as the user or the run calls it.
        step: completed optimizer steps; None for a UNet that is no checkpoint.
        prediction_type: "epsilon" or "v_prediction".
        zero_terminal_snr: whether the last timestep is pure noise.
        dtype: of the UNet, in a single file of everything.
        variant: in the names of the weight files; None for plain names.
        num_bytes: of all files.
        num_linked_bytes: of those shared with the base by hard links.
        loading: the lines of Python that load it in diffusers.
        steps: what to do in InvokeAI and in ComfyUI.
        warnings: what the user should know, as sentences.
    """

    path: Path
    layout: Literal["diffusers", "single_file"]
    base_model: str
    step: int | None
    prediction_type: str
    zero_terminal_snr: bool
    dtype: str
    variant: str | None
    num_bytes: int
    num_linked_bytes: int
    loading: tuple[str, ...]
    steps: tuple[str, ...]
    warnings: tuple[str, ...]


def package_folder(
    checkpoint: Path,
    out: Path,
    *,
    base: str | None = None,
    allow_other_base: bool = False,
    variant: Variant = "auto",
    dtype: DtypeName = DEFAULT_DTYPE,
    link: bool = False,
    progress: Progress = no_progress,
) -> Package:
    """Write a complete diffusers folder with the UNet of `checkpoint`; it appears verified or not at all.

    Text encoders, VAE and tokenizers are the base's own bytes. The UNet is cast tensor by tensor.

    Args:
        checkpoint: a published checkpoint, or a UNet folder, which needs `base`.
        out: the folder to make; must not exist. Folders above it are made.
        base: the base model; None is the one of the checkpoint.
        allow_other_base: warn of a base that is not the checkpoint's, instead of refusing it.
        variant: "fp16" or "none" (plain names) for the weight files; "auto" is fp16 where the whole base is named so
            and everything is float16.
        dtype: of the UNet.
        link: share the base's weight files by hard links where possible.
        progress: see `Progress`.

    Raises:
        ConfigError: the request cannot be met: `out` exists, no base is known, variant and dtype contradict.
        ModelError: the base is not there, not the checkpoint's, or of another architecture than the UNet.
        CheckpointError: the checkpoint's description is damaged, or it is being deleted.
        ExportError: a weight is not finite in `dtype`, the disk is full, or the result is not what it should be.
    """
    quiet_libraries()
    check_target(out, checkpoint)
    with reading(checkpoint):
        plan = _plan(checkpoint, base, variant=variant, dtype=getattr(torch, dtype))
        check_free_disk(out, plan.num_written_bytes + (0 if link else plan.num_copied_bytes))
        work = WorkCount(plan.num_worked_bytes, progress)
        warnings = check_origin(plan.trained, plan.base, work, allow_other_base=allow_other_base)
        with writing(out), atomic_dir(out) as folder:
            _write_texts(folder, {**plan.frozen.texts, **plan.texts(out.name)})
            num_linked_bytes = _write_frozen(folder, plan, link=link, work=work)
            _write_unet(folder, plan, work)
            _verify(folder, plan, work)
            num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Package(
        path=out,
        layout="diffusers",
        base_model=plan.base_model,
        step=plan.trained.manifest.step if plan.trained.manifest else None,
        prediction_type=plan.prediction_type,
        zero_terminal_snr=bool(plan.scheduler.get("rescale_betas_zero_snr")),
        dtype=name_of(plan.dtype),
        variant=plan.style,
        num_bytes=num_bytes,
        num_linked_bytes=num_linked_bytes,
        loading=folder_in_diffusers(out.absolute(), dtype=name_of(plan.dtype), variant=plan.style),
        steps=folder_in_clients(out.absolute(), prediction_type=plan.prediction_type),
        warnings=warnings,
    )


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Everything that goes into a folder, none of it read yet.

    Args:
        trained: the checkpoint.
        base: its base model.
        base_model: that, as the user or the run calls it.
        style: the variant of all names, None for plain ones.
        dtype: of the UNet.
        index: the content of model_index.json.
        scheduler: the content of its config.
        frozen: the base's files.
        unet: the trained tensors.
    """

    trained: TrainedUnet
    base: BaseModel
    base_model: str
    style: Literal["fp16"] | None
    dtype: torch.dtype
    index: Mapping[str, object]
    scheduler: Mapping[str, object]
    frozen: FrozenFiles
    unet: Mapping[str, LazyTensor]

    @property
    def prediction_type(self) -> str:
        return str(self.scheduler["prediction_type"])

    @property
    def num_copied_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.frozen.copies.values())

    @property
    def num_written_bytes(self) -> int:
        originals = sum(num_bytes_of(lazy_part(part), dtype_of(part)) for part in self.frozen.originals)
        return num_bytes_of(self.unet, self.dtype) + originals

    @property
    def num_worked_bytes(self) -> int:
        """Everything is checked, written and read back."""
        return num_checked_bytes(self.trained, self.base) + 2 * (self.num_copied_bytes + self.num_written_bytes)

    def texts(self, title: str) -> dict[str, str]:
        """The texts of a folder called `title` that are not the base's, by their path."""
        unet_config = {key: value for key, value in self.trained.part.config.items() if key != "_name_or_path"}
        return {
            "model_index.json": _as_json(self.index),
            "scheduler/scheduler_config.json": _as_json(self.scheduler),
            "unet/config.json": _as_json(unet_config),
            "README.md": card_text(
                self.trained,
                title=title,
                base=self.base_model,
                prediction_type=self.prediction_type,
                dtype=name_of(self.dtype),
                loading=folder_in_diffusers(Path(title), dtype=name_of(self.dtype), variant=self.style),
                licences=[name for name in self.frozen.copies if "/" not in name],
            ),
        }


def _plan(checkpoint: Path, base: str | None, *, variant: Variant, dtype: torch.dtype) -> _Plan:
    trained = open_trained_unet(checkpoint)
    original = open_base(trained, base)
    with_trained_unet(original, trained)  # for its check
    style = _choose_style(original, variant=variant, dtype=dtype)
    return _Plan(
        trained=trained,
        base=original,
        base_model=base_name(trained, base),
        style=style,
        dtype=dtype,
        index=_model_index(original),
        scheduler=scheduler_config_of(trained, original),
        frozen=list_frozen_files(original, style),
        unet=lazy_part(trained.part),
    )


def num_bytes_of(tensors: Mapping[str, LazyTensor], dtype: torch.dtype) -> int:
    """The bytes of `tensors` in `dtype`."""
    return sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize


def name_of(dtype: torch.dtype) -> str:
    """`float16` for torch.float16."""
    return str(dtype).removeprefix("torch.")


def _as_json(values: Mapping[str, object]) -> str:
    return json.dumps(values, indent=2) + "\n"


def _choose_style(base: BaseModel, *, variant: Variant, dtype: torch.dtype) -> Literal["fp16"] | None:
    """The variant of all names; fp16 in a name promises float16 inside."""
    wider = [name for name in FROZEN_PARTS if dtype_of(base.parts[name]) != torch.float16]
    if variant == "fp16" and dtype != torch.float16:
        raise ConfigError(
            f"the variant fp16 is float16, not {name_of(dtype)}", hint="leave one of --variant and --dtype out"
        )
    if variant == "fp16" and wider:
        raise ConfigError(
            f"the base's {', '.join(wider)} is not float16, and stays as it is; fp16 names would lie",
            hint="use --variant none",
        )
    is_all_fp16 = dtype == torch.float16 and not wider and all(style_of(part) == "fp16" for part in base.parts.values())
    return "fp16" if variant == "fp16" or (variant == "auto" and is_all_fp16) else None


def _model_index(base: BaseModel) -> dict[str, object]:
    """The base's model_index.json, without optional components, which hold nothing a trained SDXL needs."""
    own = pipeline_index(base)
    if base.folder is None:
        return own
    index = read_json(base.folder / "model_index.json")
    if index.get("_class_name") != _PIPELINE:
        raise ModelError(
            f"{base.folder} is a {index.get('_class_name')}, a package is a {_PIPELINE}",
            hint="give the SDXL base model",
        )
    index.pop("_name_or_path", None)
    return {key: [None, None] if isinstance(value, list) and key not in own else value for key, value in index.items()}


def _write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _write_frozen(folder: Path, plan: _Plan, *, link: bool, work: WorkCount) -> int:
    """Fill in all that is not trained; the number of bytes that are shared with the base."""
    num_linked_bytes = 0
    work.begin("copy", len(plan.frozen.copies), "files")
    for name, source in plan.frozen.copies.items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        kind = copy_file(source, target, link=link and source.suffix == ".safetensors", work=work)
        num_linked_bytes += source.stat().st_size if kind == "linked" else 0
    for part in plan.frozen.originals:
        path = folder / part.name / weight_name(PARTS[part.name], plan.style)
        tensors = lazy_part(part)
        work.begin(part.name, len(tensors))
        write_safetensors(path, tensors.items(), dtype=dtype_of(part), written=work.add)
    return num_linked_bytes


def _write_unet(folder: Path, plan: _Plan, work: WorkCount) -> None:
    path = folder / "unet" / weight_name(PARTS["unet"], plan.style)
    work.begin("unet", len(plan.unet))
    write_safetensors(path, plan.unet.items(), dtype=plan.dtype, written=work.add)


def _verify(folder: Path, plan: _Plan, work: WorkCount) -> None:
    """Read the folder as a client would and compare all of it."""
    written = open_base_model(str(folder), hf_variant=plan.style, vae_model=None, model_config_dir=None)
    verify_copies({folder / name: source for name, source in plan.frozen.copies.items()}, work)
    for part in plan.frozen.originals:
        tensors = lazy_part(written.parts[part.name])
        verify_tensors(f"verify {part.name}", tensors, lazy_part(part), dtype=dtype_of(part), work=work)
    verify_tensors("verify unet", lazy_part(written.parts["unet"]), plan.unet, dtype=plan.dtype, work=work)
