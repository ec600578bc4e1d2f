"""A question over the screen, with a few answers; knows nothing of what is asked."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tuitrain.wording import escape_control

Value = TypeVar("Value")


class Choice(NamedTuple, Generic[Value]):
    """One answer.

    Args:
        key: a letter that gives it at once.
        label: in words, ending in what happens.
        value: what the screen returns.
    """

    key: str
    label: str
    value: Value


class ConfirmScreen(ModalScreen[Value | None], Generic[Value]):
    """Asks; returns the value of the choice, or None after esc. Enter gives the highlighted answer.

    Args:
        question: one sentence or a few lines.
        choices: the first is highlighted, so it should do no harm.
    """

    DEFAULT_CSS = """
    ConfirmScreen { align: center middle; background: $background 60%; }
    ConfirmScreen > Vertical {
        width: auto; max-width: 90%; height: auto; max-height: 90%; padding: 0 2; border: round $warning;
        background: $surface;
    }
    ConfirmScreen Static { width: auto; max-width: 100%; margin: 0 0 1 0; }
    ConfirmScreen OptionList, ConfirmScreen OptionList:focus {
        width: auto; min-width: 30; height: auto; border: none; padding: 0; background: $surface;
    }
    """

    def __init__(self, question: str, choices: Sequence[Choice[Value]]) -> None:
        super().__init__()
        self._question = question
        self._choices = choices

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static("\n".join(map(escape_control, self._question.splitlines())), markup=False)
            yield OptionList(
                *(Option(Text.assemble((f"{choice.key:<4}", "bold"), choice.label)) for choice in self._choices),
                Option(Text.assemble(("esc ", "bold"), "go back")),
                markup=False,
            )

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        is_choice = event.option_index < len(self._choices)
        self.dismiss(self._choices[event.option_index].value if is_choice else None)

    def on_key(self, event: events.Key) -> None:
        if event.key == "escape":
            event.stop()
            self.dismiss(None)
        for choice in self._choices:
            if event.key == choice.key:
                event.stop()
                self.dismiss(choice.value)
