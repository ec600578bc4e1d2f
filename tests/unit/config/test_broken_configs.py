"""Broken configs: each gives its one clear message, with line, value, rule and what was probably meant."""

from pathlib import Path

import pytest

from tuitrain.config.files import load_config
from tuitrain.errors import ConfigError

VALID = """\
type: SDXL_FINETUNE
base_output_dir: output
max_train_steps: 100
save_every_n_steps: 50
data_loader:
  type: IMAGE_CAPTION_SD_DATA_LOADER
  dataset:
    type: IMAGE_CAPTION_JSONL_DATASET
    jsonl_path: data.jsonl
  resolution: 1024
optimizer:
  optimizer_type: AdamW
  learning_rate: 1e-5
"""

DREAMBOOTH = """\
type: SDXL_FINETUNE
base_output_dir: output
max_train_steps: 100
save_every_n_steps: 50
data_loader:
  type: DREAMBOOTH_SD_DATA_LOADER
  instance_caption: a sks dog
  instance_dataset:
    dataset_dir: dogs
"""


def edited(*edits: str, base: str = VALID) -> str:
    """`base` with old, new, old, new, ... replaced."""
    text = base
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert old in text, old
        text = text.replace(old, new)
    return text


def added(lines: str, *edits: str) -> str:
    """`VALID` with lines added at its end, from line 14 on."""
    return edited(*edits) + lines


def with_buckets(target: int, start: int, end: int, divisor: int) -> str:
    """`VALID` with aspect buckets on lines 11 to 15."""
    lines = (
        f"  resolution: 1024\n  aspect_ratio_buckets:\n    target_resolution: {target}\n    start_dim: {start}\n"
        f"    end_dim: {end}\n    divisible_by: {divisor}\n"
    )
    return edited("  resolution: 1024\n", lines)


MANY_SLIPS = """type: SDXL_FINETUNE
base_output_dir: output
max_train_steps: 0
data_loader:
  type: IMAGE_CAPTION_SD_DATA_LOADER
  dataset:
    type: IMAGE_CAPTION_JSONL_DATASET
    json_path: data.jsonl
  resolution: 1024
optimizer:
  learing_rate: 1e-5
foo_bar: 3
use_masks: 3
seed: .nan
"""

OPTIMIZER_GROUP = "optimizer:\n  optimizer_type: AdamW\n  learning_rate: 1e-5\n"
DATASET_GROUP = "  dataset:\n    type: IMAGE_CAPTION_JSONL_DATASET\n    jsonl_path: data.jsonl\n"
LOADER_GROUP = f"data_loader:\n  type: IMAGE_CAPTION_SD_DATA_LOADER\n{DATASET_GROUP}  resolution: 1024\n"

