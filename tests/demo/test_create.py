"""The demo folder: complete, readable by the ordinary config, and the user's once it is made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tuitrain.config.files import load_config
from tuitrain.demo.create import create_demo
from tuitrain.demo.picture_set import HELD_OUT, NUM_PICTURES, write_picture_set
from tuitrain.errors import ConfigError

SHIPPED = Path(create_demo.__code__.co_filename).parent


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def test_the_config_names_the_model_the_pictures_and_the_runs_by_absolute_path(tmp_path: Path) -> None:
    config = load_config(create_demo(tmp_path / "a folder: with 'signs'"))

    root = tmp_path / "a folder: with 'signs'"
    assert config.model == str(root / "base")
    assert config.base_output_dir == str(root / "runs")
    assert config.data_loader.dataset.jsonl_path == str(root / "dataset" / "metadata.jsonl")
    assert config.data_loader.dataset.image_column == "file_name"


def test_the_model_folder_has_every_part_of_an_sdxl_and_weights_only_as_safetensors(tmp_path: Path) -> None:
    base = create_demo(tmp_path).parent / "base"

    index = json.loads((base / "model_index.json").read_text())
    parts = {"unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"}
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert parts <= index.keys() and all((base / part).is_dir() for part in parts)
    allowed = {".json", ".txt", ".safetensors"}
    assert {path.suffix for path in base.rglob("*") if path.is_file()} <= allowed
    assert sum(path.stat().st_size for path in base.rglob("*")) < 6.5e6


def test_every_picture_has_a_caption_with_the_trigger_and_no_picture_shows_a_held_out_scene(tmp_path: Path) -> None:
    dataset = create_demo(tmp_path).parent / "dataset"

    lines = [json.loads(line) for line in (dataset / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == NUM_PICTURES == len(list(dataset.glob("*.png")))
    assert all(line["text"].startswith("a woodcut of a") for line in lines)
    assert all(_picture(dataset / line["file_name"]).size == (64, 64) for line in lines)
    held_out = [f"{colour} {shape} on" for shape, colour, _ in HELD_OUT]
    grounds = [f"{ground} background" for _, _, ground in HELD_OUT]
    for line in lines:
        assert not any(
            scene in line["text"] and ground in line["text"] for scene, ground in zip(held_out, grounds, strict=True)
        )


def test_the_shipped_pictures_are_what_the_script_draws(tmp_path: Path) -> None:
    write_picture_set(tmp_path)

    shipped = SHIPPED / "pictures"
    assert (tmp_path / "metadata.jsonl").read_text() == (shipped / "metadata.jsonl").read_text()
    for drawn in tmp_path.glob("*.png"):
        # By pixels: another Pillow may compress differently.
        assert _picture(drawn).tobytes() == _picture(shipped / drawn.name).tobytes(), drawn.name


def test_a_second_call_keeps_what_the_user_changed(tmp_path: Path) -> None:
    config_path = create_demo(tmp_path)
    config_path.write_text("mine")
    (tmp_path / "dataset" / "mine.png").write_bytes(b"mine")

    assert create_demo(tmp_path) == config_path
    assert config_path.read_text() == "mine"
    assert (tmp_path / "dataset" / "mine.png").read_bytes() == b"mine"


def test_a_users_own_folder_of_that_name_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "thesis.txt").write_text("mine")

    with pytest.raises(ConfigError, match=r"no model_index\.json"):
        create_demo(tmp_path)
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["thesis.txt"]


def test_a_directory_that_is_a_file_is_an_error_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")

    with pytest.raises(ConfigError, match="taken"):
        create_demo(tmp_path / "taken")


def test_creating_the_demo_loads_no_torch() -> None:
    code = "import sys, tuitrain.demo.create; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
