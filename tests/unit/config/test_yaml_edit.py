"""Settings changed in a text that people wrote: what is around them stays, and the text says the new values."""

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuitrain.config.presets import shipped_presets_dir
from tuitrain.config.yaml_edit import update_yaml
from tuitrain.config.yaml_text import read_yaml

TEXT = """\
# head
a: 1  # one

# about the group
group:
  b: two words # two
  # before c
  c:
    - x
    - y
  # after c
d: [1, 2]
e: |
  block
  text
f: 'quoted'
"""


def updated(changes: dict[str, Any], text: str = TEXT) -> str:
    """TEXT with dotted keys set, or with `...` removed."""
    values = copy.deepcopy(read_yaml(text, name="").values)
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is ...:
            del node[last]
        else:
            node[last] = value
    result = update_yaml(text, values)
    assert read_yaml(result, name="").values == values
    return result


@pytest.mark.parametrize(
    ("changes", "old", "new"),
    [
        ({"a": 2}, "a: 1  # one", "a: 2  # one"),
        ({"a": "2e-5"}, "a: 1  # one", "a: 2e-5  # one"),
        ({"a": None}, "a: 1  # one", "a: null  # one"),
        ({"a": "x: y # z"}, "a: 1  # one", "a: 'x: y # z'  # one"),
        ({"group.b": "one"}, "b: two words # two", "b: one # two"),
        ({"group.c": ["x"]}, "  c:\n    - x\n    - y\n", "  c:\n    - x\n"),
        ({"group.b": ...}, "  b: two words # two\n", ""),
        ({"group.n": True}, "    - y\n", "    - y\n  n: true\n"),
        ({"d": [3, 4]}, "d: [1, 2]", "d: [3, 4]"),
        ({"d": 5}, "d: [1, 2]", "d: 5"),
        ({"e": "now"}, "e: |\n  block\n  text\n", "e: now\n"),
        ({"f": "quoted too"}, "f: 'quoted'", "f: quoted too"),
        ({"g": {"h": 1}}, "f: 'quoted'\n", "f: 'quoted'\ng:\n  h: 1\n"),
        ({"group": ...}, "", None),
        ({"group": None}, "", None),
    ],
)
def test_only_the_entry_that_changes_is_written_anew(changes: dict[str, Any], old: str, new: str | None) -> None:
    result = updated(changes)
    if new is not None:
        assert result == TEXT.replace(old, new)
    for comment in ("# head", "# about the group"):
        assert comment in result


def test_the_same_values_leave_the_text_as_it_is() -> None:
    assert updated({}) == TEXT


def test_a_text_without_a_last_line_end_takes_another_entry() -> None:
    assert updated({"b": 2}, text="a: 1") == "a: 1\nb: 2\n"


def test_a_group_in_braces_is_written_out_when_it_changes() -> None:
    assert updated({"a.c": 3}, text="# head\na: {b: 1, c: 2}\nd: 1\n") == "# head\na:\n  b: 1\n  c: 3\nd: 1\n"


def test_a_key_that_stands_twice_still_does() -> None:
    assert updated({"b": 3}, text="a: 1\na: 2\nb: 2\n") == "a: 1\na: 2\nb: 3\n"


def test_true_in_the_place_of_one_is_a_change() -> None:
    assert updated({"a": True}, text="a: 1\n") == "a: true\n"


def test_an_empty_text_becomes_the_values_below_its_comments() -> None:
    assert update_yaml("# head\n", {"a": 1}) == "# head\na: 1\n"


_KEYS = st.sampled_from(["a", "b", "c c", "d:", "on", "1"])
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1000, 1000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=8),
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(_SCALARS, max_size=3), st.dictionaries(_KEYS, inner, max_size=4)),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(_KEYS, _TREES, max_size=4), st.dictionaries(_KEYS, _TREES, max_size=4))
def test_any_values_can_be_put_in_the_place_of_any_others(old: dict[str, Any], new: dict[str, Any]) -> None:
    text = update_yaml("# head\n", old)
    assert read_yaml(text, name="").values == old or not old
    result = update_yaml(text, new)
    assert (read_yaml(result, name="").values or {}) == new
    assert result.startswith("# head\n")


@pytest.mark.parametrize("path", sorted(shipped_presets_dir().glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_keeps_its_comments(path: Path) -> None:
    text = path.read_text()
    result = updated({"optimizer.learning_rate": "3e-6", "seed": 7, "validation_prompts": ["a"]}, text=text)
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            assert line in result