BROKEN: dict[str, tuple[str, list[str]]] = {
    "a misspelt key in a group": (
        edited("learning_rate", "learing_rate"),
        [
            "run.yaml:13: optimizer.learing_rate is not a setting (did you mean learning_rate?)",
        ],
    ),
    "a misspelt key at the top, which is then not also missing": (
        edited("max_train_steps", "max_train_step"),
        [
            "run.yaml:3: max_train_step is not a setting (did you mean max_train_steps?)",
        ],
    ),
    "a misspelt required key, which is then not also missing": (
        edited("jsonl_path", "json_path"),
        [
            "run.yaml:9: data_loader.dataset.json_path is not a setting (did you mean jsonl_path?)",
        ],
    ),
    "a misspelt group": (
        edited("data_loader:", "data_loder:"),
        [
            "run.yaml:5: data_loder is not a setting (did you mean data_loader?)",
        ],
    ),
    "a misspelt group with a wrong value in it": (
        edited("data_loader:", "data_loder:", "1024", "large"),
        [
            "run.yaml:5: data_loder is not a setting (did you mean data_loader?)",
            'run.yaml:10: data_loader.resolution is "large", it must be a whole number of pixels from 1 to '
            "8192, or two of them as [height, width] (leave it out for the default, 512)",
        ],
    ),
    "a key of a group at the top": (
        added("learning_rate: 1e-5\n"),
        [
            "run.yaml:14: learning_rate is not a setting (did you mean optimizer.learning_rate?)",
        ],
    ),
    "a key of the data loader at the top": (
        added("resolution: 1024\n"),
        [
            "run.yaml:14: resolution is not a setting (did you mean data_loader.resolution?)",
        ],
    ),
    "another trainer's name of a key": (
        added("batch_size: 2\n"),
        [
            "run.yaml:14: batch_size is not a setting (did you mean train_batch_size?)",
        ],
    ),
    "an abbreviated key": (
        added("lr: 1e-5\n"),
        [
            "run.yaml:14: lr is not a setting (did you mean optimizer.learning_rate?)",
        ],
    ),
    "a key in capitals": (
        edited("base_output_dir", "Base_Output_Dir"),
        [
            "run.yaml:2: Base_Output_Dir is not a setting (did you mean base_output_dir?)",
        ],
    ),
    "a key with hyphens": (
        edited("base_output_dir", "base-output-dir"),
        [
            "run.yaml:2: base-output-dir is not a setting (did you mean base_output_dir?)",
        ],
    ),
    "an unknown key at the top": (
        added("foo_bar: 2\n"),
        [
            "run.yaml:14: foo_bar is not a setting (remove it; all settings are in docs/config.md)",
        ],
    ),
    "an unknown key in a group": (
        edited("resolution: 1024", "resolution: 1024\n  zzz: 1"),
        [
            "run.yaml:11: data_loader.zzz is not a setting (data_loader has: type, aspect_ratio_buckets, "
            "resolution, center_crop, random_flip, dataloader_num_workers, dataset, caption_prefix)",
        ],
    ),
    "a key of LoRA training": (
        added("lora_rank_dim: 4\n"),
        [
            "run.yaml:14: lora_rank_dim is not a setting (it belongs to LoRA training; tuitrain trains the "
            "UNet in full, so remove it)",
        ],
    ),
    "a key that YAML takes for a boolean": (
        added("on: 3\n"),
        [
            "run.yaml:14: on is not a setting (remove it; all settings are in docs/config.md)",
        ],
    ),
    "a key with an escape sequence in it": (
        added('"a\\x1b[31mb": 1\n'),
        [
            "run.yaml:14: a\\x1b[31mb is not a setting (remove it; all settings are in docs/config.md)",
        ],
    ),
    "a key of another optimizer": (
        edited("AdamW\n", "Prodigy\n  beta1: 0.9\n"),
        [
            "run.yaml:13: optimizer.beta1 is not a setting of Prodigy, only of AdamW (remove it, or change "
            "optimizer.optimizer_type)",
        ],
    ),
    "a key of another data loader": (
        DREAMBOOTH + "  caption_prefix: x\n",
        [
            "run.yaml:10: data_loader.caption_prefix is not a setting of DREAMBOOTH_SD_DATA_LOADER, only of "
            "IMAGE_CAPTION_SD_DATA_LOADER (remove it, or change data_loader.type)",
        ],
    ),
    "a key of another dataset": (
        edited("    jsonl_path: data.jsonl\n", "    jsonl_path: data.jsonl\n    dataset_dir: x\n"),
        [
            "run.yaml:10: data_loader.dataset.dataset_dir is not a setting of IMAGE_CAPTION_JSONL_DATASET, "
            "only of IMAGE_CAPTION_DIR_DATASET (remove it, or change data_loader.dataset.type)",
        ],
    ),
    "no output folder": (
        edited("base_output_dir: output\n", ""),
        [
            "run.yaml: base_output_dir is missing, it must be text that is not empty (it is needed: folder "
            "of the runs)",
        ],
    ),
    "no jsonl path": (
        edited("    jsonl_path: data.jsonl\n", ""),
        [
            "run.yaml:7: data_loader.dataset.jsonl_path is missing, it must be text that is not empty (it "
            "is needed: the JSONL file)",
        ],
    ),
    "no data loader": (
        edited(LOADER_GROUP, ""),
        [
            "run.yaml: data_loader is missing, it must be a group of settings (its first key is type: "
            "IMAGE_CAPTION_SD_DATA_LOADER or DREAMBOOTH_SD_DATA_LOADER)",
        ],
    ),
    "no dataset": (
        edited(DATASET_GROUP, ""),
        [
            "run.yaml:5: data_loader.dataset is missing, it must be a group of settings (its first key is "
            "type: HF_HUB_IMAGE_CAPTION_DATASET or IMAGE_CAPTION_JSONL_DATASET or IMAGE_CAPTION_DIR_DATASET)",
        ],
    ),
    "no dreambooth dataset": (
        edited("  instance_dataset:\n    dataset_dir: dogs\n", "", base=DREAMBOOTH),
        [
            "run.yaml:5: data_loader.instance_dataset is missing, it must be a group of settings (it needs "
            "dataset_dir)",
        ],
    ),
    "no type": (
        edited("type: SDXL_FINETUNE\n", ""),
        [
            "run.yaml: type is missing, it must be SDXL_FINETUNE (add the line type: SDXL_FINETUNE)",
        ],
    ),
    "no data loader type": (
        edited("  type: IMAGE_CAPTION_SD_DATA_LOADER\n", ""),
        [
            "run.yaml:5: data_loader.type is missing, it must be one of IMAGE_CAPTION_SD_DATA_LOADER, "
            "DREAMBOOTH_SD_DATA_LOADER (did you mean type: IMAGE_CAPTION_SD_DATA_LOADER?)",
        ],
    ),
    "no dataset type": (
        edited("    type: IMAGE_CAPTION_JSONL_DATASET\n", ""),
        [
            "run.yaml:7: data_loader.dataset.type is missing, it must be one of "
            "HF_HUB_IMAGE_CAPTION_DATASET, IMAGE_CAPTION_JSONL_DATASET, IMAGE_CAPTION_DIR_DATASET (did you "
            "mean type: IMAGE_CAPTION_JSONL_DATASET?)",
        ],
    ),
    "a LoRA config, of which only the type is reported": (
        added("lora_rank_dim: 3\n", "SDXL_FINETUNE", "SDXL_LORA"),
        [
            "run.yaml:1: type is SDXL_LORA: tuitrain does full fine-tuning of SDXL only, so type must be "
            "SDXL_FINETUNE (train it with invoke-training, or start from one of the presets)",
        ],
    ),
    "a textual inversion config": (
        edited("SDXL_FINETUNE", "SDXL_TEXTUAL_INVERSION"),
        [
            "run.yaml:1: type is SDXL_TEXTUAL_INVERSION: tuitrain does full fine-tuning of SDXL only, so "
            "type must be SDXL_FINETUNE (train it with invoke-training, or start from one of the presets)",
        ],
    ),
    "a misspelt type": (
        edited("SDXL_FINETUNE", "SDXL_FINETUN"),
        [
            'run.yaml:1: type is "SDXL_FINETUN", it must be SDXL_FINETUNE (did you mean SDXL_FINETUNE?)',
        ],
    ),
    "a type in small letters": (
        edited("SDXL_FINETUNE", "sdxl_finetune"),
        [
            'run.yaml:1: type is "sdxl_finetune", it must be SDXL_FINETUNE (did you mean SDXL_FINETUNE?)',
        ],
    ),
    "a type that is a number": (
        edited("SDXL_FINETUNE", "3"),
        [
            "run.yaml:1: type is 3, it must be SDXL_FINETUNE (it is needed: what is trained)",
        ],
    ),
    "a type that is empty": (
        edited(" SDXL_FINETUNE", ""),
        [
            "run.yaml:1: type is empty (null), it must be SDXL_FINETUNE (it is needed: what is trained)",
        ],
    ),
    "a misspelt dataset type": (
        edited("IMAGE_CAPTION_JSONL_DATASET", "IMAGE_CAPTION_JSON_DATASET"),
        [
            'run.yaml:7: data_loader.dataset.type is "IMAGE_CAPTION_JSON_DATASET", it must be one of '
            "HF_HUB_IMAGE_CAPTION_DATASET, IMAGE_CAPTION_JSONL_DATASET, IMAGE_CAPTION_DIR_DATASET (did you "
            "mean IMAGE_CAPTION_JSONL_DATASET?)",
        ],
    ),
    "an empty dataset type": (
        edited("IMAGE_CAPTION_JSONL_DATASET", "null"),
        [
            "run.yaml:7: data_loader.dataset.type is empty (null), it must be one of "
            "HF_HUB_IMAGE_CAPTION_DATASET, IMAGE_CAPTION_JSONL_DATASET, IMAGE_CAPTION_DIR_DATASET (it is "
            "needed: where pictures and captions are)",
        ],
    ),
    "a misspelt data loader type": (
        edited("IMAGE_CAPTION_SD_DATA_LOADER", "IMAGE_CAPTION_DATA_LOADER"),
        [
            'run.yaml:5: data_loader.type is "IMAGE_CAPTION_DATA_LOADER", it must be one of '
            "IMAGE_CAPTION_SD_DATA_LOADER, DREAMBOOTH_SD_DATA_LOADER (did you mean "
            "IMAGE_CAPTION_SD_DATA_LOADER?)",
        ],
    ),
    "a data loader of textual inversion": (
        edited("IMAGE_CAPTION_SD_DATA_LOADER", "TEXTUAL_INVERSION_SD_DATA_LOADER"),
        [
            "run.yaml:5: data_loader.type is TEXTUAL_INVERSION_SD_DATA_LOADER, which full fine-tuning does "
            "not use, it must be one of IMAGE_CAPTION_SD_DATA_LOADER, DREAMBOOTH_SD_DATA_LOADER (tuitrain "
            "does full fine-tuning of SDXL only)",
        ],
    ),
    "a data loader that is a text": (
        edited(LOADER_GROUP, "data_loader: folder\n"),
        [
            'run.yaml:5: data_loader is "folder", it must be a group of settings (its first key is type: '
            "IMAGE_CAPTION_SD_DATA_LOADER or DREAMBOOTH_SD_DATA_LOADER)",
        ],
    ),
    "an optimizer in small letters": (
        edited("AdamW", "adamw"),
        [
            'run.yaml:11: optimizer.optimizer_type is "adamw", it must be one of AdamW, Prodigy, Adafactor '
            "(did you mean AdamW?)",
        ],
    ),
    "an unknown optimizer": (
        edited("AdamW", "Lion"),
        [
            'run.yaml:11: optimizer.optimizer_type is "Lion", it must be one of AdamW, Prodigy, Adafactor '
            "(leave it out for the default, AdamW)",
        ],
    ),
    "an empty optimizer group": (
        edited(OPTIMIZER_GROUP, "optimizer:\n"),
        [
            "run.yaml:11: optimizer is empty (null), it must be a group of settings (its first key is "
            "optimizer_type: AdamW or Prodigy or Adafactor)",
        ],
    ),
    "an optimizer that is a text": (
        edited(OPTIMIZER_GROUP, "optimizer: AdamW\n"),
        [
            'run.yaml:11: optimizer is "AdamW", it must be a group of settings (its first key is '
            "optimizer_type: AdamW or Prodigy or Adafactor)",
        ],
    ),
    "an optimizer that is a list": (
        edited(OPTIMIZER_GROUP, "optimizer: [AdamW]\n"),
        [
            'run.yaml:11: optimizer is ["AdamW"], it must be a group of settings (its first key is '
            "optimizer_type: AdamW or Prodigy or Adafactor)",
        ],
    ),
    "a dreambooth dataset that is a text": (
        edited("instance_dataset:\n    dataset_dir: dogs", "instance_dataset: dogs", base=DREAMBOOTH),
        [
            'run.yaml:8: data_loader.instance_dataset is "dogs", it must be a group of settings (indent its '
            "settings below it)",
        ],
    ),
    "a rate that is a word": (
        edited("1e-5", "fast"),
        [
            'run.yaml:13: optimizer.learning_rate is "fast", it must be a number above 0 and at most 1 '
            "(leave it out for the default, 0.0001)",
        ],
    ),
    "a negative rate": (
        edited("1e-5", "-1e-5"),
        [
            'run.yaml:13: optimizer.learning_rate is "-1e-5", it must be a number above 0 and at most 1 '
            "(did you mean 1e-05?)",
        ],
    ),
    "a rate of zero": (
        edited("1e-5", "0"),
        [
            "run.yaml:13: optimizer.learning_rate is 0, it must be a number above 0 and at most 1 (leave it "
            "out for the default, 0.0001)",
        ],
    ),
    "a rate without its exponent": (
        edited("1e-5", "5"),
        [
            "run.yaml:13: optimizer.learning_rate is 5, it must be a number above 0 and at most 1 (did you "
            "mean 5e-05?)",
        ],
    ),
    "a rate that is NaN": (
        edited("1e-5", ".nan"),
        [
            "run.yaml:13: optimizer.learning_rate is not a number (nan), it must be a number above 0 and at "
            "most 1 (leave it out for the default, 0.0001)",
        ],
    ),
    "a rate that is the text nan": (
        edited("1e-5", "nan"),
        [
            'run.yaml:13: optimizer.learning_rate is "nan", it must be a number above 0 and at most 1 '
            "(leave it out for the default, 0.0001)",
        ],
    ),
    "a rate that is infinite": (
        edited("1e-5", ".inf"),
        [
            "run.yaml:13: optimizer.learning_rate is infinite, it must be a number above 0 and at most 1 "
            "(leave it out for the default, 0.0001)",
        ],
    ),
    "a rate that overflows": (
        edited("1e-5", "1e400"),
        [
            'run.yaml:13: optimizer.learning_rate is "1e400", it must be a number above 0 and at most 1 '
            "(leave it out for the default, 0.0001)",
        ],
    ),
    "a rate with a decimal comma": (
        edited("1e-5", "0,00001"),
        [
            'run.yaml:13: optimizer.learning_rate is "0,00001", it must be a number above 0 and at most 1 '
            "(did you mean 1e-05?)",
        ],
    ),
    "a rate as a power of ten": (
        edited("1e-5", "10^-5"),
        [
            'run.yaml:13: optimizer.learning_rate is "10^-5", it must be a number above 0 and at most 1 '
            "(did you mean 1e-05?)",
        ],
    ),
    "a rate that is a boolean": (
        edited("1e-5", "yes"),
        [
            "run.yaml:13: optimizer.learning_rate is true, it must be a number above 0 and at most 1 (leave "
            "it out for the default, 0.0001)",
        ],
    ),
    "a rate that is a list": (
        edited("1e-5", "[1e-5]"),
        [
            'run.yaml:13: optimizer.learning_rate is ["1e-5"], it must be a number above 0 and at most 1 '
            "(leave it out for the default, 0.0001)",
        ],
    ),
    "a rate that is empty": (
        edited(" 1e-5", ""),
        [
            "run.yaml:13: optimizer.learning_rate is empty (null), it must be a number above 0 and at most "
            "1 (leave it out for the default, 0.0001)",
        ],
    ),
    "a percentage": (
        added("caption_dropout: 5%\n"),
        [
            'run.yaml:14: caption_dropout is "5%", it must be a number at least 0 and at most 1 (did you mean 0.05?)',
        ],
    ),
    "a percentage without its sign": (
        added("caption_dropout: 10\n"),
        [
            "run.yaml:14: caption_dropout is 10, it must be a number at least 0 and at most 1 (did you mean 0.1?)",
        ],
    ),
    "a share below zero": (
        added("caption_dropout: -0.1\n"),
        [
            "run.yaml:14: caption_dropout is -0.1, it must be a number at least 0 and at most 1 (did you mean 0.1?)",
        ],
    ),
    "a decay that keeps everything": (
        added("ema_decay: 1\n"),
        [
            "run.yaml:14: ema_decay is 1, it must be a number above 0 and below 1, or null (leave it out "
            "for the default, null)",
        ],
    ),
    "half a step": (
        edited("steps: 100", "steps: 1.5"),
        [
            "run.yaml:3: max_train_steps is 1.5, it must be a whole number at least 1, or null (did you mean 2?)",
        ],
    ),
    "no step": (
        edited("steps: 100", "steps: 0"),
        [
            "run.yaml:3: max_train_steps is 0, it must be a whole number at least 1, or null (did you mean 1?)",
        ],
    ),
    "a number with a separator": (
        edited("steps: 100", "steps: 1,000"),
        [
            'run.yaml:3: max_train_steps is "1,000", it must be a whole number at least 1, or null (did you '
            "mean 1000?)",
        ],
    ),
    "a number with its unit": (
        edited("steps: 100", "steps: 100 steps"),
        [
            'run.yaml:3: max_train_steps is "100 steps", it must be a whole number at least 1, or null (did '
            "you mean 100?)",
        ],
    ),
    "a number of 5000 digits": (
        edited("steps: 100", "steps: " + "9" * 5000),
        [
            'run.yaml:3: max_train_steps is "99999999999999999999999999999999999999999999999999999999..., '
            "it must be a whole number at least 1, or null (leave it out for the default, null)",
        ],
    ),
    "a number with a leading zero": (
        edited("steps: 100", "steps: 0100"),
        [
            "run.yaml:3: max_train_steps is 0100, which YAML reads in base 2, 8 or 60 (write an ordinary "
            "number, or put it in quotes)",
        ],
    ),
    "a number in base 60": (
        edited("steps: 100", "steps: 1:30"),
        [
            "run.yaml:3: max_train_steps is 1:30, which YAML reads in base 2, 8 or 60 (write an ordinary "
            "number, or put it in quotes)",
        ],
    ),
    "a count that is a boolean": (
        edited("steps: 100", "steps: on"),
        [
            "run.yaml:3: max_train_steps is true, it must be a whole number at least 1, or null (leave it "
            "out for the default, null)",
        ],
    ),
    "a count out of reach": (
        added("train_batch_size: 1e300\n"),
        [
            'run.yaml:14: train_batch_size is "1e300", it must be a whole number at least 1 (leave it out '
            "for the default, 4)",
        ],
    ),
    "a negative seed": (
        added("seed: -1\n"),
        [
            "run.yaml:14: seed is -1, it must be a whole number at least 0 and at most 4294967295, or null "
            "(did you mean 1?)",
        ],
    ),
    "a seed above 32 bits": (
        added("seed: 4294967296\n"),
        [
            "run.yaml:14: seed is 4294967296, it must be a whole number at least 0 and at most 4294967295, "
            "or null (did you mean 4294967295?)",
        ],
    ),
    "a switch that is a word": (
        added("use_masks: maybe\n"),
        [
            'run.yaml:14: use_masks is "maybe", it must be true or false (leave it out for the default, false)',
        ],
    ),
    "a misspelt switch": (
        added("use_masks: ture\n"),
        [
            'run.yaml:14: use_masks is "ture", it must be true or false (did you mean true?)',
        ],
    ),
    "a switch that is a number": (
        added("use_masks: 2\n"),
        [
            "run.yaml:14: use_masks is 2, it must be true or false (leave it out for the default, false)",
        ],
    ),
    "an empty path": (
        edited("base_output_dir: output", 'base_output_dir: ""'),
        [
            'run.yaml:2: base_output_dir is "", it must be text that is not empty (it is needed: folder of the runs)',
        ],
    ),
    "a blank name": (
        added("model: '  '\n"),
        [
            'run.yaml:14: model is "  ", it must be text that is not empty (leave it out for the default, '
            "stabilityai/stable-diffusion-xl-base-1.0)",
        ],
    ),
    "a blank name that may be null": (
        added("vae_model: ''\n"),
        [
            'run.yaml:14: vae_model is "", it must be text that is not empty, or null (did you mean null?)',
        ],
    ),
    "a path that is null": (
        edited("base_output_dir: output", "base_output_dir:"),
        [
            "run.yaml:2: base_output_dir is empty (null), it must be text that is not empty (it is needed: "
            "folder of the runs)",
        ],
    ),
    "a path that is a number": (
        edited("base_output_dir: output", "base_output_dir: 2024"),
        [
            'run.yaml:2: base_output_dir is 2024, it must be text that is not empty (did you mean "2024"?)',
        ],
    ),
    "a path that is a boolean": (
        edited("base_output_dir: output", "base_output_dir: no"),
        [
            'run.yaml:2: base_output_dir is false, it must be text that is not empty (did you mean "false"?)',
        ],
    ),
    "a path with an escape sequence": (
        edited("base_output_dir: output", 'base_output_dir: "a\\x1b[31mb"'),
        [
            'run.yaml:2: base_output_dir is "a\\u001b[31mb", it must be text without control characters (it '
            "is needed: folder of the runs)",
        ],
    ),
    "a path with a NUL": (
        edited("base_output_dir: output", 'base_output_dir: "a\\0b"'),
        [
            'run.yaml:2: base_output_dir is "a\\u0000b", it must be text without control characters (it is '
            "needed: folder of the runs)",
        ],
    ),
    "a colour without quotes": (
        added("alpha_background: #ffffff\n"),
        [
            'run.yaml:14: alpha_background is empty (null), it must be white, black, grey or "#rrggbb" (in '
            'quotes) (a colour with # must stand in quotes: "#ffffff")',
        ],
    ),
    "a colour in American spelling": (
        added("alpha_background: gray\n"),
        [
            'run.yaml:14: alpha_background is "gray", it must be white, black, grey or "#rrggbb" (in '
            "quotes) (did you mean grey?)",
        ],
    ),
    "a short colour": (
        added("alpha_background: '#fff'\n"),
        [
            'run.yaml:14: alpha_background is "#fff", it must be white, black, grey or "#rrggbb" (in '
            'quotes) (did you mean "#ffffff"?)',
        ],
    ),
    "a size as text": (
        edited("1024", "1024x768"),
        [
            'run.yaml:10: data_loader.resolution is "1024x768", it must be a whole number of pixels from 1 '
            "to 8192, or two of them as [height, width] (did you mean [1024, 768]?)",
        ],
    ),
    "a size of three": (
        edited("1024", "[1, 2, 3]"),
        [
            "run.yaml:10: data_loader.resolution is [1, 2, 3], it must be a whole number of pixels from 1 "
            "to 8192, or two of them as [height, width] (leave it out for the default, 512)",
        ],
    ),
    "a size of zero": (
        edited("1024", "0"),
        [
            "run.yaml:10: data_loader.resolution is 0, it must be a whole number of pixels from 1 to 8192, "
            "or two of them as [height, width] (leave it out for the default, 512)",
        ],
    ),
    "a size with a fraction": (
        edited("1024", "512.5"),
        [
            "run.yaml:10: data_loader.resolution is 512.5, it must be a whole number of pixels from 1 to "
            "8192, or two of them as [height, width] (leave it out for the default, 512)",
        ],
    ),
    "a size out of reach": (
        edited("1024", "100000"),
        [
            "run.yaml:10: data_loader.resolution is 100000, it must be a whole number of pixels from 1 to "
            "8192, or two of them as [height, width] (leave it out for the default, 512)",
        ],
    ),
    "an empty size": (
        edited(" 1024", ""),
        [
            "run.yaml:10: data_loader.resolution is empty (null), it must be a whole number of pixels from "
            "1 to 8192, or two of them as [height, width] (leave it out for the default, 512)",
        ],
    ),
    "a choice by another name": (
        added("weight_dtype: bf16\n"),
        [
            'run.yaml:14: weight_dtype is "bf16", it must be one of float32, float16, bfloat16 (did you '
            "mean bfloat16?)",
        ],
    ),
    "a choice that is not supported": (
        added("mixed_precision: fp8\n"),
        [
            'run.yaml:14: mixed_precision is "fp8", which needs hardware and libraries that tuitrain does '
            "not use, it must be one of no, fp16, bf16 (did you mean bf16?)",
        ],
    ),
    "a choice that is null": (
        added("mixed_precision: null\n"),
        [
            "run.yaml:14: mixed_precision is empty (null), it must be one of no, fp16, bf16 (leave it out "
            "for the default, no)",
        ],
    ),
    "a prompt that is no list": (
        added("validation_prompts: a cat\nvalidate_every_n_steps: 3\n"),
        [
            'run.yaml:14: validation_prompts is "a cat", it must be a list of texts (did you mean ["a cat"]?)',
        ],
    ),
    "a prompt that is a number": (
        added("validation_prompts: [a cat, 3]\nvalidate_every_n_steps: 3\n"),
        [
            "run.yaml:14: validation_prompts.1 is 3, it must be text (leave it out for the default, [])",
        ],
    ),
    "a prompt with a colon": (
        added("validation_prompts:\n  - a cat: in ink\nvalidate_every_n_steps: 3\n"),
        [
            "run.yaml:15: validation_prompts.0 is a group of settings, it must be text (put a text that "
            "holds a colon in quotes)",
        ],
    ),
    "fewer negative prompts": (
        added("validation_prompts: [a, b]\nnegative_validation_prompts: [x]\nvalidate_every_n_steps: 3\n"),
        [
            "run.yaml:15: negative_validation_prompts has 1 entries and validation_prompts has 2, they must "
            'have the same number (give one negative prompt for each prompt, "" for none, or set '
            "negative_validation_prompts to null)",
        ],
    ),
    "steps and epochs": (
        added("max_train_epochs: 3\n"),
        [
            "run.yaml:14: both max_train_steps (100) and max_train_epochs (3) are set, exactly one of them "
            "must be (remove one, or set it to null: max_train_epochs: null)",
        ],
    ),
    "neither steps nor epochs": (
        edited("max_train_steps: 100\n", ""),
        [
            "run.yaml: neither max_train_steps nor max_train_epochs is set, exactly one of them must be "
            "(add max_train_steps or max_train_epochs)",
        ],
    ),
    "saving by steps and epochs": (
        added("save_every_n_epochs: 3\n"),
        [
            "run.yaml:14: both save_every_n_steps (50) and save_every_n_epochs (3) are set, exactly one of "
            "them must be (remove one, or set it to null: save_every_n_epochs: null)",
        ],
    ),
    "saving by neither": (
        edited("save_every_n_steps: 50\n", ""),
        [
            "run.yaml: neither save_every_n_steps nor save_every_n_epochs is set, exactly one of them must "
            "be (add save_every_n_steps or save_every_n_epochs)",
        ],
    ),
    "prompts without interval": (
        added("validation_prompts: [a]\n"),
        [
            "run.yaml:14: validation_prompts are set, but neither validate_every_n_steps nor "
            "validate_every_n_epochs is, exactly one of them must be (add validate_every_n_steps or "
            "validate_every_n_epochs)",
        ],
    ),
    "validation by steps and epochs, even without prompts": (
        added("validate_every_n_steps: 3\nvalidate_every_n_epochs: 3\n"),
        [
            "run.yaml:15: both validate_every_n_steps (3) and validate_every_n_epochs (3) are set, exactly "
            "one of them must be (remove one, or set it to null: validate_every_n_epochs: null)",
        ],
    ),
    "a bucket that is no multiple": (
        with_buckets(1000, 512, 1536, 128),
        [
            "run.yaml:12: data_loader.aspect_ratio_buckets.target_resolution is 1000, it must be a multiple "
            "of divisible_by (128) (did you mean 1024?)",
        ],
    ),
    "buckets in the wrong order": (
        with_buckets(1024, 1536, 512, 128),
        [
            "run.yaml:13: data_loader.aspect_ratio_buckets.start_dim is 1536, it must not be above end_dim "
            "(512) (swap the two)",
        ],
    ),
    "a bucket divisor of zero": (
        with_buckets(1024, 512, 1536, 0),
        [
            "run.yaml:15: data_loader.aspect_ratio_buckets.divisible_by is 0, it must be a whole number at "
            "least 1 and at most 8192 (did you mean 1?)",
        ],
    ),
    "buckets without a second side": (
        with_buckets(64, 64, 8192, 64),
        [
            "run.yaml:14: data_loader.aspect_ratio_buckets.end_dim is 8192: at the area of 64 x 64 the "
            "other side would be shorter than divisible_by (64) (lower end_dim)",
        ],
    ),
    "buckets with a key missing": (
        edited("    end_dim: 1536\n", "", base=with_buckets(1024, 512, 1536, 128)),
        [
            "run.yaml:11: data_loader.aspect_ratio_buckets.end_dim is missing, it must be a whole number at "
            "least 1 and at most 8192 (it is needed: last side tried from start_dim on)",
        ],
    ),
    "buckets that are a number": (
        edited("  resolution: 1024\n", "  resolution: 1024\n  aspect_ratio_buckets: 1024\n"),
        [
            "run.yaml:11: data_loader.aspect_ratio_buckets is 1024, it must be a group of settings, or null "
            "(leave it out for the default, null)",
        ],
    ),
    "flips of cached pictures": (
        added("cache_vae_outputs: true\n", "resolution: 1024", "random_flip: true"),
        [
            "run.yaml:10: data_loader.random_flip is true and so is cache_vae_outputs, but a cached picture "
            "cannot be mirrored (set data_loader.random_flip or cache_vae_outputs to false)",
        ],
    ),
    "random crops of cached pictures": (
        added("cache_vae_outputs: true\n", "resolution: 1024", "center_crop: false"),
        [
            "run.yaml:10: data_loader.center_crop is false and cache_vae_outputs is true, but a cached "
            "picture has one fixed crop (set data_loader.center_crop to true or cache_vae_outputs to false)",
        ],
    ),
    "shuffles of cached captions": (
        added("cache_text_encoder_outputs: true\ncaption_shuffle: true\n"),
        [
            "run.yaml:15: caption_shuffle is true and so is cache_text_encoder_outputs, but a cached "
            "caption has one fixed order (set caption_shuffle or cache_text_encoder_outputs to false)",
        ],
    ),
    "masks with dreambooth": (
        DREAMBOOTH + "use_masks: true\n",
        [
            "run.yaml:10: use_masks is true, but the data loader is DREAMBOOTH_SD_DATA_LOADER, which has no "
            "masks (set use_masks to false, or list the pictures and masks in an "
            "IMAGE_CAPTION_JSONL_DATASET)",
        ],
    ),
    "masks with a folder": (
        added("use_masks: true\n", "JSONL_DATASET\n    jsonl_path: data.jsonl", "DIR_DATASET\n    dataset_dir: x"),
        [
            "run.yaml:14: use_masks is true, but the dataset is IMAGE_CAPTION_DIR_DATASET, which has no "
            "masks (set use_masks to false, or list the pictures and masks in an "
            "IMAGE_CAPTION_JSONL_DATASET)",
        ],
    ),
    "class pictures without caption": (
        DREAMBOOTH + "  class_dataset:\n    dataset_dir: d\n",
        [
            "run.yaml:10: data_loader.class_dataset is set and data_loader.class_caption is not, the "
            'pictures of the class need a caption (set data_loader.class_caption, for instance to "a photo '
            'of a dog")',
        ],
    ),
    "float16 weights alone": (
        added("weight_dtype: float16\n"),
        [
            "run.yaml:14: weight_dtype is float16 and mixed_precision is no: gradients underflow, so "
            "float16 weights train only with mixed_precision fp16 (set weight_dtype to bfloat16, or "
            "mixed_precision to fp16)",
        ],
    ),
    "float16 weights with bf16": (
        added("weight_dtype: float16\nmixed_precision: bf16\n"),
        [
            "run.yaml:14: weight_dtype is float16 and mixed_precision is bf16: gradients underflow, so "
            "float16 weights train only with mixed_precision fp16 (set weight_dtype to bfloat16, or "
            "mixed_precision to fp16)",
        ],
    ),
    "epsilon with zero terminal SNR": (
        added("zero_terminal_snr: true\nprediction_type: epsilon\n"),
        [
            "run.yaml:14: zero_terminal_snr is true and prediction_type is epsilon, but a picture of pure "
            "noise says nothing about the noise's share (set prediction_type to v_prediction for a "
            "v-prediction model, or zero_terminal_snr to null)",
        ],
    ),
    "a key that stands twice": (
        added("max_train_steps: 3\n"),
        [
            "run.yaml:14: max_train_steps is set twice, first on line 3 (remove one)",
        ],
    ),
    "an anchor": (
        added("seed: &a 3\n"),
        [
            "run.yaml:14: &a is a YAML anchor or alias, which a config may not have (write the value out, "
            "or put the text in quotes)",
        ],
    ),
    "a Python tag": (
        added("seed: !!python/object/apply:os.system [echo hi]\n"),
        [
            "run.yaml:14: tag:yaml.org,2002:python/object/apply:os.system is a YAML tag, which a config may "
            "not have (remove it)",
        ],
    ),
    "an indentation by tab": (
        edited("  resolution", "\tresolution"),
        [
            "run.yaml:10: not valid YAML: found a tab character that violates indentation while scanning a "
            "plain scalar (indent with spaces, YAML allows no tabs)",
        ],
    ),
    "a text with a colon": (
        edited("output\n", "output: x\n"),
        [
            "run.yaml:2: not valid YAML: mapping values are not allowed in this context (put a text that "
            "holds a colon in quotes, and check the indentation)",
        ],
    ),
    "an open quote, by the line it opens on": (
        edited("output\n", "'output\n"),
        [
            "run.yaml:2: not valid YAML: found unexpected end of stream while scanning a quoted scalar (is "
            "a closing quote or bracket missing?)",
        ],
    ),
    "a control character": (
        edited("output\n", "out\x07put\n"),
        [
            "run.yaml:2: the character \\x07 may not stand in a YAML file (remove it)",
        ],
    ),
    "a second document": (
        added("---\nseed: 1\n"),
        [
            "run.yaml:14: a second document starts here, a config is one (remove the --- line and what follows)",
        ],
    ),
    "a list in place of settings": (
        "- a\n- b\n",
        [
            "run.yaml: the file holds no settings, which are lines of key: value (start from one of the presets)",
        ],
    ),
    "a text in place of settings": (
        "hello",
        [
            "run.yaml: the file holds no settings, which are lines of key: value (start from one of the presets)",
        ],
    ),
    "an empty file": (
        "",
        [
            "run.yaml: the file is empty (start from one of the presets)",
        ],
    ),
    "nothing but comments": (
        "# seed: 1\n",
        [
            "run.yaml: the file is empty (start from one of the presets)",
        ],
    ),
    "many slips at once, in the order of the file": (
        MANY_SLIPS,
        [
            "run.yaml: neither save_every_n_steps nor save_every_n_epochs is set, exactly one of them must "
            "be (add save_every_n_steps or save_every_n_epochs)",
            "run.yaml:3: max_train_steps is 0, it must be a whole number at least 1, or null (did you mean 1?)",
            "run.yaml:8: data_loader.dataset.json_path is not a setting (did you mean jsonl_path?)",
            "run.yaml:11: optimizer.learing_rate is not a setting (did you mean learning_rate?)",
            "run.yaml:12: foo_bar is not a setting (remove it; all settings are in docs/config.md)",
            "run.yaml:13: use_masks is 3, it must be true or false (leave it out for the default, false)",
            "run.yaml:14: seed is not a number (nan), it must be a whole number at least 0 and at most "
            "4294967295, or null (leave it out for the default, null)",
        ],
    ),
}


@pytest.mark.parametrize(("text", "messages"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_config_is_refused_with(
    text: str, messages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config("run.yaml")
    assert [str(problem) for problem in caught.value.problems] == messages
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("base", [VALID, DREAMBOOTH], ids=["captions", "dreambooth"])
def test_what_the_broken_configs_are_made_from_is_valid(base: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(base, encoding="utf-8")
    assert load_config(file).max_train_steps == 100
