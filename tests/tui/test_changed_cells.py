"""Only what differs is sent: every cell that changed lies in a region, and the region is no wider than that."""

from hypothesis import given
from hypothesis import strategies as st
from textual.geometry import Region

from tuitrain.tui.widgets.changed_cells import changed_cells


@given(st.lists(st.tuples(st.text("ab─é", max_size=12), st.text("ab─é", max_size=12)), max_size=3))
def test_every_cell_that_changed_is_in_a_region(lines) -> None:
    regions = {region.y: region for region in changed_cells([a for a, _ in lines], [b for _, b in lines])}
    for row, (before, after) in enumerate(lines):
        width = max(len(before), len(after))
        differing = [x for x in range(width) if before[x : x + 1] != after[x : x + 1]]
        assert (row in regions) == bool(differing)
        if differing:
            region = regions[row]
            assert region.x <= differing[0] and differing[-1] < region.right


def test_a_number_that_grows_sends_its_digits_alone() -> None:
    assert changed_cells(["loss 0.1234  lr 1e-5"], ["loss 0.1199  lr 1e-5"]) == [Region(8, 0, 3, 1)]
    assert changed_cells(["same"], ["same"]) == []
    assert changed_cells(["wide 漢 1"], ["wide 漢 2"]) == [Region(8, 0, 1, 1)]
