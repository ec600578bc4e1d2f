"""YAML within limits: what a hostile text costs, what each value is read as, and on which line it stands."""

import math
import time

import pytest
import yaml

from tuitrain.config.yaml_text import MAX_BYTES, read_yaml
from tuitrain.errors import ConfigError


def test_values_are_those_of_pyyaml() -> None:
    text = "a: 1\nb: 1.5\nc: yes\nd: ~\ne: [x, 1_000, 0x10]\nf: {g: 'no'}\nh: 5e-5\ni: 1.0e-5\nj: |\n  k\n  l\nm: -0\n"
    assert read_yaml(text, name="a.yaml").values == yaml.safe_load(text)


def test_keys_are_names_whatever_yaml_takes_them_for() -> None:
    assert read_yaml("on: 1\n8: 2\n~: 3\n<<: {a: 4}", name="a.yaml").values == {"on": 1, "8": 2, "~": 3, "<<": {"a": 4}}


def test_dates_stay_text() -> None:
    assert read_yaml("a: 2024-01-31", name="a.yaml").values == {"a": "2024-01-31"}


def test_non_finite_numbers_are_left_to_the_schema() -> None:
    values = read_yaml("a: .nan\nb: -.inf", name="a.yaml").values
    assert math.isnan(values["a"])
    assert values["b"] == -math.inf


def test_every_key_and_entry_has_its_line() -> None:
    document = read_yaml("a: 1\n\nb:\n  # note\n  c: [1,\n    2]\n", name="a.yaml")
    assert document.lines == {("a",): 1, ("b",): 3, ("b", "c"): 5, ("b", "c", 0): 5, ("b", "c", 1): 6}


def test_a_repeated_key_keeps_the_first_value_and_names_both_lines() -> None:
    document = read_yaml("a:\n  b: 1\n  c: 2\n  b: 3\n", name="a.yaml")
    assert document.values == {"a": {"b": 1, "c": 2}}
    assert [str(problem) for problem in document.problems] == [
        "a.yaml:4: a.b is set twice, first on line 2 (remove one)"
    ]


BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "a.yaml:1: &a is a YAML anchor or alias"),
        ("[" * 100_000, "a.yaml:1: the text is more than 16 levels deep"),
        ("{a: " * 60_000, "a.yaml:1: the text is more than 16 levels deep"),
        ("- " * 100_000, "a.yaml:1: the text is more than 16 levels deep"),
        ("".join(f"k{index}: 1\n" for index in range(20_000)), "a.yaml:5000: the text is more than 10000 values long"),
        ("#" * (MAX_BYTES + 1), "a.yaml: the text is longer than 256 kB"),
        ("a: !!python/object/apply:os.system [echo]", "a.yaml:1: tag:yaml.org,2002:python/object/apply:os.system is a"),
        ("a: !local x", "a.yaml:1: !local is a YAML tag"),
        ("a: 1\n--- \nb: 2", "a.yaml:2: a second document starts here"),
        ("a: b\n\x1b[2J", "a.yaml:2: the character \\x1b may not stand in a YAML file"),
        ('a: "\\ud800"', "a.yaml:1: not valid YAML"),
        ("a: [1, 2\nb: 3", "a.yaml:2: not valid YAML"),
        ("? [a, b]\n: 1", ""),
    ],
    ids=[
        "anchor bomb",
        "deep list",
        "deep mapping",
        "deep block",
        "many keys",
        "long text",
        "python tag",
        "local tag",
        "two documents",
        "escape",
        "surrogate",
        "open bracket",
        "key that is a list",
    ],
)
def test_a_hostile_text_costs_a_message_and_no_time(text: str, message: str) -> None:
    start = time.process_time()
    if message:
        with pytest.raises(ConfigError) as caught:
            read_yaml(text, name="a.yaml")
        assert str(caught.value.problems[0]).startswith(message)
    else:
        assert [problem.what for problem in read_yaml(text, name="a.yaml").problems] == [
            "a key is a list or a mapping, it must be a name"
        ]
    assert time.process_time() - start < 0.5


def test_a_syntax_error_names_the_line_and_the_remedy() -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml('a: 1\nb: "C:\\data"\n', name="a.yaml")
    problem = caught.value.problems[0]
    assert problem.where == "a.yaml:2"
    assert problem.hint == "use single quotes, or write each backslash twice"
