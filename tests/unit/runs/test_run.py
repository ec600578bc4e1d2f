"""A run's folder is private, has one writer, and can be found and summed up by anybody who may read it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tuitrain.errors import ConfigError, TuitrainError
from tuitrain.runs.checkpoints import checkpoint_name
from tuitrain.runs.control import Command, poll_control_dir, send_command
from tuitrain.runs.events import (
    DatasetScanned,
    EpochFinished,
    Event,
    RunFailed,
    RunFinished,
    RunStarted,
    StepLogged,
)
from tuitrain.runs.journal import Journal
from tuitrain.runs.run import Run, find_runs, summarize


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs", config_yaml="type: SDXL_FINETUNE\n", config_json="{}")


def started(*, resumed_from: int | None = None, time: float = 100.0) -> RunStarted:
    return RunStarted(
        time=time,
        run_id="id",
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


def logged(step: int, *, loss: float = 0.5) -> StepLogged:
    return StepLogged(
        time=100.0 + step, step=step, epoch=0, loss=loss, lr=1e-5, seconds_per_step=1.0, images_per_second=1.0
    )


SCANNED = DatasetScanned(
    time=101.0, num_images=4, num_skipped=0, buckets={"64x64": 4}, steps_per_epoch=4, total_steps=40, num_epochs=10
)
FINISHED = RunFinished(time=200.0, step=40, epoch=10, reason="completed", seconds=100.0)
STOPPED = RunFinished(time=200.0, step=9, epoch=2, reason="stopped", seconds=100.0)
FAILED = RunFailed(time=200.0, what="the loss is NaN", step=9, exit_code=1)


def write_journal(run: Run, *events: Event) -> None:
    journal = Journal(run.journal_path)
    for event in events:
        journal.append(event)
    journal.close()


@contextmanager
def other_process_holding(run: Run) -> Iterator[subprocess.Popen[str]]:
    script = f"""
from pathlib import Path
from tuitrain.runs.run import Run
with Run.open(Path({str(run.path)!r})).lock():
    print("held", flush=True)
    input()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_new_run_has_the_layout_of_invoke_training_and_its_own_files(run: Run) -> None:
    assert float(run.run_id) > 0
    assert sorted(os.listdir(run.path)) == [
        "checkpoints",
        "config.json",
        "config.yaml",
        "control",
        "journal.jsonl",
        "logs",
        "validation",
    ]
    assert run.config_path.read_text() == "type: SDXL_FINETUNE\n"
    assert Run.open(run.path) == run


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_a_run_is_private_to_its_user_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        run = Run.create(tmp_path, config_yaml="", config_json="")
        with run.lock():
            send_command(run.control_dir, Command.SAVE)
    finally:
        os.umask(previous)
    (command,) = run.control_dir.iterdir()
    modes = {path: path.stat().st_mode & 0o777 for path in (run.path, run.control_dir)}
    assert set(modes.values()) == {0o700}
    for path in (run.lock_path, run.config_path, run.path / "config.json", run.journal_path, command):
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_opening_what_is_not_a_run_names_the_runs_that_are_near(run: Run) -> None:
    with pytest.raises(ConfigError) as caught:
        Run.open(run.path.with_name(run.run_id[:-1]))
    assert "is not a run" in str(caught.value)
    assert str(run.path) in caught.value.problems[0].hint


def test_a_second_process_is_refused_with_pid_and_host_of_the_first(run: Run) -> None:
    with other_process_holding(run) as process:
        with pytest.raises(TuitrainError) as caught, run.lock():
            pytest.fail("two processes hold the run")
        assert f"process {process.pid} on {socket.gethostname()}" in str(caught.value)
        holder = run.lock_holder()
        assert holder is not None
        assert holder.pid == process.pid


def test_a_second_lock_in_the_same_process_is_refused_too(run: Run) -> None:
    with run.lock(), pytest.raises(TuitrainError, match=f"process {os.getpid()} on"), run.lock():
        pytest.fail("held twice")


def test_a_lock_is_free_again_after_its_holder_was_killed(run: Run) -> None:
    with other_process_holding(run) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert run.lock_holder() is None
        with run.lock():
            holder = run.lock_holder()
    assert holder is not None
    assert holder.pid == os.getpid()
    assert run.lock_holder() is None


def test_a_damaged_lock_file_still_locks(run: Run) -> None:
    with other_process_holding(run):
        run.lock_path.write_bytes(b"\0\0\0")
        with pytest.raises(TuitrainError, match="an unknown host"), run.lock():
            pytest.fail("two processes hold the run")


