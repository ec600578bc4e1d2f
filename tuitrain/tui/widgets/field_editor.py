"""One editor for one setting, laid over the list: a line, a choice, or several lines; knows no setting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.containers import Container
from textual.geometry import Offset
from textual.message import Message
from textual.widgets import Input, OptionList, TextArea
from textual.widgets.option_list import Option

from tuitrain.tui.widgets.list_box import ListBox
from tuitrain.wording import escape_control

_MAX_CHOICES_SHOWN = 8


class FieldEditor(Container):
    """Hidden until something is edited; the mode says which of its three widgets is in use."""

    DEFAULT_CSS = """
    FieldEditor { layer: above; display: none; height: auto; }
    FieldEditor > * { display: none; }
    FieldEditor Input { height: 1; border: none; padding: 0; background: $primary-muted; }
    FieldEditor ListBox, FieldEditor ListBox:focus { border: round $primary; padding: 0; background: $surface; }
    FieldEditor TextArea, FieldEditor TextArea:focus { border: round $primary; padding: 0; }
    """

    @dataclass
    class Typed(Message):
        """The text is another now."""

        text: str

    @dataclass
    class Done(Message):
        """The user is through, with the text or the choice, or went back."""

        is_kept: bool

    def __init__(self) -> None:
        super().__init__()
        self.mode: Literal["", "line", "choice", "lines"] = ""
        self._choices: Sequence[str] = ()

    def compose(self) -> ComposeResult:
        line = Input(compact=True, select_on_focus=False)
        line.cursor_blink = False
        yield line
        yield ListBox()
        lines = TextArea(tab_behavior="focus")
        lines.cursor_blink = False
        yield lines

    @property
    def text(self) -> str:
        """What stands in the line or the lines."""
        return self.query_one(TextArea).text if self.mode == "lines" else self.query_one(Input).value

    @text.setter
    def text(self, text: str) -> None:
        self.query_one(Input).value = text
        self.query_one(Input).cursor_position = len(text)

    def edit_line(self, text: str, place: Offset, width: int) -> None:
        """Edit one line at `place`."""
        box = self.query_one(Input)
        with self.prevent(Input.Changed):
            self.text = text
        self._open("line", place, width, 1)
        box.focus()

    def choose(self, choices: Sequence[str], current: str, place: Offset, room: int) -> None:
        """Choose one text, in a box at `place` or above it.

        Args:
            room: lines of the list it lies over.
        """
        self._choices = choices
        box = self.query_one(ListBox)
        box.clear_options()
        box.add_options([Option(Text(f" {escape_control(choice)} ", no_wrap=True)) for choice in choices])
        box.highlighted = choices.index(current) if current in choices else 0
        height = min(len(choices), _MAX_CHOICES_SHOWN, max(room - 2, 1)) + 2
        top = min(place.y + 1, max(room - height, 0))
        width = max(map(len, choices)) + 5
        self._open("choice", Offset(place.x, top), width, height)
        box.focus()

    def edit_lines(self, text: str, title: str, height: int) -> None:
        """Edit several lines over the whole list."""
        box = self.query_one(TextArea)
        with self.prevent(TextArea.Changed):
            box.load_text(text)
        box.move_cursor(box.document.end)
        box.border_title = Text(title)
        box.border_subtitle = Text("esc done")
        self._open("lines", Offset(0, 0), 0, height)
        box.focus()

    def move(self, place: Offset, width: int) -> None:
        """Follow the value that a line is edited for."""
        if self.mode == "line":
            self.styles.offset = place
            self.styles.width = width

    def close(self) -> None:
        """Hide."""
        self.mode = ""
        self.display = False
        for child in self.children:
            child.display = False

    def _open(self, mode: Literal["line", "choice", "lines"], place: Offset, width: int, height: int) -> None:
        self.close()
        self.mode = mode
        self.styles.offset = place
        self.styles.width = width or "100%"
        self.styles.height = height
        child = self.query_one({"line": "Input", "choice": "ListBox", "lines": "TextArea"}[mode])
        child.display = True
        child.styles.height = height
        self.display = True

    @on(Input.Changed)
    def _type(self, event: Input.Changed) -> None:
        event.stop()
        if self.mode == "line":
            self.post_message(self.Typed(event.value))

    @on(TextArea.Changed)
    def _type_lines(self, event: TextArea.Changed) -> None:
        event.stop()
        if self.mode == "lines":
            self.post_message(self.Typed(event.text_area.text))

    @on(Input.Submitted)
    def _submit(self, event: Input.Submitted) -> None:
        event.stop()
        self.post_message(self.Done(True))

    @on(OptionList.OptionHighlighted)
    def _ignore(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()

    @on(OptionList.OptionSelected)
    def _choose(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.post_message(self.Typed(self._choices[event.option_index]))
        self.post_message(self.Done(True))

    def on_key(self, event: events.Key) -> None:
        if event.key == "escape":
            event.stop()
            event.prevent_default()
            self.post_message(self.Done(self.mode == "lines"))

    def on_descendant_blur(self) -> None:
        if self.mode and self.screen.is_current and self.app.app_focus:
            self.post_message(self.Done(self.mode != "choice"))
