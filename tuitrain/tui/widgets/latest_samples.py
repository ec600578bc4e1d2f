"""The newest validation images of the run, side by side, where there is room; knows a run's folder and its events."""

from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content

from tuitrain.tui.widgets.image import ImageView
from tuitrain.wording import escape_control

if TYPE_CHECKING:
    from tuitrain.runs.events import SamplesSaved
    from tuitrain.tui.live import LiveRun

NUM_PICTURES = 3


class LatestSamples(Horizontal):
    """One picture for each of the first prompts, with the step in the border."""

    DEFAULT_CSS = """
    LatestSamples ImageView { margin: 0 1 0 0; content-align: center middle; }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.border_title = "samples"
        self._shown: SamplesSaved | None = None

    def compose(self) -> ComposeResult:
        for _ in range(NUM_PICTURES):
            yield ImageView()

    def show_live(self, live: "LiveRun") -> None:
        """Show the newest pictures of `live` if there are newer ones; does nothing while the widget has no place."""
        newest = live.snapshot.samples[-1] if live.snapshot.samples else None
        if newest == self._shown or not self.display:
            return
        self._shown = newest
        images = [] if newest is None else [image for image in newest.images if image.image_index == 0]
        for view, image in zip(self.query(ImageView), images, strict=False):
            view.show(live.run.path / image.path)
        for view in list(self.query(ImageView))[len(images) :]:
            view.show(None, otherwise="" if images else "no samples yet: s asks for some")
        if newest is not None:
            prompts = "  |  ".join(escape_control(image.prompt) for image in images[:NUM_PICTURES])
            self.border_title = Content(f"samples @{newest.step}  {prompts}")
