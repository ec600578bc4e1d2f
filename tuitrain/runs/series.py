"""The numbers of a Run as columns to plot, and their reduction to the width of a chart; knows nothing of screens.

A journal of a million steps is opened within seconds: the lines of StepLogged are matched many at a time and only what
every screen needs is converted at once (`load_journal`).
"""

import math
import operator
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final, Literal

from tuitrain.runs.events import CheckpointSaved, Event, RunStarted, SamplesSaved, StepLogged, event_from_line
from tuitrain.runs.journal import JournalTail

Metric = Literal["loss", "lr", "grad_norm", "speed", "memory", "d"]

METRIC_LABELS: Final[dict[Metric, str]] = {
    "loss": "loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "speed": "it/s",
    "memory": "peak GiB",
    "d": "Prodigy d",
}
NOISY_METRICS: Final[frozenset[Metric]] = frozenset({"loss", "grad_norm", "speed"})
"""Those worth smoothing; the others say the same without."""

DEFAULT_SMOOTHING: Final = 0.98
"""Factor of the exponential moving average, as in TensorBoard: 0 none, nearer to 1 more."""

NUM_LOSSES_TO_JUDGE: Final = 20
"""Before so many are known, none is the best and none a spike."""

SPIKE_DEVIATIONS: Final = 6.0
SPIKE_RATIO: Final = 2.0
"""A spike is that many standard deviations above the smoothed loss and that many times as high, which spares a nearly
constant loss."""

_OPTIONAL: Final[tuple[Metric, ...]] = ("grad_norm", "memory", "d")  # null where they are not measured

_NO_BIAS = 1e-17  # 1 minus it is 1

_RECENT_BYTES = 1 << 18  # about 1000 steps
_CHUNK_BYTES = 1 << 18  # 1 ms of matching, which other threads have to wait for

_STEP_LINE = re.compile(  # as event_to_line writes StepLogged, in three parts; what differs goes the slow way
    rb'\{"kind":"StepLogged","time":[^,]++,"step":(\d{1,18}+),"epoch":\d++,"loss":([-+.\deE]++|"nan"|"-?inf")'
    rb"(,[^\n]++(?<=\})\n)"
)
_OTHER_LINE = re.compile(rb'\n\{"kind":"(?!StepLogged",)[^\n]*+')  # the literal start makes the search cheap
_FIELDS: Final[dict[Metric, re.Pattern[bytes]]] = {
    "lr": re.compile(rb',"lr":([^,}]++)'),
    "grad_norm": re.compile(rb',"grad_norm":([^,}]++)'),
    "speed": re.compile(rb',"seconds_per_step":([^,}]++)'),
    "memory": re.compile(rb',"peak_memory_gib":([^,}]++)'),
    "d": re.compile(rb',"d":([^,}]++)'),
}


