"""The schema: invoke-training's keys with its defaults, ours beside them, values read as YAML gives them."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tuitrain.config.files import config_from_values, load_config
from tuitrain.config.schema import (
    AdafactorConfig,
    AdamWConfig,
    DreamboothDataLoaderConfig,
    HFHubImageCaptionDatasetConfig,
    ImageCaptionDataLoaderConfig,
    ImageCaptionJsonlDatasetConfig,
    ImageDirDatasetConfig,
    ProdigyConfig,
    TrainConfig,
)
from tuitrain.errors import ConfigError

INVOKE_TRAINING = Path(__file__).parent / "invoke_training"

LOADER = {
    "type": "IMAGE_CAPTION_SD_DATA_LOADER",
    "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "pictures"},
}


def config_with(**values: Any) -> TrainConfig:
    """The smallest config, with `values` changed."""
    least = {
        "type": "SDXL_FINETUNE",
        "base_output_dir": "output",
        "max_train_steps": 10,
        "save_every_n_steps": 10,
        "data_loader": LOADER,
    }
    return config_from_values({**least, **values})


def test_the_defaults_of_the_pipeline_are_those_of_invoke_training() -> None:
    defaults = config_with().model_dump()
    for key in ("type", "base_output_dir", "max_train_steps", "save_every_n_steps", "data_loader", "optimizer"):
        del defaults[key]
    theirs = {
        "seed": None,
        "report_to": "tensorboard",
        "max_train_epochs": None,
        "save_every_n_epochs": None,
        "validate_every_n_epochs": None,
        "validate_every_n_steps": None,
        "model": "stabilityai/stable-diffusion-xl-base-1.0",
        "hf_variant": "fp16",
        "save_checkpoint_format": "trained_only_diffusers",
        "save_dtype": "float16",
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "min_snr_gamma": 5.0,
        "cache_text_encoder_outputs": False,
        "cache_vae_outputs": False,
        "enable_cpu_offload_during_validation": False,
        "gradient_accumulation_steps": 1,
        "weight_dtype": "bfloat16",
        "mixed_precision": "no",
        "xformers": False,
        "gradient_checkpointing": False,
        "max_checkpoints": None,
        "prediction_type": None,
        "max_grad_norm": None,
        "validation_prompts": (),
        "negative_validation_prompts": None,
        "num_validation_images_per_prompt": 4,
        "train_batch_size": 4,
        "use_masks": False,
        "vae_model": None,
    }
    ours = {
        "cache_dir": None,
        "compat": "none",
        "caption_dropout": 0.0,
        "caption_dropout_mode": "mix",
        "caption_shuffle": False,
        "keep_tokens": 0,
        "noise_offset": 0.0,
        "zero_terminal_snr": None,
        "loss_type": "mse",
        "huber_delta": 0.1,
        "ema_decay": None,
        "validate_at_start": False,
        "validation_steps": 30,
        "validation_guidance_scale": 5.0,
        "validation_size": None,
        "log_every_n_steps": 10,
        "save_at_end": True,
        "save_state": "last",
        "on_non_finite": "stop",
        "on_oom": "split",
        "on_bad_image": "error",
        "on_missing_caption": "error",
        "alpha_background": "white",
        "max_image_megapixels": 64.0,
        "model_config_dir": None,
    }
    assert defaults == theirs | ours


def test_the_defaults_of_the_optimizers_are_those_of_invoke_training() -> None:
    assert AdamWConfig().model_dump() == {
        "optimizer_type": "AdamW",
        "learning_rate": 1e-4,
        "beta1": 0.9,
        "beta2": 0.999,
        "weight_decay": 1e-2,
        "epsilon": 1e-8,
        "use_8bit": False,
    }
    assert ProdigyConfig().model_dump() == {
        "optimizer_type": "Prodigy",
        "learning_rate": 1.0,
        "weight_decay": 0.0,
        "use_bias_correction": False,
        "safeguard_warmup": False,
    }


def test_the_defaults_of_the_data_loaders_are_those_of_invoke_training() -> None:
    jsonl = {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "a.jsonl"}
    loader = config_with(data_loader={**LOADER, "dataset": jsonl}).data_loader
    assert loader.model_dump() == {
        "type": "IMAGE_CAPTION_SD_DATA_LOADER",
        "aspect_ratio_buckets": None,
        "resolution": 512,
        "center_crop": True,
        "random_flip": False,
        "dataloader_num_workers": 0,
        "caption_prefix": None,
        "dataset": {**jsonl, "image_column": "image", "caption_column": "text", "keep_in_memory": False},
    }
    hub = {"type": "HF_HUB_IMAGE_CAPTION_DATASET", "dataset_name": "owner/name"}
    dataset = config_with(data_loader={**LOADER, "dataset": hub}).data_loader.model_dump()["dataset"]
    columns = {"image_column": "image", "caption_column": "text"}
    assert dataset == {**hub, **columns, "dataset_config_name": None, "hf_cache_dir": None}


def test_a_dreambooth_dataset_needs_no_type() -> None:
    loader = config_with(
        data_loader={
            "type": "DREAMBOOTH_SD_DATA_LOADER",
            "instance_caption": "a sks dog",
            "instance_dataset": {"dataset_dir": "dogs"},
        }
    ).data_loader
    assert isinstance(loader, DreamboothDataLoaderConfig)
    assert loader.instance_dataset == ImageDirDatasetConfig(dataset_dir="dogs")
    assert (loader.class_dataset, loader.class_caption, loader.class_data_loss_weight) == (None, None, 1.0)


def test_invoke_trainings_baroque_config_loads_unchanged() -> None:
    config = load_config(INVOKE_TRAINING / "sdxl_finetune_baroque_1x24gb.yaml")
    assert config.optimizer == AdamWConfig(learning_rate=5e-5, weight_decay=1e-3, use_8bit=True)
    assert (config.lr_scheduler, config.lr_warmup_steps) == ("constant_with_warmup", 500)
    assert (config.max_train_epochs, config.save_every_n_epochs, config.validate_every_n_epochs) == (50, 3, 3)
    assert (config.max_train_steps, config.save_every_n_steps, config.validate_every_n_steps) == (None, None, None)
    assert isinstance(config.data_loader, ImageCaptionDataLoaderConfig)
    assert config.data_loader.dataset == HFHubImageCaptionDatasetConfig(
        type="HF_HUB_IMAGE_CAPTION_DATASET", dataset_name="InvokeAI/nga-baroque"
    )
    assert config.data_loader.caption_prefix == "A baroque style painting,"


def test_invoke_trainings_robocats_config_loads_unchanged() -> None:
    config = load_config(INVOKE_TRAINING / "sdxl_finetune_robocats_1x24gb.yaml")
    assert config.optimizer == AdamWConfig(learning_rate=2e-5, use_8bit=True)
    assert (config.max_train_steps, config.save_every_n_steps, config.validate_every_n_steps) == (2000, 2000, 200)
    assert isinstance(config.data_loader, ImageCaptionDataLoaderConfig)
    assert config.data_loader.dataset == ImageCaptionJsonlDatasetConfig(
        type="IMAGE_CAPTION_JSONL_DATASET", jsonl_path="data/robocats/metadata.jsonl", image_column="file_name"
    )
    buckets = config.data_loader.aspect_ratio_buckets
    assert buckets is not None
    assert (buckets.target_resolution, buckets.start_dim, buckets.end_dim, buckets.divisible_by) == (
        1024,
        512,
        1536,
        128,
    )
    assert len(config.validation_prompts) == 2
    assert config.num_validation_images_per_prompt == 3


@pytest.mark.parametrize(
    ("key", "written", "read"),
    [
        ("caption_dropout", "5e-2", 0.05),
        ("min_snr_gamma", "5", 5.0),
        ("min_snr_gamma", None, None),
        ("seed", "7", 7),
        ("train_batch_size", 2.0, 2),
        ("xformers", "yes", True),
        ("mixed_precision", False, "no"),
        ("validation_size", [64, "96"], (64, 96)),
        ("validation_size", "64", 64),
        ("negative_validation_prompts", [], ()),
        ("alpha_background", "#00ff7F", "#00ff7F"),
    ],
)
def test_values_are_read_as_yaml_gives_them(key: str, written: object, read: object) -> None:
    value = getattr(config_with(**{key: written}), key)
    assert value == read
    assert type(value) is type(read)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ({}, AdamWConfig()),
        ({"learning_rate": "1e-6"}, AdamWConfig(learning_rate=1e-6)),
        ({"optimizer_type": "Prodigy"}, ProdigyConfig()),
        ({"optimizer_type": "Adafactor", "eps2": 1e-2}, AdafactorConfig(eps2=1e-2)),
    ],
)
def test_an_optimizer_without_type_is_adamw(optimizer: dict[str, Any], expected: object) -> None:
    assert config_with(optimizer=optimizer).optimizer == expected


def test_a_number_is_a_square_and_a_list_is_height_and_width() -> None:
    square = config_with(data_loader={**LOADER, "resolution": 640})
    portrait = config_with(data_loader={**LOADER, "resolution": [768, 512]}, validation_size=256)
    assert square.data_loader.resolution_hw == (640, 640)
    assert square.validation_hw == (640, 640)
    assert portrait.data_loader.resolution_hw == (768, 512)
    assert portrait.validation_hw == (256, 256)


def test_the_caches_are_beside_the_runs_unless_a_folder_is_named() -> None:
    assert config_with().cache_path == Path("output/cache")
    assert config_with(cache_dir="/fast/cache").cache_path == Path("/fast/cache")


def test_a_config_cannot_be_changed() -> None:
    config = config_with()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.data_loader.resolution = 3


def test_caption_dropout_goes_with_cached_captions() -> None:
    assert config_with(caption_dropout=0.1, cache_text_encoder_outputs=True).caption_dropout == 0.1


def test_float16_weights_train_with_fp16_arithmetic() -> None:
    assert config_with(weight_dtype="float16", mixed_precision="fp16").weight_dtype == "float16"


def test_no_validation_interval_is_needed_without_prompts() -> None:
    assert config_with().validate_every_n_steps is None


def test_a_config_made_in_code_is_held_to_the_rules_too() -> None:
    values = config_with().model_dump() | {"max_train_epochs": 3}
    with pytest.raises(ValidationError, match="both max_train_steps"):
        TrainConfig.model_validate(values)


def test_every_rule_that_is_broken_is_reported() -> None:
    with pytest.raises(ConfigError) as caught:
        config_with(
            max_train_epochs=3,
            cache_vae_outputs=True,
            use_masks=True,
            data_loader={**LOADER, "random_flip": True, "center_crop": False},
        )
    keys = [getattr(problem, "key", None) for problem in caught.value.problems]
    assert keys == ["max_train_epochs", "data_loader.random_flip", "data_loader.center_crop", "use_masks"]
