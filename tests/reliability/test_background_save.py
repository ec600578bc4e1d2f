"""Checkpoints that are written while training goes on: their bytes, their failures, and what waits for them."""

import hashlib
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.engine.harness import of_kind, prepared_trainer, small_config, train, train_well, write_pictures
from tests.reliability.figures import tell_figure
from tests.reliability.resumption import DieAfterCheckpoint, Died, Setup, differences, resume_well, samples_recorded
from tests.reliability.saving import is_writing
from tuitrain.config.schema import TrainConfig
from tuitrain.engine import saving
from tuitrain.engine.checkpoint_writer import SMALL_FILES_BYTES, CheckpointContent, CheckpointWriter, HostCopies
from tuitrain.engine.trainer import Trainer
from tuitrain.host import MemoryReading
from tuitrain.plan import plan_run
from tuitrain.runs import events
from tuitrain.runs.checkpoints import list_checkpoints, verify_checkpoint
from tuitrain.runs.control import Command
from tuitrain.runs.heartbeat import Beat, read_beat

PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 7)


HoldWriter = Callable[[Callable[[CheckpointContent], bool]], None]


@pytest.fixture
def hold_writer(monkeypatch: pytest.MonkeyPatch) -> HoldWriter:
    """Makes a disk slow: a write begins when the given function says that the content may go."""
    write = CheckpointWriter.write

    def hold(may_go: Callable[[CheckpointContent], bool]) -> None:
        def slow(writer: CheckpointWriter, content: CheckpointContent, **progress: Callable[[int], None]) -> int:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not may_go(content):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return write(writer, content, **progress)

        monkeypatch.setattr(CheckpointWriter, "write", slow)

    return hold


def hashes(checkpoint: Path) -> dict[str, str]:
    """Of all files but the manifests, which tell the time."""
    return {
        path.relative_to(checkpoint).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in checkpoint.rglob("*")
        if path.is_file() and path.name not in ("checkpoint.json", "state.json")
    }


# ------------------------------------------------------------------------------------------------------- what is saved


def spoil(trainer: Trainer) -> None:
    """Change every tensor that a checkpoint is made of."""
    states = [tensor for state in trainer.optimizer.optimizer.state.values() for tensor in state.values()]
    averages = [] if trainer.ema is None else trainer.ema.averages
    with torch.no_grad():
        for tensor in (*trainer.models.unet.parameters(), *averages, *states):
            if isinstance(tensor, torch.Tensor):
                tensor.add_(1)


@pytest.mark.parametrize(
    ("setup", "overrides"),
    [
        (Setup("AdamW", "float32", ema=True, save_dtype="float32"), ()),
        (Setup("AdamW8bit", "bfloat16", save_dtype="bfloat16"), ("save_checkpoint_format=full_diffusers",)),
        (Setup("Adafactor", "bfloat16", ema=True), ()),
        (Setup("Prodigy", "float32"), ("save_state=none",)),
    ],
    ids=lambda value: value.name if isinstance(value, Setup) else "",
)
def test_what_changes_during_a_save_does_not_change_what_is_saved(
    setup: Setup, overrides: tuple[str, ...], tmp_path: Path, tiny_sdxl: Path, jsonl: Path, hold_writer: HoldWriter
) -> None:
    trainer = prepared_trainer(setup.config(tmp_path / "a", tiny_sdxl, jsonl, *overrides))
    try:
        trainer.train_step(trainer.next_micro_batches(iter(trainer.loader)))
        trainer.saver.save(trainer.checkpoint_content(), in_background=False)
        (checkpoint,) = list_checkpoints(trainer.run.checkpoints_dir)
        foreground = checkpoint.path.rename(tmp_path / "foreground")
        is_spoilt = threading.Event()
        hold_writer(lambda content: is_spoilt.is_set())
        trainer.saver.save(trainer.checkpoint_content(), in_background=True)
        spoil(trainer)
        is_spoilt.set()
        trainer.finish_save()
    finally:
        trainer.close()
    in_background, in_foreground = hashes(checkpoint.path), hashes(foreground)
    different = [name for name, sha256 in in_foreground.items() if in_background.get(name) != sha256]
    tell_figure(
        f"files of a background save that differ from a foreground save's: {len(different)} / {len(in_foreground)}"
    )
    assert different == []
    assert in_background.keys() == in_foreground.keys()
    assert verify_checkpoint(checkpoint.path) == []


