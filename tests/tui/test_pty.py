"""The app in a real terminal: what it leaves there, what reaches it, and what a training survives."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tui.pty_session import REPOSITORY, PtySession
from tuitrain.runs.run import Run, RunSummary, find_runs, summarize

# What a first screen may not load: each costs a quarter of a second or more.
HEAVY = {"torch", "diffusers", "transformers", "numpy", "PIL", "plotext", "pydantic", "yaml"}

Start = Callable[..., PtySession]


@pytest.fixture
def state_home(tmp_path: Path) -> Path:
    """Where the app keeps its own log."""
    return tmp_path / "state"


@pytest.fixture
def start(tmp_path: Path, state_home: Path) -> Iterator[Start]:
    """Starts tuitrain, or a program of ours, in a terminal; ends it when the test ends."""
    sessions: list[PtySession] = []

    def start_session(arguments: Sequence[str] = (), **options: Any) -> PtySession:
        env = {"XDG_STATE_HOME": str(state_home), **options.pop("env", {})}
        sessions.append(PtySession(arguments, env=env, cwd=options.pop("cwd", tmp_path), **options))
        return sessions[-1]

    yield start_session
    for session in sessions:
        session.__exit__()


@pytest.fixture
def start_program(start: Start, tmp_path: Path) -> Callable[[str], PtySession]:
    """Runs the app in a program that does something of its own, `def on_ready(app)`, once the first screen stands."""

    def run(source: str) -> PtySession:
        program = tmp_path / "program.py"
        lines = ["import sys", "from tuitrain.tui.launch import run_app", source, "sys.exit(run_app(on_ready))"]
        program.write_text("\n".join(lines))
        return start([sys.executable, str(program)], is_tuitrain=False)

    return run


def log_text(state_home: Path) -> str:
    path = state_home / "tuitrain" / "tuitrain.log"
    return path.read_text() if path.exists() else ""


def wait_for_home(session: PtySession) -> None:
    session.wait_for("Presets", "Leave")


# ------------------------------------------------------------------------------------------------- without a training


def test_the_first_screen_loads_nothing_heavy(start_program: Any, state_home: Path) -> None:
    session = start_program(
        "def on_ready(app):\n    print('LOADED', *{name.split('.')[0] for name in sys.modules}); app.exit(0)"
    )
    assert session.wait() == 0
    (loaded,) = [line for line in log_text(state_home).splitlines() if line.startswith("LOADED")]
    assert set(loaded.split()) & HEAVY == set()


def test_leaving_gives_back_the_terminal_and_a_clean_screen(start: Start) -> None:
    session = start()
    wait_for_home(session)
    assert session.screen.is_alternate
    session.press("q")
    assert session.wait(10) == 0
    assert session.is_terminal_restored
    assert session.text.strip() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_closes_the_screen_and_restores_the_terminal(start: Start, number: signal.Signals) -> None:
    session = start()
    wait_for_home(session)
    session.send_signal(number)
    assert session.wait(10) == (0 if number == signal.SIGHUP else 130)
    assert session.is_terminal_restored


def test_a_killed_app_leaves_a_usable_terminal_and_a_sentence(start: Start) -> None:
    session = start()
    wait_for_home(session)
    os.kill(session.app_pid, signal.SIGKILL)
    assert session.wait(10) == 128 + signal.SIGKILL
    assert session.is_terminal_restored
    assert "error: tuitrain was ended by SIGKILL" in session.text


def test_a_failing_screen_tells_where_the_log_is_and_no_values(start_program: Any, state_home: Path) -> None:
    session = start_program(
        "def on_ready(app):\n    hf_token = 'hf_SECRET'\n    raise RuntimeError('the screen is [/broken]')"
    )
    assert session.wait(20) == 1
    assert session.is_terminal_restored
    text = session.text
    assert text.startswith("error: the screen failed (RuntimeError: the screen is [/broken])")
    assert "start again: tuitrain" in text
    assert "Traceback" not in text
    assert "Traceback" in log_text(state_home)
    assert b"hf_SECRET" not in session.received.split(b"on_ready")[0]
    assert "'hf_SECRET'" not in log_text(state_home).replace("hf_token = 'hf_SECRET'", "")


@pytest.mark.parametrize(("arguments", "env"), [(["--ascii"], {}), ([], {"TUITRAIN_ASCII": "1"})])
def test_with_ascii_the_terminal_gets_no_line_and_no_corner(
    start: Start, arguments: list[str], env: dict[str, str]
) -> None:
    session = start(arguments, env=env)
    wait_for_home(session)
    assert "+- Presets -" in session.text
    assert not re.search("[\u2500-\u257f]", session.received.decode(errors="replace"))


def test_the_log_of_the_app_is_private(start: Start, state_home: Path) -> None:
    session = start()
    wait_for_home(session)
    assert (state_home / "tuitrain" / "tuitrain.log").stat().st_mode & 0o777 == 0o600


def test_ctrl_c_and_ctrl_z_say_how_to_leave_and_do_not(start: Start) -> None:
    session = start()
    wait_for_home(session)
    session.press("ctrl+c")
    session.wait_for("q leaves the app")
    session.press("ctrl+z")
    session.wait_for("ctrl+z would halt")
    session.press("q")
    assert session.wait(10) == 0


def test_a_resize_to_80x24_cuts_nothing(start: Start) -> None:
    session = start(size=(120, 40))
    wait_for_home(session)
    session.settle()
    session.resize(80, 24)
    session.wait_until(lambda: "Leave" in session.screen.display[23], "the keys on the last row", 10)
    assert session.screen.display[23].rstrip().endswith("Leave")


NOISE = """
import ctypes, os, subprocess, sys, threading, warnings, logging
from tqdm import tqdm  # huggingface_hub brings it
def on_ready(app):
    def strays():
        print("STRAY-print")
        sys.stderr.write("STRAY-stderr\\n")
        sys.__stdout__.write("STRAY-original-stdout\\n"); sys.__stdout__.flush()
        sys.__stderr__.write("STRAY-original-stderr\\n"); sys.__stderr__.flush()
        os.write(1, b"STRAY-fd1\\n")
        os.write(2, b"STRAY-fd2\\n")
        libc = ctypes.CDLL(None)
        libc.puts(b"STRAY-puts"); libc.fflush(None)
        libc.dprintf(2, b"STRAY-dprintf\\n")
        subprocess.run(["sh", "-c", "echo STRAY-child; echo STRAY-child-stderr >&2"])
        warnings.warn("STRAY-warning")
        logging.getLogger("noisy").warning("STRAY-log")
        list(tqdm(range(3), desc="STRAY-tqdm"))
        raise ValueError("STRAY-thread")
    thread = threading.Thread(target=strays)
    thread.start(); thread.join()
    app.exit(0)
