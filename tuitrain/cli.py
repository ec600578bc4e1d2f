"""The way into the program: the app where nothing else is asked for, else a command; knows none of them.

The app's first screen waits for nothing it does not need: declaring the commands takes 0.1 s.
"""

import atexit
import gc
import os
import sys
from pathlib import Path

from tuitrain.tui.entry import open_app


def main() -> None:
    """The program `tuitrain`."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: `tuitrain ... >&-`
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  until the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names and captions hold what some locales lack
    atexit.register(gc.freeze)  # the interpreter's last collection would walk all of torch: 4 s on a busy machine
    is_plain = not any(name.startswith("TUITRAIN_") for name in os.environ)  # such a variable stands for an option
    if len(sys.argv) == 1 and is_plain:
        sys.exit(_open_first_screen())
    from tuitrain.commands.program import app

    app()


def _open_first_screen() -> int:
    try:
        return open_app(lambda app: None)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the process's edge
        from tuitrain.commands.outcome import tell_failure

        return tell_failure(error)


if __name__ == "__main__":
    main()
