"""The journal keeps whole lines, in order, whatever happens to writers and readers."""

import resource
import threading
from pathlib import Path

import pytest

from tuitrain.runs.events import (
    CheckpointSaved,
    Event,
    Paused,
    RunStarted,
    StepLogged,
    UnknownEvent,
    WarningRaised,
    event_to_line,
)
from tuitrain.runs.journal import Journal, JournalTail, drop_abandoned, read_journal


def step_logged(step: int, *, epoch: int = 0) -> StepLogged:
    return StepLogged(
        time=float(step), step=step, epoch=epoch, loss=1.0, lr=1e-5, seconds_per_step=1.0, images_per_second=1.0
    )


def run_started(resumed_from: int | None) -> RunStarted:
    return RunStarted(
        run_id="1715373799.35",
        pid=1,
        host="box",
        tuitrain_version="0.1.0",
        versions={},
        device="cpu",
        world_size=1,
        config_hash="",
        seed=0,
        resumed_from=resumed_from,
    )


def test_a_tail_reads_each_event_once_and_waits_for_the_file_to_exist(tmp_path: Path) -> None:
    tail = JournalTail(tmp_path / "journal.jsonl")
    assert tail.read_new() == []
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(step_logged(1))
    journal.append(step_logged(2))
    assert tail.read_new() == [step_logged(1), step_logged(2)]
    assert tail.read_new() == []
    journal.append(step_logged(3))
    assert tail.read_new() == [step_logged(3)]


def test_a_torn_last_line_waits_and_is_completed_later(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    line = event_to_line(step_logged(2)).encode()
    for cut in range(1, len(line) + 1):
        path.write_bytes(event_to_line(step_logged(1)).encode() + b"\n" + line[:cut])
        tail = JournalTail(path)
        assert tail.read_new() == [step_logged(1)]
        assert tail.read_new() == []
        with path.open("ab") as file:
            file.write(line[cut:] + b"\n")
        assert tail.read_new() == [step_logged(2)]


def test_a_writer_after_a_crash_closes_the_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(event_to_line(step_logged(1)).encode() + b'\n{"kind":"StepLo')
    Journal(path).append(step_logged(2))
    events = JournalTail(path).read_new()
    assert events[0] == step_logged(1)
    assert isinstance(events[1], UnknownEvent)
    assert events[2:] == [step_logged(2)]


def test_events_that_a_full_disk_does_not_take_are_written_when_there_is_space(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append(step_logged(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        journal.append(step_logged(2))
        journal.append(step_logged(3))
        assert JournalTail(path).read_new() == [step_logged(1)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.append(step_logged(4))
    assert JournalTail(path).read_new() == [step_logged(step) for step in (1, 2, 3, 4)]


def test_closing_writes_what_waits_or_says_that_it_cannot(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        lost = Journal(path)
        lost.append(step_logged(1))
        with pytest.raises(OSError):
            lost.close()
        kept = Journal(path)
        kept.append(step_logged(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept.close()
    assert JournalTail(path).read_new()[-1] == step_logged(2)


def test_two_threads_of_two_writers_append_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    def append_many(journal: Journal, epoch: int) -> None:
        for step in range(1000):
            journal.append(step_logged(step, epoch=epoch))

    shared = Journal(path)
    writers = [shared, shared, Journal(path)]
    threads = [threading.Thread(target=append_many, args=(journal, epoch)) for epoch, journal in enumerate(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = JournalTail(path).read_new()
    for epoch in range(3):
        written_by_one = [event for event in events if isinstance(event, StepLogged) and event.epoch == epoch]
        assert written_by_one == [step_logged(step, epoch=epoch) for step in range(1000)]
    assert len(events) == 3000


def test_unknown_kinds_are_kept_in_their_place(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"kind":"Later","time":1.0,"x":1}\n' + event_to_line(step_logged(1)) + "\n")
    assert read_journal(path) == [UnknownEvent(time=1.0, kind="Later", fields={"x": 1}), step_logged(1)]


def test_a_resume_drops_the_abandoned_branch_and_only_that() -> None:
    saved = CheckpointSaved(step=2, epoch=0, name="checkpoint", num_bytes=1, seconds=1.0)
    warning = WarningRaised(what="no step in this one")
    unknown = UnknownEvent(kind="Later", fields={"step": 3})
    first: list[Event] = [run_started(None), step_logged(1), saved, step_logged(2), warning]
    abandoned: list[Event] = [step_logged(3), unknown, Paused(step=3)]
    second: list[Event] = [run_started(2), step_logged(3), step_logged(4)]
    assert drop_abandoned(first + abandoned + second) == first + second


def test_the_branch_of_a_resume_can_be_abandoned_too() -> None:
    start, second, third = run_started(None), run_started(2), run_started(1)
    steps = {step: step_logged(step) for step in range(1, 5)}
    events = [start, steps[1], steps[2], steps[3], second, steps[3], steps[4], third, steps[2]]
    assert drop_abandoned(events) == [start, steps[1], second, third, steps[2]]


def test_a_journal_is_private(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.jsonl").append(step_logged(1))
    assert (tmp_path / "journal.jsonl").stat().st_mode & 0o777 == 0o600
