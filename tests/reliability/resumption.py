"""Runs that are interrupted and resumed, and what must be equal afterwards; in processes of their own, many of them."""

import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tests.engine.harness import of_kind, small_config, train, train_well
from tuitrain.config.schema import TrainConfig
from tuitrain.data.loader import Batch
from tuitrain.engine.launch import create_run, resume_run, train_run
from tuitrain.engine.trainer import Trainer
from tuitrain.runs import events
from tuitrain.runs.checkpoints import list_checkpoints
from tuitrain.runs.journal import read_journal
from tuitrain.runs.run import Run
from tuitrain.runs.states import list_states, read_state

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {"optimizer_type": "AdamW", "learning_rate": 1e-3},
    "AdamW8bit": {"optimizer_type": "AdamW", "learning_rate": 1e-3, "use_8bit": True},
    "Adafactor": {"optimizer_type": "Adafactor", "learning_rate": 1e-2},
    "Prodigy": {"optimizer_type": "Prodigy", "weight_decay": 0.01, "use_bias_correction": True},
}
_HAS_ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT
BUCKETS = {"target_resolution": 32, "start_dim": 16, "end_dim": 48, "divisible_by": 8}
NUM_EPOCHS = 2


@dataclass(frozen=True)
class Setup:
    """What is trained."""

    optimizer: str = "AdamW"
    dtype: str = "float32"
    accumulation: int = 1
    buckets: bool = False
    dropout: bool = False
    ema: bool = False
    save_dtype: str = "float16"

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in asdict(self).values())

    def config(self, folder: Path, model: Path, jsonl: Path, *overrides: str) -> TrainConfig:
        """Two epochs of seven pictures, a cosine over all of it."""
        config = small_config(
            folder,
            model,
            jsonl,
            "data_loader.resolution=32",
            f"data_loader.aspect_ratio_buckets={json.dumps(BUCKETS) if self.buckets else 'null'}",
            *overrides,
            max_train_steps=None,
            max_train_epochs=NUM_EPOCHS,
            weight_dtype=self.dtype,
            gradient_accumulation_steps=self.accumulation,
            caption_dropout=0.5 if self.dropout else 0.0,
            ema_decay=0.9 if self.ema else None,
            lr_scheduler="cosine",
            max_grad_norm=1.0,
            save_dtype=self.save_dtype,
            optimizer=OPTIMIZERS[self.optimizer],
            cache_dir=str(folder.parent / "cache"),
        )
        return config


class Died(Exception):  # noqa: N818  what ends a process, not an error
    """Stands for what ends a run from outside."""


class DieAfterCheckpoint:
    """Ends the run when its checkpoint of a step stands, at the next chance; polled as commands are.

    Args:
        runs: the folder of the one run.
    """

    def __init__(self, runs: Path, step: int) -> None:
        self.runs = runs
        self.mark = f"step_{step:08d}"

    def __call__(self) -> None:
        if any(path.name.endswith(self.mark) for path in self.runs.glob("*/checkpoints/checkpoint-*")):
            raise Died


class DieAfterStep:
    """Ends a run when a step has got its pictures, at the next chance; polled as commands are.

    Args:
        run: its samples are recorded.
    """

    def __init__(self, run: Run, step: int) -> None:
        self.run = run
        self.step = step

    def __call__(self) -> None:
        if last_sampled_step(self.run) >= self.step:
            raise Died


def last_sampled_step(run: Run) -> int:
    """The step that got its pictures last, of this session or one before; -1 for none."""
    lines = read_samples(run)
    return lines[-1]["step"] if lines else -1


