"""The heartbeat: what it costs a reader to be wrong, and when a run is called silent."""

import time
from pathlib import Path

import pytest

from tuitrain.runs.heartbeat import Heartbeat, HeartbeatWatch, read_beat
from tuitrain.runs.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path, config_yaml="", config_json="{}")


def test_a_run_that_never_moved_has_no_age_and_is_not_silent(run: Run) -> None:
    assert run.heartbeat_age() is None
    assert not HeartbeatWatch(run.heartbeat_path).is_silent()


def test_the_age_counts_from_the_last_beat(run: Run) -> None:
    run.heartbeat_path.write_text(f"{time.time() - 100:.3f} 30.000\n")
    age = run.heartbeat_age()
    assert age is not None
    assert 99 < age < 160


@pytest.mark.parametrize(("patience_seconds", "is_silent"), [(30.0, True), (600.0, False)])
def test_a_run_is_silent_only_beyond_the_patience_it_promised(
    run: Run, patience_seconds: float, is_silent: bool
) -> None:
    run.heartbeat_path.write_text(f"{time.time() - 100:.3f} {patience_seconds}\n")
    assert HeartbeatWatch(run.heartbeat_path).is_silent() == is_silent


@pytest.mark.parametrize("jump_seconds", [3600.0, -3600.0])
def test_a_clock_that_is_set_makes_no_run_silent_and_hides_no_silence(run: Run, jump_seconds: float) -> None:
    watch = HeartbeatWatch(run.heartbeat_path)
    run.heartbeat_path.write_text(f"{time.time() + jump_seconds:.3f} 30\n")
    assert watch.is_silent() == (jump_seconds < 0)  # the first look can but compare two clocks
    run.heartbeat_path.write_text(f"{time.time() - jump_seconds:.3f} 30\n")
    assert not watch.is_silent()
    run.heartbeat_path.write_text(f"{time.time() + jump_seconds:.3f} 0\n")
    assert not HeartbeatWatch(run.path / "nothing").is_silent()
    watch.is_silent()
    time.sleep(0.002)
    assert watch.is_silent()


def test_within_a_second_only_another_promise_is_written(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "heartbeat")
    heartbeat.beat(30)
    first = read_beat(tmp_path / "heartbeat")
    heartbeat.beat(30)
    assert read_beat(tmp_path / "heartbeat") == first
    for patience_seconds in (3600, 300):  # after a long call, a hang must not hide behind its promise
        heartbeat.beat(patience_seconds)
        beat = read_beat(tmp_path / "heartbeat")
        assert beat is not None
        assert beat.patience_seconds == patience_seconds


def test_a_shorter_line_leaves_nothing_of_the_longer_one(tmp_path: Path) -> None:
    Heartbeat(tmp_path / "heartbeat").beat(123456)
    Heartbeat(tmp_path / "heartbeat").beat(1)
    beat = read_beat(tmp_path / "heartbeat")
    assert beat is not None
    assert beat.patience_seconds == 1


def test_a_disk_that_takes_nothing_ends_no_run(tmp_path: Path) -> None:
    Heartbeat(tmp_path / "gone" / "heartbeat").beat()
    assert read_beat(tmp_path / "gone" / "heartbeat") is None


@pytest.mark.parametrize("content", [b"", b"\xff", b"soon", b"1 2 3", b"a b"])
def test_a_damaged_heartbeat_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "heartbeat"
    path.write_bytes(content)
    assert read_beat(path) is None
