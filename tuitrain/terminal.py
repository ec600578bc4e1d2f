"""Shows a run's events to a person or to a program; knows neither the config nor the engine.

Captions, file names and error texts come from files that other people wrote, and a terminal obeys some characters:
whatever is written for a person passes through `escape_control`, and rich is never given markup.
"""

import json
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from time import time
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tuitrain.errors import Problem
from tuitrain.runs.events import (
    CacheFilled,
    CheckpointPruned,
    CheckpointSaved,
    CommandObeyed,
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
    StepLogged,
    UnknownEvent,
    Unpaused,
    WarningRaised,
    event_to_line,
)

PHASE_NAMES = {
    "scan_images": "scan pictures",
    "load_model": "load model",
    "cache_latents": "cache latents",
    "cache_text": "cache captions",
    "train": "train",
}

_NON_FINITE = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}

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


def write_line(text: str, *, stream: TextIO | None = None) -> None:
    """One line for a person, on stdout by default."""
    (stream or sys.stdout).write(escape_control(text) + "\n")


def write_text(text: str) -> None:
    """A file's text on stdout: as it stands into a file or pipe, line by line and escaped into a terminal."""
    if sys.stdout.isatty():
        for line in text.splitlines():
            write_line(line)
    else:
        sys.stdout.write(text)


def write_json(value: Any) -> None:
    """One line of strict ASCII JSON on stdout; paths become text, and so do numbers that are not finite."""
    strict = json.loads(json.dumps(value, default=str), parse_constant=_NON_FINITE.__getitem__)
    sys.stdout.write(_without_delete(json.dumps(strict)) + "\n")


def write_problems(problems: Sequence[Problem]) -> None:
    """One line on stderr for each problem."""
    for problem in problems:
        write_line(f"error: {problem}", stream=sys.stderr)


def format_duration(seconds: float) -> str:
    """H:MM:SS, or M:SS below an hour."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
            return f"{_phase_name(event.phase)}: started"
        case PhaseProgressed():
            return f"{_phase_name(event.phase)}: {event.done}/{event.total}"
        case PhaseFinished():
            detail = f": {event.detail}" if event.detail else ""
            return f"{_phase_name(event.phase)}: done in {format_duration(event.seconds)}{detail}"
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
            return f"{_phase_name(f'cache_{event.cache}')}: {event.encoded} encoded, {event.reused} reused"
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
        case CheckpointPruned():
            return f"pruned {event.name}"
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


class EventView(Protocol):
    """Something that shows events as they come."""

    def show(self, event: Event) -> None:
        """Show `event`, the next one of the run."""

    def notice(self, text: str) -> None:
        """Tell a person something that is not an event of the run."""

    def tick(self) -> None:
        """Show that time passes; called a few times a second."""

    def close(self) -> None:
        """Leave the terminal as it was found; may be called twice."""


class JsonView:
    """Events as they stand in the journal, one line each: for programs."""

    def show(self, event: Event) -> None:
        sys.stdout.write(_without_delete(event_to_line(event)) + "\n")
        sys.stdout.flush()

    def notice(self, text: str) -> None:
        pass

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass


class LineView:
    """One line of text for each event: for logs and pipes."""

    def __init__(self) -> None:
        self._total_steps: int | None = None

    def show(self, event: Event) -> None:
        if isinstance(event, DatasetScanned):
            self._total_steps = event.total_steps
        self._write(event.time, describe(event, total_steps=self._total_steps))

    def notice(self, text: str) -> None:
        self._write(time(), text)

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _write(self, unix_time: float, text: str) -> None:
        write_line(f"{datetime.fromtimestamp(unix_time):%H:%M:%S} {text}")
        sys.stdout.flush()


class ProgressView:
    """A progress line that stays at the bottom of a terminal, and a line above it for what is worth keeping."""

    # The bar shows these while they happen; a failure is told on stderr when all is over.
    _NOT_KEPT = (PhaseStarted, PhaseProgressed, CacheFilled, StepLogged, EpochFinished, RunFailed)

    def __init__(self, console: Console | None = None) -> None:
        self._total_steps: int | None = None
        # Drawn by tick(): a drawing thread could hold the terminal at the moment when a second Ctrl-C leaves.
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console or Console(markup=False, highlight=False),
            auto_refresh=False,
            transient=True,
        )
        # Importing torch and its family takes seconds in which nothing is journalled.
        self._task: TaskID | None = self._progress.add_task("load libraries", total=None, facts="")
        self._progress.start()

    def show(self, event: Event) -> None:
        match event:
            case DatasetScanned():
                self._total_steps = event.total_steps
            case PhaseStarted():
                self._begin(event.phase)
            case PhaseProgressed():
                self._advance(event.done, total=event.total, facts="")
            case StepLogged():
                facts = describe_step(event, total_steps=self._total_steps)
                self._advance(event.step, total=self._total_steps, facts="  ".join(facts))
            case RunStarted() | PhaseFinished() | RunFinished() | RunFailed():
                self._end()
        if not isinstance(event, self._NOT_KEPT):
            self.notice(describe(event, total_steps=self._total_steps))

    def notice(self, text: str) -> None:
        self._progress.console.print(Text(escape_control(text)), soft_wrap=True)

    def tick(self) -> None:
        self._progress.refresh()

    def close(self) -> None:
        self._progress.stop()

    def _begin(self, phase: str) -> None:
        self._end()
        total = self._total_steps if phase == "train" else None
        self._task = self._progress.add_task(escape_control(_phase_name(phase)), total=total, facts="")

    def _advance(self, done: int, *, total: int | None, facts: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total, facts=facts)

    def _end(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


def event_view(*, as_json: bool) -> EventView:
    """The view that suits whoever reads stdout."""
    if as_json:
        return JsonView()
    return ProgressView() if sys.stdout.isatty() else LineView()


@contextmanager
def bytes_shown(description: str, *, is_wanted: bool) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, total) bytes that draws a bar on stderr while a person looks; gone at the end."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, markup=False, highlight=False)
    with Progress(
        *columns, console=console, transient=True, disable=not (is_wanted and sys.stderr.isatty())
    ) as progress:
        task = progress.add_task(escape_control(description), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _phase_name(phase: str) -> str:
    return PHASE_NAMES.get(phase, phase)


def _of_total(step: int, total_steps: int | None) -> str:
    return f"{step}" if total_steps is None else f"{step}/{total_steps}"


def _without_delete(line: str) -> str:
    """ASCII JSON escapes every control character but DEL."""
    return line.replace("\x7f", "\\u007f")
