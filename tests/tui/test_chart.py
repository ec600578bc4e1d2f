"""The chart says what the series says, stands still while a run grows, and repaints only what changed."""

import asyncio
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.drivers.headless_driver import HeadlessDriver

from tests.tui.harness import assert_golden, open_app, screen_text
from tests.tui.series_samples import SPIKE_STEP, falling_loss, series_of, step_logged
from tuitrain.runs.events import RunStarted
from tuitrain.runs.scale import choose_scale
from tuitrain.runs.series import RunSeries
from tuitrain.tui.widgets.braille import (
    GUTTER,
    SMOOTHINGS,
    WAITING,
    ChartDrawing,
    ChartOptions,
    Row,
    in_view,
    nearest_step,
)
from tuitrain.tui.widgets.chart import LossChart


def drawn(series: RunSeries, width: int = 48, height: int = 10, **options: Any) -> list[Row]:
    return ChartDrawing().draw(series, width, height, ChartOptions(**options))


def text_of(rows: list[Row]) -> str:
    return "".join(row.text.rstrip() + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "width", "height", "options"),
    [
        ("chart_48x10", 48, 10, {}),
        ("chart_100x18_log_y_cursor", 100, 18, {"is_log": True, "cursor": SPIKE_STEP}),
        ("chart_100x18_zoom", 100, 18, {"zoom": 2, "smoothing": 0.9}),
        ("chart_48x10_learning_rate", 48, 10, {"metric": "lr"}),
        ("chart_48x6_memory", 48, 6, {"metric": "memory"}),
    ],
)
def test_the_drawing_is_the_recorded_one(name: str, width: int, height: int, options: dict[str, Any]) -> None:
    assert_golden(text_of(drawn(series_of(falling_loss(1640)), width, height, **options)), name)


def test_before_the_first_step_it_says_so() -> None:
    assert WAITING in text_of(drawn(RunSeries()))


def test_a_spike_among_thousands_of_steps_is_seen() -> None:
    calm = [step_logged(step) for step in range(1, 20_001)]
    calm[12_345] = step_logged(12_346, loss=5.0)
    rows = drawn(series_of([*calm]), 60, 12)
    cell = GUTTER + 12_346 // 256 // 2
    assert [column for column, ink in enumerate(rows[0].inks[GUTTER:], GUTTER) if ink != " "] == [cell]
    assert rows[-3].inks[cell] == "spike"
    assert "spike 12346" in rows[-1].text


def test_old_columns_never_move_while_a_run_grows() -> None:
    series = series_of(falling_loss(1100))
    drawing, options = ChartDrawing(), ChartOptions()
    before = drawing.draw(series, 120, 20, options)
    for event in falling_loss(1400)[-300:]:
        series.feed([event])
        after = drawing.draw(series, 120, 20, options)
        first_new = GUTTER + (series.steps[-1] - 2) // 16
        for old, new in zip(before[:17], after[:17], strict=True):
            span = old.changed_span(new)
            assert span is None or span[0] >= first_new
        before = after


def test_a_chart_drawn_step_by_step_is_the_chart_drawn_at_once() -> None:
    series, drawing = RunSeries(), ChartDrawing()
    for options in (ChartOptions(), ChartOptions(is_log=True, smoothing=0.5, zoom=1)):
        for event in falling_loss(700) if not series.steps else []:
            series.feed([event])
            drawing.draw(series, 60, 12, replace(options, is_log=True))
        assert drawing.draw(series, 60, 12, options) == ChartDrawing().draw(series, 60, 12, options)


def test_the_limits_stand_still_until_they_must_move() -> None:
    scale = choose_scale(0.05, 0.14, is_log=False, max_ticks=5)
    assert (scale.low, scale.high) == pytest.approx((0.05, 0.15))
    assert choose_scale(0.06, 0.13, is_log=False, max_ticks=5, previous=scale) is scale
    assert choose_scale(0.06, 0.16, is_log=False, max_ticks=5, previous=scale) is not scale
    assert choose_scale(0.04, 0.13, is_log=False, max_ticks=5, previous=scale) is not scale
    assert choose_scale(0.09, 0.1, is_log=False, max_ticks=5, previous=scale) is not scale
    assert choose_scale(0.06, 0.13, is_log=True, max_ticks=5, previous=scale) is not scale


def test_a_logarithmic_axis_ends_near_its_values_however_few_its_ticks() -> None:
    scale = choose_scale(0.05, 0.9, is_log=True, max_ticks=3)
    assert (scale.low, scale.high) == pytest.approx((0.05, 1.0))
    assert scale.labels == ("0.1", "0.3", "1")


