"""Measures the memory and the speed of a config by training it for a few steps; knows no terminal.

Everything is real but the pictures and, unless one is given, the base model, whose numbers are random: neither memory
nor speed depends on them. The training is a process of its own, run by the ordinary command, so that its memory is
that of a fresh start. Imports no torch unless a random base model has to be written.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from tuitrain.config.files import config_from_values, config_to_yaml
from tuitrain.config.schema import ImageCaptionDataLoaderConfig, TrainConfig
from tuitrain.errors import ConfigError, Problem, TuitrainError
from tuitrain.gpu import read_gpus
from tuitrain.runs.events import Event, RunFailed, RunStarted, StepLogged
from tuitrain.runs.journal import read_journal
from tuitrain.runs.run import find_runs

NUM_WARM_UP_STEPS = 2
"""Steps left out of the speed: the first ones allocate memory and choose kernels."""

NUM_PICTURES = 4
POLL_SECONDS = 0.2
NEVER = 10**9

# As torch says it on a GPU, in a GPU library, and on a CPU.
_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
_KILLED = -9
_STDERR_TAIL = 400


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What a config needs, and how fast it trains.

    Args:
        config: its name.
        outcome: "fits", or "does not fit" when the training ran out of memory.
        reason: why it does not fit, else empty.
        device: the GPU's name, or "cpu".
        size_hw: of the pictures, pixels.
        images_per_step: batch size times accumulation steps.
        peak_gib: most memory that tensors took on the GPU; on a CPU the most RAM that the process took. None when it
            is not known.
        seconds_per_step: median of the steps after the first two; None when there are none.
        images_per_second: idem.
        losses: of every step.
        seconds: the whole training process, from its start to its end.
        versions: of the libraries.
    """

    config: str
    outcome: Literal["fits", "does not fit"]
    reason: str = ""
    device: str
    size_hw: tuple[int, int]
    images_per_step: int
    peak_gib: float | None
    seconds_per_step: float | None
    images_per_second: float | None
    losses: list[float]
    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Training:
    """A training process that has ended.

    Args:
        events: its run's journal; empty when it ended before it had a run.
        exit_code: its status; negative, the signal that killed it.
        peak_ram_gib: the most RAM it took.
        told: the problems it told where it had no journal, or the end of what it wrote to stderr.
        seconds: from its start to its end.
    """

    events: list[Event]
    exit_code: int
    peak_ram_gib: float
    told: list[Problem]
    seconds: float

    @property
    def problems(self) -> list[Problem]:
        """Why it failed; empty when it did not."""
        if self.exit_code == 0:
            return []
        failed = [Problem(event.what, event.hint, event.where) for event in self.events if isinstance(event, RunFailed)]
        return failed or self.told or [Problem(f"the training process ended with status {self.exit_code}")]

    @property
    def why_too_large(self) -> str:
        """What it says of the memory it lacked; empty when it lacked none."""
        if self.exit_code == _KILLED:
            return "the process was killed, as the kernel does when RAM runs out"
        text = "; ".join(problem.what for problem in self.problems)
        return text if any(words in text for words in _OUT_OF_MEMORY) else ""

    @property
    def failure(self) -> TuitrainError | None:
        """The error to raise, which keeps a wrong request apart from work that failed."""
        if not self.problems:
            return None
        kind = ConfigError if self.exit_code == ConfigError.exit_code else TuitrainError
        return kind.from_problems(self.problems)


