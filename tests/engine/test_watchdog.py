"""What stands in the log of a training that hangs."""

import ctypes
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.harness import small_config, train_well, write_pictures
from tuitrain.engine.watchdog import stacks_logged_on_silence
from tuitrain.runs.heartbeat import Heartbeat


def hang_with_the_interpreter_locked() -> None:
    ctypes.PyDLL(None).usleep(300_000)


def test_a_loop_that_hangs_leaves_its_stack_in_the_log(tmp_path: Path) -> None:
    log_path = tmp_path / "log.txt"
    with stacks_logged_on_silence(log_path) as watch:
        Heartbeat(tmp_path / "heartbeat", on_promise=watch).beat(patience_seconds=0.1)
        hang_with_the_interpreter_locked()
    log = log_path.read_text()
    assert log.startswith("Timeout (0:00:00.1")
    assert "in hang_with_the_interpreter_locked" in log


def test_a_loop_that_keeps_its_promise_leaves_nothing(tmp_path: Path) -> None:
    with stacks_logged_on_silence(tmp_path / "log.txt") as watch:
        for _ in range(3):
            Heartbeat(tmp_path / "heartbeat", on_promise=watch).beat(patience_seconds=30.0)
    time.sleep(0.02)
    assert (tmp_path / "log.txt").read_bytes() == b""


def test_a_run_that_hangs_tells_where(tmp_path: Path, tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(tmp_path, tiny_sdxl, write_pictures(tmp_path / "pictures", 2), max_train_steps=1)
    beat = Heartbeat.beat
    monkeypatch.setattr(Heartbeat, "beat", lambda self, patience_seconds=30.0: beat(self, patience_seconds / 300))

    def hang_once(is_first: Iterator[bool] = iter([True])) -> None:  # noqa: B008
        time.sleep(0.3 if next(is_first, False) else 0.0)

    run, _ = train_well(config, hang_once)
    assert "in hang_once" in run.log_path.read_text()
