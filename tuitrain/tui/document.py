"""A config being edited: where it came from, its values right or wrong, undo, and the way to a file.

Knows settings as fields and YAML as text; knows no screen. The YAML text is the document: each change is made in it, so
that comments stay, and it is read and checked as a whole afterwards (2 ms).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tuitrain.atomic import write_text_atomic
from tuitrain.config.checks import check_source
from tuitrain.config.field_text import is_same, next_value, parse_suggestion, parse_text, show_line, show_text
from tuitrain.config.fields import Field, existing_fields, list_fields, union_kinds, value_at
from tuitrain.config.files import parse_config_text, read_config_text
from tuitrain.config.presets import (
    MADE_FROM,
    Preset,
    find_origin,
    list_presets,
    preset_header,
    read_preset,
    shipped_presets_dir,
    user_preset_path,
)
from tuitrain.config.problems import ConfigProblem
from tuitrain.config.schema import TrainConfig
from tuitrain.config.yaml_edit import head_comments, update_yaml
from tuitrain.errors import ConfigError, TuitrainError, printable
from tuitrain.runs.run import Run

MAX_UNDO = 500

_Values = Mapping[str, Any]


class InTheWayError(TuitrainError):
    """A file that this document did not write, or no longer knows, would be replaced."""


@dataclass(frozen=True)
class _State:
    """The document at one moment; nothing in it is changed in place."""

    text: str
    values: _Values
    lines: Mapping[tuple[str | int, ...], int]
    config: TrainConfig | None
    problems: tuple[ConfigProblem, ...]

    @cached_property
    def fields(self) -> dict[str, Field]:
        return {field.path: field for field in existing_fields(self.values)}


def _read_state(text: str, name: str) -> _State:
    source = parse_config_text(text, name=name)
    config, problems = check_source(source)
    lines = {path: place.order for path, place in source.places.items()}
    return _State(text, source.values, lines, config, tuple(problems))


class ConfigDocument:
    """One config in the editor; made by `open`.

    Attributes:
        name: of the preset, the file or the run it came from.
        preset: the preset that it differs from, with what its header says; None when it was made from none.
        header: what is told of card, time and memory, by the preset or by the file itself; None for a run's config.
        path: the file that `save` writes; None while it has none of its own.
    """

    def __init__(
        self, text: str, *, name: str, base_text: str, preset: Preset | None, header: Preset | None, path: Path | None
    ) -> None:
        self.name = name
        self.preset = preset
        self.header = header
        self.path = path
        self._state = _read_state(text, name)
        self._base = _read_state(base_text, name)
        self._saved_text = text
        self._undo: list[tuple[_State, str]] = []
        self._redo: list[tuple[_State, str]] = []
        self._typed_path = ""
        self._changed: tuple[_State, dict[str, str]] | None = None

    @classmethod
    def open(cls, source: str | Path) -> "ConfigDocument":
        """The config that `source` names: a preset, a file, or the config.yaml of a run; it may be wrong.

        Raises:
            ConfigError: it cannot be read, or is not YAML.
        """
        path, text = read_config_text(source)
        preset = next((preset for preset in list_presets() if preset.path.resolve() == path.resolve()), None)
        if path.resolve().parent == shipped_presets_dir().resolve():
            text = f"# {MADE_FROM}{path.stem}.\n\n{text.removeprefix(head_comments(text))}"
            return cls(text, name=path.stem, base_text=text, preset=preset, header=preset, path=None)
        if preset is not None:
            return cls(text, name=preset.name, base_text=text, preset=preset, header=preset, path=path.absolute())
        if Run(path.parent.absolute()).journal_path.is_file():
            return cls(
                text, name=f"run {path.absolute().parent.name}", base_text=text, preset=None, header=None, path=None
            )
        return cls._open_file(path.absolute(), text)

    @classmethod
    def _open_file(cls, path: Path, text: str) -> "ConfigDocument":
        preset = find_origin(text)
        base_text = text if preset is None else read_config_text(preset.path)[1]
        try:
            parse_config_text(base_text, name="")
        except ConfigError:  # a preset of the user's own that was damaged since
            preset, base_text = None, text
        header = preset or read_preset(path)
        return cls(text, name=path.name, base_text=base_text, preset=preset, header=header, path=path)

    # What it says

    @property
    def config(self) -> TrainConfig | None:
        """The settings, ready to train; None while there is a problem."""
        return self._state.config

    @property
    def values(self) -> _Values:
        """What is set, as YAML gives it, right or wrong."""
        return self._state.values

    @property
    def problems(self) -> tuple[ConfigProblem, ...]:
        """All that is wrong, in the order of the settings."""
        return self._state.problems

    @property
    def fields(self) -> list[Field]:
        """The settings that the config has, by the kinds and groups it chose."""
        return list(self._state.fields.values())

    @property
    def changed(self) -> Mapping[str, str]:
        """Path of each setting that differs from the preset's or the opened file's -> the value there, on one line."""
        if self._changed is None or self._changed[0] is not self._state:
            self._changed = (self._state, self._find_changed())
        return self._changed[1]

    @property
    def is_modified(self) -> bool:
        """Whether there is something that no file has yet."""
        return self._state.text != self._saved_text

    @property
    def num_undo(self) -> int:
        """Changes that can be undone."""
        return len(self._undo)

    @property
    def num_redo(self) -> int:
        """Changes that can be done again."""
        return len(self._redo)

    def field_at(self, path: str) -> Field | None:
        """The field at `path` in the chosen variant; None where there is none now."""
        return self._state.fields.get(path)

    def text_of(self, field: Field) -> str:
        """The value of `field` as one edits it."""
        return show_text(field, self._effective(self._state, field))

    def line_of(self, field: Field) -> str:
        """The value of `field` on one line."""
        return show_line(field, self._effective(self._state, field))

    def base_line_of(self, field: Field) -> str:
        """The value of `field` in the preset or the opened file, on one line; empty where that has no such field."""
        is_there = self._base.fields.get(field.path) == field
        return show_line(field, self._effective(self._base, field)) if is_there else ""

    def is_set(self, field: Field) -> bool:
        """Whether the YAML names it; else the default holds."""
        return _has(self._state.values, field.path)

    def problem_of(self, field: Field) -> ConfigProblem | None:
        """What is wrong with `field`."""
        return next((problem for problem in self.problems if self.field_of(problem) == field), None)

    def field_of(self, problem: ConfigProblem) -> Field | None:
        """The field to look at for `problem`; None when it is about no field, such as an unknown key."""
        fields = self._state.fields
        key = problem.key
        while key:
            if key in fields:
                return fields[key]
            if inside := next((field for path, field in fields.items() if path.startswith(f"{key}.")), None):
                return inside
            parent, _, last = key.rpartition(".")
            key = parent if last.isdigit() else ""  # an entry of a list
        return None

    def line_number(self, key: str) -> int:
        """The line of `key` in the YAML text, from 1; that of the group around it where it has none."""
        parts: list[str | int] = [int(part) if part.isdigit() else part for part in key.split(".")]
        for length in range(len(parts), 0, -1):
            if line := self._state.lines.get(tuple(parts[:length])):
                return line
        return 1

    def field_in_line(self, number: int) -> Field | None:
        """The field that line `number` of the YAML text, from 1, sets; the list's, where it is an entry of a list."""
        keys = [key for key, line in self._state.lines.items() if line <= number]
        last = max(keys, key=lambda key: (self._state.lines[key], len(key)), default=())
        path = ".".join(part for part in last if isinstance(part, str))
        return self._state.fields.get(path)

    def to_yaml(self) -> str:
        """The document's text."""
        return self._state.text

    # Changes

    def set(self, path: str, text: str, *, is_typing: bool = False) -> None:
        """Give the setting at `path` what `text` means for it; a wrong text stays and is a problem.

        Args:
            is_typing: more will follow: all until `end_typing` is one change to undo.
        """
        field = self._state.fields[path]
        self._change(path, self._with(path, parse_text(field, text)), is_typing=is_typing)

    def end_typing(self, *, is_kept: bool = True) -> None:
        """Close the change that `set` or `apply_yaml` left open, or take it back."""
        if self._typed_path and (not is_kept or self._undo[-1][0].text == self._state.text):
            self._state, _ = self._undo.pop()
        self._typed_path = ""

    def set_value(self, path: str, value: Any) -> None:
        """Give the setting at `path` a value."""
        self._change(path, self._with(path, value))

    def step(self, path: str, *, is_up: bool) -> None:
        """Give the setting the next value up or down, or the next choice."""
        field = self._state.fields[path]
        value = next_value(field, self._effective(self._state, field), is_up=is_up)
        if not is_same(field, value, self._effective(self._state, field)):
            self.set_value(path, value)

    def reset(self, path: str) -> None:
        """Give the setting what the preset or the opened file has; the kind of a group brings its whole group back."""
        self._change(path, self._without_changes(self._state.values, [path]))

    def reset_section(self, section: str) -> None:
        """Reset all settings of `section`."""
        paths = [path for path in self.changed if self._state.fields[path].section == section]
        if paths:
            self._change(paths[0], self._without_changes(self._state.values, paths))

    def accept(self, problem: ConfigProblem) -> None:
        """Do what `problem` suggests: take the value, or move what is at an unknown key to where it was meant.

        Args:
            problem: one of `problems` with a suggestion.
        """
        if self.field_of(problem) is None:
            value = value_at(self._state.values, problem.key)
            values = _put(_take(self._state.values, problem.key), problem.suggestion, value)
        else:
            values = _put(self._state.values, problem.key, parse_suggestion(problem.suggestion))
        self._change(problem.key, values)

    def apply_yaml(self, text: str, *, is_typing: bool = False) -> None:
        """Take `text` for the whole document.

        Args:
            is_typing: as of `set`.

        Raises:
            ConfigError: not YAML, or no settings; the document stays as it was.
        """
        state = _read_state(text, self.name)
        if state.text != self._state.text:
            self._push(state, "YAML", is_typing=is_typing)

    def undo(self) -> str:
        """Take the last change back; gives its path, empty when there is none."""
        return self._travel(self._undo, self._redo)

    def redo(self) -> str:
        """Do again what was taken back last; gives its path, empty when there is none."""
        return self._travel(self._redo, self._undo)

    # Files

    def save(self, path: Path | None = None, *, may_replace: bool = False) -> Path:
        """Write the document to `path`, or to the file it has, and keep to that file from then on.

        Args:
            may_replace: write over what the document does not know.

        Raises:
            InTheWayError: there is another file, or this one was changed since it was read.
            ConfigError: it cannot be written.
        """
        target = (path or self.path or Path()).expanduser().absolute()
        is_own = target == self.path
        self._write(target, self._state.text, known=self._saved_text if is_own else None, may_replace=may_replace)
        self.path = target
        self._saved_text = self._state.text
        return target

    def save_as_preset(self, name: str, *, may_replace: bool = False) -> Path:
        """Write the document as the user's own preset `name`, with the header of the preset it was made from.

        Raises:
            InTheWayError: there is such a preset.
            ConfigError: not a name, or it cannot be written.
        """
        path = user_preset_path(name)
        text = self._state.text
        if self.preset is None:
            text = f"# title: {name}\n#\n{text}"
        else:
            text = f"{preset_header(self.preset, name)}\n{text.removeprefix(head_comments(text))}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_written(path.parent, error) from error
        self._write(path, text, known=None, may_replace=may_replace)
        return path

    def _write(self, path: Path, text: str, *, known: str | None, may_replace: bool) -> None:
        try:
            if path.is_dir():
                raise ConfigError(f"{printable(path)} is a folder", hint="name a file in it, such as my_style.yaml")
            if path.exists() and not may_replace:
                self._check_known(path, known)
            mode = path.stat().st_mode & 0o777 if path.exists() else 0o666
            write_text_atomic(path.resolve(), text, mode=mode)
        except OSError as error:
            raise _not_written(path, error) from error

    @staticmethod
    def _check_known(path: Path, known: str | None) -> None:
        if known is None:
            raise InTheWayError(f"{printable(path)} is there already", hint="choose another name, or replace it")
        if path.read_bytes().decode("utf-8-sig", errors="replace") != known:
            what = f"{printable(path.name)} was changed by someone else since it was opened here"
            raise InTheWayError(what, hint="save under another name, or replace it")

    # How

    def _effective(self, state: _State, field: Field) -> Any:
        return value_at(state.values, field.path) if _has(state.values, field.path) else field.default

    def _find_changed(self) -> dict[str, str]:
        changed = {}
        for field in self.fields:
            if self._base.fields.get(field.path) == field:
                base = self._effective(self._base, field)
                if not is_same(field, self._effective(self._state, field), base):
                    changed[field.path] = show_line(field, base)
            elif self.is_set(field):
                changed[field.path] = ""
        return changed

    def _change(self, path: str, values: _Values, *, is_typing: bool = False) -> None:
        text = update_yaml(self._state.text, values)
        if text != self._state.text:
            self._push(_read_state(text, self.name), path, is_typing=is_typing)

    def _push(self, state: _State, path: str, *, is_typing: bool) -> None:
        if not (is_typing and self._typed_path == path):
            self._undo.append((self._state, path))
            del self._undo[:-MAX_UNDO]
        self._redo.clear()
        self._typed_path = path if is_typing else ""
        self._state = state

    def _travel(self, past: list[tuple[_State, str]], future: list[tuple[_State, str]]) -> str:
        self._typed_path = ""
        if not past:
            return ""
        state, path = past.pop()
        future.append((self._state, path))
        self._state = state
        return path

    def _with(self, path: str, value: Any) -> _Values:
        """The values with one changed, and what follows from it: the settings of a kind, the needed ones of a group."""
        values = self._state.values
        parent, _, key = path.rpartition(".")
        if union_kinds().get(parent) == key and value != value_at(values, path):
            return _fill_groups(self._switch(values, parent, key, value), parent)
        if value == {} and isinstance(base := value_at(self._base.values, path), Mapping):
            value = base
        return _fill_groups(_put(values, path, value), path)

    def _switch(self, values: _Values, parent: str, key: str, kind: Any) -> _Values:
        """The values with another kind of the group at `parent`.

        What the two kinds share stays; what only the new one has comes from the preset, if that has this kind.
        """
        group = value_at(values, parent)
        old_fields = set(existing_fields(values))
        switched: _Values = _put(values, parent, {key: kind})
        new_fields = existing_fields(_put(values, f"{parent}.{key}", kind))
        known = {field.path for field in list_fields()}
        base_group = value_at(self._base.values, parent)
        sources = [group if isinstance(group, Mapping) else {}]
        sources += [base_group] if isinstance(base_group, Mapping) and base_group.get(key) == kind else []
        for source in sources:
            for name, value in source.items():
                path = f"{parent}.{name}"
                fields = [field for field in new_fields if _is_inside(field.path, path)]
                is_unknown = not any(_is_inside(field_path, path) for field_path in known)
                is_shared = bool(fields) and (source is not group or all(field in old_fields for field in fields))
                if (is_unknown or is_shared) and not _has(switched, path):
                    switched = _put(switched, path, value)
        return switched

    def _without_changes(self, values: _Values, paths: list[str]) -> _Values:
        for path in paths:
            parent, _, key = path.rpartition(".")
            target = parent if union_kinds().get(parent) == key else path
            is_in_base = _has(self._base.values, target)
            values = _put(values, target, value_at(self._base.values, target)) if is_in_base else _take(values, target)
        return values


