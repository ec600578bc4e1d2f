"""The mini SDXL's tokenizers: CLIP's rules with a vocabulary of our captions."""

import json
from pathlib import Path

import pytest

from tuitrain.demo.create import create_demo
from tuitrain.demo.draw import COLOURS, SHAPES
from tuitrain.demo.vocabulary import train_bpe, write_tokenizers

BASE = Path(create_demo.__code__.co_filename).parent / "base"


def test_the_most_frequent_pair_is_merged_first_and_ties_go_by_spelling() -> None:
    # Pairs: (a, b) twice and (b, c</w>) twice tie; spelling decides for (a, b). Then (ab, c</w>).
    assert train_bpe(["abc", "abc", "xy"], num_merges=9) == [("a", "b"), ("ab", "c</w>"), ("x", "y</w>")]


def test_the_shipped_vocabulary_is_what_the_script_writes(tmp_path: Path) -> None:
    write_tokenizers(tmp_path)

    for name in ("tokenizer", "tokenizer_2"):
        for file_name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
            written = (tmp_path / name / file_name).read_text(encoding="utf-8")
            assert written == (BASE / name / file_name).read_text(encoding="utf-8"), f"{name}/{file_name}"


@pytest.mark.parametrize(("name", "pad_is"), [("tokenizer", "end"), ("tokenizer_2", "!")])
def test_ids_are_laid_out_as_clip_lays_them_out(name: str, pad_is: str) -> None:
    from transformers import CLIPTokenizer  # torch and its family: 5 s that the other tests do not pay

    tokenizer = CLIPTokenizer.from_pretrained(BASE / name)
    size = len(json.loads((BASE / name / "vocab.json").read_text(encoding="utf-8")))

    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (size - 2, size - 1)
    assert tokenizer.pad_token_id == (size - 1 if pad_is == "end" else 0)
    ids = tokenizer("a RED fish", padding="max_length", truncation=True).input_ids
    assert len(ids) == 77
    tokens = tokenizer.convert_ids_to_tokens(ids[:5])
    assert tokens == ["<|startoftext|>", "a</w>", "red</w>", "fish</w>", "<|endoftext|>"]
    assert set(ids[5:]) == {tokenizer.pad_token_id}
    for word in [*COLOURS, *SHAPES, "background", "woodcut"]:
        assert len(tokenizer(word).input_ids) == 3, word
