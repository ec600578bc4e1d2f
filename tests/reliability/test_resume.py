"""A run that was interrupted and resumed is the run that was not: bytes, losses, order of samples."""

import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.engine.harness import of_kind, train, train_well, write_pictures
from tests.reliability.figures import count, tell_figure
from tests.reliability.resumption import (
    BUCKETS,
    OPTIMIZERS,
    DieAfterCheckpoint,
    DieAfterStep,
    Died,
    Setup,
    die_and_resume,
    differences,
    in_new_process,
    outcome,
    read_samples,
    resume,
    resume_well,
    samples_recorded,
)
from tuitrain.config.fields import list_fields
from tuitrain.config.files import config_to_yaml, load_config
from tuitrain.engine import saving
from tuitrain.engine.launch import create_run, resume_run, train_run
from tuitrain.engine.phase import Phase, Pulse
from tuitrain.engine.resume import (
    FREE_SETTINGS,
    OPTIMIZER_SETTINGS,
    ResumePoint,
    numeric_settings,
    open_resume_target,
    verified,
)
from tuitrain.engine.state_size import state_bytes
from tuitrain.errors import CheckpointError, ConfigError
from tuitrain.host import MemoryReading
from tuitrain.plan import read_model_figures
from tuitrain.runs import events
from tuitrain.runs.checkpoints import list_checkpoints, step_of_name, verify_checkpoint
from tuitrain.runs.control import Command
from tuitrain.runs.journal import JournalTail, read_journal
from tuitrain.runs.manifest import manifest_to_json
from tuitrain.runs.run import Run, find_runs, summarize
from tuitrain.runs.states import StateManifest, list_states, read_state

NUM_PICTURES = 7


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), NUM_PICTURES)


