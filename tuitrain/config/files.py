"""Config files: reading with overrides, and writing. Knows YAML and paths; knows no single setting."""

import copy
import difflib
import hashlib
import json
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tuitrain.config.checks import Place, Source, check_source
from tuitrain.config.presets import Preset, find_preset, list_presets
from tuitrain.config.problems import ConfigProblem, show_plain, show_value
from tuitrain.config.schema import TrainConfig
from tuitrain.config.yaml_text import MAX_BYTES, KeyPath, dotted_path, read_yaml
from tuitrain.errors import ConfigError, printable

__all__ = [
    "Preset",
    "config_from_values",
    "config_hash",
    "config_to_json",
    "config_to_yaml",
    "find_preset",
    "list_presets",
    "load_config",
    "parse_config_text",
    "read_config_text",
]

_FIRST_OVERRIDE = 10**9
"""Order of the first override among places: after every line of a file."""


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a config file or a preset and check all of it.

    Args:
        source: path of a YAML file, or the name of a preset. A file of that name comes first.
        overrides: "optimizer.learning_rate=1e-5" each; the value is YAML, so a list is "[a, b]" and nothing is null.

    Raises:
        ConfigError: one problem for each thing that is wrong, in the order of the file.
    """
    path, text = read_config_text(source)
    return _check(parse_config_text(text, name=printable(str(path))), overrides)


def read_config_text(source: str | Path) -> tuple[Path, str]:
    """The file that `source` names, by its path or as a preset, and what is in it, whether it is a config or not.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    path = _find_file(source)
    return path, _read_text(path, printable(str(path)))


def parse_config_text(text: str, *, name: str) -> Source:
    """The settings in a YAML text, not checked yet, and the place of each.

    Args:
        text: the whole file.
        name: of the file, for messages.

    Raises:
        ConfigError: it is not YAML, or no lines of key: value.
    """
    document = read_yaml(text, name=name)
    if not isinstance(document.values, dict):
        raise ConfigError(
            "the file is empty"
            if document.values is None
            else "the file holds no settings, which are lines of key: value",
            hint="start from one of the presets",
            where=name,
        )
    places = {key_path: Place(line, f"{name}:{line}") for key_path, line in document.lines.items()}
    return Source(name, document.values, places, list(document.problems))


def config_from_values(values: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "") -> TrainConfig:
    """Check settings that are in memory already.

    Args:
        values: a tree of settings as YAML would give it; not changed.
        overrides: as of `load_config`.
        where: for messages, in place of a file.

    Raises:
        ConfigError: one problem for each thing that is wrong.
    """
    return _check(Source(where, copy.deepcopy(dict(values))), overrides)


def config_to_yaml(config: TrainConfig) -> str:
    """All settings, defaults too, as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def config_to_json(config: TrainConfig) -> str:
    """All settings, defaults too, as JSON with an indent of 2."""
    return json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False)


def config_hash(config: TrainConfig) -> str:
    """sha256 of all settings in hexadecimal; equal configs have equal hashes however they were written."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _check(source: Source, overrides: Sequence[str]) -> TrainConfig:
    for index, override in enumerate(overrides):
        _apply_override(source, override, index)
    config, problems = check_source(source)
    if config is None:
        raise ConfigError.from_problems(problems)
    return config


# ----------------------------------------------------------------------------------------------------------- overrides


def _apply_override(source: Source, override: str, index: int) -> None:
    """Set one value; what is wrong with the override itself joins the source's problems."""
    key, equals, text = override.partition("=")
    path: KeyPath = tuple(part.strip() for part in key.split("."))
    where = f"--set {show_plain(override)}"
    place = Place(_FIRST_OVERRIDE + index, where)
    if not equals or not all(path):
        what = f"{show_plain(override)} is not of the form key=value"
        source.problems.append(ConfigProblem(what, "write for instance optimizer.learning_rate=1e-5", where))
        return
    try:
        document = read_yaml(text, name=where, root=path)
    except ConfigError as error:
        hint = "put the value in quotes within the quotes of the shell, '\"a: b\"'"
        problems = [ConfigProblem(problem.what, problem.hint or hint, where) for problem in error.problems]
        source.problems.extend(problems)
        return
    source.problems.extend(
        ConfigProblem(problem.what, problem.hint, where, problem.key) for problem in document.problems
    )
    node: Any = source.values
    for depth, part in enumerate(path[:-1], start=1):
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            parent = printable(dotted_path(path[:depth]))
            what = f"{parent} is {show_value(child)}, which has no {show_plain(path[depth])} in it"
            source.problems.append(ConfigProblem(what, f"set all of it: {parent}=...", where, dotted_path(path)))
            return
        source.places.setdefault(path[:depth], place)
        node = child
    node[path[-1]] = document.values
    source.places = {old: at for old, at in source.places.items() if old[: len(path)] != path}
    source.places[path] = place


# --------------------------------------------------------------------------------------------------------------- files


def _find_file(source: str | Path) -> Path:
    """The file that `source` names, or the preset's."""
    path = Path(source)
    if _is_there(path) and not path.is_dir():
        return path
    presets = {preset.name: preset for preset in list_presets()}
    if str(source) in presets:
        return presets[str(source)].path
    shown = show_plain(source) or '""'
    if str(source) and _is_there(path):
        inside = path / "config.yaml"
        hint = f"did you mean {printable(str(inside))}?" if inside.is_file() else "name the YAML file in it"
        raise ConfigError(f"{shown} is a folder, a config is a YAML file", hint=hint)
    names = [*presets, *_neighbours(path)]
    close = difflib.get_close_matches(path.stem if path.suffix else path.name, presets, 1, 0.6)
    close = close or difflib.get_close_matches(str(path), names, 1, 0.6)
    hint = f"did you mean {printable(close[0])}?" if close else f"there are the presets {', '.join(presets)}"
    raise ConfigError(f"{shown} is neither a file nor the name of a preset", hint=hint)


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False
    return True


def _neighbours(path: Path) -> list[str]:
    """YAML files beside a path that does not exist."""
    if not _is_there(path.parent):
        return []
    return [str(file) for file in sorted(path.parent.glob("[!.]*.y*ml")) if file.is_file()]


def _read_text(path: Path, name: str) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a named pipe would be waited for without end
            raise ConfigError("is not an ordinary file", hint="give the path of a YAML file", where=name)
        if status.st_size > MAX_BYTES:
            what = f"the file has {status.st_size // 1024} kB, a config has at most {MAX_BYTES // 1024}"
            raise ConfigError(what, hint="is this the right file?", where=name)
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", hint="check its rights", where=name) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        hint = "save it as UTF-8"
        raise ConfigError("the file is not UTF-8 text", hint=hint, where=f"{name}:{line}") from error
