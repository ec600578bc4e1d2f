"""From a config to its pictures, their training sizes and the plan of batches; knows no tensors."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from tuitrain.config.datasets import (
    DreamboothDataLoaderConfig,
    HFHubImageCaptionDatasetConfig,
    ImageCaptionDatasetConfig,
    ImageCaptionDirDatasetConfig,
    ImageCaptionJsonlDatasetConfig,
)
from tuitrain.config.schema import TrainConfig
from tuitrain.data.buckets import BatchPlan, Size, bucket_sizes, plan_batches
from tuitrain.data.images import DatasetReport, ImageRecord, scan_images
from tuitrain.data.sources import Listing, list_caption_dir, list_hf, list_image_dir, list_jsonl
from tuitrain.errors import Problem


@dataclass(frozen=True)
class Dataset:
    """Everything about the pictures that is known before a model is loaded.

    Args:
        target_hw: training size of each record.
        rejected: pictures that are skipped, with the reason.
        notes: pictures that are used, but not as they stand.
    """

    records: list[ImageRecord]
    target_hw: list[Size]
    plan: BatchPlan
    rejected: list[Problem]
    notes: list[Problem]

    @property
    def bucket_counts(self) -> dict[str, int]:
        """Number of pictures of each training size, "HxW"."""
        return {f"{height}x{width}": count for (height, width), count in sorted(Counter(self.target_hw).items())}

    @property
    def content_hash(self) -> str:
        """sha256 of what is trained on: pictures, masks, captions and sizes, in their order; where they lie is not."""
        digest = hashlib.sha256()
        for record, target in zip(self.records, self.target_hw, strict=True):
            kind = (record.loss_weight, record.class_image)
            digest.update(json.dumps((record.content_hash, record.caption, record.size_hw, target, kind)).encode())
        return digest.hexdigest()


def load_dataset(config: TrainConfig, *, seed: int, world_size: int = 1, report: Callable[[int, int], None]) -> Dataset:
    """Decode every picture once and plan the batches.

    Args:
        report: takes (pictures decoded, pictures in all).

    Raises:
        DatasetError: with every picture that cannot be used, unless `on_bad_image` is skip; or nothing is left.
    """
    loader = config.data_loader
    scan = _scan(config, list_images(config), report)
    buckets = loader.aspect_ratio_buckets
    target_hw, plan = plan_batches(
        [record.size_hw for record in scan.records],
        resolution_hw=loader.resolution_hw,
        buckets=bucket_sizes(**buckets.model_dump()) if buckets else None,
        is_class_image=[record.class_image for record in scan.records],
        batch_size=config.train_batch_size,
        world_size=world_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        seed=seed,
    )
    return Dataset(scan.records, target_hw, plan, scan.rejected, scan.notes)


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    if config.max_train_steps is not None:
        return config.max_train_steps
    assert config.max_train_epochs is not None
    return config.max_train_epochs * steps_per_epoch


def total_epochs(config: TrainConfig, steps_per_epoch: int) -> int:
    """Epochs of the whole run, the last one perhaps in part."""
    return ceil(total_steps(config, steps_per_epoch) / steps_per_epoch)


def list_images(config: TrainConfig) -> Listing:
    """Every picture the config names, with its caption; nothing is decoded yet."""
    loader = config.data_loader
    if not isinstance(loader, DreamboothDataLoaderConfig):
        return _list_captioned(loader.dataset, use_masks=config.use_masks)
    listing = list_image_dir(
        loader.instance_dataset.dataset_dir, caption=loader.instance_caption, id_prefix="instance_"
    )
    if loader.class_dataset is not None:
        assert loader.class_caption is not None
        class_listing = list_image_dir(
            loader.class_dataset.dataset_dir,
            caption=loader.class_caption,
            id_prefix="class_",
            loss_weight=loader.class_data_loss_weight,
            class_image=True,
        )
        listing += class_listing
    return listing


def _list_captioned(dataset: ImageCaptionDatasetConfig, *, use_masks: bool) -> Listing:
    match dataset:
        case ImageCaptionJsonlDatasetConfig():
            return list_jsonl(
                dataset.jsonl_path,
                image_column=dataset.image_column,
                caption_column=dataset.caption_column,
                use_masks=use_masks,
            )
        case ImageCaptionDirDatasetConfig():
            return list_caption_dir(dataset.dataset_dir)
        case HFHubImageCaptionDatasetConfig():
            return list_hf(
                dataset.dataset_name,
                config_name=dataset.dataset_config_name,
                cache_dir=dataset.hf_cache_dir,
                image_column=dataset.image_column,
                caption_column=dataset.caption_column,
            )


def _scan(config: TrainConfig, listing: Listing, report: Callable[[int, int], None]) -> DatasetReport:
    return scan_images(
        listing,
        background=config.alpha_background,
        max_megapixels=config.max_image_megapixels,
        on_bad_image=config.on_bad_image,
        on_missing_caption=config.on_missing_caption,
        report=report,
    )
