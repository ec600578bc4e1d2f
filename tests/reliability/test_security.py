"""Texts of others steer no terminal and run no code; deletes stay inside; secrets and permissions; one writer."""

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from rich.console import Console
from textual.pilot import Pilot
from textual.widgets import OptionList
from typer.testing import CliRunner

from tests.reliability.figures import tell_figure
from tests.reliability.hostile import ALL, MARKUP, PAYLOADS, RAW, HostileRun, as_name, publish
from tests.tui.harness import open_app, screen_text, wait_until
from tests.tui.pty_session import REPOSITORY, PtySession
from tuitrain.commands.program import app as command_line
from tuitrain.config.files import config_from_values
from tuitrain.config.schema import TrainConfig
from tuitrain.engine.launch import create_run, train_run
from tuitrain.errors import CheckpointError, TuitrainError
from tuitrain.runs.checkpoints import checkpoint_name, delete_checkpoint, list_checkpoints, prune_checkpoints
from tuitrain.runs.control import Command, send_command
from tuitrain.runs.events import PhaseProgressed, PhaseStarted
from tuitrain.runs.journal import read_journal
from tuitrain.runs.run import Run, find_runs
from tuitrain.runs.states import list_states, remove_states
from tuitrain.terminal import LineView, ProgressView
from tuitrain.tui.document import ConfigDocument
from tuitrain.tui.failures import explain, facts_of, report, with_machine
from tuitrain.tui.live import LiveRun
from tuitrain.tui.screens.checkpoints import CheckpointsScreen
from tuitrain.tui.widgets.confirm import ConfirmScreen
from tuitrain.wording import escape_control

WIDE = (500, 60)
ESCAPED = re.compile(r"([A-Z][a-z]+)\\(?:x|u00)1b\]0;owned")
"""The name of a field before the first payload, as it is written out; YAML's escapes have four digits."""
OWN = {"CSI clear", "CSI colour", "carriage return"}
"""What a screen sends of its own."""
TRAINING = PhaseProgressed(phase="train", done=1, total=2, detail=f"Detail{ALL}")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What the last gate before the terminal puts where a widget has forgotten to escape."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No config, clipboard or state of the user's."""
    for name in ("CONFIG", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------------------------------------- terminal injection


async def tour(hostile: HostileRun, size: tuple[int, int] = WIDE) -> AsyncIterator[tuple[Any, Pilot[Any], str]]:
    """Every screen of `hostile`: the app, its pilot, and the name of what is on show."""
    async with open_app(size=size, runs_dir=hostile.base.parent) as (app, pilot):
        await wait_until(pilot, lambda: app.query_one("#runs", OptionList).option_count == 1, what="the run")
        app.query_one("#runs").focus()
        await pilot.pause()
        yield app, pilot, "home"
        app.live = LiveRun.watch(hostile.run)
        app.live.load()
        app.switch_mode("train")
        await wait_until(pilot, lambda: "Saved:" in screen_text(app), what="the failure panel")
        yield app, pilot, "train"
        await pilot.press("t")
        yield app, pilot, "traceback"
        app.switch_mode("checkpoints")
        await wait_until(
            pilot, lambda: isinstance(app.screen, CheckpointsScreen) and bool(app.screen.list.rows), what="checkpoints"
        )
        yield app, pilot, "checkpoints"
        app.switch_mode("log")
        await wait_until(pilot, lambda: "Exception" in screen_text(app), what="the log")
        yield app, pilot, "log"
        app.toast(hostile.text("Toast"))
        await pilot.pause()
        yield app, pilot, "toast"
        app.open_document(ConfigDocument.open(str(hostile.config_path)))
        await wait_until(pilot, lambda: "Sections" in screen_text(app), what="the config")
        app.screen.settings.go_to("model")
        await pilot.pause()
        yield app, pilot, "config"


async def test_every_screen_shows_the_payloads_escaped_and_none_raw(tmp_path: Path) -> None:
    hostile = HostileRun(tmp_path, ALL)
    seen: dict[str, str] = {}
    async for app, pilot, name in tour(hostile):
        await pilot.pause()
        seen[name] = screen_text(app)
    hits = {name: found for name, text in seen.items() if (found := RAW.findall(text) + re.findall(REPLACEMENT, text))}
    fields = {(name, field) for name, text in seen.items() for field in ESCAPED.findall(text)}
    tell_figure(
        f"payloads raw on the screens: {len(hits)} of {len(fields) * len(PAYLOADS)} tried in {len(fields)} places"
    )
    assert hits == {}
    expected = {
        "home": {"Run", "Base"}, "train": {"Run", "Failure", "Warning", "Command"}, "traceback": {"Exception"},
        "checkpoints": {"Prompt"}, "log": {"Log", "Exception"}, "toast": {"Toast"}, "config": {"Config", "Model"},
    }  # fmt: skip
    assert {(name, field) for name in expected for field in expected[name]} - fields == set()


def listening_ports(pid: int) -> list[str]:
    """The TCP sockets of process `pid` that wait for connections, as addresses."""
    links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    sockets = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:")}
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()
    ]
    return [line[1] for line in lines if line[3] == "0A" and line[9] in sockets]