@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize(
    ("low", "high"), [(0.03, 0.9), (1e-6, 8e-5), (1.0, 1.0), (22.4, 22.6), (3.0, 90_000.0), (1e-12, 1e9)]
)
def test_an_axis_has_few_ticks_with_short_labels_at_round_numbers(low: float, high: float, is_log: bool) -> None:
    for max_ticks in (2, 4, 9):
        scale = choose_scale(low, high, is_log=is_log, max_ticks=max_ticks)
        assert scale.low <= low * (1 + 1e-6) and high * (1 - 1e-6) <= scale.high
        assert 1 <= len(scale.ticks) <= max(max_ticks, 3)
        for tick, label in zip(scale.ticks, scale.labels, strict=True):
            assert float(label) == pytest.approx(tick, rel=1e-9)
            assert len(label) <= GUTTER - 2


def test_any_values_at_any_size_are_drawn_to_size() -> None:
    chance = random.Random(0)
    odd = [math.nan, math.inf, -math.inf, 0.0, -1.0, 5e-324, 1e-300, 1.7e308, -1.7e308, 0.1]
    for _ in range(150):
        series, drawing, options = RunSeries(), ChartDrawing(), ChartOptions()
        step = chance.choice([0, 1, 10**15])
        for _round in range(4):
            for _ in range(chance.choice([0, 1, 3, 30])):
                step += chance.choice([1, 10, 1000])
                series.feed([replace(step_logged(step, loss=chance.choice(odd)), grad_norm=chance.choice(odd))])
            if series.steps:
                moved = nearest_step(series, series.steps[-1], chance.choice([-1, 1]), drawing.window)
                options = replace(options, cursor=chance.choice([None, moved]))
            options = in_view(
                replace(
                    options,
                    metric=chance.choice(series.metrics),
                    is_log=chance.random() < 0.5,
                    zoom=chance.randrange(5),
                    smoothing=chance.choice(SMOOTHINGS),
                ),
                drawing.window,
            )
            for width, height in ((48, 10), (16, 4), (3, 2), (0, 0), (17, 30)):
                rows = drawing.draw(series, width, height, options)
                assert [len(row.text) for row in rows] == [len(row.inks) for row in rows] == [width] * height


def test_at_any_height_the_last_row_tells_the_values_at_the_cursor() -> None:
    series = series_of(falling_loss(1640))
    for height in range(4, 12):
        rows = drawn(series, height=height, cursor=SPIKE_STEP)
        assert len(rows) == height
        assert rows[-1].text.startswith("step 1588 !  loss 0.9  ema ")


# In an app


class CountingDriver(HeadlessDriver):
    """A terminal that counts what it is sent."""

    num_bytes = 0

    @property
    def is_headless(self) -> bool:
        return False

    def write(self, data: str) -> None:
        self.num_bytes += len(data.encode())


class ChartApp(App[None]):
    def compose(self) -> ComposeResult:
        yield LossChart(id="chart")

    @property
    def chart(self) -> LossChart:
        return self.query_one(LossChart)


async def test_keys_change_what_is_shown_and_the_border_says_how() -> None:
    async with open_app(size=(80, 20), app=ChartApp()) as (app, pilot):
        chart = app.chart
        chart.styles.border = ("round", "white")
        await pilot.pause()
        assert WAITING in screen_text(app)
        series = series_of(falling_loss(1640))
        chart.show(series)
        await pilot.pause()
        assert "loss ── EMA .98  ► live" in screen_text(app)
        assert "! spike 1588" in screen_text(app)

        chart.toggle_log_y()
        chart.change_smoothing(1)
        await pilot.pause()
        assert "loss ── log y  EMA .99  ► live" in screen_text(app)
        for _ in range(20):
            chart.change_smoothing(-1)
        assert chart.options.smoothing == 0.0

        shown = []
        for _ in range(5):
            chart.next_metric()
            await pilot.pause()
            shown.append(screen_text(app).split(" ── ")[0].strip("╭─ "))
        assert shown == ["learning rate", "gradient norm", "it/s", "peak GiB", "loss"]


