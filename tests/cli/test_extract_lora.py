"""`tuitrain extract-lora`: what it prints, writes, and ends with."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from tuitrain.commands.program import app


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["extract-lora", *(str(argument) for argument in arguments)])


@pytest.fixture
def unet(tiny_sdxl: Path, tmp_path: Path) -> Path:
    """A UNet whose matrices were all changed a little."""
    shutil.copytree(tiny_sdxl / "unet", tmp_path / "trained")
    weights = tmp_path / "trained" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    return tmp_path / "trained"


def test_a_lora_is_written_and_described(unet: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    result = invoke(unet, "--base", tiny_sdxl, "--out", tmp_path / "a.safetensors", "--rank", "4")
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path / 'a.safetensors'}" in result.stdout
    assert "3x3 convolutions" in result.stdout and "rank 128" in result.stdout
    assert (tmp_path / "a.safetensors").is_file() and (tmp_path / "a.report.json").is_file()
    assert "(calculated on cpu)" in result.stdout or torch.cuda.is_available()


def test_the_output_ends_with_how_the_lora_is_used(unet: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    lora = tmp_path / "a b.safetensors"
    result = invoke(unet, "--base", tiny_sdxl, "--out", lora, "--rank", "4")
    assert f"InvokeAI: tuitrain install-invokeai '{lora}'" in result.stdout
    assert result.stdout.splitlines()[-1].strip() == (
        f'pipeline.load_lora_weights("{tmp_path}", weight_name="a b.safetensors")'
    )


def test_extras_that_several_ranks_share_are_told_once(unet: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    result = invoke(unet, "--base", tiny_sdxl, "--out", tmp_path / "a.safetensors", "--rank", "2,8", "--with-extras")
    assert result.stdout.count("for ComfyUI alone") == 1


def test_json_holds_a_report_for_each_rank(unet: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    result = invoke(unet, "--base", tiny_sdxl, "--out", tmp_path / "a.safetensors", "--rank", "2,8", "--json")
    low, high = json.loads(result.stdout)
    assert [Path(low["file"]).name, Path(high["file"]).name] == ["a-rank2.safetensors", "a-rank8.safetensors"]
    assert 0 < low["energy_kept"] < high["energy_kept"] < 1
    assert low["change"]["relative_change"] == pytest.approx(0.01, rel=1e-3)


def test_a_report_alone_writes_nothing(unet: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = invoke(unet, "--base", tiny_sdxl, "--report-only", "--json")
    choices = {choice["choice"]: choice["energy_kept"] for choice in json.loads(result.stdout)["choices"]}
    assert choices["energy 0.9"] == pytest.approx(0.9, abs=0.01)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("size", ["0.2MB", "200kB", "195.3125 KiB", "200000"])
def test_sizes_have_units(unet: Path, tiny_sdxl: Path, tmp_path: Path, size: str) -> None:
    result = invoke(unet, "--base", tiny_sdxl, "--out", tmp_path / "a.safetensors", "--max-size", size, "--json")
    assert json.loads(result.stdout)[0]["choice"] == "at most 200,000 bytes"
    assert (tmp_path / "a.safetensors").stat().st_size <= 200_000


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "--out is missing"),
        (("--out", "a.safetensors", "--rank", "four"), "rank is four"),
        (("--out", "a.safetensors", "--rank", "4,4"), "twice"),
        (("--out", "a.safetensors", "--rank", "4", "--energy", "0.9"), "budget"),
        (("--out", "a.safetensors", "--max-size", "big"), "size is big"),
        (("--out", "a.safetensors", "--dtype", "float8"), "--dtype is float8"),
        (("--out", "a.safetensors"), "there is no folder"),
        (("--out", "a.safetensors", "--rank", "0"), "at least 1"),
    ],
)
def test_a_wrong_request_exits_2_with_its_reason(arguments: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    result = invoke(tmp_path / "missing", *arguments)
    assert (result.exit_code, reason in result.stderr) == (2, True), result.output
