"""A picture made small, as plain bytes that are drawn without any imaging library; knows no terminal."""

from dataclasses import dataclass
from pathlib import Path

from tuitrain.data.files import read_regular_file

MAX_MEGAPIXELS = 64.0
"""A larger picture is refused by its header: decoding one takes 3 bytes a pixel, and no sample is that large."""


@dataclass(frozen=True)
class Thumbnail:
    """Pixels of a small picture.

    Args:
        width: pixels.
        height: pixels.
        rgb: `3 * width * height` bytes, rows from the top, red, green, blue.
    """

    width: int
    height: int
    rgb: bytes


def fit(width: int, height: int, *, max_width: int, max_height: int) -> tuple[int, int]:
    """The largest size of the same proportions that fits, at least 1x1."""
    scale = min(max_width / width, max_height / height)
    return max(1, min(max_width, round(width * scale))), max(1, min(max_height, round(height * scale)))


def read_thumbnail(path: Path, max_width: int, max_height: int) -> Thumbnail:
    """The picture at `path` at the largest size of its proportions that fits into `max_width` x `max_height` pixels.

    Raises:
        DatasetError: the file is missing, huge, damaged or not a picture.
    """
    from PIL.Image import Resampling  # 80 ms with numpy behind it, which a screen without pictures does not pay

    from tuitrain.data.decode import decode_image

    data = read_regular_file(path)
    image = decode_image(data, background="white", name=path.name, max_megapixels=MAX_MEGAPIXELS).image
    size = fit(image.width, image.height, max_width=max_width, max_height=max_height)
    small = image.resize(size, Resampling.BICUBIC if size[0] > image.width else Resampling.LANCZOS)
    return Thumbnail(*size, small.tobytes())