def test_a_run_resumes_exactly_from_what_was_written_while_steps_went_on(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, hold_writer: HoldWriter
) -> None:
    setup = Setup("AdamW", "bfloat16", ema=True, dropout=True)
    with samples_recorded():
        reference, _ = train_well(setup.config(tmp_path / "a", tiny_sdxl, jsonl))
        config = setup.config(tmp_path / "b", tiny_sdxl, jsonl, "save_every_n_steps=3")
        runs = Path(config.base_output_dir)

        def are_two_more_steps_done(content: CheckpointContent) -> bool:
            (samples,) = runs.glob("*/samples.jsonl")
            return content.step != 3 or f'"step": {content.step + 2}'.encode() in samples.read_bytes()

        hold_writer(are_two_more_steps_done)
        run, journal, _ = train(config, DieAfterCheckpoint(runs, 3))
        assert max(event.step for event in of_kind(journal, events.StepLogged)) >= 5
        assert [event.step for event in of_kind(journal, events.CheckpointSaved)] == [3]
        resume_well(run)
    assert differences(run, reference) == []


# ---------------------------------------------------------------------------------------------------- what waits for it


def saving_config(tmp_path: Path, model: Path, jsonl: Path, *overrides: str, num_steps: int = 6) -> TrainConfig:
    return small_config(
        tmp_path,
        model,
        jsonl,
        "data_loader.resolution=32",
        "save_every_n_steps=2",
        *overrides,
        max_train_steps=num_steps,
        cache_dir=str(jsonl.parent / "cache"),
    )


class WhileWriting:
    """Polled as commands are: acts at the first poll during a background save, and lets it go some polls later."""

    def __init__(self, hold_writer: HoldWriter, action: Callable[[], Command | None], *, num_polls: int) -> None:
        self.num_polls_left = num_polls
        self._action = action
        self._polls = 0
        hold_writer(lambda content: content.step != 2 or self.num_polls_left <= 0)

    def __call__(self) -> Command | None:
        if not is_writing():
            return None
        self._polls += 1
        self.num_polls_left -= 1
        return self._action() if self._polls == 1 else None


def test_a_stop_waits_for_the_save_under_way_and_then_saves_its_own_step(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, hold_writer: HoldWriter
) -> None:
    poll = WhileWriting(hold_writer, lambda: Command.STOP, num_polls=5)
    run, journal = train_well(saving_config(tmp_path, tiny_sdxl, jsonl), poll)
    (obeyed,) = of_kind(journal, events.CommandObeyed)
    first, last = of_kind(journal, events.CheckpointSaved)
    (finished,) = of_kind(journal, events.RunFinished)
    assert (first.step, last.step, finished.step, finished.reason) == (2, finished.step, finished.step, "stopped")
    assert 2 < finished.step < 6
    assert journal.index(obeyed) < journal.index(first)
    assert [verify_checkpoint(one.path) for one in list_checkpoints(run.checkpoints_dir)] == [[], []]


def test_a_save_that_is_due_waits_for_the_one_under_way(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, hold_writer: HoldWriter
) -> None:
    poll = WhileWriting(hold_writer, lambda: None, num_polls=8)
    _, journal = train_well(saving_config(tmp_path, tiny_sdxl, jsonl, "max_checkpoints=1"), poll)
    saved = of_kind(journal, events.CheckpointSaved)
    assert [event.step for event in saved] == [2, 4, 6]
    third = next(event for event in of_kind(journal, events.StepLogged) if event.step == 3)
    assert journal.index(third) < journal.index(saved[0])
    until_saved = of_kind(journal[: journal.index(saved[0])], events.PhaseFinished)
    assert [event.detail for event in until_saved if event.phase == "save"] == ["copy to memory", saved[0].name]
    assert all(event.stall_seconds is not None and event.stall_seconds <= event.seconds for event in saved)


def test_a_pause_begins_when_the_save_under_way_stands(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, hold_writer: HoldWriter
) -> None:
    commands = [Command.PAUSE, Command.SAVE, Command.RESUME]
    poll = WhileWriting(hold_writer, lambda: commands.pop(0), num_polls=3)

    def poll_on() -> Command | None:
        command = poll()
        is_over = poll.num_polls_left <= 0 and not is_writing()
        return command or (commands.pop(0) if is_over and commands else None)

    _, journal = train_well(saving_config(tmp_path, tiny_sdxl, jsonl), poll_on)
    order = [
        f"{type(event).__name__} {event.step}"
        for event in journal
        if isinstance(event, events.CheckpointSaved | events.Paused | events.Unpaused)
    ]
    (paused,), (unpaused,) = of_kind(journal, events.Paused), of_kind(journal, events.Unpaused)
    assert paused.step == unpaused.step > 2
    assert order[:4] == [
        "CheckpointSaved 2",
        f"Paused {paused.step}",
        f"CheckpointSaved {paused.step}",
        f"Unpaused {paused.step}",
    ]


