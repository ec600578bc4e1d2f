"""The checkpoints screen: its list, its pictures, what it does on disk, and the exports it makes."""

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from textual.pilot import Pilot

from tests.tui.harness import SIZES, assert_golden, screen_text, wait_until
from tuitrain.export.progress import Progress, ProgressReport
from tuitrain.runs.checkpoints import checkpoint_name, list_checkpoints, publish_checkpoint, reading
from tuitrain.runs.events import (
    CheckpointSaved,
    DatasetScanned,
    PhaseStarted,
    RunFinished,
    RunStarted,
    SampleImage,
    SamplesSaved,
)
from tuitrain.runs.journal import Journal
from tuitrain.runs.run import Run
from tuitrain.tui.app import TuitrainApp
from tuitrain.tui.jobs import Job, JobState
from tuitrain.tui.live import LiveRun
from tuitrain.tui.screens.checkpoints import CheckpointsScreen
from tuitrain.tui.screens.export_form import ExportForm, LoraForm, PackageForm, default_target
from tuitrain.tui.screens.picture import PictureScreen
from tuitrain.tui.screens.result import ResultScreen
from tuitrain.tui.widgets.confirm import ConfirmScreen
from tuitrain.tui.widgets.image import ImageView

PROMPTS = ("a red [b]fox[/b] in the snow, ink wash", "a \x1b[31mblue\u202e boat")
LOSSES = {500: [0.3, 0.2], 1000: [0.11, 0.09], 1500: [0.2, float("nan"), 0.1]}


