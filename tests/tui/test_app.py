"""The app as a whole: what works on every screen."""

from pathlib import Path

import pytest

from tests.tui.harness import open_app, screen_text, wait_until
from tuitrain.tui.actions import actions_of
from tuitrain.tui.app import TuitrainApp
from tuitrain.tui.graphics import Graphics


async def test_digits_and_palette_lead_to_every_screen() -> None:
    async with open_app() as (app, pilot):
        for key, mode in (("2", "config"), ("3", "train"), ("4", "checkpoints"), ("5", "log"), ("1", "home")):
            await pilot.press(key)
            await wait_until(pilot, lambda key=key: f"‹{key} " in screen_text(app))
            assert app.current_mode == mode


@pytest.mark.parametrize("key", ["question_mark", "f1"])
async def test_help_lists_every_key_of_the_screen_and_esc_closes_it(key: str) -> None:
    async with open_app(size=(120, 60)) as (app, pilot):
        await pilot.press(key)
        await wait_until(pilot, lambda: "Keys: Home" in screen_text(app))
        text = screen_text(app)
        missing = [action.help for action in (*actions_of("home"), *actions_of("app")) if action.help not in text]
        assert missing == []
        await pilot.press("escape")
        await wait_until(pilot, lambda: "Keys: Home" not in screen_text(app))


async def test_the_palette_finds_an_action_by_its_name_and_does_it() -> None:
    async with open_app() as (app, pilot):
        await pilot.press("ctrl+p", *"Checkpoints")
        await wait_until(pilot, lambda: "Look at checkpoints" in screen_text(app))
        await pilot.press("enter", "enter")
        await wait_until(pilot, lambda: app.current_mode == "checkpoints")


async def test_the_theme_is_chosen_from_the_palette() -> None:
    async with open_app() as (app, pilot):
        await pilot.press("ctrl+p", *"Theme")
        await wait_until(pilot, lambda: "Choose the colours" in screen_text(app))
        await pilot.press("enter")
        await wait_until(pilot, lambda: "ansi-light" in screen_text(app) or "nord" in screen_text(app))
        before = app.theme
        await pilot.press(*"ansi-light")
        await pilot.pause()
        await pilot.press("enter", "enter")
        await wait_until(pilot, lambda: app.theme != before)
        assert app.theme == "ansi-light"


async def test_t_offers_the_themes_and_is_a_letter_where_a_text_is_typed() -> None:
    async with open_app() as (app, pilot):
        await pilot.press("t")
        await wait_until(pilot, lambda: "nord" in screen_text(app))
        await pilot.press("escape")
        await wait_until(pilot, lambda: len(app.screen_stack) == 1)
        await pilot.press("slash", "t")
        assert app.focused.value == "t"
        assert len(app.screen_stack) == 1


async def test_with_ascii_no_frame_needs_a_line_or_a_corner() -> None:
    app = TuitrainApp(graphics=Graphics("half", is_ascii=True))
    async with open_app(size=(120, 40), app=app) as (_, pilot):
        await wait_until(pilot, lambda: "Choose a preset" in screen_text(app) or "training" in screen_text(app))
        await pilot.press("question_mark")
        await wait_until(pilot, lambda: "Keys: Home" in screen_text(app))
        text = screen_text(app)
        assert [character for character in text if "\u2500" <= character <= "\u257f"] == []
        assert "+- Keys: Home -" in text
        await pilot.press("escape")
        await wait_until(pilot, lambda: "+- Presets -" in screen_text(app))
        assert "| " in screen_text(app)


async def test_f5_on_a_preset_that_is_wrong_says_so_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    presets = tmp_path / "tuitrain" / "presets"
    presets.mkdir(parents=True)
    (presets / "mine.yaml").write_text("type: SDXL_FINETUNE\nmax_train_stepz: 3\n")
    async with open_app(size=(160, 50)) as (app, pilot):
        await pilot.press("slash", *"mine", "enter", "f5")
        await wait_until(pilot, lambda: "Enter opens the preset" in screen_text(app))
        assert "max_train_steps" in screen_text(app), "what was probably meant"
        assert (app.live, app.current_mode) == (None, "home")
