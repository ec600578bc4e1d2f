"""From a config to a training in a run's folder, and its exit status; imports no torch until it trains."""

import gc
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tuitrain.config.files import config_to_json, config_to_yaml, load_config
from tuitrain.config.schema import TrainConfig
from tuitrain.engine.failure import describe_failure
from tuitrain.engine.phase import RANK_PATIENCE, Emit, Pulse, StopRequested, running_phase
from tuitrain.engine.resume import (
    Acceptance,
    ResumePoint,
    check_changes,
    check_is_unfinished,
    find_resume_point,
    library_versions,
    numeric_settings,
    verified,
)
from tuitrain.errors import EXIT_DEVICE_LOST, ConfigError, Problem
from tuitrain.runs.control import Command
from tuitrain.runs.events import (
    CommandObeyed,
    Event,
    FinishReason,
    ImageRejected,
    PhaseProgressed,
    RunFailed,
    RunFinished,
    SaveFailed,
    WarningRaised,
)
from tuitrain.runs.heartbeat import Heartbeat
from tuitrain.runs.journal import Journal
from tuitrain.runs.run import Run
from tuitrain.wording import describe, escape_control

if TYPE_CHECKING:
    from tuitrain.engine.trainer import Trainer

# Slow ones in the order that the trainer needs them; 10 s together where the disk's cache is cold.
SLOW_IMPORTS = ("torch", "transformers", "accelerate", "diffusers", "tuitrain.engine.trainer")
IMPORT_PATIENCE_SECONDS = 300.0  # from a network disk

Shared = TypeVar("Shared")

log = logging.getLogger("tuitrain")


def create_run(config: TrainConfig) -> tuple[TrainConfig, Run]:
    """The folder of a new run, and its config with a seed drawn if it had none, so that it can be repeated.

    Raises:
        ConfigError: the config names pictures or a model that are not there; nothing was written.
    """
    if missing := _missing_files(config):
        raise ConfigError.from_problems(missing)
    if config.seed is None:
        config = config.model_copy(update={"seed": secrets.randbelow(2**32)})
    base_output_dir = Path(config.base_output_dir)
    return config, Run.create(base_output_dir, config_yaml=config_to_yaml(config), config_json=config_to_json(config))


def resume_run(
    run: Run,
    checkpoint: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    accept_changes: bool = False,
    accept_overrides: bool = False,
) -> tuple[TrainConfig, ResumePoint]:
    """The config of `run` and where it can go on; both are for `train_run`, and nothing is written here.

    Reads no tensor: whether pictures, model and device are still the same, the training finds out.

    Args:
        checkpoint: go back to this one; by default to the newest state that is sound.
        overrides: changed settings, as of `load_config`.
        accept_changes: go on although it will not be exact.
        accept_overrides: idem, as far as `overrides` are the reason.

    Raises:
        ConfigError: there is no state to go on from, the config is wrong, the run is complete, or something has changed
            that must not.
        CheckpointError: the state is damaged, and there is no other.
    """
    config = load_config(run.config_path, overrides)
    chosen = tuple(override.partition("=")[0] for override in overrides) if accept_overrides else ()
    point = find_resume_point(run, checkpoint, Acceptance(everything=accept_changes, settings=chosen))
    if missing := _missing_files(config):
        raise ConfigError.from_problems(missing)
    check_is_unfinished(config, point)
    check_changes(point, settings=numeric_settings(config), world=library_versions(config))
    return config, point


def _missing_files(config: TrainConfig) -> list[Problem]:
    """What the config names and this machine lacks, told in a moment: torch alone takes 2 s to import."""
    from tuitrain.engine.hub import is_hub_name  # huggingface_hub, 0.1 s

    loader = config.data_loader
    paths = {
        f"data_loader.{section}.{key}": getattr(getattr(loader, section, None), key, None)
        for section in ("dataset", "instance_dataset", "class_dataset")
        for key in ("jsonl_path", "dataset_dir")
    }
    models = {"model": config.model, "vae_model": config.vae_model}
    paths.update({key: name for key, name in models.items() if name is not None and not is_hub_name(name)})
    return [
        Problem(f"{key} is {path}, there is no such file or folder", hint=f"set {key} to a path that exists")
        for key, path in paths.items()
        if path is not None and not Path(path).exists()
    ]


def train_run(
    config: TrainConfig, run: Run, poll: Callable[[], Command | None], *, resume: ResumePoint | None = None
) -> int:
    """Train in the folder of `run`; every outcome stands in its journal, and in words in its log, with tracebacks.

    Args:
        config: with a seed.
        poll: gives the next Command, or None.
        resume: where to go on, from `resume_run`; None begins.

    Returns:
        0 when the training completed or was stopped by a command, else the exit code of the error.
    """
    with run.lock(), closing(Journal(run.journal_path)) as journal, _logging_to(run.log_path):

        def emit(event: Event) -> None:
            journal.append(event)
            _log_in_words(event)

        if leftovers := run.remove_leftovers():
            log.info("removed what a process that died had left: %s", escape_control(", ".join(leftovers)))
        exit_code = _train(config, run, emit, Pulse(emit, poll, Heartbeat(run.heartbeat_path)), resume)
    if exit_code != EXIT_DEVICE_LOST:
        _free_memory()
    return exit_code


