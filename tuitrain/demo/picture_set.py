"""The fine-tuning set that ships with the package: drawn, captioned, written to a folder; knows nothing of models.

    python -m tuitrain.demo.picture_set [FOLDER]

rewrites `tuitrain/demo/pictures` (or FOLDER), in under a second.
"""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

from tuitrain.demo.draw import SHAPES, Scene, draw_woodcut, random_scene, woodcut_caption_of

NUM_PICTURES = 36
SIZE_HW = (64, 64)
SEED = 4
# Kept out of the set, so that samples of them show the style carried over to something it has not shown.
HELD_OUT = (
    ("star", "red", "blue"),
    ("heart", "pink", "green"),
    ("fish", "orange", "purple"),
    ("house", "white", "red"),
)


def picture_set_scenes() -> list[Scene]:
    """The scenes of the set: shapes in turn, black shapes and white grounds left out, as ink and paper hide them."""
    rng = random.Random(SEED)
    scenes: list[Scene] = []
    while len(scenes) < NUM_PICTURES:
        scene = replace(random_scene(rng), shape=sorted(SHAPES)[len(scenes) % len(SHAPES)])
        if scene.colour == "black" or scene.background == "white":
            continue
        if (scene.shape, scene.colour, scene.background) not in HELD_OUT:
            scenes.append(replace(scene, radius=rng.uniform(0.27, 0.34)))
    return scenes


def write_picture_set(folder: Path) -> None:
    """Write the pictures as RGB PNG and `metadata.jsonl` with the columns file_name and text."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, scene in enumerate(picture_set_scenes()):
        name = f"{number:02d}-{scene.colour}-{scene.shape}-on-{scene.background}.png"
        # 48 colours are more than the eye misses, and a PNG of them is a third of the size.
        picture = draw_woodcut(scene, SIZE_HW).quantize(48).convert("RGB")
        picture.save(folder / name, optimize=True)
        lines.append(json.dumps({"file_name": name, "text": woodcut_caption_of(scene)}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write_picture_set(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures")
