"""`tuitrain check`: counts against closed forms, disk against files, and what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tuitrain.commands.program import app
from tuitrain.config.files import config_from_values, load_config
from tuitrain.engine.state_size import TensorFigures
from tuitrain.errors import ModelError
from tuitrain.plan import SDXL_BASE_FIGURES, Estimate, count_checkpoints, estimate_run, plan_run, read_model_figures


def make_config(base: Path, model: Path | str, **settings: object) -> Path:
    """A JSON file, which is YAML too, for five pictures of three shapes."""
    pictures = base / "pictures"
    pictures.mkdir()
    for index, size in enumerate([(64, 64), (80, 80), (128, 64), (128, 64), (32, 128)]):
        Image.new("RGB", size, (40 * index, 0, 0)).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text("a red picture" if index else "another red picture")
    values = {
        "type": "SDXL_FINETUNE",
        "base_output_dir": str(base / "runs"),
        "model": str(model),
        "max_train_epochs": 3,
        "save_every_n_epochs": 1,
        "train_batch_size": 2,
        "weight_dtype": "float32",
        "cache_vae_outputs": True,
        "cache_text_encoder_outputs": True,
        "data_loader": {
            "type": "IMAGE_CAPTION_SD_DATA_LOADER",
            "resolution": 64,
            "aspect_ratio_buckets": {"target_resolution": 64, "start_dim": 32, "end_dim": 64, "divisible_by": 32},
            "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(pictures)},
        },
        **settings,
    }
    path = base / "config.yaml"
    path.write_text(json.dumps(values, indent=1))
    return path


def check(config: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["check", str(config), *options])


def test_check_counts_pictures_steps_and_epochs(tiny_sdxl: Path, tmp_path: Path) -> None:
    result = check(make_config(tmp_path, tiny_sdxl), "--json")
    assert result.exit_code == 0, result.stdout
    plan = json.loads(result.stdout)
    assert plan["buckets"] == {"32x128": 2, "64x64": 2, "128x32": 1}
    assert plan["num_images"] == 5
    assert (plan["steps_per_epoch"], plan["total_steps"], plan["num_epochs"]) == (3, 9, 3)
    assert not (tmp_path / "runs").exists()


def test_check_predicts_the_bytes_of_checkpoints_and_caches(tiny_sdxl: Path, tmp_path: Path) -> None:
    plan = json.loads(check(make_config(tmp_path, tiny_sdxl, save_dtype="float32"), "--json").stdout)
    (unet,) = (tiny_sdxl / "unet").glob("*.safetensors")
    assert plan["checkpoint_bytes"] == pytest.approx(unet.stat().st_size, rel=0.02)
    assert plan["num_checkpoints"] == 3
    encoders = [
        json.loads((tiny_sdxl / part / "config.json").read_text()) for part in ("text_encoder", "text_encoder_2")
    ]
    embed_dim = sum(encoder["hidden_size"] for encoder in encoders)
    latents = 5 * 4 * 64 * 64 // 4**2 * 4
    embeddings = 3 * (77 * embed_dim + encoders[1]["projection_dim"]) * 4
    assert plan["cache_bytes"] == latents + embeddings
    assert plan["num_states"] == 2
    assert plan["needed_bytes"] == 3 * plan["checkpoint_bytes"] + 2 * plan["state_bytes"] + plan["cache_bytes"]


def test_a_full_pipeline_is_as_large_as_all_four_networks(tiny_sdxl: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_sdxl, save_dtype="float32", save_checkpoint_format="full_diffusers")
    num_bytes = sum(file.stat().st_size for file in tiny_sdxl.glob("*/*.safetensors"))
    assert json.loads(check(config, "--json").stdout)["checkpoint_bytes"] == pytest.approx(num_bytes, rel=0.02)


def test_every_bad_picture_is_told_at_once(tiny_sdxl: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_sdxl)
    (tmp_path / "pictures" / "0.png").write_bytes(b"not a picture")
    (tmp_path / "pictures" / "1.png").write_bytes(b"")
    result = check(config)
    assert result.exit_code == 2
    assert "0.png" in result.stderr
    assert "1.png" in result.stderr


def test_skipped_pictures_are_listed_and_not_counted(tiny_sdxl: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_sdxl, on_bad_image="skip")
    (tmp_path / "pictures" / "0.png").write_bytes(b"not a picture")
    result = check(config)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert any(line.startswith("skipped") and "0.png" in line for line in lines)
    assert "pictures  4, 1 skipped" in lines


def test_a_disk_that_is_too_small_is_a_problem(tiny_sdxl: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_sdxl, max_train_epochs=100_000_000, max_checkpoints=None)
    result = check(config)
    assert result.exit_code == 2
    assert "are needed" in result.stderr
    assert "max_checkpoints" in result.stderr


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    result = check(make_config(tmp_path, tmp_path / "no-model"))
    assert result.exit_code == 2
    assert "no-model" in result.stderr


def test_a_model_yet_to_be_downloaded_is_taken_for_sdxl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = json.loads(check(make_config(tmp_path, "nobody/no-such-model"), "--json").stdout)
    assert plan["is_model_here"] is False
    assert plan["checkpoint_bytes"] == 2 * SDXL_BASE_FIGURES.num_unet_parameters


def test_figures_of_sdxl_base_are_those_of_its_networks() -> None:
    """Built without memory from the configs that ship with the package."""
    import torch
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from tuitrain.engine.base_model import SDXL_BASE

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SDXL_BASE / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(SDXL_BASE / "vae"))
        config = transformers.CLIPTextConfig.from_pretrained(SDXL_BASE / "text_encoder")
        first_encoder = transformers.CLIPTextModel(config)
        config = transformers.CLIPTextConfig.from_pretrained(SDXL_BASE / "text_encoder_2")
        second_encoder = transformers.CLIPTextModelWithProjection(config)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (unet, vae, first_encoder, second_encoder)]
    assert SDXL_BASE_FIGURES.unet == TensorFigures.of_shapes(tensor.shape for tensor in unet.state_dict().values())
    assert sizes[0] == SDXL_BASE_FIGURES.num_unet_parameters
    assert sum(sizes) == SDXL_BASE_FIGURES.num_parameters


@pytest.mark.parametrize(
    ("settings", "num_steps", "expected"),
    [
        ({"save_every_n_steps": 100}, 1000, 10),
        ({"save_every_n_steps": 300}, 1000, 4),
        ({"save_every_n_steps": 300, "save_at_end": False}, 1000, 3),
        ({"save_every_n_steps": 100, "max_checkpoints": 1}, 1000, 2),
        ({"save_every_n_steps": 100, "max_checkpoints": 20}, 1000, 10),
        ({"save_every_n_epochs": 3}, 1000, 34),
        ({"save_every_n_epochs": 50, "max_checkpoints": 3}, 1000, 2),
    ],
)
def test_checkpoints_on_disk_at_once(settings: dict[str, object], num_steps: int, expected: int) -> None:
    config = config_from_values(
        {
            "type": "SDXL_FINETUNE",
            "base_output_dir": "runs",
            "max_train_steps": num_steps,
            "data_loader": {
                "type": "IMAGE_CAPTION_SD_DATA_LOADER",
                "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "pictures"},
            },
            **settings,
        }
    )
    assert count_checkpoints(config, num_steps=num_steps, steps_per_epoch=10) == expected


def test_figures_of_a_folder_are_its_own(tiny_sdxl: Path, tmp_path: Path) -> None:
    from tuitrain.config.files import load_config

    figures = read_model_figures(load_config(make_config(tmp_path, tiny_sdxl)))
    assert (figures.vae_factor, figures.embed_dim, figures.pooled_dim, figures.is_assumed) == (4, 80, 40, False)


# The estimate


def estimate(config: Path) -> Estimate:
    return estimate_run(load_config(config), {})


def test_an_estimate_agrees_with_the_plan(tiny_sdxl: Path, tmp_path: Path) -> None:
    path = make_config(tmp_path, tiny_sdxl)
    plan, found = plan_run(load_config(path)), estimate(path)
    assert (found.num_images, found.steps_per_epoch) == (plan.num_images, plan.steps_per_epoch)
    assert (found.total_steps, found.num_epochs) == (plan.total_steps, plan.num_epochs)
    assert found.checkpoints_bytes == plan.checkpoint_bytes * plan.num_checkpoints + plan.state_bytes * plan.num_states


def test_an_estimate_sees_pictures_as_a_viewer_shows_them(tiny_sdxl: Path, tmp_path: Path) -> None:
    path = make_config(tmp_path, tiny_sdxl)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(tmp_path / "pictures" / "0.png", exif=exif)
    (tmp_path / "pictures" / "1.png").write_bytes(b"no picture")
    sizes: dict[Path, tuple[int, int] | None] = {}
    assert estimate_run(load_config(path), sizes).num_images == 4
    assert (sizes[tmp_path / "pictures" / "0.png"], sizes[tmp_path / "pictures" / "1.png"]) == ((64, 32), None)


def test_an_estimate_of_a_hub_model_takes_it_for_sdxl(tmp_path: Path) -> None:
    found = estimate(make_config(tmp_path, "owner/name", save_dtype="float16", save_state="none"))
    assert found.checkpoints_bytes == 3 * SDXL_BASE_FIGURES.num_unet_parameters * 2


def test_an_estimate_says_what_is_not_there(tiny_sdxl: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder or file"):
        estimate(make_config(tmp_path, tmp_path / "nowhere"))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x10" + bytes(7) + b"{")
    config = load_config(tmp_path / "config.yaml", [f"model={damaged}"])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        estimate_run(config, {})


def test_an_estimate_loads_no_torch(tiny_sdxl: Path, tmp_path: Path) -> None:
    path = make_config(tmp_path, tiny_sdxl)
    program = (
        "import sys; from tuitrain.plan import estimate_run; from tuitrain.config.files import load_config;"
        f"estimate_run(load_config({str(path)!r}), {{}}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
