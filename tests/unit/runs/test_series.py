"""Columns are what the journal says, however it is read; smoothing, spikes and buckets are what they claim to be."""

import math
import random
from pathlib import Path

import pytest

from tuitrain.runs.events import (
    CheckpointSaved,
    EpochFinished,
    Event,
    RunStarted,
    SamplesSaved,
    StepLogged,
    UnknownEvent,
    event_to_line,
)
from tuitrain.runs.journal import drop_abandoned
from tuitrain.runs.series import METRIC_LABELS, RunSeries, Smoothed, load_journal


def step_logged(step: int, loss: float = 0.1, **others: float | None) -> StepLogged:
    values = {"lr": 1e-5, "seconds_per_step": 0.5, "images_per_second": 8.0, **others}
    return StepLogged(time=float(step), step=step, epoch=0, loss=loss, **values)  # type: ignore[arg-type]


def run_started(resumed_from: int | None) -> RunStarted:
    return RunStarted(
        time=0.0,
        run_id="1715373799.35",
        pid=1,
        host="box",
        tuitrain_version="0.1.0",
        versions={},
        device="cpu",
        world_size=1,
        config_hash="",
        seed=0,
        resumed_from=resumed_from,
    )


def fed(events: list[Event]) -> RunSeries:
    series = RunSeries()
    series.feed(events)
    return series


def fed_losses(losses: list[float]) -> RunSeries:
    return fed([step_logged(step, loss) for step, loss in enumerate(losses, 1)])


def write(path: Path, events: list[Event]) -> Path:
    path.write_text("".join(event_to_line(event) + "\n" for event in events), encoding="ascii")
    return path


def assert_same(series: RunSeries, expected: RunSeries) -> None:
    assert series.steps == expected.steps
    for metric in METRIC_LABELS:
        assert series.values(metric).tolist() == pytest.approx(expected.values(metric).tolist(), nan_ok=True)
    assert series.smoothed_loss.tolist() == pytest.approx(expected.smoothed_loss.tolist(), nan_ok=True)
    assert repr(series.spikes) == repr(expected.spikes)  # some are NaN
    assert series.checkpoints == expected.checkpoints
    assert series.samples == expected.samples
    assert series.metrics == expected.metrics
    assert series.best == expected.best


def test_columns_hold_what_was_logged_and_nan_where_nothing_was_measured() -> None:
    series = fed([step_logged(10, 0.5, grad_norm=2.0), step_logged(20, 0.25, seconds_per_step=0.0, d=3.0)])
    assert series.steps.tolist() == [10, 20]
    assert series.values("loss").tolist() == [0.5, 0.25]
    assert series.values("lr").tolist() == [1e-5, 1e-5]
    assert series.values("grad_norm").tolist() == pytest.approx([2.0, math.nan], nan_ok=True)
    assert series.values("speed").tolist() == pytest.approx([2.0, math.nan], nan_ok=True)
    assert series.values("memory").tolist() == pytest.approx([math.nan, math.nan], nan_ok=True)
    assert series.metrics == ["loss", "lr", "grad_norm", "speed", "d"]


def test_a_resume_drops_the_abandoned_branch() -> None:
    saved = [CheckpointSaved(step=step, epoch=0, name="", num_bytes=0, seconds=0.0) for step in (2, 4)]
    samples = [SamplesSaved(step=step, epoch=0, images=[], seconds=0.0) for step in (2, 4)]
    first: list[Event] = [step_logged(step, float(step)) for step in (1, 2, 3, 4)]
    series = fed([run_started(None), *first, *saved, *samples])
    assert (series.checkpoints, series.samples, series.revision) == ([2, 4], [2, 4], 0)
    series.feed([run_started(2), step_logged(3, 0.5)])
    assert series.steps.tolist() == [1, 2, 3]
    assert series.values("loss").tolist() == [1.0, 2.0, 0.5]
    assert (series.checkpoints, series.samples, series.revision) == ([2], [2], 1)
    assert series.smoothed_loss.tolist() == fed_losses([1.0, 2.0, 0.5]).smoothed_loss.tolist()


def test_steps_grow_even_where_the_resume_itself_was_lost() -> None:
    assert fed([step_logged(step) for step in (1, 2, 3, 2, 3, 4)]).steps.tolist() == [1, 2, 3, 4]


def test_smoothing_is_the_weighted_mean_it_claims_to_be() -> None:
    losses = [3.0, math.nan, 1.0, 4.0, math.inf, 1.0, 5.0]
    smoothed = Smoothed(0.9)
    smoothed.extend(losses[:3])
    smoothed.extend(losses[3:])
    for end, value in enumerate(smoothed.values, 1):
        finite = [loss for loss in losses[:end] if math.isfinite(loss)]
        weights = [0.9 ** (len(finite) - 1 - index) for index in range(len(finite))]
        expected = sum(w * x for w, x in zip(weights, finite, strict=True)) / sum(weights)
        assert value == pytest.approx(expected, rel=1e-12)


def test_smoothing_by_zero_changes_nothing() -> None:
    smoothed = Smoothed(0.0)
    smoothed.extend([3.0, 1.0, 4.0])
    assert smoothed.values.tolist() == [3.0, 1.0, 4.0]


def test_a_spike_is_far_above_the_usual_noise_and_told_once() -> None:
    noise = random.Random(0)
    losses = [0.1 + noise.gauss(0, 0.01) for _ in range(200)]
    assert fed_losses(losses).spikes == []
    losses[100] = losses[101] = 0.9
    losses[150] = math.nan
    spikes = fed_losses(losses).spikes
    assert [step for step, _ in spikes] == [101, 151]
    assert spikes[0][1] == 0.9


