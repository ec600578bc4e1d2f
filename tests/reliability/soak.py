"""A long training with the screen open, watched from outside for what grows: `python -m tests.reliability.soak`.

A mini SDXL with 64-pixel pictures trains in the app in a real terminal, where somebody goes through all screens now and
then. Memory, files, threads and children are read from /proc; how many objects Python has, the process itself tells
when it is sent a signal. Straight lines are fitted to what was read after the warm-up. 20,000 steps with 200
checkpoints and 200 samplings take about 20 minutes on two cores.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.engine.harness import small_config, write_pictures
from tests.tiny_sdxl import build_tiny_sdxl
from tests.tui.pty_session import PtySession
from tuitrain.config.files import config_to_yaml
from tuitrain.runs.events import CheckpointSaved, Event, RunFailed, RunFinished, SamplesSaved, StepLogged, WarningRaised
from tuitrain.runs.journal import JournalTail
from tuitrain.runs.run import find_runs

WARM_UP = 0.25
"""The share of the steps that no line is fitted to."""
NUM_ROUNDS = 20
SCREENS = (("1", "Presets"), ("2", "Undo"), ("4", "step"), ("5", "log.txt"), ("3", "events"))
"""Keys, and what their screens show."""

PROGRAM = """
import gc, signal, sys

def tell(*_):
    with open({counts!r}, "a") as file:
        file.write(f"{{len(gc.get_objects())}} {{sys.getallocatedblocks()}}\\n")

