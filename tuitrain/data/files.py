"""The bytes of one picture: a file on disk or a row of a Hugging Face dataset; knows nothing of pixels or captions."""

import os
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tuitrain.errors import DatasetError, printable

if TYPE_CHECKING:
    import datasets

MAX_FILE_BYTES = 1 << 30
"""A larger file is refused before it is read: 64 megapixels of uncompressed 16-bit RGBA are 512 MB."""


def read_regular_file(path: Path) -> bytes:
    """The bytes of `path`, which must be an ordinary file; never blocks on a pipe or device.

    Raises:
        DatasetError: it cannot be read; `where` is its name, fit for a screen.
    """
    name = printable(path)
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would wait forever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise DatasetError("it is not an ordinary file", hint="give the path of a file", where=name)
            if status.st_size > MAX_FILE_BYTES:
                size_gib = status.st_size / (1 << 30)
                raise DatasetError(f"it has {size_gib:.1f} GiB, files above 1 GiB are refused", where=name)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DatasetError(
            f"it cannot be read: {error.strerror}", hint="check the path and its rights", where=name
        ) from error
    except ValueError as error:  # a NUL or a lone surrogate in the name
        raise DatasetError(f"its name is not possible on this system: {error}", where=name) from error


@dataclass(frozen=True)
class PathSource:
    """A file on disk."""

    path: Path

    @property
    def name(self) -> str:
        """For messages."""
        return printable(self.path)

    def read_bytes(self) -> bytes:
        """The file as it is now.

        Raises:
            DatasetError: it cannot be read.
        """
        return read_regular_file(self.path)


@dataclass(frozen=True)
class HFSource:
    """A row of the train split of a Hugging Face dataset; each process opens the dataset once."""

    dataset_name: str
    config_name: str | None
    cache_dir: str | None
    image_column: str
    row: int

    @property
    def name(self) -> str:
        """For messages: `dataset[row]`."""
        return f"{printable(self.dataset_name)}[{self.row}]"

    def read_bytes(self) -> bytes:
        """The encoded picture of this row.

        Raises:
            DatasetError: the row has no picture, or its file cannot be read.
        """
        dataset = open_hf_dataset(self.dataset_name, self.config_name, self.cache_dir, self.image_column)
        try:
            cell = dataset[self.row][self.image_column]
        except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
            raise DatasetError(f"the row cannot be read: {printable(error)}", where=self.name) from error
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise DatasetError("the row has no picture", where=self.name)
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        return read_regular_file(Path(cell["path"]))


ImageSource = PathSource | HFSource
"""Picklable: loader processes read through it."""


@lru_cache(maxsize=2)
def open_hf_dataset(
    dataset_name: str, config_name: str | None, cache_dir: str | None, image_column: str
) -> "datasets.Dataset":
    """The train split, with pictures as encoded bytes.

    Args:
        dataset_name: a folder written by `save_to_disk`, a folder that `load_dataset` understands, or a Hub name.
        config_name: for `load_dataset`; None where there is one configuration.
        cache_dir: where the Hub's files are kept; None = the library's default.
        image_column: must be an Image feature.

    Raises:
        DatasetError: not installed, not found, no train split, no such column.
    """
    name = printable(dataset_name)
    try:
        import datasets  # an optional extra; 1.5 s to import
    except ImportError as error:
        raise DatasetError(
            f"dataset {name} needs the package datasets", hint="pip install 'tuitrain[hf]'", where=name
        ) from error
    datasets.disable_progress_bars()
    saved = Path(dataset_name)
    try:
        if (saved / "dataset_dict.json").is_file():
            dataset = datasets.load_from_disk(dataset_name)["train"]
        elif (saved / "state.json").is_file():
            dataset = datasets.load_from_disk(dataset_name)
        else:
            dataset = datasets.load_dataset(dataset_name, config_name, cache_dir=cache_dir, split="train")
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DatasetError(
            f"it cannot be opened: {printable(error)}",
            hint="dataset_name is a folder or a Hub name with a train split",
            where=name,
        ) from error
    if not isinstance(dataset.features.get(image_column), datasets.Image):
        raise DatasetError(
            f"column {image_column!r} is not a column of pictures; its columns are {sorted(dataset.features)}",
            hint="set image_column",
            where=name,
        )
    return dataset.cast_column(image_column, datasets.Image(decode=False))
