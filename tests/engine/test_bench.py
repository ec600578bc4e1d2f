"""Measuring a config: what is replaced in it, the random base model, and a real measurement on the tiny SDXL."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from tuitrain.commands.program import app
from tuitrain.config.files import config_from_values, load_config
from tuitrain.config.schema import TrainConfig
from tuitrain.data.dataset import load_dataset
from tuitrain.engine import random_model
from tuitrain.engine.base_model import SDXL_BASE
from tuitrain.engine.bench import Training, bench, bench_config, picture_size_hw, write_pictures
from tuitrain.engine.random_model import STD, write_random_model
from tuitrain.engine.sdxl import build_network, load_sdxl
from tuitrain.engine.weight_files import read_json
from tuitrain.errors import ConfigError, Problem, TuitrainError
from tuitrain.runs.events import RunFailed

TINY = ["data_loader.resolution=64", "data_loader.aspect_ratio_buckets=null", "gradient_accumulation_steps=2"]

# Where the model, the pictures and the run are, and how long it is; nothing here changes what a step costs.
REPLACED = {
    "seed", "base_output_dir", "cache_dir", "model", "hf_variant", "vae_model", "model_config_dir", "use_masks",
    "max_train_steps", "max_train_epochs", "log_every_n_steps", "validation_prompts", "negative_validation_prompts",
    "validate_at_start", "save_every_n_steps", "save_every_n_epochs", "save_at_end", "on_oom",
}  # fmt: skip


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where measurements work."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize("preset", ["baroque_24gb", "big_card_80gb", "robocats_24gb", "small_card_12gb"])
def test_every_setting_that_costs_memory_or_time_is_measured_as_it_stands(preset: str, tmp_path: Path) -> None:
    config = load_config(preset)
    measured = bench_config(config, model=tmp_path / "model", folder=tmp_path, num_steps=7)
    kept = TrainConfig.model_fields.keys() - REPLACED - {"data_loader"}
    assert measured.model_dump(include=kept) == config.model_dump(include=kept)
    loader = config.data_loader.model_dump(exclude={"dataset"})
    assert measured.data_loader.model_dump(exclude={"dataset"}) == loader
    assert (measured.max_train_steps, measured.log_every_n_steps, measured.save_at_end) == (7, 1, False)
    assert measured.on_oom == "stop"  # in halves everything would seem to fit


def test_a_dreambooth_config_is_measured_with_captioned_pictures(tmp_path: Path) -> None:
    values = load_config("small_card_12gb").model_dump(mode="json")
    folder = {"type": "IMAGE_DIR_DATASET", "dataset_dir": "nowhere"}
    values["data_loader"] = {
        "type": "DREAMBOOTH_SD_DATA_LOADER",
        "resolution": 640,
        "instance_caption": "a photo of sks dog",
        "instance_dataset": folder,
        "class_caption": "a photo of a dog",
        "class_dataset": folder,
    }
    measured = bench_config(config_from_values(values), model=tmp_path, folder=tmp_path, num_steps=3)
    assert measured.data_loader.resolution_hw == (640, 640)


@pytest.mark.parametrize(
    "overrides", [(), ("data_loader.aspect_ratio_buckets=null", "data_loader.resolution=[96, 64]")]
)
def test_the_pictures_fill_every_batch_and_are_trained_at_their_own_size(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    config = load_config("robocats_24gb", ["train_batch_size=2", "gradient_accumulation_steps=2", *overrides])
    measured = bench_config(config, model=tmp_path, folder=tmp_path, num_steps=3)
    write_pictures(measured, tmp_path / "pictures", num_steps=3)
    dataset = load_dataset(measured, seed=1, report=lambda done, total: None)
    assert set(dataset.target_hw) == {picture_size_hw(measured)}
    assert [[len(batch) for batch in step] for step in dataset.plan.epoch(0)] == [[2, 2]] * 3


@pytest.mark.slow  # 17 s: a training in a process of its own
def test_a_measurement_is_a_real_training_that_leaves_nothing_behind(tiny_sdxl: Path, temporary: Path) -> None:
    options = [part for setting in TINY for part in ("--set", setting)]
    result = CliRunner().invoke(
        app, ["bench", "small_card_12gb", *options, "--model", str(tiny_sdxl), "--steps", "4", "--json"]
    )
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert (measured["config"], measured["outcome"], measured["device"]) == ("small_card_12gb", "fits", "cpu")
    assert (measured["size_hw"], measured["images_per_step"]) == ([64, 64], 2)
    assert len(measured["losses"]) == 4
    assert all(0.3 < loss < 3 for loss in measured["losses"])  # an untrained UNet leaves the noise as it is: about 1
    assert 0.1 < measured["peak_gib"] < 4
    assert measured["images_per_second"] * measured["seconds_per_step"] == pytest.approx(2, rel=0.5)
    assert measured["versions"]["torch"] == torch.__version__
    assert list(temporary.iterdir()) == []


@pytest.mark.slow  # it starts a process that imports torch
def test_a_model_that_cannot_be_used_is_a_wrong_request(tmp_path: Path, temporary: Path) -> None:
    with pytest.raises(ConfigError, match="it has no model_index"):
        bench(load_config("small_card_12gb", TINY), name="x", num_steps=3, model=tmp_path, tell=lambda text: None)


def test_fewer_steps_than_can_be_measured_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 steps are too few"):
        bench(load_config("small_card_12gb"), name="x", num_steps=2, model=tmp_path, tell=lambda text: None)


def ended(exit_code: int, *failures: str, told: str = "") -> Training:
    events = [RunFailed(what=what, step=0, exit_code=exit_code) for what in failures]
    return Training(list(events), exit_code, 1.0, [Problem(told)] if told else [], 1.0)


@pytest.mark.parametrize(
    "training",
    [
        ended(-9),
        ended(1, "the GPU is out of memory: CUDA out of memory. Tried to allocate 50.00 MiB."),
        ended(1, "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        ended(
            1, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
    ],
)
def test_a_training_that_lacked_memory_does_not_fit(training: Training) -> None:
    assert training.why_too_large


@pytest.mark.parametrize(
    ("training", "kind", "what"),
    [
        (ended(1, "the loss is nan at step 3"), TuitrainError, "the loss is nan at step 3"),
        (ended(2, told="there is no folder or file x"), ConfigError, "there is no folder or file x"),
        (ended(1, told="Segmentation fault"), TuitrainError, "Segmentation fault"),
        (ended(-11), TuitrainError, "the training process ended with status -11"),
    ],
)
def test_any_other_end_is_an_error(training: Training, kind: type[TuitrainError], what: str) -> None:
    assert not training.why_too_large
    failure = training.failure
    assert type(failure) is kind
    assert failure.problems[0].what == what


def test_a_training_that_ended_well_has_no_failure() -> None:
    assert ended(0).failure is None


# ---- the random base model


@pytest.fixture(scope="module")
def random_sdxl(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random numbers in the shapes of the tiny SDXL."""
    folder = tmp_path_factory.mktemp("random") / "model"
    write_random_model(folder, description=tiny_sdxl)
    return folder


