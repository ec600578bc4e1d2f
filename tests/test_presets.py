"""The presets: complete, loadable, honest about what was measured, and what they say they are."""

import re
from pathlib import Path

import pytest

from tuitrain.config.files import config_to_yaml, find_preset, list_presets, load_config
from tuitrain.config.presets import Preset, shipped_presets_dir
from tuitrain.config.schema import AdafactorConfig, AdamWConfig, TrainConfig
from tuitrain.errors import ConfigError

SHIPPED = ["baroque_24gb", "big_card_80gb", "demo", "robocats_24gb", "small_card_12gb"]
INVOKE_TRAINING = Path(__file__).parent / "unit" / "config" / "invoke_training"

PROMPTS = ("validation_prompts",)
UNSTATED = {"data_loader": {"dataloader_num_workers"}}


@pytest.fixture(autouse=True)
def _no_presets_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def settings_of(config: TrainConfig) -> dict[str, object]:
    """All settings but the prompts, which are the preset's own words."""
    return config.model_dump(exclude=set(PROMPTS) | UNSTATED.keys()) | {
        "data_loader": config.data_loader.model_dump(exclude=UNSTATED["data_loader"])
    }


def test_the_shipped_presets_are_these() -> None:
    assert [preset.name for preset in list_presets()] == SHIPPED
    assert sorted(path.stem for path in shipped_presets_dir().iterdir()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_preset_is_a_config_that_needs_nothing_more(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    written = tmp_path / "config.yaml"
    written.write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(written) == config


@pytest.mark.parametrize("name", SHIPPED)
def test_the_header_says_for_which_card_what_it_trains_and_how_long(name: str) -> None:
    preset = find_preset(name)
    for line in (preset.title, preset.card, preset.trains, preset.time, preset.vram, preset.description):
        assert len(line) > 10
    for figure in (preset.time, preset.vram):
        assert re.search(r"\((estimate, not measured|measured[^)]*)\)$", figure), "say whether it was measured"


@pytest.mark.parametrize("name", ["robocats", "baroque"])
def test_the_24_gb_presets_carry_invoke_trainings_settings(name: str) -> None:
    ours = load_config(f"{name}_24gb")
    theirs = load_config(INVOKE_TRAINING / f"sdxl_finetune_{name}_1x24gb.yaml")
    assert settings_of(ours) == settings_of(theirs)
    assert len(ours.validation_prompts) == 2
    assert set(ours.validation_prompts).isdisjoint(theirs.validation_prompts)


def test_the_small_card_keeps_as_little_as_full_fine_tuning_can() -> None:
    config = load_config("small_card_12gb")
    assert isinstance(config.optimizer, AdafactorConfig)
    assert (config.weight_dtype, config.mixed_precision) == ("bfloat16", "no")
    assert (config.train_batch_size, config.gradient_accumulation_steps) == (1, 4)
    assert config.gradient_checkpointing
    assert config.cache_text_encoder_outputs
    assert config.cache_vae_outputs


def test_the_big_card_trains_float32_weights_and_averages_them() -> None:
    config = load_config("big_card_80gb")
    assert config.optimizer == AdamWConfig(learning_rate=1e-5, use_8bit=False)
    assert (config.weight_dtype, config.mixed_precision) == ("float32", "bf16")
    assert config.ema_decay == 0.999
    assert config.train_batch_size > load_config("robocats_24gb").train_batch_size


def test_the_users_presets_are_listed_and_stand_for_ours_of_the_same_name(tmp_path: Path) -> None:
    folder = tmp_path / "tuitrain" / "presets"
    folder.mkdir(parents=True)
    text = config_to_yaml(load_config("demo", ["seed=7"]))
    (folder / "demo.yaml").write_text(f"# title: My demo\n#\n# Two\n# lines.\n{text}", encoding="utf-8")
    (folder / "plain.yaml").write_text(text, encoding="utf-8")
    (folder / ".tmp-0123abcd-plain.yaml").write_text(text[:9], encoding="utf-8")  # a save that was killed
    assert [preset.name for preset in list_presets()] == sorted([*SHIPPED, "plain"])
    assert find_preset("demo") == Preset(
        name="demo",
        path=folder / "demo.yaml",
        title="My demo",
        card="",
        trains="",
        time="",
        vram="",
        description="Two\nlines.",
    )
    assert find_preset("plain").title == "plain"
    assert load_config("demo").seed == 7


def test_a_damaged_preset_of_the_user_does_not_hide_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "tuitrain" / "presets"
    folder.mkdir(parents=True)
    (folder / "binary.yaml").write_bytes(b"# title: \xff\x1b[2J\n\x00")
    (folder / "folder.yaml").mkdir()
    (folder / "gone.yaml").symlink_to(folder / "nowhere")
    assert [preset.name for preset in list_presets()] == sorted([*SHIPPED, "binary"])
    assert find_preset("binary").title.isprintable()


def test_a_misspelt_preset_is_recognised() -> None:
    with pytest.raises(ConfigError) as caught:
        find_preset("robocats")
    assert str(caught.value) == "there is no preset named robocats (did you mean robocats_24gb?)"
