"""Presets: complete configs with a header that says for which card. Knows folders and headers, not settings."""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from tuitrain.errors import ConfigError, printable

HEADER_KEYS = ("title", "card", "trains", "time", "vram")
MAX_HEADER_BYTES = 16 * 1024
MADE_FROM = "Made from the preset "

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A config file by name, and what its header says.

    Args:
        name: the file name without .yaml, which commands take.
        path: the file.
        title: one line for a list.
        card: the GPU it is for.
        trains: what it trains, on which pictures.
        time: how long a run takes; says so where it is an estimate.
        vram: peak GPU memory; says so where it is an estimate.
        description: the rest of the header.
    """

    name: str
    path: Path
    title: str
    card: str
    trains: str
    time: str
    vram: str
    description: str


def shipped_presets_dir() -> Path:
    """Folder of our presets: inside the package in a wheel, beside it in a checkout."""
    inside = _PACKAGE / "presets"
    return inside if inside.is_dir() else _PACKAGE.parent / "presets"


def user_presets_dir() -> Path:
    """Folder of the user's own presets, `$XDG_CONFIG_HOME/tuitrain/presets`; need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG rule: a relative path there is to be ignored.
    config_home = Path(base) if Path(base).is_absolute() else Path.home() / ".config"
    return config_home / "tuitrain" / "presets"


def list_presets() -> list[Preset]:
    """Our presets and the user's, by name; a user's preset of the same name stands for ours."""
    paths = {
        path.stem: path
        for folder in (shipped_presets_dir(), user_presets_dir())
        if folder.is_dir()
        for path in sorted(folder.glob("[!.]*.yaml"))  # with a dot begins what a write that was killed has left
        if path.is_file()
    }
    return [read_preset(paths[name]) for name in sorted(paths)]


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: there is none; the nearest name is suggested.
    """
    presets = {preset.name: preset for preset in list_presets()}
    if name in presets:
        return presets[name]
    close = difflib.get_close_matches(name, presets, 1, 0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(presets)}"
    raise ConfigError(f"there is no preset named {printable(name)}", hint=hint)


def preset_header(preset: Preset, name: str) -> str:
    """The header of a preset of the user's own, made from `preset`: what it says of card, time and memory stays."""
    lines = [f"# title: {name}"]
    lines += [f"# {key}: {value}" for key in HEADER_KEYS[1:] if (value := getattr(preset, key))]
    return "\n".join([*lines, "#", f"# {MADE_FROM}{preset.name}.", ""])


def find_origin(text: str) -> Preset | None:
    """The preset that the comments at the head of a config say it was made from."""
    for line in text.splitlines():
        if not line.startswith("#"):
            return None
        name = line.removeprefix("#").strip().removeprefix(MADE_FROM)
        if MADE_FROM in line:
            return next((preset for preset in list_presets() if preset.name == name.removesuffix(".")), None)
    return None


def user_preset_path(name: str) -> Path:
    """Where the user's own preset `name` is, or would be.

    Raises:
        ConfigError: that is no name of a file.
    """
    if not re.fullmatch(r"[\w][\w .+-]{0,99}", name):
        hint = "use letters, digits, _ and -, as in my_style"
        raise ConfigError(f"{printable(name) or 'nothing'} cannot be the name of a preset", hint=hint)
    return user_presets_dir() / f"{name}.yaml"


def read_preset(path: Path) -> Preset:
    """The config file at `path` with what the comments at its head say, which may be nothing."""
    with path.open("rb") as file:
        text = file.read(MAX_HEADER_BYTES).decode("utf-8", errors="replace")
    entries: dict[str, str] = {}
    rest: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        content = printable(line.removeprefix("#").strip())
        key, colon, value = content.partition(":")
        if colon and key in HEADER_KEYS and key not in entries:
            entries[key] = value.strip()
        else:
            rest.append(content)
    return Preset(
        name=path.stem,
        path=path,
        title=entries.get("title", path.stem),
        card=entries.get("card", ""),
        trains=entries.get("trains", ""),
        time=entries.get("time", ""),
        vram=entries.get("vram", ""),
        description="\n".join(rest).strip(),
    )