class Smoothed:
    """An exponential moving average without the bias of its start, as in TensorBoard, growing with what it is of.

    After n finite values x_1..x_n it is sum(f^(n-i) x_i) / sum(f^(n-i)); a value that is not finite leaves it as it is.

    Args:
        factor: f; 0 gives the values themselves, must be below 1.

    Attributes:
        values: the average after each value; NaN until the first finite one.
        mean: the last of them.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.values = array("d")
        self.mean = math.nan
        self._bias = 1.0  # f^n

    def extend(self, values: Iterable[float]) -> None:
        """Go on with `values`; 0.07 µs each."""
        factor, mean, bias, weight = self.factor, self.mean, self._bias, 1.0 - self.factor
        append = self.values.append
        for value in values:
            if value - value == 0.0:  # finite
                if bias > _NO_BIAS:
                    mean = mean if bias < 1.0 else value
                    bias *= factor
                    mean += (value - mean) * weight / (1.0 - bias)
                else:
                    mean += (value - mean) * weight
            append(mean)
        self.mean, self._bias = mean, bias


def is_spike(loss: float, mean: float, mean_square: float) -> bool:
    """Whether `loss` is out of all proportion, or not finite.

    Args:
        mean, mean_square: of the losses before it, smoothed; at least NUM_LOSSES_TO_JUDGE of them when it is finite.
    """
    if not math.isfinite(loss):
        return True
    deviation = math.sqrt(max(mean_square - mean * mean, 0.0))
    return loss > SPIKE_RATIO * mean and loss - mean > SPIKE_DEVIATIONS * deviation


class RunSeries:
    """What a Run's steps measured, a column for each metric; abandoned branches are dropped.

    `steps` grows strictly. Values may be NaN or infinite; NaN also stands where nothing was measured.

    Attributes:
        steps: completed optimizer steps, one for each StepLogged.
        smoothed_loss: the loss smoothed by DEFAULT_SMOOTHING, as long as `steps`.
        spikes: step and value of losses out of all proportion, or not finite; of several in a row the first.
        best: step and value of the lowest smoothed loss; None until NUM_LOSSES_TO_JUDGE are known.
        checkpoints, samples: the steps at which they were saved.
        metrics: those that were measured, the loss first.
        revision: counts the branches that were dropped; while it stays, the columns only grow.
    """

    def __init__(self) -> None:
        self.steps = array("q")
        self.checkpoints: list[int] = []
        self.samples: list[int] = []
        self.metrics: list[Metric] = ["loss", "lr", "speed"]
        self.revision = 0
        self._columns: dict[Metric, array[float]] = {metric: array("d") for metric in METRIC_LABELS}
        self._unread: dict[Metric, list[_UnreadPart]] = {metric: [] for metric in _FIELDS}
        self._forget_losses()

    def __len__(self) -> int:
        return len(self.steps)

    def values(self, metric: Metric) -> "array[float]":
        """The column of `metric`, as long as `steps`; to be read only.

        After `load_journal` the first call for a metric other than the loss takes 0.5 µs a step.
        """
        column = self._columns[metric]
        if parts := self._unread.get(metric):
            for part in parts:
                column[part.start : part.start + part.num_lines] = part.read(metric)
            parts.clear()
        return column

    @property
    def smoothed_loss(self) -> "array[float]":
        return self._smoothed.values

    def feed(self, events: Sequence[Event]) -> None:
        """Go on with `events`, in the journal's order."""
        for event in events:
            match event:
                case StepLogged():
                    self._feed_step(event)
                case CheckpointSaved():
                    self.checkpoints.append(event.step)
                case SamplesSaved():
                    self.samples.append(event.step)
                case RunStarted(resumed_from=int(last_kept)):
                    self._drop_after(last_kept)
                case _:
                    pass
        self._judge_losses()

    def feed_step_lines(self, lines: bytes) -> bool:
        """Go on with whole `lines` of StepLogged; 1.3 µs each.

        Returns:
            False, and nothing is done, when there are others among them, or their steps do not grow.
        """
        rows = _STEP_LINE.findall(lines)
        if len(rows) != lines.count(b"\n"):
            return False
        texts, losses, rests = zip(*rows, strict=True)
        steps = list(map(int, texts))
        before = [self.steps[-1] if self.steps else -1, *steps]
        if not all(map(operator.lt, before, steps)):
            return False
        part = _UnreadPart(start=len(self.steps), num_lines=len(steps), text=b"".join(rests))
        self.steps.extend(steps)
        self._columns["loss"].extend(_to_numbers(losses))
        placeholder = array("d", [math.nan]) * len(steps)
        for metric, parts in self._unread.items():
            self._columns[metric].extend(placeholder)
            parts.append(part)
        self._know_measured(part.is_measured(metric) for metric in _OPTIONAL)
        self._judge_losses()
        return True

    def _feed_step(self, event: StepLogged) -> None:
        if self.steps and event.step <= self.steps[-1]:  # a full disk lost the RunStarted that explains it
            self._drop_after(event.step - 1)
        self.steps.append(event.step)
        self._columns["loss"].append(event.loss)
        self._columns["lr"].append(event.lr)
        self._columns["speed"].append(_speed(event.seconds_per_step))
        optional = (event.grad_norm, event.peak_memory_gib, event.d)
        for metric, value in zip(_OPTIONAL, optional, strict=True):
            self._columns[metric].append(math.nan if value is None else value)
        self._know_measured(value is not None for value in optional)

    def _know_measured(self, is_measured: Iterable[bool]) -> None:
        """Add those of the optional metrics that were measured to `metrics`."""
        for metric, is_one in zip(_OPTIONAL, is_measured, strict=True):
            if is_one and metric not in self.metrics:
                self.metrics = [known for known in METRIC_LABELS if known in (*self.metrics, metric)]

    def _drop_after(self, last_kept: int) -> None:
        """Forget all that speaks of steps above `last_kept`."""
        self.checkpoints = [step for step in self.checkpoints if step <= last_kept]
        self.samples = [step for step in self.samples if step <= last_kept]
        num_kept = bisect_right(self.steps, last_kept)
        if num_kept < len(self.steps):
            for metric in METRIC_LABELS:
                del self.values(metric)[num_kept:]
            del self.steps[num_kept:]
            self.revision += 1
            self._forget_losses()

    def _forget_losses(self) -> None:
        self.spikes: list[tuple[int, float]] = []
        self.best: tuple[int, float] | None = None
        self._smoothed = Smoothed(DEFAULT_SMOOTHING)
        self._smoothed_squares = Smoothed(DEFAULT_SMOOTHING)
        self._last_out = -2

    def _judge_losses(self) -> None:
        """Smooth the losses that came since the last call, and find the best and the spikes among them."""
        means, squares, start = self._smoothed.values, self._smoothed_squares.values, len(self._smoothed.values)
        if start == len(self.steps):
            return
        losses = self._columns["loss"][start:]
        self._smoothed.extend(losses)
        first = max(start, NUM_LOSSES_TO_JUDGE - 1)
        lowest = min((mean for mean in means[first:] if mean == mean), default=math.inf)
        if lowest < (math.inf if self.best is None else self.best[1]):
            self.best = self.steps[means.index(lowest, first)], lowest
        self._smoothed_squares.extend([loss * loss for loss in losses])
        before = [means[start - 1] if start else math.nan, *means[start:-1]]
        far_out = [index for index, loss, mean in zip(count(start), losses, before, strict=False)
                   if not loss <= SPIKE_RATIO * mean]  # fmt: skip
        for index in far_out:
            loss = losses[index - start]
            if index < NUM_LOSSES_TO_JUDGE and math.isfinite(loss):
                continue
            if not is_spike(loss, means[index - 1], squares[index - 1]):
                continue
            if index > self._last_out + 1:
                self.spikes.append((self.steps[index], loss))
            self._last_out = index


