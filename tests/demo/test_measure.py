"""The demo's numbers, on pictures whose answer is known because we drew them."""

import random

import pytest
from PIL import Image

from tuitrain.demo.draw import (
    Scene,
    caption_of,
    draw_flat,
    draw_woodcut,
    random_scene,
    woodcut_caption_of,
)
from tuitrain.demo.measure import colour_accuracy, colours_of, scene_of, style_score

RNG = random.Random(3)
SCENES = [random_scene(RNG) for _ in range(40)]
PROMPTS = [caption_of(scene) for scene in SCENES]


def test_captions_name_shape_colours_and_take_the_right_article() -> None:
    assert caption_of(Scene("circle", "red", "blue")) == "a red circle on a blue background"
    assert woodcut_caption_of(Scene("fish", "orange", "purple")) == "a woodcut of an orange fish on a purple background"


def test_a_prompt_is_read_back_as_the_scene_it_names() -> None:
    assert scene_of("a woodcut of an orange fish on a purple background") == Scene("fish", "orange", "purple")
    with pytest.raises(ValueError, match="a garden gnome"):
        scene_of("a garden gnome")


def test_the_colours_of_every_drawn_scene_are_read_off_its_pixels() -> None:
    assert colour_accuracy([draw_flat(scene) for scene in SCENES], PROMPTS) == 1.0


def test_the_wrong_shape_colour_or_background_is_not_a_hit() -> None:
    picture = draw_flat(Scene("circle", "red", "blue"))

    assert colours_of(picture) == ("red", "blue")
    prompts = [
        f"a {colour} circle on a {ground} background"
        for colour, ground in (("red", "blue"), ("green", "blue"), ("red", "white"))
    ]
    assert colour_accuracy([picture] * 3, prompts) == pytest.approx(1 / 3)


def test_the_style_score_separates_every_flat_picture_from_every_woodcut() -> None:
    flat = [style_score([draw_flat(scene)], [prompt]) for scene, prompt in zip(SCENES, PROMPTS, strict=True)]
    woodcut = [style_score([draw_woodcut(scene)], [prompt]) for scene, prompt in zip(SCENES, PROMPTS, strict=True)]

    assert max(flat) < 0.45 < 0.55 < min(woodcut)


def test_the_style_score_is_a_half_at_equal_distance_and_ignores_the_trigger() -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    scene = SCENES[0]

    assert style_score([draw_flat(scene)], [caption_of(scene)]) == style_score(
        [draw_flat(scene)], [woodcut_caption_of(scene)]
    )
    assert 0 < style_score([grey], [caption_of(scene)]) < 1


def test_pictures_of_any_size_have_the_asked_size_and_the_same_score() -> None:
    scene = Scene("square", "green", "pink")
    wide = draw_woodcut(scene, (64, 128))

    assert wide.size == (128, 64)
    assert style_score([draw_woodcut(scene, (128, 128))], [caption_of(scene)]) == pytest.approx(
        style_score([draw_woodcut(scene, (64, 64))], [caption_of(scene)]), abs=0.03
    )
