"""The first screen: presets to start from, runs to go back to. Reads both in threads, so that it paints at once."""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.fuzzy import Matcher
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import Worker, WorkerState

from tuitrain.errors import TuitrainError
from tuitrain.runs.run import Run, RunSummary, find_runs, summarize
from tuitrain.tui.actions import bindings
from tuitrain.tui.screens.base import TuitrainScreen
from tuitrain.tui.widgets.key_bar import KeyBar
from tuitrain.tui.widgets.list_box import ListBox
from tuitrain.wording import escape_control, format_age

if TYPE_CHECKING:
    from tuitrain.config.presets import Preset
    from tuitrain.tui.live import LiveRun

Entry = TypeVar("Entry")

RUN_SYMBOLS = {"running": "►", "finished": "✓", "stopped": "■", "failed": "✖", "died": "?"}
_REFRESH_SECONDS = 10.0
_PREPARE_SECONDS = 0.5  # after the first list, which must not wait for it
_MAX_RUNS = 200


@dataclass(frozen=True)
class _Found:
    presets: "list[tuple[Preset, str]]"
    runs: list[RunSummary]


class HomeScreen(TuitrainScreen):
    """Presets at the left with what each is for at the right, runs below."""

    SCOPE = "home"
    BINDINGS: ClassVar[list[BindingType]] = bindings(SCOPE)
    DEFAULT_CSS = """
    HomeScreen .body { height: 1fr; }
    HomeScreen #upper { height: 1fr; }
    HomeScreen #presets { width: 34; height: 1fr; }
    HomeScreen #preview { width: 1fr; height: 1fr; }
    HomeScreen #runs { height: 9; }
    HomeScreen.-medium #runs, HomeScreen.-tall #runs { height: 40%; }
    HomeScreen.-wide #presets { width: 48; }
    HomeScreen #line { height: 1; padding: 0 1; }
    HomeScreen #filter { height: 1; border: none; padding: 0 1; display: none; }
    HomeScreen #filter.shown { display: block; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._found = _Found([], [])
        self._shown_presets: list[tuple[Preset, str]] = []
        self._shown_runs: list[RunSummary] = []
        self._is_asking_path = False

    def compose_body(self) -> ComposeResult:
        with Vertical(classes="body"):
            yield Static("Looking for presets and runs ...", id="line", markup=False)
            path_or_filter = Input(id="filter", compact=True)
            path_or_filter.cursor_blink = False
            yield path_or_filter
            with Horizontal(id="upper"):
                presets = ListBox(id="presets", classes="panel")
                presets.border_title = "Presets"
                yield presets
                with VerticalScroll(id="preview", classes="panel", can_focus=False):
                    yield Static(id="preview-text", markup=False)
            runs = ListBox(id="runs", classes="panel")
            runs.border_title = "Runs"
            yield runs

    def on_mount(self) -> None:
        self.query_one("#presets").focus()
        self.call_after_refresh(self.action_refresh)
        self.set_interval(_REFRESH_SECONDS, self._refresh_when_shown)

    def _refresh_when_shown(self) -> None:
        if self.may_timers_draw and self.app.app_focus:
            self.action_refresh()

    def show_live(self, live: "LiveRun | None") -> None:
        del live  # the list of runs says it

    # Finding

    def action_refresh(self) -> None:
        self.run_worker(self._find, group="find", thread=True, exclusive=True, exit_on_error=False)

    def _find(self) -> _Found:
        """In a thread: journals may lie on a slow disk."""
        from tuitrain.config.presets import list_presets

        presets = [(preset, preset.path.read_text(encoding="utf-8", errors="replace")) for preset in list_presets()]
        return _Found(presets, [summarize(run) for run in find_runs(self.tuitrain.runs_dir)[:_MAX_RUNS]])

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        event.stop()
        if event.worker.group != "find":
            return
        if event.state == WorkerState.SUCCESS and event.worker.result is not None:
            if event.worker.result != self._found:
                is_first = not self._found.presets
                self._found = event.worker.result
                self._show_found()
                if is_first:
                    self.set_timer(_PREPARE_SECONDS, self._prepare_editor)
        elif event.state == WorkerState.ERROR:
            self.query_one("#line", Static).update(Text(escape_control(f"cannot look: {event.worker.error}")))

    def _prepare_editor(self) -> None:
        """Import what a config opens with, in a thread that nobody waits for: 0.2 s."""
        self.run_worker(partial(import_module, "tuitrain.tui.screens.config"), group="prepare", thread=True)

    def _show_found(self) -> None:
        query = self.query_one("#filter", Input).value if not self._is_asking_path else ""
        self._shown_presets = _best_first(query, self._found.presets, lambda entry: f"{entry[0].name} {entry[0].title}")
        self._shown_runs = _best_first(query, self._found.runs, lambda run: f"{run.path} {run.state}")
        _fill(self.query_one("#presets", OptionList), [_preset_line(preset) for preset, _text in self._shown_presets])
        _fill(self.query_one("#runs", OptionList), [_run_line(run, self.tuitrain.runs_dir) for run in self._shown_runs])
        self.query_one("#line", Static).update(_offer(self._found))
        runs = self.query_one("#runs", OptionList)
        folder = escape_control(str(self.tuitrain.runs_dir.absolute()))
        runs.border_subtitle = Content(f"{len(self._shown_runs)} in {folder}")

    # What is highlighted

    @on(OptionList.OptionHighlighted, "#presets")
    def _preview_preset(self, event: OptionList.OptionHighlighted) -> None:
        if event.option_list.has_focus or not self._shown_runs:
            preset, text = self._shown_presets[event.option_index]
            self._preview(preset.name, _describe_preset(preset, text))

    @on(OptionList.OptionHighlighted, "#runs")
    def _preview_run(self, event: OptionList.OptionHighlighted) -> None:
        if event.option_list.has_focus:
            run = self._shown_runs[event.option_index]
            self._preview(run.path.name, _describe_run(run))
            self.query_one(KeyBar).refresh_keys()

    def on_descendant_focus(self) -> None:
        focused = self.focused
        if isinstance(focused, OptionList) and focused.highlighted is not None:
            if focused.id == "presets" and self._shown_presets:
                preset, text = self._shown_presets[focused.highlighted]
                self._preview(preset.name, _describe_preset(preset, text))
            elif focused.id == "runs" and self._shown_runs:
                run = self._shown_runs[focused.highlighted]
                self._preview(run.path.name, _describe_run(run))
        self.query_one(KeyBar).refresh_keys()

    def _preview(self, title: str, text: Text) -> None:
        box = self.query_one("#preview")
        box.border_title = Content(escape_control(title))
        self.query_one("#preview-text", Static).update(text)
        box.scroll_home(animate=False)

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("start", "resume"):
            run, _preset = self._chosen()
            return run is None if action == "start" else run is not None and run.resumable_step is not None
        return super().check_action(action, parameters)

    @on(OptionList.OptionSelected)
    def _open_selected(self) -> None:
        self.action_open()

    def action_open(self) -> None:
        run, preset = self._chosen()
        if run is not None:
            self.tuitrain.open_run(Run(run.path))
        elif preset is not None:
            self._open_config(str(preset.path))

    def action_start(self) -> None:
        _run, preset = self._chosen()
        if preset is not None:
            self._start(preset.name)

    def action_resume(self) -> None:
        run, _preset = self._chosen()
        assert run is not None, "check_action allows it on runs alone"
        self.tuitrain.resume(Run(run.path))

    def action_other_list(self) -> None:
        here = self.focused.id if self.focused is not None else ""
        self.query_one("#presets" if here == "runs" else "#runs").focus()

    def action_filter(self) -> None:
        self._ask(is_path=False, placeholder="type to filter; Enter keeps it, esc shows all")

    def action_open_path(self) -> None:
        self._ask(is_path=True, placeholder="path of a config file or a run's folder; Enter opens it, esc goes back")

    def _ask(self, *, is_path: bool, placeholder: str) -> None:
        box = self.query_one("#filter", Input)
        self._is_asking_path = is_path
        box.placeholder = placeholder
        box.value = ""
        box.add_class("shown")
        box.focus()

    @on(Input.Changed, "#filter")
    def _filter(self) -> None:
        if not self._is_asking_path:
            self._show_found()
            for name in ("#presets", "#runs"):
                self.query_one(name, OptionList).action_first()

    @on(Input.Submitted, "#filter")
    def _submit(self, event: Input.Submitted) -> None:
        if not self._is_asking_path:
            self.query_one("#presets" if self._shown_presets else "#runs").focus()
        else:
            self._open_path(Path(event.value).expanduser())

    def key_escape(self) -> None:
        box = self.query_one("#filter", Input)
        if box.has_class("shown"):
            box.value = ""
            box.remove_class("shown")
            self._show_found()
            self.query_one("#presets").focus()

    def _open_path(self, path: Path) -> None:
        if path.is_file():
            self._open_config(str(path))
            return
        try:
            self.tuitrain.open_run(Run.open(path))
        except TuitrainError as error:
            self.tuitrain.toast(str(error), is_warning=True)

    def _open_config(self, source: str) -> None:
        from tuitrain.tui.document import ConfigDocument

        try:
            self.tuitrain.open_document(ConfigDocument.open(source))
        except TuitrainError as error:
            self.tuitrain.toast(str(error), is_warning=True)

    def _start(self, preset: str) -> None:
        from tuitrain.config.files import load_config

        try:
            self.tuitrain.start(load_config(preset))
        except TuitrainError as error:
            self.tuitrain.toast(f"{error} - Enter opens the preset to set it right", is_warning=True)

    def _chosen(self) -> "tuple[RunSummary | None, Preset | None]":
        runs, presets = self.query_one("#runs", OptionList), self.query_one("#presets", OptionList)
        if runs.has_focus:
            return (self._shown_runs[runs.highlighted] if runs.highlighted is not None else None), None
        return None, (self._shown_presets[presets.highlighted][0] if presets.highlighted is not None else None)


def _offer(found: _Found) -> Text:
    """What there is to do first: watch what trains, take up what died last, or begin."""
    running = sum(run.state == "running" for run in found.runs)
    newest = found.runs[0] if found.runs else None
    if running:
        return Text(f"{running} run{'s' if running > 1 else ''} training: tab to it, Enter watches it.", style="bold")
    if newest is not None and newest.state == "died" and newest.resumable_step is not None:
        words = f"The newest run died at step {newest.step}: tab to it, r resumes it from step {newest.resumable_step}."
        return Text(words, style="bold")
    return Text("Choose a preset: Enter edits it, F5 starts it." if found.presets else "No presets.")


def _best_first(query: str, entries: Iterable[Entry], text_of: Callable[[Entry], str]) -> list[Entry]:
    """The entries whose text has the letters of `query` in their order, the nearest match first."""
    if not query:
        return list(entries)
    matcher = Matcher(query)
    scores = [(matcher.match(text_of(entry)), entry) for entry in entries]
    return [entry for score, entry in sorted(scores, key=lambda pair: -pair[0]) if score > 0]


def _fill(box: OptionList, lines: list[Text]) -> None:
    """Show `lines`, the highlight staying where it was."""
    highlighted = box.highlighted or 0
    box.clear_options()
    box.add_options([Option(line) for line in lines])
    box.highlighted = min(highlighted, len(lines) - 1) if lines else None


def _preset_line(preset: "Preset") -> Text:
    memory = re.split(r"[(,;]", preset.vram)[0].removeprefix("about").strip()
    return Text.assemble(
        (f"{escape_control(preset.name):<17}", "bold"), f" {escape_control(memory)}", no_wrap=True, overflow="ellipsis"
    )


def _run_line(run: RunSummary, runs_dir: Path) -> Text:
    loss = "" if run.loss is None else f"loss {run.loss:.4f}"
    steps = f"{run.step}/{run.total_steps if run.total_steps is not None else '?'}"
    folder = run.path.relative_to(runs_dir.absolute()) if run.path.is_relative_to(runs_dir.absolute()) else run.path
    return Text.assemble(
        f"{RUN_SYMBOLS[run.state]} ",
        (f"{run.state:<8}", "bold"),
        f" {steps:>11}  {loss:<12} {format_age(time.time() - run.updated):>8}  {escape_control(str(folder))}",
        no_wrap=True,
        overflow="ellipsis",
    )


def _describe_preset(preset: "Preset", yaml_text: str) -> Text:
    text = Text()
    text.append(f"{escape_control(preset.title)}\n\n", style="bold")
    for label, value in (
        ("card", preset.card),
        ("trains", preset.trains),
        ("time", preset.time),
        ("memory", preset.vram),
    ):
        text.append(f"{label:<7}", style="bold")
        text.append(f" {escape_control(value)}\n")
    if preset.description:
        text.append(f"\n{escape_control(' '.join(preset.description.split()))}\n")
    settings = [line for line in yaml_text.splitlines() if not line.startswith("#")]
    text.append("\n" + "\n".join(map(escape_control, settings)).strip("\n"))
    return text


def _describe_run(run: RunSummary) -> Text:
    facts = {
        "state": f"{RUN_SYMBOLS[run.state]} {run.state}",
        "step": f"{run.step} of {run.total_steps if run.total_steps is not None else '?'}, epoch {run.epoch}",
        "loss": "none yet" if run.loss is None else f"{run.loss:.4f}",
        "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started)),
        "updated": f"{format_age(time.time() - run.updated)} ago" if time.time() - run.updated >= 60 else "now",
        "saved": f"{run.num_checkpoints} checkpoint{'' if run.num_checkpoints == 1 else 's'}",
        "folder": escape_control(str(run.path)),
    }
    text = Text()
    if run.resumable_step is not None:
        text.append("r", style="bold")
        text.append(f" resumes it from step {run.resumable_step}, ")
    text.append("Enter", style="bold")
    text.append(" watches it.\n" if run.state == "running" else " opens it.\n")
    for label, value in facts.items():
        text.append(f"\n{label:<8}", style="bold")
        text.append(f" {value}")
    return text
