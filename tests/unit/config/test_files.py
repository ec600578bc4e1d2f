"""Config files: overrides, limits, what is written, and what a load may cost."""

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuitrain.config.files import config_from_values, config_hash, config_to_json, config_to_yaml, load_config
from tuitrain.config.schema import AdafactorConfig, AdamWConfig
from tuitrain.errors import ConfigError

VALUES: dict[str, Any] = {
    "type": "SDXL_FINETUNE",
    "base_output_dir": "output",
    "max_train_steps": 10,
    "save_every_n_steps": 10,
    "validate_every_n_steps": 5,
    "validation_prompts": ["a: cat", "1e-5", "no", "éü ☃", "two\nlines"],
    "data_loader": {
        "type": "IMAGE_CAPTION_SD_DATA_LOADER",
        "dataset": {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "a.jsonl"},
        "resolution": [768, 512],
        "aspect_ratio_buckets": {"target_resolution": 64, "start_dim": 32, "end_dim": 128, "divisible_by": 32},
    },
    "optimizer": {"optimizer_type": "AdamW", "learning_rate": "5e-5"},
    "mixed_precision": "no",
}


def messages_of(caught: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    return [str(problem) for problem in caught.value.problems]


# ----------------------------------------------------------------------------------------------------------- overrides


def test_overrides_are_yaml_values_at_dotted_keys() -> None:
    config = config_from_values(
        VALUES,
        [
            "optimizer.learning_rate=1e-6",
            "validation_prompts=[a, 'b: c']",
            "max_train_steps=",
            "max_train_epochs=3",
            "data_loader.caption_prefix=In the style of ink,",
            "validation_size=[64, 96]",
        ],
    )
    assert config.optimizer == AdamWConfig(learning_rate=1e-6)
    assert config.validation_prompts == ("a", "b: c")
    assert (config.max_train_steps, config.max_train_epochs) == (None, 3)
    assert config.data_loader.model_dump()["caption_prefix"] == "In the style of ink,"
    assert config.validation_hw == (64, 96)


def test_an_override_can_set_a_whole_group() -> None:
    config = config_from_values(VALUES, ["optimizer={optimizer_type: Adafactor, learning_rate: 1e-3}"])
    assert config.optimizer == AdafactorConfig(learning_rate=1e-3)


def test_a_later_override_wins() -> None:
    assert config_from_values(VALUES, ["seed=1", "seed=2"]).seed == 2


def test_the_values_given_are_not_changed_by_overrides() -> None:
    before = copy.deepcopy(VALUES)
    config_from_values(VALUES, ["optimizer.learning_rate=1e-6"])
    assert before == VALUES


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: seed is not of the form key=value (write for instance optimizer.learning_rate=1e-5)"),
        ("=3", "--set =3: =3 is not of the form key=value (write for instance optimizer.learning_rate=1e-5)"),
        (
            "a..b=3",
            "--set a..b=3: a..b=3 is not of the form key=value (write for instance optimizer.learning_rate=1e-5)",
        ),
        (
            "optimizer.learning_rat=1",
            "--set optimizer.learning_rat=1: optimizer.learning_rat is not a setting (did you mean learning_rate?)",
        ),
        (
            "optimzer.beta1=0.5",
            "--set optimzer.beta1=0.5: optimzer is not a setting (did you mean optimizer?)",
        ),
        (
            "base_output_dir.x=3",
            '--set base_output_dir.x=3: base_output_dir is "output", which has no x in it (set all of it: '
            "base_output_dir=...)",
        ),
        (
            "seed=fast",
            '--set seed=fast: seed is "fast", it must be a whole number at least 0 and at most 4294967295, or null '
            "(leave it out for the default, null)",
        ),
        (
            "seed=010",
            "--set seed=010: seed is 010, which YAML reads in base 2, 8 or 60 (write an ordinary number, or put it in "
            "quotes)",
        ),
        (
            "seed='3",
            "--set seed='3: not valid YAML: found unexpected end of stream while scanning a quoted scalar (is a "
            "closing quote or bracket missing?)",
        ),
        (
            "max_train_epochs=3",
            "--set max_train_epochs=3: both max_train_steps (10) and max_train_epochs (3) are set, exactly one of them "
            "must be (remove one, or set it to null: max_train_epochs: null)",
        ),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_values(VALUES, [override], where="run.yaml")
    assert messages_of(caught) == [message]


# --------------------------------------------------------------------------------------------------------------- files


def test_a_file_is_read_with_its_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("\ufeff" + config_to_yaml(config_from_values(VALUES)), encoding="utf-8")
    assert load_config(file) == config_from_values(VALUES)


def test_a_file_of_a_presets_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text(config_to_yaml(config_from_values(VALUES, ["seed=99"])), encoding="utf-8")
    assert load_config("demo").seed == 99


def test_a_folder_of_a_presets_name_does_not_hide_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert load_config("demo").model == "tuitrain-demo/base"


def _folder(path: Path) -> None:
    path.mkdir()


def _run_folder(path: Path) -> None:
    path.mkdir()
    (path / "config.yaml").touch()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _large(path: Path) -> None:
    path.write_text("# " + "x" * 10_000_000)


def _latin(path: Path) -> None:
    path.write_bytes("seed: 1\nmodel: é\n".encode("latin-1"))


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_folder, "run.yaml is a folder, a config is a YAML file (name the YAML file in it)"),
        (_run_folder, "run.yaml is a folder, a config is a YAML file (did you mean run.yaml/config.yaml?)"),
        (_pipe, "run.yaml: is not an ordinary file"),
        (_large, "run.yaml: the file has 9765 kB, a config has at most 256 (is this the right file?)"),
        (_latin, "run.yaml:2: the file is not UTF-8 text (save it as UTF-8)"),
        (_dangling, "run.yaml is neither a file nor the name of a preset"),
    ],
)
def test_what_is_no_text_file_is_refused(
    make: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("run.yaml"))
    with pytest.raises(ConfigError) as caught:
        load_config("run.yaml")
    assert messages_of(caught)[0].startswith(message)


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("robocats", "did you mean robocats_24gb?"),
        ("robocat_24gb.yaml", "did you mean robocats_24gb?"),
        ("./mien.yaml", "did you mean mine.yaml?"),
    ],
)
def test_a_misspelt_source_is_recognised(
    source: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").touch()
    with pytest.raises(ConfigError) as caught:
        load_config(source)
    assert caught.value.problems[0].hint == hint


@pytest.mark.parametrize(
    "source", ["", "a\0b", "x" * 5000, "/dev/null/x"], ids=["empty", "nul", "long", "beneath a file"]
)
def test_an_impossible_path_is_an_ordinary_error(source: str) -> None:
    with pytest.raises(ConfigError, match="neither a file nor the name of a preset"):
        load_config(source)


# -------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("write", [config_to_yaml, config_to_json])
def test_what_is_written_reads_back_to_an_equal_config(write: Any, tmp_path: Path) -> None:
    config = config_from_values(VALUES)
    file = tmp_path / "config"
    file.write_text(write(config), encoding="utf-8")
    assert load_config(file) == config


def test_the_json_has_every_setting_and_an_indent_of_two() -> None:
    text = config_to_json(config_from_values(VALUES))
    assert '\n  "seed": null,\n' in text
    assert json.loads(text)["optimizer"]["beta2"] == 0.999


def test_equal_configs_have_equal_hashes_however_written() -> None:
    config = config_from_values(VALUES)
    spelt_out = config_from_values(json.loads(config_to_json(config)))
    assert config_hash(spelt_out) == config_hash(config)
    assert len(config_hash(config)) == 64
    assert config_hash(config_from_values(VALUES, ["seed=1"])) != config_hash(config)


# ---------------------------------------------------------------------------------------------------------------- cost


def test_loading_needs_no_torch_numpy_or_pillow() -> None:
    code = (
        "import sys; from tuitrain.config.files import load_config; load_config('demo');"
        "print([name for name in ('torch', 'numpy', 'PIL', 'textual', 'rich', 'typer') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_loading_takes_milliseconds() -> None:
    load_config("robocats_24gb")
    start = time.process_time()
    for _ in range(10):
        load_config("robocats_24gb")
    assert (time.process_time() - start) / 10 < 0.05  # 2 ms where this was written


def test_of_thousands_of_problems_the_first_hundred_are_explained_and_the_rest_counted() -> None:
    values = {f"kay_{index}": index for index in range(2000)}
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        config_from_values({**VALUES, **values}, where="run.yaml")
    assert time.process_time() - start < 1  # 0.1 s where this was written
    messages = messages_of(caught)
    assert len(messages) == 101
    assert messages[-1] == "run.yaml: there are 1900 more problems (is this the right file?)"


# ----------------------------------------------------------------------------------------------------------- any input

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["AdamW", "Prodigy", "IMAGE_CAPTION_DIR_DATASET", "DREAMBOOTH_SD_DATA_LOADER", "1e-5", "1024x768"]
    )
)
KEYS = st.sampled_from(["type", "optimizer_type", "dataset", "dataset_dir", "resolution", "learning_rate"]) | st.text(
    max_size=8
)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
PATHS = st.sampled_from(
    [
        ("type",),
        ("seed",),
        ("data_loader",),
        ("data_loader", "type"),
        ("data_loader", "dataset"),
        ("data_loader", "dataset", "type"),
        ("data_loader", "resolution"),
        ("data_loader", "aspect_ratio_buckets"),
        ("data_loader", "aspect_ratio_buckets", "end_dim"),
        ("data_loader", "instance_dataset"),
        ("optimizer",),
        ("optimizer", "optimizer_type"),
        ("optimizer", "learning_rate"),
        ("optimizer", "lr"),
        ("optimiser",),
        ("validation_prompts",),
        ("negative_validation_prompts",),
        ("max_train_step",),
        ("mixed_precision",),
        ("alpha_background",),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(PATHS, TREES), min_size=1, max_size=4))
def test_any_values_give_a_config_or_a_config_error(changes: list[tuple[tuple[str, ...], Any]]) -> None:
    values = copy.deepcopy(VALUES)
    for path, value in changes:
        node: Any = values
        for key in path[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[path[-1]] = value
    try:
        config = config_from_values(values)
    except ConfigError as error:
        assert error.problems
        assert all(problem.what.isprintable() for problem in error.problems)
    else:
        assert config_from_values(json.loads(config_to_json(config))) == config
