"""What the five screens have in common: a status bar, a body, the job at work and the keys; knows no run's details."""

from typing import TYPE_CHECKING, ClassVar, cast

from textual import events, on
from textual.app import ComposeResult
from textual.reactive import Reactive
from textual.screen import Screen
from textual.widget import Widget

from tuitrain.tui.widgets.job_line import JobLine
from tuitrain.tui.widgets.jump_letters import JumpLetters, panel_of
from tuitrain.tui.widgets.key_bar import KeyBar
from tuitrain.tui.widgets.status_bar import StatusBar

if TYPE_CHECKING:
    from tuitrain.tui.app import TuitrainApp
    from tuitrain.tui.live import LiveRun


class TuitrainScreen(Screen[None]):
    """One of the five screens.

    Subclasses set `SCOPE` and `BINDINGS = bindings(SCOPE)`, and say what stands between the bars.

    Attributes:
        letters: what `^g` shows.
    """

    SCOPE: ClassVar[str]
    focused: Reactive[Widget | None] = Reactive(None, repaint=False)  # the two that it concerns repaint themselves
    ALLOW_IN_MAXIMIZED_VIEW = "KeyBar, JumpLetters"

    def __init__(self) -> None:
        super().__init__()
        self.letters = JumpLetters()

    @property
    def tuitrain(self) -> "TuitrainApp":
        """The app, by its own type."""
        return cast("TuitrainApp", self.app)

    def compose(self) -> ComposeResult:
        yield StatusBar()
        yield from self.compose_body()
        yield JobLine()
        yield KeyBar(self.SCOPE)
        yield self.letters

    def compose_body(self) -> ComposeResult:
        """The widgets between the status bar and the keys."""
        raise NotImplementedError

    def show_live(self, live: "LiveRun | None") -> None:
        """Draw what changed in the run on show; called twice a second while this screen is the active one.

        Must cost little when nothing changed.
        """

    @property
    def may_timers_draw(self) -> bool:
        """Whether this screen is on show with nothing over it: a change below a question sends all of it, 24 kB."""
        return self.app.screen is self and not self.letters.are_shown

    def confirm_leave(self) -> bool:
        """Whether the app may end now; a screen that asks its user first returns False and calls `app.exit` itself."""
        return True

    def on_screen_resume(self, _event: events.ScreenResume) -> None:
        self.draw_live()

    def on_screen_suspend(self) -> None:
        self.letters.hide()

    def on_resize(self) -> None:
        self.letters.hide()

    # One panel alone

    @property
    def keeps_esc(self) -> bool:
        """Whether esc ends something in the panel that fills the screen, and only then the filling."""
        return False

    def action_zoom_panel(self) -> None:
        """Let the panel with the focus fill the screen, or the first where none has it; or give the screen back."""
        if self.maximized is not None:
            self.minimize()
            return
        self.maximized = self.query(".panel").first(Widget) if self.focused is None else panel_of(self.focused)

    @on(events.DescendantFocus)
    def _show_focused(self, event: events.DescendantFocus) -> None:
        if self.maximized is not None and self.maximized not in event.widget.ancestors_with_self:
            self.minimize()

    def draw_live(self) -> None:
        """Bring the bars and the body up to date."""
        if not all(self.query(bar) for bar in (StatusBar, JobLine, KeyBar)):
            return  # the app closes: its timer still ticks while its widgets go
        live = self.tuitrain.live
        self.query_one(StatusBar).show_live(live)
        self.query_one(JobLine).show_job(self.tuitrain.job)
        self.show_live(live)
        self.query_one(KeyBar).refresh_keys()
