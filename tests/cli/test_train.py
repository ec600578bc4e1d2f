"""`tuitrain train` and `demo`, for real: on the tiny SDXL, and in processes of their own where signals matter."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tuitrain.commands.program import app
from tuitrain.runs.checkpoints import list_checkpoints
from tuitrain.runs.run import Run, find_runs


@pytest.fixture
def config(tiny_sdxl: Path, tmp_path: Path) -> Path:
    """Ten steps on four pictures, a checkpoint after five."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(4):
        Image.new("RGB", (32, 32), (60 * index, 0, 0)).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(f"a red picture {index}")
    path = tmp_path / "config.yaml"
    path.write_text(
        f"""\
type: SDXL_FINETUNE
seed: 1
base_output_dir: {tmp_path / "runs"}
model: {tiny_sdxl}
weight_dtype: float32
max_train_steps: 10
save_every_n_steps: 5
log_every_n_steps: 5
train_batch_size: 2
cache_vae_outputs: true
cache_text_encoder_outputs: true
data_loader:
  type: IMAGE_CAPTION_SD_DATA_LOADER
  resolution: 32
  dataset:
    type: IMAGE_CAPTION_DIR_DATASET
    dataset_dir: {pictures}
"""
    )
    return path


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def only_run(tmp_path: Path) -> Run:
    (run,) = find_runs(tmp_path / "runs")
    return run


def test_json_output_is_the_journal_and_then_the_outcome(config: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", str(config), "--json"])
    assert result.exit_code == 0, result.stdout
    *events, outcome = json_lines(result.stdout)
    run = only_run(tmp_path)
    assert outcome == {"run": str(run.path), "state": "finished", "exit_code": 0}
    assert events == json_lines(run.journal_path.read_text())
    assert [event["step"] for event in events if event["kind"] == "StepLogged"] == [5, 10]
    assert [checkpoint.manifest.step for checkpoint in list_checkpoints(run.checkpoints_dir)] == [5, 10]


def test_a_run_writes_down_the_seed_it_drew(config: Path, tmp_path: Path) -> None:
    options = ["--set", "seed=null", "--set", "max_train_steps=1", "--json"]
    result = CliRunner().invoke(app, ["train", str(config), *options])
    (started,) = [event for event in json_lines(result.stdout) if event.get("kind") == "RunStarted"]
    assert json.loads((only_run(tmp_path).path / "config.json").read_text())["seed"] == started["seed"]


def test_bad_pictures_are_told_in_words_with_exit_2(config: Path, tmp_path: Path) -> None:
    for index in (1, 2):
        (tmp_path / "pictures" / f"{index}.png").write_bytes(b"not a picture")
    result = CliRunner().invoke(app, ["train", str(config)])
    assert result.exit_code == 2
    assert "1.png" in result.stderr
    assert "2.png" in result.stderr
    assert "Traceback" not in result.stderr
    assert str(only_run(tmp_path).log_path) in result.stderr


def test_debug_shows_the_traceback_of_a_failed_training(config: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "1.png").write_bytes(b"not a picture")
    result = CliRunner().invoke(app, ["train", str(config), "--debug"])
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


class Training:
    """`tuitrain train` in a process of its own, its standard output in pieces as it comes."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tuitrain", "train", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def lines(self) -> Iterator[str]:
        assert self.process.stdout is not None
        return iter(self.process.stdout)

    def wait_for(self, text: str) -> None:
        assert any(text in line for line in self.lines()), f"the process ended before it said {text}"

    def finish(self) -> tuple[int, str]:
        """Exit status and what was written since to standard output."""
        written, _ = self.process.communicate(timeout=120)
        return self.process.returncode, written


@pytest.fixture
def start(config: Path) -> Iterator[Any]:
    started: list[Training] = []

    def start_training(*options: str) -> Training:
        started.append(Training(str(config), *options))
        return started[-1]

    yield start_training
    for training in started:
        training.process.kill()
        training.process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_finishes_the_step_saves_and_exits_130(start: Any, number: signal.Signals, tmp_path: Path) -> None:
    training = start("--set", "max_train_steps=100000", "--set", "save_every_n_steps=100000", "--json")
    training.wait_for('"StepLogged"')
    training.process.send_signal(number)
    exit_code, written = training.finish()
    outcome = json.loads(written.splitlines()[-1])
    (checkpoint,) = list_checkpoints(only_run(tmp_path).checkpoints_dir)
    (finished,) = [event for event in json_lines(written) if event.get("kind") == "RunFinished"]
    assert exit_code == outcome["exit_code"] == 130
    assert outcome["state"] == "stopped"
    assert checkpoint.manifest.step == finished["step"] < 100_000


@pytest.mark.slow
def test_a_second_signal_leaves_at_once(start: Any, tmp_path: Path) -> None:
    training = start("--set", "max_train_steps=100000", "--set", "save_every_n_steps=100000")
    training.wait_for("step 5/")
    sent = time.monotonic()
    training.process.send_signal(signal.SIGINT)
    training.process.send_signal(signal.SIGTERM)
    exit_code, _ = training.finish()
    assert exit_code == 130
    assert time.monotonic() - sent < 5
    assert only_run(tmp_path).lock_holder() is None


@pytest.mark.slow
def test_training_goes_on_when_nobody_reads_its_output_any_more(start: Any, tmp_path: Path) -> None:
    training = start()
    training.wait_for("run ")
    assert training.process.stdout is not None
    training.process.stdout.close()
    assert training.process.wait(timeout=120) == 0
    assert [checkpoint.manifest.step for checkpoint in list_checkpoints(only_run(tmp_path).checkpoints_dir)] == [5, 10]


@pytest.mark.slow
def test_sighup_ends_no_training_and_a_file_goes_on_to_be_written(start: Any, tmp_path: Path) -> None:
    training = start("--json")
    training.wait_for('"StepLogged"')
    training.process.send_signal(signal.SIGHUP)
    exit_code, written = training.finish()
    assert exit_code == 0
    assert json.loads(written.splitlines()[-1])["state"] == "finished"


@pytest.mark.slow
def test_another_process_can_stop_a_run(start: Any, tmp_path: Path) -> None:
    training = start("--set", "max_train_steps=100000", "--json")
    training.wait_for('"StepLogged"')
    result = CliRunner().invoke(app, ["control", str(only_run(tmp_path).path), "stop"])
    assert result.exit_code == 0, result.stderr
    exit_code, written = training.finish()
    assert exit_code == 0
    assert json.loads(written.splitlines()[-1])["state"] == "stopped"


def test_the_demo_trains_and_is_listed_by_the_other_commands(tmp_path: Path) -> None:
    options = ["--dir", str(tmp_path / "demo"), "--headless", "--steps", "2", "--set", "validation_steps=1", "--json"]
    result = CliRunner().invoke(app, ["demo", *options])
    assert result.exit_code == 0, result.stdout
    run_path = json_lines(result.stdout)[-1]["run"]
    (listed,) = json.loads(CliRunner().invoke(app, ["runs", str(tmp_path / "demo"), "--json"]).stdout)
    assert (listed["path"], listed["state"], listed["step"]) == (run_path, "finished", 2)
    (checkpoint,) = json.loads(CliRunner().invoke(app, ["checkpoints", run_path, "--json"]).stdout)
    assert checkpoint["manifest"]["step"] == 2