CopyRun = Callable[[Run], Run]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_sdxl: Path, jsonl: Path) -> Run:
    """Died when the third of eight steps was saved, with the state of each; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    options = ("save_every_n_steps=1", "save_state=all")
    config = Setup("AdamW", "bfloat16", ema=True).config(folder, tiny_sdxl, jsonl, *options)
    run, _, _ = train(config, DieAfterCheckpoint(Path(config.base_output_dir), 3))
    return run


@pytest.fixture
def copy_run(tmp_path: Path) -> CopyRun:
    """Makes a copy that shares the weight files, which nobody writes into."""

    def copy_or_link(source: str, target: str) -> None:
        (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)

    def copy(run: Run) -> Run:
        return Run(shutil.copytree(run.path, tmp_path / "copy", copy_function=copy_or_link))

    return copy


def checkpoint_of(run: Run, step: int) -> Path:
    (checkpoint,) = run.checkpoints_dir.glob(f"checkpoint-*-step_{step:08d}")
    return checkpoint


def edit_state(checkpoint: Path, **values: Any) -> None:
    """As if it had been written so."""
    state = replace(read_state(checkpoint), **values)
    (checkpoint / "state" / "state.json").write_text(manifest_to_json(state))


def last_step(run: Run) -> int:
    return read_state(list_states(run.checkpoints_dir)[-1]).step


@pytest.mark.parametrize(
    ("setup", "step"),
    [
        (Setup("AdamW", "float32", buckets=True, dropout=True, save_dtype="float32"), 3),
        (Setup("AdamW8bit", "bfloat16", accumulation=3), 2),
        (Setup("Adafactor", "bfloat16", ema=True, save_dtype="float32"), 3),
        pytest.param(Setup("Prodigy", "bfloat16", dropout=True, save_dtype="bfloat16"), 1, marks=pytest.mark.slow),
    ],
    ids=lambda value: value.name if isinstance(value, Setup) else str(value),
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(
    setup: Setup, step: int, tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    with samples_recorded():
        reference, _ = train_well(setup.config(tmp_path / "a", tiny_sdxl, jsonl))
        run = die_and_resume(setup.config(tmp_path / "b", tiny_sdxl, jsonl, f"save_every_n_steps={step}"), step=step)
    assert differences(run, reference) == []


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_cell_of_the_matrix_is_exact_in_a_new_process(
    optimizer: str, dtype: str, tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    in_new_process("first", tmp_path, tiny_sdxl, jsonl, optimizer, dtype)
    in_new_process("second", tmp_path)
    cells = dict(json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines())
    count("cells of the matrix exact / cells", *(not differing for differing in cells.values()))
    assert len(cells) == 32
    assert {name: differing for name, differing in cells.items() if differing} == {}


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [3, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_killed_at_a_random_moment_and_resumed_a_run_is_the_uninterrupted_one(
    num_seeds: int, tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    in_new_process("kill", tmp_path, tiny_sdxl, jsonl, num_seeds)
    found = json.loads((tmp_path / "differences.json").read_text())
    count("runs exact after a kill / killed", *(not differing for differing in found.values()))
    assert len(found) == num_seeds
    assert {seed: differing for seed, differing in found.items() if differing} == {}


@pytest.mark.slow
def test_every_picture_is_trained_as_often_and_in_the_same_order_after_five_interruptions(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    setup = Setup(buckets=True, dropout=True)
    length = ("max_train_epochs=5", "data_loader.dataloader_num_workers=2")
    draw = random.Random(0)
    with samples_recorded():
        reference, _ = train_well(setup.config(tmp_path / "a", tiny_sdxl, jsonl, *length))
        config, run = create_run(setup.config(tmp_path / "b", tiny_sdxl, jsonl, *length, "save_every_n_steps=2"))
        assert train_run(config, run, DieAfterStep(run, draw.randint(2, 4))) == 1
        num_interruptions = 1
        while num_interruptions < 5:
            config, point = resume_run(run)
            assert train_run(config, run, DieAfterStep(run, point.state.step + draw.randint(1, 4))) == 1
            num_interruptions += 1
        resume_well(run)
    trained, wanted = (
        [(step, name) for step, (ids, _) in outcome(one)["samples"] for batch in ids for name in batch]
        for one in (run, reference)
    )
    times = Counter(name for _, name in trained)
    wanted_times = Counter(name for _, name in wanted)
    tell_figure(
        f"pictures over {num_interruptions} interruptions: {(times - wanted_times).total()} too often, "
        f"{(wanted_times - times).total()} missing, order equal: {trained == wanted}"
    )
    assert set(wanted_times.values()) == {5}
    assert len(wanted_times) == NUM_PICTURES
    assert trained == wanted
    assert len(read_samples(run)) > len(wanted) // 2  # steps were trained anew


# ------------------------------------------------------------------------------------------------------- what goes on


def test_journal_and_tensorboard_go_on_and_forget_what_was_trained_anew(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    config = Setup().config(tmp_path / "a", tiny_sdxl, jsonl, "save_every_n_steps=2")
    run, _, _ = train(config, DieAfterCheckpoint(Path(config.base_output_dir), 4))
    died = JournalTail(run.journal_path).read_new()
    resume_well(run)
    written = JournalTail(run.journal_path).read_new()
    assert written[: len(died)] == died
    assert [event.resumed_from for event in of_kind(written, events.RunStarted)] == [None, 4]
    told = read_journal(run.journal_path)
    assert [event.step for event in of_kind(told, events.StepLogged)] == list(range(1, 9))
    assert [(event.epoch, event.step) for event in of_kind(told, events.EpochFinished)] == [(1, 4), (2, 8)]
    assert [event.step for event in of_kind(told, events.CheckpointSaved)] == [2, 4, 6, 8]
    assert summarize(run).state == "finished"
    tensorboard = EventAccumulator(str(run.tensorboard_dir / "finetune")).Reload()
    assert [event.step for event in tensorboard.Scalars("train_loss")] == list(range(1, 9))


@pytest.mark.slow
def test_an_early_end_between_two_points_of_the_loss_curve_changes_no_point(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    losses = []
    for name, max_steps in (("whole", 8), ("parts", 5)):
        length = ("max_train_epochs=null", f"max_train_steps={max_steps}", "lr_scheduler=constant")
        run, _ = train_well(Setup().config(tmp_path / name, tiny_sdxl, jsonl, *length, "log_every_n_steps=3"))
        if max_steps < 8:
            resume_well(run, None, "max_train_steps=8")
        losses.append({event.step: event.loss for event in of_kind(read_journal(run.journal_path), events.StepLogged)})
    whole, parts = losses
    assert sorted(whole) == [3, 6, 8]
    assert {step: parts[step] for step in whole} == whole


@pytest.mark.slow
def test_a_save_asked_for_at_a_point_of_the_loss_curve_does_not_repeat_it(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = MemoryReading(total_bytes=16 << 20, available_bytes=2 << 20)
    monkeypatch.setattr(saving, "read_memory", lambda: little)  # so that no step overtakes the save
    config = Setup().config(tmp_path / "a", tiny_sdxl, jsonl, "log_every_n_steps=1")
    runs = Path(config.base_output_dir)

    def save_once_a_step_is_reported() -> Command | None:
        (journal,) = runs.glob("*/journal.jsonl")
        written = journal.read_bytes()
        if b'"CheckpointSaved"' in written and b'"StepLogged"' in written.partition(b'"CheckpointSaved"')[2]:
            raise Died
        return Command.SAVE if b'"StepLogged"' in written and b'"CommandReceived"' not in written else None

    run, _, _ = train(config, save_once_a_step_is_reported)
    resume_well(run)
    logged = of_kind(read_journal(run.journal_path), events.StepLogged)
    assert [event.step for event in logged] == list(range(1, 9))


@pytest.mark.slow
def test_three_resumes_leave_the_learning_rates_and_epochs_of_one_run(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    with samples_recorded():
        warm = ("lr_scheduler=cosine_with_restarts", "lr_warmup_steps=3")
        reference, _ = train_well(Setup().config(tmp_path / "a", tiny_sdxl, jsonl, *warm))
        config = Setup().config(tmp_path / "b", tiny_sdxl, jsonl, *warm, "save_every_n_steps=2")
        run, _, _ = train(config, DieAfterCheckpoint(Path(config.base_output_dir), 2))
        for step in (4, 6):
            resumed, point = resume_run(run)
            assert train_run(resumed, run, DieAfterCheckpoint(run.path.parent, step), resume=point) == 1
        resume_well(run)
    (rates, epochs), (wanted_rates, wanted_epochs) = (
        ([rate for _, rate, _ in found["rates"]], found["epochs"]) for found in map(outcome, (run, reference))
    )
    assert len(rates) == len(wanted_rates) == 8
    largest = max(abs(rate - wanted) for rate, wanted in zip(rates, wanted_rates, strict=True))
    tell_figure(
        f"learning rates after three resumes: max difference {largest}, epochs equal: {epochs == wanted_epochs}"
    )
    assert differences(run, reference) == []


def test_a_complete_run_is_refused_and_goes_on_when_it_is_given_more_steps(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    with samples_recorded():
        constant = ("lr_scheduler=constant",)
        reference, _ = train_well(Setup().config(tmp_path / "a", tiny_sdxl, jsonl, *constant, "max_train_epochs=2"))
        run, _ = train_well(Setup().config(tmp_path / "b", tiny_sdxl, jsonl, *constant, "max_train_epochs=1"))
        with pytest.raises(ConfigError, match=r"the run is complete.*max_train_epochs=2"):
            resume_run(run)
        resume_well(run, None, "max_train_epochs=2")
    assert differences(run, reference) == []
    assert load_config(run.config_path).max_train_epochs == 2


def test_learning_rate_and_cadences_may_change_and_apply_at_once(tmp_path: Path, saved: Run, copy_run: CopyRun) -> None:
    run = copy_run(saved)
    changes = ("optimizer.learning_rate=5e-4", "max_train_epochs=null", "max_train_steps=6", "save_every_n_steps=2")
    resume_well(run, None, *changes)
    journal = read_journal(run.journal_path)
    rates = {event.step: event.lr for event in of_kind(journal, events.StepLogged)}
    assert rates[4] == pytest.approx(5e-4 * (1 + math.cos(math.pi * 3 / 6)) / 2)
    assert sorted(rates) == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in of_kind(journal, events.CheckpointSaved)] == [1, 2, 3, 4, 6]
    config = load_config(run.config_path)
    assert (config.optimizer.learning_rate, config.max_train_steps) == (5e-4, 6)
    assert json.loads(run.config_json_path.read_text())["max_train_steps"] == 6
    assert not of_kind(journal, events.WarningRaised)


def test_going_back_sets_later_checkpoints_aside_and_trains_the_same_bytes_again(saved: Run, copy_run: CopyRun) -> None:
    run = copy_run(saved)
    kept = [path.name for path in list_states(run.checkpoints_dir)]
    before = read_state(checkpoint_of(run, 3)).files
    resume_well(run, checkpoint_of(run, 1), "max_train_epochs=null", "max_train_steps=3", "lr_scheduler=constant")
    (aside,) = run.abandoned_dir.iterdir()
    assert sorted(path.name for path in aside.iterdir()) == kept[1:]
    assert [path.name for path in list_states(run.checkpoints_dir)] == kept
    assert [file.path for file in read_state(checkpoint_of(run, 3)).files] == [file.path for file in before]
    (warning,) = of_kind(read_journal(run.journal_path), events.WarningRaised)
    assert str(aside) in warning.hint
    with pytest.raises(ConfigError, match="no longer, among the checkpoints"):
        open_resume_target(aside / kept[1])


# ---------------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    ("mode", "kept"),
    [
        ("last", [8]),
        pytest.param("all", [2, 4, 6, 8], marks=pytest.mark.slow),
        pytest.param("none", [], marks=pytest.mark.slow),
    ],
)
def test_states_are_kept_as_save_state_says(
    mode: str, kept: list[int], tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    options = ("save_every_n_steps=2", f"save_state={mode}")
    run, _ = train_well(Setup().config(tmp_path / "a", tiny_sdxl, jsonl, *options))
    assert [step_of_name(path.name) for path in list_states(run.checkpoints_dir)] == kept
    assert {path.suffix for path in run.checkpoints_dir.rglob("state/*")} <= {".safetensors", ".json"}
    for checkpoint in list_checkpoints(run.checkpoints_dir):
        assert verify_checkpoint(checkpoint.path) == []
        assert checkpoint.is_resumable == (checkpoint.manifest.step in kept)
    if not kept:
        with pytest.raises(ConfigError, match="save_state: none"):
            resume_run(run, None, ["max_train_epochs=9"])
    else:
        with pytest.raises(ConfigError, match=f"holds no state.*step_0000000{kept[-1]}"):
            resume_run(run, run.checkpoints_dir / "checkpoint-epoch_00000000-step_00000001")


@pytest.mark.parametrize(
    "setup",
    [
        Setup("AdamW8bit", "bfloat16", ema=True),
        pytest.param(Setup("AdamW8bit", "bfloat16", save_dtype="bfloat16"), marks=pytest.mark.slow),
        pytest.param(Setup("AdamW", "float32"), marks=pytest.mark.slow),
        pytest.param(Setup("Adafactor", "bfloat16"), marks=pytest.mark.slow),
        pytest.param(Setup("Adafactor", "float32", ema=True, save_dtype="float32"), marks=pytest.mark.slow),
        pytest.param(Setup("Prodigy", "float32"), marks=pytest.mark.slow),
    ],
    ids=lambda setup: setup.name,
)
def test_the_forecast_of_a_state_is_within_two_percent_of_what_it_takes(
    setup: Setup, tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    config = setup.config(tmp_path / "a", tiny_sdxl, jsonl, "max_train_epochs=null", "max_train_steps=1")
    run, _ = train_well(config)
    actual = sum(path.stat().st_size for path in checkpoint_of(run, 1).glob("state/*"))
    assert state_bytes(config, read_model_figures(config).unet) == pytest.approx(actual, rel=0.02)


def test_a_run_that_ended_before_its_first_checkpoint_cannot_be_resumed(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    _, run = create_run(Setup().config(tmp_path / "a", tiny_sdxl, jsonl))
    with pytest.raises(ConfigError, match=r"before its first checkpoint.*tuitrain train"):
        resume_run(run)


# ------------------------------------------------------------------------------------------------- what is damaged


def damage_file(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.unlink()  # others have links to it
    match how:
        case "cut":
            path.write_bytes(data[: len(data) * 3 // 4])
        case "one bit flipped":
            path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
        case "zeros":
            path.write_bytes(bytes(len(data)))
        case "longer":
            path.write_bytes(data + b"\0")
        case "missing":
            pass


def chosen(run: Run) -> ResumePoint:
    """The point that the training would go on from."""
    _, point = resume_run(run)
    pulse = Pulse(lambda event: None, lambda: None)
    return verified(point, Phase("load_state", lambda event: None, pulse, can_stop=False))


@pytest.mark.parametrize("how", ["missing", "cut", "one bit flipped", "zeros", "longer"])
@pytest.mark.parametrize("name", ["state.json", "optimizer.safetensors", "weights.safetensors", "ema.safetensors"])
def test_a_damaged_state_gives_way_to_the_one_before_and_without_one_is_refused(
    name: str, how: str, saved: Run, copy_run: CopyRun
) -> None:
    run = copy_run(saved)
    damage_file(checkpoint_of(run, 3) / "state" / name, how)
    point = chosen(run)
    count("damaged or missing parts of a state found / tried", point.state.step == 2)
    assert point.state.step == 2
    assert any(name in str(damage) for damage in point.damages)
    shutil.rmtree(checkpoint_of(run, 1))
    shutil.rmtree(checkpoint_of(run, 2))
    with pytest.raises(CheckpointError, match=name):
        chosen(run)
    assert verify_checkpoint(checkpoint_of(run, 3)) != []


def test_a_foreign_file_in_a_state_is_refused(saved: Run, copy_run: CopyRun) -> None:
    run = copy_run(saved)
    (checkpoint_of(run, 3) / "state" / "extra.pkl").write_bytes(b"x")
    assert chosen(run).state.step == 2


def test_the_state_of_another_step_is_refused(saved: Run, copy_run: CopyRun) -> None:
    run = copy_run(saved)
    path = checkpoint_of(run, 3) / "state" / "optimizer.safetensors"
    path.unlink()
    os.link(checkpoint_of(run, 2) / "state" / "optimizer.safetensors", path)
    assert chosen(run).state.step == 2


@pytest.mark.parametrize("how", ["missing", "of another type"])
@pytest.mark.parametrize("name", [field.name for field in fields(StateManifest)])
def test_a_state_with_a_field_that_cannot_be_read_is_refused(
    name: str, how: str, saved: Run, copy_run: CopyRun
) -> None:
    run = copy_run(saved)
    path = checkpoint_of(run, 3) / "state" / "state.json"
    values = json.loads(path.read_text())
    del values[name], values["sha256"]
    if how == "of another type":
        values[name] = [[None]]
    sha256 = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    path.unlink()
    path.write_text(json.dumps({**values, "sha256": sha256}))
    chosen_step = chosen(run).state.step
    count("damaged or missing parts of a state found / tried", chosen_step == 2)
    assert chosen_step == 2


def test_a_damaged_state_is_told_in_the_journal_and_the_run_goes_on_from_the_one_before(
    saved: Run, copy_run: CopyRun
) -> None:
    run = copy_run(saved)
    damage_file(checkpoint_of(run, 3) / "state" / "optimizer.safetensors", "one bit flipped")
    resume_well(run, None, "max_train_epochs=null", "max_train_steps=4")
    journal = read_journal(run.journal_path)
    assert of_kind(journal, events.RunStarted)[-1].resumed_from == 2
    warnings = [event.what for event in of_kind(journal, events.WarningRaised)]
    assert any("optimizer.safetensors is damaged" in what for what in warnings)
    assert [event.step for event in of_kind(journal, events.StepLogged)] == [1, 2, 3, 4]


# -------------------------------------------------------------------------------------------------- what has changed


@contextmanager
def refusal_counted() -> Iterator[None]:
    """Count whether what is done inside, a resume into a changed world, passes as refused and told."""
    is_refused = False
    try:
        yield
        is_refused = True
    finally:
        count("changes of the world refused and named / changes", is_refused)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optimizer={optimizer_type: Adafactor}", "optimizer.optimizer_type"),
        ("optimizer.use_8bit=true", "optimizer.use_8bit"),
        ("optimizer.beta2=0.99", "optimizer.beta2"),
        ("weight_dtype=float32", "weight_dtype"),
        ("mixed_precision=bf16", "mixed_precision"),
        ("train_batch_size=1", "train_batch_size"),
        ("gradient_accumulation_steps=2", "gradient_accumulation_steps"),
        (f"data_loader.aspect_ratio_buckets={json.dumps(BUCKETS)}", "data_loader.aspect_ratio_buckets"),
        ("data_loader.resolution=64", "data_loader.resolution"),
        ("data_loader.caption_prefix=x", "data_loader.caption_prefix"),
        ("seed=2", "seed"),
        ("caption_dropout=0.1", "caption_dropout"),
        ("cache_vae_outputs=false", "cache_vae_outputs"),
        ("min_snr_gamma=null", "min_snr_gamma"),
        ("max_grad_norm=null", "max_grad_norm"),
        ("ema_decay=0.99", "ema_decay"),
        ("prediction_type=v_prediction", "prediction_type"),
    ],
)
def test_a_changed_setting_that_decides_the_numbers_is_named_and_refused(override: str, key: str, saved: Run) -> None:
    with refusal_counted(), pytest.raises(ConfigError, match="--accept-changes") as raised:
        resume_run(saved, None, [override])
    assert any(problem.what.startswith(f"{key} was ") for problem in raised.value.problems[1:])
    resume_run(saved, None, [override], accept_changes=True)


def test_every_setting_either_may_change_or_is_compared(saved: Run) -> None:
    """The paths of both lists are real, so that a renamed setting shows here."""
    keys = [field.path for field in list_fields()]
    assert [free for free in FREE_SETTINGS if not any(key == free or key.startswith(f"{free}.") for key in keys)] == []
    compared = numeric_settings(load_config(saved.config_path))
    assert set(OPTIMIZER_SETTINGS) <= compared.keys()


@pytest.mark.parametrize("name", ["torch", "diffusers", "transformers", "accelerate", "pillow", "tuitrain"])
def test_another_version_of_a_library_is_named_and_refused(name: str, saved: Run, copy_run: CopyRun) -> None:
    run = copy_run(saved)
    edit_state(checkpoint_of(run, 3), world={**read_state(checkpoint_of(run, 3)).world, name: "0.0.1"})
    with refusal_counted(), pytest.raises(ConfigError, match=f"{name} was 0.0.1, it is"):
        resume_run(run)


def change_caption(folder: Path, _model: Path) -> None:
    jsonl = folder / "data.jsonl"
    jsonl.write_text(jsonl.read_text().replace("a red ball", "a red bull", 1))


def change_picture(folder: Path, _model: Path) -> None:
    shutil.copy(folder / "1.png", folder / "0.png")


def change_order(folder: Path, _model: Path) -> None:
    jsonl = folder / "data.jsonl"
    jsonl.write_text("\n".join(jsonl.read_text().splitlines()[::-1]) + "\n")


def change_unet(_folder: Path, model: Path) -> None:
    change_weight(model / "unet" / "diffusion_pytorch_model.safetensors")


def change_vae(_folder: Path, model: Path) -> None:
    change_weight(model / "vae" / "diffusion_pytorch_model.safetensors")


def change_text_encoder(_folder: Path, model: Path) -> None:
    change_weight(model / "text_encoder_2" / "model.safetensors")


def change_weight(path: Path) -> None:
    weights = load_file(path)
    weights[min(weights)].view(-1)[0] += 1
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(change_caption, "dataset", marks=pytest.mark.slow),
        (change_picture, "dataset"),
        pytest.param(change_order, "dataset", marks=pytest.mark.slow),
        (change_unet, "UNet of the base model"),
        pytest.param(change_vae, "VAE of the base model", marks=pytest.mark.slow),
        pytest.param(change_text_encoder, "text encoders of the base model", marks=pytest.mark.slow),
    ],
)
def test_changed_pictures_or_models_are_found_before_the_first_step_and_refused(
    change: Callable[[Path, Path], None], named: str, tmp_path: Path, saved: Run, copy_run: CopyRun, tiny_sdxl: Path
) -> None:
    run = copy_run(saved)
    jsonl = write_pictures(tmp_path / "pictures", NUM_PICTURES)
    model = shutil.copytree(tiny_sdxl, tmp_path / "model")
    moved = (f"data_loader.dataset.jsonl_path={jsonl}", f"model={model}")
    change(jsonl.parent, model)
    before = run.config_path.read_bytes()
    with refusal_counted():
        assert resume(run, checkpoint_of(run, 1), *moved) == 2
        failure = of_kind(read_journal(run.journal_path), events.RunFailed)[-1]
        assert f"{named} was" in failure.what
    assert "--accept-changes" in failure.hint
    assert run.config_path.read_bytes() == before
    assert [step_of_name(path.name) for path in list_states(run.checkpoints_dir)] == [1, 2, 3]
    logged, trained = (of_kind(read_journal(one.journal_path), events.StepLogged) for one in (run, saved))
    assert logged == trained


@pytest.mark.slow
def test_pictures_and_model_may_move(tmp_path: Path, saved: Run, copy_run: CopyRun, tiny_sdxl: Path) -> None:
    run = copy_run(saved)
    jsonl = write_pictures(tmp_path / "moved", NUM_PICTURES)
    model = shutil.copytree(tiny_sdxl, tmp_path / "model")
    resume_well(run, None, f"data_loader.dataset.jsonl_path={jsonl}", f"model={model}", "max_train_epochs=1")
    assert not of_kind(read_journal(run.journal_path), events.WarningRaised)


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer={optimizer_type: Adafactor}",),
        pytest.param(("weight_dtype=float32", "ema_decay=null"), marks=pytest.mark.slow),
        pytest.param(("train_batch_size=7",), marks=pytest.mark.slow),
    ],
    ids=["optimizer", "dtype and average", "batch"],
)
def test_accepted_changes_apply_and_are_told(overrides: tuple[str, ...], saved: Run, copy_run: CopyRun) -> None:
    run = copy_run(saved)
    resume_well(run, None, *overrides, "max_train_epochs=null", "max_train_steps=4", accept_changes=True)
    warnings = [event.what for event in of_kind(read_journal(run.journal_path), events.WarningRaised)]
    for override in overrides:
        assert any(f"change: {override.partition('=')[0]}" in what for what in warnings)
    assert last_step(run) == 4
    resume_well(run, None, "max_train_steps=5")  # the next one has nothing to accept
    assert last_step(run) == 5


def test_what_the_user_chose_to_change_is_accepted_and_nothing_else(saved: Run, copy_run: CopyRun) -> None:
    run = copy_run(saved)
    halved = ("train_batch_size=1", "optimizer={optimizer_type: Adafactor}")
    resume_run(run, None, halved, accept_overrides=True)
    with pytest.raises(ConfigError, match="--accept-changes"):
        resume_run(run, None, halved)
    edit_state(checkpoint_of(run, 3), world={**read_state(checkpoint_of(run, 3)).world, "torch": "0.0.1"})
    with pytest.raises(ConfigError, match=r"torch was 0\.0\.1") as raised:
        resume_run(run, None, halved, accept_overrides=True)
    assert len(raised.value.problems) == 2
    edit_state(checkpoint_of(run, 3), world=read_state(checkpoint_of(run, 2)).world)
    config, point = resume_run(
        run, None, [*halved, "max_train_epochs=null", "max_train_steps=4"], accept_overrides=True
    )
    assert train_run(config, run, lambda: None, resume=point) == 0  # the epoch has other steps
    warnings = [event.what for event in of_kind(read_journal(run.journal_path), events.WarningRaised)]
    assert any("change: steps in an epoch was 4, it is 7 now" in what for what in warnings)


# --------------------------------------------------------------------------------------------------- kill -9, slow


@pytest.mark.slow
@pytest.mark.exhaustive
def test_killed_again_and_again_the_run_ends_as_the_uninterrupted_one(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    """Kills at times drawn at random, in every phase, each followed by `train --resume`."""
    options = ("max_train_epochs=10", "save_every_n_steps=3", "max_checkpoints=2")
    setup = Setup("AdamW", "bfloat16", dropout=True, ema=True)
    reference, _ = train_well(setup.config(tmp_path / "a", tiny_sdxl, jsonl, *options))
    _, run = create_run(setup.config(tmp_path / "b", tiny_sdxl, jsonl, *options))
    rng = random.Random(0)
    kills = 0
    while summarize(run).state != "finished":
        has_state = bool(list_states(run.checkpoints_dir))
        program = ["-m", "tuitrain", "train", "--resume"] if has_state else ["-c", TRAIN_ANEW]
        process = subprocess.Popen([sys.executable, *program, str(run.path)], stdout=subprocess.DEVNULL)
        try:
            wait_for_steps(process, run, rng.randint(1, 9))
            time.sleep(rng.random())
        finally:
            kills += process.poll() is None
            process.kill()
            process.wait()
    ours, theirs = (read_state(list_states(one.checkpoints_dir)[-1]) for one in (run, reference))
    assert [(file.path, file.sha256) for file in ours.files] == [(file.path, file.sha256) for file in theirs.files]
    losses = [
        [(event.step, event.loss) for event in of_kind(read_journal(one.journal_path), events.StepLogged)]
        for one in (run, reference)
    ]
    assert losses[0] == losses[1]
    assert [one.path.name for one in list_checkpoints(run.checkpoints_dir)] == [
        one.path.name for one in list_checkpoints(reference.checkpoints_dir)
    ]
    sys.stderr.write(f"killed {kills} times, equal at the end\n")
    assert kills > 3


TRAIN_ANEW = "import sys; from tuitrain.detached import main; sys.exit(main(sys.argv[1]))"


def wait_for_steps(process: subprocess.Popen[bytes], run: Run, num_steps: int) -> None:
    """Until the process has journalled that many steps, or has ended."""
    tail = JournalTail(run.journal_path, offset=run.journal_path.stat().st_size)
    seen = 0
    deadline = time.monotonic() + 120
    while process.poll() is None and seen < num_steps and time.monotonic() < deadline:
        seen += len(of_kind(tail.read_new(), events.StepLogged))
        time.sleep(0.05)


# -------------------------------------------------------------------------------------------------- two ranks, slow


@pytest.mark.slow
def test_two_ranks_go_on_as_they_would_have(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    two_ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

    def launch(*arguments: str) -> None:
        subprocess.run([*two_ranks, "-m", "tuitrain", "train", *arguments], check=True, timeout=300)

    runs = []
    for name, num_epochs in (("whole", 2), ("parts", 1)):
        setup = Setup("AdamW", "bfloat16", dropout=True, ema=True)
        config = setup.config(tmp_path / name, tiny_sdxl, jsonl, "lr_scheduler=constant", "train_batch_size=1")
        path = tmp_path / f"{name}.yaml"
        path.write_text(config_to_yaml(config))
        launch(str(path), "--set", f"max_train_epochs={num_epochs}")
        (run,) = find_runs(Path(config.base_output_dir))
        runs.append(run)
    whole, parts = runs
    launch("--resume", str(parts.path), "--set", "max_train_epochs=2")
    ours, theirs = (read_state(list_states(run.checkpoints_dir)[-1]) for run in runs)
    assert ours.step == theirs.step == 8
    assert ours.files == theirs.files
    losses = [[e.loss for e in of_kind(read_journal(run.journal_path), events.StepLogged)] for run in (whole, parts)]
    assert losses[0] == losses[1]
