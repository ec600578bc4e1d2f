"""Every way in which a base model may be stored, made from one folder; knows nothing of exports."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from tests.engine.model_variants import (
    copy_model,
    publish_to_hub_cache,
    rename_to_fp16,
    shard_unet,
    write_single_file,
)

Store = Callable[[Path, Path, pytest.MonkeyPatch], str]


def in_hub_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return publish_to_hub_cache(folder, cache, "someone/tiny-sdxl")


STORED: dict[str, Store] = {
    "folder": lambda base, tmp_path, _: str(base),
    "fp16": lambda base, tmp_path, _: str(rename_to_fp16(copy_model(base, tmp_path / "fp16"))),
    "sharded": lambda base, tmp_path, _: str(shard_unet(copy_model(base, tmp_path / "sharded"))),
    "sharded fp16": lambda base, tmp_path, _: str(
        shard_unet(copy_model(base, tmp_path / "sharded"), variant="fp16"),
    ),
    "Hub": in_hub_cache,
    "Hub fp16": lambda base, tmp_path, monkeypatch: in_hub_cache(
        rename_to_fp16(copy_model(base, tmp_path / "fp16")), tmp_path, monkeypatch
    ),
    "single file": lambda base, tmp_path, _: str(write_single_file(base, tmp_path / "model.safetensors")),
}
"""(folder, tmp_path, monkeypatch) -> what the user names it by."""


def settings_of(stored: str, folder: Path) -> dict[str, str]:
    """What a run's config says beside the base's name."""
    return {"model_config_dir": str(folder)} if stored == "single file" else {}
