"""Bytes of a picture or mask to upright 8-bit pixels, or the reason why not; knows nothing of files or captions."""

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageColor, ImageFile, UnidentifiedImageError

from tuitrain.errors import DatasetError, printable

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF")
"""What Pillow may recognise: a list, because some of its other readers start programs (EPS) or are seldom tested."""

MAX_ASPECT_RATIO = 100.0
"""A strip beyond this is refused: covering a 1024x1024 bucket with it would take more than 100 megapixels."""

# What Pillow's readers raise, or let through, on damaged files; it promises no list.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    SyntaxError,
    ArithmeticError,
    LookupError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)
"""Orientations that swap width and height."""


@dataclass(frozen=True)
class DecodedImage:
    """An RGB picture, and what a user should know about it."""

    image: Image.Image
    notes: tuple[str, ...] = ()


def decode_image(data: bytes, *, background: str, name: str, max_megapixels: float | None = None) -> DecodedImage:
    """The whole picture in `data`: first frame, upright, 8-bit RGB, laid over `background` where it is transparent.

    Args:
        background: `#rrggbb` or a CSS colour name.
        name: for the error.
        max_megapixels: larger pictures are refused by their header, before their pixels take memory; None = no limit
            of ours (a file that was scanned already).

    Raises:
        DatasetError: it is not a picture, is damaged, or its pixels have no defined colour.
    """
    backdrop = ImageColor.getrgb(background)
    try:
        image, notes = _decode(data, max_megapixels)
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            return _composite(image, backdrop, notes)
        return DecodedImage(image if image.mode == "RGB" else image.convert("RGB"), tuple(notes))
    except DatasetError as error:
        raise DatasetError(error.problems[0].what, hint=error.problems[0].hint, where=name) from error
    except _DECODER_ERRORS as error:
        raise DatasetError(_reason(error), where=name) from error


def peek_size_hw(file: BinaryIO, *, name: str) -> tuple[int, int]:
    """(height, width) of the picture in `file` as a viewer shows it, by its header alone.

    Raises:
        DatasetError: it is not a picture.
    """
    try:
        image = Image.open(file, formats=FORMATS)
        is_turned = image.getexif().get(_EXIF_ORIENTATION) in _LYING
    except _DECODER_ERRORS as error:
        raise DatasetError(_reason(error), where=name) from error
    return (image.width, image.height) if is_turned else (image.height, image.width)


def decode_mask(data: bytes, *, name: str, max_megapixels: float | None = None) -> Image.Image:
    """The mask in `data` as L: 0 = ignore, 255 = learn.

    Raises:
        DatasetError: it is not a picture, is damaged, or its pixels have no defined brightness.
    """
    try:
        image, _ = _decode(data, max_megapixels)
        return image if image.mode == "L" else image.convert("L")
    except DatasetError as error:
        raise DatasetError(error.problems[0].what, hint=error.problems[0].hint, where=name) from error
    except _DECODER_ERRORS as error:
        raise DatasetError(_reason(error), where=name) from error


def _decode(data: bytes, max_megapixels: float | None) -> tuple[Image.Image, list[str]]:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "Pillow would fill missing pixels with grey"
    if not data:
        raise DatasetError("it is empty")
    image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
    _check_size(image.size, max_megapixels)
    notes = []
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a phone's JPEG with a second view
        notes.append("it has several frames, the first is used")
    if image.format == "PNG" and b"IEND" not in data:
        notes.append("its end mark is missing, it may have been cut; all its pixels are there")
    image.load()
    if image.mode.startswith("I;16"):
        image = _scale_16_bit(image)
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise DatasetError(f"its pixels are {kind}, for which no white is defined", hint="convert it to 8 or 16 bits")
    return _turn_upright(image, notes), notes


def _turn_upright(image: Image.Image, notes: list[str]) -> Image.Image:
    """After load(), because a TIFF turns itself there and reports upright from then on."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except _DECODER_ERRORS:
        notes.append("its EXIF block is damaged, it is taken to be upright")
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _check_size(size: tuple[int, int], max_megapixels: float | None) -> None:
    width, height = size
    megapixels = width * height / 1e6
    if max_megapixels is not None and megapixels > max_megapixels:
        raise DatasetError(
            f"{width}x{height} is {megapixels:.0f} megapixels, the limit is {max_megapixels:g}",
            hint="shrink it, or raise max_image_megapixels",
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise DatasetError(
            f"{width}x{height} is a strip, one side may be {MAX_ASPECT_RATIO:g} times the other", hint="crop it"
        )


def _scale_16_bit(image: Image.Image) -> Image.Image:
    """0..65535 to 0..255 by 257, rounded; Pillow's own conversion clips at 255, which is white almost everywhere."""
    pixels = np.asarray(image).astype(np.uint32)
    pixels += 128  # in place: 64 megapixels are 256 MB
    pixels //= 257
    scaled = Image.fromarray(pixels.astype(np.uint8))
    scaled.info = image.info
    if isinstance(transparent := image.info.get("transparency"), int):
        scaled.info["transparency"] = (transparent + 128) // 257
    return scaled


def _composite(image: Image.Image, backdrop: tuple[int, ...], notes: list[str]) -> DecodedImage:
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (0, 0):
        notes = [*notes, "it is transparent everywhere, so it is plain background"]
    canvas = Image.new("RGB", rgba.size, backdrop[:3])
    canvas.paste(rgba, mask=alpha)
    return DecodedImage(canvas, tuple(notes))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is not a picture, or too damaged to be recognised ({', '.join(FORMATS)} can be)"
    return f"it cannot be decoded: {printable(error) or type(error).__name__}"
