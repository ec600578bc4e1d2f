"""`tuitrain compare`: what it prints, writes, and ends with."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tuitrain.commands.program import app

QUICK = ("--steps", "1", "--size", "32")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["compare", *(str(argument) for argument in arguments)])


def test_pictures_are_drawn_and_their_distances_told(tiny_sdxl: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke(tiny_sdxl / "unet", "--base", tiny_sdxl, "--prompt", "a ball", "--out", out, *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("drew 2 pictures on ") and lines[0].endswith(str(out / "grid.png"))
    assert lines[1].split() == ["model", "to", "base", "to", "tiny_sdxl"]
    assert lines[3].split() == ["tiny_sdxl", "0.000", "(rms", "0.000)", "-"]
    assert (out / "grid.png").is_file()


def test_json_is_what_the_folder_says(tiny_sdxl: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke(
        tiny_sdxl / "unet", "--base", tiny_sdxl, "--prompt", "a", "--prompt", "b", "--negative-prompt", "c",
        "--num-images", "2", "--seed", "9", "--guidance-scale", "2.5", "--steps", "1", "--size", "32x40",
        "--device", "cpu", "--out", out, "--json",
    )  # fmt: skip
    described = json.loads(result.stdout)
    assert described == json.loads((out / "comparison.json").read_text())
    names = ("prompts", "negative_prompt", "seed", "num_images", "size_hw", "num_inference_steps", "guidance_scale")
    assert [described[name] for name in names] == [["a", "b"], "c", 9, 2, [32, 40], 1, 2.5]
    assert (described["device"], described["dtype"], len(described["pictures"])) == ("cpu", "float32", 8)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--prompt", "a"), "--out is missing"),
        (("--out", "out"), "there is no prompt"),
        (("--out", "out", "--prompt", "a", "--size", "big"), "--size is big"),
        (("--out", "out", "--prompt", "a", "--size", "1x2x3"), "--size is 1x2x3"),
        (("--out", "out", "--prompt", "a", "--size", "1023"), "1023x1023 pixels, they need multiples of 8"),
        (("--out", "out", "--prompt", "a", "--device", "tpu"), "--device is tpu"),
        (("--out", "out", "--prompt", "a", "--lora", "none.safetensors"), "there is no file none.safetensors"),
        (("--out", "taken", "--prompt", "a"), "taken exists already"),
    ],
)
def test_a_wrong_request_exits_2_with_its_reason(
    arguments: tuple[str, ...], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("checkpoint", "taken"):
        (tmp_path / name).mkdir()
    result = invoke("checkpoint", *arguments)
    assert (result.exit_code, reason in result.stderr) == (2, True), result.output
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_lora_exits_2(tiny_sdxl: Path, tmp_path: Path) -> None:
    other = tiny_sdxl / "vae" / "diffusion_pytorch_model.safetensors"
    result = invoke(
        tiny_sdxl / "unet", "--base", tiny_sdxl, "--prompt", "a", "--lora", other, "--out", tmp_path / "out", *QUICK
    )
    assert (result.exit_code, "is no LoRA" in result.stderr) == (2, True), result.output


def test_a_missing_checkpoint_is_told_before_any_library_is_loaded(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom tuitrain.cli import main\n"
        "try:\n    main()\nexcept SystemExit as ending:\n    code = ending.code\n"
        "print(code, *({'torch', 'diffusers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, "compare", str(tmp_path / "none"), "--prompt", "a", "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "2\n"
    assert "there is no folder" in done.stderr


def test_ctrl_c_ends_with_130_and_leaves_nothing(tiny_sdxl: Path, tmp_path: Path) -> None:
    program = "from tuitrain.cli import main; main()"
    arguments = [str(tiny_sdxl / "unet"), "--base", str(tiny_sdxl), "--prompt", "a", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", program, "compare", *arguments, "--steps", "999"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    mapped_files = Path(f"/proc/{process.pid}/maps")
    deadline = time.monotonic() + 100
    while process.poll() is None and str(tiny_sdxl / "unet") not in mapped_files.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)
    assert (process.returncode, *output) == (130, "", "")
    assert list(tmp_path.iterdir()) == []
