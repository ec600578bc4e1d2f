"""A trained UNet and its base model as one file in SDXL's original layout; knows no terminal.

The file is read back through the engine's reader of such files, which goes from the Hub's names to the original ones
for every tensor, so that a name or a shape that no client would find is found here.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from tuitrain.atomic import atomic_file
from tuitrain.engine.base_model import BaseModel, Part, open_base_model
from tuitrain.engine.original_names import PREFIXES, original_tensor
from tuitrain.engine.quiet import quiet_libraries
from tuitrain.engine.weight_files import PARTS, read_json
from tuitrain.engine.weights import LazyTensor, write_safetensors
from tuitrain.errors import ConfigError
from tuitrain.export.loading import file_in_clients, file_in_diffusers
from tuitrain.export.model_card import short_name, training_facts
from tuitrain.export.package import DEFAULT_DTYPE, DtypeName, Package, num_bytes_of
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
from tuitrain.export.verification import verify_tensors
from tuitrain.runs.checkpoints import reading

_SCHEDULER_KEYS = ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")


def package_single_file(
    checkpoint: Path,
    out: Path,
    *,
    base: str | None = None,
    allow_other_base: bool = False,
    dtype: DtypeName = DEFAULT_DTYPE,
    progress: Progress = no_progress,
) -> Package:
    """Write one `.safetensors` with UNet, VAE and text encoders; it appears verified or not at all.

    Args:
        checkpoint: a published checkpoint, or a UNet folder, which needs `base`.
        out: the file to make; must not exist. Folders above it are made.
        base: the base model; None is the one of the checkpoint.
        allow_other_base: warn of a base that is not the checkpoint's, instead of refusing it.
        dtype: of every tensor.
        progress: see `Progress`.

    Raises:
        The errors of `package_folder`.
    """
    quiet_libraries()
    check_target(out, checkpoint)
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out} is not the name of a single file", hint=f"--out {out}.safetensors")
    torch_dtype: torch.dtype = getattr(torch, dtype)
    with reading(checkpoint):
        trained = open_trained_unet(checkpoint)
        original = open_base(trained, base)
        model = with_trained_unet(original, trained)
        parts = {name: lazy_part(model.parts[name]) for name in PARTS}
        num_bytes = sum(num_bytes_of(tensors, torch_dtype) for tensors in parts.values())
        check_free_disk(out, num_bytes)
        work = WorkCount(num_checked_bytes(trained, original) + 2 * num_bytes, progress)
        warnings = check_origin(trained, original, work, allow_other_base=allow_other_base)
        scheduler = scheduler_config_of(trained, original)
        metadata = _modelspec(
            trained,
            model,
            title=out.stem,
            base=base_name(trained, base),
            prediction_type=str(scheduler["prediction_type"]),
        )
        with writing(out), atomic_file(out) as file:
            tensors = _all_tensors(model, parts, scheduler)
            work.begin("write", len(tensors))
            write_safetensors(file, tensors.items(), dtype=torch_dtype, metadata=metadata, written=work.add)
            _verify(file, parts, dtype=torch_dtype, config_dir=original.tokenizer_root, work=work)
    return Package(
        path=out,
        layout="single_file",
        base_model=base_name(trained, base),
        step=trained.manifest.step if trained.manifest else None,
        prediction_type=str(scheduler["prediction_type"]),
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr")),
        dtype=dtype,
        variant=None,
        num_bytes=out.stat().st_size,
        num_linked_bytes=0,
        loading=file_in_diffusers(
            out.absolute(),
            dtype=dtype,
            config_dir=original.tokenizer_root.absolute(),
            scheduler_changes=_scheduler_changes(scheduler, original),
        ),
        steps=file_in_clients(out.absolute()),
        warnings=warnings,
    )


def _all_tensors(
    model: BaseModel, parts: Mapping[str, Mapping[str, LazyTensor]], scheduler: Mapping[str, object]
) -> dict[str, LazyTensor]:
    """What the file holds, by name."""
    tensors = _markers(scheduler)
    for name, part_tensors in parts.items():
        tensors |= original_layout(model.parts[name], part_tensors)
    return tensors


def _verify(
    file: Path,
    parts: Mapping[str, Mapping[str, LazyTensor]],
    *,
    dtype: torch.dtype,
    config_dir: Path,
    work: WorkCount,
) -> None:
    """Read the file as a client would and compare all of it."""
    written = open_base_model(str(file), hf_variant=None, vae_model=None, model_config_dir=str(config_dir))
    for name, tensors in parts.items():
        verify_tensors(f"verify {name}", lazy_part(written.parts[name]), tensors, dtype=dtype, work=work)


def original_layout(part: Part, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors of a network under the names, prefix included, and in the shapes of the original layout.

    Args:
        tensors: by their names on the Hub.
    """
    layout: dict[str, LazyTensor] = {}
    thirds: dict[str, dict[int, LazyTensor]] = {}
    for name, tensor in tensors.items():
        original = original_tensor(part.name, name, part.config)
        key = PREFIXES[part.name] + original.name
        if original.third is not None:
            thirds.setdefault(key, {})[original.third] = tensor
        elif original.is_transposed:
            layout[key] = _transposed(tensor)
        elif part.name == "vae" and len(tensor.shape) == 2:  # its attention is made of 1x1 convolutions there
            layout[key] = _reshaped(tensor, (*tensor.shape, 1, 1))
        else:
            layout[key] = tensor
    return layout | {key: _stacked([found[third] for third in range(3)]) for key, found in thirds.items()}


