"""`TrainConfig`: every setting of a run with its type, default, bounds, unit and help. Knows no file and no torch.

`type: SDXL_FINETUNE` configs of invoke-training load unchanged: their keys keep name, type, default and meaning. Our
own keys stand beside them. Rules between several settings are in `rules.py`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from tuitrain.config.datasets import (
    AspectBucketConfig,
    DataLoaderConfig,
    DreamboothDataLoaderConfig,
    HFHubImageCaptionDatasetConfig,
    ImageCaptionDataLoaderConfig,
    ImageCaptionDirDatasetConfig,
    ImageCaptionJsonlDatasetConfig,
    ImageDirDatasetConfig,
)
from tuitrain.config.optimizers import AdafactorConfig, AdamWConfig, OptimizerConfig, ProdigyConfig
from tuitrain.config.rules import broken_rules
from tuitrain.config.settings import Name, Number, Settings, Size, Text, Whole, about

__all__ = [
    "AdafactorConfig",
    "AdamWConfig",
    "AspectBucketConfig",
    "DreamboothDataLoaderConfig",
    "HFHubImageCaptionDatasetConfig",
    "ImageCaptionDataLoaderConfig",
    "ImageCaptionDirDatasetConfig",
    "ImageCaptionJsonlDatasetConfig",
    "ImageDirDatasetConfig",
    "ProdigyConfig",
    "TrainConfig",
]


def _read_no(value: object) -> object:
    """YAML 1.1 reads a bare `no` as false."""
    return "no" if value is False else value


class TrainConfig(Settings):
    """All settings of a run that fine-tunes the SDXL UNet; frozen, and enough to repeat the run."""

    type: Literal["SDXL_FINETUNE"] = Field(
        description="What is trained. tuitrain does full fine-tuning of the SDXL UNet only.",
        json_schema_extra=about("run", tier="basic"),
    )
    seed: Whole | None = Field(
        default=None,
        ge=0,
        le=2**32 - 1,
        description="Start of all randomness. null draws one, so two runs differ; any number makes a run repeatable.",
        json_schema_extra=about("run", tier="basic"),
    )
    base_output_dir: Name = Field(
        description="Folder of the runs; each run makes its own folder in it, named by the time of its start.",
        json_schema_extra=about("run", tier="basic", path_kind="folder"),
    )
    report_to: Literal["all", "tensorboard", "wandb", "comet_ml"] = Field(
        default="tensorboard",
        description="Trackers that mirror the journal; all is every one that is installed.",
        json_schema_extra=about("run"),
    )
    log_every_n_steps: Whole = Field(
        default=10,
        ge=1,
        description="Steps between two points of the loss curve, each the mean of the steps since the last.",
        json_schema_extra=about("run", unit="steps"),
    )
    compat: Literal["none", "invoke-training"] = Field(
        default="none",
        description=(
            "invoke-training reproduces two faults of that trainer for comparison: every bucket is told the target "
            "size `resolution`, and min-SNR weights of v-prediction models are 1 too large."
        ),
        json_schema_extra=about("run"),
    )

    # model
    model: Name = Field(
        default="stabilityai/stable-diffusion-xl-base-1.0",
        description="Base model: a diffusers folder, a single .safetensors file, or a name on the Hugging Face Hub.",
        json_schema_extra=about("model", tier="basic", path_kind="hub"),
    )
    hf_variant: Name | None = Field(
        default="fp16",
        description="Variant of the weight files to load; when the model has none, the plain files are taken.",
        json_schema_extra=about("model"),
    )
    vae_model: Name | None = Field(
        default=None,
        description="VAE to use in place of the model's own: a diffusers folder or a Hub name.",
        json_schema_extra=about("model", path_kind="hub"),
    )
    model_config_dir: Name | None = Field(
        default=None,
        description=(
            "Diffusers folder whose configs and tokenizers describe a single-file `model`. null is SDXL base 1.0, "
            "which fits every ordinary SDXL file."
        ),
        json_schema_extra=about("model", path_kind="folder"),
    )
    prediction_type: Literal["epsilon", "v_prediction"] | None = Field(
        default=None,
        description=(
            "What the UNet predicts: the noise, or the velocity. null is what the model's scheduler config says; set "
            "it when a v-prediction model comes without that entry."
        ),
        json_schema_extra=about("model", source="arXiv 2202.00512"),
    )
    zero_terminal_snr: bool | None = Field(
        default=None,
        description=(
            "Rescale the noise schedule so that the last step is pure noise, for very dark and very bright pictures. "
            "null is what the model's scheduler config says. Only with v-prediction."
        ),
        json_schema_extra=about("model", source="arXiv 2305.08891"),
    )

    # dataset
    data_loader: DataLoaderConfig = Field(
        description="Where the pictures are and how they are cut.", json_schema_extra=about("dataset", tier="basic")
    )
    use_masks: bool = Field(
        default=False,
        description="Weigh the loss by each picture's mask (white learns, black does not). Only with a JSONL dataset.",
        json_schema_extra=about("dataset"),
    )
    on_bad_image: Literal["error", "skip"] = Field(
        default="error",
        description="A picture that cannot be read: stop with the list of all such, or leave them out and say so.",
        json_schema_extra=about("dataset"),
    )
    alpha_background: Annotated[Text, Field(pattern=r"^(white|black|grey|#[0-9a-fA-F]{6})$")] = Field(
        default="white",
        description="Colour behind transparent pictures.",
        json_schema_extra=about("dataset", rule='white, black, grey or "#rrggbb" (in quotes)'),
    )
    max_image_megapixels: Number = Field(
        default=64.0,
        gt=0,
        le=1000,
        description="A larger picture counts as bad: one of 900 megapixels needs 2.7 GB of RAM to be decoded.",
        json_schema_extra=about("dataset", unit="megapixels"),
    )

    # captions
    on_missing_caption: Literal["error", "empty", "skip"] = Field(
        default="error",
        description="A picture without caption: stop, train it with an empty caption, or leave it out.",
        json_schema_extra=about("captions"),
    )
    caption_dropout: Number = Field(
        default=0.0,
        ge=0,
        le=1,
        description=(
            "Share of the samples trained without their caption, which keeps guidance working. 0.05 to 0.1 in long "
            "runs."
        ),
        json_schema_extra=about("captions", source="arXiv 2207.12598"),
    )
    caption_dropout_mode: Literal["zeros", "encoded", "mix"] = Field(
        default="mix",
        description=(
            "What stands in for a dropped caption: zeros, as diffusers does at sampling; the encoded empty prompt, as "
            "ComfyUI does; or either at random."
        ),
        json_schema_extra=about("captions"),
    )
    caption_shuffle: bool = Field(
        default=False,
        description=(
            "Shuffle the comma-separated parts of a caption at each use. For tag lists; not with "
            "cache_text_encoder_outputs."
        ),
        json_schema_extra=about("captions"),
    )
    keep_tokens: Whole = Field(
        default=0,
        ge=0,
        description="Leading parts of a caption that caption_shuffle leaves in place.",
        json_schema_extra=about("captions", unit="parts"),
    )

    # optimizer
    optimizer: OptimizerConfig = Field(
        default=AdamWConfig(),
        description="How a gradient becomes a step.",
        json_schema_extra=about("optimizer", tier="basic"),
    )
    max_grad_norm: Number | None = Field(
        default=None,
        gt=0,
        description="Scale a larger gradient down to this norm. 1 tames spikes; null never clips.",
        json_schema_extra=about("optimizer"),
    )
    on_non_finite: Literal["stop", "skip"] = Field(
        default="stop",
        description=(
            "A step whose loss or gradient is not finite: stop and name its pictures, or leave the step out and warn. "
            "The weights are not touched by it. Five such steps in a row stop the run in either case."
        ),
        json_schema_extra=about("optimizer"),
    )
    ema_decay: Number | None = Field(
        default=None,
        gt=0,
        lt=1,
        description=(
            "Also keep a running mean of the weights, in float32, and sample and save it. 0.999 for a few thousand "
            "steps, 0.9999 for long runs; null keeps none. Costs 9.6 GiB of GPU memory on SDXL."
        ),
        json_schema_extra=about("optimizer"),
    )

    # schedule
    max_train_steps: Whole | None = Field(
        default=None,
        ge=1,
        description="Length of the run. Set this or max_train_epochs.",
        json_schema_extra=about("schedule", unit="steps", tier="basic"),
    )
    max_train_epochs: Whole | None = Field(
        default=None,
        ge=1,
        description="Length of the run in passes over the dataset. Set this or max_train_steps.",
        json_schema_extra=about("schedule", unit="epochs", tier="basic"),
    )
    train_batch_size: Whole = Field(
        default=4,
        ge=1,
        description="Pictures per device in one forward pass. Lower it first when memory runs out.",
        json_schema_extra=about("schedule", unit="pictures", tier="basic"),
    )
    gradient_accumulation_steps: Whole = Field(
        default=1,
        ge=1,
        description="Forward passes per step: the effect of a larger batch without its memory.",
        json_schema_extra=about("schedule", unit="passes", tier="basic"),
    )
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = Field(
        default="constant",
        description="Course of the learning rate over the run. constant_with_warmup is the safe choice.",
        json_schema_extra=about("schedule", tier="basic", source="diffusers.optimization"),
    )
    lr_warmup_steps: Whole = Field(
        default=0,
        ge=0,
        description="Steps over which the learning rate rises from 0. The scheduler `constant` has no warm-up.",
        json_schema_extra=about("schedule", unit="steps", tier="basic"),
    )

    # loss
    min_snr_gamma: Number | None = Field(
        default=5.0,
        gt=0,
        description="Cap on the weight of nearly noiseless steps. 5 is the paper's; null weighs all steps alike.",
        json_schema_extra=about("loss", source="arXiv 2303.09556"),
    )
    noise_offset: Number = Field(
        default=0.0,
        ge=0,
        le=1,
        description=(
            "Constant per channel added to the noise, so that overall brightness can be learned. 0.03 to 0.1; not "
            "needed with zero_terminal_snr."
        ),
        json_schema_extra=about("loss", source="https://www.crosslabs.org/blog/diffusion-with-offset-noise"),
    )
    loss_type: Literal["mse", "huber"] = Field(
        default="mse",
        description="Squared error, or Huber: squared below huber_delta and linear above, for sets with outliers.",
        json_schema_extra=about("loss"),
    )
    huber_delta: Number = Field(
        default=0.1,
        gt=0,
        description="Error at which the Huber loss turns linear. Only for loss_type huber.",
        json_schema_extra=about("loss"),
    )

    # memory
    weight_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="bfloat16",
        description=(
            "Type of the weights in memory. bfloat16 halves their memory, and is stepped in float32 with stochastic "
            "rounding so that small updates are not lost. With mixed_precision the trained weights are float32."
        ),
        json_schema_extra=about("memory", tier="basic"),
    )
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_read_no)] = Field(
        default="no",
        description=(
            "Compute in this type over float32 weights. bf16 on a big card; no with bfloat16 weights on a small one."
        ),
        json_schema_extra=about("memory", tier="basic"),
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute activations twice rather than keep them: much less memory for about a third more time.",
        json_schema_extra=about("memory", tier="basic", source="arXiv 1604.06174"),
    )
    on_oom: Literal["split", "stop"] = Field(
        default="split",
        description=(
            "Memory runs out in a step: train it again in passes of half as many pictures, and all steps after it, so "
            "that the batch of a step stays the same; or stop. On several GPUs it stops."
        ),
        json_schema_extra=about("memory"),
    )
    xformers: bool = Field(
        default=False,
        description="Accepted for compatibility: torch's own memory-efficient attention is used in every case.",
        json_schema_extra=about("memory"),
    )
    cache_text_encoder_outputs: bool = Field(
        default=False,
        description="Encode every caption once, on disk, and free the text encoders' 1.5 GiB.",
        json_schema_extra=about("memory", tier="basic"),
    )
    cache_vae_outputs: bool = Field(
        default=False,
        description="Encode every picture once, on disk, and free the VAE. Fixes crop and flip.",
        json_schema_extra=about("memory", tier="basic"),
    )
    cache_dir: Name | None = Field(
        default=None,
        description=(
            "Folder of both caches, shared between runs: what is there already is not encoded again. null is "
            "`<base_output_dir>/cache`."
        ),
        json_schema_extra=about("memory", path_kind="folder"),
    )
    enable_cpu_offload_during_validation: bool = Field(
        default=False,
        description="Move models between RAM and GPU while samples are made: slower, for cards that are full.",
        json_schema_extra=about("memory"),
    )

    # validation
    validate_every_n_epochs: Whole | None = Field(
        default=None,
        ge=1,
        description="Epochs between two sets of samples. Set this or validate_every_n_steps when there are prompts.",
        json_schema_extra=about("validation", unit="epochs", tier="basic"),
    )
    validate_every_n_steps: Whole | None = Field(
        default=None,
        ge=1,
        description="Steps between two sets of samples. Set this or validate_every_n_epochs when there are prompts.",
        json_schema_extra=about("validation", unit="steps", tier="basic"),
    )
    validate_at_start: bool = Field(
        default=False,
        description="Also make samples before the first step, to see what the base model does.",
        json_schema_extra=about("validation", tier="basic"),
    )
    validation_prompts: tuple[Text, ...] = Field(
        default=(),
        description="Prompts of the samples. Without any, no samples are made.",
        json_schema_extra=about("validation", tier="basic"),
    )
    negative_validation_prompts: tuple[Text, ...] | None = Field(
        default=None,
        description="One negative prompt for each prompt; null uses none (zeros).",
        json_schema_extra=about("validation"),
    )
    num_validation_images_per_prompt: Whole = Field(
        default=4,
        ge=1,
        description="Samples of each prompt, each with its own noise, the same at every validation.",
        json_schema_extra=about("validation", unit="pictures", tier="basic"),
    )
    validation_steps: Whole = Field(
        default=30,
        ge=1,
        le=999,
        description="Denoising steps of a sample.",
        json_schema_extra=about("validation", unit="steps", source="invoke-training default"),
    )
    validation_guidance_scale: Number = Field(
        default=5.0,
        ge=0,
        le=100,
        description="How strongly samples follow the prompt. 1 or less is no guidance.",
        json_schema_extra=about("validation", source="diffusers default for SDXL"),
    )
    validation_size: Size | None = Field(
        default=None,
        description="Size of the samples, a number or [height, width]; null is data_loader.resolution.",
        json_schema_extra=about("validation", unit="pixels"),
    )

    # checkpoints
    save_every_n_epochs: Whole | None = Field(
        default=None,
        ge=1,
        description="Epochs between two checkpoints. Set this or save_every_n_steps.",
        json_schema_extra=about("checkpoints", unit="epochs", tier="basic"),
    )
    save_every_n_steps: Whole | None = Field(
        default=None,
        ge=1,
        description="Steps between two checkpoints. Set this or save_every_n_epochs.",
        json_schema_extra=about("checkpoints", unit="steps", tier="basic"),
    )
    save_at_end: bool = Field(
        default=True,
        description="Save a checkpoint when the run ends, whatever the interval says.",
        json_schema_extra=about("checkpoints"),
    )
    max_checkpoints: Whole | None = Field(
        default=None,
        ge=1,
        description="Checkpoints to keep: the oldest goes once a new one stands. null keeps all.",
        json_schema_extra=about("checkpoints", unit="checkpoints", tier="basic"),
    )
    save_checkpoint_format: Literal["full_diffusers", "trained_only_diffusers"] = Field(
        default="trained_only_diffusers",
        description="Save the UNet alone (5.1 GB in float16), or the whole pipeline (6.9 GB).",
        json_schema_extra=about("checkpoints", tier="basic"),
    )
    save_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float16",
        description="Type of the saved weights. The weights in training are not touched by it.",
        json_schema_extra=about("checkpoints"),
    )
    save_state: Literal["last", "all", "none"] = Field(
        default="last",
        description=(
            "Which checkpoints keep what a run needs to go on exactly from there: optimizer, weights as trained, "
            "position in the data. The last one; all, so that you can go back; or none. On SDXL 9.6 GiB with 8-bit "
            "AdamW and bfloat16, 28.7 GiB with AdamW in float32."
        ),
        json_schema_extra=about("checkpoints", tier="basic"),
    )

    @property
    def cache_path(self) -> Path:
        """Folder of both caches, with the default filled in."""
        return Path(self.cache_dir) if self.cache_dir is not None else Path(self.base_output_dir) / "cache"

    @property
    def validation_hw(self) -> tuple[int, int]:
        """(height, width) of the samples in pixels, with the default filled in."""
        if self.validation_size is None:
            return self.data_loader.resolution_hw
        if isinstance(self.validation_size, tuple):
            return self.validation_size
        return (self.validation_size, self.validation_size)

    @model_validator(mode="after")
    def _check_rules(self) -> "TrainConfig":
        if broken := broken_rules(self):
            text = "; ".join(rule.what for rule in broken)
            raise PydanticCustomError("broken_rules", "{text}", {"text": text, "broken": broken})
        return self
