"""What is told of an export while it works."""

import pytest

from tuitrain.export.progress import ProgressReport, WorkCount, describe_progress


def test_a_report_is_told_in_tensors_bytes_and_time() -> None:
    report = ProgressReport("unet", 412, 1680, done_bytes=2_100_000_000, total_bytes=5_100_000_000)
    assert describe_progress(report, 9.8) == "unet 412/1680 tensors · 2.1/5.1 GB · eta 14 s"


@pytest.mark.parametrize(
    ("report", "elapsed", "text"),
    [
        (ProgressReport("check", 0, 2, "files", 0, 30_000_000), 1.0, "check 0/2 files · 0.0/30.0 MB"),
        (ProgressReport("unet", 1, 9, "tensors", 10**9, 10**10), 10.0, "unet 1/9 tensors · 1.0/10.0 GB · eta 1:30 min"),
        (ProgressReport("draw", 1, 4, "pictures"), 10.0, "draw 1/4 pictures · eta 30 s"),
        (ProgressReport("draw", 0, 0, "pictures"), 10.0, "draw 0/0 pictures"),
    ],
)
def test_what_is_not_known_is_left_out(report: ProgressReport, elapsed: float, text: str) -> None:
    assert describe_progress(report, elapsed) == text


def test_bytes_go_on_from_phase_to_phase_and_things_begin_anew() -> None:
    reports: list[ProgressReport] = []
    work = WorkCount(10, reports.append)
    work.begin("check", 1, "files")
    work.add_bytes(4)
    work.add(2)
    work.begin("unet", 2)
    work.add(4)
    assert [(one.phase, one.done, one.total, one.unit, one.done_bytes) for one in reports] == [
        ("check", 0, 1, "files", 0),
        ("check", 0, 1, "files", 4),
        ("check", 1, 1, "files", 6),
        ("unet", 0, 2, "tensors", 6),
        ("unet", 1, 2, "tensors", 10),
    ]
