"""How pictures reach the screen: half blocks of our own, a terminal's graphics through textual-image, or not at all.

Chosen before the app runs: textual-image asks the terminal what it can when it is imported, and once the app reads the
keys the answers would be taken for keys.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tuitrain.errors import ConfigError

if TYPE_CHECKING:
    from textual_image.widget import SixelImage, TGPImage

GRAPHICS = ("auto", "half", "kitty", "sixel", "off")
"""What a user may ask for."""

_KITTY_VARIABLES = ("KITTY_WINDOW_ID", "GHOSTTY_RESOURCES_DIR")


@dataclass(frozen=True)
class Graphics:
    """How pictures and frames are drawn.

    Args:
        mode: "half" for half blocks, "kitty" or "sixel" for pixels, "off" for none.
        widget: of textual-image, in the two modes with pixels.
        cell_size: pixels of a cell, width and height, in these modes.
        note: why it is not what was asked for; "" when it is.
        is_ascii: whether frames are drawn with ASCII, for fonts without lines and corners.
    """

    mode: Literal["half", "kitty", "sixel", "off"]
    widget: "type[SixelImage] | type[TGPImage] | None" = None
    cell_size: tuple[int, int] = (1, 2)
    note: str = ""
    is_ascii: bool = False


def choose_graphics(wanted: str, environment: Mapping[str, str] = os.environ) -> Graphics:
    """The graphics for `wanted`, one of GRAPHICS; to be called before the app runs.

    "auto" is kitty where the terminal is known to have it and textual-image is installed, else half blocks.

    Raises:
        ConfigError: `wanted` is none of them, or needs textual-image, which is not installed.
    """
    match wanted:
        case "off":
            return Graphics("off")
        case "half":
            return Graphics("half")
        case "kitty" | "sixel":
            if "TMUX" in environment:
                return Graphics("half", note=f"tmux keeps {wanted} pictures to itself, so these are half blocks")
            return _with_pixels(wanted)
        case "auto":
            has_kitty = any(name in environment for name in _KITTY_VARIABLES) and "TMUX" not in environment
            try:
                return _with_pixels("kitty") if has_kitty else Graphics("half")
            except ConfigError:
                return Graphics("half")
        case _:
            raise ConfigError(f"--images is {wanted}", hint=f"one of {', '.join(GRAPHICS)}")


def _with_pixels(mode: Literal["kitty", "sixel"]) -> Graphics:
    try:
        from textual_image._terminal import get_cell_size
        from textual_image.widget import SixelImage, TGPImage
    except ImportError:
        raise ConfigError(
            f"pictures by {mode} need textual-image, which is not installed",
            hint=f"{sys.executable} -m pip install 'tuitrain[images]', or --images half",
        ) from None
    return Graphics(mode, TGPImage if mode == "kitty" else SixelImage, get_cell_size())
