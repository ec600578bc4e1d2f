"""Settings of the optimizers, one class each. Knows nothing of torch."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from tuitrain.config.settings import Number, Settings, about


class AdamWConfig(Settings):
    """AdamW of torch, or of bitsandbytes with 8-bit states."""

    optimizer_type: Literal["AdamW"] = Field(
        default="AdamW",
        description="Adam with decoupled weight decay, the usual choice.",
        json_schema_extra=about("optimizer", tier="basic", source="arXiv 1711.05101"),
    )
    learning_rate: Number = Field(
        default=1e-4,
        gt=0,
        le=1,
        description=(
            "Size of a step. Full fine-tuning of SDXL wants 1e-6 to 5e-5; lower it when samples burn or lose variety, "
            "raise it when nothing changes after a few hundred steps."
        ),
        json_schema_extra=about("optimizer", tier="basic", source="invoke-training default"),
    )
    beta1: Number = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Memory of the gradient's mean. Leave it.",
        json_schema_extra=about("optimizer", source="torch.optim.AdamW"),
    )
    beta2: Number = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="Memory of the gradient's square. 0.99 adapts faster in runs of a few hundred steps.",
        json_schema_extra=about("optimizer", source="torch.optim.AdamW"),
    )
    weight_decay: Number = Field(
        default=1e-2,
        ge=0,
        le=1,
        description="Pull of every weight towards zero, times the learning rate. 0 switches it off.",
        json_schema_extra=about("optimizer", source="torch.optim.AdamW"),
    )
    epsilon: Number = Field(
        default=1e-8,
        gt=0,
        le=1,
        description="Added to the root of the gradient's mean square, against division by zero. Leave it.",
        json_schema_extra=about("optimizer", source="torch.optim.AdamW"),
    )
    use_8bit: bool = Field(
        default=False,
        description=(
            "Keep the two states in 8 bits (bitsandbytes): 2 bytes a weight in place of 8, 14 GiB less on SDXL. "
            "Turn it on below 48 GB; the loss curve is the same within noise."
        ),
        json_schema_extra=about("optimizer", tier="basic", source="arXiv 2110.02861"),
    )


class ProdigyConfig(Settings):
    """Prodigy, which finds the learning rate itself."""

    optimizer_type: Literal["Prodigy"] = Field(
        default="Prodigy",
        description="Estimates the learning rate while it trains; needs four states a weight.",
        json_schema_extra=about("optimizer", tier="basic", source="arXiv 2306.06101"),
    )
    learning_rate: Number = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Factor on the rate that Prodigy estimates. Keep 1.",
        json_schema_extra=about("optimizer", tier="basic", source="prodigyopt"),
    )
    weight_decay: Number = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Pull of every weight towards zero, times the learning rate. 0 switches it off.",
        json_schema_extra=about("optimizer", source="prodigyopt"),
    )
    use_bias_correction: bool = Field(
        default=False,
        description="Adam's bias correction. True makes the first steps larger; the authors advise it for diffusion.",
        json_schema_extra=about("optimizer", source="prodigyopt"),
    )
    safeguard_warmup: bool = Field(
        default=False,
        description="Keep warm-up steps out of the estimate. Set it to true when lr_warmup_steps is above 0.",
        json_schema_extra=about("optimizer", source="prodigyopt"),
    )


class AdafactorConfig(Settings):
    """Adafactor: the second moment of a matrix is kept as one row and one column."""

    optimizer_type: Literal["Adafactor"] = Field(
        default="Adafactor",
        description="Almost no optimizer memory, for cards where 8-bit AdamW does not fit.",
        json_schema_extra=about("optimizer", tier="basic", source="arXiv 1804.04235"),
    )
    learning_rate: Number = Field(
        default=3e-4,
        gt=0,
        le=1,
        description=(
            "Size of a step, relative to the size of the weights: it is multiplied by each tensor's root mean "
            "square (at least eps2), so the same effect as AdamW needs a rate 10 to 50 times larger."
        ),
        json_schema_extra=about("optimizer", tier="basic", source="torch.optim.Adafactor"),
    )
    beta2_decay: Number = Field(
        default=-0.8,
        ge=-1,
        le=0,
        description="Exponent of the growing memory: at step t the second moment keeps 1 - t ** beta2_decay.",
        json_schema_extra=about("optimizer", source="torch.optim.Adafactor"),
    )
    eps2: Number = Field(
        default=1e-3,
        gt=0,
        le=1,
        description="Least size a tensor is taken to have when the step is scaled by it. Leave it.",
        json_schema_extra=about("optimizer", source="torch.optim.Adafactor, second of eps"),
    )
    clip_threshold: Number = Field(
        default=1.0,
        gt=0,
        description="Largest root mean square of one update before the learning rate (d in torch). Leave it.",
        json_schema_extra=about("optimizer", source="torch.optim.Adafactor, d"),
    )
    weight_decay: Number = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Pull of every weight towards zero, times the learning rate. 0 switches it off.",
        json_schema_extra=about("optimizer", source="torch.optim.Adafactor"),
    )


def _optimizer_tag(value: object) -> object:
    """The variant of `optimizer`; AdamW when `optimizer_type` is left out, as in invoke-training."""
    if isinstance(value, dict):
        return value.get("optimizer_type", "AdamW")
    return getattr(value, "optimizer_type", None)


OptimizerConfig = Annotated[
    Annotated[AdamWConfig, Tag("AdamW")]
    | Annotated[ProdigyConfig, Tag("Prodigy")]
    | Annotated[AdafactorConfig, Tag("Adafactor")],
    Discriminator(_optimizer_tag),
]
