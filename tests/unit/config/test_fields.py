"""The flat list of fields: complete, described, and with the conditions under which each exists."""

from typing import Any

import pytest
from pydantic import BaseModel

from tuitrain.config.fields import (
    IS_SET,
    Bounds,
    Condition,
    Field,
    existing_fields,
    list_fields,
    render_config_docs,
    union_kinds,
)
from tuitrain.config.files import config_from_values
from tuitrain.config.schema import TrainConfig

CAPTIONS: dict[str, Any] = {
    "type": "SDXL_FINETUNE",
    "base_output_dir": "output",
    "max_train_steps": 10,
    "save_every_n_steps": 10,
    "data_loader": {
        "type": "IMAGE_CAPTION_SD_DATA_LOADER",
        "dataset": {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "a.jsonl"},
        "aspect_ratio_buckets": {"target_resolution": 64, "start_dim": 32, "end_dim": 64, "divisible_by": 32},
    },
}
DREAMBOOTH: dict[str, Any] = CAPTIONS | {
    "data_loader": {
        "type": "DREAMBOOTH_SD_DATA_LOADER",
        "instance_caption": "x",
        "instance_dataset": {"dataset_dir": "x"},
        "class_dataset": {"dataset_dir": "x"},
        "class_caption": "x",
    },
    "optimizer": {"optimizer_type": "Prodigy"},
}


def field_at(path: str, kind: str = "") -> Field:
    fields = [field for field in list_fields() if field.path == path]
    return next(field for field in fields if not kind or kind in field.when[-1].values)


def leaf_paths(model: BaseModel, prefix: str = "") -> set[str]:
    paths: set[str] = set()
    for name in type(model).model_fields:
        value = getattr(model, name)
        paths |= leaf_paths(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}"}
    return paths


@pytest.mark.parametrize("values", [CAPTIONS, DREAMBOOTH], ids=["captions", "dreambooth"])
def test_every_setting_of_a_config_is_a_field(values: dict[str, Any]) -> None:
    config = config_from_values(values)
    assert leaf_paths(config) - {field.path for field in list_fields()} == set()


def test_every_field_says_what_it_does_where_it_belongs_and_what_it_must_be() -> None:
    for field in list_fields():
        assert field.help.endswith((".", "?")), field.path
        assert field.section, field.path
        assert field.tier in ("basic", "advanced"), field.path
        assert field.rule, field.path


def test_no_field_is_listed_twice_under_the_same_conditions() -> None:
    keys = [(field.path, field.when) for field in list_fields()]
    assert len(keys) == len(set(keys))


def test_a_number_has_its_bounds_and_its_rule() -> None:
    field = field_at("max_image_megapixels")
    assert (field.type, field.default, field.bounds) == ("number", 64.0, Bounds(gt=0, le=1000))
    assert field.rule == "a number above 0 and at most 1000"
    assert (field.unit, field.nullable, field.required) == ("megapixels", False, False)


def test_a_nullable_whole_number_says_so() -> None:
    field = field_at("seed")
    assert field.nullable
    assert field.rule == "a whole number at least 0 and at most 4294967295, or null"


def test_a_choice_lists_its_texts() -> None:
    assert field_at("caption_dropout_mode").choices == ("zeros", "encoded", "mix")


@pytest.mark.parametrize(
    ("path", "type_"),
    [
        ("validation_prompts", "texts"),
        ("data_loader.resolution", "size"),
        ("validation_size", "size"),
        ("use_masks", "switch"),
        ("model", "name"),
        ("alpha_background", "text"),
        ("data_loader.aspect_ratio_buckets", "group"),
        ("data_loader.class_dataset", "group"),
    ],
)
def test_a_field_has_the_type_a_form_needs(path: str, type_: str) -> None:
    assert field_at(path).type == type_


def test_the_variants_of_a_union_share_paths_under_different_conditions() -> None:
    rates = {
        field.when[0].values[0]: field.default for field in list_fields() if field.path == "optimizer.learning_rate"
    }
    assert rates == {"AdamW": 1e-4, "Prodigy": 1.0, "Adafactor": 3e-4}


def test_what_all_variants_have_has_no_condition_and_what_two_have_names_both() -> None:
    assert field_at("data_loader.center_crop").when == ()
    assert field_at("data_loader.dataset.keep_in_memory").when[-1] == Condition(
        "data_loader.dataset.type", ("IMAGE_CAPTION_JSONL_DATASET", "IMAGE_CAPTION_DIR_DATASET")
    )


def test_the_kind_of_a_union_is_one_field_with_all_kinds() -> None:
    kind = field_at("optimizer.optimizer_type")
    assert (kind.choices, kind.default, kind.required) == (("AdamW", "Prodigy", "Adafactor"), "AdamW", False)
    assert field_at("data_loader.dataset.type").required
    assert union_kinds() == {"data_loader": "type", "data_loader.dataset": "type", "optimizer": "optimizer_type"}


def test_the_fields_of_a_group_that_may_be_null_need_it_to_be_set() -> None:
    assert field_at("data_loader.aspect_ratio_buckets.end_dim").when == (
        Condition("data_loader.aspect_ratio_buckets", (IS_SET,)),
    )


def test_the_docs_have_a_row_for_every_field() -> None:
    page = render_config_docs()
    for field in list_fields():
        assert f"`{field.path}`" in page
        assert field.help in page
    assert page.count("\n| ") == len(list_fields()) + len({field.section for field in list_fields()})


def test_no_row_of_the_docs_is_split_by_a_bar_in_its_text() -> None:
    rows = [line for line in render_config_docs().splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {5}


def test_top_level_keys_are_those_of_the_model() -> None:
    assert {field.path.split(".")[0] for field in list_fields()} == set(TrainConfig.model_fields)


@pytest.mark.parametrize("values", [CAPTIONS, DREAMBOOTH], ids=["captions", "dreambooth"])
def test_the_fields_that_exist_are_those_of_the_config(values: dict[str, Any]) -> None:
    existing = {field.path for field in existing_fields(values) if field.type != "group"}
    config = config_from_values(values)
    unset_groups = {"data_loader.aspect_ratio_buckets"}
    assert existing == leaf_paths(config) - unset_groups


def test_the_fields_of_a_group_exist_once_it_is_set() -> None:
    assert "data_loader.aspect_ratio_buckets.end_dim" in {field.path for field in existing_fields(CAPTIONS)}
    assert "data_loader.class_dataset.dataset_dir" not in {field.path for field in existing_fields(CAPTIONS)}


def test_a_wrong_kind_leaves_the_fields_that_all_kinds_have() -> None:
    existing = {field.path for field in existing_fields({"data_loader": {"type": ["x"]}, "optimizer": 3})}
    assert "data_loader.type" in existing
    assert "data_loader.dataset.type" not in existing
    assert "optimizer.beta1" in existing


def test_a_path_on_disk_says_of_what_kind_it_is() -> None:
    kinds = {path: field_at(path).path_kind for path in ("model", "cache_dir", "data_loader.dataset.jsonl_path")}
    assert kinds == {"model": "hub", "cache_dir": "folder", "data_loader.dataset.jsonl_path": "file"}
    assert field_at("data_loader.caption_prefix").path_kind == ""


def test_the_examples_of_needed_numbers_make_a_config_that_can_be_trained() -> None:
    needed = {field.name: field.example for field in list_fields() if field.required and field.type == "whole"}
    config_from_values(CAPTIONS | {"data_loader": {**CAPTIONS["data_loader"], "aspect_ratio_buckets": needed}})
