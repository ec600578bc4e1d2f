"""Whole runs of the engine on the tiny SDXL: what they leave on disk, what they journal, what they never do."""

import gc
import json
import shutil
import time
import weakref
from importlib.util import find_spec
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.engine.harness import (
    hash_tensors,
    of_kind,
    prepared_trainer,
    small_config,
    train,
    train_well,
    write_pictures,
)
from tuitrain.engine.launch import create_run, train_run
from tuitrain.engine.trainer import Trainer
from tuitrain.runs import events
from tuitrain.runs.checkpoints import list_checkpoints, verify_checkpoint
from tuitrain.runs.control import Command, CommandQueue, send_command
from tuitrain.runs.journal import read_journal
from tuitrain.runs.run import summarize

BUCKETS = "data_loader.aspect_ratio_buckets={target_resolution: 64, start_dim: 32, end_dim: 96, divisible_by: 16}"
ONE_SAMPLE: dict[str, Any] = {
    "validation_prompts": ["a hat"],
    "validation_steps": 1,
    "num_validation_images_per_prompt": 1,
}


class Script:
    """Gives each command at a fixed number of polls of a phase, as a user would.

    Args:
        runs: the folder of the one run, whose journal tells when the phase begins.
        phase: polls are counted from its start on.
    """

    def __init__(self, runs: Path, phase: str = "train", **commands: Command) -> None:
        self.runs = runs
        self.started = f'"phase":"{phase}"'.encode()
        self.commands = {int(name.removeprefix("at_")): command for name, command in commands.items()}
        self.polls = 0

    def __call__(self) -> Command | None:
        (journal,) = self.runs.glob("*/journal.jsonl")
        if self.polls or self.started in journal.read_bytes():
            self.polls += 1
        return self.commands.get(self.polls)


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def test_a_run_leaves_the_layout_of_invoke_training(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    config = small_config(
        tmp_path,
        tiny_sdxl,
        jsonl,
        "max_train_steps=6",
        "save_every_n_steps=3",
        "validate_every_n_steps=3",
        validation_prompts=["a red ball", "a hat"],
        num_validation_images_per_prompt=2,
        validation_steps=2,
    )
    run, journal = train_well(config)
    names = sorted(path.relative_to(run.path).as_posix() for path in run.path.rglob("*.safetensors"))
    assert [name for name in names if "/state/" not in name] == [
        f"checkpoints/checkpoint-epoch_{epoch:08d}-step_{step:08d}/unet/diffusion_pytorch_model.safetensors"
        for epoch, step in ((1, 3), (2, 6))
    ]
    pictures = sorted(path.relative_to(run.validation_dir).as_posix() for path in run.validation_dir.rglob("*.jpg"))
    assert pictures == [
        f"epoch_{epoch:08d}-step_{step:08d}/prompt_{prompt:04d}/{image:04d}.jpg"
        for epoch, step in ((1, 3), (2, 6))
        for prompt in range(2)
        for image in range(2)
    ]
    with Image.open(run.validation_dir / pictures[0]) as picture:
        assert picture.size == (64, 64)
    assert json.loads((run.path / "config.json").read_text())["train_batch_size"] == 2
    assert [event.step for event in of_kind(journal, events.StepLogged)] == [1, 2, 3, 4, 5, 6]
    assert of_kind(journal, events.RunFinished)[0].reason == "completed"
    assert summarize(run).state == "finished"


def test_a_checkpoint_loads_in_diffusers_and_its_manifest_describes_it(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    run, _ = train_well(small_config(tmp_path, tiny_sdxl, jsonl, "max_train_steps=3"))
    (checkpoint,) = list_checkpoints(run.checkpoints_dir)
    assert verify_checkpoint(checkpoint.path) == []
    manifest = checkpoint.manifest
    assert (manifest.step, manifest.epoch, manifest.kind) == (3, 1, "trained_only_diffusers")
    assert (manifest.base_model, manifest.save_dtype) == (str(tiny_sdxl), "float16")
    assert len(manifest.last_losses) == 3
    stored = load_file(checkpoint.path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    unet, info = UNet2DConditionModel.from_pretrained(checkpoint.path / "unet", output_loading_info=True)
    assert not any(info.values())
    base = UNet2DConditionModel.from_pretrained(tiny_sdxl / "unet")
    assert any(not torch.equal(a, b) for a, b in zip(unet.parameters(), base.parameters(), strict=True))


def test_a_full_checkpoint_is_a_pipeline_that_loads_and_samples(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    config = small_config(
        tmp_path,
        tiny_sdxl,
        jsonl,
        "max_train_steps=1",
        save_checkpoint_format="full_diffusers",
        prediction_type="v_prediction",
        zero_terminal_snr=True,
    )
    run, _ = train_well(config)
    (checkpoint,) = list_checkpoints(run.checkpoints_dir)
    pipeline = StableDiffusionXLPipeline.from_pretrained(checkpoint.path, torch_dtype=torch.float32)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.rescale_betas_zero_snr
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    base = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    for name in ("text_encoder", "text_encoder_2", "vae"):
        trained_parts, base_parts = getattr(pipeline, name).state_dict(), getattr(base, name).state_dict()
        for key, tensor in base_parts.items():
            if tensor.is_floating_point():
                assert torch.equal(trained_parts[key], tensor.half().float()), (name, key)
    stored = load_file(checkpoint.path / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in stored)


def test_saving_does_not_change_the_weights_in_training(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    trainer = prepared_trainer(small_config(tmp_path, tiny_sdxl, jsonl))
    try:
        trainer.train_step(next(iter(trainer.loader)))
        before = hash_tensors(trainer.models.unet.state_dict().values())
        trainer.save()
        trainer.finish_save()
        assert hash_tensors(trainer.models.unet.state_dict().values()) == before
    finally:
        trainer.close()


def test_sampling_and_saving_do_not_change_what_is_trained(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    quiet, quiet_journal = train_well(small_config(tmp_path, tiny_sdxl, jsonl, save_dtype="float32"))
    busy_config = small_config(
        tmp_path,
        tiny_sdxl,
        jsonl,
        "validate_every_n_steps=1",
        "save_every_n_steps=1",
        "save_checkpoint_format=full_diffusers",
        save_dtype="float32",
        validation_prompts=["a hat"],
        validation_steps=2,
        num_validation_images_per_prompt=1,
        validate_at_start=True,
    )
    busy, busy_journal = train_well(busy_config)
    weights = [
        list_checkpoints(run.checkpoints_dir)[-1].path / "unet" / "diffusion_pytorch_model.safetensors"
        for run in (quiet, busy)
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert [e.loss for e in of_kind(quiet_journal, events.StepLogged)] == [
        e.loss for e in of_kind(busy_journal, events.StepLogged)
    ]
    assert [event.step for event in of_kind(busy_journal, events.SamplesSaved)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("negatives", [None, ["", "a blurred old photograph"]], ids=["no negatives", "negatives"])
def test_samples_are_those_of_the_diffusers_pipeline_with_the_same_seed(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, negatives: list[str] | None
) -> None:
    prompts = ["a red ball", "a map of the sea"]
    config = small_config(
        tmp_path,
        tiny_sdxl,
        jsonl,
        "max_train_steps=1",
        "validate_every_n_steps=1",
        validation_prompts=prompts,
        negative_validation_prompts=negatives,
        validation_steps=4,
        num_validation_images_per_prompt=2,
        validation_size=[64, 96],
        validate_at_start=True,
    )
    run, _ = train_well(config)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    settings = {"height": 64, "width": 96, "num_inference_steps": 4, "guidance_scale": 5.0}
    for prompt_index, image_index in product(range(2), range(2)):
        if image_index == 0:
            generator = torch.Generator().manual_seed(1)
        negative = None if negatives is None else negatives[prompt_index]
        (expected,) = pipeline(prompts[prompt_index], negative_prompt=negative, generator=generator, **settings).images
        folder = run.validation_dir / "epoch_00000000-step_00000000" / f"prompt_{prompt_index:04d}"
        path = folder / f"{image_index:04d}.jpg"
        as_jpeg = BytesIO()
        expected.save(as_jpeg, format="JPEG", quality=95)
        with Image.open(path) as sampled, Image.open(as_jpeg) as wanted:
            difference = np.asarray(sampled, dtype=float) - np.asarray(wanted, dtype=float)
        assert np.abs(difference).mean() < 0.5  # of 255
    assert len(list((run.validation_dir / "epoch_00000000-step_00000000").rglob("*.jpg"))) == 4


def test_the_second_start_encodes_nothing_and_trains_the_same(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    config = small_config(tmp_path, tiny_sdxl, jsonl)
    _, first = train_well(config)
    _, second = train_well(config)
    filled = [{e.cache: (e.encoded, e.reused) for e in of_kind(j, events.CacheFilled)} for j in (first, second)]
    assert filled == [{"latents": (5, 0), "text": (5, 0)}, {"latents": (0, 5), "text": (0, 5)}]
    losses = [[event.loss for event in of_kind(journal, events.StepLogged)] for journal in (first, second)]
    assert losses[0] == losses[1]


def test_another_seed_trains_another_run(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    losses = []
    for seed in (1, 2):
        _, journal = train_well(small_config(tmp_path, tiny_sdxl, jsonl, seed=seed))
        losses.append([event.loss for event in of_kind(journal, events.StepLogged)])
    assert losses[0] != losses[1]


def test_loader_workers_train_the_same_steps_with_live_encoders(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    losses = []
    for num_workers in (0, 2):
        config = small_config(
            tmp_path,
            tiny_sdxl,
            jsonl,
            BUCKETS,
            "data_loader.random_flip=true",
            "data_loader.center_crop=false",
            f"data_loader.dataloader_num_workers={num_workers}",
            "caption_dropout=0.3",
            caption_shuffle=True,
            cache_vae_outputs=False,
            cache_text_encoder_outputs=False,
        )
        _, journal = train_well(config)
        losses.append([event.loss for event in of_kind(journal, events.StepLogged)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "overrides",
    [
        ["weight_dtype=bfloat16"],
        ["weight_dtype=bfloat16", "optimizer.use_8bit=true"],
        ["optimizer.use_8bit=true"],
        ["weight_dtype=bfloat16", "optimizer={optimizer_type: Adafactor, learning_rate: 1e-3}"],
        ["optimizer={optimizer_type: Prodigy}"],
        ["weight_dtype=bfloat16", "optimizer={optimizer_type: Prodigy}"],
        ["mixed_precision=bf16", "weight_dtype=bfloat16", "ema_decay=0.9"],
    ],
    ids=lambda overrides: "+".join(item.partition("=")[2] for item in overrides),
)
def test_every_precision_and_optimizer_lowers_the_loss(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, overrides: list[str]
) -> None:
    config = small_config(tmp_path, tiny_sdxl, jsonl, *overrides, max_train_steps=24, log_every_n_steps=8)
    _, journal = train_well(config)
    losses = [event.loss for event in of_kind(journal, events.StepLogged)]
    assert losses[-1] < 0.9 * losses[0]


def test_mixed_precision_trains_float32_weights_read_unrounded(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    config = small_config(tmp_path, tiny_sdxl, jsonl, mixed_precision="bf16", weight_dtype="bfloat16")
    trainer = prepared_trainer(config)
    try:
        stored = load_file(tiny_sdxl / "unet" / "diffusion_pytorch_model.safetensors")
        for name, param in trainer.models.unet.named_parameters():
            assert torch.equal(param, stored[name])
        assert trainer.models.text_encoder.dtype == torch.bfloat16
        assert trainer.models.vae.dtype == torch.float32
    finally:
        trainer.close()


def test_an_averaged_run_saves_and_samples_the_average(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    trainer = prepared_trainer(small_config(tmp_path, tiny_sdxl, jsonl, ema_decay=0.5, save_dtype="float32"))
    try:
        before = {name: param.detach().clone() for name, param in trainer.models.unet.named_parameters()}
        trainer.train_step(next(iter(trainer.loader)))
        trainer.save()
        trainer.finish_save()
        (checkpoint,) = list_checkpoints(trainer.run.checkpoints_dir)
        assert checkpoint.manifest.weights == "ema"
        stored = load_file(checkpoint.path / "unet" / "diffusion_pytorch_model.safetensors")
        for name, param in trainer.models.unet.named_parameters():
            torch.testing.assert_close(stored[name], 0.5 * before[name] + 0.5 * param)
    finally:
        trainer.close()


def test_old_checkpoints_are_pruned_only_after_the_new_one_stands(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    config = small_config(tmp_path, tiny_sdxl, jsonl, "save_every_n_steps=1", max_checkpoints=2)
    run, journal = train_well(config)
    assert [checkpoint.manifest.step for checkpoint in list_checkpoints(run.checkpoints_dir)] == [3, 4]
    order = [type(e).__name__ for e in journal if isinstance(e, events.CheckpointSaved | events.CheckpointPruned)]
    assert order == ["CheckpointSaved"] * 3 + ["CheckpointPruned", "CheckpointSaved", "CheckpointPruned"]


def test_epoch_cadences_count_completed_epochs(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    config = small_config(
        tmp_path,
        tiny_sdxl,
        jsonl,
        max_train_steps=None,
        max_train_epochs=4,
        save_every_n_steps=None,
        save_every_n_epochs=2,
        validate_every_n_epochs=3,
        **ONE_SAMPLE,
    )
    _, journal = train_well(config)
    scanned = of_kind(journal, events.DatasetScanned)[0]
    assert (scanned.steps_per_epoch, scanned.total_steps, scanned.num_epochs) == (3, 12, 4)
    assert [(e.epoch, e.step) for e in of_kind(journal, events.EpochFinished)] == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert [(e.epoch, e.step) for e in of_kind(journal, events.CheckpointSaved)] == [(2, 6), (4, 12)]
    assert [(e.epoch, e.step) for e in of_kind(journal, events.SamplesSaved)] == [(3, 9)]


@pytest.mark.parametrize(("max_train_steps", "is_due"), [(2, True), (4, False), (7, True)])
def test_a_stop_inside_an_epoch_looks_at_the_completed_epochs_again(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, max_train_steps: int, is_due: bool
) -> None:
    config = small_config(
        tmp_path,
        tiny_sdxl,
        jsonl,
        max_train_steps=max_train_steps,  # of 3 an epoch: 0, 1 and 2 are completed
        save_every_n_steps=None,
        save_every_n_epochs=2,
        save_at_end=False,
        validate_every_n_epochs=2,
        **ONE_SAMPLE,
    )
    _, journal = train_well(config)
    expected = {max_train_steps} if is_due else set()
    assert {e.step for e in of_kind(journal, events.CheckpointSaved)} - {6} == expected
    assert {e.step for e in of_kind(journal, events.SamplesSaved)} - {6} == expected


def test_a_run_leaves_no_network_in_memory_for_the_next_one(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks: list[weakref.ref[torch.nn.Module]] = []
    prepare = Trainer.prepare

    def prepare_and_look(trainer: Trainer) -> None:
        prepare(trainer)
        networks.append(weakref.ref(trainer.models.unet))

    monkeypatch.setattr(Trainer, "prepare", prepare_and_look)
    gc.disable()  # Python's own time for it is anyone's guess
    try:
        train_well(small_config(tmp_path, tiny_sdxl, jsonl, "max_train_steps=1"))
        train_well(small_config(tmp_path, tiny_sdxl, jsonl, "max_train_steps=1", mixed_precision="bf16"))
        assert [network() for network in networks] == [None, None]
    finally:
        gc.enable()


def test_a_base_model_that_goes_while_training_costs_no_checkpoint(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    model = shutil.copytree(tiny_sdxl, tmp_path / "model")

    class RemoveModel(Script):
        def __call__(self) -> None:
            if super().__call__() is Command.SAVE:
                shutil.rmtree(model)

    config = small_config(tmp_path, model, jsonl, "max_train_steps=1")
    run, _ = train_well(config, RemoveModel(tmp_path / "runs", at_1=Command.SAVE))
    assert not model.exists()
    assert len(list_checkpoints(run.checkpoints_dir)) == 1


def test_without_save_at_end_only_the_interval_saves(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    config = small_config(tmp_path, tiny_sdxl, jsonl, "save_every_n_steps=3", save_at_end=False)
    run, _ = train_well(config)
    assert [checkpoint.manifest.step for checkpoint in list_checkpoints(run.checkpoints_dir)] == [3]


def test_commands_act_between_steps_and_are_acknowledged(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    config = small_config(
        tmp_path,
        tiny_sdxl,
        jsonl,
        max_train_steps=20,
        validate_every_n_steps=100,
        **ONE_SAMPLE,
    )
    script = Script(
        tmp_path / "runs",
        at_2=Command.SAMPLE,  # before the second step; then 2 polls while sampling, and one more after every command
        at_6=Command.PAUSE,
        at_7=Command.SAMPLE,
        at_11=Command.RESUME,
        at_13=Command.SAVE,
        at_14=Command.STOP,  # while it is saved
    )
    run, journal = train_well(config, script)
    assert [event.command for event in of_kind(journal, events.CommandObeyed)] == [
        "sample",
        "pause",
        "sample",
        "resume",
        "save",
        "stop",
    ]
    assert [event.step for event in of_kind(journal, events.SamplesSaved)] == [1, 2]
    received = next(e for e in of_kind(journal, events.CommandReceived) if e.command == "stop")
    saved = of_kind(journal, events.CheckpointSaved)[0]
    assert journal.index(received) < journal.index(saved)
    (paused,), (unpaused,) = of_kind(journal, events.Paused), of_kind(journal, events.Unpaused)
    assert paused.step == unpaused.step
    finished = of_kind(journal, events.RunFinished)[0]
    assert (finished.reason, finished.step) == ("stopped", 3)
    assert list_checkpoints(run.checkpoints_dir)[-1].manifest.step == 3
    assert summarize(run).state == "stopped"


def test_a_stop_while_sampling_leaves_the_samples_and_saves(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    config = small_config(tmp_path, tiny_sdxl, jsonl, "validate_every_n_steps=2", **ONE_SAMPLE)
    run, journal = train_well(config, Script(tmp_path / "runs", "sample", at_1=Command.STOP))
    assert of_kind(journal, events.SamplesSaved) == []
    assert [e.detail for e in of_kind(journal, events.PhaseFinished) if e.phase == "sample"] == ["left for a stop"]
    assert [event.step for event in of_kind(journal, events.CheckpointSaved)] == [2]
    assert summarize(run).state == "stopped"


def test_discard_stops_after_the_step_and_saves_nothing(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    config = small_config(tmp_path, tiny_sdxl, jsonl, "max_train_steps=50")
    run, journal = train_well(config, Script(tmp_path / "runs", "train", at_6=Command.DISCARD))
    (finished,) = of_kind(journal, events.RunFinished)
    assert finished.reason == "stopped"
    assert 0 < finished.step < 50
    assert list_checkpoints(run.checkpoints_dir) == []


def test_every_part_of_a_run_is_a_phase_that_says_how_far_it_is(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    config = small_config(
        tmp_path,
        tiny_sdxl,
        jsonl,
        "max_train_steps=1",
        "validate_every_n_steps=1",
        validation_prompts=["a hat", "a ball"],
        validation_steps=3,
        num_validation_images_per_prompt=1,
    )
    run, journal = train_well(config)
    assert [e.phase for e in of_kind(journal, events.PhaseStarted)] == [
        *("import_libraries", "scan_images", "load_model", "cache_latents", "cache_text", "train", "sample", "save")
    ]
    ends = {e.phase: (e.done, e.total, e.detail) for e in of_kind(journal, events.PhaseProgressed)}
    assert ends["sample"] == (6, 6, "sample 2/2")
    (checkpoint,) = list_checkpoints(run.checkpoints_dir)
    num_saved, num_loaded = (
        sum(tensor.nbytes for path in folder.rglob("*.safetensors") for tensor in load_file(path).values())
        for folder in (checkpoint.path, tiny_sdxl)
    )
    assert ends["save"] == (num_saved, num_saved, checkpoint.path.name)
    assert ends["import_libraries"][:2] == (5, 5)
    assert ends["load_model"][:2] == (num_loaded, num_loaded)


def test_a_run_beats_until_its_end(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    begun = time.time()
    run, journal = train_well(small_config(tmp_path, tiny_sdxl, jsonl, "max_train_steps=1"))
    age = run.heartbeat_age()
    assert age is not None
    assert 0 <= age <= time.time() - begun
    (logged,) = of_kind(journal, events.StepLogged)
    assert 0 <= logged.data_seconds <= logged.seconds_per_step
    assert logged.allocated_memory_gib is None or logged.allocated_memory_gib <= logged.reserved_memory_gib


def test_a_run_is_steered_through_its_control_folder(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    config, run = create_run(small_config(tmp_path, tiny_sdxl, jsonl, max_train_steps=500))
    queue = CommandQueue(run.control_dir)
    third_step = Script(tmp_path / "runs", at_3=Command.STOP)

    def poll() -> Command | None:
        if command := third_step():
            send_command(run.control_dir, command)
        return queue.poll()

    assert train_run(config, run, poll) == 0
    assert of_kind(read_journal(run.journal_path), events.RunFinished)[0].step == 2


def test_a_run_that_fails_says_so_in_its_journal_with_the_traceback_in_the_log(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    (tmp_path / "no model").mkdir()
    run, journal, exit_code = train(small_config(tmp_path, tmp_path / "no model", jsonl))
    assert exit_code == 2
    (failure,) = of_kind(journal, events.RunFailed)
    assert "no model" in failure.what + failure.where
    assert failure.exit_code == 2
    assert "Traceback" in run.log_path.read_text()
    assert summarize(run).state == "failed"


def test_a_bad_picture_ends_the_run_before_the_model_loads_or_is_skipped(tmp_path: Path, tiny_sdxl: Path) -> None:
    jsonl = write_pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "2.png").write_bytes(b"not a picture")
    _, journal, exit_code = train(small_config(tmp_path, tiny_sdxl, jsonl))
    assert exit_code == 2
    (failure,) = of_kind(journal, events.RunFailed)
    assert "2.png" in failure.what + failure.where
    assert not of_kind(journal, events.ModelLoaded)
    _, journal = train_well(small_config(tmp_path, tiny_sdxl, jsonl, on_bad_image="skip"))
    (rejected,) = of_kind(journal, events.ImageRejected)
    assert rejected.path.endswith("data.jsonl:3")
    assert "2.png" in rejected.reason
    assert of_kind(journal, events.DatasetScanned)[0].num_images == 4


def test_tensorboard_mirrors_the_journal(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    config = small_config(
        tmp_path,
        tiny_sdxl,
        jsonl,
        "validate_every_n_steps=4",
        validation_prompts=["a hat"],
        validation_steps=1,
        num_validation_images_per_prompt=2,
        optimizer={"optimizer_type": "Prodigy"},
    )
    run, journal = train_well(config)
    accumulator = EventAccumulator(str(run.tensorboard_dir / "finetune"))
    accumulator.Reload()
    logged = of_kind(journal, events.StepLogged)
    mirrored = {tag: accumulator.Scalars(tag) for tag in ("train_loss", "lr/unet", "lr/d*lr/unet")}
    assert [scalar.step for scalar in mirrored["train_loss"]] == [event.step for event in logged]
    assert [s.value for s in mirrored["train_loss"]] == pytest.approx([event.loss for event in logged])
    assert [s.value for s in mirrored["lr/d*lr/unet"]] == pytest.approx([event.d * event.lr for event in logged])
    (pictures,) = accumulator.Images("validation (prompt 0)")
    assert (pictures.step, pictures.height, pictures.width) == (4, 64, 2 * 64)  # side by side
    assert "SDXL_FINETUNE" in str(accumulator.Tensors("configuration/text_summary")[0].tensor_proto.string_val)


def test_masks_and_aspect_buckets_train_on_real_photographs(tmp_path: Path, tiny_sdxl: Path, gnome_dir: Path) -> None:
    jsonl = gnome_dir / "data_masked.jsonl"
    _, journal = train_well(small_config(tmp_path, tiny_sdxl, jsonl, BUCKETS, use_masks=True))
    assert of_kind(journal, events.DatasetScanned)[0].num_images == 2
    assert of_kind(journal, events.RunFinished)[0].step == 4


def test_dreambooth_trains_instance_and_class_pictures_side_by_side(
    tmp_path: Path, tiny_sdxl: Path, gnome_dir: Path, jsonl: Path
) -> None:
    config = small_config(
        tmp_path,
        tiny_sdxl,
        jsonl,
        data_loader={
            "type": "DREAMBOOTH_SD_DATA_LOADER",
            "instance_caption": "a photo of bruce the gnome",
            "class_caption": "a photo of a gnome",
            "instance_dataset": {"type": "IMAGE_DIR_DATASET", "dataset_dir": str(gnome_dir)},
            "class_dataset": {"type": "IMAGE_DIR_DATASET", "dataset_dir": str(jsonl.parent)},
            "class_data_loss_weight": 0.5,
            "resolution": 64,
        },
    )
    trainer = prepared_trainer(config)
    try:
        (batch,) = next(iter(trainer.loader))
        assert [image_id.partition("_")[0] for image_id in batch["image_ids"]] == ["instance", "class"]
        assert batch["loss_weight"].tolist() == [1.0, 0.5]
        assert trainer.steps_per_epoch == 4
        trainer.train_step([batch])
    finally:
        trainer.close()


@pytest.mark.slow
def test_overfitting_four_photographs_halves_the_fixed_noise_loss(
    tmp_path: Path, tiny_sdxl: Path, gnome_dir: Path
) -> None:
    config = small_config(tmp_path, tiny_sdxl, gnome_dir / "data.jsonl", train_batch_size=4)
    trainer = prepared_trainer(config)
    try:
        steps = iter(trainer.loader)
        (batch,) = next(steps)

        @torch.no_grad()
        def fixed_noise_loss() -> float:
            step, losses = trainer.step, []
            for trainer.step in range(10_000, 10_008):
                losses.append(trainer.compute_loss(batch).item())
            trainer.step = step
            return sum(losses) / len(losses)

        start = fixed_noise_loss()
        for _ in range(200):
            trainer.train_step(next(steps))
        assert fixed_noise_loss() < 0.5 * start
    finally:
        trainer.close()


def test_run_folders_keep_out_other_users(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    run, _ = train_well(small_config(tmp_path, tiny_sdxl, jsonl, "max_train_steps=1"))
    assert run.path.stat().st_mode & 0o077 == 0


def test_sizes_the_vae_would_round_are_refused_before_anything_is_encoded(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    config = small_config(
        tmp_path,
        tiny_sdxl,
        jsonl,
        "validate_every_n_steps=2",
        "data_loader.resolution=66",
        validation_prompts=["a hat"],
        validation_size=60,
    )
    _, journal, exit_code = train(config)
    assert exit_code == 2
    (failure,) = of_kind(journal, events.RunFailed)
    assert "66x66" in failure.what
    assert "60x60" in failure.what
    assert not of_kind(journal, events.CacheFilled)


def test_a_tracker_that_is_not_installed_is_refused_at_once(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    if find_spec("comet_ml") is not None:
        pytest.skip("comet_ml is installed here")
    _, journal, exit_code = train(small_config(tmp_path, tiny_sdxl, jsonl, report_to="comet_ml"))
    assert exit_code == 2
    (failure,) = of_kind(journal, events.RunFailed)
    assert "pip install comet_ml" in failure.hint
    assert not of_kind(journal, events.DatasetScanned)


def test_samples_that_cannot_be_written_do_not_end_the_run(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    config = small_config(
        tmp_path,
        tiny_sdxl,
        jsonl,
        "validate_every_n_steps=2",
        **ONE_SAMPLE,
    )
    config, run = create_run(config)
    run.validation_dir.rmdir()
    run.validation_dir.write_text("a file in the way")
    assert train_run(config, run, lambda: None) == 0
    journal = read_journal(run.journal_path)
    assert [event.what.partition(":")[0] for event in of_kind(journal, events.WarningRaised)] == [
        "no samples at step 2",
        "no samples at step 4",
    ]


def test_samples_guided_by_what_dropout_never_teaches_are_warned_of(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    told = []
    for mode in ("mix", "encoded"):
        config = small_config(
            tmp_path,
            tiny_sdxl,
            jsonl,
            "max_train_steps=1",
            "validate_every_n_steps=5",
            caption_dropout=0.1,
            caption_dropout_mode=mode,
            **ONE_SAMPLE,
        )
        _, journal = train_well(config)
        told.append(["guided away from zeros" in event.what for event in of_kind(journal, events.WarningRaised)])
    assert told == [[], [True]]


def test_a_stop_while_caches_fill_ends_the_run_and_keeps_what_is_cached(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    config = small_config(tmp_path, tiny_sdxl, jsonl)
    stop_in_the_latents = Script(tmp_path / "runs", "cache_latents", at_1=Command.PAUSE, at_2=Command.STOP)
    run, journal = train_well(config, stop_in_the_latents)
    (finished,) = of_kind(journal, events.RunFinished)
    assert (finished.reason, finished.step) == ("stopped", 0)
    assert [event.command for event in of_kind(journal, events.CommandObeyed)] == ["stop"]
    assert not of_kind(journal, events.StepLogged)
    assert summarize(run).state == "stopped"
    _, journal = train_well(config)
    filled = {event.cache: (event.encoded, event.reused) for event in of_kind(journal, events.CacheFilled)}
    assert filled == {"latents": (3, 2), "text": (5, 0)}


def test_commands_given_while_caches_fill_are_obeyed_before_the_first_step(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    script = Script(tmp_path / "runs", "scan_images", at_2=Command.SAVE)
    _, journal = train_well(small_config(tmp_path, tiny_sdxl, jsonl), script)
    assert [event.command for event in of_kind(journal, events.CommandObeyed)] == ["save"]
    assert [event.step for event in of_kind(journal, events.CheckpointSaved)] == [0, 4]
