"""What to tell a user whose run has failed, and what to offer: one sentence, what is saved, at most three remedies.

Knows the run's facts as plain values; neither draws nor starts anything. What a remedy would gain is told as far as it
is known, and marked as an estimate.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuitrain.errors import EXIT_DEVICE_LOST
from tuitrain.runs.checkpoints import is_checkpoint
from tuitrain.runs.events import CheckpointSaved, RunFailed
from tuitrain.runs.run import Run
from tuitrain.runs.states import list_states
from tuitrain.wording import format_bytes, format_duration, phase_name

if TYPE_CHECKING:
    from tuitrain.gpu import GpuReading
    from tuitrain.tui.live import LiveRun

MAX_REMEDIES = 3
_KEYS = "abc"
_LOG_TAIL_BYTES = 256 * 1024
_FATAL = "Fatal Python error:"  # faulthandler's words for a crash below Python

# SDXL's text encoders, both together; source: the headers of the files of stabilityai/stable-diffusion-xl-base-1.0.
_NUM_TEXT_ENCODER_PARAMETERS = 817_720_320
_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Remedy:
    """Something to try next, carried out by a key.

    Args:
        key: "a", "b" or "c".
        label: one line: "start again, train_batch_size: 4 → 2".
        overrides: settings to change, as (path, value).
        effect: what it would gain, or cost; "" when nothing is known.
        focus: the setting to look at, where the user must choose the value; "" elsewhere.
        resume_from: the step to go on from; None starts from the base model.
    """

    key: str
    label: str
    overrides: tuple[tuple[str, Any], ...] = ()
    effect: str = ""
    focus: str = ""
    resume_from: int | None = None


@dataclass(frozen=True)
class Failure:
    """A failed run in words.

    Args:
        title: what happened: "CUDA out of memory at step 1641".
        sentence: the same with its numbers, and why.
        saved: what is on disk, and what is lost.
        remedies: at most three, the most promising first.
        log_path: of the run's log.
        error: the kind, as RunFailed.error; "Killed" and "Silent" where the journal tells of no end.
    """

    title: str
    sentence: str
    saved: str
    remedies: tuple[Remedy, ...]
    log_path: Path
    error: str


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run that has failed.

    Args:
        run_path: its folder.
        failure: how it ended; None when the journal tells of no end.
        is_alive: a process still holds the run.
        pid, host: of the engine; None and "" when it never told.
        step: completed steps.
        phase: what was at work, as in PhaseStarted.
        started: when this session began, Unix seconds. updated: when the last event was written.
        seconds_per_step: as last logged.
        last_checkpoint: that stands.
        num_trainable_parameters: of the UNet.
        config_values: the resolved config.
        versions: of the libraries, by name.
        gpus: as they are now.
        log_tail: the end of the run's log.
        resume_step: of the newest training state on disk; None when there is none to go on from.
        is_checkpoint_gone: the last checkpoint is not on the disk any more.
    """

    run_path: Path
    failure: RunFailed | None
    is_alive: bool
    pid: int | None
    host: str
    step: int
    phase: str
    started: float | None
    updated: float | None
    seconds_per_step: float | None
    last_checkpoint: CheckpointSaved | None
    num_trainable_parameters: int | None
    config_values: Mapping[str, Any]
    versions: Mapping[str, str]
    gpus: "Sequence[GpuReading]" = ()
    log_tail: str = ""
    resume_step: int | None = None
    is_checkpoint_gone: bool = False

    @property
    def log_path(self) -> Path:
        """Where the tracebacks are."""
        return self.run_path / "log.txt"

    def setting(self, path: str) -> Any:
        """The value at a dotted path; None where there is none."""
        value: Any = self.config_values
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def facts_of(live: "LiveRun") -> RunFacts:
    """The facts of the run on show, but for what takes a file or a driver; see `with_machine`."""
    snapshot = live.snapshot
    return RunFacts(
        run_path=live.run.path,
        failure=snapshot.failure,
        is_alive=live.is_alive,
        pid=snapshot.pid,
        host=snapshot.host,
        step=snapshot.step,
        phase=snapshot.last_phase,
        started=snapshot.session_started,
        updated=snapshot.updated,
        seconds_per_step=snapshot.seconds_per_step,
        last_checkpoint=snapshot.checkpoints[-1] if snapshot.checkpoints else None,
        num_trainable_parameters=snapshot.num_trainable_parameters,
        config_values=live.config_values,
        versions={"tuitrain": snapshot.tuitrain_version, **snapshot.versions},
    )


