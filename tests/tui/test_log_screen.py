"""The log screen: its keys search, filter, follow and copy."""

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.tui.harness import open_app, screen_text, wait_until
from tuitrain.runs.run import Run
from tuitrain.tui.app import TuitrainApp

NUM_LINES = 200


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose log has 200 lines, every hundredth a warning."""
    run = Run.create(tmp_path / "foxes", config_yaml="type: SDXL_FINETUNE\n", config_json="{}")
    levels = ["WARNING" if number % 100 == 50 else "INFO" for number in range(NUM_LINES)]
    lines = [f"2026-01-01 00:00:00,000 {level} tuitrain: line {n} end\n" for n, level in enumerate(levels)]
    run.log_path.write_text("".join(lines))
    return run


async def open_log(app: TuitrainApp, pilot: Pilot[Any], run: Run) -> None:
    app.open_run(run)
    await wait_until(pilot, lambda: app.live is not None and app.current_mode == "train")
    await pilot.press("5")
    await wait_until(pilot, lambda: "line 199 end" in screen_text(app))


async def test_g_and_G_go_to_the_ends_and_f_follows(run: Run) -> None:  # noqa: N802  the key's name
    async with open_app() as (app, pilot):
        await open_log(app, pilot, run)
        await pilot.press("g")
        await wait_until(pilot, lambda: "line 0 end" in screen_text(app))
        await pilot.press("G")
        await wait_until(pilot, lambda: "line 199 end" in screen_text(app))
        await pilot.press("home")
        await wait_until(pilot, lambda: "line 0 end" in screen_text(app))
        with run.log_path.open("a") as file:
            file.write("2026-01-01 00:00:01,000 INFO tuitrain: line 200 end\n")
        await pilot.press("f")
        await wait_until(pilot, lambda: "line 200 end" in screen_text(app))


async def test_a_search_finds_the_last_match_and_goes_on_both_ways(run: Run) -> None:
    async with open_app() as (app, pilot):
        await open_log(app, pilot, run)
        await pilot.press("slash", *"50 end", "enter")
        await wait_until(pilot, lambda: "line 150 end" in screen_text(app))
        await pilot.press("N")
        await wait_until(pilot, lambda: "line 50 end" in screen_text(app))
        await pilot.press("n")
        await wait_until(pilot, lambda: "line 150 end" in screen_text(app))


async def test_w_shows_warnings_only_and_all_again(run: Run) -> None:
    async with open_app() as (app, pilot):
        await open_log(app, pilot, run)
        await pilot.press("w")
        await wait_until(pilot, lambda: "line 50 end" in screen_text(app))
        assert "line 150 end" in screen_text(app) and "line 199 end" not in screen_text(app)
        await pilot.press("w")
        await wait_until(pilot, lambda: "line 199 end" in screen_text(app))


async def test_y_sends_the_last_line_to_the_clipboard_and_to_a_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMUX", raising=False)
    async with open_app() as (app, pilot):
        await open_log(app, pilot, run)
        await pilot.press("y")
        await wait_until(pilot, lambda: "sent to the terminal's clipboard" in screen_text(app))
        line = f"2026-01-01 00:00:00,000 INFO tuitrain: line {NUM_LINES - 1} end"
        assert app.clipboard == line
        assert (run.path / "clipboard.txt").read_text() == line
