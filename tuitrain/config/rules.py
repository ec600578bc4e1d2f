"""What two or more settings must agree on. Knows no files; a rule about one setting alone is in `schema.py`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tuitrain.config.datasets import AspectBucketConfig
    from tuitrain.config.schema import TrainConfig


class BrokenRule(NamedTuple):
    """Settings that contradict each other.

    Args:
        keys: paths of the settings involved, the one to look at first.
        what: the fact and the rule, with values, one sentence.
        hint: what to change.
    """

    keys: tuple[str, ...]
    what: str
    hint: str


def broken_rules(config: "TrainConfig") -> list[BrokenRule]:
    """Every rule between settings that `config` breaks; empty when it can be trained."""
    return [
        *_interval_rules(config),
        *_cache_rules(config),
        *_data_rules(config),
        *_precision_rules(config),
    ]


def _interval_rules(config: "TrainConfig") -> Iterator[BrokenRule]:
    yield from _exactly_one("max_train_steps", config.max_train_steps, "max_train_epochs", config.max_train_epochs)
    yield from _exactly_one(
        "save_every_n_steps", config.save_every_n_steps, "save_every_n_epochs", config.save_every_n_epochs
    )
    yield from _validate_rules(config)
    negatives = config.negative_validation_prompts
    if negatives is not None and len(negatives) != len(config.validation_prompts):
        yield BrokenRule(
            ("negative_validation_prompts", "validation_prompts"),
            f"negative_validation_prompts has {len(negatives)} entries and validation_prompts has "
            f"{len(config.validation_prompts)}, they must have the same number",
            'give one negative prompt for each prompt, "" for none, or set negative_validation_prompts to null',
        )


def _validate_rules(config: "TrainConfig") -> Iterator[BrokenRule]:
    """As the other pairs, but without prompts nothing is sampled: neither is needed then."""
    steps, epochs = config.validate_every_n_steps, config.validate_every_n_epochs
    if config.validation_prompts and steps is None and epochs is None:
        yield BrokenRule(
            ("validation_prompts", "validate_every_n_steps", "validate_every_n_epochs"),
            "validation_prompts are set, but neither validate_every_n_steps nor validate_every_n_epochs is, "
            "exactly one of them must be",
            "add validate_every_n_steps or validate_every_n_epochs",
        )
    elif steps is not None and epochs is not None:
        yield from _exactly_one("validate_every_n_steps", steps, "validate_every_n_epochs", epochs)


def _exactly_one(steps_key: str, steps: int | None, epochs_key: str, epochs: int | None) -> Iterator[BrokenRule]:
    if steps is None and epochs is None:
        yield BrokenRule(
            (steps_key, epochs_key),
            f"neither {steps_key} nor {epochs_key} is set, exactly one of them must be",
            f"add {steps_key} or {epochs_key}",
        )
    elif steps is not None and epochs is not None:
        yield BrokenRule(
            (epochs_key, steps_key),
            f"both {steps_key} ({steps}) and {epochs_key} ({epochs}) are set, exactly one of them must be",
            f"remove one, or set it to null: {epochs_key}: null",
        )


def _cache_rules(config: "TrainConfig") -> Iterator[BrokenRule]:
    if config.cache_vae_outputs and config.data_loader.random_flip:
        yield BrokenRule(
            ("data_loader.random_flip", "cache_vae_outputs"),
            "data_loader.random_flip is true and so is cache_vae_outputs, but a cached picture cannot be mirrored",
            "set data_loader.random_flip or cache_vae_outputs to false",
        )
    if config.cache_vae_outputs and not config.data_loader.center_crop:
        yield BrokenRule(
            ("data_loader.center_crop", "cache_vae_outputs"),
            "data_loader.center_crop is false and cache_vae_outputs is true, but a cached picture has one fixed crop",
            "set data_loader.center_crop to true or cache_vae_outputs to false",
        )
    if config.cache_text_encoder_outputs and config.caption_shuffle:
        yield BrokenRule(
            ("caption_shuffle", "cache_text_encoder_outputs"),
            "caption_shuffle is true and so is cache_text_encoder_outputs, but a cached caption has one fixed order",
            "set caption_shuffle or cache_text_encoder_outputs to false",
        )


def _data_rules(config: "TrainConfig") -> Iterator[BrokenRule]:
    loader = config.data_loader
    if loader.aspect_ratio_buckets is not None:
        yield from _bucket_rules(loader.aspect_ratio_buckets)
    if loader.type == "DREAMBOOTH_SD_DATA_LOADER":
        if config.use_masks:
            yield BrokenRule(
                ("use_masks", "data_loader.type"),
                "use_masks is true, but the data loader is DREAMBOOTH_SD_DATA_LOADER, which has no masks",
                "set use_masks to false, or list the pictures and masks in an IMAGE_CAPTION_JSONL_DATASET",
            )
        if loader.class_dataset is not None and loader.class_caption is None:
            yield BrokenRule(
                ("data_loader.class_caption", "data_loader.class_dataset"),
                "data_loader.class_dataset is set and data_loader.class_caption is not, "
                "the pictures of the class need a caption",
                'set data_loader.class_caption, for instance to "a photo of a dog"',
            )
    elif config.use_masks and loader.dataset.type != "IMAGE_CAPTION_JSONL_DATASET":
        yield BrokenRule(
            ("use_masks", "data_loader.dataset.type"),
            f"use_masks is true, but the dataset is {loader.dataset.type}, which has no masks",
            "set use_masks to false, or list the pictures and masks in an IMAGE_CAPTION_JSONL_DATASET",
        )


def _bucket_rules(buckets: "AspectBucketConfig") -> Iterator[BrokenRule]:
    path = "data_loader.aspect_ratio_buckets"
    step = buckets.divisible_by
    for name in ("target_resolution", "start_dim", "end_dim"):
        side = getattr(buckets, name)
        if side % step:
            nearest = max(step, round(side / step) * step)
            yield BrokenRule(
                (f"{path}.{name}", f"{path}.divisible_by"),
                f"{path}.{name} is {side}, it must be a multiple of divisible_by ({step})",
                f"did you mean {nearest}?",
            )
    if buckets.start_dim > buckets.end_dim:
        yield BrokenRule(
            (f"{path}.start_dim", f"{path}.end_dim"),
            f"{path}.start_dim is {buckets.start_dim}, it must not be above end_dim ({buckets.end_dim})",
            "swap the two",
        )
    elif buckets.target_resolution**2 < buckets.end_dim * step:
        yield BrokenRule(
            (f"{path}.end_dim", f"{path}.target_resolution", f"{path}.divisible_by"),
            f"{path}.end_dim is {buckets.end_dim}: at the area of {buckets.target_resolution} x "
            f"{buckets.target_resolution} the other side would be shorter than divisible_by ({step})",
            "lower end_dim",
        )


def _precision_rules(config: "TrainConfig") -> Iterator[BrokenRule]:
    if config.weight_dtype == "float16" and config.mixed_precision != "fp16":
        yield BrokenRule(
            ("weight_dtype", "mixed_precision"),
            f"weight_dtype is float16 and mixed_precision is {config.mixed_precision}: gradients underflow, "
            "so float16 weights train only with mixed_precision fp16",
            "set weight_dtype to bfloat16, or mixed_precision to fp16",
        )
    if config.zero_terminal_snr and config.prediction_type == "epsilon":
        yield BrokenRule(
            ("zero_terminal_snr", "prediction_type"),
            "zero_terminal_snr is true and prediction_type is epsilon, but a picture of pure noise says nothing "
            "about the noise's share",
            "set prediction_type to v_prediction for a v-prediction model, or zero_terminal_snr to null",
        )