"""


def test_nothing_but_the_app_reaches_the_terminal(start_program: Any, state_home: Path) -> None:
    session = start_program(NOISE)
    assert session.wait(20) == 0
    strays = set(re.findall(r"STRAY-[a-z0-9-]+", NOISE))
    assert b"STRAY" not in session.received
    assert strays == set(re.findall(r"STRAY-[a-z0-9-]+", log_text(state_home)))


def test_an_editor_gets_the_terminal_for_itself(start_program: Any, state_home: Path) -> None:
    session = start_program(
        "import subprocess\n"
        "def on_ready(app):\n"
        "    with app.suspend():\n"
        "        subprocess.run(['sh', '-c', 'test -t 1 && test -t 2 && echo EDITOR-ON-A-TERMINAL'])\n"
        "    subprocess.run(['echo', 'STRAY-afterwards'])\n"
        "    app.exit(0)"
    )
    assert session.wait(20) == 0
    assert b"EDITOR-ON-A-TERMINAL" in session.received
    assert b"STRAY" not in session.received
    assert "STRAY-afterwards" in log_text(state_home)


def test_the_terminal_has_the_run_in_its_title_and_gets_its_own_back(start: Start, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "gnome", config_yaml="", config_json="{}")
    session = start(["open", str(run.path)])
    session.wait_until(lambda: session.screen.title == f"? gnome/{run.path.name}", "the title", 20)
    session.press("q")
    assert session.wait(10) == 0
    kept, told, restored = (session.received.find(code) for code in (b"\x1b[22;2t", b"\x1b]2;? gnome", b"\x1b[23;2t"))
    assert 0 <= kept < told < restored


@pytest.mark.parametrize("arguments", [[], ["open", "demo"], ["demo"]], ids=" ".join)
def test_without_a_terminal_it_says_so_and_exits_2(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tuitrain", *arguments]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm"}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: the app needs a terminal, and standard input is none")
    assert list(tmp_path.iterdir()) == []


def test_a_dumb_terminal_gets_a_sentence(start: Start) -> None:
    session = start(env={"TERM": "dumb"})
    assert session.wait(20) == 2
    assert "the app cannot draw on a terminal of the type dumb" in session.text.replace("\n", "")


# ---------------------------------------------------------------------------------------------------- with a training


class Demo:
    """The demo, training in a terminal."""

    def __init__(self, session: PtySession, directory: Path) -> None:
        self.session = session
        self.directory = directory
        session.wait_for("TRAINING", "loss")

    @property
    def run(self) -> Run:
        (run,) = find_runs(self.directory / "runs")
        return run

    @property
    def summary(self) -> RunSummary:
        return summarize(self.run)

    def wait_for_steps(self, num_steps: int, seconds: float = 60.0) -> None:
        """Wait until so many more are logged, without touching the terminal."""
        goal = self.summary.step + num_steps
        poll_until(lambda: self.summary.step >= goal, f"step {goal}", seconds)

    def stop(self) -> None:
        """Stop the training from outside and wait for its end."""
        command = [sys.executable, "-m", "tuitrain", "control", str(self.run.path), "stop"]
        subprocess.run(command, cwd=REPOSITORY, check=True)
        poll_until(lambda: self.summary.state != "running", "the end of the run", 60.0)


def poll_until(is_true: Callable[[], bool], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def demo(start: Start, tmp_path: Path) -> Callable[[], Demo]:
    """Starts the demo with a training that does not end by itself."""

    def start_demo(**options: Any) -> Demo:
        arguments = ["demo", "--dir", str(tmp_path / "demo"), "--steps", "100000", "--set", "validation_prompts=[]"]
        return Demo(start(arguments, **options), tmp_path / "demo")

    return start_demo


def cpu_seconds(pid: int) -> dict[str, float]:
    """Of each thread of a process, by id."""
    seconds = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        fields = (thread / "stat").read_text().rsplit(")", 1)[1].split()
        seconds[thread.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


@pytest.mark.slow
def test_leaving_keeps_the_training_in_the_terminal_and_enter_brings_the_screen_back(demo: Any) -> None:
    training = demo()
    session = training.session
    session.press("q")
    session.wait_for("is being trained here")
    session.press("l")
    session.wait_for("training goes on here", "it/s")
    assert session.is_terminal_restored
    training.wait_for_steps(5)
    session.press("enter")
    session.wait_for("TRAINING", "Detach")
    session.press("q")
    session.wait_for("is being trained here")
    session.press("x")
    assert session.wait(30) == 0
    assert training.summary.state == "stopped"
    assert session.is_terminal_restored


@pytest.mark.slow
def test_detaching_gives_back_the_shell_within_a_second_and_the_training_goes_on(demo: Any) -> None:
    training = demo()
    pid = training.session.app_pid
    pressed = time.monotonic()
    training.session.press("D")
    assert training.session.wait(10) == 0
    assert time.monotonic() - pressed < 1.5
    assert training.session.is_terminal_restored
    assert "training goes on in the background" in training.session.text
    training.session.hang_up()
    training.wait_for_steps(10)
    os.kill(pid, signal.SIGTERM)
    poll_until(lambda: training.summary.state == "stopped", "the end of the run", 30)
    assert training.summary.num_checkpoints == 1


@pytest.mark.slow
def test_a_dropped_connection_ends_the_screen_and_nothing_else(demo: Any, start: Start) -> None:
    training = demo()
    pid = training.session.app_pid
    training.session.hang_up()
    training.wait_for_steps(5)
    before = cpu_seconds(pid)
    time.sleep(2.0)
    used = sorted(seconds - before.get(thread, 0.0) for thread, seconds in cpu_seconds(pid).items())
    assert sum(used[:-1]) <= 0.04, "of 2 s; the last is the trainer's"
    viewer = start(["attach"], cwd=training.directory)
    viewer.wait_for("TRAINING", "loss")
    viewer.press("q")
    assert viewer.wait(10) == 0
    assert "goes on in another process" in viewer.text.replace("\n", "")
    training.stop()


@pytest.mark.slow
def test_train_detach_returns_at_once_and_outlives_its_session(start: Start, tmp_path: Path) -> None:
    from tuitrain.demo.create import create_demo

    config = create_demo(tmp_path / "demo")
    began = time.monotonic()
    session = start(["train", str(config), "--detach", "--set", "validation_prompts=[]"])
    assert session.wait(20) == 0
    assert time.monotonic() - began < 10.0
    (run,) = find_runs(tmp_path / "demo" / "runs")
    assert f"tuitrain attach {run.path}" in session.text.replace("\n", "")
    session.hang_up()
    poll_until(lambda: summarize(run).step >= 5, "step 5", 60.0)
    pid = summarize(run).pid
    assert pid is not None
    assert os.getsid(pid) == pid
    os.kill(pid, signal.SIGTERM)
    poll_until(lambda: summarize(run).state == "stopped", "the end of the run", 30.0)
