"""How a run stands, folded from its events: hand-made ones, and the journals of real runs of the mini SDXL."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import small_config, train, train_well, write_pictures
from tuitrain.runs import events
from tuitrain.runs.control import Command
from tuitrain.runs.events import Event
from tuitrain.runs.series import RunSeries
from tuitrain.tui.snapshot import MAX_LINES, RunSnapshot, State
from tuitrain.tui.widgets.status_bar import position


def started(**values: Any) -> events.RunStarted:
    return events.RunStarted(
        **{
            "run_id": "r",
            "pid": 7,
            "host": "h",
            "tuitrain_version": "0",
            "versions": {},
            "device": "cpu",
            "world_size": 1,
            "config_hash": "",
            "seed": 1,
            "resumed_from": None,
            **values,
        }
    )


def scanned(total_steps: int = 100) -> events.DatasetScanned:
    return events.DatasetScanned(
        num_images=4,
        num_skipped=0,
        buckets={"64x64": 4},
        steps_per_epoch=4,
        total_steps=total_steps,
        num_epochs=total_steps // 4,
    )


def logged(step: int, loss: float = 0.5, **values: Any) -> events.StepLogged:
    defaults: dict[str, Any] = {"lr": 1e-5, "seconds_per_step": 2.0, "images_per_second": 1.0}
    return events.StepLogged(step=step, epoch=step // 4, loss=loss, **{**defaults, **values})


def phase(name: events.PhaseName, **values: Any) -> events.PhaseStarted:
    return events.PhaseStarted(phase=name, **values)


def ended(name: events.PhaseName) -> events.PhaseFinished:
    return events.PhaseFinished(phase=name, seconds=1.0, detail="")


def saved(step: int) -> events.CheckpointSaved:
    return events.CheckpointSaved(step=step, epoch=0, name=f"checkpoint-{step}", num_bytes=1_288_490_189, seconds=3.1)


def failed(step: int = 3) -> events.RunFailed:
    return events.RunFailed(what="it broke", step=step, exit_code=1)


def fold(*given: Event) -> RunSnapshot:
    snapshot = RunSnapshot()
    snapshot.feed(given)
    return snapshot


TRAINING = (phase("import_libraries"), ended("import_libraries"), started(), scanned(), phase("train"))


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ((), State.IDLE),
        ((phase("import_libraries"),), State.LOADING),
        ((phase("import_libraries"), ended("import_libraries")), State.LOADING),
        ((phase("scan_images"),), State.CHECKING),
        ((phase("load_model"),), State.LOADING),
        ((phase("cache_latents"),), State.CACHING),
        ((phase("cache_text"),), State.CACHING),
        (TRAINING, State.TRAINING),
        ((*TRAINING, phase("sample")), State.SAMPLING),
        ((*TRAINING, phase("sample"), ended("sample")), State.TRAINING),
        ((*TRAINING, phase("save")), State.SAVING),
        ((*TRAINING, events.Paused(step=3)), State.PAUSED),
        ((*TRAINING, events.Paused(step=3), phase("sample")), State.SAMPLING),
        ((*TRAINING, events.Paused(step=3), phase("save"), ended("save")), State.PAUSED),
        ((*TRAINING, events.Paused(step=3), events.Unpaused(step=3)), State.TRAINING),
        ((*TRAINING, events.CommandReceived(command="stop")), State.STOPPING),
        ((*TRAINING, events.CommandReceived(command="stop"), phase("save")), State.STOPPING),
        ((phase("cache_text"), events.CommandObeyed(command="stop")), State.STOPPING),  # an older engine
        ((*TRAINING, events.CommandReceived(command="save")), State.TRAINING),
        ((*TRAINING, events.RunFinished(step=4, epoch=1, reason="completed", seconds=9.0)), State.FINISHED),
        ((*TRAINING, events.RunFinished(step=4, epoch=1, reason="stopped", seconds=9.0)), State.STOPPED),
        ((*TRAINING, failed()), State.FAILED),
        ((phase("warm_up"),), State.LOADING),  # type: ignore[arg-type]  # a newer engine's
    ],
)
def test_every_state_follows_from_the_events(given: tuple[Event, ...], state: State) -> None:
    assert fold(*given).state == state


def test_states_are_words_with_a_symbol_of_one_cell() -> None:
    assert all(len(state.symbol) == 1 for state in State)
    assert State.TRAINING == "TRAINING"


def test_a_run_is_lost_only_where_the_journal_tells_of_no_end() -> None:
    snapshot = fold(*TRAINING)
    snapshot.is_lost = True
    assert snapshot.state == State.LOST
    snapshot.feed([failed()])
    assert snapshot.state == State.FAILED


def test_a_second_session_begins_anew_and_keeps_the_story() -> None:
    snapshot = fold(*TRAINING, logged(1), saved(1), events.CommandReceived(command="stop"), failed(1))
    snapshot.feed([phase("import_libraries", time=1e10)])
    assert snapshot.state == State.LOADING
    assert snapshot.failure is None
    assert not snapshot.is_stop_requested
    assert snapshot.session_started == 1e10
    assert snapshot.started is not None
    assert snapshot.started < 1e10
    assert [checkpoint.step for checkpoint in snapshot.checkpoints] == [1]
    older_engine = fold(started(), failed(1))
    older_engine.feed([started()])
    assert older_engine.failure is None


def test_a_resume_drops_what_the_abandoned_branch_made() -> None:
    samples = [events.SamplesSaved(step=step, epoch=0, images=[], seconds=1.0) for step in (4, 8)]
    before = [logged(step) for step in range(1, 10)]
    snapshot = fold(*TRAINING, *before, saved(4), saved(8), *samples, failed(9))
    snapshot.feed([phase("import_libraries"), ended("import_libraries"), started(resumed_from=4)])
    assert (snapshot.step, snapshot.epoch) == (4, 1)
    assert [event.step for event in snapshot.checkpoints] == [4]
    assert [event.step for event in snapshot.samples] == [4]
    assert snapshot.loss is None
    snapshot.feed([logged(5, 0.25)])
    assert snapshot.loss == 0.25


def test_a_loss_that_is_not_finite_is_shown_and_told_once() -> None:
    snapshot = fold(logged(1, 0.5), logged(2, math.nan), logged(3, math.inf))
    assert snapshot.loss == math.inf
    assert [line.text for line in snapshot.lines] == ["loss spike nan @2 (ema 0.5), continuing"]


def test_a_spike_is_told_with_the_mean_before_it() -> None:
    snapshot = fold(*(logged(step, 0.05 + 0.001 * (step % 2)) for step in range(1, 41)), logged(1588, 0.19))
    (line,) = snapshot.lines
    assert line.level == "!"
    assert line.text == "loss spike 0.19 @1588 (ema 0.0505), continuing"


def test_the_spikes_that_are_told_are_those_of_the_chart() -> None:
    losses = [0.05 + 0.02 * ((step * 7919) % 101) / 101 for step in range(1, 401)]
    for step in (15, 60, 61, 200, 399):  # the first is too early to judge, the third follows another
        losses[step] = 0.9
    logs = [logged(step, loss) for step, loss in enumerate(losses, 1)]
    series = RunSeries()
    series.feed(logs)
    told = [int(line.text.partition("@")[2].partition(" ")[0]) for line in fold(*logs).lines]
    assert told == [step for step, _ in series.spikes] == [61, 201, 400]


def test_an_ordinary_noisy_loss_has_no_spikes() -> None:
    snapshot = fold(*(logged(step, 0.05 + 0.3 * ((step * 7919) % 101) / 101) for step in range(1, 2001)))
    assert not snapshot.lines


def test_time_left_is_of_the_recent_speed_and_shrinks_between_logs() -> None:
    snapshot = fold(*TRAINING, logged(10, time=1000.0))
    assert snapshot.eta_seconds(1000.0) == pytest.approx(90 * 2.0)
    assert snapshot.eta_seconds(1010.0) == pytest.approx(90 * 2.0 - 10)
    assert snapshot.eta_seconds(900.0) == pytest.approx(90 * 2.0)  # a clock that was set back
    assert snapshot.eta_seconds(1e9) == pytest.approx(80 * 2.0)  # a clock that was set forward
    snapshot.feed([events.Paused(step=10, time=1005.0)])
    assert snapshot.eta_seconds(2000.0) == pytest.approx(90 * 2.0)
    snapshot.feed([events.Unpaused(step=10, time=3000.0)])
    assert snapshot.eta_seconds(3001.0) == pytest.approx(90 * 2.0 - 1)
    snapshot.feed([logged(step, seconds_per_step=1.0, time=3000.0 + step) for step in range(11, 40)])
    assert snapshot.eta_seconds(3039.0) == pytest.approx(61 * 1.0, rel=0.01)
    assert fold(*TRAINING).eta_seconds(0.0) is None


def test_progress_is_of_the_phase_before_the_first_step_and_of_the_run_after() -> None:
    snapshot = fold(started(), scanned(), phase("cache_latents"))
    assert snapshot.progress is None
    snapshot.feed([events.PhaseProgressed(phase="cache_latents", done=1, total=4)])
    assert snapshot.progress == 0.25
    snapshot.feed([ended("cache_latents"), phase("train")])
    assert snapshot.progress == 0.0
    snapshot.feed([logged(50)])
    assert snapshot.progress == 0.5
    snapshot.feed([phase("save"), events.PhaseProgressed(phase="save", done=1, total=4)])
    assert snapshot.progress == 0.5


def test_a_phase_tells_its_rate_and_its_time_left() -> None:
    snapshot = fold(phase("cache_latents", time=100.0))
    for seconds, done in ((10.0, 100), (20.0, 200)):
        progress = events.PhaseProgressed(phase="cache_latents", done=done, total=300, seconds=seconds)
        snapshot.feed([progress])
    assert snapshot.phase is not None
    assert snapshot.phase.rate == pytest.approx(10.0)
    assert snapshot.phase.eta_seconds == pytest.approx(10.0)
    assert (snapshot.phase.amount, snapshot.phase.fraction) == ("200/300", pytest.approx(2 / 3))
    snapshot.feed([phase("save"), events.PhaseProgressed(phase="save", done=2**29, total=2**30, detail="a")])
    assert (snapshot.phase.amount, snapshot.phase.detail) == ("512 MiB/1.0 GiB", "a")


def test_checkpoints_come_and_go() -> None:
    snapshot = fold(*TRAINING, saved(1), saved(2), events.CheckpointPruned(name="checkpoint-1"))
    assert [event.step for event in snapshot.checkpoints] == [2]
    assert snapshot.lines[-2].level == "✓"
    assert snapshot.lines[-2].text == "checkpoint step-2 saved (1.2 GiB, 3.1 s)"


def test_after_a_save_that_failed_the_run_is_called_unprotected_until_the_next_stands() -> None:
    snapshot = fold(*TRAINING, saved(1))
    assert "protected" not in position(snapshot)
    snapshot.feed([events.SaveFailed(step=2, what="the disk is full", hint="make room")])
    assert snapshot.unprotected_since == 1
    assert (snapshot.lines[-1].level, snapshot.lines[-1].text) == (
        "!",
        "step 2 is not saved: the disk is full (make room)",
    )
    assert position(snapshot).startswith("! not protected since step 1  step ")
    snapshot.feed([saved(3)])
    assert snapshot.unprotected_since is None
    assert fold(*TRAINING, events.SaveFailed(step=1, what="")).unprotected_since == 0


def test_lines_are_capped_and_safe_for_a_terminal() -> None:
    snapshot = fold(*(events.WarningRaised(what=f"\x1b]52;c;x\x07 {number}") for number in range(MAX_LINES + 5)))
    assert len(snapshot.lines) == MAX_LINES
    assert all("\x1b" not in line.text and "\x07" not in line.text for line in snapshot.lines)


def test_of_many_bad_pictures_the_first_are_named_and_the_rest_counted() -> None:
    rejected = [events.ImageRejected(path=f"{number}.png", reason="broken") for number in range(40)]
    snapshot = fold(started(), *rejected, scanned())
    texts = [line.text for line in snapshot.lines if line.level == "!"]
    assert len(texts) == 6
    assert texts[-1].startswith("and 35 more")


def test_unknown_events_change_nothing() -> None:
    unknown = events.UnknownEvent(time=5.0, kind="Teleported", fields={"step": 9})
    assert vars(fold(unknown)).keys() == vars(RunSnapshot()).keys()
    assert fold(unknown).state == State.IDLE
    assert fold(unknown).started is None


def test_a_real_run_passes_through_its_states(tmp_path: Path, tiny_sdxl: Path) -> None:
    config = small_config(
        tmp_path,
        tiny_sdxl,
        write_pictures(tmp_path / "pictures"),
        "validate_every_n_steps=2",
        "save_every_n_steps=2",
        validation_prompts=["a hat"],
        validation_steps=2,
        num_validation_images_per_prompt=2,
    )
    _, journal = train_well(config)
    snapshot = RunSnapshot()
    states: list[State] = []
    for event in journal:
        snapshot.feed([event])
        states.append(snapshot.state)
    order = [before for before, after in pairwise([*states, None]) if before != after]
    assert order == [
        *(State.LOADING, State.CHECKING, State.LOADING, State.CACHING, State.LOADING, State.CACHING, State.LOADING),
        *(State.TRAINING, State.SAMPLING, State.TRAINING, State.SAVING, State.TRAINING),
        *(State.SAMPLING, State.TRAINING, State.SAVING, State.TRAINING, State.FINISHED),
    ]
    assert (snapshot.step, snapshot.total_steps, snapshot.epoch) == (4, 4, 1)
    assert snapshot.progress == 1.0
    assert (snapshot.seed, snapshot.num_images, snapshot.prediction_type) == (1, 5, "epsilon")
    assert [event.step for event in snapshot.checkpoints] == [2, 4]
    assert [len(event.images) for event in snapshot.samples] == [2, 2]
    assert [line.text for line in snapshot.lines if line.level == "▣"] == [
        "2 samples @2 - press 4 to view",
        "2 samples @4 - press 4 to view",
    ]
    assert snapshot.lines[-1].text.startswith("finished at step 4 in ")


def test_a_real_stop_is_known_from_the_moment_the_engine_heard_it(tmp_path: Path, tiny_sdxl: Path) -> None:
    config = small_config(tmp_path, tiny_sdxl, write_pictures(tmp_path / "pictures"))
    commands = iter([Command.STOP])
    _, journal, exit_code = train(config, lambda: next(commands, None))
    assert exit_code == 0
    states = []
    snapshot = RunSnapshot()
    for event in journal:
        snapshot.feed([event])
        states.append(snapshot.state)
    assert states[:2] == [State.LOADING, State.STOPPING]
    assert states[-1] == State.STOPPED
