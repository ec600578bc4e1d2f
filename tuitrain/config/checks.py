"""Values -> a TrainConfig, or everything that is wrong with them at once. Reads no file; knows no single setting."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tuitrain.config.fields import Field, union_kinds, value_at
from tuitrain.config.problems import (
    ConfigProblem,
    find_field,
    missing_key,
    other_pipeline,
    show_value,
    unknown_key,
    wrong_kind,
    wrong_value,
)
from tuitrain.config.rules import BrokenRule
from tuitrain.config.schema import TrainConfig
from tuitrain.config.yaml_text import KeyPath, dotted_path

MAX_ROUNDS = 8
MAX_PROBLEMS = 100
LAST = 10**12
"""Order of what comes after everything that has a place."""

_STAND_INS: dict[str, Any] = {
    "data_loader": {
        "type": "IMAGE_CAPTION_SD_DATA_LOADER",
        "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "x"},
    },
    "data_loader.dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "x"},
    "data_loader.instance_dataset": {"dataset_dir": "x"},
}


class Place(NamedTuple):
    """Where a value was set.

    Args:
        order: line number, or later than any line for an override.
        text: for messages, "run.yaml:12".
    """

    order: int
    text: str


@dataclass
class Source:
    """Values that are not checked yet, and where each was set.

    Args:
        name: of the file, for what has no line.
        values: as YAML gives them.
        places: path of a key -> where it stands.
        problems: already found while reading.
    """

    name: str
    values: dict[str, Any]
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[ConfigProblem] = field(default_factory=list)

    def place_of(self, path: KeyPath) -> Place:
        """The place of `path`, or of the nearest group around it that has one."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return Place(0, self.name)


def check_source(source: Source) -> tuple[TrainConfig | None, list[ConfigProblem]]:
    """Check all settings and all rules between them.

    Returns:
        The config and no problem, or None and every problem in the order of the file. What follows from a reported
        slip alone is not reported: a misspelt key is not also missing, and a rule about a wrong value waits.
    """
    pipeline = other_pipeline(source.values.get("type"), source.place_of(("type",)).text)
    if pipeline is not None:
        return None, [pipeline]
    return _Check(source).run()


