"""What a run would do and need, found out before it starts; loads no weights, fetches no model, makes no run."""

import shutil
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from tuitrain.config.schema import TrainConfig
from tuitrain.data.buckets import Size, bucket_sizes, plan_batches
from tuitrain.data.captions import with_prefix
from tuitrain.data.dataset import Dataset, list_images, load_dataset, total_epochs, total_steps
from tuitrain.data.files import PathSource
from tuitrain.data.images import peek_sizes
from tuitrain.data.sources import Candidate
from tuitrain.engine.state_size import SDXL_BASE_UNET, TensorFigures, copy_bytes, num_states, state_bytes
from tuitrain.errors import ModelError, Problem
from tuitrain.wording import format_bytes

if TYPE_CHECKING:
    from tuitrain.engine.base_model import BaseModel

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_NUM_TOKENS = 77
_MAX_PEEKED = 5000
"""Pictures whose headers an estimate reads: 0.3 s."""


@dataclass(frozen=True)
class ModelFigures:
    """Sizes that decide how much disk a run needs.

    Args:
        unet: of the trained network.
        num_parameters: of all four networks.
        vae_factor: pixels per latent pixel, each way.
        embed_dim: width of a token's embedding, both text encoders together.
        pooled_dim: width of the pooled embedding.
        is_assumed: the model's files are not on this machine; these are SDXL base 1.0's.
    """

    unet: TensorFigures
    num_parameters: int
    vae_factor: int
    embed_dim: int
    pooled_dim: int
    is_assumed: bool

    @property
    def num_unet_parameters(self) -> int:
        """Numbers that are trained."""
        return self.unet.num_parameters


SDXL_BASE_FIGURES = ModelFigures(
    unet=SDXL_BASE_UNET,
    num_parameters=3_468_837_867,
    vae_factor=8,
    embed_dim=2048,
    pooled_dim=1280,
    is_assumed=True,
)


@dataclass(frozen=True)
class Plan:
    """What would be trained.

    Args:
        num_images: pictures used.
        buckets: pictures by training size, "HxW".
        rejected: pictures that would be skipped, with the reason.
        notes: pictures that would be used, but not as they stand.
        steps_per_epoch: optimizer steps, on one device.
        total_steps: optimizer steps of the run.
        num_epochs: the last one perhaps in part.
        is_model_here: the base model is on this machine.
        checkpoint_bytes: of one checkpoint.
        num_checkpoints: on disk at once, while the newest is written.
        state_bytes: of one state to resume from, beside its checkpoint.
        num_states: on disk at once, while the newest is written.
        copy_bytes: of the computer's memory, for the copy that checkpoints are written from.
        cache_bytes: of both caches, when nothing is cached yet.
        needed_bytes: checkpoints, states and caches.
        free_bytes: by folder: of the runs and of the caches.
        problems: what would keep the run from its end.
    """

    num_images: int
    buckets: dict[str, int]
    rejected: list[Problem]
    notes: list[Problem]
    steps_per_epoch: int
    total_steps: int
    num_epochs: int
    is_model_here: bool
    checkpoint_bytes: int
    num_checkpoints: int
    state_bytes: int
    num_states: int
    copy_bytes: int
    cache_bytes: int
    needed_bytes: int
    free_bytes: dict[str, int]
    problems: list[Problem]


def plan_run(config: TrainConfig) -> Plan:
    """Decode every picture, read the headers of the model's files, and add up.

    Raises:
        DatasetError: pictures that cannot be used, and `on_bad_image` is error.
        ModelError: the base model is not usable.
    """
    dataset = load_dataset(config, seed=config.seed or 0, report=lambda _done, _total: None)
    return add_up(config, dataset, read_model_figures(config))


