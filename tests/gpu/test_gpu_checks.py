"""The GPU script itself, as far as a machine without GPU can tell."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.gpu_checks import CHECKS, VARIANTS, Variant, main

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("is_tiny", [False, True])
def test_every_variant_is_a_config(variant: Variant, is_tiny: bool) -> None:
    config = variant.config(is_tiny=is_tiny)
    assert (config.data_loader.resolution_hw == (64, 64)) == is_tiny
    assert ("no-gc" in variant.name) != config.gradient_checkpointing
    if "-b" in variant.name:
        assert f"-b{config.train_batch_size}" in variant.name


def test_the_docs_name_every_variant_and_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs" / "gpu-checks.md").read_text(encoding="utf-8")
    assert main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [*(variant.name for variant in VARIANTS), *CHECKS]
    assert [name for name in listed if f"`{name}`" not in page] == []


@pytest.mark.slow  # a minute: five trainings, each in a process of its own
def test_the_whole_script_runs_on_the_tiny_model_without_a_gpu() -> None:
    command = [sys.executable, "-m", "tests.gpu.gpu_checks", "--tiny", "--steps", "4"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    verdicts = {line.split()[1].rstrip(":"): line.split()[0] for line in lines if line.startswith(("ok ", "skipped "))}
    assert verdicts.keys() == CHECKS.keys()
    assert {name for name, verdict in verdicts.items() if verdict == "skipped"} <= {"no-wait"}
    assert lines[-1] == "all well"
