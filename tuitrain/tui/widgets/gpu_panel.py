"""GPU, RAM, processor and disk, read once a second in a thread; knows the driver's readings and the run's own."""

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.text import Text
from textual.content import Content
from textual.widget import Widget
from textual.worker import Worker, WorkerState

from tuitrain.gpu import GpuReading, read_gpus
from tuitrain.host import HostReading, cpu_share, read_host
from tuitrain.tui.widgets.changed_cells import changed_cells
from tuitrain.wording import escape_control, format_speed

if TYPE_CHECKING:
    from tuitrain.tui.live import LiveRun
    from tuitrain.tui.screens.base import TuitrainScreen
    from tuitrain.tui.snapshot import RunSnapshot

READ_SECONDS = 2.0
_HISTORY = 60
_BARS = "▁▂▃▄▅▆▇█"
_WIDE = 44


@dataclass(frozen=True)
class Hardware:
    """One reading of the machine."""

    gpus: Sequence[GpuReading]
    host: HostReading


class GpuPanel(Widget, can_focus=True):
    """Memory first, since it ends more runs than anything else; on a machine without a GPU, RAM."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.border_title = "machine"
        self._shown_title = ""
        self._hardware: Hardware | None = None
        self._cpu: float | None = None
        self._folder = Path()
        self._run: RunSnapshot | None = None
        self._engine_pid: int | None = None
        self._utilization: deque[float] = deque(maxlen=_HISTORY)
        self._lines = ["reading ..."]

    def on_mount(self) -> None:
        self.set_interval(READ_SECONDS, self._read)

    def show_live(self, live: "LiveRun") -> None:
        """Draw the run's own numbers beside the machine's."""
        self._folder, self._run = live.run.path, live.snapshot
        self._engine_pid = live.snapshot.pid
        if self._hardware is None:
            self._read()
        self._draw()

    def _read(self) -> None:
        is_seen = cast("TuitrainScreen", self.screen).may_timers_draw and self.is_on_screen
        if is_seen and self.app.app_focus:
            folder = self._folder
            self.run_worker(
                lambda: Hardware(read_gpus(), read_host(folder)), group="hardware", thread=True, exclusive=True
            )

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        event.stop()
        if event.state == WorkerState.SUCCESS:
            before, self._hardware = self._hardware, event.worker.result
            assert self._hardware is not None
            self._cpu = cpu_share(before.host, self._hardware.host) if before else None
            for gpu in self._hardware.gpus[:1]:
                self._utilization.append(gpu.utilization_pct or 0.0)
            self._draw()

    def _draw(self) -> None:
        if self._hardware is None:
            return
        lines = describe_hardware(
            self._hardware,
            cpu=self._cpu,
            run=self._run,
            engine_pid=self._engine_pid,
            utilization=list(self._utilization),
            width=self.size.width,
        )
        title = _title(self._hardware.gpus)
        if title != self._shown_title:  # setting it draws the whole panel: 5 kB
            self._shown_title = title
            self.border_title = Content(title)
        changed = changed_cells(self._lines, lines)
        self._lines = lines
        if changed:
            self.refresh(*changed)

    def render(self) -> Text:
        return Text("\n".join(self._lines), no_wrap=True, overflow="crop")


def _title(gpus: Sequence[GpuReading]) -> str:
    if not gpus:
        return "CPU only"
    name = escape_control(gpus[0].name.removeprefix("NVIDIA ").removeprefix("GeForce "))
    return f"GPU {gpus[0].index}  {name}" if len(gpus) == 1 else f"{len(gpus)} GPUs"


def describe_hardware(
    hardware: Hardware,
    *,
    cpu: float | None,
    run: "RunSnapshot | None",
    engine_pid: int | None,
    utilization: Sequence[float],
    width: int,
) -> list[str]:
    """The panel's lines, each at most `width` columns.

    Args:
        cpu: cores this process keeps busy.
        engine_pid: the process that trains; its memory is told apart from that of others.
        utilization: of the first GPU, percent, oldest first.
    """
    lines: list[str] = []
    for gpu in hardware.gpus:
        lines += _describe_gpu(gpu, run, engine_pid, utilization if gpu is hardware.gpus[0] else (), width)
    if not hardware.gpus:
        lines.append("no GPU: the CPU trains")
    host = hardware.host
    if host.ram_used_gib is not None and host.ram_total_gib:
        used = f"RAM  {host.ram_used_gib:.1f}/{host.ram_total_gib:.0f} GiB"
        lines.append(_with_bar(used, host.ram_used_gib / host.ram_total_gib, width))
    if host.process_ram_gib is not None:
        busy = "" if cpu is None else f"  cpu {cpu:.1f}/{host.num_cpus}"
        lines.append(f"here {host.process_ram_gib:.1f} GiB{busy}")
    if host.disk_free_gib is not None:
        lines.append(f"disk {host.disk_free_gib:.0f} GiB free")
    if run is not None and run.seconds_per_step:
        lines.append("─" * width)
        images = "" if run.images_per_second is None else f"   {run.images_per_second:.1f} img/s"
        lines.append(f"{format_speed(run.seconds_per_step)}{images}")
        if run.data_seconds is not None:
            lines.append(f"waits for data {100 * run.data_seconds / run.seconds_per_step:.0f} %")
    return [line[:width] for line in lines]


def _describe_gpu(
    gpu: GpuReading, run: "RunSnapshot | None", engine_pid: int | None, utilization: Sequence[float], width: int
) -> list[str]:
    lines = []
    if gpu.memory_used_gib is not None and gpu.memory_total_gib:
        used = f"VRAM {gpu.memory_used_gib:.1f}/{gpu.memory_total_gib:.1f}"
        lines.append(_with_bar(used, gpu.memory_used_gib / gpu.memory_total_gib, width))
    own = gpu.memory_by_pid_gib.get(engine_pid or os.getpid())
    if own is not None and gpu.memory_used_gib is not None:
        lines.append(f"     run {own:.1f}  others {max(gpu.memory_used_gib - own, 0.0):.1f}")
    if run is not None and run.memory_peak_gib is not None:
        held = "" if run.memory_reserved_gib is None else f"  held {run.memory_reserved_gib:.1f}"
        lines.append(f"     peak {run.memory_peak_gib:.1f}{held}")
    if gpu.utilization_pct is not None:
        spark = _sparkline(utilization, width - 12)
        lines.append(f"util {gpu.utilization_pct:3.0f} %  {spark}")
    facts = []
    if gpu.temperature_c is not None:
        facts.append(f"temp {gpu.temperature_c:.0f} °C")
    if gpu.power_w is not None:
        limit = "" if gpu.power_limit_w is None else f"/{gpu.power_limit_w:.0f}"
        facts.append(f"{gpu.power_w:.0f}{limit} W")
    if facts:
        lines.append("  ".join(facts))
    return lines


def _with_bar(text: str, fraction: float, width: int) -> str:
    """`text` and a bar in the columns that are left."""
    room = width - len(text) - 1
    if room < 4:
        return text
    eighths = round(min(max(fraction, 0.0), 1.0) * room * 8)
    full, rest = divmod(eighths, 8)
    return f"{text} {'█' * full}{' ▏▎▍▌▋▊▉'[rest] if rest else ''}".ljust(width - 1, "░") if room else text


def _sparkline(values: Sequence[float], width: int) -> str:
    return "".join(_BARS[min(int(value / 12.5), 7)] for value in values[-width:]) if width > 0 else ""