def test_commands_to_the_last_holder_are_not_for_the_next(run: Run) -> None:
    send_command(run.control_dir, Command.STOP)
    with run.lock():
        assert poll_control_dir(run.control_dir) is None


def test_a_copy_of_a_run_without_its_empty_folders_can_be_held_and_commanded(run: Run) -> None:
    run.control_dir.rmdir()
    with run.lock():
        send_command(run.control_dir, Command.SAVE)
        assert poll_control_dir(run.control_dir) is Command.SAVE


def test_runs_are_found_newest_first_down_to_four_levels(tmp_path: Path) -> None:
    def create(folder: str) -> Run:
        return Run.create(tmp_path / folder, config_yaml="", config_json="")

    runs = [create("."), create("a"), create("a/b/c")]
    create("a/b/c/d")
    assert find_runs(tmp_path) == runs[::-1]
    assert find_runs(runs[0].path) == [runs[0]]
    assert find_runs(tmp_path / "nowhere") == []


def test_finding_follows_no_links_and_looks_into_no_runs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "twin").symlink_to(run.path)
    Run.create(run.validation_dir, config_yaml="", config_json="")
    assert find_runs(tmp_path) == [run]


def test_a_folder_without_a_journal_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "1715373799.35").mkdir()
    (tmp_path / "1715373799.35" / "config.json").touch()
    assert find_runs(tmp_path) == []


@pytest.mark.parametrize(
    ("ending", "state"),
    [(FINISHED, "finished"), (STOPPED, "stopped"), (FAILED, "failed"), (None, "died")],
)
def test_the_state_is_what_the_journal_ends_with(run: Run, ending: Event | None, state: str) -> None:
    write_journal(run, started(), SCANNED, logged(8), *([ending] if ending else []))
    assert summarize(run).state == state


@pytest.mark.parametrize(("ending", "step"), [(FINISHED, None), (STOPPED, 8), (FAILED, 8), (None, 8)])
def test_what_was_not_trained_to_its_end_can_go_on_from_its_newest_state(
    run: Run, ending: Event | None, step: int | None
) -> None:
    write_journal(run, started(), SCANNED, logged(9), *([ending] if ending else []))
    assert summarize(run).resumable_step is None  # it left no state
    for saved in (4, 8):
        (run.checkpoints_dir / checkpoint_name(epoch=0, step=saved) / "state").mkdir(parents=True)
    (run.checkpoints_dir / checkpoint_name(epoch=0, step=9)).mkdir()
    assert summarize(run).resumable_step == step
    with run.lock():
        assert summarize(run).resumable_step is None  # somebody does


def test_a_run_without_an_ending_runs_while_its_holder_lives_and_has_died_after(run: Run) -> None:
    write_journal(run, started(), SCANNED, logged(8))
    with other_process_holding(run) as process:
        summary = summarize(run)
        assert (summary.state, summary.pid) == ("running", process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        summary = summarize(run)
        assert (summary.state, summary.pid) == ("died", None)


def test_a_summary_tells_progress_as_journalled(run: Run) -> None:
    write_journal(run, started(), SCANNED, logged(4), logged(8, loss=0.25), EpochFinished(time=150.0, step=10, epoch=3))
    summary = summarize(run)
    assert (summary.step, summary.total_steps, summary.epoch, summary.loss) == (10, 40, 3, 0.25)
    assert (summary.started, summary.updated, summary.num_checkpoints) == (100.0, 150.0, 0)


def test_a_resumed_run_counts_from_where_it_went_on(run: Run) -> None:
    write_journal(run, started(), SCANNED, logged(30), FAILED, started(resumed_from=20, time=300.0))
    assert summarize(run).state == "died"
    assert summarize(run).step == 20
    with run.lock():
        assert summarize(run).state == "running"
    write_journal(run, logged(24))
    assert summarize(run).step == 24
    assert summarize(run).started == 100.0


def test_a_failed_run_that_is_taken_up_again_runs_before_it_has_written_anything(run: Run) -> None:
    write_journal(run, started(), FAILED)
    with run.lock():
        assert summarize(run).state == "running"


@pytest.mark.parametrize(
    "journal", [b"", b'{"kind":"RunSta', b"\0\0\0\n", b'{"kind":"RunStarted"}\n{"kind":"StepLogged"}\n']
)
def test_a_damaged_journal_is_summed_up_too(run: Run, journal: bytes) -> None:
    run.journal_path.write_bytes(journal)
    assert summarize(run).state == "died"
    assert summarize(run).step == 0
