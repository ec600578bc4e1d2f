"""When Python's garbage collector works while the app is open; knows nothing of screens or runs."""

import gc

IMPORT_THRESHOLDS = (5_000, 10, 50)
"""While libraries are imported: the collector seldom looks through everything, which halts every thread, for 0.05 s
with Textual and for 0.2 to 0.5 s with torch, and by default happens seven times on the way. Young objects it still
takes often; all of them when 2.5 million more have come."""

SETTLED_THRESHOLDS = (5_000, 10, 2)
"""Once the libraries are imported and left out: full passes are short then, and what screens leave behind in cycles, 60
objects a second, goes before it is many megabytes."""


def spare_imports() -> None:
    """Let imports that follow not wait for the collector; `leave_out_libraries` ends this."""
    gc.set_threshold(*IMPORT_THRESHOLDS)


def leave_out_libraries() -> None:
    """Let the collector look no more at what has been imported, which stays as long as the process."""
    gc.freeze()
    gc.set_threshold(*SETTLED_THRESHOLDS)
