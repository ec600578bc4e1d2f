"""Shows a run's events to a person or to a program; knows neither the config nor the engine.

Captions, file names and error texts come from files that other people wrote, and a terminal obeys some characters:
whatever is written for a person passes through `escape_control`, and rich is never given markup.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from time import monotonic, time
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
)
from rich.text import Text

from tuitrain.errors import Problem
from tuitrain.export.progress import ProgressReport, describe_progress
from tuitrain.runs.events import (
    CacheFilled,
    CommandReceived,
    DatasetScanned,
    EpochFinished,
    Event,
    PhaseFinished,
    PhaseProgressed,
    PhaseStarted,
    RunFailed,
    RunFinished,
    RunStarted,
    StepLogged,
    event_to_line,
)
from tuitrain.wording import PHASES_IN_BYTES, describe, describe_step, escape_control, phase_name

_NON_FINITE = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}


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


def write_drawing(text: str) -> None:
    """Lines that we drew ourselves, colours and all, on stdout; what they quote must be escaped already."""
    sys.stdout.write(text + "\n")


def stdout_has_color() -> bool:
    """Whether stdout is a terminal whose user has not said no to colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_size() -> tuple[int, int]:
    """Columns and rows of the terminal; 80 and 24 where there is none."""
    return shutil.get_terminal_size()


def write_json(value: Any) -> None:
    """One line of strict ASCII JSON on stdout; paths become text, and so do numbers that are not finite."""
    strict = json.loads(json.dumps(value, default=str), parse_constant=_NON_FINITE.__getitem__)
    sys.stdout.write(_without_delete(json.dumps(strict)) + "\n")


def write_problems(problems: Sequence[Problem]) -> None:
    """One line on stderr for each problem."""
    for problem in problems:
        write_line(f"error: {problem}", stream=sys.stderr)


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
    _NOT_KEPT = (
        PhaseStarted,
        PhaseProgressed,
        CacheFilled,
        StepLogged,
        EpochFinished,
        CommandReceived,
        RunFailed,
    )
    _INSIDE_TRAINING = ("sample", "save")  # SamplesSaved and CheckpointSaved tell how they ended

    def __init__(self, console: Console | None = None, *, step: int = 0, total_steps: int | None = None) -> None:
        self._step = step
        self._total_steps = total_steps
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
            redirect_stdout=console is None,  # what others print appears above the bar; else it goes where it goes
            redirect_stderr=console is None,
        )
        # Until the trainer's thread has journalled its first event.
        self._task: TaskID | None = self._progress.add_task("load libraries", total=None, facts="")
        self._progress.start()

    def show(self, event: Event) -> None:
        match event:
            case DatasetScanned():
                self._total_steps = event.total_steps
            case PhaseStarted():
                self._begin(event.phase)
            case PhaseProgressed():
                unit = 2**20 if event.phase in PHASES_IN_BYTES else 1
                facts = [*(["MiB"] if unit > 1 else []), escape_control(event.detail)]
                self._advance(event.done // unit, total=event.total // unit, facts=" ".join(facts))
            case StepLogged():
                self._step = event.step
                facts = describe_step(event, total_steps=self._total_steps)
                self._advance(event.step, total=self._total_steps, facts="  ".join(facts))
            case PhaseFinished(phase=phase) if phase in self._INSIDE_TRAINING:
                self._begin("train")
                self._advance(self._step, total=self._total_steps, facts="")
                return
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
        self._task = self._progress.add_task(escape_control(phase_name(phase)), total=total, facts="")

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
def export_shown(*, is_wanted: bool) -> Iterator[Callable[[ProgressReport], None]]:
    """A function that draws how far an export is on stderr while a person looks; gone at the end."""
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
    console = Console(stderr=True, markup=False, highlight=False)
    start: float | None = None
    with Progress(
        *columns, console=console, transient=True, disable=not (is_wanted and sys.stderr.isatty())
    ) as progress:
        task = progress.add_task("load libraries", total=1.0)

        def draw(report: ProgressReport) -> None:
            nonlocal start
            start = start or monotonic()  # the libraries are loaded now, which says nothing of the work
            facts = escape_control(describe_progress(report, monotonic() - start))
            progress.update(task, description=facts, completed=report.share)

        yield draw


def _without_delete(line: str) -> str:
    """ASCII JSON escapes every control character but DEL."""
    return line.replace("\x7f", "\\u007f")
