"""Runs that last: nothing grows that should not, a journal survives every kill, and no clock makes times absurd."""

import itertools
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.harness import small_config, train_well, write_pictures
from tests.reliability.figures import tell_figure
from tests.reliability.soak import Reading, Soak, soak, table
from tuitrain.runs import events
from tuitrain.runs.events import EpochFinished, Event, PhaseFinished, RunFinished, StepLogged, event_to_line
from tuitrain.runs.journal import Journal, JournalTail, read_journal
from tuitrain.runs.series import load_journal
from tuitrain.tui.snapshot import RunSnapshot

HOUR = 3600.0
MILLION = 1_000_000


# -------------------------------------------------------------------------------------------------------- what may grow


def soaked(**grown_per_1000_steps: float) -> Soak:
    """A soak that read these numbers of which some grow."""
    counts = {"files": 15, "threads": 10, "children": 0, "objects": 100, "blocks": 100}
    level = {"rss_mb": 500.0, "anonymous_mb": 400.0, **counts}
    readings = []
    for step in range(50, 20_000, 100):
        now = {name: value + grown_per_1000_steps.get(name, 0.0) * step / 1000 for name, value in level.items()}
        readings.append(Reading(step, **now))
    return Soak(20_000, readings, 200, 200, [], (1.0, 1.0), 1.0, 0)


def test_a_soak_finds_the_slope_of_what_grows_and_calls_only_that_missed() -> None:
    found = soaked(rss_mb=1.5, files=10.0)
    assert found.fit("rss_mb").per_1000_steps == pytest.approx(1.5)
    assert found.fit("rss_mb").growth == pytest.approx(1.5 * 14.9)
    assert found.fit("threads").per_1000_steps == pytest.approx(0.0)
    missed = [line.split()[0] for line in table(found).splitlines() if "MISSED" in line]
    assert missed == ["rss_mb", "files"]
    assert "MISSED" not in table(soaked(rss_mb=0.9, objects=5000.0))


@pytest.mark.slow
def test_a_short_soak_with_the_screen_open_leaks_nothing(tmp_path: Path) -> None:
    found = soak(tmp_path, num_steps=400, num_checkpoints=8, num_samplings=8, read_every=25, minutes=8)
    tell_figure(table(found, with_bars=False))
    assert (found.step, found.num_checkpoints, found.num_samplings) == (400, 8, 8)
    assert (found.complaints, found.exit_code) == ([], 0)
    for name in ("files", "threads", "children"):
        assert found.fit(name).rise <= 0, name
    # Caches fill at first: 4 MB in these 300 steps. A leaked checkpoint is 9 MB, and there are 6.
    assert found.fit("anonymous_mb").growth < 20


# ---------------------------------------------------------------------------------------------------------- the journal


