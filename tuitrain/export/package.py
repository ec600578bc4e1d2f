"""A trained UNet and its base model as one diffusers folder that every client loads; knows no terminal."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from tuitrain.errors import CheckpointError, ConfigError, ExportError, ModelError
from tuitrain.export.base_files import FROZEN_PARTS, FrozenFiles, copy_file, dtype_of, list_frozen_files, style_of
from tuitrain.export.loading import folder_in_clients, folder_in_diffusers
from tuitrain.export.model_card import card_text
from tuitrain.export.progress import Progress, WorkCount, no_progress
from tuitrain.export.request import check_target
from tuitrain.export.trained_unet import (
    base_name,
    check_base,
    lazy_part,
    num_checked_bytes,
    open_base,
    open_trained_unet,
    scheduler_config_of,
    with_trained_unet,
)
from tuitrain.export.verification import verify_copies, verify_tensors

Variant = Literal["auto", "fp16", "none"]
DtypeName = Literal["float16", "bfloat16", "float32"]

_SPARE_BYTES = 64 << 20  # left free on the disk
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


def package_folder(
    checkpoint: Path,
    out: Path,
    *,
    base: str | None = None,
    variant: Variant = "auto",
    dtype: DtypeName | None = None,
    link: bool = False,
    progress: Progress = no_progress,
) -> Package:
    """Write a complete diffusers folder with the UNet of `checkpoint`; it appears verified or not at all.

    Text encoders, VAE and tokenizers are the base's own bytes. The UNet is cast tensor by tensor.

    Args:
        checkpoint: a published checkpoint, or a UNet folder, which needs `base`.
        out: the folder to make; must not exist, its parent must.
        base: the base model; None is the one of the checkpoint.
        variant: "fp16" or "none" (plain names) for the weight files; "auto" is fp16 where the whole base is named so
            and everything is float16.
        dtype: of the UNet; None is float16 for the fp16 variant, else that of the base's UNet.
        link: share the base's weight files by hard links where possible.
        progress: see `Progress`.

    Raises:
        ConfigError: the request cannot be met: `out` exists, no base is known, variant and dtype contradict.
        ModelError: the base is not there, not the checkpoint's, or of another architecture than the UNet.
        CheckpointError: the checkpoint's description is damaged.
        ExportError: a weight is not finite in `dtype`, the disk is full, or the result is not what it should be.
    """
    quiet_libraries()
    trained = open_trained_unet(checkpoint)
    check_target(out, checkpoint)
    original = open_base(trained, base)
    with_trained_unet(original, trained)  # for its check
    index = _model_index(original)
    style, torch_dtype = _choose_style(original, variant=variant, dtype=dtype)
    dtype_name = name_of(torch_dtype)
    scheduler = scheduler_config_of(trained, original)
    prediction_type = str(scheduler["prediction_type"])
    frozen = list_frozen_files(original, style)
    unet = lazy_part(trained.part)
    texts = {
        **frozen.texts,
        "model_index.json": as_json(index),
        "scheduler/scheduler_config.json": as_json(scheduler),
        "unet/config.json": as_json(
            {key: value for key, value in trained.part.config.items() if key != "_name_or_path"}
        ),
        "README.md": card_text(
            trained,
            title=out.name,
            base=base_name(trained, base),
            prediction_type=prediction_type,
            dtype=dtype_name,
            loading=folder_in_diffusers(Path(out.name), dtype=dtype_name, variant=style),
            licences=[name for name in frozen.copies if "/" not in name],
        ),
    }
    copied_bytes = sum(path.stat().st_size for path in frozen.copies.values())
    written_bytes = num_bytes_of(unet, torch_dtype) + sum(
        num_bytes_of(lazy_part(part), dtype_of(part)) for part in frozen.originals
    )
    check_free_disk(out.parent, written_bytes + (0 if link else copied_bytes))
    work = WorkCount(num_checked_bytes(trained, original) + 2 * (copied_bytes + written_bytes), progress)
    check_base(trained, original, work)
    with export_errors(out), atomic_dir(out) as folder:
        _write_texts(folder, texts)
        num_linked_bytes = _write_frozen(folder, frozen, style, link=link, work=work)
        target = folder / "unet" / weight_name(PARTS["unet"], style)
        work.begin("unet", len(unet))
        write_safetensors(target, unet.items(), dtype=torch_dtype, written=work.add)
        _verify(folder, frozen, style, dtype=torch_dtype, unet=unet, work=work)
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Package(
        path=out,
        layout="diffusers",
        base_model=base_name(trained, base),
        step=trained.manifest.step if trained.manifest else None,
        prediction_type=prediction_type,
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr")),
        dtype=dtype_name,
        variant=style,
        num_bytes=num_bytes,
        num_linked_bytes=num_linked_bytes,
        loading=folder_in_diffusers(out.absolute(), dtype=dtype_name, variant=style),
        steps=folder_in_clients(out.absolute(), prediction_type=prediction_type),
    )


def check_free_disk(folder: Path, num_bytes: int) -> None:
    """Check that `num_bytes` more fit into `folder`.

    Raises:
        ExportError: they do not.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes + _SPARE_BYTES:
        raise ExportError(
            f"the export takes {num_bytes / 2**30:.1f} GiB, {folder} has {free / 2**30:.1f} GiB free",
            hint="name a place on a larger disk with --out",
        )


