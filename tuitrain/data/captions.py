"""Captions as text: made safe for a tokenizer, prefixed, shuffled; knows nothing of pictures or tokens."""

import random
import re

MAX_CAPTION_BYTES = 16 * 1024
"""SDXL reads 77 tokens; ten megabytes would keep a tokenizer busy for 40 seconds."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SPECIAL_TOKEN = re.compile(r"<\|(startoftext|endoftext)\|>", re.IGNORECASE)


def clean_caption(text: str) -> tuple[str, list[str]]:
    """A caption that every tokenizer, file and screen accepts, and what had to be changed for it.

    Control characters go, lone surrogates become U+FFFD, CLIP's special tokens are spaced out so that they are plain
    words (as tokens they would end the prompt), anything beyond 16 kB is cut.
    """
    notes = []
    cleaned = _CONTROL.sub("", text)
    if cleaned != text:
        notes.append("control characters were removed from its caption")
    if _SURROGATE.search(cleaned):
        cleaned = _SURROGATE.sub("\ufffd", cleaned)
        notes.append("broken characters (lone surrogates) in its caption were replaced")
    if _SPECIAL_TOKEN.search(cleaned):
        cleaned = _SPECIAL_TOKEN.sub(r"<| \1 |>", cleaned)
        notes.append("a special token of the tokenizer in its caption was turned into plain words")
    encoded = cleaned.encode("utf-8")
    if len(encoded) > MAX_CAPTION_BYTES:
        cleaned = encoded[:MAX_CAPTION_BYTES].decode("utf-8", errors="ignore")
        notes.append(f"its caption of {len(encoded)} bytes was cut to {MAX_CAPTION_BYTES}")
    return cleaned.strip(), notes


def with_prefix(caption: str, prefix: str | None) -> str:
    """`prefix` and `caption` joined by one space; either alone where the other is empty."""
    return " ".join(part for part in (prefix, caption) if part)


def shuffle_caption(caption: str, keep_tokens: int, rng: random.Random) -> str:
    """`caption` with its comma-separated tags in an order drawn from `rng`.

    Args:
        keep_tokens: so many tags at the front stay where they are.
    """
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    kept, moved = tags[:keep_tokens], tags[keep_tokens:]
    rng.shuffle(moved)
    return ", ".join([*kept, *moved])
