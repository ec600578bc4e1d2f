"""Small versions of pictures: their proportions, their colours, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tuitrain.data.thumbnails import fit, read_thumbnail
from tuitrain.errors import DatasetError


@pytest.mark.parametrize(
    ("size", "box", "expected"),
    [
        ((1024, 1024), (64, 64), (64, 64)),
        ((832, 1216), (64, 64), (44, 64)),
        ((1216, 832), (64, 64), (64, 44)),
        ((64, 64), (100, 80), (80, 80)),
        ((6400, 64), (32, 32), (32, 1)),
    ],
)
def test_a_picture_keeps_its_proportions(
    size: tuple[int, int], box: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert fit(*size, max_width=box[0], max_height=box[1]) == expected


@pytest.mark.parametrize("size", [(64, 64), (4, 4)])
def test_halves_of_a_picture_keep_their_colours_and_sides(tmp_path: Path, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (200, 30, 10))
    image.paste((0, 60, 250), (size[0] // 2, 0, *size))
    image.save(tmp_path / "halves.png")

    thumbnail = read_thumbnail(tmp_path / "halves.png", 16, 12)

    assert (thumbnail.width, thumbnail.height, len(thumbnail.rgb)) == (12, 12, 3 * 12 * 12)
    for row in range(12):
        line = thumbnail.rgb[36 * row : 36 * (row + 1)]
        assert line[:3] == bytes((200, 30, 10))
        assert line[-3:] == bytes((0, 60, 250))


def test_what_cannot_be_shown_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 40)
    (tmp_path / "words.jpg").write_text("no picture")
    Image.new("L", (9000, 8000)).save(tmp_path / "huge.png")

    for name, reason in [
        ("none.png", "No such file"),
        ("cut.png", "it "),
        ("words.jpg", "not a picture"),
        ("huge.png", "72 megapixels, the limit is 64"),
    ]:
        with pytest.raises(DatasetError, match=reason):
            read_thumbnail(tmp_path / name, 32, 32)


def test_no_imaging_library_is_loaded_before_a_picture_is_read() -> None:
    code = "import sys, tuitrain.data.thumbnails; print({'PIL', 'numpy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
