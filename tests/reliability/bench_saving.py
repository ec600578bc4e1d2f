"""Prints how long training stands still for a checkpoint: written in the background, and in the foreground.

    python -m tests.reliability.bench_saving [--saves 7] [--channels 32 64 160] [--folder DISK]

One trainer, an SDXL with all its layers and few channels, AdamW in float32, float16 checkpoints with their state. In
turns a background and a foreground save, each after a step. The ratio is that of each pair; the steps trained while a
checkpoint is written are set against those after it stands.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from tests.engine.harness import prepared_trainer, small_config, write_pictures
from tests.export.narrow_sdxl import build_narrow_sdxl
from tests.reliability.saving import is_writing
from tuitrain.engine.trainer import Trainer
from tuitrain.wording import format_bytes


@dataclass
class Timings:
    """Of one kind of save, in seconds, one a save."""

    stalls: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)


def seconds_of(action: Callable[[], None]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def bench(trainer: Trainer, num_saves: int) -> tuple[Timings, Timings, list[float], list[float]]:
    """(background, foreground, steps beside a write, steps alone)."""
    background, foreground = Timings(), Timings()
    steps_beside, steps_alone = [], []
    batches = iter(trainer.loader)

    def step() -> None:
        trainer.train_step(trainer.next_micro_batches(batches))

    def save(*, in_background: bool) -> None:
        trainer.saver.save(trainer.checkpoint_content(), in_background=in_background)

    step()
    for _ in range(num_saves):
        step()
        started = time.monotonic()
        background.stalls.append(seconds_of(lambda: save(in_background=True)))
        while is_writing():
            steps_beside.append(seconds_of(step))
        trainer.finish_save()
        background.totals.append(time.monotonic() - started)
        steps_alone.append(seconds_of(step))
        foreground.stalls.append(seconds_of(lambda: save(in_background=False)))
        foreground.totals.append(foreground.stalls[-1])
    return background, foreground, steps_beside, steps_alone


def spread(values: list[float]) -> str:
    return f"median {median(values):.3f}, {min(values):.3f} to {max(values):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saves", type=int, default=7, help="pairs (default 7)")
    parser.add_argument("--channels", type=int, nargs=3, default=(32, 64, 160), help="of the UNet (default 32 64 160)")
    parser.add_argument("--folder", type=Path, help="on the disk to write to (default the temporary one)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tuitrain-bench-saving-", dir=options.folder))
    try:
        config = small_config(
            folder,
            build_narrow_sdxl(folder / "model", channels=tuple(options.channels)),
            write_pictures(folder / "pictures", 4),
            max_train_steps=100_000,
            max_checkpoints=2,
            train_batch_size=1,
        )
        trainer = prepared_trainer(config)
        try:
            background, foreground, steps_beside, steps_alone = bench(trainer, options.saves)
            content = trainer.checkpoint_content()
            sizes = sum(tensor.nbytes for tensor in content.tensors), trainer.saver.writer.num_bytes(content)
        finally:
            trainer.close()
        ratios = [one / other for one, other in zip(background.stalls, foreground.stalls, strict=True)]
        lines = [
            f"torch {torch.__version__}, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}",
            f"a save copies {format_bytes(sizes[0])} and writes {format_bytes(sizes[1])}",
            f"stall in the background, s       {spread(background.stalls)}",
            f"stall in the foreground, s       {spread(foreground.stalls)}",
            f"background / foreground, paired  {spread(ratios)}, of {len(ratios)}",
            f"until it stands, background, s   {spread(background.totals)}",
            f"a step beside a write, s         {spread(steps_beside)}, of {len(steps_beside)}",
            f"a step alone, s                  {spread(steps_alone)}",
        ]
        sys.stdout.write("\n".join(lines) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
