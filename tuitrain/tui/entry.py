"""The way into the app, for the command line: imports Textual no sooner than there is something to show."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tuitrain.tui.collector import spare_imports

if TYPE_CHECKING:
    from tuitrain.tui.app import TuitrainApp


def open_app(
    on_ready: "Callable[[TuitrainApp], None]",
    *,
    images: str = "auto",
    is_ascii: bool = False,
    first_mode: str = "home",
    runs_dir: Path = Path(),
) -> int:
    """Run the app, see `run_app`."""
    spare_imports()
    from tuitrain.tui.launch import run_app  # Textual: 0.2 s

    return run_app(on_ready, first_mode=first_mode, runs_dir=runs_dir, images=images, is_ascii=is_ascii)
