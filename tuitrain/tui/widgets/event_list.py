"""What happened in the run, newest at the bottom; knows an EventLine and nothing of events."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widget import Widget

from tuitrain.wording import escape_control

if TYPE_CHECKING:
    from tuitrain.tui.snapshot import EventLine

_LEVEL_STYLES = {"✓": "success", "▣": "primary", "!": "warning", "✖": "error"}


class EventList(Widget, can_focus=True):
    """The last lines that fit; the arrows go back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "scroll_lines(1)", "Older", show=False),
        Binding("down,j", "scroll_lines(-1)", "Newer", show=False),
        Binding("pageup", "scroll_lines(10)", "Older", show=False),
        Binding("pagedown", "scroll_lines(-10)", "Newer", show=False),
        Binding("G,end", "newest", "Newest", show=False),
        Binding("g,home", "scroll_lines(100000)", "Oldest", show=False),
    ]

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._lines: Sequence[EventLine] = ()
        self._seen: tuple[int, EventLine | None] = (0, None)
        self._num_below = 0

    def show_lines(self, lines: "Sequence[EventLine]") -> None:
        """Draw `lines` if there are new ones."""
        seen = (len(lines), lines[-1] if lines else None)
        if seen != self._seen:
            self._lines, self._seen = lines, seen
            self.refresh()

    def action_scroll_lines(self, count: int) -> None:
        self._num_below = max(0, min(self._num_below + count, len(self._lines) - self.size.height))
        self.border_subtitle = Text(f"{self._num_below} newer below") if self._num_below else ""
        self.refresh()

    def action_newest(self) -> None:
        self.action_scroll_lines(-self._num_below)

    def render(self) -> Text:
        width, height = self.size
        end = len(self._lines) - self._num_below
        text = Text(no_wrap=True, overflow="ellipsis")
        for line in list(self._lines)[max(0, end - height) : end]:
            colour = self.app.theme_variables.get(_LEVEL_STYLES.get(line.level, ""), "")
            entry = Text.assemble(
                (time.strftime("%H:%M:%S ", time.localtime(line.time)), "dim"),
                (line.level, f"bold {colour}" if colour.startswith("#") else "bold"),
                f" {escape_control(line.text)}",
                no_wrap=True,
            )
            entry.truncate(width, overflow="ellipsis")
            text.append_text(entry)
            text.append("\n")
        return text if text else Text("Nothing has happened yet.", style="dim")
