"""A training in a terminal, and what is done to it at a moment of its life: the terminal goes, a signal comes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from tests.reliability.saving import digest
from tests.tui.pty_session import REPOSITORY, PtySession
from tests.tui.test_pty import poll_until
from tuitrain.runs.checkpoints import list_checkpoints, verify_checkpoint
from tuitrain.runs.control import Command, send_command
from tuitrain.runs.events import CommandObeyed, Event, PhaseStarted, RunFinished, StepLogged
from tuitrain.runs.journal import read_journal
from tuitrain.runs.run import Run, RunSummary, find_runs, summarize

NUM_STEPS = 8
EVERYTHING_TWICE = (
    f"max_train_steps={NUM_STEPS}", "save_every_n_steps=4", "validate_every_n_steps=4", "validate_at_start=false",
    "log_every_n_steps=1", 'validation_prompts=["a red star"]',
)  # fmt: skip
"""Settings of the demo for a run that samples and saves twice, in ten seconds, most of them for the libraries."""

ENDLESS = (
    "max_train_steps=1000000", "save_every_n_steps=1000000", "validation_prompts=[]", "log_every_n_steps=1",
)  # fmt: skip
"""Settings of the demo for a run that does not end by itself."""

APP = (sys.executable, "-m", "tuitrain", "demo")
NO_SCREEN = (*APP, "--headless")

# The kernel tells the terminal's hangup to the leader of its session, which this is not: only writes fail.
IN_A_SESSION_OF_ITS_OWN = """
import os, signal, sys
if os.fork():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
os.setsid()
os.execv(sys.argv[1], sys.argv[1:])
"""


def began(phase: str, *, times: int = 1) -> Callable[[Sequence[Event]], bool]:
    """Whether a part of a run has begun, `times` over."""
    return lambda events: sum(isinstance(event, PhaseStarted) and event.phase == phase for event in events) >= times


def stepped(events: Sequence[Event]) -> bool:
    return any(isinstance(event, StepLogged) for event in events)


MOMENTS: dict[str, Callable[[Sequence[Event]], bool]] = {
    "libraries load": began("import_libraries"),
    "caching": began("cache_latents"),
    "training": stepped,
    "sampling": began("sample"),
    "saving": began("save"),
    "end": began("save", times=2),
}


class Training:
    """A run that a command trains in a terminal.

    Args:
        folder: where its runs and the app's log are.
        command: trains a run there.
    """

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self.folder = folder
        self.env = {"XDG_STATE_HOME": str(folder / "state")}
        self.session = PtySession(command, size=(100, 30), env=self.env, is_tuitrain=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for run in find_runs(self.folder):
            if holder := run.lock_holder():  # may have left the terminal and its parents
                os.kill(holder.pid, signal.SIGKILL)
        self.session.__exit__()

    @property
    def run(self) -> Run:
        (run,) = find_runs(self.folder)
        return run

    @property
    def events(self) -> list[Event]:
        runs = find_runs(self.folder)
        return read_journal(runs[0].journal_path) if runs else []

    @property
    def summary(self) -> RunSummary:
        return summarize(self.run)

    @property
    def pid(self) -> int:
        """Of the process that trains."""
        holder = self.run.lock_holder()
        assert holder is not None, self.summary
        return holder.pid

    def wait_for(self, has_come: Callable[[Sequence[Event]], bool]) -> None:
        """Read the terminal until the run has come to a moment of its life."""
        self.session.wait_until(lambda: has_come(self.events), "the moment", 120)

    def reads_until(self, is_true: Callable[[], bool], seconds: float) -> bool:
        """Read the terminal until `is_true`, for some seconds at most; whether it is."""
        end = time.monotonic() + seconds
        while not is_true() and time.monotonic() < end:
            self.session.read(0.05)
        return is_true()

    def attach(self) -> PtySession:
        """A viewer in a terminal of its own."""
        return PtySession(["attach", str(self.run.path)], env=self.env)

    def wait_for_end(self, seconds: float = 120.0) -> None:
        """Wait until nobody trains the run any more, without touching the terminal."""
        poll_until(lambda: self.run.lock_holder() is None, "the end of the run", seconds)

    def send(self, command: Command) -> None:
        """Steer it, and wait until that is obeyed."""
        send_command(self.run.control_dir, command)
        self.wait_until_obeyed(command)

    def wait_until_obeyed(self, command: Command) -> None:
        poll_until(
            lambda: any(isinstance(event, CommandObeyed) and event.command == command for event in self.events),
            f"{command} obeyed",
            60,
        )

    def cpu_percent(self, seconds: float) -> float:
        """Of the process that trains and those above it, for so long."""
        pids = {self.pid, self.session.pid}
        before = sum(map(cpu_seconds, pids))
        time.sleep(seconds)
        return (sum(map(cpu_seconds, pids)) - before) / seconds * 100

    def faults_at_end(self, reference: str) -> list[str]:
        """What is not as at the end of a run that nobody disturbed, in words.

        Args:
            reference: digest of its weights.
        """
        faults = []
        if (self.summary.state, self.summary.step) != ("finished", NUM_STEPS):
            faults.append(f"{self.summary.state} at step {self.summary.step}")
        elif digest(self.run) != reference:
            faults.append("other weights")
        return faults + self.torn()

    def torn(self) -> list[str]:
        """What is wrong with the checkpoints that stand, in words."""
        folders = [checkpoint.path for checkpoint in list_checkpoints(self.run.checkpoints_dir)]
        return [str(problem) for folder in folders for problem in verify_checkpoint(folder)]

    def faults_after_stop(self) -> list[str]:
        """What is not as after a stop in good order, which saves the last step, in words."""
        faults = self.torn()
        ending = self.events[-1]
        saved = [checkpoint.manifest.step for checkpoint in list_checkpoints(self.run.checkpoints_dir)]
        if not isinstance(ending, RunFinished):
            faults.append(f"the journal ends with {type(ending).__name__}")
        elif ending.step != max(saved, default=0):
            faults.append(f"{ending.step} steps, saved {saved}")
        return faults

    def steps_per_second(self, wait: Callable[[], object]) -> float:
        """While `wait` waits."""
        step, start = self.summary.step, time.monotonic()
        wait()
        return (self.summary.step - step) / (time.monotonic() - start)

    @property
    def resident_mib(self) -> float:
        """Memory of the process that trains."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(pid: int) -> float:
    """Of a process, with those of its threads that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def settings_as_options(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def demo(folder: Path, settings: Sequence[str] = EVERYTHING_TWICE, *, program: Sequence[str] = APP) -> Training:
    """The demo in a terminal."""
    return Training(folder, [*program, "--dir", str(folder), *settings_as_options(settings)])


def undisturbed_digest(folder: Path) -> str:
    """Of the weights at the end of EVERYTHING_TWICE, trained without a terminal."""
    command = [*NO_SCREEN, "--dir", str(folder), *settings_as_options(EVERYTHING_TWICE)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (run,) = find_runs(folder)
    return digest(run)
