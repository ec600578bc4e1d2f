"""The offer of the home screen to take up a run that ended before its time; the engine trains for real."""

import gc
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.engine.harness import of_kind, small_config, train, write_pictures
from tests.reliability.resumption import DieAfterCheckpoint
from tests.tui.harness import open_app, screen_text, wait_until
from tuitrain.config.files import config_to_json, config_to_yaml, load_config
from tuitrain.runs.events import RunFailed, RunStarted
from tuitrain.runs.journal import read_journal
from tuitrain.runs.run import Run, find_runs, summarize
from tuitrain.tui.screens.home import HomeScreen
from tuitrain.tui.widgets.confirm import ConfirmScreen


@pytest.fixture(scope="module")
def dead_run(tmp_path_factory: pytest.TempPathFactory, tiny_sdxl: Path) -> Path:
    """The folder with one run that was killed when step 2 of 4 had been saved with its state."""
    folder = tmp_path_factory.mktemp("dead")
    config = small_config(folder, tiny_sdxl, write_pictures(folder / "pictures"), save_every_n_steps=2)
    run, _, exit_code = train(config, DieAfterCheckpoint(Path(config.base_output_dir), 2))
    assert exit_code == 1
    lines = run.journal_path.read_text().splitlines(keepends=True)
    run.journal_path.write_text("".join(lines[:-1]))  # the ending: a killed process writes none
    return folder


@pytest.fixture
def run(dead_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A copy of it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    shutil.copytree(dead_run / "runs", tmp_path / "runs")
    yield find_runs(tmp_path)[0]
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)


async def choose_run(app: Any, pilot: Pilot[Any]) -> None:
    await wait_until(pilot, lambda: "died" in screen_text(app) or "failed" in screen_text(app))
    await pilot.press("tab")
    await wait_until(pilot, lambda: "r Resume" in screen_text(app))


async def test_a_run_that_died_is_offered_and_r_trains_it_to_its_end(run: Run) -> None:
    async with open_app(runs_dir=run.path.parent) as (app, pilot):
        died = f"The newest run died at step {summarize(run).step}: tab to it"
        await wait_until(pilot, lambda: died in screen_text(app))
        assert "r Resume" not in screen_text(app)  # a preset is highlighted
        await choose_run(app, pilot)
        assert "r resumes it from step 2" in screen_text(app)
        assert "F5 Start" not in screen_text(app)
        await pilot.press("r")
        await wait_until(pilot, lambda: "FINISHED" in screen_text(app), seconds=90)
        assert app.hosted.run == run
    assert of_kind(read_journal(run.journal_path), RunStarted)[-1].resumed_from == 2
    assert summarize(run).state == "finished"


async def test_what_has_changed_is_shown_and_the_run_goes_on_once_that_is_accepted(run: Run) -> None:
    changed = load_config(run.config_path, ["optimizer.learning_rate=0.002", "train_batch_size=1"])
    run.write_config(config_yaml=config_to_yaml(changed), config_json=config_to_json(changed))
    async with open_app(runs_dir=run.path.parent) as (app, pilot):
        await choose_run(app, pilot)
        await pilot.press("r")
        await wait_until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        text = screen_text(app)
        assert "train_batch_size was 2, it is 1 now" in text
        assert "learning_rate" not in text  # may change
        await pilot.press("enter")  # the safe answer
        await wait_until(pilot, lambda: isinstance(app.screen, HomeScreen))
        assert summarize(run).state == "died"
        await pilot.press("r")
        await wait_until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("y")
        await wait_until(pilot, lambda: "FINISHED" in screen_text(app), seconds=90)
    assert of_kind(read_journal(run.journal_path), RunStarted)[-1].resumed_from == 2


async def test_what_only_the_training_finds_changed_is_asked_at_the_next_attempt(run: Run, dead_run: Path) -> None:
    caption = dead_run / "pictures" / "data.jsonl"
    before = caption.read_text()
    caption.write_text(before.replace("red", "green"))
    try:
        async with open_app(runs_dir=run.path.parent) as (app, pilot):
            await choose_run(app, pilot)
            await pilot.press("r")
            await wait_until(pilot, lambda: "FAILED" in screen_text(app), seconds=90)
            await wait_until(pilot, lambda: not app.hosted.is_alive, what="the end of the thread")
            await pilot.press("1")
            await wait_until(pilot, lambda: "r Resume" in screen_text(app))
            await pilot.press("r")
            await wait_until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
            assert "as it was" in screen_text(app)
            caption.write_text(before)
            await pilot.press("e")
            await wait_until(pilot, lambda: "FINISHED" in screen_text(app), seconds=90)
    finally:
        caption.write_text(before)
    assert len(of_kind(read_journal(run.journal_path), RunFailed)) == 1
    assert summarize(run).state == "finished"
