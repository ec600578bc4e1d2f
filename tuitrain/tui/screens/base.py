"""What the five screens have in common: a status bar, a body, the job at work and the keys; knows no run's details."""

from typing import TYPE_CHECKING, ClassVar, cast

from textual import events
from textual.app import ComposeResult
from textual.screen import Screen

from tuitrain.tui.widgets.job_line import JobLine
from tuitrain.tui.widgets.key_bar import KeyBar
from tuitrain.tui.widgets.status_bar import StatusBar

if TYPE_CHECKING:
    from tuitrain.tui.app import TuitrainApp
    from tuitrain.tui.live import LiveRun


class TuitrainScreen(Screen[None]):
    """One of the five screens.

    Subclasses set `SCOPE` and `BINDINGS = bindings(SCOPE)`, and say what stands between the bars.
    """

    SCOPE: ClassVar[str]

    @property
    def tuitrain(self) -> "TuitrainApp":
        """The app, by its own type."""
        return cast("TuitrainApp", self.app)

    def compose(self) -> ComposeResult:
        yield StatusBar()
        yield from self.compose_body()
        yield JobLine()
        yield KeyBar(self.SCOPE)

    def compose_body(self) -> ComposeResult:
        """The widgets between the status bar and the keys."""
        raise NotImplementedError

    def show_live(self, live: "LiveRun | None") -> None:
        """Draw what changed in the run on show; called twice a second while this screen is the active one.

        Must cost little when nothing changed.
        """

    def confirm_leave(self) -> bool:
        """Whether the app may end now; a screen that asks its user first returns False and calls `app.exit` itself."""
        return True

    def on_screen_resume(self, _event: events.ScreenResume) -> None:
        self.draw_live()

    def draw_live(self) -> None:
        """Bring the bars and the body up to date."""
        if not all(self.query(bar) for bar in (StatusBar, JobLine, KeyBar)):
            return  # the app closes: its timer still ticks while its widgets go
        live = self.tuitrain.live
        self.query_one(StatusBar).show_live(live)
        self.query_one(JobLine).show_job(self.tuitrain.job)
        self.show_live(live)
        self.query_one(KeyBar).refresh_keys()
