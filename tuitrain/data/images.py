"""Pictures that were looked at, and the report on those found unfit; knows nothing of buckets or tensors."""

import hashlib
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image

from tuitrain.data.captions import clean_caption
from tuitrain.data.decode import decode_image, decode_mask, peek_size_hw
from tuitrain.data.files import ImageSource, PathSource
from tuitrain.data.sources import Candidate, Listing
from tuitrain.errors import DatasetError, Problem, printable

_NUM_THREADS = 4
"""So many pictures are decoded at once; at 64 megapixels each takes up to 500 MB for a moment, beside its file."""


@dataclass(frozen=True)
class ImageRecord:
    """A picture that can be trained on.

    Args:
        id: unique in the dataset, stable while its list is.
        caption: cleaned, without prefix.
        size_hw: (height, width) as a viewer shows it, that is after EXIF orientation.
        content_hash: sha256 (hex) of the file's bytes; with a mask, of both files' hashes.
        mask_path: white = learn; of the picture's size.
        image_sha256: of the picture's file alone; "" = not known, then a change is not noticed.
        mask_sha256: of the mask's file alone; "" idem.
    """

    id: str
    caption: str
    source: ImageSource
    size_hw: tuple[int, int]
    content_hash: str
    mask_path: Path | None = None
    loss_weight: float = 1.0
    class_image: bool = False
    image_sha256: str = ""
    mask_sha256: str = ""


@dataclass
class DatasetReport:
    """What a scan found, in the dataset's order; `where` and `what` of each problem are fit for a screen."""

    records: list[ImageRecord] = field(default_factory=list)
    rejected: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)


def load_image(record: ImageRecord, *, background: str) -> Image.Image:
    """The picture of `record` in RGB, upright, laid over `background` where it is transparent.

    Raises:
        DatasetError: it can no longer be read, or it is not the file that was scanned.
    """
    data = _read_unchanged(record.source, record.image_sha256)
    return decode_image(data, background=background, name=record.source.name).image


def load_mask(record: ImageRecord) -> Image.Image | None:
    """The mask of `record` in L (0 = ignore, 255 = learn), of its picture's size; None where it has none.

    Raises:
        DatasetError: it can no longer be read, or it is not the file that was scanned.
    """
    if record.mask_path is None:
        return None
    source = PathSource(record.mask_path)
    return decode_mask(_read_unchanged(source, record.mask_sha256), name=source.name)


def _read_unchanged(source: ImageSource, sha256: str) -> bytes:
    data = source.read_bytes()
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise DatasetError("the file has changed since it was scanned", hint="start again", where=source.name)
    return data


def peek_sizes(paths: Iterable[Path], sizes: dict[Path, tuple[int, int] | None]) -> None:
    """Add (height, width) of the pictures at `paths` to `sizes`, by their headers; None for what is no picture."""
    for path in paths:
        if path not in sizes:
            try:
                sizes[path] = _peek(path)
            except (DatasetError, OSError, ValueError):  # ValueError: a NUL in the name
                sizes[path] = None


def _peek(path: Path) -> tuple[int, int] | None:
    if not path.is_file():  # a pipe would be waited for
        return None
    with path.open("rb") as file:
        return peek_size_hw(file, name=printable(path))


@dataclass
class _Verdict:
    """On one entry: a record, or why there is none."""

    record: ImageRecord | None = None
    bad: Problem | None = None
    uncaptioned: Problem | None = None
    notes: list[Problem] = field(default_factory=list)


def scan_images(
    listing: Listing,
    *,
    background: str,
    max_megapixels: float,
    on_bad_image: Literal["error", "skip"],
    on_missing_caption: Literal["error", "empty", "skip"],
    report: Callable[[int, int], None],
) -> DatasetReport:
    """Decode every listed picture and mask once, wholly, and clean every caption; the files are only read.

    Args:
        background: for transparent pictures: `#rrggbb` or a CSS colour name.
        max_megapixels: larger pictures are bad, by their header.
        on_bad_image: `error` refuses the dataset for any picture, mask or line that cannot be used; `skip` leaves those
            out and lists them in `rejected`.
        on_missing_caption: `error` refuses, `empty` trains with an empty caption, `skip` leaves out.
        report: called with (done, total) after each entry, in the calling thread.

    Raises:
        DatasetError: with every problem at once, the first of them a summary; or there is nothing left to train on.
    """
    found = DatasetReport(notes=list(listing.notes))
    refused: list[Problem] = []
    name_by_sha256: dict[str, str] = {}
    judge = partial(_judge, background=background, max_megapixels=max_megapixels, on_missing_caption=on_missing_caption)
    pool = ThreadPoolExecutor(_NUM_THREADS)  # Pillow decodes outside the interpreter's lock
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # what Pillow mutters about files, notes say better
            for done, verdict in enumerate(pool.map(judge, listing.entries), 1):
                if verdict.bad:
                    found.rejected.append(verdict.bad)
                    refused += [verdict.bad] if on_bad_image == "error" else []
                if verdict.uncaptioned:
                    found.rejected.append(verdict.uncaptioned)
                    refused += [verdict.uncaptioned] if on_missing_caption == "error" else []
                found.notes += verdict.notes
                if verdict.record:
                    found.records.append(verdict.record)
                    found.notes += _note_same_bytes(verdict.record, name_by_sha256)
                report(done, len(listing.entries))
    finally:
        pool.shutdown(cancel_futures=True)
    _refuse_unusable(found, refused, num_entries=len(listing.entries))
    return found