def test_a_run_that_fails_tells_first_of_the_save_under_way(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, hold_writer: HoldWriter
) -> None:
    def die() -> None:
        threading.Timer(0.2, lambda: setattr(poll, "num_polls_left", 0)).start()
        raise Died

    poll = WhileWriting(hold_writer, die, num_polls=1000)
    run, journal, exit_code = train(saving_config(tmp_path, tiny_sdxl, jsonl), poll)
    assert exit_code == 1
    (saved,), (failed,) = of_kind(journal, events.CheckpointSaved), of_kind(journal, events.RunFailed)
    assert (saved.step, journal[-2:]) == (2, [saved, failed])
    assert [verify_checkpoint(one.path) for one in list_checkpoints(run.checkpoints_dir)] == [[]]


# ----------------------------------------------------------------------------------------------------------- failures


@pytest.mark.slow
def test_a_disk_that_hangs_under_a_save_that_is_waited_for_lets_the_run_fall_silent(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, hold_writer: HoldWriter
) -> None:
    config = saving_config(tmp_path, tiny_sdxl, jsonl)
    looks: list[tuple[float, Beat | None]] = []

    def look() -> None:
        if is_writing():
            (beat_path,) = Path(config.base_output_dir).glob("*/heartbeat")
            looks.append((time.monotonic(), read_beat(beat_path)))

    hold_writer(lambda content: content.step != 2 or (len(looks) > 0 and time.monotonic() > looks[0][0] + 4.0))
    train_well(config, look)
    waited = {beat for seen, beat in looks if looks[0][0] + 2.2 < seen < looks[0][0] + 3.8}
    (beat,) = waited  # one line, never written anew
    assert beat is not None
    assert beat.patience_seconds == saving.WRITE_PATIENCE_SECONDS


