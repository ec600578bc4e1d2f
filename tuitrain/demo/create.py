"""Puts the demo's model, pictures and config into a folder; knows nothing of torch or training."""

import json
import re
import shutil
from pathlib import Path

from tuitrain.atomic import atomic_dir, write_text_atomic
from tuitrain.config.presets import shipped_presets_dir
from tuitrain.errors import ConfigError

_SHIPPED = Path(__file__).parent
# What the preset calls its folder; each mention becomes the absolute path of the user's.
_PRESET_PATH = re.compile(r"(?<=: )tuitrain-demo/(\S+)$", re.MULTILINE)


def create_demo(directory: Path) -> Path:
    """Make `directory/base` (the model), `directory/dataset` (the pictures) and `directory/demo.yaml`, where absent.

    What is there already stays as it is, so that a second call keeps the user's changes. Each of the three appears
    whole or not at all.

    Returns:
        The absolute path of demo.yaml, whose paths are absolute too.

    Raises:
        ConfigError: `directory` cannot be made, or one of the three names is taken by something else.
    """
    directory = directory.expanduser().absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _copy_folder("base", directory / "base", telltale="model_index.json")
        _copy_folder("pictures", directory / "dataset", telltale="metadata.jsonl")
        return _write_config(directory)
    except OSError as error:
        raise ConfigError(
            f"the demo cannot be made in {directory}: {error.strerror}", hint="choose another folder with --dir"
        ) from error


def _copy_folder(shipped_name: str, target: Path, *, telltale: str) -> None:
    if (target / telltale).is_file():
        return
    if target.exists() or target.is_symlink():
        raise ConfigError(
            f"{target} exists and is not the demo's: it has no {telltale}",
            hint="move it away or choose another folder with --dir",
        )
    with atomic_dir(target) as temporary:
        shutil.copytree(_SHIPPED / shipped_name, temporary, dirs_exist_ok=True, copy_function=shutil.copyfile)


def _write_config(directory: Path) -> Path:
    config_path = directory / "demo.yaml"
    if not config_path.is_file():
        preset = (shipped_presets_dir() / "demo.yaml").read_text(encoding="utf-8")
        # A JSON string is a YAML string: safe for spaces, quotes and colons in the path.
        text = _PRESET_PATH.sub(lambda found: json.dumps(str(directory / found[1]), ensure_ascii=False), preset)
        write_text_atomic(config_path, text)
    return config_path
