"""How far an export is, in tensors and bytes, for whoever wants to know; knows no file, no clock and no screen."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressReport:
    """How far an export is.

    Args:
        phase: what is being done: "check", "unet", "verify vae".
        done: things done in this phase.
        total: things to do in this phase.
        unit: what the things are: "tensors", "files", "pictures".
        done_bytes: read and written since the export began, whatever the phase; never falls.
        total_bytes: to read and write in all; 0 where bytes tell nothing.
    """

    phase: str
    done: int
    total: int
    unit: str = "tensors"
    done_bytes: int = 0
    total_bytes: int = 0

    @property
    def share(self) -> float:
        """0 to 1: of all bytes, or of the phase where bytes tell nothing."""
        done, total = (self.done_bytes, self.total_bytes) if self.total_bytes else (self.done, self.total)
        return done / total if total else 0.0

    def seconds_left(self, elapsed_seconds: float) -> float | None:
        """How long the rest takes if it goes on as it did since the beginning; None before anything is done."""
        return elapsed_seconds * (1 - self.share) / self.share if self.share > 0 else None


Progress = Callable[[ProgressReport], None]
"""Called from the thread that works; what it raises cancels the work and leaves nothing."""


def no_progress(report: ProgressReport) -> None:
    """Tell nobody."""


def describe_progress(report: ProgressReport, elapsed_seconds: float) -> str:
    """`unet 412/1680 tensors · 2.1/5.1 GB · eta 14 s`."""
    facts = [f"{report.phase} {report.done}/{report.total} {report.unit}"]
    if report.total_bytes:
        scale, unit = (1e9, "GB") if report.total_bytes >= 1e9 else (1e6, "MB")
        facts.append(f"{report.done_bytes / scale:.1f}/{report.total_bytes / scale:.1f} {unit}")
    seconds_left = report.seconds_left(elapsed_seconds)
    if seconds_left is not None:
        minutes, seconds = divmod(round(seconds_left), 60)
        facts.append(f"eta {minutes}:{seconds:02} min" if minutes else f"eta {seconds} s")
    return " · ".join(facts)


class WorkCount:
    """Counts the work of an export that goes through bytes.

    Args:
        total_bytes: to read and write in all.
        progress: told after each piece.
    """

    def __init__(self, total_bytes: int, progress: Progress) -> None:
        self._total_bytes = total_bytes
        self._progress = progress
        self._phase, self._unit = "", ""
        self._done = self._total = self._done_bytes = 0

    def begin(self, phase: str, total: int, unit: str = "tensors") -> None:
        """From here on `total` things are to be done."""
        self._phase, self._unit = phase, unit
        self._done, self._total = 0, total
        self._tell()

    def add(self, num_bytes: int) -> None:
        """One more thing is done, and `num_bytes` with it."""
        self._done += 1
        self.add_bytes(num_bytes)

    def add_bytes(self, num_bytes: int) -> None:
        """`num_bytes` of a thing that goes on are done."""
        self._done_bytes += num_bytes
        self._tell()

    def _tell(self) -> None:
        self._progress(
            ProgressReport(self._phase, self._done, self._total, self._unit, self._done_bytes, self._total_bytes)
        )
