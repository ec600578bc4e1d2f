"""Config files and presets: reading, overriding, writing. Knows YAML and where presets are; knows no single setting."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tuitrain.config.schema import TrainConfig
from tuitrain.errors import ConfigError


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    path = Path(source)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config_from_values(values, overrides, where=str(path))


def config_from_values(values: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "") -> TrainConfig:
    tree = json.loads(json.dumps(values))
    for override in overrides:
        key, _, text = override.partition("=")
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = yaml.safe_load(text)
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(str(error), where=where) from error


def config_to_json(config: TrainConfig) -> str:
    """All settings, defaults too, as JSON with an indent of 2."""
    return json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False)


def config_to_yaml(config: TrainConfig) -> str:
    """All settings, defaults too, as YAML that `load_config` reads back to the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def config_hash(config: TrainConfig) -> str:
    """sha256 of all settings as hexadecimal text; equal configs have equal hashes however they were written."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
