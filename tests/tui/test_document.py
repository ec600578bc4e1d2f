"""The config in the editor without a screen: values and problems, kinds and groups, undo, YAML and files."""

import time
from pathlib import Path

import pytest

from tuitrain.config.files import load_config
from tuitrain.config.presets import list_presets, user_presets_dir
from tuitrain.errors import ConfigError
from tuitrain.tui.document import MAX_UNDO, ConfigDocument, InTheWayError

LR = "optimizer.learning_rate"
MINIMAL = """\
# my notes
type: SDXL_FINETUNE
base_output_dir: out  # here
max_train_steps: 10
save_every_n_steps: 10
data_loader:
  type: IMAGE_CAPTION_SD_DATA_LOADER
  dataset:
    type: IMAGE_CAPTION_DIR_DATASET
    dataset_dir: pictures
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own(home: Path) -> ConfigDocument:
    (home / "my.yaml").write_text(MINIMAL)
    return ConfigDocument.open("my.yaml")


def line(document: ConfigDocument, path: str) -> str:
    field = document.field_at(path)
    assert field is not None
    return document.line_of(field)


def problem(document: ConfigDocument, path: str) -> str:
    field = document.field_at(path)
    assert field is not None
    found = document.problem_of(field)
    return "" if found is None else found.what


# What it says


def test_every_preset_opens_unchanged_and_ready() -> None:
    for preset in list_presets():
        document = ConfigDocument.open(preset.name)
        assert document.config == load_config(preset.name)
        assert (dict(document.changed), document.is_modified, document.path) == ({}, False, None)


def test_a_file_that_is_wrong_opens_with_its_problems(home: Path) -> None:
    (home / "my.yaml").write_text(MINIMAL + "train_batch_size: zero\nlerning_rate: 1\n")
    document = ConfigDocument.open("my.yaml")
    assert document.config is None
    assert line(document, "train_batch_size") == "zero"
    assert "must be a whole number at least 1" in problem(document, "train_batch_size")
    unknown = next(problem for problem in document.problems if problem.key == "lerning_rate")
    assert document.field_of(unknown) is None
    assert document.line_number(unknown.key) == 12


def test_a_file_that_is_not_yaml_does_not_open(home: Path) -> None:
    (home / "my.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError):
        ConfigDocument.open("my.yaml")


# Changes


def test_a_wrong_text_is_kept_with_its_reason_and_a_suggestion_that_can_be_taken(own: ConfigDocument) -> None:
    own.set(LR, "5")
    assert (own.config, line(own, LR)) == (None, "5")
    assert "is 5, it must be a number above 0 and at most 1" in problem(own, LR)
    own.accept(own.problems[0])
    assert line(own, LR) == "5e-05"
    assert own.config is not None
    assert own.config.optimizer.learning_rate == 5e-5


def test_what_differs_is_told_with_the_presets_value() -> None:
    document = ConfigDocument.open("robocats_24gb")
    document.set(LR, "0.00002")  # the preset's 2e-5 in other words
    assert dict(document.changed) == {}
    document.set(LR, "8e-5")
    document.set("validation_prompts", "one\ntwo")
    assert document.changed[LR] == "2e-5"
    assert document.changed["validation_prompts"].startswith("2: In the robocat style")
    document.reset(LR)
    document.reset("validation_prompts")
    assert dict(document.changed) == {}
    assert document.config == load_config("robocats_24gb")


def test_a_setting_that_was_not_set_is_reset_to_not_set(own: ConfigDocument) -> None:
    own.set("seed", "7")
    own.reset("seed")
    assert own.to_yaml() == MINIMAL


def test_a_section_is_reset_alone() -> None:
    document = ConfigDocument.open("robocats_24gb")
    for path, text in {LR: "1e-6", "optimizer.beta1": "0.8", "seed": "5"}.items():
        document.set(path, text)
    document.reset_section("optimizer")
    assert list(document.changed) == ["seed"]
    document.undo()
    assert len(document.changed) == 3


def test_a_list_of_texts_and_a_size_are_edited_as_text(own: ConfigDocument) -> None:
    own.set("validation_prompts", "a fox: red\n\nthe [bold]hen[/]\n")
    own.set("validate_every_n_steps", "5")
    own.set("data_loader.resolution", "[768, 1024]")
    assert own.config is not None
    assert own.config.validation_prompts == ("a fox: red", "the [bold]hen[/]")
    assert own.config.data_loader.resolution == (768, 1024)


def test_another_kind_takes_along_what_both_have_and_its_own_defaults() -> None:
    document = ConfigDocument.open("robocats_24gb")
    document.set("optimizer.optimizer_type", "Prodigy")
    assert document.config is not None
    assert document.config.optimizer.learning_rate == 1.0  # 2e-5 was AdamW's
    assert document.field_at("optimizer.use_8bit") is None
    document.set("optimizer.optimizer_type", "AdamW")
    assert dict(document.changed) == {}  # what the preset says of AdamW came back


def test_another_data_loader_keeps_the_cut_and_asks_for_what_it_needs() -> None:
    document = ConfigDocument.open("robocats_24gb")
    document.set("data_loader.type", "DREAMBOOTH_SD_DATA_LOADER")
    assert line(document, "data_loader.resolution") == "1024"
    assert {problem.key for problem in document.problems} == {
        "data_loader.instance_caption",
        "data_loader.instance_dataset.dataset_dir",
    }
    document.set("data_loader.instance_caption", "a photo of sks dog")
    document.set("data_loader.instance_dataset.dataset_dir", "dogs")
    assert document.config is not None
    document.reset("data_loader.type")
    assert document.config == load_config("robocats_24gb")


def test_another_dataset_needs_its_own_place() -> None:
    document = ConfigDocument.open("robocats_24gb")
    document.step("data_loader.dataset.type", is_up=True)
    assert [problem.key for problem in document.problems] == ["data_loader.dataset.dataset_dir"]


def test_a_group_is_turned_on_with_examples_and_off(own: ConfigDocument) -> None:
    group = "data_loader.aspect_ratio_buckets"
    own.step(group, is_up=True)
    assert line(own, f"{group}.target_resolution") == "1024"
    assert own.config is not None
    own.step(group, is_up=True)
    assert own.field_at(f"{group}.target_resolution") is None
    assert line(own, group) == "null"


def test_a_group_of_the_preset_comes_back_as_it_was() -> None:
    document = ConfigDocument.open("robocats_24gb")
    document.set("data_loader.aspect_ratio_buckets", "null")
    document.set("data_loader.aspect_ratio_buckets", "{}")
    assert dict(document.changed) == {}


def test_an_unknown_key_is_moved_to_where_it_was_meant(own: ConfigDocument) -> None:
    own.apply_yaml(MINIMAL + "learning_rate: 1e-6\n")
    own.accept(own.problems[0])
    assert own.config is not None
    assert own.config.optimizer.learning_rate == 1e-6


def test_a_wrong_entry_of_a_list_is_found_at_its_list(own: ConfigDocument) -> None:
    own.apply_yaml(MINIMAL + "validation_prompts: [a, 3]\nvalidate_every_n_steps: 1\n")
    assert "validation_prompts.1 is 3" in problem(own, "validation_prompts")
    assert own.line_number(own.problems[0].key) == 11


def test_two_settings_that_contradict_each_other_are_a_problem_of_one(own: ConfigDocument) -> None:
    own.set("max_train_epochs", "3")
    assert problem(own, "max_train_epochs").startswith("both max_train_steps (10) and max_train_epochs (3) are set")


# Undo


def test_every_change_is_undone_and_done_again_in_order(own: ConfigDocument) -> None:
    texts = [own.to_yaml()]
    for path, text in {LR: "1e-5", "seed": "1", "use_masks": "true", "max_train_steps": "x"}.items():
        own.set(path, text)
        texts.append(own.to_yaml())
    assert [own.undo() for _ in range(5)] == ["max_train_steps", "use_masks", "seed", LR, ""]
    assert own.to_yaml() == texts[0] == MINIMAL
    assert [own.redo() for _ in range(5)] == [LR, "seed", "use_masks", "max_train_steps", ""]
    assert own.to_yaml() == texts[-1]


def test_a_change_forgets_what_was_undone(own: ConfigDocument) -> None:
    own.set("seed", "1")
    own.undo()
    own.set("seed", "2")
    assert (own.redo(), own.num_undo) == ("", 1)


def test_what_is_typed_is_one_change_and_can_be_taken_back(own: ConfigDocument) -> None:
    for text in ("1", "12", "12x"):
        own.set("seed", text, is_typing=True)
    assert "12x" in problem(own, "seed")
    own.end_typing()
    assert own.num_undo == 1
    own.set("seed", "9", is_typing=True)
    own.end_typing(is_kept=False)
    assert line(own, "seed") == "12x"
    own.undo()
    assert own.to_yaml() == MINIMAL


def test_typing_the_same_again_is_no_change(own: ConfigDocument) -> None:
    own.set("max_train_steps", "1", is_typing=True)
    own.set("max_train_steps", "10", is_typing=True)
    own.end_typing()
    assert own.num_undo == 0


def test_undo_goes_back_five_hundred_changes(own: ConfigDocument) -> None:
    for seed in range(MAX_UNDO + 20):
        own.set("seed", str(seed))
    while own.undo():
        pass
    assert line(own, "seed") == "19"


# YAML


def test_yaml_that_does_not_parse_leaves_the_last_good(own: ConfigDocument) -> None:
    own.set("seed", "1")
    with pytest.raises(ConfigError) as caught:
        own.apply_yaml("type: SDXL_FINETUNE\na: [1\n")
    assert caught.value.problems[0].where.startswith("my.yaml:")
    assert line(own, "seed") == "1"


def test_a_line_of_the_yaml_belongs_to_a_setting(own: ConfigDocument) -> None:
    own.apply_yaml(MINIMAL + "validation_prompts:\n  - a\n  - b\nvalidate_every_n_steps: 1\n")
    fields = [own.field_in_line(number) for number in (1, 3, 6, 7, 9, 10, 13)]
    assert [field and field.path for field in fields] == [
        None, "base_output_dir", None, "data_loader.type", "data_loader.dataset.type",
        "data_loader.dataset.dataset_dir", "validation_prompts",
    ]  # fmt: skip


def test_comments_survive_changes_in_the_form(own: ConfigDocument) -> None:
    own.set("base_output_dir", "else: where")
    assert own.to_yaml() == MINIMAL.replace("base_output_dir: out  # here", "base_output_dir: 'else: where'  # here")


def test_a_change_with_its_check_takes_less_than_ten_milliseconds() -> None:
    document = ConfigDocument.open("robocats_24gb")
    seconds = []
    for index in range(20):
        started = time.perf_counter()
        document.set(LR, f"{index}x", is_typing=True)
        assert document.problems
        assert document.changed
        seconds.append(time.perf_counter() - started)
    assert sorted(seconds)[10] < 0.010


# Files


def test_a_file_is_saved_where_it_was_read(own: ConfigDocument, home: Path) -> None:
    own.set("seed", "3")
    assert own.is_modified
    own.save()
    assert not own.is_modified
    assert (home / "my.yaml").read_text() == own.to_yaml()
    own.undo()
    assert own.is_modified


def test_what_someone_else_changed_is_not_written_over(own: ConfigDocument, home: Path) -> None:
    own.set("seed", "3")
    (home / "my.yaml").write_text("theirs: 1\n")
    with pytest.raises(InTheWayError, match="was changed by someone else"):
        own.save()
    assert (home / "my.yaml").read_text() == "theirs: 1\n"
    own.save(may_replace=True)
    assert (home / "my.yaml").read_text() == own.to_yaml()


def test_a_shipped_preset_is_saved_as_a_file_that_remembers_it(home: Path) -> None:
    document = ConfigDocument.open("robocats_24gb")
    document.set(LR, "3e-6")
    document.save(home / "mine.yaml")
    assert document.path == home / "mine.yaml"
    again = ConfigDocument.open("mine.yaml")
    assert dict(again.changed) == {LR: "2e-5"}
    assert again.preset is not None
    assert "card" not in again.to_yaml().split("type:")[0]  # the preset's header speaks of the preset


def test_another_file_is_not_replaced_unasked(home: Path) -> None:
    (home / "mine.yaml").write_text("x: 1\n")
    document = ConfigDocument.open("robocats_24gb")
    with pytest.raises(InTheWayError, match="is there already"):
        document.save(home / "mine.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        document.save(home)
    with pytest.raises(ConfigError, match="cannot be written"):
        document.save(home / "nowhere" / "mine.yaml")


def test_a_saved_file_keeps_its_rights_and_its_link(own: ConfigDocument, home: Path) -> None:
    (home / "my.yaml").chmod(0o600)
    (home / "link.yaml").symlink_to("my.yaml")
    document = ConfigDocument.open("link.yaml")
    document.set("seed", "3")
    document.save()
    assert (home / "link.yaml").is_symlink()
    assert (home / "my.yaml").stat().st_mode & 0o777 == 0o600
    assert "seed: 3" in (home / "my.yaml").read_text()


def test_the_config_of_a_run_is_opened_and_never_saved_over(home: Path) -> None:
    run = home / "1700000000.5"
    run.mkdir()
    (run / "journal.jsonl").touch()
    (run / "config.yaml").write_text(MINIMAL)
    document = ConfigDocument.open(str(run / "config.yaml"))
    assert (document.name, document.path) == ("run 1700000000.5", None)


def test_a_preset_of_ones_own_keeps_what_the_first_said_of_the_card() -> None:
    document = ConfigDocument.open("robocats_24gb")
    document.set(LR, "3e-6")
    path = document.save_as_preset("my_cats")
    assert path == user_presets_dir() / "my_cats.yaml"
    preset = next(preset for preset in list_presets() if preset.name == "my_cats")
    assert (preset.title, preset.card) == ("my_cats", "one GPU with 24 GB (RTX 3090, RTX 4090, A5000)")
    assert load_config("my_cats") == document.config
    with pytest.raises(InTheWayError):
        document.save_as_preset("my_cats")
    with pytest.raises(ConfigError, match="cannot be the name of a preset"):
        document.save_as_preset("../x")


def test_a_preset_of_ones_own_is_saved_where_it_is() -> None:
    path = ConfigDocument.open("robocats_24gb").save_as_preset("my_cats")
    document = ConfigDocument.open("my_cats")
    document.set("seed", "9")
    assert document.save() == path
    assert "# title: my_cats" in path.read_text()
