"""Where a run can go on, and what must not have changed since; imports no torch."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any

from tuitrain.config.schema import AdamWConfig, ProdigyConfig, TrainConfig
from tuitrain.engine.phase import Phase
from tuitrain.errors import CheckpointError, ConfigError, Problem
from tuitrain.runs.checkpoints import reading, step_of_name
from tuitrain.runs.run import Run
from tuitrain.runs.states import StateManifest, has_state, list_states, read_state, verify_state

FREE_SETTINGS = (
    "base_output_dir",
    "cache_dir",
    "data_loader.class_dataset",
    "data_loader.dataloader_num_workers",
    "data_loader.dataset",
    "data_loader.instance_dataset",
    "enable_cpu_offload_during_validation",
    "hf_variant",
    "log_every_n_steps",
    "lr_scheduler",
    "lr_warmup_steps",
    "max_checkpoints",
    "max_image_megapixels",
    "max_train_epochs",
    "max_train_steps",
    "model",
    "model_config_dir",
    "negative_validation_prompts",
    "num_validation_images_per_prompt",
    "on_bad_image",
    "on_missing_caption",
    "on_non_finite",
    "on_oom",
    "optimizer.learning_rate",
    "report_to",
    "save_at_end",
    "save_checkpoint_format",
    "save_dtype",
    "save_every_n_epochs",
    "save_every_n_steps",
    "save_state",
    "vae_model",
    "validate_at_start",
    "validate_every_n_epochs",
    "validate_every_n_steps",
    "validation_guidance_scale",
    "validation_prompts",
    "validation_size",
    "validation_steps",
    "xformers",
)
"""Settings that a run may change when it goes on, with all below them: they apply from there. Paths are among them
because pictures and models are compared by their content. Any other setting decides the numbers of a step."""

OPTIMIZER_SETTINGS = ("optimizer.optimizer_type", "optimizer.use_8bit", "weight_dtype", "mixed_precision")
"""Settings whose change makes the optimizer begin anew: what it remembers has another form."""

STEPS_IN_AN_EPOCH = "steps in an epoch"
"""A thing in the world: it decides the order of samples, and where epochs end."""

_LIBRARIES = ("tuitrain", "torch", "diffusers", "transformers", "accelerate", "pillow")


@dataclass(frozen=True)
class Change:
    """Something that decides the numbers of a step and is not as it was when the state was saved.

    Args:
        key: of a setting, or the name of a thing in the world.
        then: its value in words.
        now: idem.
    """

    key: str
    then: str
    now: str

    def __str__(self) -> str:
        return f"{self.key} was {self.then}, it is {self.now} now"


@dataclass(frozen=True)
class Acceptance:
    """Which changes a run goes on in spite of.

    Args:
        everything: all there are.
        settings: keys of settings, with all below them.
    """

    everything: bool = False
    settings: tuple[str, ...] = ()

    def covers(self, change: Change) -> bool:
        """Whether `change` is accepted; the length of an epoch follows from settings and pictures."""
        if self.everything or (self.settings and change.key == STEPS_IN_AN_EPOCH):
            return True
        return any(change.key == key or change.key.startswith(f"{key}.") for key in self.settings)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on.

    Args:
        checkpoint: its folder, which holds the state.
        state: what the state's manifest says.
        acceptance: which changes of what decides the numbers are accepted.
        earlier: checkpoints with a state that stand in when this one turns out to be damaged, best first.
        damages: why states that would have been better were passed over.
    """

    checkpoint: Path
    state: StateManifest
    acceptance: Acceptance
    earlier: tuple[Path, ...]
    damages: tuple[Problem, ...]


def open_resume_target(path: Path) -> tuple[Run, Path | None]:
    """The run that `path` names, and the checkpoint, if it names one.

    Raises:
        ConfigError: it is neither a run nor one of a run's checkpoints.
    """
    folder = path.absolute()
    if step_of_name(folder.name) is None:
        return Run.open(path), None
    if folder.parent.name != "checkpoints":
        hint = "go on from one in the run's checkpoints/; this one can be packaged and compared"
        raise ConfigError(f"{path} is not, or no longer, among the checkpoints of a run", hint=hint)
    if not folder.is_dir():
        hint = f"`tuitrain checkpoints {folder.parent.parent}` lists those that are there"
        raise ConfigError(f"there is no checkpoint {path}", hint=hint)
    return Run.open(folder.parent.parent), folder


def find_resume_point(run: Run, checkpoint: Path | None, acceptance: Acceptance) -> ResumePoint:
    """The newest state of `run` whose manifest can be read, or that of `checkpoint`; nothing else is read yet.

    Raises:
        ConfigError: there is none.
        CheckpointError: none can be read.
    """
    if checkpoint is not None and not has_state(checkpoint):
        raise ConfigError(f"{checkpoint} holds no state to go on from", hint=_what_can_be_resumed(run))
    found = [checkpoint] if checkpoint is not None else list_states(run.checkpoints_dir)[::-1]
    if not found:
        hint = f"start it again: tuitrain train {run.config_path}"
        raise ConfigError(f"{run.path} holds no state to go on from: {_why_no_state(run)}", hint=hint)
    return _first_readable(tuple(found), acceptance, damages=())


