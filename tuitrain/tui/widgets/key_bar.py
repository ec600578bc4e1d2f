"""The two lowest lines: the five screens, and the keys of the screen on show. Knows the registry, not the screens."""

from rich.text import Text
from textual.widget import Widget

from tuitrain.tui.actions import Action, actions_of

_TABS = ("home", "config", "train", "checkpoints", "log")
_NARROW = 100
_SHORT_NAMES = {"checkpoints": "Ckpts"}


class KeyBar(Widget):
    """The tabs, and what the keys do here; at 80 columns every primary action stands in it.

    Args:
        scope: of the screen.
    """

    DEFAULT_CSS = """
    KeyBar { height: 2; width: 100%; background: $panel; color: $foreground; }
    """

    def __init__(self, scope: str) -> None:
        super().__init__()
        self._scope = scope
        self._note = ""
        self._enabled: tuple[str, ...] = ()

    def show_note(self, note: str) -> None:
        """A few words at the right of the tabs, such as "1 error"."""
        if note != self._note:
            self._note = note
            self.refresh()

    def refresh_keys(self) -> None:
        """Draw again if an action came or went."""
        if self._list_enabled() != self._enabled:
            self.refresh()

    def render(self) -> Text:
        width = self.size.width
        self._enabled = self._list_enabled()
        tabs = self._tabs(width)
        gap = width - tabs.cell_len - len(self._note) - 1
        if self._note and gap > 0:
            tabs.append(" " * gap + self._note, style="bold")
        tabs.truncate(width, pad=True)
        return Text.assemble(tabs, "\n", key_line(self._shown_actions(), width))

    def _tabs(self, width: int) -> Text:
        text = Text(no_wrap=True)
        for action in actions_of("app"):
            if action.name in _TABS:
                label = _SHORT_NAMES.get(action.name, action.label) if width < _NARROW else action.label
                is_here = action.name == self._scope
                text.append(
                    f"‹{action.key_text} {label}›" if is_here else f" {action.key_text} {label} ",
                    "bold reverse" if is_here else "",
                )
        return text

    def _list_enabled(self) -> tuple[str, ...]:
        return tuple(action.id for action in self._shown_actions())

    def _shown_actions(self) -> list[Action]:
        here = [action for action in actions_of(self._scope) if self.screen.check_action(action.name, ())]
        everywhere = [
            action
            for action in actions_of("app")
            if action.name not in _TABS and self.app.check_action(action.name, ())
        ]
        return [*here, *everywhere]


def key_line(actions: list[Action], width: int) -> Text:
    """The keys of `actions` in `width` columns: all the primary ones, then others while there is room."""
    shown = [action for action in actions if action.is_primary and action.keys]
    for action in actions:
        if action not in shown and action.keys and _width_of([*shown, action]) <= width:
            shown.append(action)
    ordered = [action for action in actions if action in shown]
    text = Text(no_wrap=True, overflow="crop")
    for action in ordered:
        text.append(" ")
        text.append(action.key_text, style="bold")
        text.append(f" {action.label} ")
    text.truncate(width)
    return text


def _width_of(actions: list[Action]) -> int:
    return sum(len(action.key_text) + len(action.label) + 3 for action in actions)
