"""The explorer: the right runs and metrics are drawn, whatever the keys; a run's name is never obeyed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.tui.harness import open_app, screen_text, wait_until
from tests.tui.series_samples import falling_loss
from tuitrain.runs.events import Event
from tuitrain.runs.journal import Journal
from tuitrain.runs.run import Run
from tuitrain.tui.screens.chart import ChartScreen


def make_run(folder: Path, name: str, events: list[Event]) -> Run:
    run = Run.create(folder, config_yaml="", config_json="{}")
    run = Run(run.path.rename(folder / name))
    append(run, events)
    return run


def append(run: Run, events: list[Event]) -> None:
    journal = Journal(run.journal_path)
    for event in events:
        journal.append(event)
    journal.close()


@asynccontextmanager
async def explorer(run: Run, size: tuple[int, int] = (80, 24)) -> AsyncIterator[tuple[Any, Pilot[Any]]]:
    async with open_app(size=size) as (app, pilot):
        await app.push_screen(ChartScreen(run))
        await wait_until(pilot, lambda: "━━" in screen_text(app) or "nothing" in screen_text(app))
        yield app, pilot


async def shows(app: Any, pilot: Pilot[Any], text: str) -> None:
    await wait_until(pilot, lambda: text in screen_text(app), seconds=10.0, what=text)


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
async def test_it_shows_the_run_it_was_opened_for_at_every_size(tmp_path: Path, size: tuple[int, int]) -> None:
    run = make_run(tmp_path, "fox", falling_loss(600))
    async with explorer(run, size) as (app, pilot):
        await shows(app, pilot, "● fox")
        text = screen_text(app)
        assert "loss, smoothed by 0.98" in text and "━━ fox" in text
        assert "Show run" in text and "Back" in text
        assert max(map(len, text.splitlines())) <= size[0]


async def test_runs_beside_it_come_and_go(tmp_path: Path) -> None:
    run = make_run(tmp_path, "fox", falling_loss(600))
    make_run(tmp_path, "owl", falling_loss(900, seed=2))
    async with explorer(run) as (app, pilot):
        await shows(app, pilot, "○ owl")
        await pilot.press("G" if app.screen._runs[0] == run else "g", "space")
        await shows(app, pilot, "● owl")
        await shows(app, pilot, "━━ owl")
        await pilot.press("enter")
        await shows(app, pilot, "○ owl")
        await wait_until(pilot, lambda: "━━ owl" not in screen_text(app))


async def test_the_highlight_stays_on_the_run_and_hiding_it_says_what_to_do(tmp_path: Path) -> None:
    run = make_run(tmp_path, "fox", falling_loss(300))
    make_run(tmp_path, "4000000000.5", falling_loss(300))  # newer: above it
    async with explorer(run) as (app, pilot):
        await shows(app, pilot, "○ 4000000000.5")
        await pilot.press("space")
        await shows(app, pilot, "No run is shown")
        assert "○ fox" in screen_text(app)


async def test_metrics_axes_and_smoothing_change_by_key(tmp_path: Path) -> None:
    run = make_run(tmp_path, "fox", falling_loss(600))
    async with explorer(run) as (app, pilot):
        for key, said in [
            ("y", "loss, log y, smoothed by 0.98"),
            ("x", "loss, log y, log steps"),
            ("+", "smoothed by 0.99"),
            ("-", "smoothed by 0.98"),
            ("M", "loss and learning rate"),
            ("M", "loss and gradient norm"),
            ("m", "learning rate and gradient norm"),
            ("m", "gradient norm, log y"),
        ]:
            await pilot.press(key)
            await shows(app, pilot, said)


async def test_zooming_and_going_sideways_stay_within_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "fox", falling_loss(800))
    async with explorer(run) as (app, pilot):
        screen = app.screen
        await pilot.press("]")
        assert (screen._options.first, screen._options.last) == (200, 601)
        await pilot.press(*["right"] * 3)
        assert screen._options.first == 399 and screen._options.last is None
        await pilot.press(*["left"] * 5)
        assert screen._options.first is None and screen._options.last == 402
        await pilot.press("[")
        assert (screen._options.first, screen._options.last) == (None, 602)
        await pilot.press("0")
        assert (screen._options.first, screen._options.last) == (None, None)
        for _ in range(20):
            screen.action_zoom_in()
        first, last = screen._steps()
        assert 1 <= first < last <= 800


async def test_refresh_reads_what_was_appended(tmp_path: Path) -> None:
    run = make_run(tmp_path, "fox", [])
    async with explorer(run) as (app, pilot):
        assert "nothing to plot yet" in screen_text(app)
        append(run, falling_loss(300))
        await pilot.press("r")
        await shows(app, pilot, "━━ fox")


async def test_a_name_is_shown_and_neither_obeyed_nor_read_as_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path, "[red]x\x1b[31m\u202e", falling_loss(300))
    async with explorer(run) as (app, _pilot):
        text = screen_text(app)
        assert r"━━ [red]x\x1b[31m\u202e" in text
        assert r"● [red]x\x1b[31m\u202e" in text
        assert "\x1b" not in text and "\u202e" not in text


async def test_without_colours_curves_have_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    run = make_run(tmp_path, "fox", falling_loss(300))
    async with explorer(run) as (app, pilot):
        await pilot.press("M")
        await shows(app, pilot, "aa fox: loss, left")
        assert "bb fox: learning rate, right" in screen_text(app)


async def test_escape_goes_back_even_while_it_draws(tmp_path: Path) -> None:
    run = make_run(tmp_path, "fox", falling_loss(10))
    async with explorer(run) as (app, pilot):
        await pilot.press("y", "r", "escape")
        assert not isinstance(app.screen, ChartScreen)
        await app.workers.wait_for_complete()
