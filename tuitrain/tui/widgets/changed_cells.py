"""Which cells of a few lines differ from those on the screen, so that nothing else is sent; knows no widget."""

from collections.abc import Sequence
from itertools import zip_longest

from rich.cells import cell_len
from textual.geometry import Region


def changed_cells(old: Sequence[str], new: Sequence[str]) -> list[Region]:
    """One region for each line that differs, from its first to its last cell that does."""
    regions = []
    for row, (before, after) in enumerate(zip_longest(old, new, fillvalue="")):
        if before == after:
            continue
        start = len(_common_prefix(before, after))
        num_same_at_the_end = 0
        if cell_len(before) == cell_len(after):
            rest_before, rest_after = before[start:][::-1], after[start:][::-1]
            num_same_at_the_end = cell_len(_common_prefix(rest_before, rest_after))
        left = cell_len(after[:start])
        right = max(cell_len(before), cell_len(after)) - num_same_at_the_end
        regions.append(Region(left, row, right - left, 1))
    return regions


def _common_prefix(first: str, second: str) -> str:
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))]
