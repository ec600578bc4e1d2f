"""One line for the export at work, on every screen; absent when there is none. Knows a Job by its report alone."""

from typing import TYPE_CHECKING, Any

from rich.text import Text
from textual.widget import Widget

if TYPE_CHECKING:
    from tuitrain.tui.jobs import Job


class JobLine(Widget):
    """Title, bar and time left of a Job."""

    DEFAULT_CSS = """
    JobLine { height: 1; width: 100%; display: none; color: $foreground; background: $surface; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._line = ""

    def show_job(self, job: "Job[Any] | None") -> None:
        """Draw how far `job` is, if that changed."""
        line = "" if job is None else job.describe(max(self.app.size.width - 2, 20))
        if line != self._line:
            self._line = line
            self.display = bool(line)
            self.refresh()

    def render(self) -> Text:
        return Text(f" {self._line}", no_wrap=True, overflow="crop")
