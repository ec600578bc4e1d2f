"""What can happen in a Run: one frozen dataclass per kind of fact; knows neither who writes nor who reads.

In the journal an Event is one line of JSON, `{"kind":"StepLogged","time":1715373799.36,...}`: the name of its class,
then its fields. Readers keep unknown kinds as UnknownEvent and ignore unknown fields, so that an older screen can
follow a newer engine. Non-finite floats are the strings "nan", "inf" and "-inf" (see records.py).

The docstrings here are the source of docs/events.md (see event_docs.py).
"""

import json
from dataclasses import dataclass, field
from time import time as unix_time
from typing import Any, Literal

from tuitrain.runs.records import from_values, to_json

PhaseName = Literal[
    "import_libraries",
    "load_state",
    "scan_images",
    "load_model",
    "cache_latents",
    "cache_text",
    "train",
    "sample",
    "save",
]
CacheName = Literal["latents", "text"]
FinishReason = Literal["completed", "stopped"]
ErrorName = Literal[
    "ConfigError",
    "DatasetError",
    "ModelError",
    "DeviceError",
    "NonFiniteLossError",
    "CheckpointError",
    "OutOfMemory",
    "DiskFull",
    "LibraryError",
    "TuitrainError",
    "Bug",
    "",
]
"""What ended a run: an error of tuitrain.errors, a fact of the machine, or a fault of tuitrain; "" when unknown."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One immutable fact.

    Args:
        time: when it happened, Unix seconds.
    """

    time: float = field(default_factory=unix_time)


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """A line this version cannot read as one of its own kinds; kept, never acted upon.

    Args:
        kind: the kind on the line, empty when the line is not a JSON object.
        fields: its other fields, or {"line": text} when the line is not a JSON object.
    """

    kind: str
    fields: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A process took the run in hand; each resume has one more, when its state is restored.

    Args:
        run_id: name of the run's folder.
        pid: process id of the engine.
        host: name of its machine.
        tuitrain_version: version of this program.
        versions: versions of the libraries that decide the numbers, by name.
        device: the device trained on, "cpu" or the GPU's name.
        world_size: number of processes that train together.
        config_hash: sha256 of the canonical config.
        seed: the seed that all randomness comes from.
        resumed_from: the step it goes on from; what was journalled beyond is abandoned. null at a fresh start.
    """

    run_id: str
    pid: int
    host: str
    tuitrain_version: str
    versions: dict[str, str]
    device: str
    world_size: int
    config_hash: str
    seed: int
    resumed_from: int | None


@dataclass(frozen=True, kw_only=True)
class PhaseStarted(Event):
    """The engine entered a phase.

    A session begins with "import_libraries", before RunStarted; one that resumes has all its phases but "train" before,
    "load_state" among them. "sample" and "save" happen inside "train".

    Args:
        phase: import_libraries, load_state, scan_images, load_model, cache_latents, cache_text, train, sample or save.
    """

    phase: PhaseName


@dataclass(frozen=True, kw_only=True)
class PhaseProgressed(Event):
    """A phase advanced; written about once a second.

    Args:
        phase: as in PhaseStarted.
        done: items finished: libraries, pictures, networks, captions, denoising steps of all samples, or bytes.
        total: items there are.
        detail: what is at work, such as "sample 2/4"; empty when there is nothing to add.
        seconds: since the phase began, by a clock that nobody sets; 0 in older journals.
    """

    phase: PhaseName
    done: int
    total: int
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PhaseFinished(Event):
    """A phase ended well.

    Args:
        phase: as in PhaseStarted.
        seconds: how long it took.
        detail: its outcome in words, such as "120 pictures, 2 skipped".
    """

    phase: PhaseName
    seconds: float
    detail: str


@dataclass(frozen=True, kw_only=True)
class ImageRejected(Event):
    """A picture cannot be trained on and is skipped.

    Args:
        path: the file, or the name of the row.
        reason: what is wrong with it.
    """

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ImageNoted(Event):
    """A picture or caption is used, but not as it stands.

    Args:
        path: the file, or the name of the row.
        note: what was done, such as "first frame of 12".
    """

    path: str
    note: str


@dataclass(frozen=True, kw_only=True)
class DatasetScanned(Event):
    """Every picture was decoded once; what will be trained on is known.

    Args:
        num_images: pictures used.
        num_skipped: pictures rejected.
        buckets: number of pictures by training size, "HxW".
        steps_per_epoch: optimizer steps in an epoch.
        total_steps: optimizer steps in the run.
        num_epochs: epochs in the run, the last one perhaps in part.
    """

    num_images: int
    num_skipped: int
    buckets: dict[str, int]
    steps_per_epoch: int
    total_steps: int
    num_epochs: int


@dataclass(frozen=True, kw_only=True)
class CacheFilled(Event):
    """Everything a run needs of one cache is on disk.

    Args:
        cache: "latents" or "text".
        encoded: entries made now.
        reused: entries found from before.
        seconds: how long it took.
    """

    cache: CacheName
    encoded: int
    reused: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ModelLoaded(Event):
    """The base model is in memory.

    Args:
        model: as named in the config.
        prediction_type: "epsilon" or "v_prediction", as trained.
        zero_terminal_snr: whether the noise schedule ends in pure noise.
        num_trainable_parameters: how many numbers are trained.
        seconds: how long loading took.
    """

    model: str
    prediction_type: str
    zero_terminal_snr: bool
    num_trainable_parameters: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StepLogged(Event):
    """Optimizer steps were taken since the last log.

    Args:
        step: completed optimizer steps.
        epoch: completed epochs.
        loss: mean over the steps since the last log.
        lr: learning rate of the last of these steps.
        grad_norm: norm of the gradient before clipping; null when not measured.
        seconds_per_step: mean over the steps since the last log.
        images_per_second: over all processes.
        data_seconds: how long a step waited for its data, mean over the steps since the last log.
        allocated_memory_gib: device memory in this process's tensors now, GiB; null on a CPU.
        reserved_memory_gib: device memory that this process holds for tensors, in use or not, GiB; null on a CPU.
        peak_memory_gib: highest device memory in use since the last log, GiB; null on a CPU.
        d: the factor that Prodigy multiplies the learning rate with; null for other optimizers.
    """

    step: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float | None = None
    seconds_per_step: float
    images_per_second: float
    data_seconds: float | None = None
    allocated_memory_gib: float | None = None
    reserved_memory_gib: float | None = None
    peak_memory_gib: float | None = None
    d: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpochFinished(Event):
    """Every picture was seen once more.

    Args:
        epoch: completed epochs.
        step: completed optimizer steps.
    """

    epoch: int
    step: int


@dataclass(frozen=True, kw_only=True)
class SampleImage:
    """One validation image of a SamplesSaved.

    Args:
        path: the file, relative to the run's folder.
        prompt_index: which of the validation prompts, from 0.
        image_index: which of its images, from 0.
        prompt: the text.
    """

    path: str
    prompt_index: int
    image_index: int
    prompt: str


@dataclass(frozen=True, kw_only=True)
class SamplesSaved(Event):
    """Validation images were generated with the weights as they are.

    Args:
        step: completed optimizer steps.
        epoch: completed epochs.
        images: objects with path (relative to the run's folder), prompt_index, image_index and prompt.
        seconds: how long it took.
    """

    step: int
    epoch: int
    images: list[SampleImage]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint stands complete under its final name.

    Args:
        step: completed optimizer steps.
        epoch: completed epochs.
        name: its folder in checkpoints/.
        num_bytes: size of its files.
        seconds: how long it took; training goes on meanwhile.
        stall_seconds: of them, how long training waited; null in journals of older versions.
    """

    step: int
    epoch: int
    name: str
    num_bytes: int
    seconds: float
    stall_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class SaveFailed(Event):
    """A checkpoint could not be written; the run waits for room or goes on, unprotected since the last.

    Args:
        step: of the checkpoint.
        what: why, with values.
        hint: what to change.
    """

    step: int
    what: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckpointPruned(Event):
    """An old checkpoint was deleted to keep within max_checkpoints.

    Args:
        name: its folder in checkpoints/.
    """

    name: str


@dataclass(frozen=True, kw_only=True)
class CommandReceived(Event):
    """The engine took a Command; CommandObeyed follows when it is done, after the current step or phase.

    A stop cuts the preparation and the sampling short.

    Args:
        command: "pause", "resume", "save", "sample", "stop" or "discard".
    """

    command: str


@dataclass(frozen=True, kw_only=True)
class CommandObeyed(Event):
    """The engine did what a Command asked for.

    Args:
        command: "pause", "resume", "save", "sample", "stop" or "discard".
    """

    command: str


@dataclass(frozen=True, kw_only=True)
class Paused(Event):
    """Training waits between two steps.

    Args:
        step: completed optimizer steps.
    """

    step: int


@dataclass(frozen=True, kw_only=True)
class Unpaused(Event):
    """Training goes on after a pause.

    Args:
        step: completed optimizer steps.
    """

    step: int


@dataclass(frozen=True, kw_only=True)
class WarningRaised(Event):
    """Something is not as it should be, and the run goes on.

    Args:
        what: the fact, with values.
        hint: what to change.
    """

    what: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The run ended as it should.

    Args:
        step: completed optimizer steps.
        epoch: completed epochs.
        reason: "completed", or "stopped" by a command.
        seconds: from RunStarted to here.
    """

    step: int
    epoch: int
    reason: FinishReason
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunFailed(Event):
    """The run ended by an error; the traceback is in the run's log.txt.

    Args:
        what: the fact, with values.
        hint: what to change.
        where: file, line, key or step.
        step: completed optimizer steps.
        exit_code: the status the process ends with.
        error: OutOfMemory, DiskFull, LibraryError, Bug, or an error of tuitrain.errors; empty in older journals.
    """

    what: str
    hint: str = ""
    where: str = ""
    step: int
    exit_code: int
    error: ErrorName = ""


EVENT_KINDS: dict[str, type[Event]] = {
    kind.__name__: kind for kind in Event.__subclasses__() if kind is not UnknownEvent
}


def event_to_line(event: Event) -> str:
    """`event` as one line of ASCII JSON, kind first, without the newline."""
    if isinstance(event, UnknownEvent):
        return to_json({"kind": event.kind, "time": event.time, **event.fields})
    return to_json({"kind": type(event).__name__, **vars(event)})


def event_from_line(line: str | bytes) -> Event:
    """The Event on `line`; an UnknownEvent when its kind or its fields are not as this version writes them."""
    try:
        values = json.loads(line)
        kind = values["kind"]
    except (ValueError, TypeError, KeyError, RecursionError):
        text = line if isinstance(line, str) else line.decode("utf-8", "backslashreplace")
        return UnknownEvent(time=0.0, kind="", fields={"line": text})
    try:
        return from_values(EVENT_KINDS[kind], values)
    except (ValueError, TypeError, KeyError):
        fields = {name: value for name, value in values.items() if name not in ("kind", "time")}
        written = values.get("time")
        return UnknownEvent(time=written if isinstance(written, int | float) else 0.0, kind=str(kind), fields=fields)


def step_of(event: Event) -> int | None:
    """The optimizer step `event` speaks of, or None when it speaks of none."""
    step = event.fields.get("step") if isinstance(event, UnknownEvent) else getattr(event, "step", None)
    return step if isinstance(step, int) else None