def _transposed(tensor: LazyTensor) -> LazyTensor:
    return LazyTensor(tensor.shape[::-1], tensor.dtype, lambda: tensor.read().T.contiguous())


def _reshaped(tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    return LazyTensor(shape, tensor.dtype, lambda: tensor.read().reshape(shape))


def _stacked(thirds: list[LazyTensor]) -> LazyTensor:
    first = thirds[0]
    shape = (3 * first.shape[0], *first.shape[1:])
    return LazyTensor(shape, first.dtype, lambda: torch.cat([third.read() for third in thirds]))


def _markers(scheduler: Mapping[str, object]) -> dict[str, LazyTensor]:
    """Empty tensors whose names say what the UNet predicts; without them every client takes it for epsilon."""
    is_wanted = {
        "v_pred": scheduler["prediction_type"] == "v_prediction",
        "ztsnr": scheduler.get("rescale_betas_zero_snr"),
    }
    return {name: LazyTensor((0,), torch.float32, _nothing) for name, wanted in is_wanted.items() if wanted}


def _nothing() -> Tensor:
    return torch.empty(0)


def _modelspec(
    trained: TrainedUnet, model: BaseModel, *, title: str, base: str, prediction_type: str
) -> dict[str, str]:
    """What the file says of itself. Source: https://github.com/Stability-AI/ModelSpec, version 1.0.0."""
    vae_scale_factor = 2 ** (len(model.parts["vae"].config["block_out_channels"]) - 1)
    pixels = int(trained.part.config.get("sample_size") or 128) * vae_scale_factor
    made = datetime.fromtimestamp(trained.manifest.time, UTC) if trained.manifest else datetime.now(UTC)
    facts = ", ".join(f"{name} {value}" for name, value in training_facts(trained).items())
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.date": made.isoformat(timespec="seconds"),
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else "epsilon",
        "modelspec.resolution": f"{pixels}x{pixels}",
        "modelspec.description": f"{short_name(base)}, its UNet fine-tuned with tuitrain"
        + (f": {facts}" if facts else ""),
    }


def _scheduler_changes(scheduler: Mapping[str, object], base: BaseModel) -> dict[str, object]:
    """Where the trained scheduler config differs from the one that diffusers takes from the base's folder."""
    found = read_json(base.tokenizer_root / "scheduler" / "scheduler_config.json")
    return {key: scheduler[key] for key in _SCHEDULER_KEYS if key in scheduler and scheduler[key] != found.get(key)}
