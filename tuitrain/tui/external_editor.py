"""A text in the user's own editor, with the app out of the way meanwhile; knows nothing of what the text says."""

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from textual.app import App, SuspendNotSupported

from tuitrain.errors import TuitrainError

_USUAL_EDITORS = ("nano", "vim", "vi")


def edit_outside(app: App[Any], text: str) -> str:
    """Give the terminal to $VISUAL or $EDITOR on `text`; returns what was saved there.

    Raises:
        TuitrainError: there is no editor, or it cannot be run here.
    """
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or next(filter(shutil.which, _USUAL_EDITORS), "")
    if not command:
        raise TuitrainError("no editor was found", hint="set EDITOR before you start tuitrain")
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "config.yaml")
            path.write_text(text, encoding="utf-8")
            # The terminal itself: what the app would print goes to its log while it runs.
            with app.suspend(), Path("/dev/tty").open("r+b", buffering=0) as terminal:
                subprocess.run(
                    [*shlex.split(command), str(path)], stdin=terminal, stdout=terminal, stderr=terminal, check=False
                )
            return path.read_text(encoding="utf-8", errors="replace")
    except (SuspendNotSupported, OSError, ValueError) as error:  # ValueError: quotes in EDITOR that do not close
        raise TuitrainError(f"{command} cannot be run here: {error}") from error
