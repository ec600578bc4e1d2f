"""The registry of actions: every one can be done, by keys that exist in terminals, and the key bar has room."""

import re
from importlib import import_module

import pytest
from textual.app import App

from tuitrain.tui.actions import ACTIONS, SCOPE_TITLES, actions_of, bindings
from tuitrain.tui.app import TuitrainApp
from tuitrain.tui.widgets.key_bar import key_line, keys_while_typing

SCREENS = {
    "app": ("tuitrain.tui.app", "TuitrainApp"),
    "home": ("tuitrain.tui.screens.home", "HomeScreen"),
    "config": ("tuitrain.tui.screens.config", "ConfigScreen"),
    "train": ("tuitrain.tui.screens.train", "TrainScreen"),
    "checkpoints": ("tuitrain.tui.screens.checkpoints", "CheckpointsScreen"),
    "log": ("tuitrain.tui.screens.log", "LogScreen"),
    "chart": ("tuitrain.tui.screens.chart", "ChartScreen"),
}


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.id)
def test_every_action_is_obeyed_by_its_screen(action) -> None:
    module, name = SCREENS[action.scope]
    owner = getattr(import_module(module), name)
    assert callable(getattr(owner, f"action_{action.name}", None))
    assert owner is TuitrainApp or bindings(action.scope) == owner.BINDINGS


@pytest.mark.parametrize("scope", SCOPE_TITLES)
def test_no_key_has_two_meanings_on_a_screen(scope) -> None:
    keys = [key for action in {*actions_of(scope), *actions_of("app")} for key in action.keys]
    assert sorted(keys) == sorted(set(keys))


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.id)
def test_every_action_has_a_key_that_terminals_and_multiplexers_let_through(action) -> None:
    forbidden = re.compile(r"ctrl\+([mijhab\[]|enter)|alt\+|f1[01]")
    has_twin_elsewhere = {"app.command_palette", "app.jump", "app.cancel_job", "config.redo"}  # if only in the palette
    assert action.keys
    assert action.id in has_twin_elsewhere or any("ctrl+" not in key for key in action.keys)
    assert not any(forbidden.match(key) for key in action.keys)


@pytest.mark.parametrize("scope", [scope for scope in SCOPE_TITLES if scope != "app"])
def test_the_primary_keys_fit_in_eighty_columns_whole(scope) -> None:
    actions = [*actions_of(scope), *actions_of("app")]
    line = key_line(actions, 80).plain
    assert len(line) <= 80
    for action in actions:
        if action.is_primary:
            assert f" {action.key_text} {action.label} " in f"{line} "


@pytest.mark.parametrize("scope", [scope for scope in SCOPE_TITLES if scope != "app"])
def test_while_a_text_is_typed_only_keys_stand_there_that_it_does_not_take(scope) -> None:
    for action in keys_while_typing(actions_of(scope)):
        assert all(re.fullmatch(r"ctrl\+.|f\d+", key) for key in action.keys)
    actions = keys_while_typing([*actions_of(scope), *actions_of("app")])
    line = key_line(actions, 80, is_typing=True).plain
    assert line.startswith(" esc Back ")
    assert " F1 Keys " in line
    assert len(line) <= 80
    words = {f" {action.key_text} {action.label} " for action in actions}
    assert re.sub("|".join(map(re.escape, words)), "", line) == " esc Back ", "each word whole"


def test_help_is_a_sentence_for_every_action() -> None:
    assert all(action.help[0].isupper() and action.help.endswith(".") for action in ACTIONS)
    assert issubclass(TuitrainApp, App)
