"""Small runs of the real engine: pictures on disk, a config, a Trainer, and what its journal tells."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from tuitrain.config.files import config_from_values
from tuitrain.config.schema import TrainConfig
from tuitrain.engine.launch import create_run, train_run
from tuitrain.engine.phase import Pulse
from tuitrain.engine.trainer import Trainer
from tuitrain.runs.control import Command
from tuitrain.runs.events import Event
from tuitrain.runs.journal import read_journal
from tuitrain.runs.run import Run

Kind = TypeVar("Kind", bound=Event)

CAPTIONS = ("a red ball", "a blue box", "two green hats", "an old shoe", "a map of the sea")
SIZES_HW = ((64, 64), (80, 80), (48, 96), (96, 48), (64, 64))


def write_pictures(folder: Path, num: int = 5, *, masks: bool = False) -> Path:
    """Seeded noise pictures of several shapes with a data.jsonl; the path of the jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = []
    for index in range(num):
        height, width = SIZES_HW[index % len(SIZES_HW)]
        blocks = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1)).save(folder / f"{index}.png")
        mask = ""
        if masks:
            area = np.zeros((height, width), dtype=np.uint8)
            area[: height // 2] = 255
            Image.fromarray(area).save(folder / f"mask_{index}.png")
            mask = f', "mask": "mask_{index}.png"'
        lines.append(f'{{"image": "{index}.png", "text": "{CAPTIONS[index % len(CAPTIONS)]}"{mask}}}')
    jsonl = folder / "data.jsonl"
    jsonl.write_text("\n".join(lines) + "\n")
    return jsonl


def small_config(tmp_path: Path, model: Path, jsonl: Path, *overrides: str, **values: Any) -> TrainConfig:
    """A run of seconds on 64-pixel pictures, both caches on, float32; `values` replace top-level settings."""
    settings: dict[str, Any] = {
        "type": "SDXL_FINETUNE",
        "seed": 1,
        "base_output_dir": str(tmp_path / "runs"),
        "model": str(model),
        "max_train_steps": 4,
        "save_every_n_steps": 1000,
        "weight_dtype": "float32",
        "train_batch_size": 2,
        "cache_vae_outputs": True,
        "cache_text_encoder_outputs": True,
        "log_every_n_steps": 1,
        "optimizer": {"optimizer_type": "AdamW", "learning_rate": 1e-3},
        "data_loader": {
            "type": "IMAGE_CAPTION_SD_DATA_LOADER",
            "dataset": {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": str(jsonl)},
            "resolution": 64,
        },
        **values,
    }
    return config_from_values(settings, overrides)


def train(config: TrainConfig, poll: Callable[[], Command | None] = lambda: None) -> tuple[Run, list[Event], int]:
    """Train to the end: the run, its events and the exit status."""
    config, run = create_run(config)
    exit_code = train_run(config, run, poll)
    return run, read_journal(run.journal_path), exit_code


def train_well(config: TrainConfig, poll: Callable[[], Command | None] = lambda: None) -> tuple[Run, list[Event]]:
    run, events, exit_code = train(config, poll)
    assert exit_code == 0, run.log_path.read_text()
    return run, events


def prepared_trainer(config: TrainConfig) -> Trainer:
    """A Trainer just before its first step; to be closed."""
    config, run = create_run(config)
    trainer = Trainer(config, run, lambda event: None, Pulse(lambda event: None, lambda: None))
    trainer.prepare()
    return trainer


def of_kind(events: Iterable[Event], kind: type[Kind]) -> list[Kind]:
    return [event for event in events if isinstance(event, kind)]


def hash_tensors(tensors: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
