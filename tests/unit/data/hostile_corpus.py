"""Pictures that go wrong in some trainer, each with the verdict it must get here; all built on the spot."""

import os
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

RED, BLUE, WHITE, BLACK, GREY = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128)
Build = Callable[[Path], None]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Accepted:
    """The top left pixel as trained on (each channel within `tolerance`), the size, and what the note must say."""

    pixel: Colour
    size_hw: tuple[int, int] = (24, 32)
    note: str = ""
    tolerance: int = 0


@dataclass(frozen=True)
class Rejected:
    """What the reason must say."""

    reason: str


@dataclass(frozen=True)
class Case:
    """`build` writes the file at the path it is given."""

    name: str
    build: Build
    verdict: Accepted | Rejected


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def flat(colour: object = RED, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (32, 24), colour)  # type: ignore[arg-type]


def noise() -> Image.Image:
    """Compresses badly, so that half of the file is half of the pixels."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def red_corner() -> Image.Image:
    """White, 32x24, red in the top left quarter: no two orientations look alike."""
    image = flat(WHITE)
    image.paste(RED, (0, 0, 16, 12))
    return image


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, pixels: bytes = b"", *, bits: int = 8, colour_type: int = 2, extra: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _bytes(data: bytes) -> Build:
    return lambda path: path.write_bytes(data) and None


def _half(data: bytes) -> Build:
    return _bytes(data[: len(data) // 2])


def _frames(file_format: str) -> Build:
    return _bytes(
        encode(flat(RED), file_format, save_all=True, append_images=[flat(BLUE)], **_LOSSLESS.get(file_format, {}))
    )


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(encode(flat(), "PNG"))
        file.truncate(3 << 30)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:  # by a short name: the path of a socket has at most 107 bytes
            listener.bind(f"/proc/self/fd/{descriptor}/{path.name}")
        finally:
            os.close(descriptor)


def _linked_picture(path: Path) -> None:
    target = path.with_name("linked-target.png")
    target.write_bytes(encode(flat(), "PNG"))
    path.symlink_to(target.name)


def _flip_byte(data: bytes, index: int) -> bytes:
    return data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :]


def _rotten_jpeg() -> bytes:
    data = encode(flat(), "JPEG", quality=95)
    return _flip_byte(data, data.index(b"\xff\xdb") + 40)  # in a quantisation table: decodes, to other colours


def _deep_tiff() -> bytes:
    return encode(Image.fromarray(np.full((24, 32), 128 * 257, dtype=">u2")), "TIFF")


def _transparent_palette() -> bytes:
    image = flat(3, mode="P")
    image.putpalette([0] * 9 + list(RED) + [0] * 756)
    return encode(image, "PNG", transparency=3)


_LOSSLESS: dict[str, dict[str, object]] = {"WEBP": {"lossless": True}}
_NOT_A_PICTURE = Rejected("it is not a picture, or too damaged to be recognised")
_TRUNCATED = Rejected("it cannot be decoded: image file is truncated")
_SEVERAL = "it has several frames, the first is used"
_GREY_16 = b"".join(b"\0" + struct.pack(">32H", *[128 * 257] * 32) for _ in range(24))
_KEYED_16 = b"".join(b"\0" + struct.pack(">32H", *[0x8040] * 32) for _ in range(24))
_KEY_16 = png_chunk(b"tRNS", struct.pack(">H", 0x8040))
_RGB_16 = b"".join(b"\0" + struct.pack(">3H", 0xFFFF, 0, 128 * 257) * 32 for _ in range(24))
_TEXT_BOMB = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8_000_000)))

DAMAGED = [
    Case("empty.jpg", _bytes(b""), Rejected("it is empty")),
    Case("text.jpg", _bytes(b"this is not a picture\n"), _NOT_A_PICTURE),
    Case("page.jpg", _bytes(b"<!DOCTYPE html><title>404 Not Found</title>"), _NOT_A_PICTURE),
    Case("nothing-by-nothing.png", _bytes(png(0, 0)), _NOT_A_PICTURE),
    Case("half.jpg", _half(encode(noise(), "JPEG")), _TRUNCATED),
    Case("last-ten-bytes.jpg", _bytes(encode(noise(), "JPEG")[:-10]), _TRUNCATED),
    Case("half.png", _half(encode(noise(), "PNG")), _TRUNCATED),
    Case("half.webp", _half(encode(noise(), "WEBP")), Rejected("it cannot be decoded")),
    Case("half.gif", _half(encode(noise(), "GIF")), _TRUNCATED),
    Case("half.bmp", _half(encode(noise(), "BMP")), _TRUNCATED),
    Case("half.tif", _half(encode(noise(), "TIFF")), Rejected("it cannot be decoded")),
    Case("half.avif", _half(encode(noise(), "AVIF")), _NOT_A_PICTURE),
    Case("bad-crc.png", _bytes(_flip_byte(encode(noise(), "PNG"), -17)), Rejected("it cannot be decoded")),
    Case("bad-zlib.png", _bytes(png(32, 24).replace(b"x\x9c", b"x\x00")), Rejected("it cannot be decoded")),
    Case("text-bomb.png", _bytes(png(32, 24, bytes(97 * 24), extra=_TEXT_BOMB)), Rejected("too large")),
    Case("900-megapixels.png", _bytes(png(30_000, 30_000)), Rejected("decompression bomb")),
    Case("100-megapixels.png", _bytes(png(10_000, 10_000)), Rejected("10000x10000 is 100 megapixels, the limit is 64")),
    Case("strip.png", _bytes(png(2000, 1, bytes(6001))), Rejected("2000x1 is a strip")),
    Case("float.tif", _bytes(encode(flat(0.5, mode="F"), "TIFF")), Rejected("pixels are floating-point numbers")),
    Case("int32.tif", _bytes(encode(flat(70_000, mode="I"), "TIFF")), Rejected("pixels are 32-bit integers")),
    Case("postscript.jpg", _bytes(encode(flat(), "EPS")), _NOT_A_PICTURE),
    Case("document.png", _bytes(encode(flat(), "PDF")), _NOT_A_PICTURE),
    Case("pickle.png", _bytes(b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x02os\x94."), _NOT_A_PICTURE),
    Case("._resource-fork.jpg", _bytes(b"\0\x05\x16\x07\0\x02\0\0Mac OS X        "), _NOT_A_PICTURE),
]

NOT_FILES = [
    Case("pipe.jpg", os.mkfifo, Rejected("it is not an ordinary file")),
    Case("folder.jpg", Path.mkdir, Rejected("it is not an ordinary file")),
    Case("device.jpg", lambda path: path.symlink_to("/dev/zero"), Rejected("it is not an ordinary file")),
    Case("socket.jpg", _socket, Rejected("it cannot be read: No such device or address")),
    Case("broken-link.jpg", lambda path: path.symlink_to("nowhere.jpg"), Rejected("it cannot be read: No such file")),
    Case("link-loop.jpg", lambda path: path.symlink_to(path.name), Rejected("it cannot be read: Too many levels")),
    Case("absent.jpg", lambda path: None, Rejected("it cannot be read: No such file")),
    Case("sparse-3-gib.png", _sparse, Rejected("it has 3.0 GiB, files above 1 GiB are refused")),
]

_TURNED = {1: RED, 2: WHITE, 3: WHITE, 4: WHITE, 5: RED, 6: WHITE, 7: WHITE, 8: WHITE}

ORIENTED = [
    Case(
        f"orientation-{orientation}.png",
        _bytes(encode(red_corner(), "PNG", exif=oriented(orientation))),
        Accepted(pixel, (24, 32) if orientation < 5 else (32, 24)),
    )
    for orientation, pixel in _TURNED.items()
] + [
    Case(
        "orientation-6.jpg",
        _bytes(encode(red_corner(), "JPEG", exif=oriented(6), quality=95)),
        Accepted(WHITE, (32, 24), tolerance=3),
    ),
    Case("orientation-6.tif", _bytes(encode(red_corner(), "TIFF", exif=oriented(6))), Accepted(WHITE, (32, 24))),
    Case("orientation-9.png", _bytes(encode(red_corner(), "PNG", exif=oriented(9))), Accepted(RED)),
    Case(
        "cut-exif.png",
        _bytes(png(32, 24, bytes(97 * 24), extra=png_chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"))),
        Accepted(BLACK),
    ),
    Case(
        "no-exif.png",
        _bytes(png(32, 24, bytes(97 * 24), extra=png_chunk(b"eXIf", b"no EXIF at all"))),
        Accepted(BLACK, note="its EXIF block is damaged"),
    ),
]

UNUSUAL = [
    Case("png-named.jpg", _bytes(encode(flat(), "PNG")), Accepted(RED)),
    Case("linked.png", _linked_picture, Accepted(RED)),
    Case("one-pixel.png", _bytes(png(1, 1, b"\0\xff\0\0")), Accepted(RED, (1, 1))),
    Case("no-end-mark.png", _bytes(encode(flat(), "PNG")[:-12]), Accepted(RED, note="its end mark is missing")),
    Case("more-after-end.png", _bytes(encode(flat(), "PNG") + b"PK\x03\x04 an archive"), Accepted(RED)),
    Case("rotten.jpg", _bytes(_rotten_jpeg()), Accepted(RED, tolerance=255)),
    Case("cmyk.jpg", _bytes(encode(flat((0, 255, 255, 0), mode="CMYK"), "JPEG")), Accepted(RED, tolerance=3)),
    Case("lab.tif", _bytes(encode(flat((255, 128, 128), mode="LAB"), "TIFF")), Accepted(WHITE, tolerance=3)),
    Case("grey.png", _bytes(encode(flat(128, mode="L"), "PNG")), Accepted(GREY)),
    Case("bilevel.png", _bytes(encode(flat(1, mode="1"), "PNG")), Accepted(WHITE)),
    Case("grey-alpha.png", _bytes(encode(flat((0, 127), mode="LA"), "PNG")), Accepted(GREY)),
    Case("half-transparent.png", _bytes(encode(flat((0, 0, 0, 127), mode="RGBA"), "PNG")), Accepted(GREY)),
    Case(
        "hidden-red.png",
        _bytes(encode(flat((255, 0, 0, 0), mode="RGBA"), "PNG")),
        Accepted(WHITE, note="it is transparent everywhere"),
    ),
    Case("hidden-red-palette.png", _bytes(_transparent_palette()), Accepted(WHITE, note="transparent everywhere")),
    Case(
        "hidden-red-key.png",
        _bytes(encode(flat(), "PNG", transparency=RED)),
        Accepted(WHITE, note="transparent everywhere"),
    ),
    Case("grey-16-bit.png", _bytes(png(32, 24, _GREY_16, bits=16, colour_type=0)), Accepted(GREY)),
    Case(
        "hidden-grey-16-bit.png",
        _bytes(png(32, 24, _KEYED_16, bits=16, colour_type=0, extra=_KEY_16)),
        Accepted(WHITE, note="transparent everywhere"),
    ),
    Case("grey-16-bit.tif", _bytes(_deep_tiff()), Accepted(GREY)),
    Case("rgb-16-bit.png", _bytes(png(32, 24, _RGB_16, bits=16)), Accepted((255, 0, 128))),
    Case("animated.gif", _frames("GIF"), Accepted(RED, note=_SEVERAL)),
    Case("animated.webp", _frames("WEBP"), Accepted(RED, note=_SEVERAL)),
    Case("animated.png", _frames("PNG"), Accepted(RED, note=_SEVERAL)),
    Case("pages.tif", _frames("TIFF"), Accepted(RED, note=_SEVERAL)),
    Case("two-views.jpg", _frames("MPO"), Accepted(RED, tolerance=3)),
    Case("still.avif", _bytes(encode(flat(), "AVIF", quality=100)), Accepted(RED, tolerance=6)),
    Case("a[b][c[@click=app.quit].png", _bytes(encode(flat(), "PNG")), Accepted(RED)),
    Case("escape\x1b]52;c;UE9D\x07\n\u202e.png", _bytes(encode(flat(), "PNG")), Accepted(RED)),
]

CASES = [*DAMAGED, *NOT_FILES, *ORIENTED, *UNUSUAL]