def random_base_model(tell: Callable[[str], None]) -> Path:
    """The folder of a full-size SDXL of random numbers, written at the first call and kept in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "tuitrain" / "random-sdxl"
    if not (folder / "model_index.json").is_file():
        tell(f"writing a full-size SDXL of random numbers to {folder}, 6.5 GiB, kept for the next time")
        from tuitrain.engine.random_model import write_random_model  # 8 s: torch, diffusers and transformers

        write_random_model(folder)
    return folder


def bench(
    config: TrainConfig, *, name: str, num_steps: int, model: Path | None, tell: Callable[[str], None]
) -> BenchResult:
    """Train `config` for `num_steps` steps on synthetic pictures and measure.

    Args:
        config: model, pictures, length, samples and checkpoints are replaced, all else is measured as it stands.
        name: of the config, for the result.
        model: the base model's folder or file; None is a full-size SDXL of random numbers.
        tell: takes a sentence about what begins.

    Raises:
        TuitrainError: the training failed for another reason than memory; its run is kept.
    """
    if num_steps <= NUM_WARM_UP_STEPS:
        raise ConfigError(
            f"{num_steps} steps are too few: the first {NUM_WARM_UP_STEPS} are not measured",
            hint=f"give --steps {NUM_WARM_UP_STEPS + 10}",
        )
    if model is None and not read_gpus():
        tell("there is no GPU: a step of full-size SDXL takes a CPU minutes and 14 GiB of RAM or more; Ctrl-C ends it")
    base = random_base_model(tell) if model is None else model
    folder = Path(tempfile.mkdtemp(prefix="tuitrain-bench-"))
    with ExitStack() as leaving:
        leaving.callback(shutil.rmtree, folder, ignore_errors=True)
        prepared = bench_config(config, model=base, folder=folder, num_steps=num_steps)
        write_pictures(prepared, folder / "pictures", num_steps=num_steps)
        tell(f"{name}: training {num_steps} steps")
        training = run_training(prepared, folder)
        failure = training.failure
        if failure is not None and not training.why_too_large:
            if training.events:
                leaving.pop_all()
                tell(f"the run is kept, with its log, in {folder}")
            raise failure
    return _result(name, prepared, training)


def bench_config(config: TrainConfig, *, model: Path, folder: Path, num_steps: int) -> TrainConfig:
    """`config` for `num_steps` steps on the pictures of `write_pictures`, without samples and checkpoints."""
    values = config.model_dump(mode="json")
    of_both_loaders = ImageCaptionDataLoaderConfig.model_fields.keys() - {"dataset"}
    loader = {key: value for key, value in values["data_loader"].items() if key in of_both_loaders}
    jsonl = folder / "pictures" / "metadata.jsonl"
    return config_from_values(
        values
        | {
            "seed": config.seed or 1,
            "base_output_dir": str(folder / "runs"),
            "cache_dir": None,
            "model": str(model.absolute()),
            "hf_variant": None,
            "vae_model": None,
            "model_config_dir": None,
            "data_loader": loader
            | {
                "type": "IMAGE_CAPTION_SD_DATA_LOADER",
                "dataset": {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": str(jsonl)},
            },
            "use_masks": False,
            "max_train_steps": num_steps,
            "max_train_epochs": None,
            "log_every_n_steps": 1,
            "validation_prompts": [],
            "negative_validation_prompts": None,
            "validate_at_start": False,
            "save_every_n_steps": NEVER,
            "save_every_n_epochs": None,
            "save_at_end": False,
            "on_oom": "stop",  # whether it fits as it stands is what is asked
        },
        where="the settings to measure",
    )


def picture_size_hw(config: TrainConfig) -> tuple[int, int]:
    """The size at which `write_pictures` draws, which is the size they are trained at."""
    buckets = config.data_loader.aspect_ratio_buckets
    return (buckets.target_resolution,) * 2 if buckets else config.data_loader.resolution_hw


def write_pictures(config: TrainConfig, folder: Path, *, num_steps: int) -> None:
    """A few pictures with captions, listed so often that an epoch is `num_steps` steps of full batches."""
    folder.mkdir()
    height, width = picture_size_hw(config)
    rng = np.random.default_rng(0)
    for index in range(NUM_PICTURES):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg")
    lines = [
        json.dumps({"image": f"{index % NUM_PICTURES}.jpg", "text": f"coloured clouds, number {index % NUM_PICTURES}"})
        for index in range(_images_per_step(config) * num_steps)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_training(config: TrainConfig, folder: Path) -> Training:
    """Train `config`, whose base_output_dir is in `folder`, by `tuitrain train` in a process of its own."""
    config_path = folder / "config.yaml"
    config_path.write_text(config_to_yaml(config), encoding="utf-8")
    out_path, err_path = folder / "stdout.txt", folder / "stderr.txt"
    command = [sys.executable, "-m", "tuitrain", "train", str(config_path), "--json"]
    started = time.monotonic()
    with (
        out_path.open("wb") as out,
        err_path.open("wb") as err,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err) as process,
    ):
        try:
            peak_ram_gib = _wait(process)
        except BaseException:  # Ctrl-C above all: what it trains is worth nothing
            process.kill()
            raise
    runs = find_runs(Path(config.base_output_dir)) if Path(config.base_output_dir).is_dir() else []
    return Training(
        events=read_journal(runs[0].journal_path) if runs else [],
        exit_code=process.returncode,
        peak_ram_gib=peak_ram_gib,
        told=_told_problems(out_path, err_path),
        seconds=time.monotonic() - started,
    )


def _wait(process: subprocess.Popen[bytes]) -> float:
    """Wait for the end; the most RAM it took, GiB."""
    peak = 0.0
    while True:
        peak = max(peak, _peak_ram_gib(process.pid))
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return peak


def _peak_ram_gib(pid: int) -> float:
    """The kernel's own maximum since the process began; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) / 2**20 if found else 0.0


