"""A question over the screen that is answered by a line of text, perhaps a path; knows nothing of what is asked."""

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from tuitrain.tui.completion import complete_path
from tuitrain.wording import escape_control

_MAX_NAMES_SHOWN = 12


class PromptScreen(ModalScreen[str | None]):
    """Returns the text, or None after esc; tab completes a path.

    Args:
        question: one line.
        text: to start from.
        is_path: complete it from what is on disk.
    """

    DEFAULT_CSS = """
    PromptScreen { align: center middle; background: $background 60%; }
    PromptScreen > Vertical {
        width: 80%; max-width: 100; height: auto; padding: 0 2; border: round $primary; background: $surface;
    }
    PromptScreen Static { height: auto; max-height: 6; }
    PromptScreen #names { display: none; margin: 0 0 1 0; }
    PromptScreen Input { height: 1; border: none; padding: 0; background: $primary-muted; margin: 1 0; }
    """

    def __init__(self, question: str, text: str = "", *, is_path: bool = False) -> None:
        super().__init__()
        self._question = question
        self._text = text
        self._is_path = is_path

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(escape_control(self._question), markup=False)
            line = Input(self._text, compact=True, select_on_focus=False)
            line.cursor_blink = False
            yield line
            yield Static(id="names", markup=False)
            keys = "enter OK   esc back" + ("   tab completes" if self._is_path else "")
            yield Static(Text(keys, style="dim"), markup=False)

    @on(Input.Submitted)
    def _submit(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self.dismiss(event.value)

    def on_key(self, event: events.Key) -> None:
        if event.key == "escape":
            event.stop()
            self.dismiss(None)
        elif event.key == "tab" and self._is_path:
            event.stop()
            event.prevent_default()
            line = self.query_one(Input)
            line.value, names = complete_path(line.value)
            line.cursor_position = len(line.value)
            shown = "  ".join(names[:_MAX_NAMES_SHOWN]) + ("  …" if len(names) > _MAX_NAMES_SHOWN else "")
            self.query_one("#names", Static).update(Text(shown))
            self.query_one("#names").display = len(names) > 1
