"""A letter over each panel that can have the focus, and the way there; knows no panel by name."""

from string import ascii_lowercase

from textual.widget import Widget
from textual.widgets import Static


class JumpLetters(Widget):
    """Nothing, until `show`: then a letter at the corner of each panel, until a key has been taken.

    The letters lie over the panels as widgets of their own, so that no other cell is sent.
    """

    DEFAULT_CSS = """
    JumpLetters { layer: jump; position: absolute; width: 0; height: 0; visibility: hidden; }
    JumpLetters Static { overlay: screen; visibility: visible; width: auto; color: $accent; text-style: bold reverse; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._widgets: dict[str, Widget] = {}

    @property
    def are_shown(self) -> bool:
        """Whether the next key is for `take`."""
        return bool(self._widgets)

    def show(self) -> None:
        """Letter the panels in which something can have the focus and that are to be seen, in the order of Tab."""
        self.hide()
        first_in: dict[Widget, Widget] = {}
        for widget in self.screen.focus_chain:
            if widget.is_on_screen:
                first_in.setdefault(panel_of(widget), widget)
        self._widgets = dict(zip(ascii_lowercase, first_in.values(), strict=False))
        for letter, panel in zip(self._widgets, first_in, strict=False):
            label = Static(f" {letter} ", markup=False)
            label.styles.offset = panel.region.offset
            self.mount(label)

    def take(self, key: str) -> None:
        """Go where `key` leads, and put the letters away whatever it is."""
        widget = self._widgets.get(key)
        self.hide()
        if widget is not None:
            self.screen.set_focus(widget)

    def hide(self) -> None:
        """Put the letters away."""
        if self._widgets:
            self._widgets = {}
            self.remove_children()


def panel_of(widget: Widget) -> Widget:
    """The panel that `widget` is or lies in; itself where there is none."""
    around = (node for node in widget.ancestors_with_self if isinstance(node, Widget) and node.has_class("panel"))
    return next(around, widget)