def kill(what: str, folder: Path, num_kills: int) -> str:
    command = [sys.executable, "-m", "tests.reliability.small_files", what, str(folder), str(num_kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_kill_while_appending_loses_no_event_that_was_appended(tmp_path: Path) -> None:
    told = kill("appends", tmp_path, 100)
    tell_figure(f"events lost / appended: {told}")
    lost, appended = map(int, re.findall(r"\d+", told)[:2])
    assert lost == 0
    assert appended > 1000


def test_a_last_line_that_is_torn_anywhere_hides_nothing_before_or_after_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = [EpochFinished(epoch=1, step=1), EpochFinished(epoch=1, step=2)]
    before = "".join(event_to_line(event) + "\n" for event in whole).encode()
    torn = event_to_line(EpochFinished(epoch=2, step=3)).encode()
    passed = 0
    for cut in range(len(torn) + 1):
        path.write_bytes(before + torn[:cut])
        is_ignored = read_journal(path) == whole
        after = EpochFinished(epoch=3, step=4)
        journal = Journal(path)
        journal.append(after)
        journal.close()
        known = [event for event in read_journal(path) if not isinstance(event, events.UnknownEvent)]
        passed += is_ignored and known[:2] == whole and known[-1] == after
    tell_figure(f"torn lines ignored / cuts: {passed} / {len(torn) + 1}")
    assert passed == len(torn) + 1


@pytest.mark.slow
def test_a_million_logged_steps_take_a_known_room_and_are_all_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    line = event_to_line(step_logged(987654321)).replace("987654321", "%d") + "\n"
    with path.open("w") as file:
        for first in range(1, MILLION, 1000):
            file.write("".join(line % step for step in range(first, first + 1000)))
        file.write(line[:40])  # and a torn one
    started = time.monotonic()
    loaded = load_journal(path)
    seconds = time.monotonic() - started
    megabytes = path.stat().st_size / 1e6
    tell_figure(f"a million logged steps: {megabytes:.0f} MB of journal, read in {seconds:.1f} s")
    assert megabytes < 400  # nothing is rotated: log_every_n_steps is what bounds it
    assert loaded.series.steps[-1] == MILLION
    tail = JournalTail(path, offset=path.stat().st_size - 40 - 10 * len(line % MILLION))
    assert not any(isinstance(event, events.UnknownEvent) for event in tail.read_new()[1:])


def step_logged(step: int) -> StepLogged:
    return StepLogged(
        time=1795399237.320686, step=step, epoch=step // 10, loss=0.0020396870095282793, lr=1e-5,
        grad_norm=0.07938259840011597, seconds_per_step=0.10478209599750699, images_per_second=9.543575905572435,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the clock


@pytest.fixture(scope="module")
def journal_of_jumps(tmp_path_factory: pytest.TempPathFactory, tiny_sdxl: Path) -> tuple[list[Event], float]:
    """What a run journalled whose clock was set by an hour at every look, and the seconds it really took."""
    folder = tmp_path_factory.mktemp("jumps")
    config = small_config(
        folder,
        tiny_sdxl,
        write_pictures(folder / "pictures", 2),
        "data_loader.resolution=32",
        max_train_steps=6,
        save_every_n_steps=2,
        validate_every_n_steps=2,
        validation_prompts=["a map"],
        validation_steps=2,
    )
    jumps = itertools.cycle((HOUR, -HOUR, 0.0, 24 * HOUR))
    unix_time, started = time.time, time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: unix_time() + next(jumps))
        _, journal = train_well(config)
    return journal, time.monotonic() - started


def test_what_a_run_measures_is_not_moved_by_its_clock(journal_of_jumps: tuple[list[Event], float]) -> None:
    journal, took = journal_of_jumps
    seconds = [event.seconds_per_step for event in journal if isinstance(event, StepLogged)]
    seconds += [event.seconds for event in journal if isinstance(event, PhaseFinished | RunFinished)]
    seconds += [event.seconds for event in journal if isinstance(event, events.PhaseProgressed)]
    absurd = [value for value in seconds if not 0 <= value <= took]
    tell_figure(f"negative or huge durations / measured, clock set by hours: {len(absurd)} / {len(seconds)}")
    assert absurd == []
    assert len(seconds) > 20


def with_jumps(journal: list[Event]) -> Iterator[list[Event]]:
    """The journal with its clock set by so much from the n-th event on, for each n."""
    for jump in (HOUR, -HOUR, 30 * 24 * HOUR):
        for first in range(len(journal)):
            yield [
                replace(event, time=event.time + (jump if index >= first else 0.0))
                for index, event in enumerate(journal)
            ]


def times_left(journal: list[Event], look: float) -> list[tuple[float | None, float | None]]:
    """Of the run and of its phase after each event, by a screen whose clock is `look` seconds from the run's."""
    snapshot = RunSnapshot()
    left = []
    for event in journal:
        snapshot.feed([event])
        phase = snapshot.phase
        left.append((snapshot.eta_seconds(event.time + look), None if phase is None else phase.eta_seconds))
    return left


def test_no_jump_of_the_clock_moves_the_time_left_by_more_than_a_logged_step(
    journal_of_jumps: tuple[list[Event], float],
) -> None:
    journal, _ = journal_of_jumps
    undisturbed = times_left(journal, 0.0)
    step_seconds = max(event.seconds_per_step for event in journal if isinstance(event, StepLogged))
    num_looks, absurd = 0, []
    for jumped in with_jumps(journal):
        for look in (0.0, HOUR, -HOUR):
            for (left, of_phase), (expected, expected_of_phase) in zip(
                times_left(jumped, look), undisturbed, strict=True
            ):
                num_looks += 1
                is_near = left == expected or (
                    left is not None and expected is not None and left >= 0 and abs(left - expected) <= step_seconds
                )
                if not is_near or of_phase != expected_of_phase:
                    absurd.append((left, expected, of_phase, expected_of_phase))
    tell_figure(f"times left that a clock set by hours moved / looked at: {len(absurd)} / {num_looks}")
    assert absurd == []
    assert any(left for left, _ in undisturbed) and any(left for _, left in undisturbed)
