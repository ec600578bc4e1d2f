"""Every action of the app, once: its keys, its word in the key bar, its sentence in the help; knows no widget.

`train.pause` is obeyed by `action_pause` of the screen with the scope `train`. The key bar, the help, the command
palette and docs/keys.md are made from this table.
"""

from dataclasses import dataclass

from textual.binding import Binding, BindingType

SCOPE_TITLES = {
    "app": "Everywhere",
    "home": "Home",
    "config": "Config",
    "train": "Train",
    "checkpoints": "Checkpoints",
    "log": "Log",
    "chart": "Chart explorer",
}

_KEY_NAMES = {
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
    "enter": "enter",
    "escape": "esc",
    "question_mark": "?",
    "slash": "/",
    "plus": "+",
    "minus": "-",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "comma": ",",
    "full_stop": ".",
    "space": "space",
    "tab": "tab",
}


@dataclass(frozen=True, kw_only=True)
class Action:
    """Something a user can do.

    Args:
        id: scope and name, "train.pause".
        keys: as Textual names them; the first is shown.
        label: one or two words for the key bar.
        help: one sentence.
        is_primary: in the key bar at 80 columns; the others follow where there is room.
        has_priority: the key works while a text is being typed, too.
    """

    id: str
    keys: tuple[str, ...]
    label: str
    help: str
    is_primary: bool = False
    has_priority: bool = False

    @property
    def scope(self) -> str:
        """Where it can be done."""
        return self.id.partition(".")[0]

    @property
    def name(self) -> str:
        """The method is `action_<name>`."""
        return self.id.partition(".")[2]

    @property
    def key_text(self) -> str:
        """The first key as the key bar shows it."""
        return show_key(self.keys[0])


def show_key(key: str) -> str:
    """`key`, named as Textual does, as people write it: `^s`, `F5`, `?`."""
    if key.startswith("ctrl+"):
        return f"^{show_key(key.removeprefix('ctrl+'))}"
    if key[:1] == "f" and key[1:].isdigit():
        return key.upper()
    return _KEY_NAMES.get(key, key)


def _action(
    id_: str, keys: str, label: str, help_: str, *, is_primary: bool = False, has_priority: bool = False
) -> Action:
    names = tuple(keys.split())
    return Action(id=id_, keys=names, label=label, help=help_, is_primary=is_primary, has_priority=has_priority)


