"""Captions: what is changed before a tokenizer sees them, and how prefixes and shuffles join them."""

import random
from collections import Counter

import pytest

from tuitrain.data.captions import clean_caption, shuffle_caption, with_prefix


@pytest.mark.parametrize(
    "text",
    [
        "a cat",
        "Ein Bär, zwei Bären",
        "一只猫",
        "a 🐈‍⬛",
        "two\nlines\tand a tab",
        "<|notatoken|>",
        "50 % [b]bold[/b]",
        "",
    ],
)
def test_an_ordinary_caption_stays_as_it_is(text: str) -> None:
    assert clean_caption(text) == (text, [])


def test_space_around_a_caption_goes_without_a_note() -> None:
    assert clean_caption("  a cat\r\n") == ("a cat", [])


@pytest.mark.parametrize("code", [*range(9), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0)])
def test_every_control_character_is_removed(code: int) -> None:
    cleaned, [note] = clean_caption(f"a{chr(code)}b")
    assert cleaned == "ab"
    assert "control characters" in note


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|startoftext|>", "<|EndOfText|>"])
def test_a_special_token_becomes_plain_words(token: str) -> None:
    cleaned, [note] = clean_caption(f"a cat{token}")
    assert cleaned == f"a cat<| {token[2:-2]} |>"
    assert "special token" in note


def test_removing_characters_cannot_put_a_special_token_together() -> None:
    cleaned, _ = clean_caption("<|end<|endof\x00text|>oftext|>")
    assert "<|endoftext|>" not in cleaned


def test_a_lone_surrogate_is_replaced_so_that_utf_8_can_be_written() -> None:
    cleaned, [note] = clean_caption("a \ud83d cat \udc80")
    assert cleaned.encode("utf-8").decode("utf-8") == "a \ufffd cat \ufffd"
    assert "surrogates" in note


def test_a_long_caption_is_cut_at_16_kb_between_characters() -> None:
    cleaned, [note] = clean_caption("x" + "é" * 10_000)
    assert cleaned == "x" + "é" * 8191
    assert "20001 bytes was cut to 16384" in note


def test_cleaning_twice_changes_nothing_more() -> None:
    cleaned, _ = clean_caption("a\0 <|endoftext|> \ud800" + "y" * 20_000)
    assert clean_caption(cleaned) == (cleaned, [])


@pytest.mark.parametrize(
    ("caption", "prefix", "joined"),
    [
        ("a cat", "In style,", "In style, a cat"),
        ("a cat", None, "a cat"),
        ("a cat", "", "a cat"),
        ("", "In style,", "In style,"),
    ],
)
def test_a_prefix_is_joined_by_one_space(caption: str, prefix: str | None, joined: str) -> None:
    assert with_prefix(caption, prefix) == joined


def test_shuffling_keeps_the_first_tags_and_loses_none() -> None:
    caption = "one, two, three, four, five"
    shuffled = [shuffle_caption(caption, 2, random.Random(seed)) for seed in range(20)]
    assert all(text.startswith("one, two, ") for text in shuffled)
    assert {frozenset(text.split(", ")) for text in shuffled} == {frozenset(caption.split(", "))}
    assert len(set(shuffled)) > 1


def test_shuffling_depends_on_the_generator_alone() -> None:
    caption = "one, two, three, four, five"
    assert shuffle_caption(caption, 0, random.Random(7)) == shuffle_caption(caption, 0, random.Random(7))


def test_every_order_of_three_tags_is_equally_likely() -> None:
    rng = random.Random(0)
    counts = Counter(shuffle_caption("a, b, c", 0, rng) for _ in range(6000))
    assert len(counts) == 6
    assert all(abs(count - 1000) < 150 for count in counts.values())  # 5 standard deviations of sqrt(6000 * 5 / 36)


def test_a_caption_without_commas_is_not_shuffled() -> None:
    assert shuffle_caption("a cat on a mat", 0, random.Random(0)) == "a cat on a mat"
