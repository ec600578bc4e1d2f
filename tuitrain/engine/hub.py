"""Fetches what is needed of a model repository on the Hugging Face Hub; knows no tensor.

Only safetensors and JSON or text files are ever fetched. What the Hub's cache holds is used without the network.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of the HTTP client that the installed version uses
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from tuitrain.engine.weight_files import find_weight_files, index_name, shard_pattern, styles, weight_name
from tuitrain.errors import ModelError


def is_hub_name(model: str) -> bool:
    """Whether `model` can be a repository on the Hub: `owner/name`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model) is not None


def fetch_model(name: str, *, descriptions: Iterable[str], weights: Mapping[str, str], hf_variant: str | None) -> Path:
    """The snapshot folder of repository `name` with the files asked for, downloaded where the cache lacks them.

    Args:
        name: `owner/name`.
        descriptions: patterns of configs and tokenizers.
        weights: for each folder of the repository ("." is its root) the stem of its weight files; the first style of
            `weight_files.styles(hf_variant)` that is there is fetched, the others are not.

    Raises:
        ModelError: the Hub has no such repository, or it is needed and cannot be reached.
    """
    try:
        snapshot = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(descriptions)))
        missing = dict(weights)
        for style in styles(hf_variant):
            missing = _without_found(missing, snapshot, style)
            if missing:
                _fetch_style(name, snapshot, missing, style)
                missing = _without_found(missing, snapshot, style)
    except (OSError, ValueError, HTTPError) as error:
        raise ModelError(_why_not_fetched(name, error), hint=_hint(error)) from error
    return snapshot


def _without_found(missing: Mapping[str, str], snapshot: Path, style: str | None) -> dict[str, str]:
    return {
        folder: stem for folder, stem in missing.items() if find_weight_files(snapshot / folder, stem, style) is None
    }


def _fetch_style(name: str, snapshot: Path, missing: Mapping[str, str], style: str | None) -> None:
    patterns = [
        os.path.normpath(f"{folder}/{file}")
        for folder, stem in missing.items()
        for file in (weight_name(stem, style), index_name(stem, style), shard_pattern(stem, style))
    ]
    try:
        huggingface_hub.snapshot_download(name, revision=snapshot.name, allow_patterns=patterns)
    except LocalEntryNotFoundError:
        return  # the Hub cannot be asked; the cache may hold the next style


def _why_not_fetched(name: str, error: Exception) -> str:
    missing = f"{name} is neither a folder nor a file here"
    if isinstance(error, GatedRepoError):
        return f"{name} is a gated repository, the Hub gives it only to those who accepted its terms"
    if isinstance(error, RepositoryNotFoundError):
        return f"{missing}, and the Hub has no repository of that name that you may read"
    if constants.HF_HUB_OFFLINE or isinstance(error, OfflineModeIsEnabled):
        return f"{missing}, and not in the Hub cache {constants.HF_HUB_CACHE} (offline mode, the Hub was not asked)"
    if isinstance(error, LocalEntryNotFoundError):
        return f"{missing}, not in the Hub cache {constants.HF_HUB_CACHE}, and the Hub cannot be reached"
    return f"{missing}, and the Hub did not give it: {str(error).splitlines()[0]}"


def _hint(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return "check the name, or log in with `hf auth login`"
    return "check the path of `model`, or fetch the model on a machine with network and copy it here"
