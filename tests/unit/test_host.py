"""Memory that a process may have: the machine's, or its control group's where that is less."""

from pathlib import Path

import pytest

from tuitrain.host import MemoryReading, read_memory

GIB = 2**30
MACHINE = "MemTotal: 67108864 kB\nMemFree: 1024 kB\nMemAvailable: 33554432 kB\n"  # 64 and 32 GiB


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


GROUP_2 = {"memory.max": f"{16 * GIB}\n", "memory.current": f"{15 * GIB}\n"}
STAT_2 = f"anon 1\nactive_file {2 * GIB}\ninactive_file {3 * GIB}\n"
GROUP_1 = {"memory.limit_in_bytes": f"{16 * GIB}\n", "memory.usage_in_bytes": f"{15 * GIB}\n"}
STAT_1 = f"active_file 1\ntotal_active_file {2 * GIB}\ntotal_inactive_file {3 * GIB}\n"
LIMITED = MemoryReading(16 * GIB, 6 * GIB)  # what files hold comes back
UNLIMITED = MemoryReading(64 * GIB, 32 * GIB)


@pytest.mark.parametrize(
    ("cgroup", "folder", "files", "expected"),
    [
        ("0::/\n", "sys/fs/cgroup", {}, UNLIMITED),
        ("0::/\n", "sys/fs/cgroup", {**GROUP_2, "memory.stat": STAT_2}, LIMITED),
        ("0::/a/b\n", "sys/fs/cgroup/a", {**GROUP_2, "memory.stat": STAT_2}, LIMITED),
        ("0::/a/b\n", "sys/fs/cgroup/c", {**GROUP_2, "memory.stat": STAT_2}, UNLIMITED),
        ("0::/a\n", "sys/fs/cgroup/a", {**GROUP_2, "memory.max": "max\n"}, UNLIMITED),
        ("9:cpu:/x\n4:memory:/x\n0::/\n", "sys/fs/cgroup/memory/x", {**GROUP_1, "memory.stat": STAT_1}, LIMITED),
        ("4:memory:/of/the/host\n", "sys/fs/cgroup/memory", {**GROUP_1, "memory.stat": STAT_1}, LIMITED),
    ],
)
def test_the_tightest_limit_around_the_process_counts(
    cgroup: str, folder: str, files: dict[str, str], expected: MemoryReading, tmp_path: Path
) -> None:
    write_files(tmp_path, {"proc/meminfo": MACHINE, "proc/self/cgroup": cgroup})
    write_files(tmp_path / folder, files)
    assert read_memory(tmp_path) == expected


def test_a_system_that_does_not_tell_gives_no_reading(tmp_path: Path) -> None:
    assert read_memory(tmp_path) is None