def _not_written(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{printable(path)} cannot be written: {error.strerror}", hint="choose another folder, or check its rights"
    )


def _is_inside(path: str, group: str) -> bool:
    return path == group or path.startswith(f"{group}.")


def _fill_groups(values: _Values, path: str) -> _Values:
    """`values` with the groups that settings below `path` need, and examples for the numbers without a default."""
    for field in existing_fields(values):
        if field.required and _is_inside(field.path, path) and not _has(values, field.path):
            if field.example is not None:
                values = _put(values, field.path, field.example)
            elif not _has(values, field.parent):
                values = _put(values, field.parent, {})
    return values


def _has(values: Any, path: str) -> bool:
    for key in path.split("."):
        if not isinstance(values, Mapping) or key not in values:
            return False
        values = values[key]
    return True


def _put(values: Any, path: str, value: Any) -> Any:
    """A copy of `values` with `value` at `path`; groups on the way are made."""
    key, _, rest = path.partition(".")
    group = dict(values) if isinstance(values, Mapping) else {}
    group[key] = _put(group.get(key), rest, value) if rest else value
    return group


def _take(values: Any, path: str) -> Any:
    """A copy of `values` without what is at `path`."""
    if not isinstance(values, Mapping):
        return values
    key, _, rest = path.partition(".")
    if rest:
        return {**values, key: _take(values[key], rest)} if key in values else values
    return {name: value for name, value in values.items() if name != key}