def test_a_random_model_is_a_base_model_in_float16(random_sdxl: Path, tiny_sdxl: Path) -> None:
    models = load_sdxl(str(random_sdxl), hf_variant=None, unet_dtype=torch.float16)
    tiny = load_sdxl(str(tiny_sdxl), hf_variant=None)
    assert models.scheduler_config == tiny.scheduler_config
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        network = getattr(models, name)
        assert {key: value.shape for key, value in network.state_dict().items()} == {
            key: value.shape for key, value in getattr(tiny, name).state_dict().items()
        }
        matrices = torch.cat([value.float().flatten() for value in network.parameters() if value.ndim > 1])
        assert matrices.std().item() == pytest.approx(STD, rel=0.02)
        assert matrices.mean().item() == pytest.approx(0, abs=STD / 20)
    assert models.unet.conv_norm_out.weight.eq(1).all()
    assert models.unet.conv_norm_out.bias.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_random_unet_predicts_finite_numbers_in_every_dtype(random_sdxl: Path, dtype: torch.dtype) -> None:
    unet = load_sdxl(str(random_sdxl), hf_variant=None, unet_dtype=dtype).unet
    with torch.no_grad():
        prediction = unet(
            torch.randn(1, 4, 16, 16, dtype=dtype),
            torch.tensor([999]),
            encoder_hidden_states=torch.randn(1, 77, 80, dtype=dtype),
            added_cond_kwargs={
                "text_embeds": torch.randn(1, 40, dtype=dtype),
                "time_ids": torch.full((1, 6), 1024.0, dtype=dtype),
            },
        ).sample
    assert prediction.isfinite().all()
    assert prediction.abs().max() > 0


def test_a_random_model_that_does_not_fit_on_the_disk_is_refused_before_it_is_written(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_model.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 30))
    with pytest.raises(TuitrainError, match=r"has 1\.0 GiB free"):
        write_random_model(tmp_path / "model", description=tiny_sdxl)
    assert list(tmp_path.iterdir()) == []


def test_the_full_size_unet_has_sdxls_number_of_parameters() -> None:
    with torch.device("meta"):
        unet = build_network("unet", read_json(SDXL_BASE / "unet" / "config.json"))
    assert sum(param.numel() for param in unet.parameters()) == 2_567_463_684


def test_a_random_model_is_not_written_over_another(random_sdxl: Path, tiny_sdxl: Path) -> None:
    before = (random_sdxl / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    with pytest.raises(FileExistsError):
        write_random_model(random_sdxl, description=tiny_sdxl)
    assert (random_sdxl / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == before
