"""The panel of a failed run: what it shows at 80x24, and what its keys do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.widgets import Static

from tests.tui.harness import assert_golden, open_app, screen_text, wait_until
from tests.tui.test_failures import CUDA_OUT_OF_MEMORY, facts, failed
from tuitrain.runs import events
from tuitrain.runs.checkpoints import MANIFEST_NAME
from tuitrain.runs.run import Run
from tuitrain.tui.snapshot import RunSnapshot
from tuitrain.tui.widgets.failure_panel import FailurePanel

TRACEBACK = "\n".join(
    [
        "2026-01-01 10:00:00,000 INFO tuitrain: step 1640",
        "2026-01-01 10:00:02,000 ERROR tuitrain: the run failed",
        "Traceback (most recent call last):",
        *(f'  File "/a/{number}.py", line {number}, in f' for number in range(40)),
        "torch.OutOfMemoryError: [/red]CUDA \x1b]52;c;eA==\x07out of memory",
    ]
)


@dataclass
class FinishedRun:
    """A run that is watched and never changes."""

    run: Run
    snapshot: RunSnapshot
    is_alive: bool = False
    config_values: Mapping[str, Any] = field(default_factory=lambda: facts().config_values)


class PanelApp(App[int]):
    """The panel between as many lines as the train screen has around it at 80x24."""

    CSS = "#above { height: 5; } #below { height: 8; } FailurePanel { height: 1fr; }"

    def __init__(self) -> None:
        super().__init__()
        self.chosen: list[FailurePanel.Chosen] = []
        self.sent = ""

    def compose(self) -> ComposeResult:
        yield Static(id="above")
        yield FailurePanel()
        yield Static(id="below")

    def on_failure_panel_chosen(self, message: FailurePanel.Chosen) -> None:
        self.chosen.append(message)

    def send_to_clipboard(self, text: str) -> None:
        self.sent = text


def failed_run(tmp_path: Path, what: str = CUDA_OUT_OF_MEMORY, **values: Any) -> FinishedRun:
    run = Run(tmp_path / "1795000000.25")
    run.path.mkdir(exist_ok=True)
    run.log_path.write_text(TRACEBACK)
    (run.checkpoints_dir / "c").mkdir(parents=True, exist_ok=True)
    (run.checkpoints_dir / "c" / MANIFEST_NAME).touch()
    snapshot = RunSnapshot()
    train = events.PhaseStarted(phase="train")
    checkpoint = events.CheckpointSaved(step=1500, epoch=4, name="c", num_bytes=2**30, seconds=3.0)
    step = events.StepLogged(step=1640, epoch=5, loss=0.1, lr=1e-5, seconds_per_step=0.5, images_per_second=1.0)
    failure = failed("OutOfMemory", f"the GPU is out of memory: {what}", **values)
    snapshot.feed([train, checkpoint, step, failure])
    return FinishedRun(run, snapshot)


def without_folder(text: str) -> str:
    """The screen's text without the folder of the test."""
    lines = [line[:6] if line.startswith("┃ Log:") else line for line in text.splitlines()]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (160, 50)], ids=lambda size: f"{size[0]}x{size[1]}")
async def test_the_panel_says_all_at_every_size(tmp_path: Path, size: tuple[int, int]) -> None:
    live = failed_run(tmp_path)
    async with open_app(size=size, app=PanelApp()) as (app, pilot):
        panel = app.query_one(FailurePanel)
        panel.show_live(live)
        await wait_until(pilot, lambda: "24.0 GiB card" in screen_text(app))
        await wait_until(pilot, lambda: app.focused is panel)
        text = without_folder(screen_text(app))
    for part in (
        "GPU out of memory at step 1641",
        "23.2 held by this run, 0.4 by others",
        "checkpoint of step 1500",
        "▸ a  gradient_checkpointing: false → true",
        "b  cache_text_encoder_outputs: false → true",
        "c  optimizer.use_8bit: false → true",
        "t  traceback (43 lines)",
        "y  copy a report",
    ):
        assert part in text
    assert_golden(text, f"failure_{size[0]}x{size[1]}")


async def test_letters_and_enter_choose_a_remedy(tmp_path: Path) -> None:
    async with open_app(app=PanelApp()) as (app, pilot):
        panel = app.query_one(FailurePanel)
        panel.show_live(failed_run(tmp_path))
        await wait_until(pilot, lambda: "24.0 GiB card" in screen_text(app))
        await pilot.press("b", "down", "down", "enter", "k", "enter", "z")
        await pilot.pause()
        assert [message.remedy.key for message in app.chosen] == ["b", "c", "b"]
        assert app.chosen[0].remedy.overrides == (("cache_text_encoder_outputs", True),)


async def test_the_traceback_opens_at_its_end_scrolls_and_is_harmless(tmp_path: Path) -> None:
    async with open_app(app=PanelApp()) as (app, pilot):
        panel = app.query_one(FailurePanel)
        panel.show_live(failed_run(tmp_path))
        await wait_until(pilot, lambda: "24.0 GiB card" in screen_text(app))
        await pilot.press("t")
        await wait_until(pilot, lambda: "out of memory" in screen_text(app))
        shown = screen_text(app)
        assert r"[/red]CUDA \x1b]52;c;eA==\x07out of memory" in shown
        assert "\x1b" not in shown
        assert "ERROR tuitrain" not in shown
        await pilot.press("g")
        await wait_until(pilot, lambda: "ERROR tuitrain: the run failed" in screen_text(app))
        await pilot.press("a")
        await pilot.press("t")
        await wait_until(pilot, lambda: "24.0 GiB card" in screen_text(app))
        assert app.chosen == []


async def test_a_report_is_copied(tmp_path: Path) -> None:
    async with open_app(app=PanelApp()) as (app, pilot):
        panel = app.query_one(FailurePanel)
        panel.show_live(failed_run(tmp_path))
        await wait_until(pilot, lambda: "24.0 GiB card" in screen_text(app))
        await pilot.press("y")
        await wait_until(pilot, lambda: bool(app.sent))
        assert app.sent.startswith("# GPU out of memory at step 1641")
        assert "optimizer.learning_rate: 1e-05" in app.sent


async def test_a_second_look_at_the_same_failure_costs_nothing_and_another_one_is_explained(tmp_path: Path) -> None:
    async with open_app(app=PanelApp()) as (app, pilot):
        panel = app.query_one(FailurePanel)
        live = failed_run(tmp_path)
        panel.show_live(live)
        await wait_until(pilot, lambda: "24.0 GiB card" in screen_text(app))
        await pilot.press("down")
        panel.show_live(live)
        await pilot.pause()
        assert "▸ b" in screen_text(app)
        panel.show_live(failed_run(tmp_path, "CUDA out of memory. Tried to allocate 512.00 MiB."))
        await wait_until(pilot, lambda: "Needed 0.5 GiB more." in screen_text(app))
        assert "▸ a" in screen_text(app)


async def test_a_long_sentence_gives_way_to_what_can_be_done(tmp_path: Path) -> None:
    async with open_app(app=PanelApp()) as (app, pilot):
        panel = app.query_one(FailurePanel)
        panel.show_live(failed_run(tmp_path, "[b]out of memory[/b] " * 200))
        await wait_until(pilot, lambda: "[b]out of memory[/b]" in screen_text(app))
        shown = screen_text(app)
        for part in ("Saved:", "▸ a", " b  ", " c  ", "t  traceback", "Log:", "..."):
            assert part in shown
