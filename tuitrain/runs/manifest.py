"""What a folder holds, file by file, in a manifest that nobody edits unnoticed; knows nothing of what the files mean.

A file's weights loading without error proves nothing (a half-written safetensors file loads, with zeros), so a manifest
has the size and sha256 of every file, and of itself.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tuitrain.errors import CheckpointError
from tuitrain.runs.records import from_values, to_json

Manifest = TypeVar("Manifest")

_PIECE_BYTES = 4 << 20  # of a file to hash


@dataclass(frozen=True, kw_only=True)
class ManifestFile:
    """One file.

    Args:
        path: relative to the folder, with "/".
        size: bytes.
        sha256: of its content, hex.
    """

    path: str
    size: int
    sha256: str


def describe_files(folder: Path, names: Iterable[str], known_sha256: Mapping[str, str]) -> list[ManifestFile]:
    """The files `names` of `folder`; those whose sha256 is not known yet are read."""
    return [
        ManifestFile(
            path=name, size=(folder / name).stat().st_size, sha256=known_sha256.get(name) or hash_file(folder / name)
        )
        for name in names
    ]


def find_damages(
    folder: Path,
    files: Iterable[ManifestFile],
    present: Collection[str],
    *,
    read: Callable[[int], None] | None = None,
) -> list[str]:
    """What is wrong with `files` on the disk, in words, one for each that is damaged or missing.

    Args:
        present: the names that the folder holds; nothing outside is looked at, whatever a manifest says.
        read: as of `hash_file`.
    """
    damages = [_damage(folder, file, read) if file.path in present else f"{file.path} is missing" for file in files]
    return [damage for damage in damages if damage]


def _damage(folder: Path, file: ManifestFile, read: Callable[[int], None] | None) -> str:
    """Empty when there is none."""
    path = folder / file.path
    try:
        size = path.stat().st_size
        if size != file.size:
            return f"{file.path} has {size} bytes, the manifest says {file.size}"
        is_sound = hash_file(path, read=read, from_disk=True) == file.sha256
        return "" if is_sound else f"{file.path} is damaged: its sha256 is not the manifest's"
    except OSError as error:
        return f"{file.path} cannot be read: {error.strerror}"


def hash_file(path: Path, *, read: Callable[[int], None] | None = None, from_disk: bool = False) -> str:
    """sha256 of the file's content, hex; about 1 GB a second.

    Args:
        read: called after each piece with its number of bytes; what it raises ends the reading.
        from_disk: let go of what memory holds of the file first, where it has been synced, and read the disk.
    """
    digest = hashlib.sha256()
    piece = memoryview(bytearray(_PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        if from_disk:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while num_bytes := file.readinto(piece):
            digest.update(piece[:num_bytes])
            if read is not None:
                read(num_bytes)
    return digest.hexdigest()


def manifest_to_json(manifest: object) -> str:
    """A manifest, a dataclass, as JSON with its own sha256."""
    values = json.loads(to_json(vars(manifest)))
    return to_json({**values, "sha256": _hash_values(values)}, indent=2) + "\n"


def load_manifest(path: Path, manifest_type: type[Manifest], *, newest_format: int) -> Manifest:
    """The manifest at `path`, whose `format_version` tells how it is written.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged, edited or made by a newer version.
    """
    try:
        values = json.loads(path.read_bytes())
        manifest = from_values(manifest_type, values)
    except FileNotFoundError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if values["format_version"] > newest_format:
        what = f"{path} has format {values['format_version']}, this version reads up to {newest_format}"
        raise CheckpointError(what, hint="update tuitrain")
    if values.pop("sha256", None) != _hash_values(values):
        raise CheckpointError(f"{path} was changed after it was written")
    return manifest


def list_files(folder: Path) -> list[str]:
    """All that is in `folder` and below but folders, relative to it, with "/"; links count as files."""
    return sorted(
        path.relative_to(folder).as_posix()
        for root, folders, names in os.walk(folder)  # passes over a folder that another process removes meanwhile
        for path in (Path(root, name) for name in (*folders, *names))
        if path.is_symlink() or path.name in names
    )


def _hash_values(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
