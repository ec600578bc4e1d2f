"""What the operating system says of this machine and process: RAM, processor, disk. Knows no GPU; Linux's /proc."""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

_KIB_PER_GIB = 2**20


@dataclass(frozen=True, kw_only=True)
class HostReading:
    """The machine now. What the system does not tell is None.

    Args:
        ram_used_gib: by all processes, without what the kernel could give back, GiB.
        ram_total_gib: GiB.
        process_ram_gib: held by this process, GiB, without files mapped from disk.
        cpu_seconds: processor time of this process so far, s, of all its threads.
        read_at: on the monotonic clock, s; two readings give the processor's share.
        num_cpus: cores this process may use.
        disk_free_gib: on the disk of the folder asked for, GiB.
    """

    ram_used_gib: float | None
    ram_total_gib: float | None
    process_ram_gib: float | None
    cpu_seconds: float
    read_at: float
    num_cpus: int
    disk_free_gib: float | None


def read_host(folder: Path) -> HostReading:
    """The machine, and the disk that `folder` is on; may wait for a disk on the network."""
    memory = _read_kib_lines(Path("/proc/meminfo"))
    process = _read_kib_lines(Path("/proc/self/status"))
    total, available = memory.get("MemTotal"), memory.get("MemAvailable")
    return HostReading(
        ram_used_gib=None if total is None or available is None else total - available,
        ram_total_gib=total,
        process_ram_gib=process.get("RssAnon"),
        cpu_seconds=time.process_time(),
        read_at=time.monotonic(),
        num_cpus=len(os.sched_getaffinity(0)),
        disk_free_gib=_free_gib(folder),
    )


def cpu_share(before: HostReading, now: HostReading) -> float | None:
    """Cores that this process kept busy between two readings: 1.5 is one and a half."""
    elapsed = now.read_at - before.read_at
    return (now.cpu_seconds - before.cpu_seconds) / elapsed if elapsed > 0 else None


@dataclass(frozen=True)
class MemoryReading:
    """Memory that this process could have, bytes: the machine's, or less where its control group has a limit.

    Args:
        total_bytes: for all who share it.
        available_bytes: not in use, or held by copies of files that the kernel would give back.
    """

    total_bytes: int
    available_bytes: int


def read_memory(root: Path = Path("/")) -> MemoryReading | None:
    """Memory as it is now; None where the system does not tell.

    Args:
        root: of the file system, for tests.
    """
    machine = _read_kib_lines(root / "proc/meminfo")
    if "MemTotal" not in machine or "MemAvailable" not in machine:
        return None
    readings = [MemoryReading(int(machine["MemTotal"] * 2**30), int(machine["MemAvailable"] * 2**30))]
    readings += [reading for group in _memory_groups(root) if (reading := _read_group(group))]
    return min(readings, key=lambda reading: reading.available_bytes)


def _memory_groups(root: Path) -> list[Path]:
    """The folders of the control groups that this process is in and that may limit its memory, from version 1 or 2.

    A container sees its own group as the root, whatever /proc calls it.
    """
    folders = []
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers in ("", "memory"):
            top = root / "sys/fs/cgroup" / controllers
            group = Path(name.lstrip("/"))
            folders += [top / folder for folder in (group, *group.parents)]
    return folders


def _read_group(folder: Path) -> MemoryReading | None:
    """What a control group allows; None when it sets no limit."""
    for limit_name, used_name, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        limit, used = _read_text(folder / limit_name).strip(), _read_text(folder / used_name).strip()
        if limit.isdecimal() and used.isdecimal():
            counts = dict(line.split() for line in _read_text(folder / "memory.stat").splitlines())
            of_files = sum(int(counts.get(f"{prefix}{name}", 0)) for name in ("active_file", "inactive_file"))
            return MemoryReading(int(limit), int(limit) - int(used) + of_files)
    return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _read_kib_lines(path: Path) -> dict[str, float]:
    """`Name:  1234 kB` lines as GiB; empty where the file is not."""
    words = [line.replace(":", " ").split() for line in _read_text(path).splitlines()]
    return {word[0]: float(word[1]) / _KIB_PER_GIB for word in words if len(word) == 3 and word[2] == "kB"}


def _free_gib(folder: Path) -> float | None:
    try:
        return shutil.disk_usage(folder).free / 2**30
    except OSError:
        return None
