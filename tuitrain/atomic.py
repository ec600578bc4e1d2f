"""Files and folders that appear complete or not at all; knows nothing of what is in them.

Protocol: write a temporary sibling, fsync every file, rename, fsync the parent. A kill at any moment leaves the old
content or the new, and at most a sibling named `.tmp-*`, which `remove_leftovers` finds.
"""

import itertools
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LEFTOVER = re.compile(r"\.tmp-[0-9a-f]{8}-(.+)", re.DOTALL)
_CRASH_AT = int(os.environ.get("TUITRAIN_CRASH_AT", "0"))
_crash_points = itertools.count(1)


def crash_point() -> None:
    """A moment between two changes on the disk; the process dies at the n-th where TUITRAIN_CRASH_AT is n.

    For the test that kills a save everywhere: nothing is flushed, closed or tidied, as after SIGKILL.
    """
    if _CRASH_AT and next(_crash_points) == _CRASH_AT:
        os._exit(137)


def fsync_dir(path: Path) -> None:
    """Make renames and new names inside `path` survive power loss."""
    _fsync(path, os.O_DIRECTORY)


def _fsync(path: Path, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        crash_point()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Make every file and folder inside `path`, and `path` itself, survive power loss."""
    for root, _, names in os.walk(path, topdown=False):
        for name in names:
            _fsync(Path(root, name))
        fsync_dir(Path(root))


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Yield a temporary path to write; on a clean exit it becomes `path`, replacing what was there.

    Args:
        path: the final name; its folder must exist.
        mode: permission bits before the umask, so that colleagues can read what libraries would write as 0600.
    """
    temporary = _temporary_sibling(path)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        wanted_mode = temporary.stat().st_mode
        crash_point()
        yield temporary
        temporary.chmod(wanted_mode)
        _fsync(temporary)
        crash_point()
        temporary.rename(path)
        fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Replace `path` by `text` in UTF-8, whole or not at all."""
    with atomic_file(path, mode=mode) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_dir(path: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """Yield a temporary folder to fill; on a clean exit it becomes `path`, which must not exist yet.

    Raises:
        FileExistsError: `path` exists; nothing is written.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    temporary = _temporary_sibling(path)
    temporary.mkdir(mode=mode)
    try:
        crash_point()
        yield temporary
        fsync_tree(temporary)
        crash_point()
        temporary.rename(path)
        fsync_dir(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_dir_atomic(path: Path) -> None:
    """Delete the folder `path` and all in it; seen from outside it is there whole or not at all.

    Where `path` is a link, the link alone is deleted.
    """
    temporary = _temporary_sibling(path)
    crash_point()
    path.rename(temporary)
    crash_point()
    if temporary.is_symlink():
        temporary.unlink()
    else:
        shutil.rmtree(temporary)
    crash_point()


def remove_leftovers(folder: Path, final_name: re.Pattern[str], *, are_folders: bool) -> list[str]:
    """Remove the temporary siblings that a dead process left in `folder`; nobody may be writing there.

    Links, and what belongs to another user, stay.

    Args:
        final_name: matches, as a whole, what they would have become.
        are_folders: else they are files.

    Returns:
        The names of the removed ones.
    """
    removed = []
    with os.scandir(folder) as entries:
        for entry in list(entries):
            match = _LEFTOVER.fullmatch(entry.name)
            if not match or not final_name.fullmatch(match[1]):
                continue
            is_kind = entry.is_dir if are_folders else entry.is_file
            if is_kind(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                (shutil.rmtree if are_folders else os.unlink)(entry.path)
                removed.append(entry.name)
    return removed
