"""Measures what the app promises, in a real terminal, and prints the table: `python -m tests.tui.bars [WORD ...]`.

Words choose the rows whose name contains one of them. Everything takes about ten minutes on two cores. Times depend on
what else the machine does: rows that compare do so in pairs, one after the other.
"""

import math
import multiprocessing
import os
import select
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

from tests.tui.pty_session import REPOSITORY, PtySession
from tests.tui.test_pty import HEAVY, NOISE, cpu_seconds
from tuitrain.demo.create import create_demo
from tuitrain.runs.events import DatasetScanned, PhaseStarted, RunFinished, RunStarted, StepLogged, event_to_line
from tuitrain.runs.journal import Journal, JournalTail
from tuitrain.runs.run import Run, find_runs, summarize
from tuitrain.runs.series import RunSeries
from tuitrain.tui.widgets.braille import ChartDrawing, ChartOptions

ENDLESS = ["--steps", "1000000", "--set", "validation_prompts=[]", "--set", "save_every_n_steps=1000000"]
NUM_KEYS = 60
NUM_PHASES, PHASE_SECONDS, SETTLE_SECONDS = 41, 3.0, 0.5


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: what was measured.
        value: in words, with units.
        bar: what is promised.
        is_met: whether it was.
    """

    name: str
    value: str
    bar: str
    is_met: bool


# ---------------------------------------------------------------------------------------------------------- measuring


class Place:
    """A folder of its own for one measurement, gone afterwards."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="tuitrain-bars-"))

    def start(self, *arguments: str, size: tuple[int, int] = (120, 40)) -> PtySession:
        return PtySession(arguments, size=size, cwd=self.path, env={"XDG_STATE_HOME": str(self.path / "state")})

    def start_program(self, source: str) -> PtySession:
        program = self.path / "program.py"
        lines = ["import sys", "from tuitrain.tui.launch import run_app", source, "sys.exit(run_app(on_ready))"]
        program.write_text("\n".join(lines))
        env = {"XDG_STATE_HOME": str(self.path / "state")}
        return PtySession([sys.executable, str(program)], is_tuitrain=False, env=env, cwd=self.path)

    @property
    def log(self) -> str:
        return (self.path / "state" / "tuitrain" / "tuitrain.log").read_text()

    @property
    def run(self) -> Run:
        runs = find_runs(self.path)
        assert runs, "no run was made"
        return runs[0]

    def stop_training(self, session: PtySession) -> None:
        session.send_signal(signal.SIGTERM)
        session.wait()


@contextmanager
def new_place() -> Iterator[Place]:
    place = Place()
    try:
        yield place
    finally:
        shutil.rmtree(place.path, ignore_errors=True)


@contextmanager
def demo_training(size: tuple[int, int] = (120, 40)) -> Iterator[tuple[Place, PtySession]]:
    """The demo, training on the train screen."""
    with new_place() as place, place.start("demo", *ENDLESS, size=size) as session:
        session.wait_for("TRAINING", "loss")
        session.settle(0.1, seconds=3)
        yield place, session
        place.stop_training(session)


def first_byte_ms(session: PtySession, key: str) -> float:
    """From the key to the first byte of the answer."""
    session.read(0.0)
    pressed = time.perf_counter()
    session.press(key)
    ready, _, _ = select.select([session.master], [], [], 5.0)
    assert ready, f"{key!r} changed nothing"
    return (time.perf_counter() - pressed) * 1000


def key_latencies(session: PtySession, *, is_over: Callable[[], bool] = lambda: False) -> list[float]:
    """Milliseconds of keys that move in a list, at irregular moments."""
    random = Random(0)
    latencies: list[float] = []
    while len(latencies) < NUM_KEYS and not is_over():
        session.read(0.05 + random.random() * 0.2)
        latencies.append(first_byte_ms(session, "jk"[len(latencies) % 2]))
    session.settle(0.1, seconds=1)
    return latencies


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(math.ceil(share * len(values)) - 1, len(values) - 1)]


def latency_row(name: str, latencies: list[float], p95: float) -> Row:
    reached = percentile(latencies, 0.95)
    value = f"median {statistics.median(latencies):.0f}, p95 {reached:.0f}, max {max(latencies):.0f} ms"
    return Row(name, f"{value} (n={len(latencies)})", f"p95 <= {p95:.0f} ms", reached <= p95)


