"""The page docs/keys.md, from the registry of actions; knows no screen."""

from pathlib import Path

from tuitrain.atomic import write_text_atomic
from tuitrain.tui.actions import SCOPE_TITLES, Action, actions_of, show_key

_HEAD = """\
# Keys

<!-- Generated from tuitrain/tui/actions.py by `make docs`; do not edit. -->

`?` shows this on every screen, for the screen on show. `^s` is Ctrl-S. In lists `j` `k` `g` `G`, PgUp and PgDn work
beside the arrows. The palette, `^p`, finds everything by its name.
"""


def render_key_docs() -> str:
    """The reference page of all keys, as Markdown."""
    return "\n".join([_HEAD, *(_render_scope(scope) for scope in SCOPE_TITLES)])


def write_key_docs(path: Path) -> None:
    """Write `render_key_docs()` to `path`."""
    write_text_atomic(path, render_key_docs())


def _render_scope(scope: str) -> str:
    rows = [f"| {_show_keys(action)} | {action.label} | {action.help} |" for action in actions_of(scope)]
    return "\n".join([f"## {SCOPE_TITLES[scope]}\n", "| keys | action | what it does |", "|---|---|---|", *rows, ""])


def _show_keys(action: Action) -> str:
    return " ".join(f"`{show_key(key)}`" for key in action.keys)
