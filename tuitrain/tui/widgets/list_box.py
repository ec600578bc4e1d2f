"""A list with the keys of vi beside the arrows; knows nothing of what it lists."""

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import OptionList


class ListBox(OptionList):
    """An OptionList of one-line options, never read as markup."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "Down", show=False),
        Binding("k", "cursor_up", "Up", show=False),
        Binding("g", "first", "First", show=False),
        Binding("G", "last", "Last", show=False),
    ]
    DEFAULT_CSS = """
    ListBox { text-wrap: nowrap; text-overflow: ellipsis; background: $background; scrollbar-size-vertical: 1; }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes, markup=False)