class _Check:
    """One check: validate, explain, put something valid in the place of each slip, validate again.

    The repaired copy is never trained; it only lets one pass after the other see what the slips hid.
    """

    def __init__(self, source: Source) -> None:
        self.source = Source(source.name, copy.deepcopy(source.values), dict(source.places))
        self.found: list[tuple[int, ConfigProblem]] = []
        self.settled: set[str] = set()
        for problem in source.problems:
            self._report(problem, source.place_of(tuple(problem.key.split("."))))

    def run(self) -> tuple[TrainConfig | None, list[ConfigProblem]]:
        for _ in range(MAX_ROUNDS):
            try:
                config = TrainConfig.model_validate(self.source.values)
            except ValidationError as error:
                details = error.errors(include_url=False)
            else:
                return (None if self.found else config), self._problems()
            if len(details) > MAX_PROBLEMS:
                self._report_many(details)
                break
            if details[0]["type"] == "broken_rules":
                self._report_rules(details[0]["ctx"]["broken"])
                break
            # Unknown keys first: a misspelt required key is one slip, not two.
            for detail in sorted(details, key=lambda detail: detail["type"] != "extra_forbidden"):
                self._settle(detail)
        return None, self._problems()

    def _problems(self) -> list[ConfigProblem]:
        return [problem for _, problem in sorted(self.found, key=lambda found: found[0])]

    def _report(self, problem: ConfigProblem, place: Place) -> None:
        self.found.append((place.order, problem))
        if problem.key:
            self.settled.add(problem.key)

    def _report_many(self, details: list[ErrorDetails]) -> None:
        """A file of another kind, or a hostile one: explain the first few, and count the rest."""
        for detail in details[:MAX_PROBLEMS]:
            self._settle(detail)
        what = f"there are {len(details) - MAX_PROBLEMS} more problems"
        self.found.append((LAST, ConfigProblem(what, "is this the right file?", self.source.name)))

    def _report_rules(self, rules: list[BrokenRule]) -> None:
        for rule in rules:
            if any(_touch(key, settled) for key in rule.keys for settled in self.settled):
                continue
            paths = [tuple(key.split(".")) for key in rule.keys]
            path = next((path for path in paths if path in self.source.places), paths[0])
            place = self.source.place_of(path)
            self.found.append((place.order, ConfigProblem(rule.what, rule.hint, place.text, rule.keys[0])))

    def _settle(self, detail: ErrorDetails) -> None:
        """Report one of pydantic's complaints, and make the copy valid there."""
        path = _plain_path(detail["loc"])
        if detail["type"] == "missing" and value_at(self.source.values, dotted_path(path)) is not None:
            return  # a misspelt key has just been put there
        place = self.source.place_of(path)
        problem, replacement = self._explain(detail, path, place.text)
        if not self.settled & {dotted_path(path), problem.key}:
            self._report(problem, place)
        if detail["type"] == "extra_forbidden":
            self._move(path, problem.suggestion)
        else:
            _put(self.source.values, path, replacement)

    def _explain(self, detail: ErrorDetails, path: KeyPath, where: str) -> tuple[ConfigProblem, Any]:
        """(the problem, a valid value for its path)."""
        key = dotted_path(path)
        values, got = self.source.values, detail["input"]
        if detail["type"] == "extra_forbidden":
            return unknown_key(key, values, where), None
        if detail["type"] == "missing":
            return missing_key(key, values, where), _stand_in(key, find_field(key, values))
        if key in union_kinds():
            problem = wrong_kind(key, got, values, where)
            if isinstance(got, Mapping) and problem.suggestion:
                return problem, {**got, union_kinds()[key]: problem.suggestion}
            return problem, _stand_in(key, None)
        is_entry = isinstance(path[-1], int)
        field_key = dotted_path(path[:-1]) if is_entry else key
        found = find_field(field_key, values)
        if found is None:
            what = f"{key} is {show_value(got)}, it must be a group of settings"
            return ConfigProblem(what, "indent its settings below it", where, key), _stand_in(key, None)
        rule = "text without control characters" if detail["type"] == "control_character" else ""
        if is_entry:
            return wrong_value(found, got, where, path=key, rule=rule or "text"), ""
        return wrong_value(found, got, where, rule=rule), _stand_in(key, found)

    def _move(self, path: KeyPath, suggestion: str) -> None:
        """Drop an unknown key, or put its value where it was probably meant, to have it checked there."""
        value = _take(self.source.values, path)
        target: KeyPath = tuple(suggestion.split("."))
        if not suggestion or not _is_free(self.source.values, target):
            return
        _put(self.source.values, target, value)
        for old, place in list(self.source.places.items()):
            if old[: len(path)] == path:
                self.source.places[(*target, *old[len(path) :])] = place


def _plain_path(loc: tuple[int | str, ...]) -> KeyPath:
    """pydantic's location without the names of union variants, which no user wrote."""
    path: list[int | str] = []
    is_variant = False
    for part in loc:
        if not is_variant:
            path.append(part)
        is_variant = not is_variant and dotted_path(tuple(path)) in union_kinds()
    return tuple(path)


def _touch(key: str, other: str) -> bool:
    """Whether one path is the other, or a group around it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


_ABSENT = object()
"""In place of a value: no key, so that the default holds."""


def _stand_in(key: str, found: Field | None) -> Any:
    if key in _STAND_INS:
        return copy.deepcopy(_STAND_INS[key])
    if found is None or not found.required:
        return _ABSENT
    if found.type == "choice":
        return found.choices[0]
    return 1 if found.type == "whole" else "x"


def _is_free(values: Any, path: KeyPath) -> bool:
    """Whether nothing stands at `path`, nor anything but groups above it."""
    node = values
    for part in path:
        if node is None:
            return True
        if not isinstance(node, dict):
            return False
        node = node.get(part)
    return node is None


def _put(values: Any, path: KeyPath, value: Any) -> None:
    """Set, or with `_ABSENT` remove, the value at `path`; groups on the way are made."""
    node = values
    for part in path[:-1]:
        if isinstance(node, dict) and not isinstance(node.get(part), dict | list):
            node[part] = {}
        node = node[part]
    if value is _ABSENT:
        node.pop(path[-1], None)
    else:
        node[path[-1]] = value


def _take(values: Any, path: KeyPath) -> Any:
    node = values
    for part in path[:-1]:
        node = node[part]
    return node.pop(path[-1])