@contextmanager
def export_errors(out: Path) -> Iterator[None]:
    """Tell what stopped the writing of `out` as an ExportError."""
    try:
        yield
    except (CheckpointError, ModelError) as error:
        raise ExportError.from_problems(error.problems) from error
    except OSError as error:
        raise ExportError(f"cannot write {out}: {error.strerror or error}", hint="nothing was left behind") from error


def num_bytes_of(tensors: Mapping[str, LazyTensor], dtype: torch.dtype) -> int:
    """The bytes of `tensors` in `dtype`."""
    return sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize


def name_of(dtype: torch.dtype) -> str:
    """`float16` for torch.float16."""
    return str(dtype).removeprefix("torch.")


def as_json(values: Mapping[str, object]) -> str:
    """The text of a config file."""
    return json.dumps(values, indent=2) + "\n"


def _choose_style(
    base: BaseModel, *, variant: Variant, dtype: DtypeName | None
) -> tuple[Literal["fp16"] | None, torch.dtype]:
    """The variant of all names and the dtype of the UNet; fp16 in a name promises float16 inside."""
    chosen: torch.dtype = getattr(
        torch, dtype or ("float16" if variant == "fp16" else name_of(dtype_of(base.parts["unet"])))
    )
    wider = [name for name in FROZEN_PARTS if dtype_of(base.parts[name]) != torch.float16]
    if variant == "fp16":
        if chosen != torch.float16:
            raise ConfigError(
                f"the variant fp16 is float16, not {dtype}", hint="leave one of --variant and --dtype out"
            )
        if wider:
            raise ConfigError(
                f"the base's {', '.join(wider)} is not float16, and stays as it is; fp16 names would lie",
                hint="use --variant none",
            )
        return "fp16", chosen
    is_all_fp16 = (
        chosen == torch.float16 and not wider and all(style_of(part) == "fp16" for part in base.parts.values())
    )
    return ("fp16" if variant == "auto" and is_all_fp16 else None), chosen


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


def _write_frozen(folder: Path, frozen: FrozenFiles, style: str | None, *, link: bool, work: WorkCount) -> int:
    """Fill in all that is not trained; the number of bytes that are shared with the base."""
    num_linked_bytes = 0
    work.begin("copy", len(frozen.copies), "files")
    for name, source in frozen.copies.items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        kind = copy_file(source, target, link=link and source.suffix == ".safetensors", work=work)
        num_linked_bytes += source.stat().st_size if kind == "linked" else 0
    for part in frozen.originals:
        path = folder / part.name / weight_name(PARTS[part.name], style)
        tensors = lazy_part(part)
        work.begin(part.name, len(tensors))
        write_safetensors(path, tensors.items(), dtype=dtype_of(part), written=work.add)
    return num_linked_bytes


def _verify(
    folder: Path,
    frozen: FrozenFiles,
    style: str | None,
    *,
    dtype: torch.dtype,
    unet: Mapping[str, LazyTensor],
    work: WorkCount,
) -> None:
    """Read the folder as a client would and compare all of it."""
    written = open_base_model(str(folder), hf_variant=style, vae_model=None, model_config_dir=None)
    verify_copies({folder / name: source for name, source in frozen.copies.items()}, work)
    for part in frozen.originals:
        verify_tensors(
            f"verify {part.name}",
            lazy_part(written.parts[part.name]),
            lazy_part(part),
            dtype=dtype_of(part),
            work=work,
        )
    verify_tensors("verify unet", lazy_part(written.parts["unet"]), unet, dtype=dtype, work=work)
