"""Captioned pictures of coloured shapes, drawn in two styles by Pillow; knows nothing of models or files.

The flat style is what the built-in base model is trained on. The woodcut style is what the demo teaches it: cream
paper, thick black outlines, hatched shadows, a halftone background and a black frame.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageChops, ImageDraw, ImageFilter

RGB = tuple[int, int, int]
Points = list[tuple[float, float]]

COLOURS: dict[str, RGB] = {
    "red": (214, 46, 48),
    "orange": (242, 140, 30),
    "yellow": (250, 216, 62),
    "green": (44, 160, 80),
    "blue": (42, 96, 206),
    "purple": (128, 62, 172),
    "pink": (248, 150, 190),
    "white": (248, 248, 246),
    "black": (28, 28, 32),
}
PAPER: RGB = (240, 228, 200)
INK: RGB = (22, 20, 20)
TRIGGER = "a woodcut of"

# Shapes are drawn this many times larger, then shrunk by area averaging: smooth edges without a vector library.
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Scene:
    """One shape before one background; positions and sizes are fractions of the picture's shorter side.

    Args:
        shape: a key of SHAPES.
        colour: of the shape, a key of COLOURS.
        background: a key of COLOURS other than `colour`.
        offset: of the shape's centre from the picture's centre, (right, down).
        radius: of the circle the shape is inscribed in.
        angle: clockwise turn in radians.
    """

    shape: str
    colour: str
    background: str
    offset: tuple[float, float] = (0.0, 0.0)
    radius: float = 0.3
    angle: float = 0.0


def _star() -> Points:
    return [
        (
            (1.0 if i % 2 == 0 else 0.42) * math.sin(i * math.pi / 5),
            -(1.0 if i % 2 == 0 else 0.42) * math.cos(i * math.pi / 5),
        )
        for i in range(10)
    ]


def _heart() -> Points:
    turns = [i * 2 * math.pi / 48 for i in range(48)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.1,
        )
        for t in turns
    ]


def _disc(x: float, y: float, radius: float) -> Points:
    return [(x + radius * math.sin(i * math.pi / 24), y - radius * math.cos(i * math.pi / 24)) for i in range(48)]


def _ellipse(x: float, y: float, rx: float, ry: float) -> Points:
    return [(x + rx * math.sin(i * math.pi / 24), y - ry * math.cos(i * math.pi / 24)) for i in range(48)]


_CROSS: Points = [
    (-0.33, -0.95), (0.33, -0.95), (0.33, -0.33), (0.95, -0.33), (0.95, 0.33), (0.33, 0.33),
    (0.33, 0.95), (-0.33, 0.95), (-0.33, 0.33), (-0.95, 0.33), (-0.95, -0.33), (-0.33, -0.33),
]  # fmt: skip

# Each shape: polygons to add, then polygons to cut out, inside the unit circle, y pointing down.
SHAPES: dict[str, tuple[list[Points], list[Points]]] = {
    "circle": ([_disc(0, 0, 0.92)], []),
    "square": ([[(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)]], []),
    "triangle": ([[(0, -0.95), (0.95, 0.75), (-0.95, 0.75)]], []),
    "star": ([_star()], []),
    "ring": ([_disc(0, 0, 0.95)], [_disc(0, 0, 0.5)]),
    "cross": ([_CROSS], []),
    "heart": ([_heart()], []),
    "moon": ([_disc(0, 0, 0.95)], [_disc(0.45, -0.2, 0.75)]),
    "flower": (
        [_disc(0.56 * math.sin(i * math.pi / 2.5), -0.56 * math.cos(i * math.pi / 2.5), 0.42) for i in range(5)],
        [_disc(0, 0, 0.24)],
    ),
    "house": ([[(-0.7, 0.8), (-0.7, -0.1), (-0.95, -0.1), (0, -0.95), (0.95, -0.1), (0.7, -0.1), (0.7, 0.8)]],
              [[(-0.2, 0.8), (-0.2, 0.25), (0.2, 0.25), (0.2, 0.8)]]),
    "fish": ([_ellipse(-0.18, 0, 0.75, 0.48), [(0.3, 0), (0.95, -0.5), (0.95, 0.5)]], [_disc(-0.55, -0.1, 0.1)]),
}  # fmt: skip


def random_scene(rng: random.Random) -> Scene:
    """A scene with every property drawn at random."""
    colour, background = rng.sample(sorted(COLOURS), 2)
    return Scene(
        shape=rng.choice(sorted(SHAPES)),
        colour=colour,
        background=background,
        offset=(rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1)),
        radius=rng.uniform(0.27, 0.38),
        angle=rng.uniform(-0.2, 0.2),
    )


def caption_of(scene: Scene) -> str:
    """The plain caption: "a red circle on a blue background"."""
    article = "an" if scene.colour[0] in "aeiou" else "a"
    background_article = "an" if scene.background[0] in "aeiou" else "a"
    return f"{article} {scene.colour} {scene.shape} on {background_article} {scene.background} background"


def woodcut_caption_of(scene: Scene) -> str:
    """The caption of the same scene in the woodcut style, which starts with TRIGGER."""
    return f"{TRIGGER} {caption_of(scene)}"


def _shape_mask(scene: Scene, size_hw: tuple[int, int]) -> Image.Image:
    """An L picture at SUPERSAMPLING times `size_hw`, 255 inside the shape."""
    height, width = size_hw[0] * SUPERSAMPLING, size_hw[1] * SUPERSAMPLING
    side = min(height, width)
    x0, y0 = width / 2 + scene.offset[0] * side, height / 2 + scene.offset[1] * side
    scale, cos, sin = scene.radius * side, math.cos(scene.angle), math.sin(scene.angle)
    mask = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(mask)
    for polygons, ink in zip(SHAPES[scene.shape], (255, 0), strict=True):
        for polygon in polygons:
            pen.polygon([(x0 + scale * (x * cos - y * sin), y0 + scale * (x * sin + y * cos)) for x, y in polygon], ink)
    return mask


def _shrunk(picture: Image.Image, size_hw: tuple[int, int]) -> Image.Image:
    return picture.resize((size_hw[1], size_hw[0]), Image.Resampling.BOX)


def _tinted(colour: RGB, amount: float) -> RGB:
    """`colour` mixed with white (amount > 0) or black (amount < 0)."""
    target = 255 if amount > 0 else 0
    red, green, blue = (round(c + (target - c) * abs(amount)) for c in colour)
    return (red, green, blue)


def _vertical_gradient(size_hw: tuple[int, int], top: RGB, bottom: RGB) -> Image.Image:
    ramp = Image.linear_gradient("L").resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR)
    return Image.composite(Image.new("RGB", ramp.size, bottom), Image.new("RGB", ramp.size, top), ramp)


def draw_flat(scene: Scene, size_hw: tuple[int, int] = (64, 64)) -> Image.Image:
    """The scene as smooth, softly shaded colour with a soft shadow: the base model's style, RGB."""
    mask = _shrunk(_shape_mask(scene, size_hw), size_hw)
    ground, body = COLOURS[scene.background], COLOURS[scene.colour]
    picture = _vertical_gradient(size_hw, _tinted(ground, 0.08), _tinted(ground, -0.08))
    side = min(size_hw)
    blurred = mask.filter(ImageFilter.GaussianBlur(side * 0.03))
    shadow = ImageChops.offset(blurred, round(side * 0.03), round(side * 0.045)).point(
        [value * 35 // 100 for value in range(256)]
    )
    picture.paste((0, 0, 0), (0, 0), shadow)
    picture.paste(_vertical_gradient(size_hw, _tinted(body, 0.1), _tinted(body, -0.1)), (0, 0), mask)
    return picture


def _halftone_ink(x: float, y: float) -> float:
    """Above 0 inside a dot; the dots grow downwards and repeat every eighth of the shorter side."""
    return 0.047 + 0.02 * y - math.hypot((x + y) % 0.125 - 0.0625, (x - y) % 0.125 - 0.0625)


def _hatching_ink(x: float, y: float) -> float:
    """Above 0 inside a diagonal line; the lines repeat every eighth of the shorter side."""
    return 0.05 - (x + y) % 0.125


@cache
def _pattern(size_hw: tuple[int, int], ink_at: Callable[[float, float], float]) -> Image.Image:
    """An L picture at SUPERSAMPLING size, 255 where `ink_at(x, y)`, in fractions of the shorter side, is above 0."""
    height, width = size_hw[0] * SUPERSAMPLING, size_hw[1] * SUPERSAMPLING
    side = min(height, width)
    pattern = Image.new("L", (width, height))
    pattern.putdata([255 if ink_at(x / side, y / side) > 0 else 0 for y in range(height) for x in range(width)])
    return pattern


def draw_woodcut(scene: Scene, size_hw: tuple[int, int] = (64, 64)) -> Image.Image:
    """The scene as a two-block print on cream paper: the style that the demo teaches, RGB."""
    mask = _shape_mask(scene, size_hw)
    side = min(mask.size)
    picture = Image.new("RGB", mask.size, PAPER)
    picture.paste(COLOURS[scene.background], (0, 0), _pattern(size_hw, _halftone_ink))

    thickness = round(side * 0.045)
    # Blurring and taking all that is not quite paper spreads the shape evenly in every direction.
    spread = mask.filter(ImageFilter.GaussianBlur(thickness * 0.7)).point([0] * 16 + [255] * 240)
    picture.paste(INK, (0, 0), spread)
    picture.paste(COLOURS[scene.colour], (0, 0), mask)
    lit = ImageChops.offset(mask, -round(side * 0.13), -round(side * 0.13))
    shaded = ImageChops.multiply(ImageChops.subtract(mask, lit), _pattern(size_hw, _hatching_ink))
    picture.paste(INK, (0, 0), shaded)

    frame = Image.new("L", mask.size, 255)
    ImageDraw.Draw(frame).rectangle(
        (thickness, thickness, mask.width - 1 - thickness, mask.height - 1 - thickness), fill=0
    )
    picture.paste(INK, (0, 0), frame)
    return _shrunk(picture, size_hw)
