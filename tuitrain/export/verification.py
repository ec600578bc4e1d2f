"""Reads an export back and compares it with what it was made from; writes nothing."""

import filecmp
from collections.abc import Mapping
from pathlib import Path

import torch

from tuitrain.engine.base_model import count, few
from tuitrain.engine.weights import LazyTensor
from tuitrain.errors import ExportError
from tuitrain.export.progress import WorkCount


def verify_tensors(
    phase: str,
    written: Mapping[str, LazyTensor],
    sources: Mapping[str, LazyTensor],
    *,
    dtype: torch.dtype,
    work: WorkCount,
) -> None:
    """Check that `written` holds every tensor of `sources`, no other, each equal after one rounding to `dtype`.

    Args:
        phase: what `work` calls it.
        work: told the bytes of each tensor in `dtype`.

    Raises:
        ExportError: it does not.
    """
    if strangers := sorted(written.keys() ^ sources.keys()):
        raise ExportError(f"{count(strangers)} missing or too many after writing: {few(strangers)}")
    work.begin(phase, len(sources))
    for name, source in sources.items():
        stored = written[name].read()
        if stored.dtype != dtype or not torch.equal(stored, source.read().to(dtype)):  # NaN equals nothing
            raise ExportError(f"{name} reads back differently than it was written", hint="check the disk")
        work.add(stored.nbytes)


def verify_copies(copies: Mapping[Path, Path], work: WorkCount) -> None:
    """Check that every file, by its copy, holds the same bytes as its source.

    Raises:
        ExportError: one does not.
    """
    work.begin("verify copies", len(copies), "files")
    for copy, source in copies.items():
        if not copy.samefile(source) and not filecmp.cmp(source, copy, shallow=False):
            raise ExportError(f"the copy of {source} reads back differently", hint="check the disk")
        work.add(source.stat().st_size)
