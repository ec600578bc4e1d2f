"""The words of the mini SDXL: caption frames, and both tokenizers as CLIP's files; knows nothing of tensors."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tuitrain.demo.draw import COLOURS, SHAPES

# Words that come before or after a base caption and change nothing, so that the base stays obedient when a
# fine-tuning caption brings a word it has never seen. The demo's trigger is not among them.
FRAMES = (
    "a picture of {}", "a drawing of {}", "a photo of {}", "a painting of {}", "a sketch of {}", "a poster of {}",
    "a sticker of {}", "a print of {}", "a cartoon of {}", "an image of {}", "an icon of {}", "a stamp of {}",
    "{} , simple", "{} , flat", "{} , high quality", "{} , small", "{} , in colour", "{} , studio light",
)  # fmt: skip
OTHER_WORDS = (
    "woodcut style in the with and at by for from this that it is cat dog bird tree car gnome garden forest "
    "photograph portrait close up old new big tiny dark bright soft hard wood stone paper ink line lines hatching "
    "halftone outline engraving watercolour mosaic pastel oil art artist best quality detailed blurry low robot "
    "baroque man woman face background foreground grass sky sun water bruce toy statue hat beard"
)


def train_bpe(words: Sequence[str], num_merges: int) -> list[tuple[str, str]]:
    """Byte-pair merges of ASCII words, the most frequent pair first, ties by spelling; repeated words count again."""
    spellings = Counter((*word[:-1], word[-1] + "</w>") for word in words)
    merges: list[tuple[str, str]] = []
    for _ in range(num_merges):
        pairs: Counter[tuple[str, str]] = Counter()
        for spelling, count in spellings.items():
            for pair in pairwise(spelling):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged_spellings: Counter[tuple[str, ...]] = Counter()
        for spelling, count in spellings.items():
            merged: list[str] = []
            for symbol in spelling:
                if merged and (merged[-1], symbol) == best:
                    merged[-1] += symbol
                else:
                    merged.append(symbol)
            merged_spellings[tuple(merged)] += count
        spellings = merged_spellings
    return merges


def write_tokenizers(folder: Path) -> int:
    """Write `tokenizer` and `tokenizer_2` in CLIP's file format and return the size of their common vocabulary.

    Ids run as CLIP's: 256 bytes ("!" is 0), the same ending a word, merges, start, end (the highest).
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    corpus = " ".join([*COLOURS, *SHAPES, *FRAMES, OTHER_WORDS, "a an on background"])
    words = [word for word in corpus.split() if word.isalpha()]
    merges = train_bpe(words, num_merges=1000)
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    for name, pad_token in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "pad_token": pad_token,
        }
        special = {key: settings[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
        vocabulary = {token: i for i, token in enumerate(tokens)}
        (target / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        (target / "merges.txt").write_text(
            "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges), encoding="utf-8"
        )
        (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (target / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
    return len(tokens)