def add_up(config: TrainConfig, dataset: Dataset, figures: ModelFigures) -> Plan:
    """The plan that follows from the pictures and the model."""
    num_steps = total_steps(config, dataset.plan.steps_per_epoch)
    checkpoint_bytes, state_size = _bytes_of_one(config, figures.unet, figures.num_parameters)
    num_checkpoints = count_checkpoints(config, num_steps=num_steps, steps_per_epoch=dataset.plan.steps_per_epoch)
    states = num_states(config, num_checkpoints)
    run_bytes = checkpoint_bytes * num_checkpoints + state_size * states
    cache_bytes = _count_cache_bytes(config, dataset, figures)
    free_bytes, problems = _check_disk(config, run_bytes, cache_bytes)
    return Plan(
        num_images=len(dataset.records),
        buckets=dataset.bucket_counts,
        rejected=dataset.rejected,
        notes=dataset.notes,
        steps_per_epoch=dataset.plan.steps_per_epoch,
        total_steps=num_steps,
        num_epochs=total_epochs(config, dataset.plan.steps_per_epoch),
        is_model_here=not figures.is_assumed,
        checkpoint_bytes=checkpoint_bytes,
        num_checkpoints=num_checkpoints,
        state_bytes=state_size,
        num_states=states,
        copy_bytes=copy_bytes(config, figures.unet),
        cache_bytes=cache_bytes,
        needed_bytes=run_bytes + cache_bytes,
        free_bytes=free_bytes,
        problems=problems,
    )


@dataclass(frozen=True)
class Estimate:
    """What a run would do and need, as far as names and headers tell; None where they do not.

    Args:
        num_images: pictures that are listed and look like pictures.
        steps_per_epoch: optimizer steps, on one device.
        total_steps: optimizer steps of the run.
        num_epochs: the last one perhaps in part.
        checkpoints_bytes: of all checkpoints on disk at once, with their states.
        free_bytes: on the disk of the runs.
    """

    num_images: int | None
    steps_per_epoch: int | None
    total_steps: int | None
    num_epochs: int | None
    checkpoints_bytes: int | None
    free_bytes: int


def estimate_run(config: TrainConfig, sizes: dict[Path, Size | None]) -> Estimate:
    """Read the list of pictures and the headers of files; decodes nothing, loads no torch, asks no network.

    Args:
        sizes: (height, width) of pictures that were looked at before, None for what is none; it is added to.

    Raises:
        DatasetError: there is no such dataset.
        ModelError: there is no such model.
    """
    steps_per_epoch = num_images = None
    is_on_hub = config.data_loader.type == "IMAGE_CAPTION_SD_DATA_LOADER" and (
        config.data_loader.dataset.type == "HF_HUB_IMAGE_CAPTION_DATASET"
    )
    if not is_on_hub:
        num_images, steps_per_epoch = _estimate_epoch(config, sizes)
    num_steps, num_epochs = config.max_train_steps, config.max_train_epochs
    if steps_per_epoch:
        num_steps, num_epochs = total_steps(config, steps_per_epoch), total_epochs(config, steps_per_epoch)
    bytes_of_one = _estimate_bytes(config)
    checkpoints_bytes = None
    if bytes_of_one is not None and num_steps is not None and (steps_per_epoch or config.save_every_n_steps):
        checkpoint_size, state_size = bytes_of_one
        num_checkpoints = count_checkpoints(config, num_steps=num_steps, steps_per_epoch=steps_per_epoch or 1)
        checkpoints_bytes = checkpoint_size * num_checkpoints + state_size * num_states(config, num_checkpoints)
    return Estimate(
        num_images=num_images,
        steps_per_epoch=steps_per_epoch,
        total_steps=num_steps,
        num_epochs=num_epochs,
        checkpoints_bytes=checkpoints_bytes,
        free_bytes=shutil.disk_usage(_existing(Path(config.base_output_dir))).free,
    )


def _estimate_epoch(config: TrainConfig, sizes: dict[Path, Size | None]) -> tuple[int, int]:
    """(pictures, steps of an epoch)."""
    loader = config.data_loader
    entries = [entry for entry in list_images(config).entries if isinstance(entry, Candidate)]
    paths = [entry.source.path if isinstance(entry.source, PathSource) else Path() for entry in entries]
    peek_sizes(paths[:_MAX_PEEKED], sizes)
    # What was not looked at is taken for a picture of the training size.
    size_by_entry = [(entry, sizes.get(path, loader.resolution_hw)) for entry, path in zip(entries, paths, strict=True)]
    used = [(entry, size) for entry, size in size_by_entry if size is not None]
    if not used:
        return 0, 0
    buckets = loader.aspect_ratio_buckets
    _, plan = plan_batches(
        [size for _, size in used],
        resolution_hw=loader.resolution_hw,
        buckets=bucket_sizes(**buckets.model_dump()) if buckets else None,
        is_class_image=[entry.class_image for entry, _ in used],
        batch_size=config.train_batch_size,
        world_size=1,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        seed=0,
    )
    return len(used), plan.steps_per_epoch


