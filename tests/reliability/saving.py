"""Saves that are killed, and what must stand afterwards; as a program, one start of a run that saves and prunes."""

import hashlib
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tuitrain import atomic
from tuitrain.atomic import atomic_file, write_text_atomic
from tuitrain.runs.checkpoints import (
    checkpoint_folders,
    checkpoint_name,
    list_checkpoints,
    prune_checkpoints,
    publish_checkpoint,
    verify_checkpoint,
)
from tuitrain.runs.manifest import describe_files, manifest_to_json
from tuitrain.runs.run import Run
from tuitrain.runs.states import STATE_DIR, STATE_NAME, MeterState, StateManifest, list_states, remove_states

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
OPTIMIZER = f"{STATE_DIR}/optimizer.safetensors"
KEEP = 2
STRIDE = 10  # the engine passes a crash point for every tensor


def save(run: Run, step: int, *, num_bytes: int = 50_000, fault: Callable[[], None] = lambda: None) -> Path:
    """A checkpoint with a state, of numbers that nobody trained.

    Args:
        fault: called when everything but checkpoint.json is written.
    """
    with publish_checkpoint(run.checkpoints_dir, epoch=0, step=step) as staged:
        for name in (WEIGHTS, OPTIMIZER):
            (staged.path / name).parent.mkdir()
            with atomic_file(staged.path / name) as temporary:
                temporary.write_bytes(random.Random(f"{step} {name}").randbytes(num_bytes))
        write_text_atomic(
            staged.path / "unet" / "config.json", f'{{"_class_name": "UNet2DConditionModel", "n": {step}}}'
        )
        state = StateManifest(
            format_version=1,
            step=step,
            epoch=0,
            steps_per_epoch=100,
            time=time.time(),
            weights_path=WEIGHTS,
            optimizer_path=OPTIMIZER,
            ema_path=None,
            optimizer_scalars={},
            optimizer_progress=[],
            scaler=None,
            loader={},
            meter=MeterState(
                loss_sum=0.0, data_seconds=0.0, num_steps=0, num_images=0, lr=0.0, grad_norm=0.0, seconds=0.0
            ),
            last_losses=[],
            sampled_step=-1,
            pictures_per_pass=None,
            num_skipped=0,
            num_threads=1,
            settings={},
            world={},
            files=describe_files(staged.path, [WEIGHTS, OPTIMIZER], {}),
        )
        write_text_atomic(staged.path / STATE_NAME, manifest_to_json(state))
        fault()
        staged.finish(
            kind="trained_only_diffusers",
            weights="trained",
            config_hash="",
            base_model="base",
            base_model_hash="",
            prediction_type="epsilon",
            save_dtype="float32",
        )
    return run.checkpoints_dir / checkpoint_name(0, step)


def start_and_save(run: Run) -> None:
    """What a start of a run does to its folder: tidy, save the next step, prune, keep one state."""
    with run.lock():
        run.remove_leftovers()
        path = save(run, list_checkpoints(run.checkpoints_dir)[-1].manifest.step + 1)
        prune_checkpoints(run.checkpoints_dir, KEEP)
        remove_states([other for other in list_states(run.checkpoints_dir) if other != path])


def is_writing() -> bool:
    """Whether a thread of this process writes a checkpoint."""
    return any(thread.name.startswith("writer of") for thread in threading.enumerate())


def leftovers(run: Run) -> list[str]:
    return [path.name for path in run.path.rglob(".tmp-*")]


def find_violations(run: Run, *, oldest_step: int) -> list[str]:
    """What must not be after a kill, in words.

    Args:
        oldest_step: the newest step that stood before.
    """
    violations = [
        str(problem) for path in checkpoint_folders(run.checkpoints_dir) for problem in verify_checkpoint(path)
    ]
    if not any(checkpoint.manifest.step >= oldest_step for checkpoint in list_checkpoints(run.checkpoints_dir)):
        violations.append(f"step {oldest_step} is gone")
    if not list_states(run.checkpoints_dir):
        violations.append("no state is left")
    return violations


# ---------------------------------------------------------------------------------------------- the real engine, slow


def kill_engine_saves(folder: Path, model: Path, jsonl: Path, num_random: int) -> str:
    """Kill the saves of a mini SDXL at every tenth crash point and at times drawn at random, each in a forked process.

    Returns:
        "survived / tried", and what went wrong.
    """
    from tests.engine.harness import prepared_trainer, small_config
    from tests.reliability.resumption import resume

    config = small_config(folder, model, jsonl, "data_loader.resolution=32", max_train_steps=9)
    trainer = prepared_trainer(config)
    steps = iter(trainer.loader)
    trainer.train_step(trainer.next_micro_batches(steps))
    trainer.save()
    trainer.finish_save()
    trainer.train_step(trainer.next_micro_batches(steps))
    run, kept = trainer.run, folder / "kept"
    shutil.copytree(run.checkpoints_dir, kept)

    def fork(work: Callable[[], object]) -> int:
        if child := os.fork():
            return child
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        os._exit(0)

    def save() -> None:
        trainer.save()
        trainer.finish_save()

    def save_until(point: int) -> None:
        atomic._CRASH_AT = point
        save()

    started = time.monotonic()
    os.waitpid(fork(save), 0)
    save_seconds = time.monotonic() - started
    draw = random.Random(0)
    tried, failures = 0, []
    point = 1 - STRIDE
    in_order = True
    while in_order or tried < num_random:
        shutil.rmtree(run.checkpoints_dir)
        shutil.copytree(kept, run.checkpoints_dir)
        if in_order:
            point += STRIDE
            _, status = os.waitpid(fork(lambda at=point: save_until(at)), 0)  # type: ignore[misc]
            if os.waitstatus_to_exitcode(status) == 0:  # past the last one
                in_order, tried = False, 0
                continue
            name = f"point {point}"
        else:
            child = fork(save)
            time.sleep(draw.uniform(0, save_seconds))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            name = f"random {tried}"
        tried += 1
        num_kills[name.split()[0]] = tried
        violations = find_violations(run, oldest_step=1)
        run.remove_leftovers()
        violations += leftovers(run)
        if tried % 20 == 0:
            _, status = os.waitpid(fork(lambda: os._exit(resume(run, None, "max_train_steps=3"))), 0)
            violations += ["it cannot be resumed"] * bool(status)
        failures += [f"{name}: {violation}" for violation in violations]
    total = sum(num_kills.values())
    return f"{total - len({failure.split(':')[0] for failure in failures})} / {total} {num_kills} {failures}"


num_kills: dict[str, int] = {}


def digest(run: Run) -> str:
    """sha256 of the weights of the newest checkpoint."""
    return hashlib.sha256((list_checkpoints(run.checkpoints_dir)[-1].path / WEIGHTS).read_bytes()).hexdigest()


if __name__ == "__main__":
    match sys.argv[1:]:
        case [run_path]:
            start_and_save(Run.open(Path(run_path)))
        case [folder_path, model_path, jsonl_path, number]:
            sys.stdout.write(
                kill_engine_saves(Path(folder_path), Path(model_path), Path(jsonl_path), int(number)) + "\n"
            )
