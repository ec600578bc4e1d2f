"""Pictures in half blocks: their colours, their bytes, one paint, and sentences where there is no picture."""

import random
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.color import Color, ColorSystem
from rich.console import Console
from textual.app import App, ComposeResult
from textual.strip import Strip

from tests.tui.harness import open_app, screen_text, wait_until
from tuitrain.data.thumbnails import Thumbnail
from tuitrain.errors import ConfigError
from tuitrain.tui.graphics import Graphics, choose_graphics
from tuitrain.tui.widgets.image import ImageView, half_block_rows

CONSOLES = {ColorSystem.TRUECOLOR: "truecolor", ColorSystem.EIGHT_BIT: "256", ColorSystem.STANDARD: "standard"}


def noise(width: int, height: int, *, darkest: int = 0) -> Thumbnail:
    values = random.Random(0)
    return Thumbnail(width, height, bytes(values.randrange(darkest, 256) for _ in range(3 * width * height)))


def num_bytes(thumbnail: Thumbnail, colors: ColorSystem) -> int:
    """Of all rows with a cursor move each, as Textual sends them."""
    console = Console(color_system=CONSOLES[colors])  # type: ignore[arg-type]
    return sum(len(Strip(row).render(console).encode()) + 9 for row in half_block_rows(thumbnail, colors))


def test_each_cell_has_the_upper_pixel_as_foreground_and_the_lower_as_background() -> None:
    red, green, blue, white = b"\xff\x00\x00", b"\x00\xff\x00", b"\x00\x00\xff", b"\xff\xff\xff"
    rows = half_block_rows(Thumbnail(2, 3, red + green + blue + green + white + white), ColorSystem.TRUECOLOR)

    upper, lower = rows
    assert [segment.text for segment in upper] == ["▀", " "]
    assert upper[0].style is not None and upper[1].style is not None
    assert (upper[0].style.color, upper[0].style.bgcolor) == (Color.from_rgb(255, 0, 0), Color.from_rgb(0, 0, 255))
    assert upper[1].style.bgcolor == Color.from_rgb(0, 255, 0)  # both pixels alike: no half block
    assert [segment.text for segment in lower] == ["▀▀"]  # neighbours alike: one segment
    assert lower[0].style is not None and lower[0].style.bgcolor is None  # below an odd last row there is nothing


@pytest.mark.parametrize("colors", CONSOLES)
@pytest.mark.parametrize(("cells", "bar"), [((32, 16), 25_000), ((64, 32), 90_000)])
def test_a_picture_of_noise_stays_within_its_bytes(cells: tuple[int, int], bar: int, colors: ColorSystem) -> None:
    assert num_bytes(noise(cells[0], 2 * cells[1], darkest=100), colors) <= bar


def test_fewer_colours_are_fewer_bytes() -> None:
    smooth = Thumbnail(64, 64, b"".join(bytes((4 * x, 4 * y, 128)) for y in range(64) for x in range(64)))
    sizes = [num_bytes(smooth, colors) for colors in CONSOLES]
    assert sizes[1] < 0.4 * sizes[0]
    assert sizes[2] < sizes[1]


class ImageApp(App[None]):
    """One picture of 20x10 cells."""

    CSS = "ImageView { width: 20; height: 10; }"

    def __init__(self, graphics: Graphics = Graphics("half")) -> None:  # noqa: B008  frozen
        super().__init__()
        self.graphics = graphics
        self.console = Console(color_system="truecolor", file=StringIO())

    def compose(self) -> ComposeResult:
        yield ImageView()


def save_halves(path: Path) -> Path:
    """A square whose upper half is red and whose lower half is blue."""
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    image.paste((0, 0, 255), (0, 32, 64, 64))
    image.save(path)
    return path


def backgrounds(app: App[Any], line: int) -> list[tuple[int, tuple[int, int, int] | None]]:
    """Lengths and colours of the segments of a line of the picture."""
    strip = app.query_one(ImageView).render_line(line)
    colors = [segment.style.bgcolor if segment.style else None for segment in strip]
    return [
        (len(segment.text), tuple(color.triplet) if color is not None and color.triplet else None)
        for segment, color in zip(strip, colors, strict=True)
    ]


async def test_a_file_is_drawn_in_the_widget_with_its_proportions(tmp_path: Path) -> None:
    path = save_halves(tmp_path / "halves.png")
    async with open_app(app=ImageApp()) as (app, pilot):
        app.query_one(ImageView).show(path)
        await wait_until(pilot, lambda: (20, (255, 0, 0)) in backgrounds(app, 0))
        assert backgrounds(app, 2) == [(20, (255, 0, 0))]
        assert backgrounds(app, 7) == [(20, (0, 0, 255))]
        app.query_one(ImageView).styles.width = 10
        await wait_until(pilot, lambda: (10, (0, 0, 255)) in backgrounds(app, 4))
        assert len(backgrounds(app, 5)) == 1  # empty below the now smaller square


