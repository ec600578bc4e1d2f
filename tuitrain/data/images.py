"""Pictures that were looked at, and the report on those found unfit; knows nothing of buckets or tensors."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image

from tuitrain.data.decode import decode_image, decode_mask
from tuitrain.data.sources import Candidate, ImageSource, Listing, PathSource
from tuitrain.errors import DatasetError, Problem


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


def scan_images(
    listing: Listing,
    *,
    background: str,
    max_megapixels: float,
    on_bad_image: Literal["error", "skip"],
    on_missing_caption: Literal["error", "empty", "skip"],
    report: Callable[[int, int], None],
) -> DatasetReport:
    """Decode every listed picture once."""
    found = DatasetReport(notes=list(listing.notes))
    for done, entry in enumerate(listing.entries, 1):
        assert isinstance(entry, Candidate)
        data = entry.source.read_bytes()
        image = decode_image(data, background=background, name=entry.source.name).image
        sha256 = hashlib.sha256(data).hexdigest()
        found.records.append(
            ImageRecord(
                id=entry.id,
                caption=entry.caption or "",
                source=entry.source,
                size_hw=(image.height, image.width),
                content_hash=sha256,
                mask_path=entry.mask_path,
                loss_weight=entry.loss_weight,
                class_image=entry.class_image,
                image_sha256=sha256,
            )
        )
        report(done, len(listing.entries))
    return found