def read_samples(run: Run) -> list[dict[str, Any]]:
    path = run.path / "samples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def samples_recorded() -> Iterator[None]:
    """Write which pictures each step trains to samples.jsonl in the run's folder."""
    next_micro_batches = Trainer.next_micro_batches

    def recording(self: Trainer, steps: Iterator[list[Batch]]) -> list[Batch]:
        micro_batches = next_micro_batches(self, steps)
        ids = [batch["image_ids"] for batch in micro_batches]
        drops = [batch["drop_caption"] for batch in micro_batches]
        with (self.run.path / "samples.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, "ids": ids, "drops": drops}) + "\n")
        return micro_batches

    Trainer.next_micro_batches = recording  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.next_micro_batches = next_micro_batches  # type: ignore[method-assign]


def resume(run: Run, checkpoint: Path | None = None, *overrides: str, accept_changes: bool = False) -> int:
    config, point = resume_run(run, checkpoint, overrides, accept_changes=accept_changes)
    return train_run(config, run, lambda: None, resume=point)


def resume_well(run: Run, checkpoint: Path | None = None, *overrides: str, accept_changes: bool = False) -> None:
    assert resume(run, checkpoint, *overrides, accept_changes=accept_changes) == 0, run.log_path.read_text()


def die_and_resume(config: TrainConfig, *, step: int) -> Run:
    """Train until the checkpoint of `step` stands, die, and train the rest with a new trainer."""
    run, _, exit_code = train(config, DieAfterCheckpoint(Path(config.base_output_dir), step))
    assert exit_code == 1
    resume_well(run)
    return run


def outcome(run: Run) -> dict[str, Any]:
    """All that must be equal: bytes of weights, average and optimizer, position, losses, rates, order of samples."""
    checkpoint = list_checkpoints(run.checkpoints_dir)[-1]
    state = read_state(checkpoint.path)
    journal = read_journal(run.journal_path)
    logged = of_kind(journal, events.StepLogged)
    samples = read_samples(run)
    return {
        "step": state.step,
        "files": {file.path: file.sha256 for file in (*state.files, *checkpoint.manifest.files)},
        "optimizer": (state.optimizer_scalars, state.optimizer_progress, state.scaler),
        "position": (state.epoch, state.loader, state.sampled_step),
        "faults": (state.pictures_per_pass, state.num_skipped),
        "meter": (state.meter.loss_sum, state.meter.num_steps, state.meter.num_images),
        "losses": [(event.step, event.loss, event.grad_norm) for event in logged],
        "rates": [(event.step, event.lr, event.d) for event in logged],
        "epochs": [(event.step, event.epoch) for event in of_kind(journal, events.EpochFinished)],
        "samples": sorted({sample["step"]: (sample["ids"], sample["drops"]) for sample in samples}.items()),
    }


def differences(run: Run, reference: Run) -> list[str]:
    """The names of what is not equal."""
    ours, theirs = outcome(run), outcome(reference)
    return [name for name in theirs if ours[name] != theirs[name]]


# ------------------------------------------------------------------------------------------------------- kill -9, slow


def kill_and_resume(folder: Path, model: Path, jsonl: Path, num_seeds: int) -> dict[int, list[str]]:
    """Kill a run at a random moment and resume it, once for each seed; gives what differs from the uninterrupted run.

    Every training is a fork of this process, which has imported the libraries and computed nothing.
    """
    setup, length = Setup("AdamW", "bfloat16", buckets=True, dropout=True, ema=True), "max_train_epochs=4"

    def start(config: TrainConfig) -> tuple[int, Run]:
        config, run = create_run(config)
        return _fork(lambda: train_run(config, run, lambda: None)), run

    child, reference = start(setup.config(folder / "reference", model, jsonl, length))
    assert os.waitpid(child, 0)[1] == 0
    found = {}
    for seed in range(num_seeds):
        draw = random.Random(seed)
        child, run = start(setup.config(folder / "killed", model, jsonl, length, "save_every_n_steps=2"))
        step = draw.randint(3, 9)
        while os.waitid(os.P_PID, child, _HAS_ENDED) is None:
            if last_sampled_step(run) >= step and list_states(run.checkpoints_dir):  # there is one to go on from
                break
            time.sleep(0.002)
        time.sleep(draw.uniform(0.0, 0.1))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        _, status = os.waitpid(_fork(lambda run=run: resume(run)), 0)  # type: ignore[misc]
        found[seed] = ["exit code"] if status else differences(run, reference)
        shutil.rmtree(run.path)
    return found


def _fork(work: Callable[[], int]) -> int:
    if child := os.fork():
        return child
    os._exit(work())


# ---------------------------------------------------------------------------------------------- the full matrix, slow


def train_first_parts(folder: Path, model: Path, jsonl: Path, optimizer: str, dtype: str) -> None:
    """Uninterrupted runs, and for each cell a run that died.

    The cells: accumulation {1, 3}, buckets, caption dropout, workers {0, 2}, died {in an epoch, at its end}; with an
    average of the weights in half of them.
    """
    for accumulation, buckets, dropout in product((1, 3), (False, True), (False, True)):
        setup = Setup(optimizer, dtype, accumulation, buckets, dropout, ema=buckets != dropout)
        reference, journal = train_well(setup.config(folder / "reference", model, jsonl))
        steps_per_epoch = of_kind(journal, events.DatasetScanned)[0].steps_per_epoch
        (folder / f"{setup.name}.json").write_text(json.dumps(outcome(reference)))
        for workers, (place, step) in product((0, 2), (("middle", steps_per_epoch // 2), ("end", steps_per_epoch))):
            overrides = (f"save_every_n_steps={step}", f"data_loader.dataloader_num_workers={workers}")
            config = setup.config(folder / "died", model, jsonl, *overrides)
            run, _, exit_code = train(config, DieAfterCheckpoint(Path(config.base_output_dir), step))
            assert exit_code == 1
            run.path.rename(folder / f"{setup.name}-{workers}-{place}")


def train_second_parts(folder: Path) -> None:
    """Resume what died; adds a line to cells.jsonl for each cell: its name, and the names of what differs."""
    for journal in sorted(folder.glob("*/journal.jsonl")):
        run = Run.open(journal.parent)
        setup_name, _workers, _place = run.path.name.rsplit("-", 2)
        wanted = json.loads((folder / f"{setup_name}.json").read_text())
        exit_code = resume(run)
        found = json.loads(json.dumps(outcome(run)))
        differing = [name for name in wanted if wanted[name] != found[name]] + ["exit code"] * exit_code
        with (folder / "cells.jsonl").open("a") as file:
            file.write(json.dumps([run.path.name, differing]) + "\n")
        shutil.rmtree(run.path)


def in_new_process(*arguments: object) -> None:
    """Call `main` with `arguments` in a new process, whose data workers import no more than they need."""
    program = "from tests.reliability.resumption import main; main()"
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True)


def main() -> None:
    """What the arguments of the process name: "first", "second" or "kill", and the arguments of that."""
    gc.freeze()  # each training collects garbage at its end, for 0.3 s where the libraries are looked through
    with samples_recorded():
        match sys.argv[1:]:
            case ["first", folder, model, jsonl, optimizer, dtype]:
                train_first_parts(Path(folder), Path(model), Path(jsonl), optimizer, dtype)
            case ["second", folder]:
                train_second_parts(Path(folder))
            case ["kill", folder, model, jsonl, num_seeds]:
                found = kill_and_resume(Path(folder), Path(model), Path(jsonl), int(num_seeds))
                (Path(folder) / "differences.json").write_text(json.dumps(found))
