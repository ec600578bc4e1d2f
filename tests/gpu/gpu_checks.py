"""What to run on a new GPU: one table of memory and speed on full-size SDXL, then checks that need the device.

    python -m tests.gpu.gpu_checks [--variants NAME ...] [--checks NAME ...] [--steps N] [--tiny] [--list]

docs/gpu-checks.md says what it prints and how to read it.
"""

import argparse
import importlib.metadata
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pynvml

from tuitrain.config.files import config_from_values, load_config
from tuitrain.config.schema import TrainConfig
from tuitrain.engine import bench
from tuitrain.engine.bench import BenchResult
from tuitrain.errors import TuitrainError
from tuitrain.gpu import read_gpus
from tuitrain.runs.events import CheckpointSaved, SamplesSaved, StepLogged
from tuitrain.terminal import write_line
from tuitrain.wording import format_bytes, format_table

LIBRARIES = ("tuitrain", "torch", "diffusers", "transformers", "accelerate", "bitsandbytes")
TINY_PIXELS = ("data_loader.resolution=64", "data_loader.aspect_ratio_buckets=null")
AT_1024 = ("data_loader.resolution=1024", "data_loader.aspect_ratio_buckets=null")


@dataclass(frozen=True)
class Variant:
    """A configuration to measure: a preset with changes."""

    name: str
    preset: str
    overrides: tuple[str, ...] = ()

    def config(self, *, is_tiny: bool) -> TrainConfig:
        return load_config(self.preset, [*self.overrides, *(TINY_PIXELS if is_tiny else ())])


ADAFACTOR = ("gradient_accumulation_steps=1", *AT_1024)

VARIANTS = (
    Variant("bf16-adafactor-b1", "small_card_12gb", ADAFACTOR),
    Variant("bf16-adafactor-b1-no-gc", "small_card_12gb", (*ADAFACTOR, "gradient_checkpointing=false")),
    Variant("bf16-adamw8bit-b1", "robocats_24gb", ("train_batch_size=1",)),
    Variant("bf16-adamw8bit-b4-no-gc", "robocats_24gb", ("gradient_checkpointing=false",)),
    Variant(
        "bf16-adamw8bit-b4-no-cache",
        "robocats_24gb",
        ("cache_vae_outputs=false", "cache_text_encoder_outputs=false"),
    ),
    Variant("bf16-adamw-ema-b4", "robocats_24gb", ("optimizer.use_8bit=false", "ema_decay=0.999")),
    Variant("fp32-adamw-b4", "big_card_80gb", ("ema_decay=null", "train_batch_size=4")),
    Variant("small_card_12gb", "small_card_12gb"),
    Variant("robocats_24gb", "robocats_24gb"),
    Variant("big_card_80gb", "big_card_80gb"),
)
TINY_VARIANTS = ("bf16-adafactor-b1", "fp32-adamw-b4")


class CheckFailedError(Exception):
    """A check found what must not be; its text says what."""


class CheckSkipped(Exception):  # noqa: N818 - no error
    """A check has nothing to look at on this machine; its text says why."""


