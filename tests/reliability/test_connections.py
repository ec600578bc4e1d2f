"""Whatever becomes of the terminal, the connection or the screen: the training goes on, or ends whole when told to."""

import signal
import sys
from pathlib import Path

import pytest

from tests.reliability.connections import APP, IN_A_SESSION_OF_ITS_OWN, MOMENTS, Training, undisturbed_digest
from tests.reliability.figures import tell_figure
from tuitrain.atomic import write_text_atomic
from tuitrain.runs.control import Command


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the weights that nobody disturbed."""
    return undisturbed_digest(tmp_path_factory.mktemp("reference"))


# ----------------------------------------------------------------------------------------------- the connection drops

HEADLESS = (*APP, "--headless")
NO_SIGNAL = (sys.executable, "-c", IN_A_SESSION_OF_ITS_OWN)
PROGRAMS = {
    "app": APP,
    "app, no signal": (*NO_SIGNAL, *APP),
    "no screen": HEADLESS,
    "no screen, no signal": (*NO_SIGNAL, *HEADLESS),
}
DROPS = [*(("app", moment) for moment in MOMENTS), *((program, "training") for program in list(PROGRAMS)[1:])]


@pytest.mark.slow
@pytest.mark.parametrize(("program", "moment"), DROPS, ids=[", ".join(drop) for drop in DROPS])
def test_a_training_outlives_its_terminal(program: str, moment: str, reference: str, tmp_path: Path) -> None:
    with Training(tmp_path, program=PROGRAMS[program]) as training:
        training.wait_for(moment)
        training.session.hang_up()
        cpu = 0.0
        if moment != "end":
            training.send(Command.PAUSE)
            cpu = training.cpu_percent(3.0)
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
        assert faults == []
        assert exit_code == 0
        assert cpu < 2.0


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
    with Training(tmp_path / "demo", [str(fault_path)], program=faulty) as training:
        session = training.session
        training.wait_for("training")
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
