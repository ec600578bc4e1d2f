"""Work beside the training, an export: in a thread of its own, with progress and cancelling. Knows no widget."""

import logging
import threading
from collections.abc import Callable, Sequence
from enum import Enum
from time import monotonic
from typing import Generic, TypeVar

from tuitrain.errors import Problem, TuitrainError
from tuitrain.export.progress import Progress, ProgressReport
from tuitrain.wording import escape_control

Result = TypeVar("Result")

_BAR_WIDTH = 20
_BAR, _BAR_HALF, _BAR_REST = "━╸─"


class JobState(Enum):
    """How a Job stands, in words."""

    AT_WORK = "at work"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobCancelledError(Exception):
    """Raised out of the progress callable, inside the work, to end it."""


class Job(Generic[Result]):
    """One piece of work, begun once.

    Not a daemon: a process that ends cancels its Job and waits until nothing half-written is left.

    Args:
        title: what is done to what: "extract LoRA step-1500 rank 32".
        work: called in the thread; imports what is heavy, and calls the progress callable it gets again and again.

    Attributes:
        state: how it stands.
        report: the latest progress; None until there is any.
        result: of the work, once `state` is DONE.
        problems: why it FAILED, for the user.
    """

    def __init__(self, title: str, work: Callable[[Progress], Result]) -> None:
        self.title = title
        self.state = JobState.AT_WORK
        self.report: ProgressReport | None = None
        self.result: Result | None = None
        self.problems: Sequence[Problem] = ()
        self._work = work
        self._is_cancelled = threading.Event()
        self._started = self._cancelled = 0.0
        self._began = 0.0  # of the first report: what comes before, imports, says nothing about the pace
        self._thread = threading.Thread(target=self._run, name="job", daemon=False)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.state in (JobState.AT_WORK, JobState.CANCELLING)

    def start(self) -> None:
        """Begin."""
        self._started = monotonic()
        self._thread.start()

    def cancel(self) -> None:
        """End it at its next progress; it leaves nothing behind."""
        if self.is_running:
            self._cancelled = monotonic()
            self._is_cancelled.set()
            self.state = JobState.CANCELLING

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of its thread."""
        self._thread.join(timeout)

    def describe(self, width: int) -> str:
        """The Job on one line: `extract LoRA step-1500 rank 32  ━━━╸────  58%  41 s left  ^x cancels`."""
        facts = self._facts()
        room = width - len(facts) - 2
        title = escape_control(self.title)
        if len(title) > room:
            title = title[: max(room - 1, 0)] + "…"
        return f"{title}  {facts}"

    def _facts(self) -> str:
        match self.state:
            case JobState.DONE:
                return "✓ done  4 shows the result"
            case JobState.FAILED:
                return "✖ failed  4 tells why"
            case JobState.CANCELLED:
                return "cancelled, nothing was left behind"
            case JobState.CANCELLING:
                return f"cancelling… {duration_in_words(monotonic() - self._cancelled)}"
        if self.report is None:
            return f"loading libraries… {duration_in_words(monotonic() - self._started)}  ^x cancels"
        return f"{_bar(self.report.share)}  {self.report.share:4.0%}{self._time_left(self.report)}  ^x cancels"

    def _time_left(self, report: ProgressReport) -> str:
        seconds = report.seconds_left(monotonic() - self._began)
        return "" if seconds is None else f"  {duration_in_words(seconds)} left"

    def _tell(self, report: ProgressReport) -> None:
        if self._is_cancelled.is_set():
            raise JobCancelledError
        if self.report is None:
            self._began = monotonic()
        self.report = report

    def _run(self) -> None:
        try:
            self.result = self._work(self._tell)
        except JobCancelledError:
            self.state = JobState.CANCELLED
        except TuitrainError as error:
            self._fail(error.problems)
        except OSError as error:
            self._fail([Problem(error.strerror or str(error), where=str(error.filename or ""))])
        except Exception as error:
            logging.getLogger(__name__).exception("%s failed", self.title)
            what = f"a bug in tuitrain: {type(error).__name__}: {error}"
            self._fail([Problem(what, "the traceback is in the app's log; nothing was left behind")])
        else:
            self.state = JobState.DONE  # after `result`, so that who sees it done sees the result

    def _fail(self, problems: Sequence[Problem]) -> None:
        self.problems = problems
        self.state = JobState.FAILED


def duration_in_words(seconds: float) -> str:
    """`41 s`, `3 min`, `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _bar(share: float) -> str:
    halves = round(share * 2 * _BAR_WIDTH)
    bar = _BAR * (halves // 2) + _BAR_HALF * (halves % 2)
    return bar.ljust(_BAR_WIDTH, _BAR_REST)
