"""The train screen over recorded journals: what it shows at every size, and what its keys ask of the trainer."""

import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from tests.tui.harness import SIZES, assert_golden, open_app, screen_text, wait_until
from tuitrain.gpu import GpuReading
from tuitrain.host import HostReading
from tuitrain.runs import events
from tuitrain.runs.control import Command, poll_control_dir
from tuitrain.runs.journal import Journal
from tuitrain.runs.run import Run
from tuitrain.tui.widgets import gpu_panel
from tuitrain.tui.widgets.braille import ChartOptions

GPU = GpuReading(
    index=0,
    name="NVIDIA GeForce RTX 4090",
    memory_used_gib=21.3,
    memory_total_gib=24.0,
    utilization_pct=97.0,
    temperature_c=71.0,
    power_w=348.0,
    power_limit_w=450.0,
)
HOST = HostReading(
    ram_used_gib=34.0,
    ram_total_gib=64.0,
    process_ram_gib=9.5,
    cpu_seconds=1.0,
    read_at=1.0,
    num_cpus=16,
    disk_free_gib=212.0,
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run at step 300 of 400, with samples and a checkpoint, as its trainer would have journalled it."""
    made = Run.create(tmp_path / "foxes", config_yaml="type: SDXL_FINETUNE\n", config_json="{}")
    run = Run(made.path.rename(made.path.parent / "one"))
    (run.validation_dir / "fox.jpg").parent.mkdir(exist_ok=True)
    Image.linear_gradient("L").resize((64, 64)).save(run.validation_dir / "fox.jpg")
    journal = Journal(run.journal_path)
    start = time.mktime((2026, 1, 2, 12, 0, 0, 0, 0, -1))
    journal.append(
        events.RunStarted(
            time=start, run_id="one", pid=1, host="h", tuitrain_version="0", versions={}, device="cpu", world_size=1,
            config_hash="", seed=1, resumed_from=None,
        )
    )  # fmt: skip
    journal.append(
        events.DatasetScanned(
            time=start, num_images=4, num_skipped=0, buckets={"64x64": 4}, steps_per_epoch=100, total_steps=400,
            num_epochs=4,
        )
    )  # fmt: skip
    journal.append(events.PhaseStarted(time=start, phase="train"))
    for step in range(10, 301, 10):
        journal.append(
            events.StepLogged(
                time=start + step, step=step, epoch=step // 100, loss=0.5 / step**0.5, lr=1e-5, grad_norm=1.0,
                seconds_per_step=1.0, images_per_second=4.0,
            )
        )  # fmt: skip
    sample = events.SampleImage(path="validation/fox.jpg", prompt_index=0, image_index=0, prompt="a [b]fox[/b]")
    journal.append(events.SamplesSaved(time=start + 300, step=300, epoch=3, images=[sample], seconds=2.0))
    journal.append(
        events.CheckpointSaved(
            time=start + 301, step=300, epoch=3, name="checkpoint-epoch_00000003-step_00000300", num_bytes=5 << 30,
            seconds=31.0,
        )
    )  # fmt: skip
    journal.close()
    return run


@pytest.fixture
def trained_run(run: Run) -> Iterator[Run]:
    """The same while a process trains it."""
    with run.lock():
        yield run


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_a_run_at_every_size(trained_run: Run, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_panel, "read_gpus", lambda: (GPU,))  # in place of this machine
    monkeypatch.setattr(gpu_panel, "read_host", lambda folder: HOST)
    monkeypatch.setattr(gpu_panel, "READ_SECONDS", 3600.0)
    monkeypatch.setattr("tuitrain.tui.snapshot.RunSnapshot.eta_seconds", lambda self, now: 100.0)
    async with open_app(size=size) as (app, pilot):
        app.console = Console(color_system="truecolor", file=StringIO())
        app.open_run(trained_run)
        await wait_until(
            pilot, lambda: "step 300/400" in screen_text(app) and "checkpoint step-300" in screen_text(app)
        )
        if size[0] >= 140:
            await wait_until(pilot, lambda: "▀▀▀▀" in screen_text(app), what="the sample")
        await wait_until(pilot, lambda: "RTX 4090" in screen_text(app))
        assert_golden(screen_text(app), f"train_{size[0]}x{size[1]}")


@pytest.mark.parametrize(
    ("keys", "command"),
    [
        (["space"], Command.PAUSE),
        (["s"], Command.SAMPLE),
        (["c"], Command.SAVE),
        (["x", "y"], Command.STOP),
        (["x", "d"], Command.DISCARD),
        (["x", "n"], None),
        (["x", "escape"], None),
        (["x", "enter"], None),  # the highlighted answer does no harm
    ],
)
async def test_keys_ask_the_trainer(trained_run: Run, keys: list[str], command: Command | None) -> None:
    async with open_app() as (app, pilot):
        app.open_run(trained_run)
        await wait_until(pilot, lambda: "TRAINING" in screen_text(app))
        await pilot.press(*keys)
        await pilot.pause()
        assert poll_control_dir(trained_run.control_dir) == command


async def test_what_nobody_trains_takes_no_commands(run: Run) -> None:
    async with open_app() as (app, pilot):
        app.open_run(run)
        await wait_until(pilot, lambda: "LOST" in screen_text(app))
        assert "Pause" not in screen_text(app)
        await pilot.press("space", "s", "c", "x")
        assert poll_control_dir(run.control_dir) is None


async def test_keys_change_the_chart(trained_run: Run) -> None:
    async with open_app(size=(120, 40)) as (app, pilot):
        app.open_run(trained_run)
        await wait_until(pilot, lambda: "TRAINING" in screen_text(app))
        chart = app.screen.chart

        async def after(*keys: str) -> ChartOptions:
            await pilot.press(*keys)
            await pilot.pause()
            return chart.options

        before = chart.options
        assert (await after("m")).metric != before.metric
        assert (await after(*"mmm")).metric == before.metric
        assert (await after("y")).is_log is not before.is_log
        assert (await after("+")).smoothing > before.smoothing
        assert (await after("-")).smoothing == before.smoothing
        assert (await after("-")).smoothing < before.smoothing
        assert (await after("]", "]")).zoom == 2
        assert (await after("[")).zoom == 1
        assert (await after("0")).zoom == 0
        assert (await after("left")).cursor == 300
        assert (await after("left")).cursor == 290
        assert (await after("right")).cursor == 300
        assert (await after("f")).cursor is None
        assert (await after(",")).cursor == 300
        await after(",")
        await wait_until(pilot, lambda: "No checkpoint, no samples and" in screen_text(app))
        await after("f")
        assert (await after(".")).cursor == 300


async def test_l_leads_to_the_log(trained_run: Run) -> None:
    async with open_app() as (app, pilot):
        app.open_run(trained_run)
        await wait_until(pilot, lambda: "TRAINING" in screen_text(app))
        await pilot.press("l")
        await wait_until(pilot, lambda: app.current_mode == "log")


async def test_t_is_the_traceback_of_a_failed_run_wherever_the_focus_is_and_the_palette_keeps_the_theme(
    run: Run,
) -> None:
    async with open_app() as (app, pilot):
        app.open_run(run)
        await wait_until(pilot, lambda: "traceback (" in screen_text(app))
        assert "t Theme" not in screen_text(app)
        app.screen.query_one("#events").focus()
        await pilot.press("t")
        await pilot.pause()
        assert len(app.screen_stack) == 1
        await pilot.press("ctrl+p", *"Theme")
        await wait_until(pilot, lambda: "Theme (t)" in screen_text(app))


async def test_z_lets_the_chart_fill_the_screen_and_gives_it_back(trained_run: Run) -> None:
    async with open_app(size=(80, 24)) as (app, pilot):
        app.open_run(trained_run)
        await wait_until(pilot, lambda: "events" in screen_text(app))
        await pilot.press("z")
        await wait_until(pilot, lambda: "events" not in screen_text(app))
        assert app.screen.maximized is app.screen.chart
        await pilot.press("z")
        await wait_until(pilot, lambda: "events" in screen_text(app))


@pytest.mark.parametrize("panel", ["gpu", "events"])
async def test_z_lets_any_panel_with_the_focus_fill_the_screen(trained_run: Run, panel: str) -> None:
    async with open_app(size=(80, 24)) as (app, pilot):
        app.open_run(trained_run)
        await wait_until(pilot, lambda: "events" in screen_text(app))
        app.screen.query_one(f"#{panel}").focus()
        await pilot.press("z")
        await wait_until(pilot, lambda: app.screen.query_one(f"#{panel}").outer_size == (80, 22))
        await pilot.press("escape")
        await wait_until(pilot, lambda: app.screen.maximized is None and "smooth" in screen_text(app))


async def test_explore_shows_the_run_among_others_and_esc_comes_back(run: Run) -> None:
    async with open_app(size=(120, 40)) as (app, pilot):
        app.open_run(run)
        await wait_until(pilot, lambda: "LOST" in screen_text(app))
        await pilot.press("C")
        await wait_until(pilot, lambda: "foxes/one" in screen_text(app) and "Log steps" in screen_text(app))
        await pilot.press("escape")
        await wait_until(pilot, lambda: "LOST" in screen_text(app))


async def test_detaching_from_a_run_elsewhere_ends_the_app(trained_run: Run) -> None:
    async with open_app() as (app, pilot):
        app.open_run(trained_run)
        await wait_until(pilot, lambda: "TRAINING" in screen_text(app))
        await pilot.press("D")
        await wait_until(pilot, lambda: not app.is_running)
        assert app.return_code == 0
        assert poll_control_dir(trained_run.control_dir) is None


async def test_start_again_opens_the_config_of_the_run(run: Run) -> None:
    journal = Journal(run.journal_path)
    journal.append(events.RunFinished(time=time.time(), step=400, epoch=4, reason="completed", seconds=400.0))
    journal.close()
    async with open_app() as (app, pilot):
        app.open_run(run)
        await wait_until(pilot, lambda: "Completed at step" in screen_text(app))
        await pilot.press("a")
        await wait_until(pilot, lambda: app.current_mode == "config")
        assert app.document.name == "run one"
