"""The page docs/events.md, from the docstrings of the Events; knows no single kind."""

import inspect
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tuitrain.atomic import write_text_atomic
from tuitrain.runs.events import EVENT_KINDS, Event

_DOCS_HEAD = """\
# Events

<!-- Generated from tuitrain/runs/events.py by `make docs`; do not edit. -->

A run's memory is `journal.jsonl` in its folder: one JSON object a line, appended and never changed. Every line has
`kind`, the name of the event, and `time`, Unix seconds when it happened; the fields of each kind are below. A number
that is not finite is the string `"nan"`, `"inf"` or `"-inf"`. Newer versions may add kinds and fields: ignore those you
do not know. After `RunStarted` with `resumed_from` N, earlier events whose `step` is above N belong to an abandoned
branch.
"""


def render_event_docs() -> str:
    """The reference page of all kinds of events, as Markdown."""
    return "\n".join([_DOCS_HEAD, *(_render_kind(kind) for kind in EVENT_KINDS.values())])


def write_event_docs(path: Path) -> None:
    """Write `render_event_docs()` to `path`."""
    write_text_atomic(path, render_event_docs())


def _render_kind(kind: type[Event]) -> str:
    hints = get_type_hints(kind)
    meanings = _field_meanings(kind)
    rows = [f"| `{name}` | {_json_type(hints[name])} | {meanings[name]} |" for name in hints if name != "time"]
    summary = inspect.cleandoc(kind.__doc__ or "").splitlines()[0]
    return "\n".join(
        [f"## {kind.__name__}\n", f"{summary}\n", "| field | type | meaning |", "|---|---|---|", *rows, ""]
    )


def _field_meanings(kind: type[Event]) -> dict[str, str]:
    """The `name: meaning` lines below "Args:" in the docstring of `kind`."""
    arguments = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")[2]
    return dict(line.strip().split(": ", 1) for line in arguments.splitlines())


def _json_type(hint: Any) -> str:
    names = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
    if hint in names:
        return names[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "string"
    if origin is UnionType:
        return " or ".join(_json_type(argument) for argument in arguments)
    if origin is dict:
        return f"object of {_json_type(arguments[1])}s"
    return "list of objects"
