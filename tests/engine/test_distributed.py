"""Two processes with gloo, started as accelerate starts them."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.engine.harness import of_kind, small_config, write_pictures
from tuitrain.config.files import config_to_yaml
from tuitrain.runs import events
from tuitrain.runs.checkpoints import list_checkpoints
from tuitrain.runs.control import Command, send_command
from tuitrain.runs.journal import read_journal
from tuitrain.runs.run import find_runs

TRAIN = ["-m", "tuitrain", "train"]
TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def weights_and_losses(tmp_path: Path, name: str, launcher: list[str], config: str) -> tuple[dict, list[float]]:
    path = tmp_path / f"{name}.yaml"
    path.write_text(config)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *launcher, *TRAIN, str(path)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    (run,) = find_runs(tmp_path / name)
    journal = read_journal(run.journal_path)
    assert of_kind(journal, events.RunStarted)[0].world_size == (2 if launcher else 1)
    assert len(of_kind(journal, events.RunFinished)) == 1
    (checkpoint,) = list_checkpoints(run.checkpoints_dir)
    weights = load_file(checkpoint.path / "unet" / "diffusion_pytorch_model.safetensors")
    return weights, [event.loss for event in of_kind(journal, events.StepLogged)]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_both_ranks_and_names_the_pictures_of_both(
    tmp_path: Path, tiny_sdxl: Path
) -> None:
    jsonl = write_pictures(tmp_path / "pictures", 2)
    model = shutil.copytree(tiny_sdxl, tmp_path / "model")
    weights_path = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(weights_path)
    weights["conv_out.weight"] *= 1e25  # finite, and its square is not
    save_file(weights, weights_path, metadata={"format": "pt"})
    config = small_config(tmp_path, model, jsonl, train_batch_size=1)
    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(config))
    result = subprocess.run(
        [sys.executable, *TWO_PROCESSES, *TRAIN, str(path)],
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
    )
    assert result.returncode != 0
    (run,) = find_runs(Path(config.base_output_dir))
    (failure,) = of_kind(read_journal(run.journal_path), events.RunFailed)
    assert "the weights were not touched by it" in failure.what
    assert "0.png" in failure.where
    assert "1.png" in failure.where


@pytest.mark.slow
def test_two_ranks_with_batch_b_train_the_weights_of_one_rank_with_batch_2b(tmp_path: Path, tiny_sdxl: Path) -> None:
    jsonl = write_pictures(tmp_path / "pictures", 5)  # the last batch leaves one rank without a picture
    results = []
    for name, launcher, batch_size in (("one", [], 2), ("two", TWO_PROCESSES, 1)):
        config = small_config(
            tmp_path,
            tiny_sdxl,
            jsonl,
            "gradient_accumulation_steps=2",
            base_output_dir=str(tmp_path / name),
            train_batch_size=batch_size,
            save_dtype="float32",
            optimizer={"optimizer_type": "AdamW", "learning_rate": 1e-4},
        )
        results.append(weights_and_losses(tmp_path, name, launcher, config_to_yaml(config)))
    (one, one_losses), (two, two_losses) = results
    assert two_losses == pytest.approx(one_losses, rel=1e-4)
    for key, tensor in one.items():
        # 4 steps of 1e-4: rounding differs where gradients are near zero, which Adam divides by themselves
        assert (tensor - two[key]).abs().max().item() < 5e-5, key


@pytest.mark.slow
def test_a_full_disk_pauses_both_ranks_and_they_go_on_together_when_there_is_room(
    tmp_path: Path, tiny_sdxl: Path
) -> None:
    jsonl = write_pictures(tmp_path / "pictures", 5)
    config = small_config(tmp_path, tiny_sdxl, jsonl, "save_every_n_steps=2", max_train_steps=20, train_batch_size=1)
    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(config))
    process = subprocess.Popen(
        [sys.executable, *TWO_PROCESSES, *TRAIN, str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "stderr").open("wb"),
        start_new_session=True,
    )

    def wait_for(kind: type[events.Event]) -> events.Event:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            for run in find_runs(Path(config.base_output_dir)):
                if found := of_kind(read_journal(run.journal_path), kind):
                    return found[0]
            time.sleep(0.05)
        raise AssertionError(f"no {kind.__name__}")

    try:
        start = wait_for(events.StepLogged) and wait_for(events.RunStarted)
        limit, hard = resource.prlimit(start.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(start.pid, resource.RLIMIT_FSIZE, (100_000, hard))
        wait_for(events.Paused)
        (run,) = find_runs(Path(config.base_output_dir))
        step_at_pause = len(of_kind(read_journal(run.journal_path), events.StepLogged))
        time.sleep(1.0)  # in which a rank that does not wait would have gone on
        assert len(of_kind(read_journal(run.journal_path), events.StepLogged)) <= step_at_pause + 1
        resource.prlimit(start.pid, resource.RLIMIT_FSIZE, (limit, hard))
        send_command(run.control_dir, Command.RESUME)
        process.wait(240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, (tmp_path / "stderr").read_text()
    journal = read_journal(run.journal_path)
    assert of_kind(journal, events.RunFinished)[0].step == 20
    saved = [event.step for event in of_kind(journal, events.CheckpointSaved)]
    assert saved == list(range(2, 21, 2))
