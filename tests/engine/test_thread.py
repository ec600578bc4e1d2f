"""The engine's thread."""

from pathlib import Path

from tests.engine.harness import of_kind, small_config, write_pictures
from tuitrain.engine.launch import create_run
from tuitrain.engine.thread import TrainerThread
from tuitrain.errors import TuitrainError
from tuitrain.runs import events
from tuitrain.runs.control import Command, CommandQueue
from tuitrain.runs.journal import read_journal


def test_the_thread_obeys_commands_and_tells_the_exit_code(tmp_path: Path, tiny_sdxl: Path) -> None:
    jsonl = write_pictures(tmp_path / "pictures")
    config, run = create_run(small_config(tmp_path, tiny_sdxl, jsonl, max_train_steps=10_000))
    control = CommandQueue(run.control_dir)
    thread = TrainerThread(config, run, control=control)
    assert not thread.daemon
    control.put(Command.STOP)
    thread.start()
    thread.join(120)
    assert thread.exit_code == 0
    (finished,) = of_kind(read_journal(run.journal_path), events.RunFinished)
    assert (finished.reason, finished.step) == ("stopped", 0)


def test_a_run_that_is_trained_already_is_refused_without_a_traceback(tmp_path: Path, tiny_sdxl: Path) -> None:
    jsonl = write_pictures(tmp_path / "pictures")
    config, run = create_run(small_config(tmp_path, tiny_sdxl, jsonl))
    thread = TrainerThread(config, run, control=CommandQueue())
    with run.lock():
        thread.start()
        thread.join(60)
    assert isinstance(thread.failure, TuitrainError)
    assert "is being trained by process" in str(thread.failure)
    assert thread.exit_code == 1