def test_heavy_noise_and_the_first_losses_are_no_spikes() -> None:
    noise = random.Random(0)  # as of batches of one picture
    assert fed_losses([noise.uniform(0.01, 0.4) for _ in range(2000)]).spikes == []
    assert fed_losses([0.1, 0.9, *[0.1] * 10]).spikes == []


def test_a_small_step_of_a_constant_loss_is_no_spike() -> None:
    assert fed_losses([0.1] * 50 + [0.15]).spikes == []


def test_the_best_loss_is_the_lowest_smoothed_one() -> None:
    assert fed_losses([0.1] * 19).best is None
    series = fed_losses([1.0 - step / 100 for step in range(60)] + [2.0] * 20)
    assert series.best == (60, series.smoothed_loss[59])


def mixed_journal(num_steps: int) -> list[Event]:
    """Every shape of line that the fast reader meets: other kinds, null, not finite, exponents, resumes."""
    noise = random.Random(1)
    events: list[Event] = [run_started(None)]
    for step in range(1, num_steps + 1):
        loss = math.nan if step % 997 == 0 else noise.lognormvariate(-2, 0.3)
        grad_norm = None if step < num_steps // 2 else noise.random()
        memory = None if step % 5 else 22.5
        events.append(
            step_logged(step, loss, lr=noise.random() * 1e-5, grad_norm=grad_norm, peak_memory_gib=memory, d=None)
        )
        if step % 9 == 0:
            events.append(EpochFinished(time=0.0, epoch=step // 9, step=step))
        if step % 500 == 0:
            events.append(CheckpointSaved(time=0.0, step=step, epoch=0, name="c", num_bytes=1, seconds=1.0))
        if step == num_steps // 3:
            events.append(run_started(step - 50))
            events.extend(step_logged(again, 0.5) for again in range(step - 49, step + 1))
    return events


def test_a_long_journal_is_read_as_the_slow_way_reads_it(tmp_path: Path) -> None:
    events = mixed_journal(6000)
    loaded = load_journal(write(tmp_path / "journal.jsonl", events))
    assert loaded.series.revision == 1
    assert_same(loaded.series, fed(events))
    assert_same(loaded.series, fed(drop_abandoned(events)))
    others = [event for event in loaded.events if not isinstance(event, StepLogged)]
    assert others == [event for event in events if not isinstance(event, StepLogged)]
    steps = [event for event in loaded.events if isinstance(event, StepLogged)]
    assert 500 < len(steps) < 5000
    assert loaded.events[-100:] == events[-100:]


def test_the_fast_way_knows_the_lines_that_journals_have() -> None:
    for event in (step_logged(1), step_logged(1, math.nan, grad_norm=math.inf, peak_memory_gib=1.0, d=2.0)):
        series = RunSeries()
        assert series.feed_step_lines(event_to_line(event).encode() + b"\n")
        assert_same(series, fed([event]))


def test_the_tail_goes_on_where_loading_ended(tmp_path: Path) -> None:
    path = write(tmp_path / "journal.jsonl", mixed_journal(4000))
    loaded = load_journal(path)
    assert loaded.tail.read_new() == []
    with path.open("a") as file:
        file.write(event_to_line(step_logged(4001, 0.75)) + "\n")
    appended = loaded.tail.read_new()
    assert appended == [step_logged(4001, 0.75)]
    loaded.series.feed(appended)
    assert loaded.series.values("loss")[-1] == 0.75
    assert len(loaded.series.values("lr")) == len(loaded.series) == 4001
    assert loaded.series.values("lr")[-1] == 1e-5


def test_a_journal_that_is_not_there_yet_is_empty_and_grows(tmp_path: Path) -> None:
    loaded = load_journal(tmp_path / "journal.jsonl")
    assert (len(loaded.series), loaded.events, loaded.series.best) == (0, [], None)
    write(tmp_path / "journal.jsonl", [step_logged(1)])
    assert loaded.tail.read_new() == [step_logged(1)]


def test_damaged_and_foreign_lines_are_kept_as_events_and_cost_no_step(tmp_path: Path) -> None:
    whole = [event_to_line(step_logged(step, grad_norm=1.0)) for step in range(1, 5001)]
    damaged = '{"kind":"StepLogged","time":1.0,"step":5001,"epoch":0,"loss":0.1,"lr":1e-'
    foreign = '{"kind":"Later","time":1.0,"x":{}}'
    older = (
        '{"kind":"StepLogged","time":1.0,"step":5000,"epoch":0,"loss":2,'
        '"lr":1,"seconds_per_step":1,"images_per_second":1}'
    )
    lines = [*whole[:100], "rubbish", foreign, *whole[100:2000], damaged, "", *whole[2000:4999], older]
    path = tmp_path / "journal.jsonl"
    path.write_text("\n".join(lines) + "\n" + "x" * 600_000 + "\n")
    loaded = load_journal(path)
    assert loaded.series.steps.tolist() == list(range(1, 5001))
    assert loaded.series.values("loss")[-1] == 2.0
    assert loaded.series.values("grad_norm")[:-1].tolist() == [1.0] * 4999
    assert math.isnan(loaded.series.values("grad_norm")[-1])
    kinds = [event.kind for event in loaded.events if isinstance(event, UnknownEvent)]
    assert kinds == ["", "Later", "", ""]
