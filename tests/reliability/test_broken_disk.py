"""Whatever breaks under the checkpoints: it is told, and what does not stand on the disk is never called saved."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from tests.engine.harness import write_pictures
from tests.reliability.broken_disk import (
    MOUNT_FAULTS,
    NUM_STEPS,
    Outcome,
    failing_call,
    lose_linked_disk,
    remove,
    replace_by_file,
    train_on,
)
from tests.reliability.figures import tell_figure

LOST_FOLDERS = {
    "checkpoints/ removed": remove,
    "checkpoints/ replaced by a file": replace_by_file,
    "checkpoints/ leads nowhere": lose_linked_disk,
}
FAILING_CALLS = {
    "EIO in fsync": ("fsync", errno.EIO),
    "EIO in rename": ("rename", errno.EIO),
    "EIO in statvfs": ("statvfs", errno.EIO),
    "EROFS in mkdir": ("mkdir", errno.EROFS),
}
FAULTS = [
    pytest.param(name, marks=() if name in ("checkpoints/ removed", "EIO in fsync") else [pytest.mark.slow])
    for name in (*LOST_FOLDERS, *FAILING_CALLS)
]


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 2)


def breaking(fault: str) -> AbstractContextManager[Callable[[Path], None]]:
    return nullcontext(LOST_FOLDERS[fault]) if fault in LOST_FOLDERS else failing_call(*FAILING_CALLS[fault])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_save_that_fails_ends_the_run_loudly_and_is_never_called_saved(
    fault: str, tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    with breaking(fault) as break_it:
        outcome = train_on(tmp_path, tiny_sdxl, jsonl, break_it)
    check_failed_loudly(fault, outcome, is_first_kept=fault in FAILING_CALLS)


def check_failed_loudly(fault: str, outcome: Outcome, *, is_first_kept: bool) -> None:
    tell_figure(f"{fault}: silent successes {len(outcome.silent)}; told: {outcome.what}; saved: {outcome.told}")
    assert (outcome.saved, outcome.silent, outcome.exit_code, outcome.error) == ([1], [], 1, "CheckpointError")
    assert "cannot write" in outcome.what and "/checkpoints" in outcome.what
    saved = "checkpoint of step 1, " if is_first_kept else "nothing: the checkpoint of step 1 is gone"
    assert outcome.told.startswith(saved)


@pytest.mark.slow
def test_a_quota_that_is_used_up_pauses_the_run_and_nothing_is_called_saved(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    with failing_call("fsync", errno.EDQUOT) as break_it:
        check_paused("EDQUOT in fsync", train_on(tmp_path, tiny_sdxl, jsonl, break_it), "Disk quota exceeded")


def check_paused(fault: str, outcome: Outcome, reason: str) -> None:
    tell_figure(f"{fault}: silent successes {len(outcome.silent)}; told: {outcome.not_saved[0]}")
    assert (outcome.saved, outcome.silent, outcome.num_pauses) == ([1], [], NUM_STEPS - 1)
    assert all(reason in text for text in outcome.not_saved)


@pytest.mark.slow
@pytest.mark.parametrize("fault", MOUNT_FAULTS)
def test_a_disk_that_becomes_read_only_or_full_or_goes_is_told(
    fault: str, tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    program = [sys.executable, "-m", "tests.reliability.broken_disk", fault, *map(str, (tmp_path, tiny_sdxl, jsonl))]
    done = subprocess.run(["unshare", "-Urm", *program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcome = Outcome(**json.loads(done.stdout.splitlines()[-1]))
    match fault:
        case "read-only disk":
            check_failed_loudly(fault, outcome, is_first_kept=True)
        case "full disk":
            check_paused(fault, outcome, "does not fit on the disk")
        case _:  # what was mounted over is a folder too, and the later checkpoints do stand there
            tell_figure(f"{fault}: silent successes {len(outcome.silent)}")
            assert (outcome.silent, outcome.exit_code) == ([], 0)