def _estimate_bytes(config: TrainConfig) -> tuple[int, int] | None:
    """(of a checkpoint, of a state), or None when the model's folder holds no weights."""
    from tuitrain.engine.hub import is_hub_name
    from tuitrain.engine.weight_files import PARTS, find_weight_files, read_shapes, styles

    path = Path(config.model).expanduser()
    if path.is_dir():
        shapes = {}
        for part in PARTS:
            found = (find_weight_files(path / part, PARTS[part], style) for style in styles(config.hf_variant))
            files = next((files for files in found if files), ())
            shapes[part] = [shape for file in files for shape in read_shapes(file)]
        unet, of_all = shapes["unet"], [shape for part in shapes.values() for shape in part]
    elif path.is_file():
        unet, of_all = read_shapes(path, "model.diffusion_model."), read_shapes(path)
    elif is_hub_name(config.model):
        return _bytes_of_one(config, SDXL_BASE_FIGURES.unet, SDXL_BASE_FIGURES.num_parameters)
    else:
        raise ModelError(f"there is no folder or file {path.absolute()}", hint="set model", where="model")
    figures = TensorFigures.of_shapes(unet)
    return _bytes_of_one(config, figures, sum(map(prod, of_all))) if figures.num_parameters else None


def _bytes_of_one(config: TrainConfig, unet: TensorFigures, num_parameters: int) -> tuple[int, int]:
    is_full = config.save_checkpoint_format == "full_diffusers"
    num_saved = num_parameters if is_full else unet.num_parameters
    return num_saved * _DTYPE_BYTES[config.save_dtype], state_bytes(config, unet)


def describe_plan(plan: Plan) -> list[str]:
    """Lines for a person, without the problems."""
    lines = [f"skipped   {problem}" for problem in plan.rejected]
    lines += [f"note      {problem}" for problem in plan.notes]
    lines += [f"pictures  {plan.num_images}, {len(plan.rejected)} skipped"]
    lines += [f"bucket    {size}: {count}" for size, count in plan.buckets.items()]
    lines += [f"steps     {plan.total_steps}: {plan.num_epochs} epochs of {plan.steps_per_epoch} (on one device)"]
    assumed = "" if plan.is_model_here else ", taking the model for SDXL base 1.0: it is not on this machine yet"
    needs = [
        f"{plan.num_checkpoints} checkpoints of {format_bytes(plan.checkpoint_bytes)}",
        *_describe_states(plan),
        f"caches {format_bytes(plan.cache_bytes)}",
    ]
    lines += [f"disk      {format_bytes(plan.needed_bytes)}: {', '.join(needs)}{assumed}"]
    lines += [f"memory    {format_bytes(plan.copy_bytes)} of the computer's, to write checkpoints from"]
    lines += [f"free      {format_bytes(free)} at {folder}" for folder, free in plan.free_bytes.items()]
    return lines


def _describe_states(plan: Plan) -> list[str]:
    if not plan.num_states:
        return []
    noun = "state" if plan.num_states == 1 else "states"
    return [f"{plan.num_states} {noun} to resume from of {format_bytes(plan.state_bytes)}"]


def count_checkpoints(config: TrainConfig, *, num_steps: int, steps_per_epoch: int) -> int:
    """The most checkpoints of the run on disk at once: an old one goes only when the new one stands."""
    if config.save_every_n_steps is not None:
        every = config.save_every_n_steps
    else:
        assert config.save_every_n_epochs is not None
        every = config.save_every_n_epochs * steps_per_epoch
    num_saves = num_steps // every + (1 if config.save_at_end and num_steps % every else 0)
    return num_saves if config.max_checkpoints is None else min(num_saves, config.max_checkpoints + 1)


