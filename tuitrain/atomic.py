"""Files and folders that appear complete or not at all; knows nothing of what is in them.

Protocol: write a temporary sibling, fsync every file, rename, fsync the parent. A kill at any moment leaves the old
content or the new, and at most a sibling named `.tmp-*`.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def fsync_dir(path: Path) -> None:
    """Make renames and new names inside `path` survive power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Make every file and folder inside `path`, and `path` itself, survive power loss."""
    for root, _, names in os.walk(path, topdown=False):
        for name in names:
            _fsync_file(Path(root, name))
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
        yield temporary
        temporary.chmod(wanted_mode)
        _fsync_file(temporary)
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
        yield temporary
        fsync_tree(temporary)
        temporary.rename(path)
        fsync_dir(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_dir_atomic(path: Path) -> None:
    """Delete the folder `path` and all in it; seen from outside it is there whole or not at all."""
    temporary = _temporary_sibling(path)
    path.rename(temporary)
    shutil.rmtree(temporary)
