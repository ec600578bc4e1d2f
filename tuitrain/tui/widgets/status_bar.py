"""The top line: which run, its state, how far it is. Knows the snapshot of a run."""

from typing import TYPE_CHECKING

from rich.text import Text
from textual.widget import Widget

from tuitrain.tui.widgets.changed_cells import changed_cells
from tuitrain.wording import escape_control

if TYPE_CHECKING:
    from tuitrain.tui.live import LiveRun
    from tuitrain.tui.snapshot import RunSnapshot

_STATE_STYLES = {
    "TRAINING": "success",
    "FINISHED": "success",
    "FAILED": "error",
    "LOST": "error",
    "PAUSED": "warning",
    "STOPPING": "warning",
}


class StatusBar(Widget):
    """One line: name, state, run, step and epoch."""

    DEFAULT_CSS = """
    StatusBar { height: 1; width: 100%; background: $panel; color: $foreground; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._facts: tuple[str, str, str, str] = ("", "", "", "")

    def show_live(self, live: "LiveRun | None") -> None:
        """Draw the run's state if it changed."""
        if live is None:
            facts = ("■", "IDLE", "", "")
        else:
            snapshot = live.snapshot
            facts = (snapshot.state.symbol, snapshot.state.value, run_name(live), position(snapshot))
        if facts != self._facts:
            before, old_state = self._draw().plain, self._facts[1]
            self._facts = facts
            if facts[1] == old_state:
                self.refresh(*changed_cells([before], [self._draw().plain]))
            else:  # its colour reaches over letters that stay
                self.refresh()

    def render(self) -> Text:
        return self._draw()

    def _draw(self) -> Text:
        symbol, state, name, where = self._facts
        colour = self.app.theme_variables.get(_STATE_STYLES.get(state, "foreground"), "")
        style = f"bold {colour}" if colour.startswith("#") else "bold"
        left = Text.assemble(("  tuitrain  ", "bold"), (f"{symbol} {state:<9}", style), "  ", name, no_wrap=True)
        room = self.size.width - len(where) - 1
        left.truncate(max(room - 1, 0), overflow="ellipsis", pad=True)
        return Text.assemble(left, " ", where)


def run_name(live: "LiveRun") -> str:
    """The run's folder, after the folder it is in: `gnome/1716000000.1`."""
    return escape_control("/".join(live.run.path.parts[-2:]))


def terminal_title(live: "LiveRun | None") -> str:
    """What a terminal's tab says: `► 41 % gnome/1716000000.1`."""
    if live is None:
        return "tuitrain"
    state, progress = live.snapshot.state, live.snapshot.progress
    percent = "" if progress is None else f" {100 * progress:.0f} %"
    return f"{state.symbol}{percent} {run_name(live)}"


def position(snapshot: "RunSnapshot") -> str:
    """How far the run is: `step 1640/4000  ep 5/12`, and since which step nothing is saved, if saving failed."""
    if snapshot.total_steps is None:
        return ""
    unsaved = "" if snapshot.unprotected_since is None else f"! not protected since step {snapshot.unprotected_since}  "
    epochs = f"  ep {min(snapshot.epoch + 1, snapshot.num_epochs)}/{snapshot.num_epochs}" if snapshot.num_epochs else ""
    return f"{unsaved}step {snapshot.step}/{snapshot.total_steps}{epochs}"
