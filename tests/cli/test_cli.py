"""The commands that train nothing: what they print, and the status they end with."""

import json
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner, Result

from tuitrain.commands.program import app
from tuitrain.config.files import load_config
from tuitrain.runs.control import Command, poll_control_dir
from tuitrain.runs.events import DatasetScanned, RunFinished, StepLogged
from tuitrain.runs.journal import Journal
from tuitrain.runs.run import Run

VALID_CONFIG = """\
type: SDXL_FINETUNE
base_output_dir: {base}/runs
model: {base}/model
max_train_steps: 10
save_every_n_steps: 5
data_loader:
  type: IMAGE_CAPTION_SD_DATA_LOADER
  dataset:
    type: IMAGE_CAPTION_DIR_DATASET
    dataset_dir: {base}/pictures
"""


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def make_run(base_output_dir: Path) -> Run:
    return Run.create(base_output_dir, config_yaml="", config_json="{}")


@pytest.fixture
def finished_run(tmp_path: Path) -> Run:
    run = make_run(tmp_path / "runs")
    journal = Journal(run.journal_path)
    journal.append(
        DatasetScanned(
            num_images=4, num_skipped=0, buckets={"64x64": 4}, steps_per_epoch=4, total_steps=20, num_epochs=5
        )
    )
    journal.append(
        StepLogged(step=20, epoch=5, loss=float("nan"), lr=1e-5, seconds_per_step=0.1, images_per_second=10.0)
    )
    journal.append(RunFinished(step=20, epoch=5, reason="completed", seconds=2.0))
    journal.close()
    return run


def test_runs_lists_state_and_progress(finished_run: Run, tmp_path: Path) -> None:
    result = invoke("runs", tmp_path)
    assert result.exit_code == 0
    head, line = result.stdout.splitlines()
    assert head.split() == ["run", "state", "step", "epoch", "loss", "checkpoints", "started"]
    assert line.split()[:6] == [str(finished_run.path), "finished", "20/20", "5", "nan", "0"]


def test_runs_as_json_is_strict(finished_run: Run, tmp_path: Path) -> None:
    (summary,) = json.loads(invoke("runs", tmp_path, "--json").stdout, parse_constant=pytest.fail)
    assert summary["path"] == str(finished_run.path)
    assert (summary["state"], summary["step"], summary["loss"]) == ("finished", 20, "nan")


def test_runs_of_an_empty_folder_are_none(tmp_path: Path) -> None:
    assert json.loads(invoke("runs", tmp_path, "--json").stdout) == []
    assert invoke("runs", tmp_path).exit_code == 0


def test_a_hostile_folder_name_is_escaped(tmp_path: Path) -> None:
    make_run(tmp_path / "\x1b]0;PWNED\x07")
    result = invoke("runs", tmp_path)
    assert "\x1b" not in result.stdout
    assert r"\x1b]0;PWNED\x07" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs", "{missing}"),
        ("checkpoints", "{missing}"),
        ("control", "{missing}", "stop"),
        ("presets", "show", "{missing}"),
        ("train", "{missing}"),
        ("check", "{missing}"),
        ("train", "{config}", "--set", "learing_rate=1"),
        ("train", "{config}", "--set", "nonsense"),
        ("demo", "--dir", "{missing}"),
    ],
    ids=" ".join,
)
def test_a_wrong_request_exits_2_with_its_reason_on_stderr(arguments: tuple[str, ...], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(VALID_CONFIG.format(base=tmp_path))
    places = {"missing": tmp_path / "missing", "config": config}
    result = invoke(*(argument.format(**places) for argument in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "missing").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [("tarin",), ("train",), ("train", "a", "--jsn"), ("control", "x")], ids=" ".join)
def test_a_command_line_that_does_not_exist_exits_2(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_every_wrong_setting_is_told_at_once_as_json(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(VALID_CONFIG.format(base=tmp_path) + "learing_rate: 1\ntrain_batch_size: 0\n")
    result = invoke("train", config, "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == answer["exit_code"] == 2
    assert result.stderr == ""
    assert len(answer["errors"]) == 2
    assert any("learing_rate" in error["what"] for error in answer["errors"])
    assert all(error["where"].startswith(f"{config}:") for error in answer["errors"])


def test_paths_that_do_not_exist_are_told_by_their_keys_before_a_run_is_made(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(VALID_CONFIG.format(base=tmp_path) + f"vae_model: {tmp_path}/vae\n")
    result = invoke("train", config, "--json")
    told = [error["what"] for error in json.loads(result.stdout)["errors"]]
    assert result.exit_code == 2
    assert [text.split(",")[0] for text in told] == [
        f"data_loader.dataset.dataset_dir is {tmp_path}/pictures",
        f"model is {tmp_path}/model",
        f"vae_model is {tmp_path}/vae",
    ]
    assert not (tmp_path / "runs").exists()


def test_debug_shows_where_an_error_was_raised(tmp_path: Path) -> None:
    result = invoke("train", tmp_path / "missing.yaml", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


def test_a_failure_of_the_system_is_told_in_words_with_exit_1(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(VALID_CONFIG.format(base=tmp_path))
    for folder in ("model", "pictures"):
        (tmp_path / folder).mkdir()
    (tmp_path / "runs").write_text("a file where the folder of runs should be")
    result = invoke("train", config)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path}/runs")
    assert "Traceback" not in result.stderr


def test_control_reaches_a_live_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with run.lock():
        result = invoke("control", run.path, "sample")
        assert result.exit_code == 0, result.stderr
        assert poll_control_dir(run.control_dir) == Command.SAMPLE


def test_control_refuses_a_run_that_nobody_trains(finished_run: Run) -> None:
    result = invoke("control", finished_run.path, "stop")
    assert result.exit_code == 2
    assert "finished" in result.stderr
    assert poll_control_dir(finished_run.control_dir) is None


def test_control_refuses_an_unknown_command(finished_run: Run) -> None:
    result = invoke("control", finished_run.path, "explode")
    assert result.exit_code == 2
    assert "pause, resume, save, sample, stop" in result.stderr


def test_presets_are_listed_and_each_one_is_shown_as_a_config(tmp_path: Path) -> None:
    names = [preset["name"] for preset in json.loads(invoke("presets", "--json").stdout)]
    assert "robocats_24gb" in names
    for name in names:
        copy = tmp_path / f"{name}.yaml"
        copy.write_text(invoke("presets", "show", name).stdout)
        assert load_config(copy) == load_config(name)
    assert all(name in invoke("presets", "list").stdout for name in names)


def test_the_list_of_commands_cuts_no_description() -> None:
    listed = invoke("--help").stdout.partition("Commands:")[2].splitlines()[1:]
    assert len(listed) >= 9
    assert [line for line in listed if line.endswith("...") or not line.endswith(".")] == []


def test_every_argument_and_option_says_what_it_is() -> None:
    program = get_command(app)
    assert isinstance(program, TyperGroup)
    presets = program.commands["presets"]
    assert isinstance(presets, TyperGroup)
    for name, command in {**program.commands, **presets.commands}.items():
        silent = [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]
        assert silent == [], name


def test_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    assert invoke("--version").stdout == f"tuitrain {version('tuitrain')}\n"
