"""Values put into a YAML text that has comments and an order of its own; knows no setting.

Only the entries that change are written anew, so that what a person wrote around them stays. The result is read back:
where it does not say what it should, the whole text is written from the values, below the comments at its head.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from tuitrain.config.yaml_text import read_yaml
from tuitrain.errors import ConfigError

_WIDTH = 120
_INDENT = 2

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_Position = tuple[int, int]
"""(line, column), both from 0."""


class _Edit(NamedTuple):
    """Text to put in the place of what stands from `start` to `end`."""

    start: _Position
    end: _Position
    text: str


def values_to_yaml(values: Mapping[str, Any]) -> str:
    """`values` as a YAML text, in their order."""
    return _dump(dict(values))


def update_yaml(text: str, values: Mapping[str, Any]) -> str:
    """`text` with as little changed as it takes to say `values`.

    Args:
        text: one YAML document, a mapping; its comments are kept.
        values: a tree of settings as YAML would give it.
    """
    document = read_yaml(text, name="")
    if _is_equal(document.values, values):
        return text
    if document.values:
        updated = _apply(text, list(_edits(_Loader(text).get_single_node(), document.values, values)))
        if _says(updated, values, num_problems=len(document.problems)):
            return updated
    return head_comments(text) + values_to_yaml(values)


def head_comments(text: str) -> str:
    """The comments and blank lines that `text` starts with."""
    lines = text.splitlines(keepends=True)
    length = next((index for index, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return "".join(lines[:length])


def _says(text: str, values: Mapping[str, Any], *, num_problems: int) -> bool:
    try:
        document = read_yaml(text, name="")
    except ConfigError:
        return False
    return _is_equal(document.values, values) and len(document.problems) <= num_problems


def _is_equal(one: Any, other: Any) -> bool:
    """As `==`, but true is not 1."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _apply(text: str, edits: list[_Edit]) -> str:
    """Make the edits from the last to the first, so that each finds its place where it was."""
    lines = text.split("\n")
    if lines[-1]:
        lines.append("")  # an entry put at the end starts on a line of its own
    for (line, column), (end_line, end_column), new in sorted(edits, reverse=True):
        before = lines[line][:column] if line < len(lines) else ""
        after = lines[end_line][end_column:] if end_line < len(lines) else ""
        lines[line : end_line + 1] = (before + new + after).split("\n")
    return "\n".join(lines)


def _edits(mapping: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[_Edit]:
    """The edits that turn the block mapping at node `mapping`, which says `old`, into one that says `new`."""
    nodes: dict[str, tuple[Any, Any]] = {}
    for key_node, value_node in mapping.value:
        nodes.setdefault(key_node.value, (key_node, value_node))
    indent = mapping.start_mark.column
    place = (mapping.start_mark.line, 0)
    for key, value in new.items():
        if key not in nodes:
            yield _Edit(place, place, _entry(key, value, indent))
            continue
        key_node, value_node = nodes[key]
        place = (_last_line(value_node) + 1, 0)
        if not _is_equal(old[key], value):
            yield from _change(key_node, value_node, old[key], value)
    for key, (key_node, value_node) in nodes.items():
        if key not in new:
            yield _Edit((key_node.start_mark.line, 0), (_last_line(value_node) + 1, 0), "")


def _change(key_node: Any, value_node: Any, old: Any, new: Any) -> Iterator[_Edit]:
    """The edits that make the entry say `new`."""
    is_block = isinstance(value_node, yaml.MappingNode) and not value_node.flow_style
    if is_block and isinstance(new, Mapping) and new:
        yield from _edits(value_node, old, new)
    elif _is_inline(value_node) and not isinstance(new, Mapping | list):
        yield _Edit(_position(value_node.start_mark), _position(value_node.end_mark), _dump_scalar(new))
    else:
        start = (key_node.start_mark.line, 0)
        end = (_last_line(value_node) + 1, 0)
        yield _Edit(start, end, _entry(key_node.value, new, key_node.start_mark.column))


def _is_inline(node: Any) -> bool:
    """Whether the value stands on one line, behind its key."""
    is_block_scalar = isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
    is_there = node.start_mark.index != node.end_mark.index
    return is_there and not is_block_scalar and node.start_mark.line == node.end_mark.line


def _last_line(node: Any) -> int:
    """The last line that the value at `node` has something on."""
    children = [child for entry in node.value for child in (entry if isinstance(entry, tuple) else (entry,))]
    is_flow = not isinstance(node, yaml.ScalarNode) and node.flow_style
    if isinstance(node, yaml.CollectionNode) and children and not is_flow:
        return max(map(_last_line, children))
    start, end = int(node.start_mark.line), node.end_mark
    return int(end.line) - 1 if end.column == 0 and end.line > start else int(end.line)


def _position(mark: Any) -> _Position:
    return mark.line, mark.column


def _entry(key: str, value: Any, indent: int) -> str:
    return "".join(f"{' ' * indent}{line}\n" for line in _dump({key: value}).splitlines())


def _dump(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH, indent=_INDENT)


def _dump_scalar(value: Any) -> str:
    # On one line, however long: a folded text would have to be indented to where it goes.
    return _dump_flow(value).removesuffix("\n...\n").removesuffix("\n")


def _dump_flow(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, allow_unicode=True, width=10**6, default_flow_style=True)


class _Dumper(yaml.SafeDumper):
    """Lists are indented below their key, as in the presets; lists of numbers stand on one line."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        del indentless
        super().increase_indent(flow, False)


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    is_short = all(isinstance(value, int | float) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=is_short)


_Dumper.add_representer(list, _represent_list)