def with_machine(facts: RunFacts) -> RunFacts:
    """`facts` with the GPUs, the end of the log and what is on the disk; tens of milliseconds."""
    from tuitrain.gpu import read_gpus

    saved = facts.last_checkpoint
    return replace(
        facts,
        gpus=tuple(read_gpus()),
        log_tail=read_log_tail(facts.log_path),
        resume_step=_resume_step(facts.run_path),
        is_checkpoint_gone=saved is not None and not _stands(Run(facts.run_path).checkpoints_dir / saved.name),
    )


def _resume_step(run_path: Path) -> int | None:
    states = list_states(Run(run_path).checkpoints_dir)
    return int(states[-1].name.rpartition("_")[2]) if states else None


def _stands(checkpoint: Path) -> bool:
    try:
        return is_checkpoint(checkpoint)
    except OSError:  # a disk that fails
        return False


def read_log_tail(path: Path) -> str:
    """The last 256 KiB of a log, from the start of a line; "" when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LOG_TAIL_BYTES))
            tail = file.read()
    except OSError:
        return ""
    if size > _LOG_TAIL_BYTES:
        tail = tail.partition(b"\n")[2]
    return tail.decode("utf-8", "backslashreplace")


def last_traceback(log_tail: str) -> str:
    """The last record of a log that has a traceback, or tells of a crash; "" when there is none."""
    records = [
        match.start() for match in re.finditer(r"^\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ ", log_tail, flags=re.MULTILINE)
    ]
    texts = [log_tail[start:end] for start, end in zip([0, *records], [*records, len(log_tail)], strict=True)]
    with_traceback = [text for text in texts if "Traceback (most recent call last):" in text or _FATAL in text]
    return with_traceback[-1].rstrip() if with_traceback else ""


def explain(facts: RunFacts) -> Failure:
    """The words for what ended the run of `facts`, or for its silence."""
    failure = facts.failure
    if failure is None:
        return _explain_silence(facts) if facts.is_alive else _explain_death(facts)
    return _EXPLANATIONS.get(failure.error, _explain_other)(facts, failure)


# One function for each known kind


def _explain_out_of_memory(facts: RunFacts, failure: RunFailed) -> Failure:
    is_of_gpu = "GPU" in failure.what or "CUDA" in failure.what
    where = _during(facts)
    if not is_of_gpu:
        sentence = "The computer's own memory is used up; loader workers and big pictures take the most."
        return _failure(facts, "OutOfMemory", f"Out of memory {where}", sentence, _host_memory_remedies(facts))
    sentence = _gpu_memory_sentence(failure.what, facts.gpus)
    return _failure(facts, "OutOfMemory", f"GPU out of memory {where}", sentence, _gpu_memory_remedies(facts))


def _explain_non_finite(facts: RunFacts, failure: RunFailed) -> Failure:
    title = f"The loss is not finite at step {failure.step + 1}"
    sentence = f"{_capitalized(failure.what)}."
    if failure.where:  # first, for it is what a small screen must not cut off
        sentence = f"{_capitalized(failure.where)}. {sentence}"
    return _failure(facts, "NonFiniteLossError", title, sentence, _non_finite_remedies(facts, failure.what))


def _explain_disk_full(facts: RunFacts, failure: RunFailed) -> Failure:
    sentence = f"{_first_line(failure.what)}. Nothing that was complete is damaged."
    return _failure(facts, "DiskFull", f"The disk is full {_during(facts)}", sentence, _disk_remedies(facts))


def _explain_dataset(facts: RunFacts, failure: RunFailed) -> Failure:
    summary, *pictures = failure.what.splitlines() or [""]
    title = f"{_first_line(summary)}" if pictures else "The pictures cannot be used as they are"
    where = f"{failure.where}: " if failure.where else ""
    more = f" And {len(pictures) - 1} more, see the log." if len(pictures) > 1 else ""
    sentence = f"{where}{_first_line(pictures[0] if pictures else summary)}.{more}"
    remedies = [
        _change(facts, (("on_bad_image", "skip"),), "trains on the others, and lists what is left out"),
        _again(facts, "repair the files"),
        _look(facts, _dataset_key(facts)),
    ]
    return _failure(facts, "DatasetError", title, sentence, remedies)


def _explain_model(facts: RunFacts, failure: RunFailed) -> Failure:
    text = f"{failure.what} {failure.hint}"
    model = facts.setting("model")
    if re.search(r"gated|401|403|log ?in|token|access to", text, re.IGNORECASE):
        title = "The base model needs your login"
        sentence = f"{model} is shown only to those who accepted its licence on huggingface.co and ran `hf auth login`."
    elif re.search(r"there is no|not found|no such|not exist|neither|404|offline", text, re.IGNORECASE):
        title = "The base model is not there"
        sentence = f"{_first_line(failure.what)}."
    else:
        title = "The base model cannot be used"
        sentence = f"{_first_line(failure.what)}."
    if failure.hint:
        sentence += f" Remedy: {failure.hint}."
    return _failure(facts, "ModelError", title, sentence, [_look(facts, "model"), _again(facts, "put it there")])


def _explain_device(facts: RunFacts, failure: RunFailed) -> Failure:
    is_mismatch = re.search(
        r"driver|no kernel image|insufficient|unsupported|not compiled", failure.what, re.IGNORECASE
    )
    title = "The GPU's driver and PyTorch do not fit" if is_mismatch else f"The GPU failed {_during(facts)}"
    sentence = f"{_capitalized(_first_line(failure.what))}. `tuitrain doctor` checks driver, CUDA and card."
    if failure.exit_code == EXIT_DEVICE_LOST and facts.pid == os.getpid():
        sentence += " This process can use the GPU no more: leave it and start tuitrain anew."
        return _failure(facts, "DeviceError", title, sentence, [])
    return _failure(facts, "DeviceError", title, sentence, [_again(facts, "see that the GPU is well")])


def _explain_library(facts: RunFacts, failure: RunFailed) -> Failure:
    sentence = f"{_first_line(failure.what)}. {_capitalized(failure.hint)}."
    remedies = [_again(facts, "install it")]
    return _failure(facts, "LibraryError", "A library is missing or broken", sentence, remedies)


def _explain_config(facts: RunFacts, failure: RunFailed) -> Failure:
    key = next((key for key in re.findall(r"[a-z0-9_.]+", f"{failure.hint} {failure.what}") if _is_key(facts, key)), "")
    sentence = f"{' '.join(failure.what.splitlines()[:3])}."
    if failure.hint:
        sentence += f" Remedy: {failure.hint}."
    return _failure(facts, "ConfigError", "A setting cannot be trained with", sentence, [_look(facts, key)])


def _explain_other(facts: RunFacts, failure: RunFailed) -> Failure:
    """An error of tuitrain without remedies of its own, or a fault of it."""
    if failure.error in ("Bug", ""):
        title = f"tuitrain failed {_during(facts)}"
        sentence = (
            f"{_first_line(failure.what)}. This looks like a fault of tuitrain: y copies a report for its authors."
        )
    else:
        title = f"The run failed {_during(facts)}"
        sentence = f"{_first_line(failure.what)}."
        if failure.hint:
            sentence += f" Remedy: {failure.hint}."
    return _failure(facts, failure.error or "Bug", title, sentence, [_again(facts)])


_EXPLANATIONS: dict[str, Callable[[RunFacts, RunFailed], Failure]] = {
    "OutOfMemory": _explain_out_of_memory,
    "NonFiniteLossError": _explain_non_finite,
    "DiskFull": _explain_disk_full,
    "DatasetError": _explain_dataset,
    "ModelError": _explain_model,
    "DeviceError": _explain_device,
    "LibraryError": _explain_library,
    "ConfigError": _explain_config,
}


def _explain_death(facts: RunFacts) -> Failure:
    crash = re.search(rf"{_FATAL} (.*)", last_traceback(facts.log_tail))
    if crash:
        title = f"A library crashed {_during(facts)}"
        sentence = f"The process ended at once: {crash[1]}. The log has where."
    else:
        title = f"The run was killed {_during(facts)}"
        sentence = (
            "Its process ended without a word: killed from outside (kill -9), by the system because memory ran out, "
            "or with the machine. `dmesg` tells which."
        )
    remedies = [*_host_memory_remedies(facts)[:1], _again(facts)] if not crash else [_again(facts)]
    return _failure(facts, "Killed", title, sentence, remedies)


def _explain_silence(facts: RunFacts) -> Failure:
    since = f" since {time.strftime('%H:%M:%S', time.localtime(facts.updated))}" if facts.updated else ""
    holder = f"process {facts.pid}" + (f" on {facts.host}" if facts.host else "") if facts.pid else "a process"
    sentence = (
        f"Nothing was heard{since}, but {holder} still holds the run: a disk or the GPU's driver may keep it waiting. "
        "It goes on when they answer. `kill` ends it; what is saved stays."
    )
    return _failure(facts, "Silent", f"No sign of life {_during(facts)}", sentence, [])


# Their parts


def _failure(facts: RunFacts, error: str, title: str, sentence: str, remedies: Sequence[Remedy | None]) -> Failure:
    offered = [remedy for remedy in remedies if remedy is not None][:MAX_REMEDIES]
    keyed = tuple(replace(remedy, key=key) for key, remedy in zip(_KEYS, offered, strict=False))
    return Failure(title, sentence.replace("..", "."), _saved(facts), keyed, facts.log_path, error)


def _during(facts: RunFacts) -> str:
    """Where in the run it was: "at step 1641", "while sampling at step 500", "while caching latents"."""
    if facts.phase in ("train", ""):
        return f"at step {facts.step + 1}" if facts.step or facts.phase else "before its first step"
    words = {
        "import_libraries": "while importing libraries",
        "load_state": "while reading the saved state",
        "scan_images": "while looking at the pictures",
        "load_model": "while loading the model",
        "cache_latents": "while caching latents",
        "cache_text": "while caching captions",
        "sample": f"while sampling at step {facts.step}",
        "save": f"while saving step {facts.step}",
    }
    return words.get(facts.phase, f"in {phase_name(facts.phase)}")


def _saved(facts: RunFacts) -> str:
    """What is on disk, and how much work is not."""
    saved = None if facts.is_checkpoint_gone else facts.last_checkpoint
    num_lost = facts.step - (saved.step if saved else 0)
    if not facts.step and facts.last_checkpoint is None:
        return "no step was taken, nothing is lost"
    lost = f"{num_lost} steps lost"
    if facts.seconds_per_step:
        lost = f"{format_duration(num_lost * facts.seconds_per_step)} of work lost, {num_lost} steps"
    if facts.is_checkpoint_gone and facts.last_checkpoint is not None:
        return f"nothing: the checkpoint of step {facts.last_checkpoint.step} is gone from the disk ({lost})"
    if saved is None:
        return f"no checkpoint yet ({lost})"
    if not num_lost:
        return f"checkpoint of step {saved.step}, {format_bytes(saved.num_bytes)}; nothing is lost"
    return f"checkpoint of step {saved.step}, {format_bytes(saved.num_bytes)} ({lost})"


def _gpu_memory_sentence(what: str, gpus: "Sequence[GpuReading]") -> str:
    """PyTorch's numbers in one sentence; its own words where they are not understood."""
    needed = _gib(what, r"Tried to allocate ([\d.]+) (MiB|GiB)")
    total = _gib(what, r"total capacity of ([\d.]+) (MiB|GiB)")
    free = _gib(what, r"of which ([\d.]+) (MiB|GiB) is free")
    held = _gib(what, r"this process has ([\d.]+) (MiB|GiB) memory in use")
    if needed is None:
        return f"{_first_line(what)}."
    facts = [f"{total:.1f} GiB card"] if total else []
    facts += [f"{held:.1f} held by this run"] if held else []
    if total and free is not None and held:
        facts.append(f"{max(total - free - held, 0.0):.1f} by others")
    elif not total and gpus and gpus[0].memory_total_gib:
        facts.append(f"{gpus[0].memory_total_gib:.1f} GiB card")
    return f"Needed {needed:.1f} GiB more: {', '.join(facts)}." if facts else f"Needed {needed:.1f} GiB more."


