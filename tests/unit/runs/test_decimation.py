"""No spike is lost, no column moves while a run grows."""

import math
import random

import pytest

from tuitrain.runs.decimation import MIN_EXPONENT, Envelope, Window


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 30), (1, 31), (5, 6), (1, 1640), (10**9, 10**9 + 12345)])
def test_the_whole_window_holds_all_steps_in_the_widest_columns_there_are_room_for(first: int, last: int) -> None:
    window = Window.whole(first, last, 100)
    assert window.start <= first <= last < window.end
    assert 0 <= window.column(first) <= window.column(last) < 100
    wider = Window(start=window.start, exponent=window.exponent - 1, num_columns=100)
    assert window.exponent == MIN_EXPONENT or wider.column(last) >= 100


def test_columns_stay_where_they_are_until_they_double() -> None:
    window = Window.whole(1, 2, 64)
    for last in range(3, 3000):
        grown = Window.whole(1, last, 64)
        assert grown.exponent in (window.exponent, window.exponent + 1)
        if grown.exponent == window.exponent:
            assert grown == window
        window = grown
    assert window.exponent == 6


@pytest.mark.parametrize("exponent", [-3, -1, 0, 1, 5])
def test_a_column_holds_the_steps_it_says(exponent: int) -> None:
    window = Window(start=64, exponent=exponent, num_columns=40)
    for step in range(64, window.end):
        column = window.column(step)
        assert window.first_step(column) <= step < window.end_step(column)


def test_a_followed_window_moves_rarely_and_always_shows_the_newest() -> None:
    window = Window.whole(1, 5000, 100).zoomed(3)
    starts = set()
    for step in range(4000, 5000):
        moved = window.moved_to_show(step)
        assert moved.start <= step < moved.end
        starts.add(moved.start)
    assert len(starts) <= 1000 / (window.num_steps / 4) + 2


def test_the_envelope_holds_every_extreme_however_it_was_fed() -> None:
    noise = random.Random(0)
    steps = sorted(noise.sample(range(1, 4000), 900))
    values = [noise.choice([noise.gauss(0, 1), math.nan, math.inf]) for _ in steps]
    smoothed = [float(index) for index in range(len(steps))]
    window = Window(start=512, exponent=4, num_columns=150)
    envelope = Envelope(window)
    for num in (0, 1, 200, 500, 501, 900):
        envelope.take(steps[:num], values[:num], smoothed[:num])
    for column in range(150):
        inside = [i for i, step in enumerate(steps) if 512 + 16 * column <= step < 512 + 16 * (column + 1)]
        finite = [values[index] for index in inside if math.isfinite(values[index])]
        expected = [min(finite), max(finite)] if finite else [math.nan, math.nan]
        assert [envelope.lows[column], envelope.highs[column]] == pytest.approx(expected, nan_ok=True)
        assert envelope.line[column] == pytest.approx(smoothed[inside[-1]] if inside else math.nan, nan_ok=True)
