"""LiveRun over real run folders: what it folds, who it believes alive, and where commands go."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tuitrain.errors import TuitrainError
from tuitrain.runs.control import Command, poll_control_dir
from tuitrain.runs.events import Event, PhaseStarted, RunFinished, StepLogged
from tuitrain.runs.heartbeat import Heartbeat
from tuitrain.runs.journal import Journal
from tuitrain.runs.run import Run
from tuitrain.tui.live import LiveRun
from tuitrain.tui.snapshot import State


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path, config_yaml="", config_json='{"seed": 7}')


def step(number: int, loss: float = 0.5) -> StepLogged:
    return StepLogged(
        step=number, epoch=0, loss=loss, lr=1e-4, grad_norm=1.0, seconds_per_step=0.5, images_per_second=4.0
    )


def append(run: Run, *events: Event) -> None:
    with closing(Journal(run.journal_path)) as journal:
        for event in events:
            journal.append(event)


def watch(run: Run) -> LiveRun:
    live = LiveRun.watch(run)
    live.load()
    return live


def test_what_is_appended_after_loading_arrives_with_the_next_poll_and_once(run: Run) -> None:
    append(run, PhaseStarted(phase="train"), step(1))
    with run.lock():
        live = watch(run)
        assert not live.poll()
        append(run, step(2, loss=0.25))
        assert live.poll()
        assert not live.poll()
    assert list(live.series.steps) == [1, 2]
    assert list(live.series.values("loss")) == [0.5, 0.25]
    assert (live.snapshot.step, live.snapshot.loss) == (2, 0.25)
    assert live.config_values == {"seed": 7}


def test_nothing_is_folded_before_loading(run: Run) -> None:
    append(run, step(1))
    live = LiveRun.watch(run)
    assert not live.poll()
    assert live.snapshot.step == 0


def test_a_run_whose_process_has_gone_without_a_word_is_lost(run: Run) -> None:
    append(run, PhaseStarted(phase="train"), step(1))
    with run.lock():
        live = watch(run)
        assert (live.is_alive, live.snapshot.state) == (True, State.TRAINING)
    live = watch(run)
    assert (live.is_alive, live.snapshot.state) == (False, State.LOST)


def test_a_run_that_ended_is_not_lost(run: Run) -> None:
    append(run, PhaseStarted(phase="train"), step(1), RunFinished(step=1, epoch=0, reason="completed", seconds=1.0))
    live = watch(run)
    assert (live.is_alive, live.snapshot.state) == (False, State.FINISHED)


def test_a_run_has_ended_once_it_says_so_though_its_process_tidies_up(run: Run) -> None:
    append(run, PhaseStarted(phase="train"), step(1))
    with run.lock():
        live = watch(run)
        assert not live.has_ended
        append(run, RunFinished(step=1, epoch=0, reason="completed", seconds=1.0))
        live.poll()
        assert (live.is_alive, live.has_ended) == (True, True)


def test_a_run_that_is_lost_has_not_ended_by_its_own_word(run: Run) -> None:
    append(run, PhaseStarted(phase="train"), step(1))
    live = watch(run)
    assert (live.snapshot.state, live.has_ended) == (State.LOST, False)


def test_a_trainer_that_broke_its_promise_to_move_is_lost_though_alive(run: Run) -> None:
    append(run, PhaseStarted(phase="train"), step(1))
    with run.lock():
        Heartbeat(run.heartbeat_path).beat(patience_seconds=-1.0)  # the clock of files is coarse
        live = watch(run)
        assert (live.is_alive, live.snapshot.state) == (True, State.LOST)


def test_a_command_to_another_process_lands_in_its_control_folder(run: Run) -> None:
    with run.lock():
        watch(run).send(Command.PAUSE)
        assert poll_control_dir(run.control_dir) is Command.PAUSE


def test_a_command_to_nobody_is_refused(run: Run) -> None:
    with pytest.raises(TuitrainError, match="is not being trained"):
        watch(run).send(Command.PAUSE)
    assert poll_control_dir(run.control_dir) is None


@pytest.mark.slow
def test_the_collector_does_not_halt_the_screen_while_libraries_load() -> None:
    program = """
import gc
from tuitrain.engine.launch import SLOW_IMPORTS
from tuitrain.tui.live import leave_a_core_to_the_screen

leave_a_core_to_the_screen()
before = gc.get_stats()[2]["collections"]
for name in SLOW_IMPORTS:
    __import__(name)
print("full passes:", gc.get_stats()[2]["collections"] - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert "full passes: 0\n" in done.stdout
