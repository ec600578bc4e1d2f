"""A job's thread: progress, cancelling, and failures in words."""

import threading
from collections.abc import Callable
from time import monotonic, sleep

import pytest

from tuitrain.errors import ExportError, Problem
from tuitrain.export.progress import Progress, ProgressReport
from tuitrain.tui.jobs import Job, JobState, duration_in_words


def until(is_true: Callable[[], bool]) -> None:
    deadline = monotonic() + 10
    while not is_true():
        assert monotonic() < deadline
        sleep(0.002)


def test_a_finished_job_has_the_result_of_its_work() -> None:
    job = Job("add", lambda progress: 2 + 3)
    job.start()
    job.join(10)
    assert (job.state, job.result, job.is_running) == (JobState.DONE, 5, False)


def test_cancelling_ends_the_work_at_its_next_progress_and_runs_its_cleaning() -> None:
    cleaned = []

    def work(progress: Progress) -> None:
        try:
            while True:
                progress(ProgressReport("unet", 1, 4))
        finally:
            cleaned.append(True)

    job = Job("endless", work)
    job.start()
    until(lambda: job.report is not None)
    job.cancel()
    job.join(10)
    assert job.state is JobState.CANCELLED
    assert cleaned == [True]


def test_cancelling_before_the_first_progress_holds() -> None:
    gate = threading.Event()

    def work(progress: Progress) -> str:
        gate.wait(10)
        progress(ProgressReport("check", 0, 1))
        return "never"

    job = Job("imports", work)
    job.start()
    job.cancel()
    assert job.state is JobState.CANCELLING
    gate.set()
    job.join(10)
    assert (job.state, job.result) == (JobState.CANCELLED, None)


def test_work_that_ended_before_it_saw_the_wish_to_cancel_is_done() -> None:
    job = Job("quick", lambda progress: "made")
    job.start()
    job.join(10)
    job.cancel()
    assert (job.state, job.result) == (JobState.DONE, "made")


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (ExportError("disk full", hint="free some"), Problem("disk full", "free some")),
        (PermissionError(13, "Permission denied", "/root/x"), Problem("Permission denied", where="/root/x")),
        (
            ZeroDivisionError("1/0"),
            Problem(
                "a bug in tuitrain: ZeroDivisionError: 1/0",
                "the traceback is in the app's log; nothing was left behind",
            ),
        ),
    ],
)
def test_a_failure_is_told_as_problems(error: Exception, problem: Problem) -> None:
    def work(progress: Progress) -> None:
        raise error

    job = Job("fails", work)
    job.start()
    job.join(10)
    assert job.state is JobState.FAILED
    assert list(job.problems) == [problem]


def test_one_line_tells_title_share_and_how_to_cancel() -> None:
    imported, gate = threading.Event(), threading.Event()

    def work(progress: Progress) -> None:
        imported.wait(10)
        progress(ProgressReport("unet", 3, 10))
        progress(ProgressReport("unet", 5, 10))
        gate.wait(10)

    job = Job("extract LoRA \x1b[31mstep-1500 rank 32", work)
    job.start()
    assert job.describe(80) == "extract LoRA \\x1b[31mstep-1500 rank 32  loading libraries… 0 s  ^x cancels"
    imported.set()
    until(lambda: job.report is not None and job.report.done == 5)
    line = job.describe(80)
    assert "━━━━━━━━━━──────────   50%  0 s left  ^x cancels" in line
    assert len(job.describe(60)) == 60
    assert job.describe(60).startswith("extract L…  ━")
    job.cancel()
    assert job.describe(80).endswith("cancelling… 0 s")
    gate.set()
    job.join(10)
    assert job.describe(80).endswith("✓ done  4 shows the result")


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (41, "41 s"), (185, "3 min"), (7560, "2.1 h")])
def test_durations_are_short(seconds: float, words: str) -> None:
    assert duration_in_words(seconds) == words
