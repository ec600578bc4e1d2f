"""What one types for a field, what it means, and the next value up or down."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuitrain.config.field_text import is_same, next_value, parse_text, show_line, show_text
from tuitrain.config.fields import Field, list_fields


def field_at(path: str) -> Field:
    return next(field for field in list_fields() if field.path == path)


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("train_batch_size", "8", 8),
        ("train_batch_size", "010", 10),
        ("train_batch_size", "eight", "eight"),
        ("seed", "", None),
        ("seed", "null", None),
        ("optimizer.learning_rate", "2e-5", "2e-5"),
        ("optimizer.learning_rate", "0.5", 0.5),
        ("optimizer.learning_rate", "1: 2", {"1": 2}),
        ("optimizer.learning_rate", "[1", "[1"),
        ("use_masks", "on", True),
        ("use_masks", "maybe", "maybe"),
        ("mixed_precision", "no", "no"),
        ("prediction_type", "", None),
        ("data_loader.resolution", "[768, 1024]", [768, 1024]),
        ("data_loader.resolution", "768 x 1024", "768 x 1024"),
        ("model", "a: b # c", "a: b # c"),
        ("model", "null", "null"),
        ("data_loader.caption_prefix", "", None),
        ("data_loader.caption_prefix", '"null"', "null"),
        ("data_loader.caption_prefix", '"half', '"half'),
        ("validation_prompts", "a fox\n\n[two] foxes: one\n", ["a fox", "[two] foxes: one"]),
        ("validation_prompts", "[]", []),
        ("negative_validation_prompts", "", None),
        ("negative_validation_prompts", '""\nblurry', ["", "blurry"]),
    ],
)
def test_a_text_means_what_yaml_would_give(path: str, text: str, value: Any) -> None:
    assert parse_text(field_at(path), text) == value


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(_TEXTS)
def test_any_text_can_be_typed(value: str) -> None:
    for path in ("model", "data_loader.caption_prefix"):
        assert parse_text(field_at(path), show_text(field_at(path), value)) == value


@given(st.lists(_TEXTS, max_size=4))
def test_any_list_of_texts_can_be_typed(value: list[str]) -> None:
    for path in ("validation_prompts", "negative_validation_prompts"):
        assert parse_text(field_at(path), show_text(field_at(path), value)) == value


@given(st.one_of(st.none(), st.integers(-(10**6), 10**6), st.floats(allow_nan=False, allow_infinity=False)))
def test_any_number_can_be_typed(value: float | None) -> None:
    field = field_at("max_grad_norm")
    assert is_same(field, parse_text(field, show_text(field, value)), value)


@given(st.lists(_TEXTS, max_size=3))
def test_a_line_is_one_line_that_steers_no_terminal(value: list[str]) -> None:
    assert show_line(field_at("validation_prompts"), value).isprintable()
    assert show_line(field_at("model"), "".join(value)).isprintable()


@pytest.mark.parametrize(
    ("path", "one", "other", "same"),
    [
        ("optimizer.learning_rate", "2e-5", 0.00002, True),
        ("optimizer.learning_rate", "2e-5", 0.00003, False),
        ("train_batch_size", 4, 4.0, True),
        ("train_batch_size", 1, True, False),
        ("mixed_precision", "no", False, True),
        ("validation_prompts", ("a",), ["a"], True),
        ("use_masks", False, None, False),
        ("model", "1", 1, False),
    ],
)
def test_a_setting_is_the_same_however_it_is_written(path: str, one: Any, other: Any, same: bool) -> None:
    assert is_same(field_at(path), one, other) is same


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("optimizer.learning_rate", ["1e-4", 2e-4, 5e-4, 1e-3]),
        ("train_batch_size", [1, 2, 3, 4]),
        ("max_train_steps", [10, 20, 50, 100]),
        ("optimizer.beta2", [0.9, 0.95, 0.98, 0.99, 0.995]),
        ("optimizer.weight_decay", [0.0, 0.001, 0.002]),
        ("optimizer.beta2_decay", [-0.8, -0.7]),
        ("data_loader.aspect_ratio_buckets.end_dim", [1024, 1088]),
        ("max_image_megapixels", [500, 1000]),
        ("use_masks", [False, True, False]),
        ("zero_terminal_snr", [None, True, False, None]),
        ("loss_type", ["mse", "huber", "mse"]),
    ],
)
def test_numbers_and_choices_step_to_the_next_value(path: str, values: list[Any]) -> None:
    field = field_at(path)
    for below, above in pairwise(values):
        assert next_value(field, below, is_up=True) == above
        assert is_same(field, next_value(field, above, is_up=False), below)


def test_no_step_leaves_the_bounds() -> None:
    for field in list_fields():
        if field.type not in ("whole", "number"):
            continue
        for is_up in (True, False):
            value = next_value(field, None, is_up=is_up)
            for _ in range(60):
                value = next_value(field, value, is_up=is_up)
                assert value is None or field.bounds.admit(value), (field.path, value)


def test_a_text_has_no_next_value() -> None:
    assert next_value(field_at("model"), "a", is_up=True) == "a"
    assert next_value(field_at("data_loader.resolution"), [64, 64], is_up=True) == [64, 64]