ACTIONS = (
    _action("app.home", "1", "Home", "Show the presets and the runs."),
    _action("app.config", "2", "Config", "Edit the config."),
    _action("app.train", "3", "Train", "Watch the run."),
    _action("app.checkpoints", "4", "Checkpoints", "Look at checkpoints and their samples; package, extract."),
    _action("app.log", "5", "Log", "Read the run's log."),
    _action("app.help", "question_mark f1", "Keys", "List what the keys do here.", is_primary=True),
    _action("app.command_palette", "ctrl+p", "Commands", "Find any action by name."),
    _action(
        "app.jump", "ctrl+g", "Jump", "Show a letter on each panel; the letter goes there, any other key does not."
    ),
    _action("app.change_theme", "t", "Theme", "Choose the colours; ansi-dark and ansi-light use the terminal's own."),
    _action("app.cancel_job", "ctrl+x", "Cancel job", "Cancel the export at work; it leaves nothing behind."),
    _action("app.leave", "q ctrl+q", "Leave", "Leave the app; asks what a training here shall do."),
    _action("home.open", "enter", "Open", "Edit the preset, or watch the run.", is_primary=True),
    _action("home.start", "f5 X", "Start", "Start training the preset as it is.", is_primary=True),
    _action("home.filter", "slash", "Filter", "Show the presets and runs that match.", is_primary=True),
    _action("home.resume", "r", "Resume", "Train on from the newest training state of the run."),
    _action("home.other_list", "tab", "Presets/Runs", "Go to the other list.", is_primary=True),
    _action("home.open_path", "o", "Open file", "Open a config file or a run by its path.", is_primary=True),
    _action("home.refresh", "R", "Reload", "Look for runs again."),
    _action("home.zoom_panel", "z", "Zoom", "Let the panel with the focus fill the screen."),
    _action("config.edit", "enter", "Edit", "Edit the setting.", is_primary=True),
    _action("config.next_choice", "space", "Toggle", "Switch the setting on or off, or take its next choice."),
    _action("config.step_down", "left", "Lower", "Give the setting the next lower value, or the choice before."),
    _action("config.step_up", "right", "Higher", "Give the setting the next higher value, or the next choice."),
    _action("config.undo", "u", "Undo", "Undo the last change.", is_primary=True),
    _action("config.redo", "ctrl+r", "Redo", "Redo what was undone."),
    _action("config.reset", "r", "Reset", "Give the setting the preset's value.", is_primary=True),
    _action("config.reset_section", "R", "Reset section", "Give the section the preset's values."),
    _action("config.differences", "d", "Diff", "Show only what differs from the preset, or all.", is_primary=True),
    _action("config.yaml", "e", "YAML", "Edit the YAML; esc goes back.", is_primary=True),
    _action("config.editor", "E", "$EDITOR", "Edit the YAML in your editor."),
    _action("config.next_problem", "n", "Error", "Go to the next problem.", is_primary=True),
    _action("config.previous_problem", "N", "Error before", "Go to the problem before."),
    _action("config.search", "slash", "Search", "Search all settings, in their keys and their help."),
    _action("config.panel", "tab", "Panel", "Take what is suggested, complete a path, or go to the next panel."),
    _action("config.zoom_panel", "z", "Zoom", "Let the panel with the focus fill the screen."),
    _action("config.save", "ctrl+s f2", "Save", "Save the config.", is_primary=True),
    _action("config.save_preset", "S", "Save as preset", "Save the config as a preset of your own."),
    _action("config.start", "f5 X", "Start", "Check everything and start.", is_primary=True),
    _action("config.start_detached", "D", "Start detached", "Start in a process of its own that outlives this app."),
    _action("train.pause", "space", "Pause", "Pause after this step, or go on.", is_primary=True),
    _action("train.sample", "s", "Sample", "Generate the validation images now.", is_primary=True),
    _action("train.save", "c", "Save", "Save a checkpoint now.", is_primary=True),
    _action("train.stop", "x", "Stop", "Stop; asks how.", is_primary=True),
    _action("train.metric", "m", "Metric", "Chart the next metric: loss, learning rate, gradient norm, speed, memory."),
    _action("train.log_y", "y", "Log-y", "Chart on a logarithmic axis.", is_primary=True),
    _action("train.smoother", "plus", "Smoother", "Smooth the line more."),
    _action("train.rougher", "minus", "Rougher", "Smooth the line less."),
    _action("train.zoom_in", "right_square_bracket", "Zoom in", "Chart fewer steps."),
    _action("train.zoom_out", "left_square_bracket", "Zoom out", "Chart more steps."),
    _action("train.whole_run", "0", "All", "Chart the whole run."),
    _action("train.follow", "f", "Follow", "Keep the newest step in the chart."),
    _action("train.cursor_left", "left", "Inspect", "Read the values one column to the left."),
    _action("train.cursor_right", "right", "Inspect", "Read the values one column to the right."),
    _action(
        "train.previous_mark", "comma", "Mark before", "Read the values at the checkpoint, samples or spike before."
    ),
    _action("train.next_mark", "full_stop", "Next mark", "Read the values at the next checkpoint, samples or spike."),
    _action("train.zoom_panel", "z", "Zoom", "Let the panel with the focus fill the screen.", is_primary=True),
    _action("train.detach", "D", "Detach", "Leave for the shell; training goes on without it.", is_primary=True),
    _action("train.log", "l", "Log", "Read the run's log."),
    _action("train.explore", "C", "Explore", "Chart several metrics and runs together."),
    _action("train.resume", "r", "Resume", "Train on from the newest training state of this run."),
    _action("train.start_again", "a", "Start again", "Open the config of this run to start it again."),
    _action("chart.toggle_run", "space enter", "Show run", "Show the highlighted run, or hide it.", is_primary=True),
    _action("chart.metric", "m", "Metric", "Chart the next metric.", is_primary=True),
    _action("chart.second_metric", "M", "2nd metric", "Chart another metric on an axis at the right.", is_primary=True),
    _action("chart.log_y", "y", "Log-y", "Chart on a logarithmic axis.", is_primary=True),
    _action("chart.log_x", "x", "Log steps", "Space the steps logarithmically.", is_primary=True),
    _action("chart.smoother", "plus", "Smoother", "Smooth the lines more."),
    _action("chart.rougher", "minus", "Rougher", "Smooth the lines less."),
    _action("chart.zoom_in", "right_square_bracket", "Zoom in", "Chart half as many steps."),
    _action("chart.zoom_out", "left_square_bracket", "Zoom out", "Chart twice as many steps."),
    _action("chart.earlier", "left", "Earlier", "Go to the steps before."),
    _action("chart.later", "right", "Later", "Go to the steps after."),
    _action("chart.all_steps", "0", "All", "Chart all steps."),
    _action("chart.refresh", "r", "Refresh", "Look for new steps and runs."),
    _action("chart.back", "escape C", "Back", "Go back to the run.", is_primary=True),
    _action("checkpoints.previous_prompt", "left", "Prompt", "Show the prompt before."),
    _action("checkpoints.next_prompt", "right", "Prompt", "Show the next prompt.", is_primary=True),
    _action("checkpoints.compare", "b", "Compare", "Hold this step beside another.", is_primary=True),
    _action("checkpoints.full_size", "v", "View", "Show the picture as large as the terminal.", is_primary=True),
    _action("checkpoints.package", "p", "Package", "Make a full diffusers model of it.", is_primary=True),
    _action("checkpoints.extract", "L", "LoRA", "Extract a LoRA from it.", is_primary=True),
    _action("checkpoints.pin", "m", "Keep", "Keep it from being pruned, or let it go.", is_primary=True),
    _action("checkpoints.delete", "d", "Delete", "Delete it; asks first.", is_primary=True),
    _action("checkpoints.resume", "o", "Resume here", "Train on from this checkpoint."),
    _action("checkpoints.filter", "slash", "Filter", "Show the steps whose number, tag or prompts match."),
    _action("checkpoints.zoom_panel", "z", "Zoom", "Let the panel with the focus fill the screen."),
    _action("checkpoints.path", "y", "Path", "Send its path to the terminal's clipboard."),
    _action("log.search", "slash", "Search", "Search the log.", is_primary=True),
    _action("log.next_match", "n", "Next", "Go to the next match.", is_primary=True),
    _action("log.previous_match", "N", "Previous", "Go to the match before."),
    _action("log.level", "w", "Warnings", "Show warnings and errors only, or all.", is_primary=True),
    _action("log.follow", "f", "Follow", "Stay at the end.", is_primary=True),
    _action("log.copy_line", "y", "Copy line", "Send the line to the terminal's clipboard.", is_primary=True),
    _action("log.start", "g home", "Start", "Go to the first line."),
    _action("log.end", "G end", "End", "Go to the last line."),
)


def actions_of(scope: str) -> list[Action]:
    """What can be done in `scope`, in the order of the table."""
    return [action for action in ACTIONS if action.scope == scope]


def bindings(scope: str) -> list[BindingType]:
    """The key bindings of the app or of a screen."""
    return [
        Binding(
            ",".join(action.keys),
            action.name,
            action.label,
            show=False,
            id=action.id,
            tooltip=action.help,
            priority=action.has_priority,
        )
        for action in actions_of(scope)
    ]