@dataclass
class Bench:
    """What the checks share.

    Args:
        folder: for whatever they write; deleted at the end.
        is_tiny: full-size figures are taken from the tiny SDXL.
        num_steps: of a measurement.
        results: of the variants measured so far.
    """

    folder: Path
    is_tiny: bool
    num_steps: int
    results: list[BenchResult] = field(default_factory=list)

    @property
    def tiny_model(self) -> Path:
        """The tiny SDXL of the tests, built at the first use."""
        from tuitrain.engine.quiet import quiet_libraries

        quiet_libraries()
        from tests.tiny_sdxl import build_tiny_sdxl  # torch and diffusers: 8 s

        folder = self.folder / "tiny_sdxl"
        return folder if folder.is_dir() else build_tiny_sdxl(folder)

    @property
    def model(self) -> Path:
        """The base model to measure with."""
        return self.tiny_model if self.is_tiny else bench.random_base_model(tell)

    def measure(self, variant: Variant) -> BenchResult:
        return bench.bench(
            variant.config(is_tiny=self.is_tiny),
            name=variant.name,
            num_steps=self.num_steps,
            model=self.model,
            tell=tell,
        )

    def scratch(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder


# ---- on the measured model, each training a process of its own


def check_the_same_config_gives_the_same_losses(shared: Bench) -> str:
    variant = VARIANTS[0]
    measured = next((result for result in shared.results if result.config == variant.name), None)
    first = measured or shared.measure(variant)
    return _compare_losses(first.losses, shared.measure(variant).losses, tolerance=1e-3)


def check_a_sample_and_a_checkpoint_are_written(shared: Bench) -> str:
    """Step, sample and save, step: the second report's peak holds what sampling took."""
    from PIL import Image

    from tuitrain.runs.checkpoints import list_checkpoints, verify_checkpoint
    from tuitrain.runs.run import find_runs

    folder = shared.scratch("sample_and_save")
    measured = bench.bench_config(
        VARIANTS[0].config(is_tiny=shared.is_tiny), model=shared.model, folder=folder, num_steps=2
    )
    config = config_from_values(
        measured.model_dump(mode="json")
        | {
            "validation_prompts": ["a coloured cloud"],
            "num_validation_images_per_prompt": 1,
            "validate_every_n_steps": 1,
            "save_every_n_steps": 1,
            "max_checkpoints": 1,
        }
    )
    bench.write_pictures(config, folder / "pictures", num_steps=2)
    training = bench.run_training(config, folder)
    if training.failure is not None:
        raise training.failure
    (run,) = find_runs(folder)
    samples = [event for event in training.events if isinstance(event, SamplesSaved)]
    saves = [event for event in training.events if isinstance(event, CheckpointSaved)]
    for image in samples[0].images:
        with Image.open(run.path / image.path) as picture:
            _require(picture.size == config.validation_hw[::-1], f"{image.path} is {picture.size}")
    (checkpoint,) = list_checkpoints(run.checkpoints_dir)
    problems = verify_checkpoint(checkpoint.path)
    _require(not problems, "; ".join(map(str, problems)))
    peaks = [event.peak_memory_gib for event in training.events if isinstance(event, StepLogged)]
    peak = "" if peaks[-1] is None else f", peak {peaks[-1]:.1f} GiB with sampling"
    size = f"{config.validation_hw[0]} pixels and {config.validation_steps} steps"
    saved = f"checkpoint of {format_bytes(saves[0].num_bytes)} in {saves[0].seconds:.1f} s"
    return f"sample of {size} in {samples[0].seconds:.1f} s, {saved}{peak}"


# ---- in this process, on the tiny model or on plain tensors


def check_stochastic_rounding_keeps_the_mean(shared: Bench) -> str:
    import torch

    from tuitrain.engine.optimizer import stochastic_round_

    device = _device()
    exact, spacing, num = 0.02003, 2.0**-13, 1 << 22
    low = torch.empty(num, dtype=torch.bfloat16, device=device)
    high = torch.full((num,), exact, device=device)
    stochastic_round_(low, high, torch.Generator(device).manual_seed(0))
    values = low.double().unique()
    error = abs(low.double().mean().item() - high[0].double().item())
    limit = 5 * 0.5 * spacing / num**0.5  # five standard deviations
    _require(len(values) == 2, f"{len(values)} different values, not the two neighbours")
    _require(error < limit, f"the mean is off by {error:.2g}, allowed are {limit:.2g}")
    return f"mean of {num} values off by {error:.1e} (spacing {spacing:.1e}, allowed {limit:.1e})"


def check_every_optimizer_moves_bf16_weights(shared: Bench) -> str:
    """With steps a tenth of bfloat16's spacing, which rounding to nearest would lose."""
    import torch

    from tuitrain.config.schema import AdafactorConfig, AdamWConfig
    from tuitrain.engine.optimizer import build_optimizer
    from tuitrain.engine.preparation import optimizer_builder

    lr, num_steps = 1e-5, 20
    moves = {}
    for name, settings in {
        "AdamW": AdamWConfig(learning_rate=lr, weight_decay=0),
        "8-bit AdamW": AdamWConfig(learning_rate=lr, weight_decay=0, use_8bit=True),
        "Adafactor": AdafactorConfig(learning_rate=5e-4),
    }.items():
        param = torch.nn.Parameter(torch.full((256, 256), 0.02, dtype=torch.bfloat16, device=_device()))
        before = param.detach().double().mean()
        optimizer = build_optimizer([param], optimizer_builder(settings), has_global_statistics=False, seed=0)
        for _ in range(num_steps):
            param.grad = torch.ones_like(param)
            optimizer.step()
        moves[name] = (param.detach().double().mean() - before).item()
        _require(moves[name] < 0, f"{name} moved the weights by {moves[name]:.2g} against the gradient's sign")
    for name in ("AdamW", "8-bit AdamW"):
        wanted = -lr * num_steps
        _require(abs(moves[name] / wanted - 1) < 0.1, f"{name} moved by {moves[name]:.2g} in place of {wanted:.2g}")
    return ", ".join(f"{name} {move:.1e}" for name, move in moves.items())


def check_a_training_step_does_not_wait_for_the_gpu(shared: Bench) -> str:
    """Between logs, torch raises at every operation that makes the host wait for all of the device's work."""
    import torch

    from tests.engine.harness import prepared_trainer, small_config, write_pictures

    has_gpu = torch.cuda.is_available()
    folder = shared.scratch("no_wait")
    jsonl = write_pictures(folder / "pictures")
    common = {"log_every_n_steps": 1000, "max_train_steps": 1000, "gradient_checkpointing": True}
    precisions = {
        "bf16 Adafactor": {"weight_dtype": "bfloat16", "optimizer": {"optimizer_type": "Adafactor"}},
        "bf16 8-bit AdamW": {"weight_dtype": "bfloat16", "optimizer": {"optimizer_type": "AdamW", "use_8bit": True}},
        "float32 AdamW in bf16": {"mixed_precision": "bf16", "max_grad_norm": 1.0, "ema_decay": 0.9},
    }
    for name, settings in precisions.items():
        trainer = prepared_trainer(small_config(folder, shared.tiny_model, jsonl, **common, **settings))
        try:
            steps = iter(trainer.loader)
            for _ in range(3):  # the first ones make states and choose kernels
                trainer.train_step(next(steps))
            if has_gpu:
                torch.cuda.set_sync_debug_mode("error")
            for _ in range(3):
                trainer.train_step(next(steps))
        except RuntimeError as error:
            raise CheckFailedError(f"{name}: {error}") from error
        finally:
            if has_gpu:
                torch.cuda.set_sync_debug_mode("default")
            trainer.close()
    if not has_gpu:
        raise CheckSkipped("the steps ran, but only a GPU can be waited for")
    return ", ".join(precisions)


def check_the_tiny_model_repeats_exactly(shared: Bench) -> str:
    from tests.engine.harness import of_kind, small_config, train_well, write_pictures

    folder = shared.scratch("repeat")
    jsonl = write_pictures(folder / "pictures")
    config = small_config(folder, shared.tiny_model, jsonl, weight_dtype="bfloat16")
    first, second = ([event.loss for event in of_kind(train_well(config)[1], StepLogged)] for _ in range(2))
    return _compare_losses(first, second, tolerance=1e-3)


def _compare_losses(first: Sequence[float], second: Sequence[float], *, tolerance: float) -> str:
    _require(len(first) == len(second) > 0, f"{len(first)} and {len(second)} losses")
    worst = max(abs(a - b) / abs(a) for a, b in zip(first, second, strict=True))
    _require(worst <= tolerance, f"losses differ by up to {worst:.1e} of their value: {first} and {second}")
    return f"{len(first)} losses " + ("equal to the last bit" if worst == 0 else f"within {worst:.1e} of their value")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _require(is_met: bool, otherwise: str) -> None:
    if not is_met:
        raise CheckFailedError(otherwise)


CHECKS: dict[str, Callable[[Bench], str]] = {
    "repeat": check_the_same_config_gives_the_same_losses,
    "sample-and-save": check_a_sample_and_a_checkpoint_are_written,
    # those below start CUDA in this process, so they come after every measurement
    "rounding": check_stochastic_rounding_keeps_the_mean,
    "optimizers": check_every_optimizer_moves_bf16_weights,
    "no-wait": check_a_training_step_does_not_wait_for_the_gpu,
    "tiny-repeat": check_the_tiny_model_repeats_exactly,
}


# ---- the report


def tell(text: str) -> None:
    write_line(f"  {text}", stream=sys.stderr)


def describe_machine() -> list[str]:
    """The date, the card and the versions that the figures belong to."""
    gpus = read_gpus()
    cards = [f"{gpu.name}, {gpu.memory_total_gib or 0:.0f} GiB" for gpu in gpus]
    driver = pynvml.nvmlSystemGetDriverVersion() if gpus else "none"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    return [
        f"date      {datetime.now():%Y-%m-%d %H:%M}",
        f"card      {'; '.join(cards) or 'none: everything runs on the CPU'}",
        f"driver    {driver}",
        f"versions  Python {platform.python_version()}, {', '.join(versions)}",
    ]


def measure_variants(shared: Bench, variants: Sequence[Variant]) -> int:
    """Print the table; the number of variants that failed otherwise than by memory."""
    num_failed = 0
    for variant in variants:
        try:
            shared.results.append(shared.measure(variant))
        except TuitrainError as error:
            num_failed += 1
            write_line(f"FAILED    {variant.name}: {error}")
        else:  # at once, so that a cut-off call has told what it knows
            tell(", ".join(f"{name} {cell}" for name, cell in bench.result_row(shared.results[-1]).items()))
    if shared.results:
        for line in ["", *format_table([bench.result_row(result) for result in shared.results]), ""]:
            write_line(line)
    return num_failed


def run_checks(shared: Bench, names: Sequence[str]) -> int:
    """Print a line for each check; the number of those that failed."""
    from tuitrain.engine.quiet import quiet_libraries

    quiet_libraries()
    num_failed = 0
    for name in names:
        started = time.monotonic()
        try:
            verdict, text = "ok", CHECKS[name](shared)
        except CheckSkipped as reason:
            verdict, text = "skipped", str(reason)
        except (CheckFailedError, TuitrainError) as error:
            verdict, text = "FAILED", str(error)
            num_failed += 1
        write_line(f"{verdict:<8}  {name}: {text} ({time.monotonic() - started:.0f} s)")
    return num_failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 0 when nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.gpu_checks", description=__doc__.splitlines()[0])
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="*", choices=names, metavar="NAME", help="measure these; default all")
    parser.add_argument("--checks", nargs="*", choices=list(CHECKS), metavar="NAME", help="run these; default all")
    parser.add_argument("--steps", type=int, default=12, help="steps of a measurement, at least 3 (default 12)")
    parser.add_argument("--tiny", action="store_true", help="with the tests' tiny SDXL, for a machine without GPU")
    parser.add_argument("--list", action="store_true", help="name the variants and the checks, run nothing")
    options = parser.parse_args(arguments)
    if options.list:
        for variant in VARIANTS:
            write_line(f"{variant.name:<28}{variant.preset} {' '.join(variant.overrides)}")
        for name, function in CHECKS.items():
            write_line(f"{name:<28}{function.__name__.removeprefix('check_').replace('_', ' ')}")
        return 0
    default = TINY_VARIANTS if options.tiny else names
    wanted = default if options.variants is None else options.variants
    for line in describe_machine():
        write_line(line)
    folder = Path(tempfile.mkdtemp(prefix="tuitrain-gpu-checks-"))
    try:
        shared = Bench(folder, is_tiny=options.tiny, num_steps=options.steps)
        num_failed = measure_variants(shared, [variant for variant in VARIANTS if variant.name in wanted])
        num_failed += run_checks(shared, list(CHECKS) if options.checks is None else options.checks)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_line("all well" if not num_failed else f"{num_failed} failed")
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
