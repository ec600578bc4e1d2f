"""What the keys do, from the registry; knows no screen."""

from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tuitrain.tui.actions import SCOPE_TITLES, actions_of, show_key


class HelpScreen(ModalScreen[None]):
    """The keys of a screen, then those that work everywhere.

    Args:
        scope: of the screen that was on show.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,f1,enter", "dismiss", "Back", show=False)]
    DEFAULT_CSS = """
    HelpScreen { align: center middle; background: $background 60%; }
    HelpScreen > VerticalScroll {
        width: 90%; max-width: 96; height: auto; max-height: 90%; border: round $primary; padding: 0 1;
        background: $surface;
    }
    """

    def __init__(self, scope: str) -> None:
        super().__init__()
        self._scope = scope

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = Content(f"Keys: {SCOPE_TITLES[self._scope]}")
            box.border_subtitle = "esc closes"
            yield Static(_table_of(self._scope), markup=False)
            yield Static(Text("\nEverywhere", style="bold"), markup=False)
            yield Static(_table_of("app"), markup=False)
            yield Static(
                "\nIn lists j k g G, PgUp and PgDn work beside the arrows. A letter on a button presses it.\n",
                markup=False,
            )


def _table_of(scope: str) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for action in actions_of(scope):
        table.add_row(Text(" ".join(map(show_key, action.keys))), Text(action.help))
    return table
