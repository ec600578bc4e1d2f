"""What is wrong with a value, in words. Knows fields and pydantic's error kinds; reads no file.

Every sentence is made of three parts: what stands there, the field's rule, and what was probably meant.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tuitrain.config.fields import IS_SET, Field, list_fields, show_default, union_kinds, value_at
from tuitrain.errors import Problem, printable

MAX_SHOWN_LENGTH = 60
LARGEST_PERCENTAGE = 100
LARGEST_SUGGESTION = 10**10

OTHER_PIPELINES = (
    "SD_LORA",
    "SDXL_LORA",
    "FLUX_LORA",
    "SD_TEXTUAL_INVERSION",
    "SDXL_TEXTUAL_INVERSION",
    "SDXL_LORA_AND_TEXTUAL_INVERSION",
    "SD_DIRECT_PREFERENCE_OPTIMIZATION_LORA",
    "SD_FINETUNE",
)
"""Values of `type` that invoke-training has and tuitrain does not train."""

OTHER_LOADERS = ("TEXTUAL_INVERSION_SD_DATA_LOADER", "IMAGE_PAIR_PREFERENCE_SD_DATA_LOADER")
OTHER_DATASETS = ("HF_HUB_IMAGE_PAIR_PREFERENCE_DATASET", "IMAGE_PAIR_PREFERENCE_DATASET")

NOT_SUPPORTED = {("mixed_precision", "fp8"): ("needs hardware and libraries that tuitrain does not use", "bf16")}
"""(key, value of invoke-training) -> (why it is refused, what to take instead)."""

LORA_ONLY_KEYS = (
    "train_unet",
    "train_text_encoder",
    "text_encoder_learning_rate",
    "lora_rank_dim",
    "lora_checkpoint_format",
    "lora_checkpoint_path",
    "base_embeddings",
    "train_ti",
    "num_vectors",
)

OTHER_NAMES = {
    "lr": "optimizer.learning_rate",
    "unet_learning_rate": "optimizer.learning_rate",
    "unet_lr": "optimizer.learning_rate",
    "batch_size": "train_batch_size",
    "accumulation_steps": "gradient_accumulation_steps",
    "grad_accum": "gradient_accumulation_steps",
    "output_dir": "base_output_dir",
    "output": "base_output_dir",
    "epochs": "max_train_epochs",
    "num_train_epochs": "max_train_epochs",
    "num_epochs": "max_train_epochs",
    "steps": "max_train_steps",
    "num_train_steps": "max_train_steps",
    "pretrained_model_name_or_path": "model",
    "base_model": "model",
    "vae": "vae_model",
    "scheduler": "lr_scheduler",
    "warmup_steps": "lr_warmup_steps",
    "snr_gamma": "min_snr_gamma",
    "clip_grad_norm": "max_grad_norm",
    "dtype": "weight_dtype",
    "prompts": "validation_prompts",
    "negative_prompts": "negative_validation_prompts",
    "bucket": "data_loader.aspect_ratio_buckets",
    "enable_bucket": "data_loader.aspect_ratio_buckets",
    "size": "data_loader.resolution",
    "eps": "optimizer.epsilon",
    "use_8bit_adam": "optimizer.use_8bit",
}
"""What other trainers call our settings."""


@dataclass(frozen=True)
class ConfigProblem(Problem):
    """One thing that is wrong with a config.

    Args:
        key: path of the setting, "optimizer.learning_rate"; empty when it is the file.
        suggestion: what was probably meant, as YAML; empty when nobody can tell.
    """

    key: str = ""
    suggestion: str = ""


def show_value(value: object) -> str:
    """A value as a message shows it: on one line, short, nothing that steers a terminal."""
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "infinite", -math.inf: "minus infinity"}.get(value, "not a number (nan)")
    if isinstance(value, Mapping):
        return "a group of settings"
    if isinstance(value, int) and abs(value) > 10**MAX_SHOWN_LENGTH:
        return "a number of more than 60 digits"
    text = printable(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[: MAX_SHOWN_LENGTH - 3]}..."


def find_field(path: str, values: Mapping[str, Any]) -> Field | None:
    """The field at `path`, of the variant that `values` choose."""
    candidates = [field for field in list_fields() if field.path == path]
    return next((field for field in candidates if _exists(field, values)), candidates[0] if candidates else None)


def _exists(field: Field, values: Mapping[str, Any]) -> bool:
    for condition in field.when:
        if condition.values == (IS_SET,):
            continue
        chosen = value_at(values, condition.path)
        if condition.path == "optimizer.optimizer_type":
            chosen = chosen or "AdamW"
        if chosen not in condition.values:
            return False
    return True


# ------------------------------------------------------------------------------------------------------ unknown keys


def unknown_key(path: str, values: Mapping[str, Any], where: str) -> ConfigProblem:
    """A key that no setting has."""
    parent, _, name = path.rpartition(".")
    what = f"{printable(path)} is not a setting"
    siblings = _keys_of(parent, values)
    other_variants = [field for field in list_fields() if field.path == path]
    if other_variants:
        kinds = ", ".join(kind for field in other_variants for kind in field.when[-1].values)
        kind_path = other_variants[0].when[-1].path
        what = f"{path} is not a setting of {show_plain(value_at(values, kind_path) or 'AdamW')}, only of {kinds}"
        return ConfigProblem(what, f"remove it, or change {kind_path}", where, path)
    if name in LORA_ONLY_KEYS:
        return ConfigProblem(
            what, "it belongs to LoRA training; tuitrain trains the UNet in full, so remove it", where, path
        )
    suggestion = _nearest_key(name, parent, siblings, values)
    if suggestion is not None:
        shown = suggestion if suggestion.rpartition(".")[0] != parent else suggestion.rpartition(".")[2]
        return ConfigProblem(what, f"did you mean {shown}?", where, path, suggestion)
    if parent:
        return ConfigProblem(what, f"{parent} has: {', '.join(siblings)}", where, path)
    return ConfigProblem(what, "remove it; all settings are in docs/config.md", where, path)


def _keys_of(parent: str, values: Mapping[str, Any]) -> list[str]:
    """Keys that may stand in the group at `parent`, in the variant that `values` choose."""
    prefix = f"{parent}." if parent else ""
    inside = (
        field.path[len(prefix) :].split(".")[0]
        for field in list_fields()
        if field.path.startswith(prefix) and _exists(field, values)
    )
    return list(dict.fromkeys(inside))


def _nearest_key(name: str, parent: str, siblings: list[str], values: Mapping[str, Any]) -> str | None:
    """Path of the setting that `name` was probably meant to be."""
    prefix = f"{parent}." if parent else ""
    paths = [*(field.path for field in list_fields() if _exists(field, values)), *union_kinds()]
    everywhere = {path.rpartition(".")[2]: path for path in reversed(paths)}
    lowered = name.lower().replace("-", "_")
    if lowered in siblings:
        return f"{prefix}{lowered}"
    if lowered in everywhere:
        return everywhere[lowered]
    for close in difflib.get_close_matches(lowered, siblings, 1, 0.8):
        return f"{prefix}{close}"
    if lowered in OTHER_NAMES:
        return OTHER_NAMES[lowered]
    for close in difflib.get_close_matches(lowered, everywhere, 1, 0.8):
        return everywhere[close]
    for close in difflib.get_close_matches(lowered, siblings, 1, 0.6):
        return f"{prefix}{close}"
    return None


def show_plain(value: object) -> str:
    """A name as a message shows it: without quotes, nothing that steers a terminal."""
    return printable(str(value))[:MAX_SHOWN_LENGTH]


# ------------------------------------------------------------------------------------------------------ missing keys


def missing_key(path: str, values: Mapping[str, Any], where: str) -> ConfigProblem:
    """A required key that is not there."""
    if path == "type":
        return ConfigProblem(
            "type is missing, it must be SDXL_FINETUNE",
            "add the line type: SDXL_FINETUNE",
            where,
            path,
            "SDXL_FINETUNE",
        )
    kind_key = union_kinds().get(path)
    field = find_field(f"{path}.{kind_key}" if kind_key else path, values)
    if field is None:  # a group
        keys = _required_keys(path)
        return ConfigProblem(
            f"{path} is missing, it must be a group of settings", f"it needs {', '.join(keys)}", where, path
        )
    if kind_key:
        what = f"{path} is missing, it must be a group of settings"
        return ConfigProblem(what, f"its first key is {kind_key}: {' or '.join(field.choices)}", where, path)
    suggestion = "" if field.example is None else str(field.example)
    return ConfigProblem(
        f"{path} is missing, it must be {field.rule}",
        f"it is needed: {_first_sentence(field)}",
        where,
        path,
        suggestion,
    )


def _required_keys(parent: str) -> list[str]:
    return [field.name for field in list_fields() if field.parent == parent and field.required]


def _first_sentence(field: Field) -> str:
    sentence = re.split(r"(?<=[a-z)])[.:;] ", field.help, maxsplit=1)[0].rstrip(".")
    return sentence[:1].lower() + sentence[1:] if not sentence[:2].isupper() else sentence


# ----------------------------------------------------------------------------------------------------- wrong variants


def wrong_kind(path: str, group: object, values: Mapping[str, Any], where: str) -> ConfigProblem:
    """A union of groups whose kind is missing, unknown, or that is no group at all."""
    kind_key = union_kinds()[path]
    kind_path = f"{path}.{kind_key}"
    field = find_field(kind_path, values)
    assert field is not None
    if not isinstance(group, Mapping):
        hint = f"its first key is {kind_key}: {' or '.join(field.choices)}"
        return ConfigProblem(f"{path} is {show_value(group)}, it must be a group of settings", hint, where, path)
    kind = group.get(kind_key)
    if kind in OTHER_LOADERS or kind in OTHER_DATASETS:
        what = f"{kind_path} is {kind}, which full fine-tuning does not use, it must be {field.rule}"
        return ConfigProblem(what, "tuitrain does full fine-tuning of SDXL only", where, kind_path)
    if kind is not None or kind_key in group:
        return wrong_value(field, kind, where)
    suggestion = _kind_by_keys(group, field)
    hint = f"did you mean {kind_key}: {suggestion}?" if suggestion else f"add it as the first key of {path}"
    return ConfigProblem(f"{kind_path} is missing, it must be {field.rule}", hint, where, kind_path, suggestion)


def _kind_by_keys(group: Mapping[str, Any], kind_field: Field) -> str:
    """The variant that has the required keys which stand in `group`; empty when that says nothing."""
    for kind in kind_field.choices:
        required = [
            field.path.removeprefix(f"{kind_field.parent}.").split(".")[0]
            for field in list_fields()
            if field.required and any(c.path == kind_field.path and kind in c.values for c in field.when)
        ]
        if required and all(key in group for key in required):
            return kind
    return ""


# ------------------------------------------------------------------------------------------------------ wrong values


def wrong_value(field: Field, got: object, where: str, *, path: str = "", rule: str = "") -> ConfigProblem:
    """A value that breaks its field's rule.

    Args:
        field: the field.
        got: the value as YAML gave it.
        where: file and line.
        path: of the value, where it is an entry of the field's list; empty for the field's own.
        rule: what the value must be, where the field's own rule does not say it.
    """
    reason, instead = NOT_SUPPORTED.get((field.path, str(got)), ("", ""))
    suggestion = instead or ("" if path else suggest_value(field, got))
    key = path or field.path
    shown = f"{show_value(got)}, which {reason}" if reason else show_value(got)
    if suggestion:
        hint = f"did you mean {suggestion}?"
    elif field.path == "alpha_background" and got is None:
        hint = 'a colour with # must stand in quotes: "#ffffff"'
    elif field.type in ("text", "name", "texts") and isinstance(got, Mapping):
        hint = "put a text that holds a colon in quotes"
    elif field.required:
        hint = f"it is needed: {_first_sentence(field)}"
    else:
        hint = f"leave it out for the default, {show_default(field)}"
    return ConfigProblem(f"{key} is {shown}, it must be {rule or field.rule}", hint, where, key, suggestion)


def suggest_value(field: Field, got: object) -> str:
    """What was probably meant, as YAML; empty when nobody can tell."""
    if field.type == "choice":
        return _suggest_choice(got, field.choices)
    if field.type == "switch":
        return {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}.get(
            _suggest_choice(got, ("true", "false", "yes", "no", "on", "off")), ""
        )
    if field.type in ("whole", "number"):
        return _suggest_number(field, got)
    if field.type == "size":
        return _suggest_size(got)
    if field.type == "texts":
        return f"[{json.dumps(printable(got), ensure_ascii=False)}]" if isinstance(got, str) else ""
    if field.type in ("text", "name"):
        if isinstance(got, str):
            return _suggest_text(field, got)
        if isinstance(got, bool | int | float):
            return f'"{show_value(got)}"'
    return ""


def _suggest_text(field: Field, got: str) -> str:
    if not got.strip():
        return "null" if field.nullable else ""
    if field.path != "alpha_background":
        return ""
    if match := re.fullmatch(r"#?([0-9a-fA-F]{6})", got.strip()):
        return f'"#{match[1]}"'
    if match := re.fullmatch(r"#([0-9a-fA-F])([0-9a-fA-F])([0-9a-fA-F])", got.strip()):
        return f'"#{match[1] * 2}{match[2] * 2}{match[3] * 2}"'
    return {"gray": "grey"}.get(got.strip().lower(), "")


def _suggest_choice(got: object, choices: Iterable[str]) -> str:
    lowered = {choice.lower(): choice for choice in choices}
    text = str(got).lower().strip()
    starts = [choice for choice in lowered if text and choice.startswith(text)]
    close = starts or difflib.get_close_matches(text, lowered, 1, 0.6)
    return lowered[close[0]] if close and isinstance(got, str | bool) else ""


def _suggest_number(field: Field, got: object) -> str:
    number = _number_in(got)
    if number is None or not math.isfinite(number):
        return ""
    candidates = [number]
    if field.name == "learning_rate" and number > 1:
        candidates.append(float(f"{number:.0e}".split("e")[0] + "e-5"))
    if field.bounds.le == 1 and 1 < number <= LARGEST_PERCENTAGE:
        candidates.append(number / 100)
    candidates.append(-number)
    limit = field.bounds.ge if number < 1 else field.bounds.le
    if field.type == "whole" and limit is not None:
        candidates.append(limit)
    for candidate in candidates:
        value = float(round(candidate)) if field.type == "whole" else candidate
        if field.bounds.admit(value) and abs(value) < LARGEST_SUGGESTION:
            return f"{value:.10g}"
    return ""


def _number_in(got: object) -> float | None:
    """The number that a slip such as "0,01", "1,000", "5 e-5", "10^-5", "5%" or "100 steps" means."""
    if isinstance(got, bool):
        return None
    if isinstance(got, int | float):
        return float(got) if abs(got) < 10**MAX_SHOWN_LENGTH else None
    if not isinstance(got, str) or len(got) > MAX_SHOWN_LENGTH:
        return None
    text = got.strip().replace("\N{MINUS SIGN}", "-").replace(" ", "")
    text = re.sub(r"^10(\^|\*\*)", "1e", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", text) if not text.startswith("0,") else text
    text = text.replace(",", ".")
    match = re.match(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.IGNORECASE)
    if match is None:
        return None
    number = float(match[0])
    return number / 100 if text[match.end() :] == "%" else number


def _suggest_size(got: object) -> str:
    if isinstance(got, str):
        sides = [int(side) for side in re.findall(r"\d{1,5}", got)]
    elif isinstance(got, list | tuple):
        sides = [int(side) for side in got if isinstance(side, int | float) and math.isfinite(side)]
    else:
        return ""
    if len(sides) == 1:
        return str(sides[0]) if sides[0] > 0 else ""
    return str(sides) if len(sides) == len(("height", "width")) and min(sides) > 0 else ""


# ------------------------------------------------------------------------------------------------------ other `type`s


def other_pipeline(kind: object, where: str) -> ConfigProblem | None:
    """The one message about a config for another kind of training; None when it is not known to be one."""
    if not isinstance(kind, str) or kind.upper() not in OTHER_PIPELINES:
        return None
    return ConfigProblem(
        f"type is {kind}: tuitrain does full fine-tuning of SDXL only, so type must be SDXL_FINETUNE",
        "train it with invoke-training, or start from one of the presets",
        where,
        "type",
    )