def read_model_figures(config: TrainConfig) -> ModelFigures:
    """From the headers of the model's files; SDXL base 1.0's when the model has yet to be downloaded.

    Raises:
        ModelError: the model is here and not usable, or nowhere.
    """
    from tuitrain.engine.base_model import open_base_model  # torch: 2 s
    from tuitrain.engine.hub import is_hub_name

    is_vae_here = config.vae_model is not None and Path(config.vae_model).expanduser().is_dir()
    vae_model = config.vae_model if is_vae_here or not is_hub_name(config.vae_model or "") else None
    options = {"hf_variant": config.hf_variant, "vae_model": vae_model, "model_config_dir": config.model_config_dir}
    if Path(config.model).expanduser().exists() or not is_hub_name(config.model):
        return _figures_of(open_base_model(config.model, **options))
    snapshot = _find_snapshot(config.model)
    try:
        return _figures_of(open_base_model(str(snapshot), **options)) if snapshot else SDXL_BASE_FIGURES
    except ModelError:  # downloaded in part; the rest comes when the training starts
        return SDXL_BASE_FIGURES


def _figures_of(base: "BaseModel") -> ModelFigures:
    sizes = {name: sum(prod(tensor.shape) for tensor in part.tensors.values()) for name, part in base.parts.items()}
    second_encoder = base.parts["text_encoder_2"].config
    return ModelFigures(
        unet=TensorFigures.of_shapes(tensor.shape for tensor in base.parts["unet"].tensors.values()),
        num_parameters=sum(sizes.values()),
        vae_factor=2 ** (len(base.parts["vae"].config["block_out_channels"]) - 1),
        embed_dim=base.parts["text_encoder"].config["hidden_size"] + second_encoder["hidden_size"],
        pooled_dim=second_encoder["projection_dim"],
        is_assumed=False,
    )


def _find_snapshot(model: str) -> Path | None:
    """The folder of a Hub model that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache  # 0.1 s, and only for Hub names

    index = try_to_load_from_cache(model, "model_index.json")
    return Path(index).parent if isinstance(index, str) else None


def _count_cache_bytes(config: TrainConfig, dataset: Dataset, figures: ModelFigures) -> int:
    num_bytes = 0
    if config.cache_vae_outputs:
        num_channels = 4 + (1 if config.use_masks else 0)
        latent_pixels = sum(height * width for height, width in dataset.target_hw) // figures.vae_factor**2
        num_bytes += latent_pixels * num_channels * 4
    if config.cache_text_encoder_outputs:
        loader = config.data_loader
        prefix = loader.caption_prefix if loader.type == "IMAGE_CAPTION_SD_DATA_LOADER" else None
        num_captions = len({with_prefix(record.caption, prefix) for record in dataset.records}) + 1  # the empty one
        numbers_per_caption = _NUM_TOKENS * figures.embed_dim + figures.pooled_dim
        num_bytes += num_captions * numbers_per_caption * _DTYPE_BYTES[config.weight_dtype]
    return num_bytes


def _check_disk(config: TrainConfig, checkpoints_bytes: int, cache_bytes: int) -> tuple[dict[str, int], list[Problem]]:
    """Free bytes by folder, and a problem for each disk that is too small."""
    needs = {Path(config.base_output_dir): checkpoints_bytes, config.cache_path: cache_bytes}
    free_bytes: dict[str, int] = {}
    needed_by_disk: dict[int, int] = {}
    problems = []
    for folder, needed in needs.items():
        existing = _existing(folder)
        disk = existing.stat().st_dev
        needed_by_disk[disk] = needed_by_disk.get(disk, 0) + needed
        free_bytes[str(folder)] = shutil.disk_usage(existing).free
        if needed_by_disk[disk] > free_bytes[str(folder)]:
            what = (
                f"{format_bytes(needed_by_disk[disk])} are needed and {format_bytes(free_bytes[str(folder)])} are free"
            )
            hint = "set max_checkpoints, or save_state to none, or move base_output_dir or cache_dir to a larger disk"
            problems.append(Problem(what, hint, where=str(folder)))
    return free_bytes, problems


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
