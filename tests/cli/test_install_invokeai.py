"""`tuitrain install-invokeai`: what it prints and what it ends with."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.export.invokeai_server import JOB, completed, job, serve_invokeai, write_lora
from tuitrain.commands.program import app
from tuitrain.export.invokeai import LOCAL_URL


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return write_lora(tmp_path / "robocats.safetensors")


def test_the_model_is_told(lora: Path) -> None:
    with serve_invokeai(job("waiting"), job("running"), completed()) as invokeai:
        result = CliRunner().invoke(app, ["install-invokeai", str(lora), "--url", invokeai.url])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "InvokeAI 6.14.2 has robocats: lora, sdxl, lycoris",
        f"key k-1; it stays in {lora}, do not move it",
    ]
    assert result.stderr.splitlines() == ["InvokeAI: waiting", "InvokeAI: running", "InvokeAI: completed"]


def test_json_is_one_object_and_nothing_else(lora: Path) -> None:
    with serve_invokeai(job("running"), completed()) as invokeai:
        arguments = ["install-invokeai", str(lora), "--url", invokeai.url, "--name", "Robo", "--json"]
        result = CliRunner().invoke(app, arguments)
        assert invokeai.asked[1][3] == {"name": "Robo"}
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert facts["key"] == "k-1"
    assert (facts["type"], facts["base"], facts["path"]) == ("lora", "sdxl", str(lora))


def test_what_fails_there_is_exit_status_1_and_what_is_wrong_here_2(lora: Path, tmp_path: Path) -> None:
    with serve_invokeai(job("error", error_reason="OSError", error="disk \x1b[2J full")) as invokeai:
        failed = CliRunner().invoke(app, ["install-invokeai", str(lora), "--url", invokeai.url])
        wrong = CliRunner().invoke(app, ["install-invokeai", str(tmp_path / "missing"), "--url", invokeai.url])
        late = CliRunner().invoke(app, ["install-invokeai", str(lora), "--url", invokeai.url, "--timeout", "0"])
    assert (failed.exit_code, wrong.exit_code, late.exit_code) == (1, 2, 2)
    assert r"disk \x1b[2J full (OSError)" in failed.stderr
    assert "there is no" in wrong.stderr and "timeout" in late.stderr


def test_ctrl_c_asks_invokeai_to_cancel_and_says_so(lora: Path) -> None:
    with serve_invokeai(job("running")) as invokeai:
        command = [sys.executable, "-m", "tuitrain.cli", "install-invokeai", str(lora), "--url", invokeai.url]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while ("GET", JOB) not in invokeai.places and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert invokeai.places[-1] == ("DELETE", JOB)
    assert (process.returncode, stdout) == (130, "")
    assert "InvokeAI was asked to cancel" in stderr and "Traceback" not in stderr


def test_the_help_names_the_address_that_is_asked_by_default() -> None:
    assert LOCAL_URL in CliRunner().invoke(app, ["install-invokeai", "--help"]).stdout
