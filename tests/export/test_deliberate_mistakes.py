"""Mistakes that other tools make and that the tests of the usual cases would let through."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.engine.model_variants import copy_model
from tuitrain.commands.program import app
from tuitrain.export.package import package_folder


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_a_text_encoder_keeps_what_loading_and_saving_it_would_drop(
    part: str, half_sdxl: Path, trained: Path, tmp_path: Path
) -> None:
    """Position ids and metadata, as files on the Hub have them; without, a file that was saved again is the same."""
    base = copy_model(half_sdxl, tmp_path / "base")
    path = base / part / "model.safetensors"
    tensors = {**load_file(path), "text_model.embeddings.position_ids": torch.arange(77).unsqueeze(0)}
    save_file(tensors, path, metadata={"format": "pt", "made by": "somebody"})
    package_folder(trained / "unet", tmp_path / "out", base=str(base))
    assert (tmp_path / "out" / part / "model.safetensors").read_bytes() == path.read_bytes()


def test_the_command_writes_float16_unless_it_is_told_otherwise(half_sdxl: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "lora.safetensors"
    arguments = ["extract-lora", trained / "unet", "--base", half_sdxl, "--out", out, "--rank", "2"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert {tensor.dtype for tensor in load_file(out).values()} == {torch.float16}
