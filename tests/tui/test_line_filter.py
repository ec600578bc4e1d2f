"""Whatever a widget is given, the terminal gets nothing it would obey."""

from collections.abc import Sequence

import pytest
from textual.app import App, ComposeResult
from textual.filter import LineFilter
from textual.widgets import DataTable, Input, Label, OptionList, Static

from tests.tui.harness import screen_text
from tuitrain.tui.app import TuitrainApp

PAYLOADS = {
    "OSC 52 clipboard": "\x1b]52;c;UFdORUQ=\x07",
    "OSC 0 title": "\x1b]0;owned\x1b\\",
    "OSC 8 link": "\x1b]8;;http://evil\x1b\\x\x1b]8;;\x1b\\",
    "CSI clear": "\x1b[2J\x1b[H",
    "C1 CSI": "\x9b31m",
    "C1 OSC": "\x9d52;c;x\x9c",
    "carriage return": "a\rb",
    "bell and NUL": "\x07\x00",
    "right to left override": "\u202etxt.exe",
    "zero width": "a\u200bb\ufeff",
    "unterminated OSC": "\x1b]0;open",
    "DCS": "\x1bP0;1|17/ab\x1b\\",
}


class _Hostile(App[None]):
    def __init__(self, payload: str) -> None:
        super().__init__()
        self.payload = payload
        self._line_filters = TuitrainApp().get_line_filters()

    def get_line_filters(self) -> Sequence[LineFilter]:
        return self._line_filters

    def compose(self) -> ComposeResult:
        yield Static(self.payload, markup=False)
        yield Label(self.payload, markup=False)
        yield OptionList(self.payload, markup=False)
        yield Input(self.payload)
        table = DataTable()
        table.add_column("x")
        table.add_row(self.payload)
        yield table


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
async def test_no_control_character_passes_any_widget(payload) -> None:
    app = _Hostile(payload)
    async with app.run_test(size=(60, 30), notifications=True) as pilot:
        app.notify(payload, markup=False)
        app.screen.title = payload
        await pilot.pause()
        text = screen_text(app)
        obeyed = [character for character in text if character != "\n" and not character.isprintable()]
        assert obeyed == []
