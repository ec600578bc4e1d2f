"""One sample as large as the terminal; knows no checkpoint on disk."""

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Static

from tuitrain.runs.run import Run
from tuitrain.tui.widgets.checkpoint_list import CheckpointRow, SampleKey
from tuitrain.tui.widgets.image import ImageView
from tuitrain.wording import escape_control

_KEYS = "  ".join(("←/→ prompt", "↑/↓ step", "esc back"))


class PictureScreen(ModalScreen[tuple[int, SampleKey]]):
    """Goes through prompts and steps; returns where it was left.

    Args:
        run: whose samples they are.
        rows: steps that have samples, newest first.
        row: the first to show.
        key: which of its samples.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "prompt(-1)", "Prompt", show=False),
        Binding("right,l", "prompt(1)", "Prompt", show=False),
        Binding("up,k", "step(-1)", "Newer", show=False),
        Binding("down,j", "step(1)", "Older", show=False),
        Binding("escape,v,q,enter", "back", "Back", show=False),
    ]
    CSS_PATH = "picture.tcss"

    def __init__(self, run: Run, rows: Sequence[CheckpointRow], row: CheckpointRow, key: SampleKey) -> None:
        super().__init__()
        self._run = run
        self._rows = rows
        self._index = rows.index(row)
        self._key = key

    def compose(self) -> ComposeResult:
        yield Static(id="title", markup=False)
        yield ImageView()
        yield Static(_KEYS, id="keys", markup=False)

    def on_mount(self) -> None:
        self._show()

    def action_prompt(self, by: int) -> None:
        self._key = self._rows[self._index].neighbour(self._key, by)
        self._show()

    def action_step(self, by: int) -> None:
        self._index = max(0, min(self._index + by, len(self._rows) - 1))
        self._show()

    def action_back(self) -> None:
        self.dismiss((self._rows[self._index].step, self._key))

    def _show(self) -> None:
        row = self._rows[self._index]
        image = row.find_image(self._key)
        assert image is not None, "only steps with samples are shown"
        title = Text.assemble(
            (f"step {row.step}  ", "bold"),
            f'{row.position(image)}  "{escape_control(image.prompt)}"',
            no_wrap=True,
            overflow="ellipsis",
        )
        self.query_one("#title", Static).update(title)
        self.query_one(ImageView).show(self._run.path / image.path)
