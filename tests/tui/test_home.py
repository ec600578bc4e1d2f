"""The home screen: presets, runs, filter, and what Enter and F5 do."""

import time
from pathlib import Path

import pytest

from tests.tui.harness import SIZES, assert_golden, open_app, screen_text, wait_until
from tuitrain.runs.events import DatasetScanned, RunFinished, RunStarted, StepLogged
from tuitrain.runs.journal import Journal
from tuitrain.runs.run import Run
from tuitrain.tui.widgets.list_box import ListBox


@pytest.fixture
def runs_dir(tmp_path, monkeypatch) -> Path:
    """A folder with one finished run of a hostile name."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    run = Run.create(tmp_path / "cat[bold]s", config_yaml="type: SDXL_FINETUNE\n", config_json="{}")
    journal = Journal(run.journal_path)
    now = time.time()
    journal.append(
        RunStarted(
            time=now - 7300, run_id=run.run_id, pid=1, host="h", tuitrain_version="0", versions={}, device="cpu",
            world_size=1, config_hash="", seed=1, resumed_from=None,
        )
    )  # fmt: skip
    journal.append(
        DatasetScanned(
            time=now - 7300, num_images=4, num_skipped=0, buckets={}, steps_per_epoch=2, total_steps=10, num_epochs=5
        )
    )
    journal.append(
        StepLogged(
            time=now - 7250, step=10, epoch=5, loss=0.1234, lr=1e-5, grad_norm=1.0, seconds_per_step=0.5,
            images_per_second=8.0,
        )
    )  # fmt: skip
    journal.append(RunFinished(time=now - 7200, step=10, epoch=5, reason="completed", seconds=100.0))
    journal.close()
    run.path.rename(run.path.parent / "one")
    return tmp_path


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_presets_and_runs_at_every_size(runs_dir, size) -> None:
    async with open_app(size=size, runs_dir=Path()) as (app, pilot):
        await wait_until(pilot, lambda: "cat[bold]s/one" in screen_text(app))
        app.query_one("#runs").border_subtitle = ""
        await pilot.pause()
        assert_golden(screen_text(app), f"home_{size[0]}x{size[1]}")


async def test_the_filter_narrows_presets_and_runs_and_esc_shows_all(runs_dir) -> None:
    async with open_app(runs_dir=Path()) as (app, pilot):
        await wait_until(pilot, lambda: app.query_one("#presets", ListBox).option_count == 5)
        await pilot.press("slash", *"80gb")
        assert " esc Back  F5 Start  F1 Keys" in screen_text(app)  # letters go into the text
        assert app.query_one("#presets", ListBox).option_count == 1
        assert app.query_one("#runs", ListBox).option_count == 0
        await pilot.press("escape")
        assert " enter Open  F5 Start  / Filter" in screen_text(app)
        assert app.query_one("#presets", ListBox).option_count == 5
        assert app.query_one("#runs", ListBox).option_count == 1


async def test_z_lets_a_list_fill_the_screen_until_the_other_one_is_wanted(runs_dir) -> None:
    async with open_app(runs_dir=Path()) as (app, pilot):
        await wait_until(pilot, lambda: app.query_one("#runs", ListBox).option_count == 1)
        await pilot.press("tab", "z")
        await wait_until(pilot, lambda: "Presets ─" not in screen_text(app))
        assert app.query_one("#runs").outer_size == (80, 22)
        await pilot.press("z")
        await wait_until(pilot, lambda: "Presets ─" in screen_text(app))
        await pilot.press("z", "tab")
        await wait_until(pilot, lambda: app.screen.maximized is None and "Presets ─" in screen_text(app))
        assert app.focused.id == "presets"


async def test_enter_on_a_run_shows_how_it_ended(runs_dir) -> None:
    async with open_app(runs_dir=Path()) as (app, pilot):
        await wait_until(pilot, lambda: app.query_one("#runs", ListBox).option_count == 1)
        await pilot.press("tab", "enter")
        await wait_until(pilot, lambda: "FINISHED" in screen_text(app))
        assert "step 10/10" in screen_text(app)
        assert "0.1234" in screen_text(app)


async def test_a_path_that_is_no_run_is_refused_in_a_sentence(runs_dir) -> None:
    async with open_app(runs_dir=Path()) as (app, pilot):
        await pilot.press("o", *"nowhere", "enter")
        await wait_until(pilot, lambda: "nowhere is not a run" in " ".join(screen_text(app).split()))