def _judge(
    entry: Candidate | Problem,
    *,
    background: str,
    max_megapixels: float,
    on_missing_caption: Literal["error", "empty", "skip"],
) -> _Verdict:
    if isinstance(entry, Problem):
        return _Verdict(bad=entry)
    verdict = _Verdict()
    if entry.caption is None and on_missing_caption != "empty":
        hint = "write one, or set on_missing_caption to empty or skip"
        verdict.uncaptioned = Problem("it has no caption", hint, entry.where)
    try:
        record, notes = _look_at(entry, background=background, max_megapixels=max_megapixels)
    except DatasetError as error:
        problem = error.problems[0]
        what = problem.what if problem.where == entry.where else f"{problem.where}: {problem.what}"
        verdict.bad = Problem(what, problem.hint, entry.where)
        return verdict
    if not verdict.uncaptioned:
        verdict.record = record
        verdict.notes = [Problem(note, where=entry.where) for note in notes]
    return verdict


def _look_at(entry: Candidate, *, background: str, max_megapixels: float) -> tuple[ImageRecord, list[str]]:
    data = entry.source.read_bytes()
    image_sha256 = content_hash = hashlib.sha256(data).hexdigest()
    mask_sha256 = ""
    decoded = decode_image(data, background=background, name=entry.source.name, max_megapixels=max_megapixels)
    size_hw = (decoded.image.height, decoded.image.width)
    caption, caption_notes = clean_caption(entry.caption or "")
    notes = [*decoded.notes, *caption_notes]
    if not caption:
        notes.append("its caption is empty")
    if entry.mask_path:
        mask = PathSource(entry.mask_path)
        mask_data = mask.read_bytes()
        mask_sha256 = hashlib.sha256(mask_data).hexdigest()
        content_hash = hashlib.sha256(f"{image_sha256} {mask_sha256}".encode()).hexdigest()
        notes += _check_mask(
            decode_mask(mask_data, name=mask.name, max_megapixels=max_megapixels), size_hw=size_hw, name=mask.name
        )
    record = ImageRecord(
        id=entry.id,
        caption=caption,
        source=entry.source,
        size_hw=size_hw,
        content_hash=content_hash,
        mask_path=entry.mask_path,
        loss_weight=entry.loss_weight,
        class_image=entry.class_image,
        image_sha256=image_sha256,
        mask_sha256=mask_sha256,
    )
    return record, notes


def _check_mask(mask: Image.Image, *, size_hw: tuple[int, int], name: str) -> list[str]:
    height, width = size_hw
    if mask.size != (width, height):
        raise DatasetError(
            f"the mask is {mask.width}x{mask.height}, its picture is {width}x{height} (upright)",
            hint="a mask has exactly its picture's size",
            where=name,
        )
    return ["its mask is black everywhere, so nothing is learned from it"] if mask.getextrema() == (0, 0) else []


def _note_same_bytes(record: ImageRecord, name_by_sha256: dict[str, str]) -> list[Problem]:
    name = record.source.name
    first_name = name_by_sha256.setdefault(record.image_sha256, name)
    return [] if first_name == name else [Problem(f"it is the same picture as {first_name}", where=name)]


def _refuse_unusable(found: DatasetReport, refused: list[Problem], *, num_entries: int) -> None:
    if refused:
        num_places = len({problem.where for problem in refused})
        summary = Problem(
            f"{num_places} of {num_entries} pictures cannot be trained on",
            hint="repair or remove them; on_bad_image and on_missing_caption can leave them out",
        )
        raise DatasetError.from_problems([summary, *refused])
    if not found.records:
        summary = Problem(
            f"no picture is left to train on, of {num_entries} in the dataset", hint="check the dataset's path"
        )
        raise DatasetError.from_problems([summary, *found.rejected])