async def test_the_cursor_tells_the_values_and_holds_the_view() -> None:
    async with open_app(size=(80, 20), app=ChartApp()) as (app, pilot):
        chart = app.chart
        series = series_of(falling_loss(1640))
        chart.show(series)
        chart.move_cursor(-1)
        await pilot.pause()
        assert f"step 1640  loss {series.values('loss')[-1]:.4g}  ema {series.smoothed_loss[-1]:.4g}" in screen_text(
            app
        )
        chart.move_cursor(-1)
        chart.zoom(1)
        chart.zoom(1)
        await pilot.pause()
        cursor = chart.options.cursor
        assert cursor is not None and 1590 < cursor < 1640
        held = screen_text(app).splitlines()[-2:]
        series.feed(falling_loss(2200)[len(falling_loss(1640)) :])
        chart.show(series)
        await pilot.pause()
        assert f"step {cursor}  loss" in held[-1]
        assert screen_text(app).splitlines()[-2:] == held
        chart.follow()
        assert (chart.options.cursor, chart.options.start) == (None, None)
        chart.show_all()
        assert chart.options.zoom == 0
        await pilot.pause()
        assert "▏ckpt" in screen_text(app)


async def test_the_cursor_walks_over_the_whole_run() -> None:
    async with open_app(size=(80, 20), app=ChartApp()) as (app, _pilot):
        chart = app.chart
        chart.show(series_of(falling_loss(700)))
        chart.zoom(1)
        seen = []
        for _ in range(400):
            chart.move_cursor(-1)
            seen.append(chart.options.cursor)
        assert seen[0] == 700 and seen[-1] == 1
        for _ in range(400):
            chart.move_cursor(1)
        assert chart.options.cursor == 700


async def test_the_cursor_goes_from_mark_to_mark() -> None:
    async with open_app(size=(80, 20), app=ChartApp()) as (app, pilot):
        chart = app.chart
        assert not chart.move_to_mark(-1), "nothing is marked before the first step"
        chart.show(series_of(falling_loss(1640)))
        seen = []
        while chart.move_to_mark(-1):
            seen.append(chart.options.cursor)
        assert seen == [SPIKE_STEP, 1500, 1250, 1000, 750, 500, 250]
        chart.zoom(1)
        assert chart.move_to_mark(1) and chart.options.cursor == 500
        await pilot.pause()
        assert "step 500 ▏▣  loss" in screen_text(app), "both marks stand beside the step"
        chart.move_cursor(1)
        assert chart.move_to_mark(1) and chart.options.cursor == 750
        chart.follow()
        assert chart.move_to_mark(1) and chart.options.cursor == 250, "without a cursor from the start of the run"


async def test_a_resumed_run_loses_its_abandoned_branch() -> None:
    async with open_app(size=(80, 20), app=ChartApp()) as (app, pilot):
        series = series_of(falling_loss(1640))
        app.chart.show(series)
        await pilot.pause()
        assert "spike 1588" in screen_text(app)
        series.feed([_resumed_from(1200)])
        app.chart.show(series)
        await pilot.pause()
        assert "spike" not in screen_text(app)
        assert screen_text(app).splitlines()[:16] == [
            row.text.rstrip() for row in drawn(series_of(falling_loss(1200)), 80, 20)[:16]
        ]


async def test_another_run_starts_with_its_own_loss() -> None:
    async with open_app(size=(80, 20), app=ChartApp()) as (app, pilot):
        app.chart.show(series_of(falling_loss(1640)))
        app.chart.next_metric()
        app.chart.zoom(1)
        other = series_of(falling_loss(300))
        app.chart.show(other)
        await pilot.pause()
        assert app.chart.options == ChartOptions()
        assert "spike" not in screen_text(app)


async def test_an_update_sends_less_than_a_kilobyte() -> None:
    app = ChartApp(driver_class=CountingDriver)
    running = asyncio.create_task(app.run_async(size=(120, 20)))
    while not app.is_running or not app.query(LossChart) or not app.chart.size:
        await asyncio.sleep(0.01)
    driver = app._driver
    assert isinstance(driver, CountingDriver)
    series = series_of(falling_loss(20_000))
    app.chart.show(series)
    sent = []
    for step in range(20_001, 20_201):
        series.feed([step_logged(step, loss=0.05 + step % 7 * 0.002)])
        before = driver.num_bytes
        app.chart.show(series)
        await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0.002)
        sent.append(driver.num_bytes - before)
    app.exit()
    await running
    changed = sorted(num for num in sent[2:] if num)
    assert len(changed) > 5
    assert changed[len(changed) // 2] < 1024
    assert sum(sent[2:]) / len(sent[2:]) < 256


def _resumed_from(step: int) -> RunStarted:
    return RunStarted(
        run_id="",
        pid=1,
        host="",
        tuitrain_version="",
        versions={},
        device="",
        world_size=1,
        config_hash="",
        seed=0,
        resumed_from=step,
    )
