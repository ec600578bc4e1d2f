"""Draws the screens of the README from a run: `python -m tests.tui.screenshots RUN`; they land in docs/images."""

import asyncio
import sys
from pathlib import Path

from tests.tui.harness import open_app, screen_text, wait_until
from tuitrain.runs.run import Run

IMAGES = Path(__file__).resolve().parent.parent.parent / "docs" / "images"
SIZE = (110, 32)


async def draw(run: Run) -> None:
    """Save the train and the checkpoints screen of `run`."""
    async with open_app(size=SIZE) as (app, pilot):
        app.open_run(run)
        await wait_until(pilot, lambda: "FINISHED" in screen_text(app) and "GiB" in screen_text(app))
        _save(app, "train")
        await pilot.press("4")
        await wait_until(pilot, lambda: "half blocks" in screen_text(app) and "▀▀" in screen_text(app))
        _save(app, "checkpoints")


def _save(app, name: str) -> None:
    (IMAGES / f"{name}.svg").write_text(app.export_screenshot(title="tuitrain"), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(draw(Run.open(Path(sys.argv[1]))))
