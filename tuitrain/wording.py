"""Events, numbers and texts of others in words for a person; knows no terminal and no screen."""

import unicodedata
from collections.abc import Mapping, Sequence

from tuitrain.errors import Problem
from tuitrain.runs.events import (
    CacheFilled,
    CheckpointPruned,
    CheckpointSaved,
    CommandObeyed,
    CommandReceived,
    DatasetScanned,
    EpochFinished,
    Event,
    ImageNoted,
    ImageRejected,
    ModelLoaded,
    Paused,
    PhaseFinished,
    PhaseProgressed,
    PhaseStarted,
    RunFailed,
    RunFinished,
    RunStarted,
    SamplesSaved,
    SaveFailed,
    StepLogged,
    UnknownEvent,
    Unpaused,
    WarningRaised,
    event_to_line,
)

PHASE_NAMES = {
    "import_libraries": "import libraries",
    "load_state": "read the saved state",
    "scan_images": "scan pictures",
    "load_model": "load model",
    "cache_latents": "cache latents",
    "cache_text": "cache captions",
    "train": "train",
    "sample": "sample",
    "save": "save",
}
PHASES_IN_BYTES = frozenset({"load_state", "load_model", "save"})
"""Phases whose progress counts bytes."""

# Categories a terminal obeys (Cc), hides or reorders text by (Cf), cannot encode (Cs) or breaks lines at (Zl, Zp).
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # Cf, but scripts and emoji need them and they move nothing
_C0_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*range(0x20), 0x7F)}


def escape_control(text: str) -> str:
    r"""`text` on one line, each character a terminal would obey, hide or reorder by replaced: ESC becomes `\x1b`."""
    return "".join(
        character.encode("ascii", "backslashreplace").decode("ascii") if _is_control(character) else character
        for character in text.translate(_C0_ESCAPES)
    )


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in _ESCAPED_CATEGORIES and character not in _JOINERS


def format_duration(seconds: float) -> str:
    """H:MM:SS, or M:SS below an hour."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_age(seconds: float) -> str:
    """How long ago, in one unit: `3 min`, `2 days`."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {'day' if unit == 'days' and count == 1 else unit}"
    return "now"


def format_bytes(num_bytes: float) -> str:
    """With a binary unit and two or three digits: 4.2 MiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def format_speed(seconds_per_step: float) -> str:
    """Steps a second when fast, seconds a step when slow."""
    if seconds_per_step <= 0:
        return "- it/s"
    return f"{1 / seconds_per_step:.2f} it/s" if seconds_per_step < 1 else f"{seconds_per_step:.2f} s/it"


def format_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Lines with aligned columns; the keys of the first row are the head."""
    escaped = [{name: escape_control(cell) for name, cell in row.items()} for row in rows]
    names = list(escaped[0])
    widths = {name: max(len(name), *(len(row[name]) for row in escaped)) for name in names}
    lines = [dict(zip(names, names, strict=True)), *escaped]
    return ["  ".join(row[name].ljust(widths[name]) for name in names).rstrip() for row in lines]


def describe(event: Event, *, total_steps: int | None) -> str:
    """`event` as one sentence; not escaped.

    Args:
        event: what happened.
        total_steps: optimizer steps in the run, None while unknown.
    """
    match event:
        case RunStarted():
            origin = "" if event.resumed_from is None else f", from step {event.resumed_from}"
            return f"run {event.run_id} started on {event.device} (seed {event.seed}{origin})"
        case PhaseStarted():
            return f"{phase_name(event.phase)}: started"
        case PhaseProgressed():
            return f"{phase_name(event.phase)}: {describe_amount(event)}"
        case PhaseFinished():
            detail = f": {event.detail}" if event.detail else ""
            return f"{phase_name(event.phase)}: done in {format_duration(event.seconds)}{detail}"
        case ImageRejected():
            return f"skipped {event.path}: {event.reason}"
        case ImageNoted():
            return f"note {event.path}: {event.note}"
        case DatasetScanned():
            buckets = ", ".join(f"{count} at {size}" for size, count in event.buckets.items())
            return (
                f"{event.num_images} pictures ({buckets}), {event.num_skipped} skipped: "
                f"{event.total_steps} steps, {event.num_epochs} epochs of {event.steps_per_epoch}"
            )
        case CacheFilled():
            return f"{phase_name(f'cache_{event.cache}')}: {event.encoded} encoded, {event.reused} reused"
        case ModelLoaded():
            terminal = ", zero terminal SNR" if event.zero_terminal_snr else ""
            millions = event.num_trainable_parameters / 1e6
            return f"model {event.model}: {event.prediction_type}{terminal}, {millions:.1f} M parameters to train"
        case StepLogged():
            return f"step {_of_total(event.step, total_steps)}  epoch {event.epoch}  " + "  ".join(
                describe_step(event, total_steps=total_steps)
            )
        case EpochFinished():
            return f"epoch {event.epoch} finished at step {event.step}"
        case SamplesSaved():
            return f"{len(event.images)} samples at step {event.step} in {format_duration(event.seconds)}"
        case CheckpointSaved():
            return f"checkpoint {event.name} ({format_bytes(event.num_bytes)})"
        case SaveFailed():
            return f"step {event.step} is not saved: {event.what}" + (f" ({event.hint})" if event.hint else "")
        case CheckpointPruned():
            return f"pruned {event.name}"
        case CommandReceived():
            return f"received: {event.command}"
        case CommandObeyed():
            return f"obeyed: {event.command}"
        case Paused():
            return f"paused at step {event.step}"
        case Unpaused():
            return f"going on from step {event.step}"
        case WarningRaised():
            return f"warning: {event.what}" + (f" ({event.hint})" if event.hint else "")
        case RunFinished():
            return f"{event.reason} at step {event.step} in {format_duration(event.seconds)}"
        case RunFailed():
            return f"failed at step {event.step}: {Problem(event.what, event.hint, event.where)}"
        case UnknownEvent():
            return f"{event.kind} {event.fields}"
        case _:
            return event_to_line(event)


def describe_step(event: StepLogged, *, total_steps: int | None) -> list[str]:
    """The numbers of a logged step, most wanted first: loss, speed, time left, memory, learning rate."""
    facts = [f"loss {event.loss:.4f}", format_speed(event.seconds_per_step)]
    if total_steps is not None:
        facts.append(f"{format_duration((total_steps - event.step) * event.seconds_per_step)} left")
    if event.peak_memory_gib is not None:
        facts.append(f"{event.peak_memory_gib:.1f} GiB")
    return [*facts, f"lr {event.lr:.3g}"]


def describe_amount(event: PhaseProgressed) -> str:
    """How far a phase is, and what is at work: "18/30 sample 2/4", "3.1 GiB/5.1 GiB"."""
    return f"{format_amount(event.phase, event.done, event.total)} {event.detail}".rstrip()


def format_amount(phase: str, done: int, total: int) -> str:
    """What is done of what there is, in the unit of `phase`."""
    return f"{format_bytes(done)}/{format_bytes(total)}" if phase in PHASES_IN_BYTES else f"{done}/{total}"


def phase_name(phase: str) -> str:
    return PHASE_NAMES.get(phase, phase)


def _of_total(step: int, total_steps: int | None) -> str:
    return f"{step}" if total_steps is None else f"{step}/{total_steps}"
