"""What is told before the first step of settings that do not do what they seem to."""

from pathlib import Path

import pytest

from tests.engine.harness import of_kind, small_config, train_well, write_pictures
from tuitrain.runs import events


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("xformers=true",), ["xformers"]),
        (("data_loader.dataset.keep_in_memory=true", "cache_vae_outputs=false"), ["keep_in_memory"]),
        (("data_loader.dataset.keep_in_memory=true", "cache_vae_outputs=true"), []),
    ],
)
def test_settings_that_are_accepted_without_effect_are_told(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, settings: tuple[str, ...], told: list[str]
) -> None:
    _, journal = train_well(small_config(tmp_path, tiny_sdxl, jsonl, "max_train_steps=1", *settings))
    assert [event.what.split()[0] for event in of_kind(journal, events.WarningRaised)] == told