def _gib(text: str, pattern: str) -> float | None:
    match = re.search(pattern, text)
    return None if match is None else float(match[1]) / (1024 if match[2] == "MiB" else 1)


def _gpu_memory_remedies(facts: RunFacts) -> list[Remedy | None]:
    """The cheapest first: what costs time but changes nothing that is learned."""
    batch, accumulated = facts.setting("train_batch_size"), facts.setting("gradient_accumulation_steps")
    remedies: list[Remedy | None] = []
    if facts.setting("on_oom") == "stop" and facts.phase == "train" and batch != 1:
        effect = "trains such a step in halves, and all after it: the same batch in all, more time"
        remedies.append(_change(facts, (("on_oom", "split"),), effect))
    if facts.setting("gradient_checkpointing") is False:
        effect = "less memory, est. +1/3 time"
        remedies.append(_change(facts, (("gradient_checkpointing", True),), effect))
    if facts.phase == "sample":
        effect = "the UNet makes room for decoding"
        remedies.append(_change(facts, (("enable_cpu_offload_during_validation", True),), effect))
    if facts.setting("cache_text_encoder_outputs") is False:
        gib = _NUM_TEXT_ENCODER_PARAMETERS * _DTYPE_BYTES.get(facts.setting("weight_dtype"), 4) / 2**30
        effect = f"est. {gib:.1f} GiB less"
        remedies.append(_change(facts, (("cache_text_encoder_outputs", True),), effect))
    if facts.setting("optimizer.use_8bit") is False:
        remedies.append(_change(facts, (("optimizer.use_8bit", True),), _effect_of_8bit(facts)))
    if isinstance(batch, int) and batch > 1 and isinstance(accumulated, int):
        overrides = (("train_batch_size", batch // 2), ("gradient_accumulation_steps", accumulated * 2))
        effect = "less memory" + (", the same batch in all" if batch % 2 == 0 else "")
        remedies.append(_change(facts, overrides, effect))
    if facts.setting("cache_vae_outputs") is False:
        remedies.append(_change(facts, (("cache_vae_outputs", True),), "est. 0.3 GiB less"))
    remedies.append(_look(facts, "data_loader.resolution"))
    return remedies


def _effect_of_8bit(facts: RunFacts) -> str:
    if not facts.num_trainable_parameters:
        return "smaller optimizer state"
    is_mixed = facts.setting("mixed_precision") not in ("no", None)
    state_bytes = 2 * (4 if is_mixed else _DTYPE_BYTES.get(facts.setting("weight_dtype"), 4))
    gib = facts.num_trainable_parameters * (state_bytes - 2) / 2**30
    return f"est. {gib:.1f} GiB less"


def _host_memory_remedies(facts: RunFacts) -> list[Remedy | None]:
    workers = facts.setting("data_loader.dataloader_num_workers")
    if not isinstance(workers, int) or workers == 0:
        return [_again(facts, "close other programs")]
    overrides = (("data_loader.dataloader_num_workers", workers // 2),)
    return [_change(facts, overrides, "each loader worker holds pictures of its own")]


def _non_finite_remedies(facts: RunFacts, what: str) -> list[Remedy | None]:
    lr, max_norm = facts.setting("optimizer.learning_rate"), facts.setting("max_grad_norm")
    remedies: list[Remedy | None] = []
    if facts.setting("mixed_precision") == "fp16":
        effect = "bfloat16 has float32's range: nothing overflows"
        overrides: tuple[tuple[str, Any], ...] = (("mixed_precision", "bf16"),)
        if facts.setting("weight_dtype") == "float16":
            overrides += (("weight_dtype", "bfloat16"),)
        remedies.append(_change(facts, overrides, effect))
    if isinstance(lr, int | float) and lr > 0:
        overrides = (("optimizer.learning_rate", float(f"{lr / 10:.3g}")),)
        remedies.append(_change(facts, overrides, "usually the rate is too high"))
    if "in a row" not in what:
        effect = "leaves such steps out, if they are few"
        remedies.append(_change(facts, (("on_non_finite", "skip"),), effect))
    if max_norm is None or (isinstance(max_norm, int | float) and max_norm > 1):
        remedies.append(_change(facts, (("max_grad_norm", 1.0),), "clips the gradient that blew up"))
    remedies.append(_look(facts, "optimizer.learning_rate"))
    return remedies


def _disk_remedies(facts: RunFacts) -> list[Remedy | None]:
    kept, size = facts.setting("max_checkpoints"), facts.last_checkpoint
    remedies: list[Remedy | None] = []
    if kept is None or (isinstance(kept, int) and kept > 1):
        each = f": {format_bytes(size.num_bytes)} each" if size else ""
        remedies.append(_change(facts, (("max_checkpoints", 1),), f"the older ones are deleted{each}"))
    if facts.setting("save_checkpoint_format") == "full_diffusers":
        overrides = (("save_checkpoint_format", "trained_only_diffusers"),)
        remedies.append(_change(facts, overrides, "only the UNet, est. a quarter less"))
    if facts.setting("save_dtype") == "float32":
        remedies.append(_change(facts, (("save_dtype", "float16"),), "half the size"))
    remedies.append(_again(facts, "make room"))
    remedies.append(_look(facts, "base_output_dir"))
    return remedies


def _change(facts: RunFacts, overrides: tuple[tuple[str, Any], ...], effect: str) -> Remedy | None:
    """Go on, or start again, with other settings; None where they would change nothing or break a rule."""
    if all(facts.setting(path) == value for path, value in overrides) or not _is_valid(facts, overrides):
        return None
    changes = ", ".join(f"{path}: {_show(facts.setting(path))} → {_show(value)}" for path, value in overrides)
    return Remedy("", _going_on(facts, changes), overrides, effect, resume_from=facts.resume_step)


def _again(facts: RunFacts, before: str = "") -> Remedy | None:
    """Go on, or start again, as it was, once the user has done what `before` says."""
    if not facts.config_values:
        return None
    again = "start again" if facts.resume_step is None else f"resume from step {facts.resume_step}"
    return Remedy("", f"{before}, then {again}" if before else again, resume_from=facts.resume_step)


def _going_on(facts: RunFacts, changes: str) -> str:
    return changes if facts.resume_step is None else f"resume from step {facts.resume_step} with {changes}"


def _look(facts: RunFacts, path: str) -> Remedy | None:
    label = f"open the config at {path}" if path else "open the config"
    return Remedy("", label, focus=path) if facts.config_values else None


def _is_valid(facts: RunFacts, overrides: tuple[tuple[str, Any], ...]) -> bool:
    from tuitrain.config.files import config_from_values  # pydantic: 0.1 s, and only after a failure
    from tuitrain.errors import ConfigError

    values = deepcopy(dict(facts.config_values))
    for path, value in overrides:
        *parents, last = path.split(".")
        group = values
        for key in parents:
            group = group.setdefault(key, {})
        group[last] = value
    try:
        config_from_values(values)
    except ConfigError:
        return False
    return True


def _is_key(facts: RunFacts, path: str) -> bool:
    *parents, last = path.split(".")
    group = facts.setting(".".join(parents)) if parents else facts.config_values
    return isinstance(group, Mapping) and last in group


def _dataset_key(facts: RunFacts) -> str:
    paths = [
        f"data_loader.{section}.{key}"
        for section in ("dataset", "instance_dataset")
        for key in ("jsonl_path", "dataset_dir", "dataset_name")
    ]
    return next((path for path in paths if facts.setting(path)), "data_loader")


def _show(value: Any) -> str:
    """A setting as YAML spells it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _first_line(text: str) -> str:
    """The first line without a full stop; PyTorch's advice behind it is for the log."""
    first = text.splitlines()[0] if text else ""
    return first.rstrip(". ")


# The report


_SECRET_WORDS = re.compile(
    r"\b(?:hf|sk|ghp|gho|glpat|wandb)[_-][A-Za-z0-9_-]{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?i:(?<=bearer )\S+)"
)
_SECRET_SETTING = re.compile(
    r"(?i)((?:api[_-]?key|access[_-]?key|token|secret|password|passwd|signature|authorization)[\"']?\s*[:=]\s*[\"']?)"
    r"[^\s\"',&]+"
)
_SECRET_NAMES = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_REDACTED = "[redacted]"
_NUM_REPORT_LINES = 60


def report(failure: Failure, facts: RunFacts, *, environment: Mapping[str, str]) -> str:
    """What to paste into a report of the failure: versions, changed settings, the end of the log, the GPUs.

    Args:
        environment: variables whose values must not appear, such as HF_TOKEN.
    """
    lines = [
        f"# {failure.title}",
        failure.sentence,
        f"saved: {failure.saved}",
        *(_event_lines(facts.failure) if facts.failure else []),
        "",
        "## versions",
        *(f"{name} {version}" for name, version in _all_versions(facts).items()),
        "",
        "## GPU",
        *(map(_describe_gpu, facts.gpus) if facts.gpus else ["none"]),
        "",
        "## settings that differ from their defaults",
        *_changed_settings(facts.config_values),
        "",
        f"## last {_NUM_REPORT_LINES} lines of the log",
        *facts.log_tail.splitlines()[-_NUM_REPORT_LINES:],
    ]
    return redact("\n".join(lines), environment) + "\n"


def redact(text: str, environment: Mapping[str, str]) -> str:
    """`text` without passwords and tokens: those of `environment` by value, others by their looks."""
    values = {value for name, value in environment.items() if _SECRET_NAMES.search(name) and len(value) >= 8}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, _REDACTED)
    return _SECRET_SETTING.sub(rf"\1{_REDACTED}", _SECRET_WORDS.sub(_REDACTED, text))


def _event_lines(event: RunFailed) -> Iterator[str]:
    yield f"error: {event.error or 'unknown'}: {event.what}"
    yield f"step {event.step}, exit code {event.exit_code}"


def _all_versions(facts: RunFacts) -> dict[str, str]:
    import platform

    return {**facts.versions, "python": platform.python_version(), "system": platform.platform()}


def _describe_gpu(gpu: "GpuReading") -> str:
    used, total = gpu.memory_used_gib, gpu.memory_total_gib
    memory = f", {used:.1f} of {total:.1f} GiB in use" if used is not None and total is not None else ""
    return f"{gpu.index}: {gpu.name}{memory}"


def _changed_settings(values: Mapping[str, Any]) -> list[str]:
    if not values:
        return ["unknown: the run's config.json cannot be read"]
    from tuitrain.config.fields import existing_fields, value_at  # pydantic: 0.1 s

    changed = []
    for field in existing_fields(values):
        value = value_at(values, field.path)
        if field.type != "group" and (field.required or value != field.default):
            changed.append(f"{field.path}: {_show(value)}")
    return changed
