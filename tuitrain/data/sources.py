"""The formats of datasets: JSONL, folders, Hugging Face, each read to a Listing of its pictures; opens no picture."""

import codecs
import json
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from tuitrain.data.files import HFSource, ImageSource, PathSource, open_hf_dataset, read_regular_file
from tuitrain.errors import DatasetError, Problem, printable

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""What a folder dataset takes, in any case: invoke-training's three, so that a folder means the same in both."""

OTHER_PICTURE_SUFFIXES = (".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".heic", ".jxl")
MASK_COLUMN = "mask"


@dataclass(frozen=True)
class Candidate:
    """A picture that was listed and not yet looked at.

    Args:
        where: the place to name in messages: `data.jsonl:12`, or the source's own name.
        caption: as written; None where there is none.
        loss_weight: for each of its samples.
        class_image: it belongs to the class set of a dreambooth pair.
    """

    id: str
    where: str
    source: ImageSource
    caption: str | None
    mask_path: Path | None = None
    loss_weight: float = 1.0
    class_image: bool = False


@dataclass
class Listing:
    """What a dataset names, in its order; an entry that cannot even be looked at is its Problem."""

    entries: list[Candidate | Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    def __add__(self, other: "Listing") -> "Listing":
        return Listing(self.entries + other.entries, self.notes + other.notes)


def list_jsonl(jsonl_path: str | Path, *, image_column: str, caption_column: str, use_masks: bool) -> Listing:
    """One picture per line: `{"image": "a.jpg", "text": "a caption", "mask": "a_mask.png"}`.

    Paths are relative to the file's folder or absolute. Blank lines mean nothing. Every line must be strict JSON in
    UTF-8; a line that is not becomes a Problem that names `file:line`. Ids count the lines that are not blank.

    Args:
        use_masks: every line must have a `mask`.

    Raises:
        DatasetError: the file itself cannot be read.
    """
    jsonl_path = Path(jsonl_path)
    data = read_regular_file(jsonl_path)
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DatasetError("it is UTF-16", hint="save it as UTF-8", where=printable(jsonl_path))
    listing = Listing()
    num_outside = 0
    name, real_folder = printable(jsonl_path), os.path.realpath(jsonl_path.parent)
    lines = enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1)
    for index, (number, line) in enumerate((number, line) for number, line in lines if line.strip()):
        where = f"{name}:{number}"
        try:
            fields = _parse_line(line)
            image = _path_field(fields, image_column, jsonl_path.parent)
            mask = _path_field(fields, MASK_COLUMN, jsonl_path.parent) if use_masks else None
            caption = _caption_field(fields, caption_column)
        except DatasetError as error:
            listing.entries.append(Problem(error.problems[0].what, error.problems[0].hint, where))
            continue
        num_outside += sum(not _is_inside(path, real_folder) for path in (image, mask) if path)
        listing.entries.append(Candidate(str(index), where, PathSource(image), caption, mask))
    if num_outside:
        listing.notes.append(Problem(f"{num_outside} of its paths lie outside its folder", where=name))
    return listing


def list_caption_dir(dataset_dir: str | Path) -> Listing:
    """Pictures of a flat folder in the order of their names, each captioned by the whole text of its `.txt` sibling.

    Raises:
        DatasetError: there is no such folder.
    """
    listing = Listing()
    dataset_dir = Path(dataset_dir)
    pictures = _list_pictures(dataset_dir, listing)
    stems = Counter(path.stem for path in pictures)
    for stem, count in stems.items():
        if count > 1:
            shared = printable(dataset_dir / f"{stem}.txt")
            listing.notes.append(Problem(f"{count} pictures take their caption from this file", where=shared))
    for index, path in enumerate(pictures):
        source = PathSource(path)
        try:
            caption = _read_caption_file(path.with_suffix(".txt"))
        except DatasetError as error:
            listing.entries.append(error.problems[0])
            continue
        listing.entries.append(Candidate(str(index), source.name, source, caption))
    return listing


def list_image_dir(
    dataset_dir: str | Path, *, caption: str, id_prefix: str, loss_weight: float = 1.0, class_image: bool = False
) -> Listing:
    """Pictures of a flat folder in the order of their names, all with the same caption; ids `{id_prefix}{i}`.

    Raises:
        DatasetError: there is no such folder.
    """
    listing = Listing()
    for index, path in enumerate(_list_pictures(Path(dataset_dir), listing)):
        source = PathSource(path)
        listing.entries.append(
            Candidate(
                f"{id_prefix}{index}", source.name, source, caption, loss_weight=loss_weight, class_image=class_image
            )
        )
    return listing


def list_hf(
    dataset_name: str, *, config_name: str | None, cache_dir: str | None, image_column: str, caption_column: str
) -> Listing:
    """The rows of the train split of a Hugging Face dataset: see `open_hf_dataset` for the names it takes.

    Raises:
        DatasetError: it cannot be opened, or has no such columns.
    """
    dataset = open_hf_dataset(dataset_name, config_name, cache_dir, image_column)
    if caption_column not in dataset.column_names:
        raise DatasetError(
            f"there is no column {caption_column!r}; its columns are {sorted(dataset.column_names)}",
            hint="set caption_column",
            where=printable(dataset_name),
        )
    listing = Listing()
    for row, fields in enumerate(dataset.select_columns([caption_column])):
        source = HFSource(dataset_name, config_name, cache_dir, image_column, row)
        try:
            caption = _caption_field(fields, caption_column)
        except DatasetError as error:
            listing.entries.append(Problem(error.problems[0].what, error.problems[0].hint, source.name))
            continue
        listing.entries.append(Candidate(str(row), source.name, source, caption))
    return listing


def _parse_line(line: bytes) -> dict[str, object]:
    try:
        text = line.decode("utf-8")
        fields = _STRICT_JSON.decode(text)
    except UnicodeDecodeError as error:
        raise DatasetError(f"byte {error.start + 1} of the line is not UTF-8", hint="save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DatasetError(f"it is not JSON: {error.msg} at column {error.colno}") from error
    except ValueError as error:  # a number of thousands of digits
        raise DatasetError(f"it is not JSON that can be read: {printable(error)}") from error
    except RecursionError as error:
        raise DatasetError("its JSON is nested too deeply") from error
    if not isinstance(fields, dict):
        raise DatasetError(f'it is {_kind(fields)}, it must be an object like {{"image": ..., "text": ...}}')
    return fields


def _refuse_constant(name: str) -> float:
    raise DatasetError(f"{name} is not a number in JSON")


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise DatasetError(f"key {printable(repr(twice))} stands there more than once")
    return fields


_STRICT_JSON = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates)


def _path_field(fields: dict[str, object], column: str, folder: Path) -> Path:
    if column not in fields:
        raise DatasetError(f"there is no {column!r}; its keys are {printable(sorted(fields))}")
    value = fields[column]
    if not isinstance(value, str):
        raise DatasetError(f"{column!r} is {_kind(value)}, it must be a path")
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError:
        encoded = b""
    if not encoded or b"\0" in encoded:
        raise DatasetError(f"{column!r} is {printable(repr(value))}, which is not a path")
    return folder / value


def _is_inside(path: Path, real_folder: str) -> bool:
    """Whether `path`, with links followed, lies under `real_folder`."""
    if not _is_folder_inside(path.parent, real_folder):
        return False
    is_link = os.path.islink(path)  # noqa: PTH114 - Path.is_symlink raises where a name is too long
    return not is_link or Path(os.path.realpath(path)).is_relative_to(real_folder)


@lru_cache(maxsize=64)  # 0.1 ms each, and most pictures share a folder
def _is_folder_inside(folder: Path, real_folder: str) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(real_folder)


def _caption_field(fields: dict[str, object], column: str) -> str | None:
    """None where there is no caption; an empty one is a caption."""
    value = fields.get(column)
    if value is not None and not isinstance(value, str):
        raise DatasetError(f"{column!r} is {_kind(value)}, it must be a text")
    return value


def _kind(value: object) -> str:
    """How JSON calls the type of `value`."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
    return kinds.get(type(value), "an object")


def _list_pictures(dataset_dir: Path, listing: Listing) -> list[Path]:
    """The pictures directly in `dataset_dir` by name; what a user may not expect goes to the notes of `listing`."""
    try:
        names = sorted(path.name for path in dataset_dir.iterdir())
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"the folder cannot be read: {printable(error)}", hint="check dataset_dir", where=printable(dataset_dir)
        ) from error
    pictures = [dataset_dir / name for name in names if name.lower().endswith(PICTURE_SUFFIXES)]
    others = Counter(path.suffix.lower() for path in map(Path, names) if path.suffix.lower() in OTHER_PICTURE_SUFFIXES)
    for suffix, count in sorted(others.items()):
        what = f"{count} {suffix} files were left out: a folder dataset takes {', '.join(PICTURE_SUFFIXES)}"
        listing.notes.append(Problem(what, "list them in a JSONL file", printable(dataset_dir)))
    looks = Counter(unicodedata.normalize("NFC", path.name) for path in pictures)
    for look, count in looks.items():
        if count > 1:
            what = f"{count} pictures have names that look the same: {printable(look)}"
            listing.notes.append(Problem(what, where=printable(dataset_dir)))
    return pictures


def _read_caption_file(path: Path) -> str | None:
    """None where there is no such file; a link to nowhere is an error."""
    try:
        return read_regular_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte {error.start + 1} is not UTF-8"
        raise DatasetError(what, hint="save it as UTF-8", where=printable(path)) from error
    except DatasetError as error:
        if isinstance(error.__cause__, FileNotFoundError) and not path.is_symlink():
            return None
        raise
