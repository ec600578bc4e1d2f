"""The place that an export is written to: its folder, its disk, what is told when writing fails; knows no tensor."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tuitrain.errors import CheckpointError, ExportError, ModelError
from tuitrain.export.request import existing_folder

_SPARE_BYTES = 64 << 20  # left free on the disk


def check_free_disk(out: Path, num_bytes: int) -> None:
    """Check that `num_bytes` fit where `out` will be.

    Raises:
        ExportError: they do not.
    """
    folder = existing_folder(out)
    free = shutil.disk_usage(folder).free
    if free < num_bytes + _SPARE_BYTES:
        raise ExportError(
            f"the export takes {num_bytes / 2**30:.1f} GiB, {folder} has {free / 2**30:.1f} GiB free",
            hint="name a place on a larger disk with --out",
        )


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Make the folder of `out`, which goes again when the writing fails; what stops it is told as an ExportError.

    Raises:
        ExportError: the disk failed or is full, or what was written reads back wrong.
    """
    try:
        with _folder_made(out):
            yield
    except (CheckpointError, ModelError) as error:
        raise ExportError.from_problems(error.problems) from error
    except OSError as error:
        raise ExportError(f"cannot write {out}: {error.strerror or error}", hint="nothing was left behind") from error


@contextmanager
def _folder_made(out: Path) -> Iterator[None]:
    missing = [folder for folder in out.absolute().parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # not there yet, or used for something else meanwhile
                folder.rmdir()
        raise