def _log_in_words(event: Event) -> None:
    if not isinstance(event, PhaseProgressed | RunFailed):  # a failure stands there with its traceback
        level = logging.WARNING if isinstance(event, WarningRaised | SaveFailed | ImageRejected) else logging.INFO
        log.log(level, "%s", escape_control(describe(event, total_steps=None)))  # on one line


def _free_memory() -> None:
    """Let go of the last trainer's networks, so that another run in this process finds the GPU empty.

    They refer to each other, so they would stay until Python happens to look for such cycles.
    """
    gc.collect()
    if torch := sys.modules.get("torch"):  # a run may have ended before it was imported, or because it cannot be
        with suppress(RuntimeError):  # a GPU in trouble must not hide the run's own outcome
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _train(config: TrainConfig, run: Run, emit: Emit, pulse: Pulse, resume: ResumePoint | None) -> int:
    started = time.monotonic()
    trainer: Trainer | None = None
    step, epoch = (0, 0) if resume is None else (resume.state.step, resume.state.epoch)
    exit_code = 0
    try:
        trainer = _build_trainer(config, run, emit, pulse, resume)
        trainer.train()
    except StopRequested:  # while importing
        emit(CommandObeyed(command=Command.STOP))
        emit(RunFinished(step=step, epoch=epoch, reason="stopped", seconds=time.monotonic() - started))
    except BaseException as error:  # the thread's edge: whatever happened, the journal tells that the run has ended
        log.exception("the run failed")
        failure = describe_failure(error, run.path)
        exit_code = failure.exit_code
        emit(
            RunFailed(
                what=failure.what,
                hint=failure.hint,
                where=failure.where,
                step=step if trainer is None else trainer.step,
                exit_code=exit_code,
                error=failure.name,
            )
        )
    else:
        reason: FinishReason = "stopped" if trainer.is_stopping else "completed"
        seconds = time.monotonic() - started
        emit(RunFinished(step=trainer.step, epoch=trainer.epoch, reason=reason, seconds=seconds))
    finally:
        if trainer is not None:
            trainer.close(is_device_lost=exit_code == EXIT_DEVICE_LOST)
    return exit_code


def _build_trainer(config: TrainConfig, run: Run, emit: Emit, pulse: Pulse, resume: ResumePoint | None) -> "Trainer":
    # imported here, 10 s, so that whoever watches the run has a screen meanwhile
    from tuitrain.engine.quiet import quiet_libraries

    is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1  # ranks import apart
    with running_phase("import_libraries", emit, pulse, can_stop=is_alone) as phase:
        for index, name in enumerate(SLOW_IMPORTS):
            phase.detail = name
            phase.report(index, len(SLOW_IMPORTS))
            pulse.beat(patience_seconds=IMPORT_PATIENCE_SECONDS)
            if name == "tuitrain.engine.trainer":
                quiet_libraries()  # before the classes that the trainer imports from diffusers
            import_module(name)
        phase.report(len(SLOW_IMPORTS), len(SLOW_IMPORTS))
        phase.detail = ""
    from tuitrain.engine.trainer import Trainer

    if resume is not None:
        with running_phase("load_state", emit, pulse, can_stop=is_alone) as phase:
            resume = verified(resume, phase)
    return Trainer(config, run, emit, pulse, resume=resume)


class _EscapingFormatter(logging.Formatter):
    """Lines that a terminal shows and does not obey: tracebacks quote captions, file names and settings."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(escape_control, super().format(record).split("\n")))


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Let tuitrain's log go to the run's log file for a while; a failure to write there stays silent.

    The file is private to the user.
    """
    path.touch(mode=0o600)
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_EscapingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # it would print to the screen
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def share_with_ranks(make: Callable[[], Shared]) -> tuple[Shared, bool]:
    """Let the main one of the processes that `accelerate launch` or `torchrun` started make something for all.

    Returns:
        What it made, and whether this is the main process, which keeps the journal.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=RANK_PATIENCE)
    shared: list[Shared | None] = [make() if state.is_main_process else None]
    return broadcast_object_list(shared)[0], state.is_main_process


def train_as_other_rank(config: TrainConfig, run: Run, *, resume: ResumePoint | None) -> int:
    """Train as a process that is not the main one: its steps only, no journal, and no commands of its own.

    Signals are the main process's affair, which tells the others to stop after the same step.

    Returns:
        As `train_run`; a process that fails makes the launcher end the others.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return _train(config, run, _not_journalled, Pulse(_not_journalled, lambda: None), resume)


def _not_journalled(event: Event) -> None:
    """Where the events of a rank go that is not the main one."""
