"""The two lowest lines: the five screens, and the keys of the screen on show. Knows the registry, not the screens."""

from dataclasses import replace

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

    def on_mount(self) -> None:
        self.watch(self.screen, "focused", self.refresh_keys, init=False)  # what is typed into a text does nothing else

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
        return Text.assemble(tabs, "\n", key_line(self._shown_actions(), width, is_typing=self._is_typing))

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

    @property
    def _is_typing(self) -> bool:
        focused = self.screen.focused
        return focused is not None and focused.check_consume_key(
            "a", "a"
        )  # a TextArea's own class takes 40 ms to import

    def _list_enabled(self) -> tuple[str, ...]:
        return tuple(f"{action.id} {action.key_text}" for action in self._shown_actions())

    def _shown_actions(self) -> list[Action]:
        here = [action for action in actions_of(self._scope) if self.screen.check_action(action.name, ())]
        everywhere = [
            action
            for action in actions_of("app")
            if action.name not in _TABS and self.app.check_action(action.name, ())
        ]
        return keys_while_typing([*here, *everywhere]) if self._is_typing else [*here, *everywhere]


def keys_while_typing(actions: list[Action]) -> list[Action]:
    """Of `actions` those that a key gives which no text takes, with only such keys."""
    reduced = [replace(action, keys=tuple(key for key in action.keys if _is_no_text(key))) for action in actions]
    return [action for action in reduced if action.keys]


def _is_no_text(key: str) -> bool:
    return key.startswith("ctrl+") or (key[:1] == "f" and key[1:].isdigit())


def key_line(actions: list[Action], width: int, *, is_typing: bool = False) -> Text:
    """The keys of `actions` in `width` columns: all the primary ones, then the way out and others while there is room.

    Args:
        is_typing: whether a text takes the other keys; esc leaves it.
    """
    text = Text(no_wrap=True, overflow="crop")
    if is_typing:
        text.append(" esc", style="bold").append(" Back ")
    shown = [action for action in actions if action.is_primary]
    for action in sorted(actions, key=lambda action: action.id != "app.leave"):
        if action not in shown and _width_of([*shown, action]) <= width - text.cell_len:
            shown.append(action)
    ordered = [action for action in actions if action in shown]
    for action in ordered:
        text.append(" ")
        text.append(action.key_text, style="bold")
        text.append(f" {action.label} ")
    text.truncate(width)
    return text


def _width_of(actions: list[Action]) -> int:
    return sum(len(action.key_text) + len(action.label) + 3 for action in actions)