@pytest.mark.slow
def test_a_real_terminal_gets_no_payload(tmp_path: Path) -> None:
    hostile = HostileRun(tmp_path, ALL)
    env = {"XDG_STATE_HOME": str(tmp_path / "STATE")}
    with PtySession(["open", str(hostile.run.path)], size=(200, 50), cwd=tmp_path, env=env) as session:
        session.wait_for("Saved:")
        for key, text in (("5", "Exception"), ("4", "this step"), ("1", "Presets")):
            session.press(key)
            session.wait_for(text)
        session.settle()
        assert listening_ports(session.app_pid) == []
        session.press("q")
        assert session.wait(20) == 0
    own = rb"\x1b\](22;default|2;[^\x00-\x1f\x7f]*)\x07"  # the pointer's shape, and the title: all one printable text
    received = re.sub(own, b"", bytes(session.received))
    bytes_of = {name: payload.encode("utf-8", "surrogateescape") for name, payload in PAYLOADS.items()}
    hits = [name for name, data in bytes_of.items() if name not in OWN and data in received]
    tell_figure(f"payloads on the terminal: {len(hits)} of {len(bytes_of) - len(OWN)}, in {len(received)} bytes")
    assert hits == []
    assert b"\xc2\x9b" not in received


@pytest.mark.parametrize("command", ["runs", "checkpoints", "check", "plot", "verify", "train", "open", "control"])
def test_commands_print_the_payloads_escaped_and_none_raw(tmp_path: Path, command: str) -> None:
    hostile = HostileRun(tmp_path, ALL)
    run, config = str(hostile.run.path), str(hostile.config_path)
    arguments = {
        "runs": [str(tmp_path)],
        "checkpoints": [run],
        "check": [config],
        "plot": [run, "--width", "400"],
        "verify": [run],  # a file that does not belong there
        "train": [config],
        "open": [f"{run}x"],
        "control": [f"{run}x", "stop"],
    }[command]
    checkpoint = list_checkpoints(hostile.run.checkpoints_dir)[0].path
    (checkpoint / as_name(hostile.text("Foreign"))).write_bytes(b"0")
    result = CliRunner().invoke(command_line, [command, *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    raw = RAW.findall(result.output)
    tell_figure(f"{command}: payloads raw {len(raw)} of {len(PAYLOADS)}")
    assert raw == []
    assert escape_control("\x1b]0;owned") in result.output


def test_a_training_in_the_terminal_prints_the_payloads_escaped_and_none_raw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = read_journal(HostileRun(tmp_path, ALL).run.journal_path)
    terminal = StringIO()
    bar = ProgressView(Console(file=terminal, force_terminal=True, width=500, markup=False, highlight=False))
    lines = LineView()
    for view in (bar, lines):
        for event in [*events, PhaseStarted(phase="train"), TRAINING]:
            view.show(event)
            view.tick()
        view.close()
    printed = capsys.readouterr().out
    hits = [name for name, payload in PAYLOADS.items() if name not in OWN and payload in terminal.getvalue()]
    tell_figure(
        f"payloads printed while training: {len(hits) + len(RAW.findall(printed))} of {2 * len(PAYLOADS) - len(OWN)}"
    )
    assert hits == []
    assert RAW.findall(printed) == []
    assert {"Warning", "Picture"} - set(ESCAPED.findall(printed)) == set()
    assert {"Warning", "Picture", "Detail"} - set(ESCAPED.findall(terminal.getvalue())) == set()


@pytest.mark.parametrize(
    "markup", ["".join(MARKUP), *(pytest.param(markup, marks=pytest.mark.slow) for markup in MARKUP)]
)
async def test_markup_is_shown_as_it_stands_and_does_nothing(tmp_path: Path, markup: str) -> None:
    hostile = HostileRun(tmp_path, markup)
    shown: set[str] = set()
    names: dict[str, int] = {}
    async for app, pilot, name in tour(hostile):
        await pilot.pause()
        lines = screen_text(app).splitlines()
        names[name] = sum(line.count(f"Run{as_name(markup)}") for line in lines)
        for y, line in enumerate(lines):
            if (x := line.find(markup)) >= 0:
                shown.add(name)
                await pilot.click(offset=(x + len(markup) // 2, y))
                break
        await pilot.pause()
        assert app.is_running and app.return_code is None
        assert not any(isinstance(screen, ConfirmScreen) for screen in app.screen_stack)
    tell_figure(f"{markup!r} literal on {len(shown)} of 7 views, crashes 0, actions 0")
    assert {"train", "traceback", "checkpoints", "log", "config", "toast"} - shown == set()
    assert names["home"] == 3, "in the list, as the preview's title, and in its folder"
    assert names["log"] == 2, "in the status and as the title"


def make_run(folder: Path) -> tuple[TrainConfig, Run]:
    """A run whose pictures and model are there, and no good."""
    for name in ("pictures", "model"):
        (folder / name).mkdir()
    values = {
        "type": "SDXL_FINETUNE",
        "base_output_dir": str(folder / "runs"),
        "model": str(folder / "model"),
        "max_train_steps": 1,
        "save_every_n_steps": 1,
        "data_loader": {
            "type": "IMAGE_CAPTION_SD_DATA_LOADER",
            "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(folder / "pictures")},
        },
    }
    return create_run(config_from_values(values))


def test_the_log_of_a_run_holds_the_escaped_form(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError(ALL)

    config, run = make_run(tmp_path)
    assert train_run(config, run, fail) == 1
    log = run.log_path.read_text(encoding="utf-8")
    assert "Traceback (most recent call last):" in log.splitlines()
    assert RAW.findall(log) == []
    assert escape_control(f"RuntimeError: {ALL}") in log


# ------------------------------------------------------------------------------------------------- code in data


@pytest.mark.slow
def test_nothing_that_is_read_from_data_runs_code(tiny_sdxl: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.reliability.code_vectors", str(tiny_sdxl), str(folder)]
    result = subprocess.run(
        command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    outcomes = told["outcomes"]
    tell_figure(f"code run from data: {len(told['seen'])} in {len(outcomes)} vectors")
    assert len(outcomes) >= 14
    assert told["seen"] == []
    assert not told["is_canary_there"]
    assert not told["is_hook_deaf"]
    for name in ("unet_as_bin", "pickle_named_safetensors", "single_file_ckpt", "single_file_renamed", "vae_as_bin"):
        assert outcomes[name].startswith("exit 2: "), outcomes[name]
    for name in ("bin_beside_safetensors", "code_in_the_model"):  # what is sound beside the code is used
        assert outcomes[name].startswith("exit 0: "), outcomes[name]


# ------------------------------------------------------------------------------------------------- deletes, writes


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything below `folder`, links not followed."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def plant_links(run: Run, outside: Path, random: Random) -> int:
    """Put links to `outside` wherever a run has folders, under the names that it deletes; how many."""
    checkpoints = [path for path in run.checkpoints_dir.iterdir() if path.is_dir() and not path.is_symlink()]
    places = [
        *(path / name for path in checkpoints for name in ("state", "unet", ".pinned", ".tmp-0123abcd-state")),
        *(
            run.checkpoints_dir / f"{prefix}{checkpoint_name(9, 9 + n)}"
            for n in range(3)
            for prefix in ("", ".tmp-0123abcd-")
        ),
        run.path / ".tmp-0123abcd-config.yaml",
        run.validation_dir / "step_1",
        run.validation_dir / "step_2" / "prompt_0",
        run.validation_dir / "step_3" / "prompt_0" / ".tmp-0123abcd-0.jpg",
    ]
    targets = [outside, *(path for path in outside.rglob("*"))]
    planted = 0
    for place in places:
        if random.random() < 0.6 and not os.path.lexists(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(random.choice(targets), target_is_directory=True)
            planted += 1
    return planted


def test_no_delete_leaves_the_run_whatever_links_were_planted(tmp_path: Path) -> None:
    planted = 0
    for seed in range(15):
        random = Random(seed)
        folder = tmp_path / str(seed)
        outside = folder / "outside"
        for name in (
            "checkpoint/unet/weights",
            "prompt_0/.tmp-0123abcd-0.jpg",
            ".tmp-0123abcd-0.jpg",
            "state/state.json",
        ):
            (outside / name).parent.mkdir(parents=True, exist_ok=True)
            (outside / name).write_text("mine")
        run = Run.create(folder / "runs", config_yaml="", config_json="{}")
        for step in range(1, 5):
            publish(run, step, {"weights": b"0"})
        shutil.copytree(list_checkpoints(run.checkpoints_dir)[0].path, outside / checkpoint_name(1, 1))
        before = contents(outside)
        planted += plant_links(run, outside, random)
        with run.lock():
            run.remove_leftovers()
            prune_checkpoints(run.checkpoints_dir, 2)
            remove_states(list_states(run.checkpoints_dir))
            for path in sorted(run.checkpoints_dir.glob("checkpoint-*")):
                with suppress(CheckpointError):
                    delete_checkpoint(path)
        assert contents(outside) == before, f"seed {seed}"
    tell_figure(f"deletes outside the run: 0, with {planted} links planted")


@pytest.mark.parametrize("name", ["lock", "control", "journal.jsonl", "log.txt", "heartbeat"])
def test_a_copied_run_whose_files_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    run = Run.create(tmp_path / "runs", config_yaml="", config_json="{}")
    outside = tmp_path / "outside"
    if name == "control":
        outside.mkdir()
        (outside / "precious").write_text("mine")
        (run.path / name).rmdir()
    else:
        outside.write_text("mine")
        (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(outside)
    with pytest.raises(TuitrainError, match="is a link to"), run.lock():
        pass
    assert (outside / "precious" if name == "control" else outside).read_text() == "mine"


# ------------------------------------------------------------------------------------------------- secrets


CANARY = "hf_cAnArYcAnArY"
SECRETS = {"HF_TOKEN": CANARY, "WANDB_API_KEY": CANARY, "HTTPS_PROXY": f"http://user:{CANARY}@127.0.0.1:9"}


def test_no_secret_of_the_environment_is_written_when_a_run_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)

    def fail() -> None:
        token = os.environ["HF_TOKEN"]  # a local variable of the frame that fails
        raise RuntimeError(f"the hub refused a token of {len(token)} characters")

    config, run = make_run(tmp_path)
    assert train_run(config, run, fail) == 1
    leaks = [name for name, data in contents(run.path).items() if isinstance(data, bytes) and CANARY.encode() in data]
    tell_figure(f"files with a secret: {len(leaks)} of {len(contents(run.path))}")
    assert leaks == []


class FailIn:
    """Polled as commands are; raises in a phase of the run that is below `runs`."""

    def __init__(self, runs: Path, phase: str) -> None:
        self.runs = runs
        self.phase = phase

    def __call__(self) -> None:
        (run,) = find_runs(self.runs)
        started = [event for event in read_journal(run.journal_path) if isinstance(event, PhaseStarted)]
        if started and started[-1].phase == self.phase:
            token = os.environ["HF_TOKEN"]
            raise RuntimeError(f"refused with a token of {len(token)} characters")


@pytest.mark.slow
def test_no_phase_that_crashes_writes_a_secret_and_no_file_of_a_whole_run_holds_one(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.engine.harness import small_config, train, write_pictures  # torch

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    jsonl = write_pictures(tmp_path / "pictures", 2)
    leaks: list[str] = []
    phases = ["import_libraries", "scan_images", "load_model", "cache_latents", "cache_text", "train", "save", "none"]
    num_files = 0
    for phase in phases:
        folder = tmp_path / phase
        config = small_config(folder, tiny_sdxl, jsonl, max_train_steps=2, save_every_n_steps=1)
        _run, _events, exit_code = train(config, FailIn(folder / "runs", phase))
        assert exit_code == (0 if phase == "none" else 1), phase
        written = {name: data for name, data in contents(folder).items() if isinstance(data, bytes)}
        num_files += len(written)
        leaks += [f"{phase}: {name}" for name, data in written.items() if CANARY.encode() in data]
    tell_figure(f"files with a secret: {len(leaks)} of {num_files}, crashed in {len(phases) - 1} phases")
    assert leaks == []


def test_a_report_holds_no_secret_that_the_log_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    hostile = HostileRun(tmp_path, f" {SECRETS['HTTPS_PROXY']} refused")
    live = LiveRun.watch(hostile.run)
    live.load()
    facts = with_machine(facts_of(live))
    assert CANARY in facts.log_tail
    assert CANARY not in report(explain(facts), facts, environment=os.environ)


# ------------------------------------------------------------------------------------------------- permissions, locks


def test_a_run_is_private_to_its_user(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        config, run = make_run(tmp_path)
        assert train_run(config, run, lambda: Command.STOP) == 0
        send_command(run.control_dir, Command.PAUSE)
    finally:
        os.umask(umask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in run.path.rglob("*")}
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert modes.pop("control") == 0o700
    (command,) = run.control_dir.iterdir()
    own = ["lock", "config.yaml", "config.json", "journal.jsonl", "log.txt", "heartbeat", command.name]
    assert {name: oct(modes[name]) for name in own} == dict.fromkeys(own, "0o600")


HOLD = """
import sys, time
from pathlib import Path
from tuitrain.runs.events import PhaseProgressed, PhaseStarted
from tuitrain.runs.journal import read_journal
from tuitrain.runs.run import Run, find_runs
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_trainer_is_refused_with_the_pid_and_host_of_the_first(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "runs", config_yaml="", config_json="{}")
    arguments = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(TuitrainError, match=rf"process {holder.pid} on {socket.gethostname()}"), run.lock():
            pass
        holder.kill()
    with run.lock():  # stale: the kernel let go
        assert json.loads(run.lock_path.read_text())["pid"] == os.getpid()


def test_no_module_opens_a_port() -> None:
    sources = {path: path.read_text() for path in (REPOSITORY / "tuitrain").rglob("*.py")}
    listens = re.compile(
        r"\.(listen|bind)\(|create_server|start_server|http\.server|socketserver|SummaryWriter\(.*port"
    )
    assert [str(path) for path, text in sources.items() if listens.search(text)] == []