@dataclass(frozen=True)
class _UnreadPart:
    """Lines of StepLogged whose loss alone has been read.

    Args:
        start: index of the first in the columns.
        num_lines: how many.
        text: what follows the loss on each, newlines included.
    """

    start: int
    num_lines: int
    text: bytes

    def is_measured(self, metric: Metric) -> bool:
        """Whether the first of the lines knows `metric`."""
        found = _FIELDS[metric].search(self.text, 0, self.text.index(b"\n"))
        return found is not None and found[1] != b"null"

    def read(self, metric: Metric) -> "array[float]":
        """The column of `metric`."""
        texts = _FIELDS[metric].findall(self.text)
        if len(texts) < self.num_lines:  # from a version that knew it as little as these lines do
            found = map(_FIELDS[metric].search, self.text.split(b"\n"))
            texts = [match[1] if match else b"null" for match in found]
        numbers = _to_numbers(texts)
        return array("d", map(_speed, numbers)) if metric == "speed" else numbers


def _to_numbers(texts: Sequence[bytes]) -> "array[float]":
    """JSON's numbers, null and the strings for what is not finite, as floats."""
    if texts.count(texts[0]) == len(texts):
        return array("d", [_to_number(texts[0])]) * len(texts)
    try:
        return array("d", map(float, texts))
    except ValueError:
        return array("d", map(_to_number, texts))


def _to_number(text: bytes) -> float:
    try:
        return float(text.strip(b'"'))
    except ValueError:
        return math.nan


def _speed(seconds_per_step: float) -> float:
    return 1.0 / seconds_per_step if seconds_per_step > 0.0 else math.nan


@dataclass(frozen=True)
class LoadedJournal:
    """A journal that was opened.

    Args:
        series: the columns of all its steps.
        events: all its Events in order, except that of StepLogged only the newest are there (about 1000); those of
            abandoned branches are there, too. What snapshots fold of the losses, `series` knows for the whole run.
        tail: reads what is appended from here on, to be fed to `series` and to whatever has taken the events.
    """

    series: RunSeries
    events: list[Event]
    tail: JournalTail


def load_journal(path: Path) -> LoadedJournal:
    """Open the journal at `path`, which need not exist yet; 2 µs a step, so a long one belongs in a thread.

    No single operation keeps the interpreter from other threads for more than 2 ms.
    """
    series = RunSeries()
    events: list[Event] = []
    offset = 0
    if path.exists():
        with path.open("rb") as file:
            while path.stat().st_size - offset > _RECENT_BYTES + _CHUNK_BYTES:
                lines = file.read(_CHUNK_BYTES) + file.readline()
                offset += len(lines)
                events += _feed_lines(series, lines)
    tail = JournalTail(path, offset=offset)
    recent = tail.read_new()
    series.feed(recent)
    return LoadedJournal(series=series, events=events + recent, tail=tail)


def _feed_lines(series: RunSeries, lines: bytes) -> list[Event]:
    """Feed whole `lines` to `series`; gives the Events on them that are not StepLogged."""
    events: list[Event] = []
    start = 0
    for line_start, line_end in _other_lines(lines):
        events += _feed_similar_lines(series, lines[start:line_start])
        events += _feed_events(series, lines[line_start:line_end])
        start = line_end
    return events + _feed_similar_lines(series, lines[start:])


def _other_lines(lines: bytes) -> Iterator[tuple[int, int]]:
    """Where the lines start and end that are not of StepLogged."""
    if not lines.startswith(b'{"kind":"StepLogged",'):
        yield 0, lines.index(b"\n") + 1
    for match in _OTHER_LINE.finditer(lines):
        yield match.start() + 1, match.end() + 1


def _feed_similar_lines(series: RunSeries, lines: bytes) -> list[Event]:
    return [] if not lines or series.feed_step_lines(lines) else _feed_events(series, lines)


def _feed_events(series: RunSeries, lines: bytes) -> list[Event]:
    events = [event_from_line(line) for line in lines.split(b"\n") if line]
    series.feed(events)
    return [event for event in events if not isinstance(event, StepLogged)]
