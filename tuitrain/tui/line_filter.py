"""The last gate before the terminal: which characters may pass; knows nothing of what is drawn.

No cell holds one that a terminal obeys; where a font has no lines and corners, none holds these either.

Widgets escape the texts of others themselves (wording.escape_control). Textual passes ESC and C1 on as they come, so
one place that forgot would let a file name steer the terminal.
"""

import re

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

# C0, DEL, C1, line separators, bidirectional controls, zero-width and invisible signs that reorder, surrogates.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_CURSOR_MOVE = re.compile(r"\x1b\[\d+;\d+H")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


_IN_ASCII = str.maketrans(
    {
        **dict.fromkeys(map(chr, range(0x2500, 0x2580)), "+"),  # corners and crossings
        **dict.fromkeys("─┄┈╌╴╶", "-"),
        **dict.fromkeys("━┅┉╍═╸╺", "="),
        **dict.fromkeys("│┃┆┇┊┋╎╏║╵╷╹╻▏▕", "|"),
        "►": ">",
    }
)


class AsciiFilter(LineFilter):
    """Draws lines, frames and what stands in them with ASCII."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        del background
        return [Segment(segment.text.translate(_IN_ASCII), segment.style, segment.control) for segment in segments]


class ControlFilter(LineFilter):
    """Puts a replacement character, one cell wide, in the place of each.

    Args:
        lets_cursor_move: pass segments that do nothing but move the cursor, as sixel pictures of textual-image need.
    """

    def __init__(self, *, lets_cursor_move: bool = False) -> None:
        super().__init__()
        self._lets_cursor_move = lets_cursor_move

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        del background
        if not any(_OBEYED.search(segment.text) for segment in segments):
            return segments
        return [
            segment
            if segment.control or self._is_cursor_move(segment.text)
            else Segment(_OBEYED.sub(_REPLACEMENT, segment.text), segment.style)
            for segment in segments
        ]

    def _is_cursor_move(self, text: str) -> bool:
        return self._lets_cursor_move and _CURSOR_MOVE.fullmatch(text) is not None
