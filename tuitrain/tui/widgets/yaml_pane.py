"""A YAML text in an editor, with the lines that are wrong marked; knows no setting."""

import re
import unicodedata
from collections.abc import Mapping

from rich.style import Style
from rich.text import Text
from textual.message import Message
from textual.timer import Timer
from textual.widgets import TextArea

DEBOUNCE_SECONDS = 0.15
"""A text is read and checked when nothing was typed for so long."""

_LINE = re.compile(r"(?P<key>^[ -]*[\w.]+:(?= |$))|(?P<comment>(?:^|(?<= ))#.*$)")


class YamlPane(TextArea):
    """The whole document as text."""

    DEFAULT_CSS = """
    YamlPane { border: none; padding: 0; height: 1fr; width: 1fr; scrollbar-size-vertical: 1; }
    YamlPane:focus { border: none; }
    """

    class Typed(Message):
        """Another text stands there, and nothing was typed for a moment."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, show_line_numbers=True, tab_behavior="focus", soft_wrap=False)
        self.cursor_blink = False
        self._marks: Mapping[int, str] = {}
        self._timer: Timer | None = None
        self._announced = ""

    def show_yaml(self, text: str) -> None:
        """Show what the document says now; the place in the text stays."""
        self._announced = text
        if text != self.text:
            selection = self.selection
            offset = self.scroll_offset
            self.load_text(text)
            self.move_cursor(self.clamp_visitable(selection.end))
            self.scroll_to(*offset, animate=False)

    def mark_lines(self, marks: Mapping[int, str]) -> None:
        """Underline the lines, counted from 1, and say at their ends what is wrong."""
        if marks != self._marks:
            self._marks = marks
            self.notify_style_update()  # lines that were drawn before are drawn anew

    def go_to_line(self, number: int) -> None:
        """Put the cursor at the start of a line, counted from 1."""
        self.move_cursor((min(number, self.document.line_count) - 1, 0), center=True)

    def take_typed(self) -> str | None:
        """What was typed and not announced yet, which it no longer will be; None when there is nothing."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        if self.text == self._announced:
            return None
        self._announced = self.text
        return self.text

    def _announce(self) -> None:
        text = self.take_typed()
        if text is not None:
            self.post_message(self.Typed(text))

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        event.stop()
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(DEBOUNCE_SECONDS, self._announce)

    def get_line(self, line_index: int) -> Text:
        line = "".join(map(_visible, self.document.get_line(line_index)))
        text = Text(line, end="", no_wrap=True)
        for match in _LINE.finditer(line):
            text.stylize("dim italic" if match["comment"] else "bold", *match.span())
        if line_index + 1 in self._marks:
            text.stylize(Style(underline=True, bold=True))
            text.append(f"  ! {self._marks[line_index + 1]}", style=Style(reverse=True))
        return text


def _visible(character: str) -> str:
    """A character that would steer the terminal or reorder the line, as a sign of the same place."""
    return "�" if character != "\t" and unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") else character