def test_what_keeps_the_writer_from_writing_ends_the_run_within_a_step_and_nothing_counts_as_saved(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    config = saving_config(tmp_path, tiny_sdxl, jsonl)

    def take_the_folder_away() -> None:
        (run_path,) = Path(config.base_output_dir).iterdir()
        if b'"phase":"train"' in (run_path / "journal.jsonl").read_bytes() and (run_path / "checkpoints").is_dir():
            shutil.rmtree(run_path / "checkpoints")
            (run_path / "checkpoints").touch()

    run, journal, exit_code = train(config, take_the_folder_away)
    (failed,) = of_kind(journal, events.RunFailed)
    tell_figure(f"steps from a save to the failure of its writer: {failed.step - 2} (1 is allowed)")
    assert exit_code == 1
    assert "cannot write" in failed.what
    assert failed.error == "CheckpointError"
    assert failed.step <= 3
    assert of_kind(journal, events.CheckpointSaved) == []
    assert list_checkpoints(run.checkpoints_dir) == []


def test_a_disk_that_fills_during_a_background_save_pauses_the_run_and_the_same_step_is_written_again(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, hold_writer: HoldWriter
) -> None:
    undisturbed, _ = train_well(saving_config(tmp_path / "a", tiny_sdxl, jsonl, num_steps=4))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # of one file

    def make_room_at_the_pause() -> Command | None:
        (journal_path,) = (tmp_path / "b" / "runs").glob("*/journal.jsonl")
        if b'"kind":"Paused"' in journal_path.read_bytes() and resource.getrlimit(resource.RLIMIT_FSIZE)[0] != soft:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            return Command.RESUME
        return poll()

    poll = WhileWriting(hold_writer, fill, num_polls=2)
    try:
        run, journal = train_well(saving_config(tmp_path / "b", tiny_sdxl, jsonl, num_steps=4), make_room_at_the_pause)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (paused,) = of_kind(journal, events.Paused)
    assert paused.step >= 3
    assert [event.step for event in of_kind(journal, events.SaveFailed)] == [2]
    assert [event.step for event in of_kind(journal, events.CheckpointSaved)] == [2, 4]
    for ours, theirs in zip(
        list_checkpoints(run.checkpoints_dir), list_checkpoints(undisturbed.checkpoints_dir), strict=True
    ):
        assert hashes(ours.path) == hashes(theirs.path)


def test_without_memory_for_a_copy_training_waits_and_says_so_once(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = MemoryReading(total_bytes=16 << 20, available_bytes=2 << 20)
    monkeypatch.setattr(saving, "read_memory", lambda: reading)
    _, journal = train_well(saving_config(tmp_path, tiny_sdxl, jsonl))
    (warning,) = of_kind(journal, events.WarningRaised)
    assert "training waits while checkpoints are written" in warning.what
    saved = of_kind(journal, events.CheckpointSaved)
    assert [event.step for event in saved] == [2, 4, 6]
    assert all(event.stall_seconds == pytest.approx(event.seconds, abs=0.1) for event in saved)


# ----------------------------------------------------------------------------------------------------------- forecasts

SETUPS = [
    Setup("AdamW", "float32"),
    Setup("AdamW", "bfloat16", ema=True, save_dtype="float32"),
    Setup("AdamW8bit", "bfloat16", save_dtype="bfloat16"),
    Setup("AdamW8bit", "bfloat16", ema=True),
    Setup("Adafactor", "bfloat16"),
    Setup("Prodigy", "float32", save_dtype="float32"),
]


def test_the_bytes_of_a_save_on_disk_and_in_memory_are_forecast_within_two_percent(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    errors = {}
    for setup in SETUPS:
        config = setup.config(tmp_path / setup.name, tiny_sdxl, jsonl)
        plan = plan_run(config)
        trainer = prepared_trainer(config)
        try:
            trainer.train_step(trainer.next_micro_batches(iter(trainer.loader)))
            content = trainer.checkpoint_content()
            trainer.saver.save(content, in_background=False)
            (checkpoint,) = list_checkpoints(trainer.run.checkpoints_dir)
            on_disk = sum(path.stat().st_size for path in checkpoint.path.rglob("*") if path.is_file())
            errors[f"{setup.name} disk"] = (plan.checkpoint_bytes + plan.state_bytes) / on_disk - 1
            assert 0 <= trainer.saver.writer.num_needed_bytes(content) - on_disk <= SMALL_FILES_BYTES
            errors[f"{setup.name} memory"] = plan.copy_bytes / sum(tensor.nbytes for tensor in content.tensors) - 1
        finally:
            trainer.close()
    worst = max(errors, key=lambda name: abs(errors[name]))
    tell_figure(f"worst forecast of a save: {100 * errors[worst]:+.2f} % ({worst}), of {len(errors)}")
    assert abs(errors[worst]) <= 0.02, errors


# -------------------------------------------------------------------------------------------------------------- copies


def content_of(weights: list[torch.Tensor]) -> CheckpointContent:
    return CheckpointContent(
        step=1,
        epoch=0,
        weights={str(index): tensor for index, tensor in enumerate(weights)},
        is_average=False,
        state=None,
        last_losses=[],
        validation_images=[],
    )


def test_a_copy_uses_the_memory_of_the_one_before_where_it_fits() -> None:
    copies, copied = HostCopies(), list[int]()
    shared = torch.tensor([5.0, 6.0])
    first = copies.copy(content_of([torch.tensor([1.0, 2.0]), torch.zeros(3), shared, shared]), copied.append)
    assert first.weights["2"] is first.weights["3"]
    assert copied == [8, 12, 8]
    places = [tensor.data_ptr() for tensor in first.tensors]
    later = [torch.tensor([3.0, 4.0]), torch.ones(4), torch.tensor([7, 8], dtype=torch.int32), torch.full((9,), 9.0)]
    assert copies.num_missing_bytes(content_of(later)) == (8 + 16 + 8 + 36) - (8 + 12 + 8)
    second = copies.copy(content_of(later), copied.append)
    assert all(
        torch.equal(copy, tensor) and copy is not tensor for copy, tensor in zip(second.tensors, later, strict=True)
    )
    assert second.tensors[0].data_ptr() == places[0]
    assert second.tensors[2].dtype == torch.int32
    assert copies.num_missing_bytes(content_of(later)) == 0
    third = copies.copy(content_of(later[:2]), copied.append)
    assert list(map(torch.equal, third.tensors, later[:2])) == [True, True]
