"""How the base's files get into a package: shared blocks, hard links, copies."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tuitrain.export.base_files import copy_file
from tuitrain.export.progress import WorkCount, no_progress

CONTENT = bytes(range(256)) * 4096  # 1 MiB: small files lie in the file system's own records and are never shared


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(CONTENT)
    return tmp_path / "source"


def test_blocks_are_shared_where_the_file_system_can(source: Path, tmp_path: Path) -> None:
    """Run with --basetemp on btrfs or XFS; ext4 and tmpfs cannot."""
    reflink = ["cp", "--reflink=always", str(source), str(tmp_path / "probe")]
    if shutil.which("cp") is None or subprocess.run(reflink, check=False, capture_output=True).returncode:
        pytest.skip("the file system of the temporary folder shares no blocks")
    target = tmp_path / "target"
    reports: list[int] = []
    work = WorkCount(len(CONTENT), lambda report: reports.append(report.done_bytes))
    assert copy_file(source, target, link=False, work=work) == "cloned"
    assert target.read_bytes() == CONTENT
    assert reports[-1] == len(CONTENT)
    assert not target.samefile(source)
    with target.open("r+b") as file:
        file.write(b"edited")
    assert source.read_bytes() == CONTENT


def test_another_disk_gets_a_copy(source: Path) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == source.stat().st_dev:
        pytest.skip("there is no second file system")
    target = shared_memory / f"{source.parent.name}-{source.stat().st_ino}"
    try:
        assert copy_file(source, target, link=True, work=WorkCount(0, no_progress)) == "copied"
        assert target.read_bytes() == CONTENT
    finally:
        target.unlink(missing_ok=True)
