"""A tiny SDXL whose values float16 holds, and a UNet trained from it."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def half_sdxl(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SDXL in float32, every value one of float16, with a licence and what a package leaves out."""
    from tests.engine.model_variants import copy_model, round_to_half

    folder = round_to_half(copy_model(tiny_sdxl, tmp_path_factory.mktemp("half") / "base"))
    (folder / "LICENSE.md").write_text("Do what is right.\n")
    (folder / "README.md").write_text("# The base\n")
    (folder / "tokenizer" / "notes.txt").write_text("not needed\n")
    (folder / "unet" / "model.onnx").write_bytes(b"not needed")
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with only a UNet, in float32, that differs from every base in every weight."""
    from tests.tiny_sdxl import build_tiny_sdxl

    folder = build_tiny_sdxl(tmp_path_factory.mktemp("trained") / "model", seed=1)
    for name in ("vae", "text_encoder", "text_encoder_2"):
        shutil.rmtree(folder / name)
    return folder
