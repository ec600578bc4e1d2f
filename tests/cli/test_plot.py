"""`tuitrain plot` draws what was measured, tells runs apart, and obeys no name of a run."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.tui.series_samples import falling_loss, series_of, step_logged
from tuitrain.commands.program import app
from tuitrain.plot import NOTHING, PlotOptions, draw_plot, name_runs
from tuitrain.runs.journal import Journal
from tuitrain.runs.run import Run

ANSI = re.compile(r"\x1b\[[\d;]*m")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["plot", *(str(argument) for argument in arguments)])


def make_run(folder: Path, *, num_steps: int) -> Run:
    run = Run.create(folder, config_yaml="", config_json="{}")
    journal = Journal(run.journal_path)
    for event in falling_loss(num_steps):
        journal.append(event)
    return run


def rows_with_letter(text: str, letter: str) -> list[int]:
    """The rows of the picture, below the legend, that `letter` is drawn in."""
    rows = text.splitlines()
    top = next(index for index, row in enumerate(rows) if "┌" in row)
    return [index for index, row in enumerate(rows[top:-3]) if letter in row.split("┤")[-1]]


def test_the_curve_falls_as_the_loss_does(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_steps=300)
    result = invoke(run.path, "--width", "60", "--height", "16")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 16
    assert max(map(len, lines)) == 60
    assert lines[0] == "loss, smoothed by 0.98"
    assert lines[1] == f"━━ {run.run_id}"
    assert "100" in lines[-2] and "300" in lines[-2]


def test_higher_losses_stand_higher_and_each_run_has_its_letter() -> None:
    low = series_of([step_logged(step, loss=0.1) for step in range(1, 50)])
    high = series_of([step_logged(step, loss=0.9) for step in range(1, 50)])
    text = draw_plot({"low": low, "high": high}, PlotOptions(), width=60, height=20, has_color=False)
    assert "aa low" in text and "bb high" in text
    assert max(rows_with_letter(text, "b")) < min(rows_with_letter(text, "a"))


@pytest.mark.parametrize("is_log_y", [False, True])
def test_an_exponential_fall_is_straight_on_a_logarithmic_axis_alone(is_log_y: bool) -> None:
    run = series_of([step_logged(step, loss=10 ** (-step / 100)) for step in range(1, 301)])
    options = PlotOptions(is_log_y=is_log_y, smoothing=0.0)
    text = draw_plot({"x": run, "y": run}, options, width=70, height=34, has_color=False)
    columns = [row.index("b") for row in text.splitlines()[4:] if "b" in row[9:]]
    steps = [after - before for before, after in pairwise(columns)]
    assert (max(steps) - min(steps) <= 2) is is_log_y


def test_a_second_metric_has_its_own_axis() -> None:
    run = series_of([step_logged(step) for step in range(1, 500)])
    text = draw_plot({"x": run}, PlotOptions(metrics=("loss", "lr")), width=70, height=20, has_color=False)
    assert "aa x: loss, left" in text and "bb x: learning rate, right" in text
    assert "├8e-5" in text


def test_only_the_steps_asked_for_are_drawn() -> None:
    run = series_of([step_logged(step, loss=9.0 if step < 100 else 0.1 + step / 1e4) for step in range(1, 301)])
    text = draw_plot({"x": run}, PlotOptions(first=150, last=250, smoothing=0), width=70, height=20, has_color=False)
    assert "9" not in text and "140" not in text and "260" not in text
    assert "200" in text


def test_colours_are_only_in_what_asks_for_them() -> None:
    run = series_of(falling_loss(400))
    plain, colored = (draw_plot({"x": run}, PlotOptions(), width=60, height=16, has_color=c) for c in (False, True))
    assert "\x1b" not in plain
    assert ANSI.sub("", colored).split() == plain.split()


def test_names_of_runs_are_shown_and_never_obeyed() -> None:
    run = series_of(falling_loss(10))
    name = "evil\x1b]0;title\x07\u202e"
    for has_color in (False, True):
        text = draw_plot({name: run}, PlotOptions(), width=80, height=16, has_color=has_color)
        assert r"evil\x1b]0;title\x07\u202e" in text
        assert "\x1b]" not in text and "\x07" not in text and "\u202e" not in text


@pytest.mark.parametrize(
    "options", [PlotOptions(), PlotOptions(is_log_x=True, is_log_y=True), PlotOptions(smoothing=0)]
)
def test_a_run_of_any_length_can_be_plotted(options: PlotOptions) -> None:
    for num_steps in (0, 1, 2, 3, 700):
        for width, height in ((20, 8), (80, 24), (5, 3)):
            text = draw_plot(
                {"x": series_of(falling_loss(num_steps))}, options, width=width, height=height, has_color=True
            )
            assert (text == NOTHING) is (num_steps == 0)


def test_runs_with_the_same_name_are_told_by_their_paths(tmp_path: Path) -> None:
    same, other, third = Run(tmp_path / "a" / "1.5"), Run(tmp_path / "b" / "1.5"), Run(tmp_path / "a" / "2.5")
    assert name_runs([same, third, same]) == {"1.5": same, "2.5": third}
    assert name_runs([same, other, third]) == {str(same.path): same, str(other.path): other, "2.5": third}


def test_json_holds_every_number(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_steps=600)
    expected = series_of(falling_loss(600))
    (told,) = json.loads(invoke(run.path, "--metric", "loss", "--metric", "memory", "--json").stdout)
    assert told["run"] == str(run.path)
    assert told["steps"] == list(range(1, 601))
    assert told["metrics"]["loss"]["values"] == expected.values("loss").tolist()
    assert told["metrics"]["loss"]["smoothed"] == pytest.approx(expected.smoothed_loss.tolist())
    assert told["metrics"]["memory"]["smoothed"] == [22.5] * 600
    assert (told["checkpoints"], told["samples"]) == ([250, 500], [500])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--metric", "losss"], "--metric is losss"),
        (["--metric", "loss", "--metric", "lr", "--metric", "d"], "two at most"),
        (["--smoothing", "1"], "less than 1"),
    ],
)
def test_a_wrong_request_is_refused_with_what_would_be_right(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = invoke(make_run(tmp_path, num_steps=1).path, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    result = invoke(tmp_path)
    assert result.exit_code == 2
    assert "is not a run" in result.stderr