signal.signal(signal.SIGUSR2, tell)
from tuitrain.cli import main
sys.argv = ["tuitrain", "open", {config!r}]
main()
"""


@dataclass(frozen=True)
class Reading:
    """What the app's process has at one step.

    Args:
        step: last logged.
        rss_mb, anonymous_mb: resident memory, all of it and what belongs to no file; 10^6 bytes.
        files, threads, children: the lowest numbers within a fifth of a second.
        objects: that Python's garbage collector knows, garbage that it has not met yet included.
        blocks: of memory that Python's allocator has given out.
    """

    step: int
    rss_mb: float
    anonymous_mb: float
    files: int
    threads: int
    children: int
    objects: int
    blocks: int


@dataclass(frozen=True)
class Line:
    """A straight line through the readings of one number after the warm-up.

    Args:
        name: of the number.
        first, last, lowest, highest: as read.
        per_1000_steps: slope by least squares.
        growth: of the line, from its first step to its last.
        rise: from the median of the first half to that of the second; what comes or goes for a moment does not show.
    """

    name: str
    first: float
    last: float
    lowest: float
    highest: float
    per_1000_steps: float
    growth: float
    rise: float


@dataclass(frozen=True)
class Soak:
    """What a soak has found.

    Args:
        step: reached.
        readings: oldest first.
        num_checkpoints, num_samplings: as journalled.
        complaints: warnings and failures that the run told, and what the screen did not show.
        step_milliseconds: median of the first and of the last tenth of the steps.
        seconds: from the first step to the last.
        exit_code: of the app; None when it was ended early.
    """

    step: int
    readings: Sequence[Reading]
    num_checkpoints: int
    num_samplings: int
    complaints: Sequence[str]
    step_milliseconds: tuple[float, float]
    seconds: float
    exit_code: int | None

    def fit(self, name: str) -> Line:
        """The line through the readings of `name`, a number of Reading."""
        fitted = [reading for reading in self.readings if reading.step > WARM_UP * self.step]
        steps = [float(reading.step) for reading in fitted]
        values = [float(getattr(reading, name)) for reading in fitted]
        slope = statistics.linear_regression(steps, values).slope
        half = len(values) // 2
        return Line(
            name,
            first=values[0],
            last=values[-1],
            lowest=min(values),
            highest=max(values),
            per_1000_steps=slope * 1000,
            growth=slope * (steps[-1] - steps[0]),
            rise=statistics.median(values[half:]) - statistics.median(values[:half]),
        )

    def lines(self) -> list[Line]:
        return [self.fit(name) for name in Reading.__dataclass_fields__ if name != "step"]


def soak(
    folder: Path,
    *,
    num_steps: int,
    num_checkpoints: int,
    num_samplings: int,
    read_every: int,
    minutes: float = 60.0,
    tell: Callable[[str], None] = lambda text: None,
) -> Soak:
    """Train `num_steps` in the app, and watch its process.

    Args:
        folder: for the model, the pictures and the run.
        read_every: steps between two readings, which are taken halfway between multiples of it.
        minutes: after which the training is stopped.
        tell: takes a line about each tenth reading.
    """
    counts = folder / "counts"
    counts.touch()
    program = folder / "program.py"
    config = _write_config(folder, num_steps, num_steps // num_checkpoints, num_steps // num_samplings)
    program.write_text(PROGRAM.format(counts=str(counts), config=str(config)))
    env = {"XDG_STATE_HOME": str(folder / "state"), "OMP_NUM_THREADS": "1"}
    with PtySession([sys.executable, str(program)], size=(120, 40), env=env, cwd=folder, is_tuitrain=False) as session:
        session.wait_for("Undo", "Start")
        session.settle()
        session.press("f5")
        session.wait_for("TRAINING", "loss", seconds=180)
        return _Watch(session, JournalTail(find_runs(folder)[0].journal_path), counts, num_steps, read_every).follow(
            minutes, tell
        )


def _write_config(folder: Path, num_steps: int, save_every: int, sample_every: int) -> Path:
    config = small_config(
        folder,
        build_tiny_sdxl(folder / "model"),
        write_pictures(folder / "pictures", 4),
        "data_loader.resolution=32",
        max_train_steps=num_steps,
        train_batch_size=1,
        save_every_n_steps=save_every,
        validate_every_n_steps=sample_every,
        validation_prompts=["a map of the sea"],
        validation_steps=2,
        max_checkpoints=3,
        cache_dir=str(folder / "cache"),
    )
    path = folder / "soak.yaml"
    path.write_text(config_to_yaml(config))
    return path


class _Watch:
    """Follows one training in a terminal."""

    def __init__(self, session: PtySession, tail: JournalTail, counts: Path, num_steps: int, read_every: int) -> None:
        self._session = session
        self._tail = tail
        self._counts = counts
        self._num_steps = num_steps
        self._read_every = read_every
        self._events: list[Event] = []
        self._steps: list[StepLogged] = []
        self._readings: list[Reading] = []
        self._complaints: list[str] = []

    def follow(self, minutes: float, tell: Callable[[str], None]) -> Soak:
        """To the end of the training, or for so many minutes; what has been read is never lost."""
        deadline = time.monotonic() + 60 * minutes
        exit_code = None
        try:
            self._watch(deadline, tell)
            if self._has_ended():
                self._session.wait_until(lambda: "FINISHED" in self._session.text, "FINISHED on the screen")
                self._take_in(5.0)  # the thread tidies up
                self._session.press("q")
                exit_code = self._session.wait()
        except AssertionError as error:  # the screen did not show what it should
            self._complaints.append(str(error).splitlines()[0])
        return self._conclude(exit_code)

    def _watch(self, deadline: float, tell: Callable[[str], None]) -> None:
        next_reading, round_every = self._read_every // 2, max(self._num_steps // NUM_ROUNDS, 1)
        next_round = round_every // 2
        while not self._has_ended() and time.monotonic() < deadline:
            self._take_in(0.05)
            if self._step >= next_reading:
                next_reading += self._read_every
                reading = self._read()
                if self._has_ended():  # meanwhile
                    return
                self._readings.append(reading)
                if len(self._readings) % 10 == 1:
                    tell(str(self._readings[-1]))
            if self._step >= next_round and not self._has_ended():
                next_round += round_every
                self._go_through_screens()

    @property
    def _step(self) -> int:
        return self._steps[-1].step if self._steps else 0

    def _has_ended(self) -> bool:
        return bool(self._events) and isinstance(self._events[-1], RunFinished | RunFailed)

    def _take_in(self, seconds: float) -> None:
        """What the terminal shows and what the journal tells."""
        self._session.read(seconds)
        self._session.forget()
        for event in self._tail.read_new():
            if isinstance(event, StepLogged):
                self._steps.append(event)
            elif isinstance(event, CheckpointSaved | SamplesSaved | WarningRaised | RunFailed | RunFinished):
                self._events.append(event)

    def _read(self) -> Reading:
        pid = self._session.app_pid
        resident, anonymous = _memory_mb(pid)
        lowest = (10**9,) * 3
        for _ in range(5):
            lowest = tuple(map(min, lowest, _count(pid)))
            self._take_in(0.05)
        told = self._counts.stat().st_size
        os.kill(pid, signal.SIGUSR2)
        deadline = time.monotonic() + 30
        while self._counts.stat().st_size == told:
            assert time.monotonic() < deadline, "the app does not answer a signal"
            self._take_in(0.02)
        objects, blocks = map(int, self._counts.read_text().split()[-2:])
        return Reading(self._step, resident, anonymous, *lowest, objects, blocks)

    def _go_through_screens(self) -> None:
        for key, text in SCREENS:
            self._session.press(key)
            self._session.wait_for(text)
            self._take_in(0.2)

    def _conclude(self, exit_code: int | None) -> Soak:
        told = [event.what for event in self._events if isinstance(event, WarningRaised | RunFailed)]
        tenth = max(len(self._steps) // 10, 1)
        return Soak(
            step=self._step,
            readings=self._readings,
            num_checkpoints=_number(self._events, CheckpointSaved),
            num_samplings=_number(self._events, SamplesSaved),
            complaints=[*told, *self._complaints],
            step_milliseconds=(_median_milliseconds(self._steps[:tenth]), _median_milliseconds(self._steps[-tenth:])),
            seconds=self._steps[-1].time - self._steps[0].time,
            exit_code=exit_code,
        )


def _memory_mb(pid: int) -> tuple[float, float]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    resident, anonymous = (int(values[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "RssAnon"))
    return resident, anonymous


def _count(pid: int) -> tuple[int, int, int]:
    """Files, threads, children."""
    process = Path(f"/proc/{pid}")
    tasks = list((process / "task").iterdir())
    children = 0
    for task in tasks:
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            children += len((task / "children").read_text().split())
    return len(os.listdir(process / "fd")), len(tasks), children


def _number(events: Iterable[Event], kind: type[Event]) -> int:
    return sum(isinstance(event, kind) for event in events)


def _median_milliseconds(steps: Sequence[StepLogged]) -> float:
    return statistics.median(step.seconds_per_step for step in steps) * 1000


def table(found: Soak, *, with_bars: bool = True) -> str:
    """What was found, as text; the bars are for thousands of steps, in the first hundreds caches fill."""
    num_fitted = sum(reading.step > WARM_UP * found.step for reading in found.readings)
    head = f"{'':14}{'first':>12}{'last':>12}{'lowest':>12}{'highest':>12}{'per 1000 steps':>16}"
    rows = [
        f"{found.step} steps in {found.seconds / 60:.1f} minutes, {found.num_checkpoints} checkpoints, "
        f"{found.num_samplings} samplings; {num_fitted} readings after step {WARM_UP * found.step:.0f}",
        head + ("  bar" if with_bars else ""),
    ]
    for line in found.lines():
        digits = 1 if line.name.endswith("_mb") else 0
        numbers = (line.first, line.last, line.lowest, line.highest)
        cells = "".join(f"{number:>12.{digits}f}" for number in numbers)
        bar, is_met = _bar(line)
        verdict = f"{bar}: {'met' if is_met else 'MISSED'}" if bar and with_bars else ""
        rows.append(f"{line.name:14}{cells}{line.per_1000_steps:>+16.4f}  {verdict}".rstrip())
    first, last = found.step_milliseconds
    rows.append(f"a step took {first:.1f} ms in the first tenth, {last:.1f} ms in the last")
    rows.append(f"complaints: {'; '.join(found.complaints) or 'none'}; exit status {found.exit_code}")
    return "\n".join(rows)


def _bar(line: Line) -> tuple[str, bool]:
    match line.name:
        case "rss_mb" | "anonymous_mb":
            return "< 1 MB", line.per_1000_steps < 1
        case "files" | "threads" | "children":
            return "no rise", line.rise <= 0
        case _:
            return "", True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--checkpoints", type=int, default=200)
    parser.add_argument("--samplings", type=int, default=200)
    parser.add_argument("--every", type=int, default=100, help="steps between two readings")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after this long")
    arguments = parser.parse_args()

    def tell(text: str) -> None:
        sys.stdout.write(f"{time.strftime('%H:%M:%S')} load {os.getloadavg()[0]:.1f} {text}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="tuitrain-soak-") as folder:
        found = soak(
            Path(folder),
            num_steps=arguments.steps,
            num_checkpoints=arguments.checkpoints,
            num_samplings=arguments.samplings,
            read_every=arguments.every,
            minutes=arguments.minutes,
            tell=tell,
        )
    sys.stdout.write(table(found) + "\n")
    is_complete = (found.step, found.num_checkpoints, found.num_samplings) == (
        arguments.steps,
        arguments.checkpoints,
        arguments.samplings,
    )
    return 0 if is_complete and all(_bar(line)[1] for line in found.lines()) else 1


if __name__ == "__main__":
    sys.exit(main())
