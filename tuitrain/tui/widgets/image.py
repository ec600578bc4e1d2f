"""A picture in a terminal, two pixels a cell by half blocks; knows nothing of runs and steps.

`▀` shows the upper pixel as foreground, the lower as background. Bytes count over SSH: where both are equal a space
does, equal neighbours share one escape sequence, and a terminal with 256 or 16 colours gets no more.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from math import ceil
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, cast

from rich.color import Color, ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.strip import Strip
from textual.widget import Widget
from textual.worker import Worker, WorkerState

from tuitrain.data.thumbnails import Thumbnail, fit, read_thumbnail
from tuitrain.errors import TuitrainError
from tuitrain.tui.graphics import Graphics
from tuitrain.wording import escape_control

if TYPE_CHECKING:
    from textual.css.types import AlignHorizontal, AlignVertical

    from tuitrain.tui.app import TuitrainApp

Rgb = tuple[int, int, int]

_CACHE_BYTES = 4 << 20  # 300 thumbnails of 64x32 cells
_HALF_BLOCK = "▀"
_COLOR_SYSTEMS = {"256": ColorSystem.EIGHT_BIT, "standard": ColorSystem.STANDARD, "windows": ColorSystem.STANDARD}


def half_block_rows(thumbnail: Thumbnail, colors: ColorSystem) -> list[list[Segment]]:
    """The segments of each row of cells: `thumbnail.width` cells wide, half as many rows as pixels, rounded up."""
    pixels = _reduced_pixels(thumbnail.rgb, colors)
    width = thumbnail.width
    lines: list[list[Rgb | None]] = [list(pixels[start : start + width]) for start in range(0, len(pixels), width)]
    if len(lines) % 2:
        lines.append([None] * width)
    return [_row(upper, lower) for upper, lower in zip(lines[::2], lines[1::2], strict=True)]


def _row(upper: list[Rgb | None], lower: list[Rgb | None]) -> list[Segment]:
    segments = []
    for (top, bottom), run in groupby(zip(upper, lower, strict=True)):
        length = sum(1 for _ in run)
        if top == bottom:
            segments.append(Segment(" " * length, Style(bgcolor=_color(bottom))))
        else:
            segments.append(Segment(_HALF_BLOCK * length, Style(color=_color(top), bgcolor=_color(bottom))))
    return segments


def _color(pixel: Rgb | None) -> Color | None:
    return None if pixel is None else Color.from_rgb(*pixel)


def _reduced_pixels(rgb: bytes, colors: ColorSystem) -> list[Rgb]:
    pixels = list(zip(rgb[::3], rgb[1::3], rgb[2::3], strict=True))
    return pixels if colors == ColorSystem.TRUECOLOR else [_reduced(pixel, colors) for pixel in pixels]


@lru_cache(maxsize=1 << 15)
def _reduced(pixel: Rgb, colors: ColorSystem) -> Rgb:
    """The same colour for all pixels that a terminal with few colours shows alike, so that they are sent as one."""
    number = Color.from_rgb(*pixel).downgrade(colors).number
    return _representatives.setdefault((number, colors), pixel)


_representatives: dict[tuple[int | None, ColorSystem], Rgb] = {}


@dataclass(frozen=True)
class _Request:
    """A picture wanted in a size, in pixels."""

    path: Path
    max_width: int
    max_height: int


class _Thumbnails:
    """The thumbnails used last, up to a few megabytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[_Request, Thumbnail] = OrderedDict()

    def get(self, request: _Request) -> Thumbnail | None:
        """The thumbnail, if it is still kept."""
        if request in self._kept:
            self._kept.move_to_end(request)
        return self._kept.get(request)

    def put(self, request: _Request, thumbnail: Thumbnail) -> None:
        """Keep one, and let go of the ones not used for longest."""
        if request not in self._kept:
            self._kept[request] = thumbnail
            self._num_bytes += len(thumbnail.rgb)
        while self._num_bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._num_bytes -= len(dropped.rgb)


_thumbnails = _Thumbnails(_CACHE_BYTES)