def _first_readable(
    checkpoints: tuple[Path, ...], acceptance: Acceptance, *, damages: tuple[Problem, ...]
) -> ResumePoint:
    for index, checkpoint in enumerate(checkpoints):
        try:
            state = read_state(checkpoint)
        except CheckpointError as error:
            damages += error.problems
        else:
            return ResumePoint(checkpoint, state, acceptance, checkpoints[index + 1 :], damages)
    summary = Problem("the state to go on from is damaged", "go on from another checkpoint, or start the run again")
    raise CheckpointError.from_problems([summary, *damages])


def _why_no_state(run: Run) -> str:
    if any(run.checkpoints_dir.glob("checkpoint-*")):
        return "its checkpoints were saved without, as save_state: none wants it"
    return "it ended before its first checkpoint"


def _what_can_be_resumed(run: Run) -> str:
    states = list_states(run.checkpoints_dir)
    if not states:
        return f"no checkpoint of this run does; start it again: tuitrain train {run.config_path}"
    names = ", ".join(path.name for path in states)
    return f"there is one in {names}; a run with save_state: all keeps one in every checkpoint"


def verified(point: ResumePoint, phase: Phase) -> ResumePoint:
    """The point itself when every byte of its state is as it was written, else the best earlier one that is sound.

    Args:
        phase: told how far the reading is.

    Raises:
        CheckpointError: none is sound.
    """
    while True:
        phase.detail = point.checkpoint.name
        problems = _verify(point, phase)
        if not problems:
            return point
        point = _first_readable(point.earlier, point.acceptance, damages=(*point.damages, *problems))


def _verify(point: ResumePoint, phase: Phase) -> list[Problem]:
    total = sum(file.size for file in point.state.files)
    done = 0

    def read(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        phase.report(min(done, total), total)

    with reading(point.checkpoint):
        return verify_state(point.checkpoint, read=read)


def check_is_unfinished(config: TrainConfig, point: ResumePoint) -> None:
    """Check that there are steps left to train.

    Raises:
        ConfigError: there are none.
    """
    step, steps_per_epoch = point.state.step, point.state.steps_per_epoch
    if config.max_train_steps is not None and config.max_train_steps <= step:
        hint = f"give it more: --set max_train_steps={2 * step}"
        raise ConfigError(f"the run is complete: {step} steps of {config.max_train_steps} are trained", hint=hint)
    if config.max_train_epochs is not None and config.max_train_epochs * steps_per_epoch <= step:
        hint = f"give it more: --set max_train_epochs={2 * ceil(step / steps_per_epoch)}"
        raise ConfigError(f"the run is complete: {config.max_train_epochs} epochs are trained", hint=hint)


def check_changes(point: ResumePoint, *, settings: Mapping[str, str], world: Mapping[str, str]) -> list[Change]:
    """What decides the numbers of a step and is not as it was when the state was saved.

    Args:
        settings: those of now, as from `numeric_settings`.
        world: what is known of it by now; the rest is not compared.

    Raises:
        ConfigError: there is something that is not accepted.
    """
    state = point.state
    changes = [
        *_changes(state.settings, settings, sorted({*state.settings, *settings})),
        *_changes(state.world, world, world),
    ]
    if refused := [change for change in changes if not point.acceptance.covers(change)]:
        summary = Problem(
            f"the run cannot go on from step {state.step} exactly as it would have: {len(refused)} "
            f"{'thing has' if len(refused) == 1 else 'things have'} changed",
            hint="change it back, or go on all the same with --accept-changes",
        )
        raise ConfigError.from_problems([summary, *(Problem(str(change)) for change in refused)])
    return changes


def _changes(then: Mapping[str, str], now: Mapping[str, str], keys: Iterable[str]) -> Iterator[Change]:
    for key in keys:
        if then.get(key) != now.get(key):
            yield Change(key, then.get(key, "not there"), now.get(key, "not there"))


def numeric_settings(config: TrainConfig) -> dict[str, str]:
    """The settings that decide the numbers of a step, by key, as JSON."""
    return {key: json.dumps(value) for key, value in _flatten(config.model_dump(mode="json")) if not _is_free(key)}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_SETTINGS)


def library_versions(config: TrainConfig) -> dict[str, str]:
    """Versions of the libraries that decide the numbers of this run."""
    names = list(_LIBRARIES)
    if isinstance(config.optimizer, AdamWConfig) and config.optimizer.use_8bit:
        names.append("bitsandbytes")
    if isinstance(config.optimizer, ProdigyConfig):
        names.append("prodigyopt")
    return {name: version(name) for name in names}
