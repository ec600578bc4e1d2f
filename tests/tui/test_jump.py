"""Jumping by letters: each panel gets one, the next key goes there or nowhere, and only the letters are sent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tui.harness import open_app, screen_text, settle, wait_until
from tests.tui.series_samples import falling_loss
from tests.tui.test_chart import CountingDriver
from tuitrain.runs.journal import Journal
from tuitrain.runs.run import Run
from tuitrain.tui.app import DRAW_SECONDS
from tuitrain.tui.widgets import gpu_panel

NUM_STEPS = 40


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run that a process trains, on a machine that is read once."""
    monkeypatch.setattr(gpu_panel, "READ_SECONDS", 3600.0)
    run = Run.create(tmp_path / "foxes", config_yaml="type: SDXL_FINETUNE\n", config_json="{}")
    journal = Journal(run.journal_path)
    for event in falling_loss(NUM_STEPS):
        journal.append(event)
    journal.close()
    with run.lock():
        yield run


async def open_train_screen(app: Any, pilot: Any, run: Run) -> None:
    app.open_run(run)
    await wait_until(pilot, lambda: "disk" in screen_text(app) and app.screen.chart.has_focus)
    await settle(pilot)


async def test_each_panel_that_can_have_the_focus_gets_a_letter_at_its_corner_and_the_letter_goes_there(
    run: Run,
) -> None:
    async with open_app(size=(120, 40)) as (app, pilot):
        await open_train_screen(app, pilot, run)
        before = screen_text(app).splitlines()
        await pilot.press("ctrl+g")
        await wait_until(pilot, lambda: " c events" in screen_text(app))
        lines = screen_text(app).splitlines()
        for letter, panel in zip("abc", ("chart", "gpu", "events"), strict=True):
            x, y = app.screen.query_one(f"#{panel}").region.offset
            assert lines[y][x : x + 3] == f" {letter} "
        await pilot.press("c")
        await wait_until(pilot, lambda: app.focused.id == "events")
        assert screen_text(app).splitlines()[2:] == before[2:]


@pytest.mark.parametrize("key", ["escape", "q", "ctrl+q", "2"])
async def test_any_other_key_puts_the_letters_away_and_does_nothing_else(key: str, run: Run) -> None:
    async with open_app(size=(80, 24)) as (app, pilot):
        await open_train_screen(app, pilot, run)
        before = screen_text(app)
        await pilot.press("ctrl+g")
        await wait_until(pilot, lambda: " a loss" in screen_text(app))
        await pilot.press(key)
        await wait_until(pilot, lambda: screen_text(app) == before)
        assert (app.current_mode, app.focused.id, len(app.screen_stack)) == ("train", "chart", 1)


async def test_it_leaves_a_text_that_is_typed_into(tmp_path: Path) -> None:
    async with open_app(runs_dir=tmp_path) as (app, pilot):
        await pilot.press("slash", "x", "ctrl+g", "b")
        await wait_until(pilot, lambda: app.focused.id == "presets")
        assert app.screen.query_one("#filter").value == "x"


async def test_the_palette_offers_it_and_a_panel_that_fills_the_screen_is_lettered_alone(run: Run) -> None:
    async with open_app(size=(80, 24)) as (app, pilot):
        await open_train_screen(app, pilot, run)
        await pilot.press("z", "ctrl+p", *"Jump")
        await wait_until(pilot, lambda: "Show a letter" in screen_text(app))
        await pilot.press("enter")
        await wait_until(pilot, lambda: " a loss" in screen_text(app))
        assert screen_text(app)[:3] == " a "
        await pilot.press("escape")
        await wait_until(pilot, lambda: " a loss" not in screen_text(app))
        assert app.screen.maximized is app.screen.chart


async def test_only_the_letters_are_sent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textual.drivers.headless_driver.HeadlessDriver", CountingDriver)
    async with open_app(size=(120, 40)) as (app, pilot):
        await open_train_screen(app, pilot, run)

        async def num_sent(key: str, text: str) -> int:
            before = app._driver.num_bytes
            await pilot.press(key)
            await wait_until(pilot, lambda: text in screen_text(app))
            return app._driver.num_bytes - before

        assert 0 < await num_sent("ctrl+g", " c events") <= 300
        assert 0 < await num_sent("escape", "╭─ events") <= 300
        assert await num_sent("question_mark", "Keys: Train") > 10_000, "as much as a screen"


async def test_a_change_of_focus_sends_the_two_panels_and_not_the_screen(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textual.drivers.headless_driver.HeadlessDriver", CountingDriver)
    async with open_app(size=(120, 40)) as (app, pilot):
        await open_train_screen(app, pilot, run)
        before = app._driver.num_bytes
        await pilot.press("tab")
        await pilot.pause(0.3)
        num_bytes = app._driver.num_bytes - before
        assert 0 < num_bytes < 10_000, "as much as a screen is 13,000"


async def test_what_is_below_stands_still_until_the_letters_are_away(run: Run) -> None:
    async with open_app(size=(120, 40)) as (app, pilot):
        await open_train_screen(app, pilot, run)
        await pilot.press("ctrl+g")
        await wait_until(pilot, lambda: " c events" in screen_text(app))
        shown = screen_text(app)
        journal = Journal(run.journal_path)
        journal.append(falling_loss(NUM_STEPS + 1)[-1])
        journal.close()
        await wait_until(pilot, lambda: app.live.snapshot.step == NUM_STEPS + 1)
        await pilot.pause(1.5 * DRAW_SECONDS)
        assert screen_text(app) == shown
        await pilot.press("escape")
        await wait_until(pilot, lambda: f"{app.live.snapshot.loss:.4f}" in screen_text(app))