class ImageView(Widget):
    """A picture file, as large as the widget allows in its proportions; a sentence where there is none.

    The old picture stays until the new one is read, so that each change is one paint.
    """

    DEFAULT_CSS = """
    ImageView { width: 1fr; height: 1fr; color: $text-muted; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.path: Path | None = None
        self._sentence = ""
        self._thumbnail: Thumbnail | None = None
        self._strips: list[Strip] | None = None

    @property
    def _graphics(self) -> Graphics:
        return cast("TuitrainApp", self.app).graphics

    def show(self, path: Path | None, *, otherwise: str = "") -> None:
        """Show the file at `path`.

        Args:
            otherwise: what to say when there is no `path`.
        """
        if path != self.path or (path is None and otherwise != self._sentence):
            self.path = path
            if path is None:
                self._draw(None, otherwise)
            else:
                self._load()

    def on_resize(self, _event: events.Resize) -> None:
        self._strips = None
        self._load()

    def _load(self) -> None:
        """Draw the picture of the size there is, at once if it is known, else when a thread has read it."""
        if self.path is None or not self.size:
            return
        if self._graphics.mode == "off":
            self._draw(None, f"pictures are off, see {self.path}")
            return
        if not self._shows_colors:
            self._draw(None, "no pictures without colours: unset NO_COLOR, or choose another theme")
            return
        request = _Request(self.path, self.size.width, 2 * self.size.height)
        thumbnail = _thumbnails.get(request)
        if thumbnail is not None:
            self._draw(thumbnail, "")
            return
        read = partial(_read, request)
        self.run_worker(read, name="read picture", thread=True, exclusive=True, exit_on_error=False)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        event.stop()
        if event.state != WorkerState.SUCCESS:
            return
        request, outcome = cast("tuple[_Request, Thumbnail | str]", event.worker.result)
        if isinstance(outcome, Thumbnail):
            _thumbnails.put(request, outcome)
        if request != _Request(self.path or Path(), self.size.width, 2 * self.size.height):
            return  # another picture is wanted by now
        if isinstance(outcome, Thumbnail):
            self._draw(outcome, "")
        else:
            self._draw(None, outcome)

    def _draw(self, thumbnail: Thumbnail | None, sentence: str) -> None:
        self._thumbnail, self._sentence = thumbnail, sentence
        self._strips = None
        if self._graphics.widget is not None:
            self._draw_pixels(thumbnail)
        self.refresh()

    def _draw_pixels(self, thumbnail: Thumbnail | None) -> None:
        """Let a widget of textual-image draw the file that `thumbnail` was made of, in its proportions."""
        self.remove_children()
        if thumbnail is None or self._graphics.widget is None:
            return
        cell_width, cell_height = self._graphics.cell_size
        width, height = fit(
            thumbnail.width,
            thumbnail.height,
            max_width=self.size.width * cell_width,
            max_height=self.size.height * cell_height,
        )
        picture = self._graphics.widget(str(self.path))
        picture.styles.width = ceil(width / cell_width)
        picture.styles.height = ceil(height / cell_height)
        self.mount(picture)

    @property
    def depth_in_words(self) -> str:
        """How good a picture the terminal gets."""
        if self._graphics.mode != "half":
            return {"off": "pictures are off", "kitty": "kitty graphics", "sixel": "sixel"}[self._graphics.mode]
        names = {"256": "256 colours", "standard": "16 colours", "windows": "16 colours", None: "no colours"}
        depth = names.get(self.app.console.color_system, "true colour")
        return f"half blocks, {'greys' if self.app.no_color else depth}"

    @property
    def _shows_colors(self) -> bool:
        return not (self.app.no_color and self.app.native_ansi_color) and self.app.console.color_system is not None

    def render_line(self, y: int) -> Strip:
        if self._strips is None:
            self._strips = self._render_strips()
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width, self.rich_style)

    def _render_strips(self) -> list[Strip]:
        """All lines of the widget, aligned as its style `content-align` says."""
        if self._thumbnail is None or self._graphics.widget is not None:
            rows = [
                [Segment(line, self.rich_style)]
                for line in wrap(escape_control(self._sentence), max(self.size.width, 1))[: self.size.height]
            ]
        else:
            colors = _COLOR_SYSTEMS.get(self.app.console.color_system or "", ColorSystem.TRUECOLOR)
            rows = half_block_rows(self._thumbnail, colors)
        strips = [Strip(row) for row in rows]
        return list(
            Strip.align(
                strips,
                self.rich_style,
                self.size.width,
                self.size.height,
                cast("AlignHorizontal", self.styles.content_align_horizontal),
                cast("AlignVertical", self.styles.content_align_vertical),
            )
        )


def _read(request: _Request) -> tuple[_Request, Thumbnail | str]:
    """The thumbnail, or the reason why there is none; in a thread."""
    try:
        return request, read_thumbnail(request.path, request.max_width, request.max_height)
    except TuitrainError as error:
        return request, str(error)
