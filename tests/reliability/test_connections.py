"""Whatever becomes of the terminal, the connection or the screen: the training goes on, or ends whole when told to."""

import os
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from tests.reliability.connections import (
    APP,
    ENDLESS,
    EVERYTHING_TWICE,
    IN_A_SESSION_OF_ITS_OWN,
    MOMENTS,
    NO_SCREEN,
    Training,
    began,
    demo,
    settings_as_options,
    stepped,
    undisturbed_digest,
)
from tests.reliability.figures import count, tell_figure
from tests.tui.pty_session import PtySession
from tests.tui.test_pty import poll_until
from tuitrain.atomic import write_text_atomic
from tuitrain.demo.create import create_demo
from tuitrain.runs.checkpoints import list_checkpoints
from tuitrain.runs.control import Command


def cases(every: Sequence[tuple[Any, ...]], sample: Sequence[tuple[Any, ...]]) -> list[ParameterSet]:
    """Every one of them as a test, those outside of the sample among the exhaustive ones."""
    return [
        pytest.param(*case, id=", ".join(map(str, case)), marks=() if case in sample else pytest.mark.exhaustive)
        for case in every
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the weights that nobody disturbed."""
    return undisturbed_digest(tmp_path_factory.mktemp("reference"))


# ----------------------------------------------------------------------------------------------- the connection drops

NO_SIGNAL = (sys.executable, "-c", IN_A_SESSION_OF_ITS_OWN)
PROGRAMS = {
    "app": APP,
    "app, no signal": (*NO_SIGNAL, *APP),
    "no screen": NO_SCREEN,
    "no screen, no signal": (*NO_SIGNAL, *NO_SCREEN),
}
TUITRAIN = (sys.executable, "-m", "tuitrain")
GRACE_SECONDS = 30.0
DROPS = [*(("app", moment) for moment in MOMENTS), *((program, "training") for program in list(PROGRAMS)[1:])]
SAMPLE_OF_DROPS = (("app", "training"), ("app", "saving"), ("no screen", "training"))


@pytest.mark.slow
@pytest.mark.parametrize(("program", "moment"), cases(DROPS, SAMPLE_OF_DROPS))
def test_a_training_outlives_its_terminal(program: str, moment: str, reference: str, tmp_path: Path) -> None:
    with demo(tmp_path, program=PROGRAMS[program]) as training:
        training.wait_for(MOMENTS[moment])
        training.session.hang_up()
        gone, cpu = time.monotonic(), 0.0
        if moment != "end":
            training.send(Command.PAUSE)
            while (cpu := training.cpu_percent(3.0)) >= 2.0 and time.monotonic() < gone + 20:
                pass  # the screen is still being put away
            with training.attach() as viewer:
                viewer.wait_for("PAUSED")
                viewer.press("space")
                training.wait_until_obeyed(Command.RESUME)
                viewer.wait_for("FINISHED")
                viewer.press("q")
                assert viewer.wait(10) == 0
        training.wait_for_end()
        exit_code = training.session.wait(20)
        faults = training.faults_at_end(reference)
        faults += ["terminal codes in the log"] * (b"\x1b" in training.run.log_path.read_bytes())
        told = f"{faults or 'survived'}, exit {exit_code}, {cpu:.1f} % CPU while it paused"
        tell_figure(f"terminal gone, {program}, {moment}: {told}")
        count("terminals gone, survived / tried", not faults and exit_code == 0 and cpu < 2.0)
        assert faults == []
        assert exit_code == 0
        assert cpu < 2.0


@pytest.mark.slow
def test_a_terminal_that_goes_while_the_libraries_load_ends_nothing(tmp_path: Path) -> None:
    with demo(tmp_path, [*ENDLESS, "max_train_steps=1"]) as training:
        training.wait_for(began("import_libraries"))
        training.session.hang_up()
        training.wait_for_end()
        assert training.session.wait(20) == 0
        assert (training.summary.state, training.summary.step) == ("finished", 1)


# ------------------------------------------------------------------------------------------------------------ signals

STOPS = [
    (program, moment, (signal.SIGINT, signal.SIGTERM)[(index + shift) % 2])
    for shift, program in enumerate(("app", "no screen"))
    for index, moment in enumerate(MOMENTS)
]


@pytest.mark.slow
@pytest.mark.parametrize(("program", "moment", "number"), cases(STOPS, STOPS[2::4]))
def test_a_signal_ends_a_training_in_good_order(
    program: str, moment: str, number: signal.Signals, tmp_path: Path
) -> None:
    with demo(tmp_path, program=PROGRAMS[program]) as training:
        training.wait_for(MOMENTS[moment])
        sent = time.monotonic()
        training.session.send_signal(number)
        exit_code = training.session.wait(GRACE_SECONDS)
        seconds = time.monotonic() - sent
        faults = training.faults_after_stop()
        told = f"{faults or 'whole'}, exit {exit_code} after {seconds:.1f} s"
        tell_figure(f"{number.name}, {program}, {moment}: {told}")
        count("signals that ended a run whole / tried", not faults and exit_code == 130)
        assert faults == []
        assert exit_code == 130
        assert training.session.is_terminal_restored


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "moment"),
    cases(list(product(("app", "no screen"), ("training", "saving"))), [("app", "saving"), ("no screen", "training")]),
)
def test_a_second_signal_leaves_at_once_and_harms_nothing(program: str, moment: str, tmp_path: Path) -> None:
    steps_of_a_minute = [*EVERYTHING_TWICE, "gradient_accumulation_steps=300"]
    settings = EVERYTHING_TWICE if moment == "saving" else steps_of_a_minute
    with demo(tmp_path, settings, program=PROGRAMS[program]) as training:
        training.wait_for(began("save" if moment == "saving" else "train"))
        training.session.send_signal(signal.SIGTERM)
        if program == "app" and moment == "training":
            training.session.read(1.5)  # before, it counts as the first, come on a second way
        second = time.monotonic()
        training.session.send_signal(signal.SIGINT)
        exit_code = training.session.wait(20)
        seconds = time.monotonic() - second
        faults = training.torn()
        tell_figure(f"second signal, {program}, {moment}: {faults or 'whole'}, exit {exit_code} after {seconds:.1f} s")
        assert faults == []
        assert exit_code == 130
        assert training.run.lock_holder() is None
        assert training.session.is_terminal_restored


BROKEN = """
import sys
from tuitrain.tui.launch import run_app
def on_ready(app):
    raise RuntimeError("broken")
sys.exit(run_app(on_ready))
"""


def test_the_terminal_is_restored_however_the_app_ends(tmp_path: Path) -> None:
    restored = {}
    for way in ("quit", "crash", "SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"):
        command = [sys.executable, *(["-c", BROKEN] if way == "crash" else ["-m", "tuitrain"])]
        with PtySession(command, is_tuitrain=False, cwd=tmp_path, env={"XDG_STATE_HOME": str(tmp_path)}) as session:
            modes = termios.tcgetattr(session.master)
            if way != "crash":
                session.wait_for("Presets", "Leave")
                assert termios.tcgetattr(session.master) != modes
            match way:
                case "quit":
                    session.press("q")
                case "SIGKILL":
                    os.kill(session.app_pid, signal.SIGKILL)
                case "SIGTERM" | "SIGINT" | "SIGHUP":
                    session.send_signal(signal.Signals[way])
            session.wait(20)
            assert b"\x1b[?1049h" in session.received, way  # there was something to restore
            restored[way] = session.is_terminal_restored and termios.tcgetattr(session.master) == modes
    tell_figure(f"terminal restored: {sum(restored.values())} / {len(restored)} {restored}")
    assert all(restored.values())


# ------------------------------------------------------------------------------------------ stalled, left, watched


@pytest.mark.slow
@pytest.mark.exhaustive  # `python -m tests.tui.bars stalled` measures the same
def test_a_terminal_that_nobody_reads_slows_no_training(tmp_path: Path) -> None:
    with demo(tmp_path, ENDLESS) as training:
        session = training.session
        training.wait_for(stepped)
        session.read(3.0)
        before = training.steps_per_second(lambda: session.read(10.0))
        memory = training.resident_mib
        stalled = training.steps_per_second(lambda: time.sleep(20.0))
        grown = training.resident_mib - memory
        session.press("1")
        recovered = session.wait_for("Presets")
        after = training.steps_per_second(lambda: session.read(10.0))
        flowing = (before + after) / 2
        tell_figure(
            f"terminal unread for 20 s: {stalled / flowing:.2f} of the steps (before {before:.2f}, then {stalled:.2f}, "
            f"after {after:.2f} it/s), {grown:+.1f} MiB, back in {recovered:.2f} s"
        )
        session.send_signal(signal.SIGTERM)
        assert session.wait(GRACE_SECONDS) == 130
    assert stalled > 0.6 * flowing, "other work on the machine moves it by a third"
    assert grown < 20
    assert recovered < 3


@pytest.mark.slow
@pytest.mark.parametrize("key", ["x", "d"])
def test_leaving_in_the_middle_of_a_save_tears_nothing(key: str, reference: str, tmp_path: Path) -> None:
    with demo(tmp_path) as training:
        session = training.session
        training.wait_for(began("save"))
        session.press("q")
        session.wait_for("is being trained here")
        session.press(key)
        assert session.wait(GRACE_SECONDS) == 0
        assert session.is_terminal_restored
        training.wait_for_end()
        faults = training.faults_after_stop() if key == "x" else training.faults_at_end(reference)
        tell_figure(f"left with {key} while saving: {faults or 'whole'}, {training.summary.state}")
        assert faults == []


@pytest.mark.slow
def test_several_viewers_watch_a_detached_run_and_one_writer_trains_it(tmp_path: Path) -> None:
    config = create_demo(tmp_path / "demo")
    command = [*TUITRAIN, "train", str(config), "--detach", *settings_as_options(ENDLESS)]
    with Training(tmp_path / "demo", command) as training:
        started = time.monotonic()
        assert training.session.wait(30) == 0
        prompt_seconds = time.monotonic() - started
        training.session.hang_up()
        poll_until(lambda: stepped(training.events), "a step", 120)
        with training.attach() as first, training.attach() as second:
            first.wait_for("TRAINING")
            second.wait_for("TRAINING")
            first.press("space")
            first.wait_for("PAUSED")
            second.wait_for("PAUSED")
            training.send(Command.SAVE)
            first.hang_up()
            assert first.wait(20) == 0  # a viewer without a terminal has nothing left to do
            second.press("space")
            second.wait_for("TRAINING")
            second.press("q")
            assert second.wait(10) == 0
            assert "goes on in another process" in second.text.replace("\n", "")

        resume = [*TUITRAIN, "train", "--resume", str(training.run.path), "--json"]
        refused = subprocess.run(resume, capture_output=True, text=True, check=False, timeout=120)
        assert refused.returncode == 1
        assert f"process {training.pid} on {socket.gethostname()} since" in refused.stderr + refused.stdout
        os.kill(training.pid, signal.SIGKILL)
        training.wait_for_end(10)
        assert training.summary.state == "died"
        (saved,) = list_checkpoints(training.run.checkpoints_dir)
        last = ["--set", f"max_train_steps={saved.manifest.step + 1}"]
        resumed = subprocess.run([*resume, *last], capture_output=True, check=False, timeout=120)
        assert resumed.returncode == 0, resumed.stdout
        assert (training.summary.state, training.torn()) == ("finished", [])
        tell_figure(f"prompt back {prompt_seconds:.1f} s after train --detach; viewers 2; double runs 0 / 1")


# --------------------------------------------------------------------------------------------------- the screen fails

FAULTS = (
    "timer", "render", "render_lines", "markup", "compose", "mount", "watch", "handler", "worker", "thread", "loop",
    "memory", "driver", "leaving", "exit",
)  # fmt: skip


@pytest.mark.slow
def test_no_failure_of_the_screen_ends_the_training(tmp_path: Path) -> None:
    fault_path = tmp_path / "fault"
    faulty = (sys.executable, "-m", "tests.reliability.faulty_screen")
    survived, failures = 0, []
    with Training(tmp_path / "demo", [*faulty, str(tmp_path / "demo"), str(fault_path)]) as training:
        session = training.session
        training.wait_for(stepped)
        session.wait_for("TRAINING")

        for fault in (*FAULTS, "resize"):
            step = training.summary.step
            if fault == "resize":
                session.resize(1, 1)
                session.read(1.0)
                session.resize(100, 30)
            else:
                write_text_atomic(fault_path, fault)
            if training.reads_until(lambda: "Enter opens the screen again" in session.text, 3.0):
                if f"tuitrain attach {training.run.path}" not in session.text.replace("\n", ""):
                    failures.append(f"{fault}: nothing tells how to attach")
                session.press("enter")
            if not training.reads_until(lambda: session.screen.is_alternate and "TRAINING" in session.text, 30.0):
                failures.append(f"{fault}: no screen afterwards")
                break
            if not training.reads_until(lambda step=step: training.summary.step >= step + 2, 30.0):
                failures.append(f"{fault}: no steps afterwards")
                break
            survived += 1
        session.send_signal(signal.SIGTERM)
        assert session.wait(30) == 130
        assert session.is_terminal_restored
        failures += training.torn()
    tell_figure(f"failures of the screen survived / injected: {survived} / {len(FAULTS) + 1} {failures}")
    assert failures == []