def save_sample(run: Run, step: int, prompt: int) -> SampleImage:
    """A gradient that differs by step and prompt."""
    path = f"validation/step_{step}/prompt_{prompt}.png"
    (run.path / path).parent.mkdir(parents=True, exist_ok=True)
    ramp = Image.linear_gradient("L").resize((64, 64))
    Image.merge("RGB", (ramp, ramp.rotate(90), Image.new("L", (64, 64), step // 10 + 60 * prompt))).save(
        run.path / path
    )
    return SampleImage(path=path, prompt_index=prompt, image_index=0, prompt=PROMPTS[prompt])


def publish(run: Run, step: int, losses: list[float]) -> CheckpointSaved:
    """A checkpoint with a file of zeros."""
    with publish_checkpoint(run.checkpoints_dir, epoch=step // 250, step=step) as staged:
        (staged.path / "unet").mkdir()
        (staged.path / "unet" / "weights").write_bytes(b"\0" * 1000 * step)
        staged.finish(
            kind="trained_only_diffusers",
            weights="trained",
            config_hash="0",
            base_model="bases/sdxl",
            base_model_hash="0",
            prediction_type="epsilon",
            save_dtype="float16",
            last_losses=losses,
        )
    name = checkpoint_name(step // 250, step)
    return CheckpointSaved(step=step, epoch=step // 250, name=name, num_bytes=1000 * step, seconds=1.0)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run: three checkpoints, samples at two of them and at step 0."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TMUX", raising=False)
    config = '{"seed": 42, "validation_steps": 30, "validation_guidance_scale": 6.0}'
    made = Run.create(tmp_path / "runs", config_yaml="type: SDXL_FINETUNE\n", config_json=config)
    run = Run(made.path.rename(tmp_path / "runs" / "foxes"))
    events: list[Any] = [
        RunStarted(
            run_id="foxes", pid=1, host="h", tuitrain_version="0", versions={}, device="cpu", world_size=1,
            config_hash="", seed=42, resumed_from=None,
        ),
        DatasetScanned(num_images=4, num_skipped=0, buckets={}, steps_per_epoch=250, total_steps=1500, num_epochs=6),
    ]  # fmt: skip
    for step in (0, 500, 1000, 1500):
        if step != 1000:
            samples = [save_sample(run, step, prompt) for prompt in range(2)]
            events.append(SamplesSaved(step=step, epoch=step // 250, images=samples, seconds=1.0))
        if step:
            events.append(publish(run, step, LOSSES[step]))
    events.append(RunFinished(step=1500, epoch=6, reason="completed", seconds=60.0))
    journal = Journal(run.journal_path)
    for event in events:
        journal.append(event)
    journal.close()
    return run


@asynccontextmanager
async def open_screen(run: Run, size: tuple[int, int] = (80, 24)) -> AsyncIterator[tuple[TuitrainApp, Pilot[Any]]]:
    """The checkpoints of `run`, once they are listed."""
    app = TuitrainApp(runs_dir=run.path.parent)
    app.console = Console(color_system="truecolor", file=StringIO())
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause()
        app.live = LiveRun.watch(run)
        app.live.load()
        app.switch_mode("checkpoints")
        await wait_until(pilot, lambda: isinstance(app.screen, CheckpointsScreen) and bool(app.screen.list.rows))
        await pilot.pause()
        yield app, pilot


def shown_paths(app: TuitrainApp) -> list[str]:
    """Of the pictures in sight, below the folder of samples."""
    views = [view for view in app.screen.query(ImageView) if view.region and view.path is not None]
    return ["/".join(view.path.parts[-2:]) for view in views if view.path]


def without_facts_of_the_machine(text: str) -> str:
    text = re.sub(r"disk free [\d.]+ .iB", lambda match: "disk free ".ljust(len(match[0]), "N"), text)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "YYYY-MM-DD HH:MM", text)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_checkpoints_stand_beside_their_samples_at_every_size(run: Run, size: tuple[int, int]) -> None:
    async with open_screen(run, size) as (app, pilot):
        await wait_until(pilot, lambda: "▀" in screen_text(app))
        assert_golden(without_facts_of_the_machine(screen_text(app)), f"checkpoints_{size[0]}x{size[1]}")


async def test_rows_tell_loss_and_what_sets_a_step_apart(run: Run) -> None:
    async with open_screen(run) as (app, _pilot):
        rows = app.screen.query_one("#list").rows  # type: ignore[attr-defined]
        assert [row.step for row in rows] == [1500, 1000, 500, 0]
        assert [row.tags for row in rows] == ["new", "best", "", "samples"]
        assert [row.loss for row in rows] == [pytest.approx(0.15), pytest.approx(0.1), pytest.approx(0.25), None]


async def test_z_lets_the_list_fill_the_screen_and_esc_gives_it_back(run: Run) -> None:
    async with open_screen(run) as (app, pilot):
        await pilot.press("z")
        await wait_until(pilot, lambda: app.screen.query_one("#list").outer_size == (80, 22))
        await pilot.press("down", "escape")
        await wait_until(pilot, lambda: "samples ─" in screen_text(app))
        assert "step 1000" in screen_text(app)


async def test_steps_change_by_up_and_down_and_keep_the_prompt(run: Run) -> None:
    async with open_screen(run) as (app, pilot):
        assert shown_paths(app) == ["step_1500/prompt_0.png"]
        await pilot.press("right")
        assert shown_paths(app) == ["step_1500/prompt_1.png"]
        await pilot.press("down")
        assert shown_paths(app) == []
        assert "no samples at this step" in screen_text(app)
        await pilot.press("j")
        assert shown_paths(app) == ["step_500/prompt_1.png"]
        await pilot.press("right")
        assert shown_paths(app) == ["step_500/prompt_0.png"]
        await pilot.press("left", "G")
        assert shown_paths(app) == ["step_0/prompt_1.png"]
        await pilot.press("g")
        assert shown_paths(app) == ["step_1500/prompt_1.png"]


async def test_the_filter_finds_steps_by_number_tag_and_prompt_and_esc_shows_all(run: Run) -> None:
    async with open_screen(run) as (app, pilot):
        for query, steps in (
            ("50", [1500, 500]),
            ("best", [1000]),
            ("BLUE boat", [1500, 500, 0]),
            ("[b]fox 15", [1500]),
        ):
            await pilot.press("slash", *query)
            await pilot.pause()
            assert [row.step for row in app.screen.list.rows] == steps  # type: ignore[attr-defined]
            assert f"{len(steps)} of 4 match" in screen_text(app)
            await pilot.press("escape")
            await pilot.pause()
            assert len(app.screen.list.rows) == 4  # type: ignore[attr-defined]
        await pilot.press("slash", *"5000")
        await pilot.pause()
        assert "0 of 4 match" in screen_text(app)
        assert shown_paths(app) == []
        await pilot.press("backspace", "enter", "down")  # the list has the keys again, and the filter stays
        assert [row.step for row in app.screen.list.rows] == [1500, 500]  # type: ignore[attr-defined]
        assert app.screen.list.row.step == 500  # type: ignore[attr-defined]


async def test_prompts_are_shown_literally(run: Run) -> None:
    async with open_screen(run) as (app, pilot):
        assert "a red [b]fox[/b] in the snow" in screen_text(app)
        await pilot.press("right")
        assert r"a \x1b[31mblue\u202e boat" in screen_text(app)
        await pilot.press("v")
        await pilot.pause()
        assert r"a \x1b[31mblue\u202e boat" in screen_text(app)


async def test_compare_holds_a_step_beside_the_others(run: Run) -> None:
    async with open_screen(run) as (app, pilot):
        await pilot.press("b")
        await pilot.pause()
        assert shown_paths(app) == ["step_1500/prompt_0.png", "step_500/prompt_0.png"]  # 1000 has no samples
        assert re.search(r"A +1500", screen_text(app))
        await pilot.press("right", "down")
        await pilot.pause()
        assert shown_paths(app) == ["step_1500/prompt_1.png", "step_0/prompt_1.png"]
        await pilot.press("escape")
        await pilot.pause()
        assert shown_paths(app) == ["step_0/prompt_1.png"]


async def test_the_full_size_picture_goes_through_steps_and_comes_back_there(run: Run) -> None:
    async with open_screen(run) as (app, pilot):
        await pilot.press("v")
        await wait_until(pilot, lambda: "▀" * 40 in screen_text(app))
        assert isinstance(app.screen, PictureScreen)
        assert app.screen.query_one(ImageView).size.height == 22
        await pilot.press("right", "down", "down", "down")
        assert shown_paths(app) == ["step_0/prompt_1.png"]
        assert screen_text(app).startswith(" step 0  prompt 2/2")
        await pilot.press("up", "escape")
        await pilot.pause()
        assert shown_paths(app) == ["step_500/prompt_1.png"]


async def test_pinning_marks_a_checkpoint_and_deleting_a_kept_one_is_refused(run: Run) -> None:
    async with open_screen(run) as (app, pilot):
        await pilot.press("m")
        await wait_until(pilot, lambda: "keep new" in screen_text(app))
        assert [one.is_pinned for one in list_checkpoints(run.checkpoints_dir)] == [False, False, True]
        await pilot.press("d")
        await pilot.pause()
        assert "m lets it go" in screen_text(app)
        await pilot.press("m")
        await wait_until(pilot, lambda: "keep new" not in screen_text(app))


async def test_deleting_asks_first_and_enter_is_the_safe_answer(run: Run) -> None:
    async with open_screen(run) as (app, pilot):
        await pilot.press("down", "d")
        await wait_until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        assert "Delete the checkpoint of step 1000" in screen_text(app)
        await pilot.press("enter")
        assert len(list_checkpoints(run.checkpoints_dir)) == 3
        await pilot.press("d")
        await wait_until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("y")
        await wait_until(pilot, lambda: "2 checkpoints" in screen_text(app))
        assert [one.manifest.step for one in list_checkpoints(run.checkpoints_dir)] == [500, 1500]


async def test_a_checkpoint_that_is_read_is_not_deleted(run: Run) -> None:
    async with open_screen(run) as (app, pilot):
        with reading(run.checkpoints_dir / checkpoint_name(6, 1500)):
            await pilot.press("d")
            await wait_until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
            await pilot.press("y")
            await wait_until(pilot, lambda: "is being read" in screen_text(app).replace("\n", " "))
        assert len(list_checkpoints(run.checkpoints_dir)) == 3


async def test_a_new_checkpoint_appears_and_the_highlight_stays(run: Run) -> None:
    async with open_screen(run) as (app, pilot):
        await pilot.press("down")
        journal = Journal(run.journal_path)
        journal.append(publish(run, 2000, [0.01]))
        journal.close()
        await wait_until(pilot, lambda: "2000" in screen_text(app))
        assert re.search(r"▸\s+1000", screen_text(app))


async def test_the_path_goes_to_the_clipboard_of_the_terminal(run: Run) -> None:
    async with open_screen(run) as (app, pilot):
        await pilot.press("y")
        await wait_until(pilot, lambda: "sent to the terminal's clipboard" in screen_text(app))
        path = str(run.checkpoints_dir / checkpoint_name(6, 1500))
        assert (app.clipboard, (run.path / "clipboard.txt").read_text()) == (path, path)


async def test_resuming_says_why_it_cannot(run: Run) -> None:
    async with open_screen(run) as (app, pilot):
        await pilot.press("o")
        await wait_until(pilot, lambda: "was saved without" in screen_text(app))


async def test_resuming_asks_first_and_tells_what_keeps_it_from_going_on(run: Run) -> None:
    (run.checkpoints_dir / checkpoint_name(6, 1500) / "state").mkdir()
    async with open_screen(run) as (app, pilot):
        await pilot.press("o")
        await wait_until(pilot, lambda: "Train on from step 1500?" in screen_text(app))
        await pilot.press("y")
        await wait_until(pilot, lambda: "▌" in screen_text(app))  # a toast: the config of this run is no config
        assert isinstance(app.screen, CheckpointsScreen)


async def test_leaving_asks_what_becomes_of_an_export(run: Run) -> None:
    def endless(progress: Progress) -> None:
        while True:
            progress(ProgressReport("unet", 1, 2))
            time.sleep(0.01)

    async with open_screen(run) as (app, pilot):
        job = app.job = Job("package step-1500", endless)
        job.start()
        await pilot.press("q")
        await wait_until(pilot, lambda: "package step-1500 is at work" in screen_text(app))
        await pilot.press("enter")
        assert job.is_running
        await pilot.press("q")
        await wait_until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("y")
    job.join(10)
    assert job.state is JobState.CANCELLED


async def test_a_run_without_checkpoints_says_what_to_press(tmp_path: Path) -> None:
    run = Run.create(tmp_path, config_yaml="", config_json="{}")
    app = TuitrainApp(runs_dir=tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        app.switch_mode("checkpoints")
        await wait_until(pilot, lambda: "No run on show" in screen_text(app))
        app.live = LiveRun.watch(run)
        app.live.load()
        await wait_until(pilot, lambda: "left no checkpoint" in screen_text(app))
        journal = Journal(run.journal_path)
        with run.lock():
            journal.append(PhaseStarted(phase="train"))
            await wait_until(pilot, lambda: "c there saves a checkpoint now" in screen_text(app))
        journal.close()


# Forms


def label_of(app: TuitrainApp, field: str) -> str:
    return str(app.screen.query_one(f"#row-{field} .label").render())


async def test_a_form_checks_the_target_while_it_is_typed(run: Run) -> None:
    (Path("runs") / "there").mkdir()
    async with open_screen(run) as (app, pilot):
        await pilot.press("p")
        await wait_until(pilot, lambda: isinstance(app.screen, PackageForm))
        assert "runs/exports/foxes-step-1500" in screen_text(app)
        await pilot.press("ctrl+u", *"runs/there")
        await pilot.pause()
        assert label_of(app, "target").startswith("!")
        assert 'exists already, nothing is overwritten (name another place with "target")' in re.sub(
            r"[\s│]+", " ", screen_text(app)
        )
        await pilot.press("enter")
        assert isinstance(app.screen, PackageForm)
        await pilot.press("2")
        await pilot.pause()
        assert not label_of(app, "target").startswith("!")
        await pilot.press("escape")
        await pilot.pause()
        assert isinstance(app.screen, CheckpointsScreen)


async def test_a_single_file_is_called_safetensors_and_has_no_variant(run: Run) -> None:
    async with open_screen(run) as (app, pilot):
        await pilot.press("p")
        await wait_until(pilot, lambda: isinstance(app.screen, PackageForm))
        await pilot.press("down", "right")
        await pilot.pause()
        assert "foxes-step-1500.safetensors" in screen_text(app)
        assert "variant" not in screen_text(app)
        await pilot.press("left")
        await pilot.pause()
        assert "foxes-step-1500.safetensors" not in screen_text(app)
        assert "variant" in screen_text(app)


@pytest.mark.parametrize(
    ("choice", "text", "reason"),
    [
        ("rank", "0", "at least 1"),
        ("rank", "8,8", "names one twice"),
        ("rank", "many", "a number, or several"),
        ("energy", "1.5", "above 0 and below 1"),
        ("size", "big", "200MB"),
    ],
)
async def test_the_lora_form_says_what_a_number_may_be(run: Run, choice: str, text: str, reason: str) -> None:
    async with open_screen(run) as (app, pilot):
        await pilot.press("L")
        await wait_until(pilot, lambda: isinstance(app.screen, LoraForm))
        await pilot.press("down", *["right"] * ("rank", "energy", "size").index(choice))
        await pilot.press("down")
        await pilot.pause()
        assert app.focused is not None and app.focused.id == choice
        await pilot.press("ctrl+u", *text)
        await pilot.pause()
        assert label_of(app, choice).startswith("!")
        assert reason in re.sub(r"[\s│]+", " ", screen_text(app))


@pytest.mark.parametrize("form", ["p", "L"])
async def test_a_form_fits_into_80x24(run: Run, form: str) -> None:
    async with open_screen(run) as (app, pilot):
        await wait_until(pilot, lambda: "▀" in screen_text(app))
        await pilot.press(form)
        await wait_until(pilot, lambda: isinstance(app.screen, ExportForm))
        await wait_until(pilot, lambda: "overwritten" in screen_text(app))
        assert_golden(without_facts_of_the_machine(screen_text(app)), f"form_{form}_80x24")


async def test_the_longest_form_shows_its_problem_and_keys_in_16_lines(run: Run) -> None:
    async with open_screen(run, (60, 16)) as (app, pilot):
        await pilot.press("L")
        await wait_until(pilot, lambda: isinstance(app.screen, LoraForm))
        await pilot.press("ctrl+u")
        await wait_until(pilot, lambda: "there is no target" in screen_text(app))
        assert "other base" in screen_text(app)
        assert "esc Back" in screen_text(app)


def test_the_target_is_beside_the_run_and_free(run: Run) -> None:
    assert default_target(run, 500) == "runs/exports/foxes-step-500"
    Path("runs/exports/foxes-step-500").mkdir(parents=True)
    assert default_target(run, 500) == "runs/exports/foxes-step-500-2"
    assert default_target(run, 500, ending="-lora.safetensors") == "runs/exports/foxes-step-500-lora.safetensors"


# Exports


async def test_a_failed_export_is_told_in_words_and_r_opens_its_form_as_it_was(run: Run) -> None:
    async with open_screen(run) as (app, pilot):
        await pilot.press("p")
        await wait_until(pilot, lambda: isinstance(app.screen, PackageForm))
        await pilot.press("2", "enter")
        await wait_until(pilot, lambda: isinstance(app.screen, ResultScreen), seconds=90)
        await pilot.pause()
        text = screen_text(app)
        assert "✖ failed: package step-1500" in text
        assert "Nothing was left behind." in text
        assert "Traceback" not in text
        assert app.job is None
        assert not Path("runs/exports").exists()
        await pilot.press("r")
        await wait_until(pilot, lambda: isinstance(app.screen, PackageForm))
        assert "runs/exports/foxes-step-15002" in screen_text(app)


async def test_a_model_and_a_lora_come_out_and_the_panel_tells_where_and_how_good(
    run: Run, tiny_sdxl: Path, tmp_path: Path
) -> None:
    from tests.export.checkpoints import publish as publish_real
    from tests.tiny_sdxl import build_tiny_sdxl

    trained = build_tiny_sdxl(tmp_path / "trained", seed=1)
    checkpoint = publish_real(tmp_path / "real", str(tiny_sdxl), trained / "unet")
    async with open_screen(Run(checkpoint.parent.parent), (120, 40)) as (app, pilot):
        await pilot.press("L")
        await wait_until(pilot, lambda: isinstance(app.screen, LoraForm))
        await pilot.press("enter")
        await wait_until(pilot, lambda: isinstance(app.screen, ResultScreen), seconds=90)
        await pilot.pause()
        text = screen_text(app)
        assert "✓ done: extract LoRA step-7 rank 32" in text
        assert "of the change's energy" in text
        lora = next((tmp_path / "real" / "exports").glob("*-lora.safetensors"))
        await pilot.press("y")
        await wait_until(pilot, lambda: app.clipboard == str(lora))
        await pilot.press("escape", "p")
        await wait_until(pilot, lambda: isinstance(app.screen, PackageForm))
        await pilot.press("enter")
        await wait_until(pilot, lambda: isinstance(app.screen, ResultScreen), seconds=60)
        await pilot.pause()
        text = re.sub(r"[\s│]+", " ", screen_text(app))
        assert "✓ done: package step-7" in text
        assert "StableDiffusionXLPipeline.from_pretrained(" in text
        assert "InvokeAI: tuitrain install-invokeai " in text
        await pilot.press("i")
        await wait_until(pilot, lambda: "InvokeAI that sees this disk" in screen_text(app))
        await pilot.press("enter")
        await wait_until(pilot, lambda: "✖ failed: install" in screen_text(app), seconds=30)
        assert "does not know" in re.sub(r"[\s│]+", " ", screen_text(app))


async def test_one_job_at_a_time_and_escape_asks_before_it_is_cancelled(run: Run) -> None:
    def endless(progress: Progress) -> None:
        while True:
            progress(ProgressReport("unet", 1, 2))
            time.sleep(0.01)

    async with open_screen(run) as (app, pilot):
        app.job = Job("package step-1500", endless)
        app.job.start()
        await wait_until(pilot, lambda: " 50%" in screen_text(app))
        await pilot.press("L")
        await wait_until(pilot, lambda: "one export at a time" in screen_text(app))
        await pilot.press("escape")
        await wait_until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("y")
        await wait_until(pilot, lambda: "step-1500 cancelled;" in screen_text(app))
        await wait_until(pilot, lambda: app.job is None)