def _told_problems(out_path: Path, err_path: Path) -> list[Problem]:
    """What `tuitrain train --json` wrote when it could not even start a run."""
    lines = out_path.read_text(encoding="utf-8", errors="replace").splitlines()
    if lines and lines[-1].startswith('{"errors"'):
        return [Problem(**problem) for problem in json.loads(lines[-1])["errors"]]
    told = err_path.read_text(encoding="utf-8", errors="replace").strip()
    return [Problem(f"the training process failed: {told[-_STDERR_TAIL:]}")] if told else []


def _images_per_step(config: TrainConfig) -> int:
    return config.train_batch_size * config.gradient_accumulation_steps


def _result(name: str, config: TrainConfig, training: Training) -> BenchResult:
    started = next((event for event in training.events if isinstance(event, RunStarted)), None)
    steps = [event for event in training.events if isinstance(event, StepLogged)]
    measured = steps[NUM_WARM_UP_STEPS:]
    device = started.device if started else "unknown"
    gpu_peaks = [step.peak_memory_gib for step in steps if step.peak_memory_gib is not None]
    why_too_large = training.why_too_large
    return BenchResult(
        config=name,
        outcome="does not fit" if why_too_large else "fits",
        reason=why_too_large,
        device=device,
        size_hw=picture_size_hw(config),
        images_per_step=_images_per_step(config),
        peak_gib=training.peak_ram_gib if device == "cpu" else max(gpu_peaks, default=None),
        seconds_per_step=statistics.median(step.seconds_per_step for step in measured) if measured else None,
        images_per_second=statistics.median(step.images_per_second for step in measured) if measured else None,
        losses=[step.loss for step in steps],
        seconds=training.seconds,
        versions=started.versions if started else {},
    )


def result_row(result: BenchResult) -> dict[str, str]:
    """`result` as the cells of a table, by column."""
    height, width = result.size_hw
    return {
        "config": result.config,
        "pixels": f"{height}x{width}",
        "images/step": str(result.images_per_step),
        "peak GiB": _figure(result.peak_gib, "{:.1f}") + (" RAM" if result.device == "cpu" else ""),
        "s/step": _figure(result.seconds_per_step, "{:.3f}"),
        "images/s": _figure(result.images_per_second, "{:.2f}"),
        "loss": f"{result.losses[0]:.3f} to {result.losses[-1]:.3f}" if result.losses else "-",
        "outcome": result.outcome,
    }


def _figure(value: float | None, layout: str) -> str:
    return "-" if value is None else layout.format(value)
