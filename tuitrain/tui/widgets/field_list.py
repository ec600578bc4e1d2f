"""Settings as a scrolling list that draws only the lines it shows; knows rows of text, not settings."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Offset, Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

_PREFIX = 3
_GAP = 2
_COLUMNS_FROM = 60
"""Columns beside the label from which the base value and the rule have columns of their own."""


class FieldRow(NamedTuple):
    """One line of the list.

    Args:
        path: of the setting; empty for a heading, which cannot be chosen.
        label: the setting's name, or the heading.
        value: on one line.
        note: what is wrong, or what it was.
        base: the value it is compared with.
        rule: what a value must be.
        mark: "!" wrong, "*" changed, "" neither.
        is_set: else the value is the default.
        is_off: it does not exist now; `note` says what it needs.
    """

    path: str
    label: str
    value: str = ""
    note: str = ""
    base: str = ""
    rule: str = ""
    mark: str = ""
    is_set: bool = True
    is_off: bool = False


class FieldList(ScrollView, can_focus=True):
    """Rows with a cursor; the cursor stays on its setting when the rows change."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "go(-1)", "Up", show=False),
        Binding("down,j", "go(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "go_to_end(-1)", "First", show=False),
        Binding("end,G", "go_to_end(1)", "Last", show=False),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "field-list--heading",
        "field-list--default",
        "field-list--changed",
        "field-list--wrong",
        "field-list--quiet",
        "field-list--cursor",
    }
    DEFAULT_CSS = """
    FieldList { height: 1fr; width: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; background: $background; }
    FieldList .field-list--heading { color: $text-muted; text-style: bold; }
    FieldList .field-list--default { color: $text-muted; }
    FieldList .field-list--changed { color: $warning; }
    FieldList .field-list--wrong { color: $error; text-style: bold; }
    FieldList .field-list--quiet { color: $text-disabled; }
    FieldList .field-list--cursor { text-style: reverse; }
    """

    class Moved(Message):
        """The cursor is on another setting."""

        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

    class Chosen(Message):
        """A setting was clicked that the cursor was on already."""

    class Scrolled(Message):
        """The lines are elsewhere on the screen now."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._rows: list[FieldRow] = []
        self._cursor = 0
        self._label_width = 0

    @property
    def path(self) -> str:
        """The setting the cursor is on; empty when there is none."""
        return self._rows[self._cursor].path if self._rows else ""

    @property
    def rows(self) -> Sequence[FieldRow]:
        """What is listed."""
        return self._rows

    def show_rows(self, rows: list[FieldRow]) -> None:
        """List `rows`; draws the lines that differ."""
        old, path = self._rows, self.path
        if rows == old:
            return
        self._rows = rows
        label_width = max((cell_len(row.label) for row in rows if row.path), default=0)
        if len(rows) == len(old) and label_width == self._label_width:
            for y, (row, old_row) in enumerate(zip(rows, old, strict=True)):
                if row != old_row:
                    self.refresh_line(y)
        else:
            self._label_width = label_width
            self.virtual_size = Size(self.size.width, len(rows))
            self.refresh()
        index = next((y for y, row in enumerate(rows) if row.path == path and path), None)
        self._cursor = min(self._cursor, max(len(rows) - 1, 0)) if index is None else index
        if not self.path:
            self._cursor = self._nearest(self._cursor, 1)
        if self.path != path:
            self._show_cursor()
            self.post_message(self.Moved(self.path))
        elif len(rows) != len(old):
            self._show_cursor()

    def go_to(self, path: str) -> None:
        """Put the cursor on the setting at `path`, if it is listed."""
        index = next((y for y, row in enumerate(self._rows) if path and row.path == path), None)
        if index is not None:
            self._move(index, is_far=abs(index - self._cursor) > 1)

    def place_of_value(self) -> tuple[Offset, int]:
        """(where the value under the cursor is drawn, its width in columns), within this widget."""
        x = _PREFIX + self._label_columns() + _GAP
        return Offset(x, self._cursor - self.scroll_offset.y), max(self.scrollable_content_region.width - x, 1)

    def action_go(self, step: int) -> None:
        self._move(self._nearest(self._cursor + step, step))

    def action_page(self, direction: int) -> None:
        step = max(self.size.height - 1, 1) * direction
        self._move(self._nearest(min(max(self._cursor + step, 0), len(self._rows) - 1), direction))

    def action_go_to_end(self, direction: int) -> None:
        self._move(self._nearest(len(self._rows) - 1 if direction > 0 else 0, -direction))

    def _nearest(self, index: int, step: int) -> int:
        """The first row from `index` on that can be chosen; where the cursor is when there is none."""
        while 0 <= index < len(self._rows):
            if self._rows[index].path:
                return index
            index += step
        return min(self._cursor, max(len(self._rows) - 1, 0))

    def _move(self, index: int, *, is_far: bool = False) -> None:
        if index == self._cursor:
            return
        self.refresh_line(self._cursor)
        self._cursor = index
        self.refresh_line(index)
        self._show_cursor(is_far=is_far)
        self.post_message(self.Moved(self.path))

    def _show_cursor(self, *, is_far: bool = False) -> None:
        top = self._cursor
        while top > 0 and not self._rows[top - 1].path:
            top -= 1  # a heading comes into view with its first setting
        region = Region(0, top, 1, self._cursor - top + 1)
        is_shown = self.scroll_offset.y <= region.y and region.bottom <= self.scroll_offset.y + self.size.height
        # Far from where it was, the setting comes to the middle, with its neighbours.
        center = is_far and not is_shown
        self.scroll_to_region(region, animate=False, force=True, immediate=True, center=center)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if round(old_value) != round(new_value):
            self.post_message(self.Scrolled())

    def on_resize(self) -> None:
        self.virtual_size = Size(self.size.width, len(self._rows))
        self._show_cursor()
        self.post_message(self.Scrolled())

    def on_focus(self) -> None:
        self.refresh_line(self._cursor)

    def on_blur(self) -> None:
        self.refresh_line(self._cursor)

    def on_click(self, event: events.Click) -> None:
        index = event.y + self.scroll_offset.y
        if 0 <= index < len(self._rows) and self._rows[index].path:
            if index == self._cursor:
                self.post_message(self.Chosen())
            else:
                self._move(index)

    # Drawing

    def render_line(self, y: int) -> Strip:
        index = y + self.scroll_offset.y
        width = self.scrollable_content_region.width
        base = self.rich_style
        if index >= len(self._rows):
            return Strip.blank(width, base)
        row = self._rows[index]
        if not row.path:
            line = set_cell_size(f" {row.label}", width)
            return Strip([Segment(line, base + self.get_component_rich_style("field-list--heading"))], width)
        is_here = index == self._cursor
        segments = [Segment(text, base + style) for text, style in self._cells(row, width, is_here=is_here)]
        if is_here and self.has_focus:
            cursor = self.get_component_rich_style("field-list--cursor", partial=True)
            segments = list(Segment.apply_style(segments, post_style=cursor))
        return Strip(segments, width)

    def _label_columns(self) -> int:
        return max(min(self._label_width, int(self.scrollable_content_region.width * 0.44)), 8)

    def _cells(self, row: FieldRow, width: int, *, is_here: bool) -> list[tuple[str, Style]]:
        quiet, plain = self.get_component_rich_style("field-list--quiet"), Style()
        default = self.get_component_rich_style("field-list--default")
        wrong = self.get_component_rich_style("field-list--wrong")
        changed = self.get_component_rich_style("field-list--changed")
        note_style = wrong if row.mark == "!" else changed if row.mark == "*" else quiet
        label_style = quiet if row.is_off else plain
        value_style = quiet if row.is_off else wrong if row.mark == "!" else plain if row.is_set else default
        label_columns = self._label_columns()
        rest = max(width - _PREFIX - label_columns - _GAP, 0)
        cells = [
            (f"{'▸' if is_here else ' '}{row.mark or ' '} ", note_style),
            (_cut_start(row.label, label_columns), label_style),
            (" " * _GAP, plain),
        ]
        if rest >= _COLUMNS_FROM:
            value, base = int(rest * 0.36), int(rest * 0.22)
            note = row.note if row.mark == "!" or row.is_off else row.rule
            note_style = note_style if row.mark == "!" else default
            cells += [(_cut_end(row.value, value), value_style), (" " * _GAP, plain)]
            cells += [(_cut_end(row.base, base), changed if row.mark == "*" else default), (" " * _GAP, plain)]
            cells.append((_cut_end(note, rest - value - base - 2 * _GAP), note_style))
        elif row.note:
            value = 0 if row.is_off else max(min(cell_len(row.value), rest // 2), min(rest // 3, 12)) + _GAP
            cells.append((_cut_end(row.value, value - _GAP) + " " * _GAP if value else "", value_style))
            cells.append((_cut_end(row.note, max(rest - value, 0)), note_style))
        else:
            cells.append((_cut_end(row.value, rest), value_style))
        return cells


def _cut_end(text: str, width: int) -> str:
    return set_cell_size(text, width) if cell_len(text) <= width else f"{set_cell_size(text, max(width - 1, 0))}…"


def _cut_start(text: str, width: int) -> str:
    """The end of a name says more than its start: `…ratio_buckets.start_dim`."""
    return text.ljust(width) if len(text) <= width else f"…{text[len(text) - width + 1 :]}"
