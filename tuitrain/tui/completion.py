"""The rest of a path that is being typed, from what is on disk; knows no widget."""

import os
from pathlib import Path

_MAX_ENTRIES = 5000


def complete_path(text: str, *, folders_only: bool = False) -> tuple[str, list[str]]:
    """`text` with as much added as all entries that begin with it share, and those entries.

    Args:
        text: a path, perhaps in part; `~` is the home folder and stays written so.
        folders_only: leave out files.
    """
    folder, slash, start = text.rpartition("/")
    place = Path(f"{folder}{slash}" or ".")
    names = []
    try:
        with os.scandir(place.expanduser()) as entries:
            for index, entry in enumerate(entries):
                if index == _MAX_ENTRIES:
                    break
                is_wanted = entry.name.startswith(start) and (start.startswith(".") or not entry.name.startswith("."))
                if is_wanted and entry.name.isprintable() and (entry.is_dir() or not folders_only):
                    names.append(f"{entry.name}/" if entry.is_dir() else entry.name)
    except (OSError, ValueError, RuntimeError):  # no such folder, a NUL, no such home
        return text, []
    names.sort()
    return (f"{folder}{slash}{_shared_start(names)}" if names else text), names


def _shared_start(names: list[str]) -> str:
    """What all of the sorted `names` start with: what the first and the last share."""
    first, last = names[0], names[-1]
    length = next(
        (index for index, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), len(first)
    )
    return first[:length]