def switch_cost(session: PtySession, key: str, text: str) -> tuple[int, float]:
    """Bytes and milliseconds until the screen of `key` stands."""
    session.settle(0.2, seconds=2)
    before, pressed = len(session.received), time.perf_counter()
    session.press(key)
    session.wait_for_bytes(text, start=before, seconds=20)
    milliseconds = (time.perf_counter() - pressed) * 1000
    session.read(0.15)
    return len(session.received) - before, milliseconds


def write_run(place: Place, num_steps: int, *, is_finished: bool = True) -> Run:
    """A run, stopped or in the middle of its training, with a journal of so many logged steps."""
    run = Run.create(place.path / "runs", config_yaml="", config_json="{}")
    started = RunStarted(
        run_id=run.run_id, pid=0, host="here", tuitrain_version="0", versions={}, device="cpu", world_size=1,
        config_hash="", seed=1, resumed_from=None,
    )  # fmt: skip
    scanned = DatasetScanned(
        num_images=36, num_skipped=0, buckets={"64x64": 36}, steps_per_epoch=10, total_steps=2 * num_steps,
        num_epochs=num_steps // 5,
    )  # fmt: skip
    step_line = event_to_line(step_logged(987654321, 0.192837465))
    random = Random(1)
    with run.journal_path.open("w") as file:
        for event in (started, scanned, PhaseStarted(phase="train")):
            file.write(event_to_line(event) + "\n")
        for step in range(1, num_steps + 1):
            loss = 0.05 + 0.4 * math.exp(-step / num_steps * 5) + 0.02 * random.random()
            file.write(step_line.replace("987654321", str(step)).replace("0.192837465", repr(loss)) + "\n")
        if is_finished:
            ending = RunFinished(step=num_steps, epoch=num_steps // 10, reason="stopped", seconds=num_steps / 2)
            file.write(event_to_line(ending) + "\n")
    return run


def step_logged(step: int, loss: float) -> StepLogged:
    return StepLogged(
        step=step, epoch=step // 10, loss=loss, lr=1e-4, grad_norm=0.3, seconds_per_step=0.5, images_per_second=8.0
    )


def _pretend_to_train(path: str, first_step: int, interval_seconds: float) -> None:
    run = Run(Path(path))
    with run.lock():
        journal = Journal(run.journal_path)
        for step in range(first_step, first_step + 10_000):
            journal.append(step_logged(step, 0.05 + 0.02 * math.sin(step)))
            time.sleep(interval_seconds)


@contextmanager
def pretended_training(run: Run, first_step: int, interval_seconds: float) -> Iterator[None]:
    """Another process that holds `run` and logs a step now and then."""
    process = multiprocessing.Process(target=_pretend_to_train, args=(str(run.path), first_step, interval_seconds))
    process.start()
    try:
        while not run.lock_holder():
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.join()


# ---------------------------------------------------------------------------------------------------------------- rows


def first_paint() -> Iterator[Row]:
    seconds = []
    for _ in range(5):
        with new_place() as place, place.start(size=(80, 24)) as session:
            session.wait_for_bytes("Presets", "Leave")
            seconds.append(time.monotonic() - session.started)
    median = statistics.median(seconds) * 1000
    spread = f"{min(seconds) * 1000:.0f}-{max(seconds) * 1000:.0f}"
    yield Row("first paint, home screen", f"{median:.0f} ms, median of 5 ({spread})", "<= 500 ms", median <= 500)
    with new_place() as place:
        with place.start_program(
            "def on_ready(app):\n    print('LOADED', *{name.split('.')[0] for name in sys.modules}); app.exit(0)"
        ) as session:
            session.wait()
        loaded = set(place.log.split()) & HEAVY
    yield Row("first paint, heavy modules loaded", " ".join(sorted(loaded)) or "none", "none", not loaded)


def keys() -> Iterator[Row]:
    with new_place() as place, place.start() as session:
        session.wait_for("Presets", "Leave")
        session.settle()
        yield latency_row("key to paint, idle", key_latencies(session), 80)
    with new_place() as place, place.start("demo", *ENDLESS) as session:
        session.wait_for("LOADING")
        session.press("1")
        session.wait_for("Presets")
        yield latency_row(
            "key to paint, while libraries load",
            key_latencies(session, is_over=lambda: "LOADING" not in session.text),
            80,
        )
        session.press("3")
        session.wait_for("TRAINING", "loss")
        session.press("1")
        session.wait_for("Presets")
        yield latency_row("key to paint, while the demo trains", key_latencies(session), 80)
        place.stop_training(session)


def steady_output() -> Iterator[Row]:
    for size, bar in (((120, 40), 4000), ((80, 24), 3000)):
        with demo_training(size) as (_place, session):
            rate = session.read(15.0) / 15
            name = f"output, train screen {size[0]}x{size[1]}"
            yield Row(name, f"{rate:.0f} bytes/s", f"<= {bar} bytes/s", rate <= bar)
            if size == (120, 40):
                session.press("?")
                session.wait_for("esc closes")
                session.settle(0.4, seconds=3)
                rate = session.read(10.0) / 10
                yield Row("output, under a modal while training", f"{rate:.0f} bytes/s", "<= 500 bytes/s", rate <= 500)
                session.press("esc")
                session.settle(0.2, seconds=2)


def idle_output() -> Iterator[Row]:
    with new_place() as place, place.start() as session:
        session.wait_for("Presets", "Leave")
        session.settle()
        before = sum(cpu_seconds(session.app_pid).values())
        rate = session.read(10.0) / 10
        cpu = (sum(cpu_seconds(session.app_pid).values()) - before) * 10
        value = f"{rate:.0f} bytes/s, {cpu:.1f} % CPU"
        yield Row("output, home screen idle", value, "<= 500 bytes/s", rate <= 500)


def screen_switches() -> Iterator[Row]:
    with new_place() as place:
        run = write_run(place, 1000)
        with place.start("open", str(run.path)) as session:
            session.wait_for("1000/2000")
            costs = {}
            for _ in range(2):  # the second round measures: every screen has been made
                for key, text in (
                    ("1", "Presets"),
                    ("3", "events"),
                    ("5", "log.txt"),
                    ("4", "no checkpoint"),
                    ("3", "events"),
                ):
                    costs[key] = switch_cost(session, key, text)
    num_bytes, milliseconds = (max(values) for values in zip(*costs.values(), strict=True))
    value = f"{num_bytes / 1000:.0f} kB, {milliseconds:.0f} ms, the largest of each"
    is_met = num_bytes <= 60_000 and milliseconds <= 150
    yield Row("screen switch at 120x40", value, "<= 60 kB, 150 ms", is_met)


def chart_update() -> Iterator[Row]:
    with new_place() as place:
        run = write_run(place, 100_000, is_finished=False)
        with pretended_training(run, 100_001, 0.5), place.start("attach", str(run.path)) as session:
            session.wait_for("TRAINING", "step")
            session.settle(0.2, seconds=3)
            before = sum(cpu_seconds(session.app_pid).values())
            num_bytes = session.read(20.0)
            milliseconds = (sum(cpu_seconds(session.app_pid).values()) - before) * 1000
        value = f"{num_bytes / 40:.0f} bytes, {milliseconds / 40:.1f} ms CPU"
        yield Row("update of the whole screen at 100k steps", value, "chart <= 1 kB", num_bytes / 40 <= 1000)
    series, drawing, costs = RunSeries(), ChartDrawing(), []
    random = Random(0)
    series.feed(step_logged(step, random.random()) for step in range(1, 100_001))
    rows = drawing.draw(series, 90, 20, ChartOptions())
    for step in range(100_001, 100_041):
        begun = time.process_time()
        series.feed([step_logged(step, random.random())])
        drawn = drawing.draw(series, 90, 20, ChartOptions())
        spans = [before.changed_span(after) for before, after in zip(rows, drawn, strict=True)]
        for row, span in zip(drawn, spans, strict=True):
            if span is not None:
                list(row.pieces())
        costs.append((time.process_time() - begun) * 1000)
        rows = drawn
    median = statistics.median(costs)
    yield Row("the chart of it alone", f"median {median:.2f} ms CPU, max {max(costs):.2f}", "<= 2 ms", median <= 2)


def config_screen() -> Iterator[Row]:
    costs: dict[str, list[float]] = {"first": [], "again": []}
    for _ in range(5):
        with new_place() as place, place.start() as session:
            session.wait_for("Presets", "Leave")
            session.settle()
            session.press("j", "j")
            for when in costs.values():
                when.append(switch_cost(session, "enter", "Undo")[1])
                session.press("1")
                session.wait_for("Presets")
    for name, when in zip(("config screen opens first", "config screen opens again"), costs.values(), strict=True):
        median = statistics.median(when)
        spread = f"{min(when):.0f}-{max(when):.0f}"
        yield Row(name, f"{median:.0f} ms, median of 5 ({spread})", "<= 200 ms", median <= 200)


def resizing() -> Iterator[Row]:
    with new_place() as place:
        run = write_run(place, 1000)
        with place.start("open", str(run.path)) as session:
            session.wait_for("1000/2000")
            session.settle()
            before, start = len(session.received), time.perf_counter()
            session.resize(80, 24)
            session.wait_until(lambda: "Keys" in session.screen.display[23], "the keys on the last row", 10)
            milliseconds = (time.perf_counter() - start) * 1000
            session.settle(0.2)
            value = f"{milliseconds:.0f} ms, {(len(session.received) - before) / 1000:.0f} kB"
            yield Row("resize 120x40 to 80x24", value, "<= 400 ms", milliseconds <= 400)


def slow_down() -> Iterator[Row]:
    """One training, in turns with the screen and with the plain progress line of `tuitrain train`.

    Each turn with the screen is compared with the turns without it before and after, so that a machine that gets slower
    meanwhile counts for nothing.
    """
    screens, lines = [], []
    with new_place() as place, place.start("demo", *ENDLESS) as session:
        session.wait_for("TRAINING", "loss")
        session.read(PHASE_SECONDS)
        for _ in range(NUM_PHASES):
            session.press("q")
            session.wait_for("is being trained here")
            session.press("l")
            session.wait_for("training goes on here", "it/s")
            lines.append(seconds_per_step_now(session, place.run))
            session.press("enter")
            session.wait_for("TRAINING", "Detach")
            screens.append(seconds_per_step_now(session, place.run))
    around = [(before + after) / 2 for before, after in pairwise(lines)]
    percents = [(screen / line - 1) * 100 for screen, line in zip(screens, around, strict=False)]
    percent, error = statistics.mean(percents), statistics.stdev(percents) / math.sqrt(len(percents))
    median = statistics.median(percents)
    words = f"{percent:+.1f} % +- {error:.1f} (standard error), median {median:+.1f}, n={len(percents)}"
    yield Row("training slowed by the screen", words, "<= 3 %", percent <= 3)


def seconds_per_step_now(session: PtySession, run: Run) -> float:
    """Over the next few seconds, while the terminal is read."""
    session.read(SETTLE_SECONDS)
    start = time.time()
    session.read(PHASE_SECONDS)
    logs = [event for event in JournalTail(run.journal_path).read_new() if isinstance(event, StepLogged)]
    logs = [event for event in logs if event.time > start]
    return (logs[-1].time - logs[0].time) / (logs[-1].step - logs[0].step)


def long_journal() -> Iterator[Row]:
    with new_place() as place:
        run = write_run(place, 1_000_000)
        with place.start("open", str(run.path)) as session:
            session.wait_for("1000000/")
            seconds = time.monotonic() - session.started
        mebibytes = run.journal_path.stat().st_size / 2**20
        yield Row(
            "a million steps open", f"{seconds:.1f} s from the shell ({mebibytes:.0f} MiB)", "<= 3 s", seconds <= 3
        )


def leaving() -> Iterator[Row]:
    with new_place() as place, place.start() as session:
        session.wait_for("Presets", "Leave")
        session.settle()
        pressed = time.perf_counter()
        session.press("q")
        session.wait(10)
        milliseconds = (time.perf_counter() - pressed) * 1000
        yield Row("leave, nothing trains", f"{milliseconds:.0f} ms", "<= 500 ms", milliseconds <= 500)
    with new_place() as place, place.start("demo", *ENDLESS) as session:
        session.wait_for("TRAINING", "loss")
        pid, pressed = session.app_pid, time.perf_counter()
        session.press("D")
        session.wait(10)
        milliseconds = (time.perf_counter() - pressed) * 1000
        step = summarize(place.run).step
        time.sleep(4.0)
        is_alive = summarize(place.run).step > step
        os.kill(pid, signal.SIGTERM)
        while summarize(place.run).state == "running":
            time.sleep(0.1)
        value = f"{milliseconds:.0f} ms, training {'goes on' if is_alive else 'ended'}"
        yield Row("detach", value, "<= 1000 ms", milliseconds <= 1000 and is_alive)
    for number in (signal.SIGTERM, signal.SIGHUP):
        with new_place() as place, place.start() as session:
            session.wait_for("Presets", "Leave")
            session.send_signal(number)
            session.wait(10)
            value = "restored" if session.is_terminal_restored else f"left {sorted(session.screen.private_modes)}"
            yield Row(f"kill -{number.name[3:]}", value, "terminal restored", session.is_terminal_restored)


def dropped_connection() -> Iterator[Row]:
    with new_place() as place, place.start("demo", *ENDLESS) as session:
        session.wait_for("TRAINING", "loss")
        pid = session.app_pid
        flowing = _step_rate(place, lambda: session.read(6.0))
        session.hang_up()
        time.sleep(1.0)
        before = cpu_seconds(pid)
        dropped = _step_rate(place, lambda: time.sleep(6.0))
        used = sorted(seconds - before.get(thread, 0.0) for thread, seconds in cpu_seconds(pid).items())
        others = sum(used[:-1]) / 6.0 * 100
        with place.start("attach") as viewer:
            viewer.wait_for("TRAINING", "loss")
            attached = time.monotonic() - viewer.started
        os.kill(pid, signal.SIGTERM)
        while summarize(place.run).state == "running":
            time.sleep(0.1)
    value = f"{flowing:.1f} to {dropped:.1f} it/s, {others:.1f} % CPU beside the trainer, attached in {attached:.1f} s"
    yield Row("dropped connection", value, "trains on, <= 1 % CPU", others <= 1 and dropped > 0.7 * flowing)


def stalled_terminal() -> Iterator[Row]:
    with demo_training() as (place, session):
        pid = session.app_pid
        flowing = _step_rate(place, lambda: session.read(10.0))
        memory = _resident_mib(pid)
        stalled = _step_rate(place, lambda: time.sleep(30.0))
        grown = _resident_mib(pid) - memory
        session.press("1")
        recovered = session.wait_for("Presets")
    value = f"{flowing:.2f} to {stalled:.2f} it/s, {grown:+.1f} MiB, back after {recovered:.2f} s"
    yield Row("terminal stalled for 30 s", value, "rate unchanged, <= 1 s", recovered <= 1 and stalled > 0.8 * flowing)


def noise() -> Iterator[Row]:
    with new_place() as place, place.start_program(NOISE) as session:
        session.wait(30)
        on_screen, in_log = session.received.count(b"STRAY"), place.log.count("STRAY-")
        value = f"{on_screen} on the terminal, {in_log} lines in the log"
        yield Row("output of strangers", value, "0 on the terminal", on_screen == 0 and in_log >= 12)


def _step_rate(place: Place, wait: Callable[[], object]) -> float:
    """Steps a second that are taken while `wait` waits."""
    events = JournalTail(place.run.journal_path)
    events.read_new()
    wait()
    logs = [event for event in events.read_new() if isinstance(event, StepLogged)]
    return (logs[-1].step - logs[0].step) / (logs[-1].time - logs[0].time) if len(logs) > 1 else 0.0


def _resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


MEASUREMENTS = (
    first_paint, keys, steady_output, idle_output, screen_switches, chart_update, config_screen, resizing, slow_down,
    long_journal, leaving, dropped_connection, stalled_terminal, noise,
)  # fmt: skip


def main() -> int:
    words = sys.argv[1:]
    create_demo(Path(tempfile.mkdtemp()))  # what is wrong with the installation shows here, not in a terminal
    rows = []
    for measure in MEASUREMENTS:
        if words and not any(word in measure.__name__ for word in words):
            continue
        try:
            for row in measure():
                rows.append(row)
                _write(row)
        except AssertionError as error:
            row = Row(measure.__name__, str(error).splitlines()[0], "measured", False)
            rows.append(row)
            _write(row)
    missed = sum(not row.is_met for row in rows)
    sys.stdout.write(f"{len(rows) - missed} of {len(rows)} met, load {os.getloadavg()[0]:.1f}, in {REPOSITORY}\n")
    return 1 if missed else 0


def _write(row: Row) -> None:
    sys.stdout.write(f"{'ok ' if row.is_met else 'NO '} {row.name:38}  {row.value:66}  {row.bar}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
