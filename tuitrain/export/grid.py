"""Draws pictures side by side with labels; knows no model and no file."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from PIL import Image, ImageDraw, ImageFont

from tuitrain.errors import printable

_MIN_CELL, _MAX_CELL = 256, 512  # of a picture's longer side, so that labels are readable and the file is not huge
_FONT_SIZE = 18
_LINE = 26  # from one line of text to the next
_GAP = 8
_MARGIN = 16
_PROMPT_LINES = 2
_MAX_CHARACTERS = 1000  # of a text that is measured: more than fits into any line
_BACKGROUND, _INK, _FAINT_INK = "#ffffff", "#1a1a1a", "#6b6b6b"
_ELLIPSIS = "…"


@dataclass(frozen=True)
class GridPrompt:
    """What was drawn of one prompt.

    Args:
        text: over the rows.
        rows: of pictures, one for each column, all of one size.
    """

    text: str
    rows: Sequence[Sequence[Image.Image]]


def draw_grid(columns: Sequence[str], prompts: Sequence[GridPrompt], *, footer: str) -> Image.Image:
    """All pictures of some prompts, a column for each model.

    Pictures are shrunk to at most 512 pixels, and small ones enlarged by a whole factor. Texts are other people's: they
    are cut to the room there is, and what could hide or reorder them is escaped.

    Args:
        columns: their labels.
        footer: a line at the bottom.
    """
    width, height = _cell_size(prompts[0].rows[0][0])
    font = ImageFont.load_default(_FONT_SIZE)
    inner_width = len(columns) * (width + _GAP) - _GAP
    texts = [_wrapped(prompt.text, inner_width, font) for prompt in prompts]
    num_rows = sum(len(prompt.rows) for prompt in prompts)
    num_lines = 2 + sum(map(len, texts))  # the columns' and the footer
    inner_height = num_lines * _LINE + num_rows * (height + _GAP) + len(prompts) * _GAP
    grid = Image.new("RGB", (inner_width + 2 * _MARGIN, inner_height + 2 * _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(grid)
    lefts = [_MARGIN + index * (width + _GAP) for index in range(len(columns))]
    for left, label in zip(lefts, columns, strict=True):
        text = _cut(printable(label), width, font)
        draw.text((left + width / 2, _MARGIN), text, font=font, fill=_INK, anchor="ma")
    y = _MARGIN + _LINE
    for prompt, lines in zip(prompts, texts, strict=True):
        y += _GAP
        for line in lines:
            draw.text((_MARGIN, y), line, font=font, fill=_FAINT_INK)
            y += _LINE
        for row in prompt.rows:
            for left, picture in zip(lefts, row, strict=True):
                is_enlarged = picture.width < width
                resampling = Image.Resampling.NEAREST if is_enlarged else Image.Resampling.LANCZOS
                grid.paste(picture.convert("RGB").resize((width, height), resampling), (left, y))
            y += height + _GAP
    draw.text((_MARGIN, y), _cut(printable(footer), inner_width, font), font=font, fill=_FAINT_INK)
    return grid


def _cell_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of a picture in the grid."""
    longer = max(picture.size)
    scale = _MAX_CELL / longer if longer > _MAX_CELL else ceil(_MIN_CELL / longer)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """`text` in as many lines as there may be, the last one cut; no line for no text."""
    rest = printable(text)[: _PROMPT_LINES * _MAX_CHARACTERS]
    lines: list[str] = []
    while rest and len(lines) < _PROMPT_LINES - 1:
        fitting = rest[: _num_fitting(rest, width, font)]
        if fitting != rest and " " in fitting:
            fitting = fitting[: fitting.rindex(" ")]
        lines.append(fitting)
        rest = rest[len(fitting) :].lstrip()
    return [*lines, _cut(rest, width, font)] if rest else lines


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """`text` with its end left out where it is wider than `width` pixels."""
    if _num_fitting(text, width, font) >= len(text):
        return text
    room = width - font.getlength(_ELLIPSIS)
    return text[: _num_fitting(text, room, font)].rstrip() + _ELLIPSIS


def _num_fitting(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """How many characters from the beginning fit into `width` pixels."""
    low, high = 0, min(len(text), _MAX_CHARACTERS)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low
