"""Runs the app without a terminal and reads its screen as text."""

import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from textual.app import App
from textual.pilot import Pilot

from tuitrain.tui.app import TuitrainApp

GOLDEN = Path(__file__).parent / "golden"
SIZES = ((80, 24), (120, 40), (160, 50))


@asynccontextmanager
async def open_app(
    *, size: tuple[int, int] = (80, 24), runs_dir: Path = Path(), app: App[Any] | None = None
) -> AsyncIterator[tuple[Any, Pilot[Any]]]:
    """The app at `size` columns and rows, at its first screen."""
    app = app or TuitrainApp(runs_dir=runs_dir)
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause()
        yield app, pilot


async def wait_until(pilot: Pilot[Any], is_true: Callable[[], bool], *, seconds: float = 20.0, what: str = "") -> None:
    """Let the app work until `is_true()`."""
    for _ in range(round(seconds / 0.02)):
        if is_true():
            await pilot.pause()
            return
        await pilot.pause(0.02)
    raise AssertionError(f"{what or is_true} did not come within {seconds} s; the screen:\n{screen_text(pilot.app)}")


async def settle(pilot: Pilot[Any]) -> None:
    """Let the app work until its screen has stayed the same for 0.3 s."""
    shown, num_same = "", 0
    for _ in range(400):
        await pilot.pause(0.05)
        text = screen_text(pilot.app)
        shown, num_same = text, num_same + 1 if text == shown else 0
        if num_same == 6:
            return
    raise AssertionError(f"the screen did not come to rest:\n{shown}")


def screen_text(app: App[Any]) -> str:
    """The characters on the screen, a line each."""
    strips = app.screen._compositor.render_strips()  # the one private name of Textual in the tests
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips) + "\n"


def assert_golden(text: str, name: str) -> None:
    """`text` is that of tests/tui/golden/NAME.txt; TUITRAIN_UPDATE_GOLDEN=1 rewrites the file."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("TUITRAIN_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), (
        f"{path.name} differs; look, then run with TUITRAIN_UPDATE_GOLDEN=1"
    )


def without_times(text: str) -> str:
    """`text` with clock times and run names replaced, which differ from run to run."""
    text = re.sub(r"\b\d\d:\d\d:\d\d\b", "HH:MM:SS", text)
    return re.sub(r"\b1\d{9}\.\d+\b", lambda match: "R" * len(match[0]), text)