async def test_a_change_of_picture_is_one_paint(tmp_path: Path) -> None:
    first, second = save_halves(tmp_path / "1.png"), tmp_path / "2.png"
    Image.new("RGB", (64, 64), (0, 255, 0)).save(second)
    async with open_app(app=ImageApp()) as (app, pilot):
        view = app.query_one(ImageView)
        view.show(first)
        await wait_until(pilot, lambda: (20, (255, 0, 0)) in backgrounds(app, 0))
        num_paints = 0
        refresh = view.refresh

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal num_paints
            num_paints += 1
            return refresh(*args, **kwargs)

        view.refresh = counted  # type: ignore[method-assign]
        view.show(second)
        view.show(second)
        assert (20, (255, 0, 0)) in backgrounds(app, 0)  # the old one until the new one is there
        await wait_until(pilot, lambda: (20, (0, 255, 0)) in backgrounds(app, 0))
        assert num_paints == 1
        view.show(first)
        assert (20, (255, 0, 0)) in backgrounds(app, 0)  # known: at once, without a thread


async def test_without_a_picture_a_sentence_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "[red]broken\x1b[31m.png"
    broken.write_text("no picture")
    async with open_app(app=ImageApp()) as (app, pilot):
        view = app.query_one(ImageView)
        view.show(None, otherwise="no samples at this step - press s on the train screen")
        await pilot.pause()
        assert screen_text(app).split("\n")[:3] == ["no samples at this", "step - press s on", "the train screen"]
        view.show(broken)
        await wait_until(pilot, lambda: "not a" in screen_text(app))
        text = screen_text(app).replace("\n", "")
        assert "[red]broken\\x1b[31m.png" in text.replace(" ", "")
        assert "\x1b" not in text


async def test_pictures_that_are_off_are_named(tmp_path: Path) -> None:
    path = save_halves(tmp_path / "halves.png")
    async with open_app(app=ImageApp(Graphics("off")), size=(200, 12)) as (app, pilot):
        view = app.query_one(ImageView)
        view.styles.width = 200
        await pilot.pause()
        view.show(path)
        await pilot.pause()
        assert f"pictures are off, see {path}" in screen_text(app)


@pytest.mark.parametrize("wanted", ["kitty", "sixel"])
def test_tmux_gets_half_blocks_and_is_told_so(wanted: str) -> None:
    graphics = choose_graphics(wanted, {"TMUX": "/tmp/tmux-0/default,1,0"})
    assert graphics.mode == "half"
    assert f"tmux keeps {wanted} pictures to itself" in graphics.note


@pytest.mark.parametrize(
    ("wanted", "environment", "mode"),
    [("auto", {}, "half"), ("auto", {"KITTY_WINDOW_ID": "1", "TMUX": "x"}, "half"), ("off", {}, "off")],
)
def test_automatic_pictures_are_half_blocks_unless_the_terminal_is_known(
    wanted: str, environment: dict[str, str], mode: str
) -> None:
    assert choose_graphics(wanted, environment) == Graphics(mode)  # type: ignore[arg-type]


def test_an_unknown_kind_of_pictures_is_refused() -> None:
    with pytest.raises(ConfigError, match="--images is ascii") as refusal:
        choose_graphics("ascii", {})
    assert refusal.value.problems[0].hint == "one of auto, half, kitty, sixel, off"


@pytest.mark.parametrize("mode", ["kitty", "sixel"])
async def test_pixels_come_from_textual_image_in_the_proportions_of_the_file(tmp_path: Path, mode: str) -> None:
    pytest.importorskip("textual_image", reason="the extra tuitrain[images]")
    path = tmp_path / "wide.png"
    Image.new("RGB", (200, 100), (255, 0, 0)).save(path)
    graphics = choose_graphics(mode, {})
    async with open_app(app=ImageApp(replace(graphics, cell_size=(10, 20)))) as (app, pilot):
        app.query_one(ImageView).show(path)
        assert graphics.widget is not None
        await wait_until(pilot, lambda: bool(app.query(graphics.widget)))
        await pilot.pause()
        assert app.query_one(graphics.widget).region.size == (20, 5)
        app.query_one(ImageView).show(None, otherwise="none")
        await wait_until(pilot, lambda: not app.query(graphics.widget))
        assert screen_text(app).startswith("none")
