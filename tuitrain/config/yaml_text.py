"""YAML text -> values and the line of each key, within limits. Knows nothing of settings.

The limits keep a hostile or broken file from costing more than a message: 256 kB, 16 levels, 10,000 values, no anchors
(nine nested ones make 10^9 values), no tags, no key twice (YAML would take the last one in silence).
"""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from tuitrain.config.problems import ConfigProblem
from tuitrain.errors import ConfigError, printable

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_VALUES = 10_000

KeyPath = tuple[str | int, ...]

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is ten times faster, where PyYAML has it
_FORBIDDEN = re.compile("[^\\t\\n\\r\\x20-\\x7e\\x85\\xa0-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
_PLAIN_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)")
_SCALAR_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float")}

_PARSER_HINTS = {
    "mapping values are not allowed": "put a text that holds a colon in quotes, and check the indentation",
    "could not find expected ':'": "is a colon missing after a key, or a closing quote?",
    "did not find expected ',' or": "is a bracket or a comma missing?",
    "did not find expected key": "check the indentation and the quotes of the lines above",
    "found unexpected end of stream": "is a closing quote or bracket missing?",
    "found character that cannot start any token": "put the text in quotes",
    "did not find expected '-' indicator": "check the indentation of the list",
    "found undefined escape": "use single quotes, or write each backslash twice",
    "found unknown escape character": "use single quotes, or write each backslash twice",
}


@dataclass
class YamlValues:
    """What a YAML text holds.

    Args:
        values: numbers, texts, booleans, None, lists and dicts with text keys.
        lines: path of each key and list entry -> its line, from 1.
        problems: faults that leave the rest usable, such as a key that stands twice.
    """

    values: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[ConfigProblem] = field(default_factory=list)


def read_yaml(text: str, *, name: str, root: KeyPath = ()) -> YamlValues:
    """Read one YAML document.

    Args:
        text: the document.
        name: of the file, for messages.
        root: path of the setting that the text is the value of, where it is no whole file.

    Raises:
        ConfigError: not YAML, or beyond the limits.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"the text is longer than {MAX_BYTES // 1024} kB, which no config is", where=name)
    if forbidden := _FORBIDDEN.search(text):
        line = text.count("\n", 0, forbidden.start()) + 1
        what = f"the character {printable(forbidden[0])} may not stand in a YAML file"
        raise ConfigError(what, hint="remove it", where=f"{name}:{line}")
    try:
        _check_limits(text, name)
        node = _Loader(text).get_single_node()
    except yaml.YAMLError as error:
        raise _parse_error(error, text, name) from error
    result = YamlValues()
    if node is not None:
        result.values = _read_node(node, root, result, name)
    return result


def dotted_path(path: KeyPath) -> str:
    """A path as messages show it: "data_loader.resolution"."""
    return ".".join(map(str, path))


def _check_limits(text: str, name: str) -> None:
    """Refuse what must not be built in memory; runs on events, so that depth costs nothing."""
    problems: list[ConfigProblem] = []
    depth = num_values = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark is not None else 1
        where = f"{name}:{line}"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if isinstance(event, yaml.NodeEvent):
            num_values += 1
            if event.anchor is not None:
                mark = "*" if isinstance(event, yaml.AliasEvent) else "&"
                what = f"{mark}{event.anchor} is a YAML anchor or alias, which a config may not have"
                problems.append(ConfigProblem(what, "write the value out, or put the text in quotes", where))
        tag = getattr(event, "tag", None)
        if tag is not None:
            problems.append(ConfigProblem(f"{tag} is a YAML tag, which a config may not have", "remove it", where))
        if depth > MAX_DEPTH or num_values > MAX_VALUES:
            limit = f"{MAX_DEPTH} levels deep" if depth > MAX_DEPTH else f"{MAX_VALUES} values long"
            problems.append(ConfigProblem(f"the text is more than {limit}, which no config is", where=where))
            break
    if problems:
        raise ConfigError.from_problems(problems[:20])


def _parse_error(error: yaml.YAMLError, text: str, name: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    context_mark = getattr(error, "context_mark", None)
    what = str(getattr(error, "problem", None) or error)
    context = getattr(error, "context", None)
    if "but found another document" in what:
        return ConfigError(
            "a second document starts here, a config is one",
            hint="remove the --- line and what follows",
            where=f"{name}:{mark.line + 1}" if mark is not None else name,
        )
    if what.startswith("found unexpected end of stream") and context_mark is not None:
        mark = context_mark  # where the quote opens, not the end of the file
    hint = next((hint for start, hint in _PARSER_HINTS.items() if what.startswith(start)), "")
    if mark is not None and re.match(r" *\t", "".join(text.splitlines(keepends=True)[mark.line : mark.line + 1])):
        hint = "indent with spaces, YAML allows no tabs"
    what = f"not valid YAML: {what} {context}" if context else f"not valid YAML: {what}"
    return ConfigError(printable(what), hint=hint, where=f"{name}:{mark.line + 1}" if mark is not None else name)


def _read_node(node: Any, path: KeyPath, result: YamlValues, name: str) -> Any:
    if isinstance(node, yaml.SequenceNode):
        values = []
        for index, entry in enumerate(node.value):
            result.lines[(*path, index)] = entry.start_mark.line + 1
            values.append(_read_node(entry, (*path, index), result, name))
        return values
    if isinstance(node, yaml.MappingNode):
        return _read_mapping(node, path, result, name)
    return _read_scalar(node, path, result, name)


def _read_mapping(node: Any, path: KeyPath, result: YamlValues, name: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            what = "a key is a list or a mapping, it must be a name"
            result.problems.append(ConfigProblem(what, "put a text that holds brackets in quotes", f"{name}:{line}"))
            continue
        key = key_node.value  # as written: `on` and `8` are names here, whatever YAML takes them for
        if key in values:
            what = f"{'.'.join(map(str, (*path, key)))} is set twice, first on line {result.lines[(*path, key)]}"
            result.problems.append(ConfigProblem(what, "remove one", f"{name}:{line}"))
            continue
        result.lines[(*path, key)] = line
        values[key] = _read_node(value_node, (*path, key), result, name)
    return values


def _read_scalar(node: Any, path: KeyPath, result: YamlValues, name: str) -> Any:
    """A number, boolean or None; everything else, dates too, is the text as written."""
    if node.tag not in _SCALAR_TAGS:
        return node.value
    if node.tag.endswith(":int") and not _PLAIN_INT.fullmatch(node.value):
        # YAML 1.1 reads 010 as 8 and 1:30 as 90.
        what = f"{dotted_path(path)} is {node.value}, which YAML reads in base 2, 8 or 60"
        hint = "write an ordinary number, or put it in quotes"
        where = f"{name}:{node.start_mark.line + 1}"
        result.problems.append(ConfigProblem(what, hint, where, dotted_path(path)))
        return node.value
    if node.tag.endswith(":float") and ":" in node.value:
        return node.value
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except ValueError:  # more digits than Python turns into a number
        return node.value
