"""What is exported: a trained UNet, the run it comes from, and its base model; writes nothing.

A published checkpoint knows its base and is held to it; any other UNet folder is taken as it is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tuitrain.engine.base_model import BaseModel, Part, check_is_sdxl, open_base_model, open_part
from tuitrain.engine.checkpoint import trained_scheduler_config
from tuitrain.engine.part_loader import lazy_tensors
from tuitrain.engine.sdxl import build_network
from tuitrain.engine.weights import LazyTensor, hash_weights
from tuitrain.errors import ConfigError, ExportError, ModelError
from tuitrain.export.progress import WorkCount
from tuitrain.export.request import check_checkpoint
from tuitrain.runs.checkpoints import MANIFEST_NAME, CheckpointManifest, read_manifest
from tuitrain.runs.manifest import hash_file
from tuitrain.runs.run import Run


@dataclass(frozen=True)
class TrainedUnet:
    """A UNet to export, found and not yet read.

    Args:
        path: the folder the user named.
        part: the network, by its own config and headers.
        manifest: what the checkpoint says of itself; None for a folder that is no checkpoint.
        run: the run the checkpoint lies in; None where it was moved away.
        run_config: the run's settings by key; empty without a run.
    """

    path: Path
    part: Part
    manifest: CheckpointManifest | None
    run: Run | None
    run_config: Mapping[str, Any]


def open_trained_unet(checkpoint: Path) -> TrainedUnet:
    """Find the UNet in `checkpoint`: a published checkpoint, or a folder that is or holds a UNet in diffusers layout.

    Raises:
        ConfigError: there is no such folder, or it is something else.
        CheckpointError: its checkpoint.json is damaged.
        ModelError: it holds no readable UNet.
    """
    check_checkpoint(checkpoint)
    manifest = read_manifest(checkpoint) if (checkpoint / MANIFEST_NAME).is_file() else None
    folder = checkpoint / "unet" if (checkpoint / "unet").is_dir() else checkpoint
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder} holds no UNet: it has no config.json",
            hint="give a checkpoint of a run, or a UNet folder in diffusers layout",
        )
    run = _run_around(checkpoint) if manifest else None
    return TrainedUnet(checkpoint, open_part(folder, "unet", None), manifest, run, _read_config(run) if run else {})


def _run_around(checkpoint: Path) -> Run | None:
    run = Run(checkpoint.resolve().parent.parent)
    return run if run.journal_path.is_file() else None


def _read_config(run: Run) -> dict[str, Any]:
    """The settings the run was started with; keys are asked for one by one, so a run of another version serves too."""
    try:
        config = json.loads((run.path / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def open_base(trained: TrainedUnet, base: str | None) -> BaseModel:
    """The base model as it was before the training.

    Args:
        base: a folder, file or Hub name; None is the one the checkpoint was trained from.

    Raises:
        ConfigError: nothing tells the base.
        ModelError: the base is not there or not whole.
    """
    config = trained.run_config
    if base is None and trained.manifest is None:
        raise ConfigError(
            f"{trained.path} is no checkpoint of a run, it does not say what it was trained from",
            hint="name the base model with --base",
        )
    name = base or _from_where_it_was_trained(trained, base_name(trained, None))
    model_config_dir = _from_where_it_was_trained(trained, config.get("model_config_dir"))
    vae_model = _from_where_it_was_trained(trained, config.get("vae_model"))
    try:
        return open_base_model(
            str(name),
            hf_variant=config.get("hf_variant", "fp16"),
            vae_model=vae_model,
            model_config_dir=model_config_dir if Path(str(name)).expanduser().is_file() else None,
        )
    except ModelError as error:
        if base is not None:
            raise
        first = error.problems[0]
        raise ModelError(
            f"the base model of {trained.path} cannot be used: {first.what}",
            hint="if it lies elsewhere now, name it with --base",
            where=first.where,
        ) from error


def with_trained_unet(base: BaseModel, trained: TrainedUnet) -> BaseModel:
    """`base` with the trained UNet in the place of its own.

    Raises:
        ModelError: the UNet is of another architecture.
    """
    model = replace(base, parts={**base.parts, "unet": trained.part})
    check_is_sdxl(model)
    return model


def _from_where_it_was_trained(trained: TrainedUnet, name: str | None) -> str | None:
    """`name`, a path relative to the folder in which the run was started made absolute when it is there."""
    output_dir = trained.run_config.get("base_output_dir")
    if name is None or trained.run is None or not isinstance(output_dir, str):
        return name
    started_in = Path(str(trained.run.path.parent).removesuffix(output_dir.removeprefix("./").rstrip("/")))
    return str(started_in / name) if (started_in / name).exists() else name


def base_name(trained: TrainedUnet, base: str | None) -> str:
    """How to call the base in words: as given, or as the run called it."""
    return base or (trained.manifest.base_model if trained.manifest else "")


def check_origin(trained: TrainedUnet, base: BaseModel, work: WorkCount, *, allow_other_base: bool) -> tuple[str, ...]:
    """Check that a checkpoint is as it was saved and that the base is the one it was trained from.

    Both are read once, 1.4 GB a second, before anything is made of them.

    Args:
        allow_other_base: go on with another base.

    Returns:
        What the user should know, as sentences: that the base is another one.

    Raises:
        ExportError: the checkpoint's config or weights are not as they were saved.
        ModelError: the base's UNet is another than the training began with.
    """
    if trained.manifest is None:
        return ()
    files = base.parts["unet"].files
    work.begin("check", len(_saved_files(trained)) + len(files), "files")
    _check_as_saved(trained, trained.manifest, work)
    base_hash = hash_weights(files, read=work.add_bytes)
    work.add(0)
    if base_hash == trained.manifest.base_model_hash:
        return ()
    what = f"the UNet in {files[0]} is not the one that {trained.path} was trained from ({trained.manifest.base_model})"
    if not allow_other_base:
        raise ModelError(
            what,
            hint="name that base with --base; if this is the same model in another form, add --allow-other-base",
        )
    return (f"{what}: the same model in another dtype or layout adds rounding, another model makes the result wrong",)


def _saved_files(trained: TrainedUnet) -> list[Path]:
    return [trained.part.where / "config.json", *trained.part.files]


def _check_as_saved(trained: TrainedUnet, manifest: CheckpointManifest, work: WorkCount) -> None:
    saved = {trained.path / file.path: file for file in manifest.files}
    for path in _saved_files(trained):
        if path not in saved or path.stat().st_size != saved[path].size:
            raise ExportError(f"{path} is not as it was saved", hint="take another checkpoint")
    for path in _saved_files(trained):
        if hash_file(path, read=work.add_bytes) != saved[path].sha256:
            raise ExportError(f"{path} is not as it was saved", hint="take another checkpoint")
        work.add(0)


def num_checked_bytes(trained: TrainedUnet, base: BaseModel) -> int:
    """How much `check_origin` reads."""
    if trained.manifest is None:
        return 0
    return sum(path.stat().st_size for path in (*_saved_files(trained), *base.parts["unet"].files))


def lazy_part(part: Part) -> dict[str, LazyTensor]:
    """The tensors of a network by their names on the Hub, none of them read yet."""
    return lazy_tensors(part, partial(build_network, part.name))


def scheduler_config_of(trained: TrainedUnet, base: BaseModel) -> dict[str, object]:
    """The scheduler config that says what the UNet predicts; the base's own where nothing is known of the training."""
    own = base.scheduler_config
    zero_terminal_snr = trained.run_config.get("zero_terminal_snr")
    return trained_scheduler_config(
        own,
        prediction_type=trained.manifest.prediction_type if trained.manifest else own.get("prediction_type", "epsilon"),
        zero_terminal_snr=bool(own.get("rescale_betas_zero_snr") if zero_terminal_snr is None else zero_terminal_snr),
    )
