"""The editor: sections, settings, YAML, and what a run would take. Shows a ConfigDocument; knows no single setting."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Horizontal, Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import Worker, WorkerState

from tuitrain.config.fields import SECTION_TITLES, Field, list_fields
from tuitrain.config.problems import ConfigProblem
from tuitrain.errors import ConfigError, Problem, TuitrainError, printable
from tuitrain.tui.actions import actions_of, bindings
from tuitrain.tui.completion import complete_path
from tuitrain.tui.config_rows import (
    Filter,
    build_rows,
    describe_field,
    find_setting,
    section_lines,
    short_reason,
)
from tuitrain.tui.document import ConfigDocument
from tuitrain.tui.external_editor import edit_outside
from tuitrain.tui.screens.base import TuitrainScreen
from tuitrain.tui.screens.saving import ask_unsaved, save, save_as_preset
from tuitrain.tui.screens.start_check import StartCheckScreen
from tuitrain.tui.widgets.estimate_line import EstimateLine
from tuitrain.tui.widgets.field_editor import FieldEditor
from tuitrain.tui.widgets.field_list import FieldList
from tuitrain.tui.widgets.key_bar import KeyBar
from tuitrain.tui.widgets.list_box import ListBox
from tuitrain.tui.widgets.yaml_pane import YamlPane
from tuitrain.wording import escape_control

if TYPE_CHECKING:
    from tuitrain.config.schema import TrainConfig
    from tuitrain.runs.run import Run
    from tuitrain.tui.live import LiveRun

_SECTIONS = list(SECTION_TITLES)
_ACTIONS = {action.name for action in actions_of("config")}
_IN_LIST = ("next_choice", "step_up", "step_down")
_EDIT_KEYS = {
    "line": "enter keeps, esc takes back, tab completes",
    "choice": "enter takes, esc goes back",
    "lines": "",
}


class ConfigScreen(TuitrainScreen):
    """Sections at the left, settings beside them, YAML in their place or at the right, details below."""

    SCOPE = "config"
    CSS_PATH = "config.tcss"
    BINDINGS: ClassVar[list[BindingType]] = bindings(SCOPE)
    AUTO_FOCUS = "FieldList"

    def __init__(self) -> None:
        super().__init__()
        self._document: ConfigDocument | None = None
        self._filter = Filter()
        self._edited = ""
        self._yaml_error = ""
        self._drawn: dict[str, Text] = {}

    def compose_body(self) -> ComposeResult:
        yield Static("No config is open.\n\n1  choose a preset, or open a file there", id="nothing", markup=False)
        with Vertical(classes="body"):
            yield Static(id="head", markup=False)
            search = Input(placeholder="words in a key or its help; enter to the list, esc shows all", id="search")
            search.compact = True
            search.cursor_blink = False
            yield search
            with Horizontal(id="middle"):
                sections = ListBox(id="sections", classes="panel")
                sections.border_title = "Sections"
                yield sections
                with Container(id="fields", classes="panel"):
                    yield FieldList()
                    yield FieldEditor()
                with Container(id="yaml", classes="panel"):
                    yield YamlPane()
            with Vertical(id="details", classes="panel"):
                yield Static(id="help", markup=False)
                yield EstimateLine()

    def on_mount(self) -> None:
        self.query_one("#sections", ListBox).add_options([Option("") for _ in _SECTIONS])

    def on_resize(self) -> None:
        if self._document is not None:
            self.call_after_refresh(self._draw)

    def watch_maximized(self) -> None:
        if self._document is not None:
            self.call_after_refresh(self._draw)  # some lines are as wide as their panel

    # The parts, by type

    @property
    def document(self) -> ConfigDocument:
        """What is edited; there is one."""
        assert self._document is not None
        return self._document

    @property
    def settings(self) -> FieldList:
        """The settings."""
        return self.query_one(FieldList)

    @property
    def editor(self) -> FieldEditor:
        """Over the list, while something is edited."""
        return self.query_one(FieldEditor)

    @property
    def pane(self) -> YamlPane:
        """The YAML."""
        return self.query_one(YamlPane)

    @property
    def field(self) -> Field | None:
        """The setting the cursor is on; None when it does not exist in the chosen kinds."""
        return self.document.field_at(self.settings.path)

    # Showing

    def show_live(self, live: "LiveRun | None") -> None:
        del live
        document = self.tuitrain.document
        self.query_one("#nothing").display = document is None
        self.query_one(".body").display = document is not None
        if document is None or document is self._document:
            return
        if self._document is not None and self._document.is_modified and self.app.screen is self:
            self._ask_about_former(self._document, document)
        else:
            self._show_document(document)

    def _show_document(self, document: ConfigDocument) -> None:
        self._document = self.tuitrain.document = document
        self._filter = Filter()
        self._yaml_error = ""
        self.remove_class("-yaml", "-searching")
        self.pane.show_yaml(document.to_yaml())
        self._draw()
        self.settings.action_go_to_end(-1)
        self.settings.go_to(self.tuitrain.document_focus)
        self.settings.focus()

    def _draw(self) -> None:
        """Bring everything in line with the document; what is the same is not drawn again."""
        document = self.document
        self.settings.show_rows(build_rows(document, self._filter))
        self._draw_sections()
        self._draw_head()
        self._draw_details()
        self._draw_yaml()
        num_problems = len(document.problems)
        self.query_one(KeyBar).show_note(
            f"{num_problems} error{'s' if num_problems != 1 else ''}" if num_problems else ""
        )

    def _draw_sections(self) -> None:
        box = self.query_one("#sections", ListBox)
        width = box.scrollable_content_region.width or 22
        for index, (title, marks) in enumerate(section_lines(self.document)):
            line = Text(
                f" {title:<{max(width - len(marks) - 2, len(title) + 1)}}{marks}", no_wrap=True, overflow="ellipsis"
            )
            if self._drawn.get(f"section {index}") != line:
                self._drawn[f"section {index}"] = line
                box.replace_option_prompt_at_index(index, line)
        self._highlight_section()

    def _highlight_section(self) -> None:
        box = self.query_one("#sections", ListBox)
        field = self._listed_field()
        if field is not None and not box.has_focus:
            box.highlighted = _SECTIONS.index(field.section)

    def _listed_field(self) -> Field | None:
        """The field under the cursor, also one that does not exist now."""
        path = self.settings.path
        return self.field or next((field for field in list_fields() if field.path == path), None)

    def _draw_head(self) -> None:
        document = self.document
        text = Text(no_wrap=True, overflow="ellipsis")
        kind = "preset " if document.preset is not None and document.preset.name == document.name else ""
        name = f"{kind}{document.name}"
        if document.path is not None and document.path.name != document.name:
            name += f" ▸ {document.path.name}"
        text.append(printable(name), style="bold")
        text.append("  not saved" if document.is_modified else "  saved" if document.path else "")
        text.append(f"  {len(document.changed)} changed")
        text.append(f"   / search   undo {document.num_undo} redo {document.num_redo}", style="dim")
        self._update("#head", text)
        shown = f"{sum(bool(row.path) for row in self.settings.rows)} of {len(document.fields)}"
        if self._filter.query:
            title = f"{shown} match {self._filter.query} (esc shows all)"
        elif self._filter.is_changed_only:
            title = f"{shown} differ (d shows all)"
        else:
            field = self._listed_field()
            title = "" if field is None else SECTION_TITLES[field.section]
        self.query_one("#fields").border_title = Text(escape_control(title))

    def _draw_details(self) -> None:
        field = self._listed_field()
        if field is None:
            self.query_one("#details").border_title = ""
            self._update("#help", Text("Nothing to list: esc shows all settings."))
        else:
            self.query_one("#details").border_title = Text(f"{field.path}   {field.rule}")
            self._update("#help", describe_field(self.document, field))
        self.query_one(EstimateLine).show_document(self.document)

    def _draw_yaml(self) -> None:
        if not self.query_one("#yaml").display:
            return
        if not self._yaml_error and not self.pane.has_focus:
            self.pane.show_yaml(self.document.to_yaml())
        if not self._yaml_error:
            marks = {
                self.document.line_number(problem.key): short_reason(problem) for problem in self.document.problems
            }
            self.pane.mark_lines({line: printable(reason) for line, reason in marks.items()})
        title = Text("YAML")
        if self._yaml_error:
            title.append(f"  ! {printable(self._yaml_error)}")
        elif self.document.problems:
            title.append(f"  {len(self.document.problems)} wrong")
        self.query_one("#yaml").border_title = title
        self.query_one("#yaml").border_subtitle = Text("esc back") if self.pane.has_focus else ""

    def _update(self, selector: str, text: Text) -> None:
        if self._drawn.get(selector) != text or len(self._drawn[selector].spans) != len(text.spans):
            self._drawn[selector] = text
            self.query_one(selector, Static).update(text)

    @on(FieldList.Moved)
    def _follow_cursor(self) -> None:
        if self._document is not None:
            self._highlight_section()
            self._draw_head()
            self._draw_details()
            field = self.field
            if field is not None and not self.pane.has_focus and self.document.is_set(field):
                self.pane.go_to_line(self.document.line_number(field.path))

    @on(YamlPane.SelectionChanged, "YamlPane")
    def _follow_yaml(self, event: YamlPane.SelectionChanged) -> None:
        if self.pane.has_focus and not self._yaml_error and self._document is not None:
            field = self.document.field_in_line(event.selection.end[0] + 1)
            if field is not None:
                self.settings.go_to(field.path)

    @on(OptionList.OptionHighlighted, "#sections")
    def _go_to_section(self, event: OptionList.OptionHighlighted) -> None:
        if not event.option_list.has_focus:
            return
        section = _SECTIONS[event.option_index]
        if self._filter != Filter():
            self._set_filter(Filter())
        fields = {field.path: field.section for field in self.document.fields}
        first = next((row.path for row in self.settings.rows if fields.get(row.path) == section), "")
        self.settings.go_to(first)

    @on(OptionList.OptionSelected, "#sections")
    def _leave_sections(self) -> None:
        self.settings.focus()

    @property
    def keeps_esc(self) -> bool:
        return bool(self.editor.mode)

    # Finding

    def _set_filter(self, wanted: Filter) -> None:
        self._filter = wanted
        if not wanted.query:
            self.remove_class("-searching")
        self._draw()

    def action_search(self) -> None:
        self.add_class("-searching")
        box = self.query_one("#search", Input)
        box.value = self._filter.query
        box.focus()

    @on(Input.Changed, "#search")
    def _search(self, event: Input.Changed) -> None:
        if self.has_class("-searching") and event.value.strip() != self._filter.query:
            self._filter = Filter(event.value.strip())
            self._draw()
            self.settings.action_go_to_end(-1)

    @on(Input.Submitted, "#search")
    def _end_search(self) -> None:
        self.remove_class("-searching")
        self.settings.focus()

    def action_differences(self) -> None:
        self._set_filter(Filter(is_changed_only=not self._filter.is_changed_only))

    def action_next_problem(self) -> None:
        self._go_to_problem(1)

    def action_previous_problem(self) -> None:
        self._go_to_problem(-1)

    def _go_to_problem(self, direction: int) -> None:
        problems = self.document.problems
        if not problems:
            self.tuitrain.toast("Nothing is wrong.")
            return
        if self._filter != Filter():
            self._set_filter(Filter())
        order = [row.path for row in self.settings.rows]
        places = [
            (order.index(field.path) if (field := self.document.field_of(problem)) else len(order))
            for problem in problems
        ]
        ranked = sorted(zip(places, range(len(problems)), strict=True))
        here = (
            order.index(self.settings.path) if self.settings.path in order and not self.pane.has_focus else len(order)
        )
        beyond = [index for place, index in ranked if (place > here if direction > 0 else place < here)]
        chosen = (beyond[0] if direction > 0 else beyond[-1]) if beyond else ranked[0 if direction > 0 else -1][1]
        self._show_problem(problems[chosen])

    def _show_problem(self, problem: ConfigProblem) -> None:
        field = self.document.field_of(problem)
        if field is not None:
            self.settings.go_to(field.path)
            self.settings.focus()
        else:
            self._open_yaml()
            self.pane.go_to_line(self.document.line_number(problem.key))
            self.tuitrain.toast(f"{problem.what} ({problem.hint})", is_warning=True)

    # Editing

    @on(FieldList.Chosen)
    def action_edit(self) -> None:
        field = self.field
        if field is None:
            self.tuitrain.toast(
                "This setting does not exist with the kinds that are chosen; its row says what it needs."
            )
            return
        place, width = self.settings.place_of_value()
        if field.type in ("switch", "group"):
            self.action_next_choice()
            return
        self._edited = field.path
        if field.type == "choice":
            choices = [*(["null"] if field.nullable else []), *field.choices]
            self.editor.choose(choices, self.document.text_of(field), place, self.settings.size.height)
        elif field.type == "texts":
            title = f"{field.name}: one a line"
            self.editor.edit_lines(self.document.text_of(field), title, self.settings.size.height)
        else:
            text = self.document.text_of(field)
            self.editor.edit_line("" if text == "null" else text, place, width)
        self.query_one("#fields").border_subtitle = Text(_EDIT_KEYS[self.editor.mode])

    @on(FieldEditor.Typed)
    def _type(self, event: FieldEditor.Typed) -> None:
        if self._edited:
            self.document.set(self._edited, event.text, is_typing=True)
            self._draw()

    @on(FieldEditor.Done)
    def _end_edit(self, event: FieldEditor.Done) -> None:
        if self._edited:
            self._edited = ""
            self.document.end_typing(is_kept=event.is_kept)
            self.editor.close()
            self.query_one("#fields").border_subtitle = ""
            if self.focused is None or self.focused in self.editor.walk_children():
                self.settings.focus()
            self._draw()

    @on(FieldList.Scrolled)
    def _follow_scroll(self) -> None:
        if self.editor.mode:
            self.editor.move(*self.settings.place_of_value())

    def action_next_choice(self) -> None:
        self._step(is_up=True, only=("switch", "choice", "group"))

    def action_step_up(self) -> None:
        self._step(is_up=True)

    def action_step_down(self) -> None:
        self._step(is_up=False)

    def _step(self, *, is_up: bool, only: tuple[str, ...] = ()) -> None:
        field = self.field
        if field is not None and (not only or field.type in only):
            self.document.step(field.path, is_up=is_up)
            self._draw()

    def action_undo(self) -> None:
        if self._yaml_error:
            self._yaml_error = ""
            self._draw()
            self.tuitrain.toast("The YAML that could not be read is dropped.")
            return
        self._travel(self.document.undo())

    def action_redo(self) -> None:
        self._travel(self.document.redo())

    def _travel(self, path: str) -> None:
        self._yaml_error = ""
        self._draw()
        if not path:
            self.tuitrain.toast("There is nothing more.")
        self.settings.go_to(path)

    def action_reset(self) -> None:
        if self.field is not None:
            self.document.reset(self.field.path)
            self._draw()

    def action_reset_section(self) -> None:
        if self.field is not None:
            self.document.reset_section(self.field.section)
            self._draw()

    def action_panel(self) -> None:
        if self.editor.mode == "line":
            self._complete()
        elif self.settings.has_focus and (problem := self._suggestion()):
            self.document.accept(problem)
            self._draw()
        else:
            self.focus_next()

    def _suggestion(self) -> ConfigProblem | None:
        problem = None if self.field is None else self.document.problem_of(self.field)
        return problem if problem is not None and problem.suggestion else None

    def _complete(self) -> None:
        field = self.field
        assert field is not None
        if problem := self._suggestion():
            self.document.end_typing()
            self.document.accept(problem)
            self.editor.close()
            self.query_one("#fields").border_subtitle = ""
            self._edited = ""
            self.settings.focus()
            self._draw()
        elif field.path_kind:
            self.editor.text, names = complete_path(self.editor.text, folders_only=field.path_kind == "folder")
            if len(names) > 1:
                self._update("#help", Text("  ".join(names[:60]), overflow="ellipsis"))

    def key_escape(self) -> None:
        if self.has_class("-searching") or self._filter != Filter():
            self._set_filter(Filter())
            self.settings.focus()
        elif self.pane.has_focus:
            self._close_yaml()
        else:
            self.settings.focus()

    # YAML

    def action_yaml(self) -> None:
        if self.has_class("-yaml") and not self.has_class("-wide"):
            self._close_yaml()
        else:
            self._open_yaml()

    def _open_yaml(self) -> None:
        self.add_class("-yaml")
        if not self._yaml_error:
            self.pane.show_yaml(self.document.to_yaml())
        self.pane.focus()

    def _close_yaml(self) -> None:
        self._is_yaml_readable()
        self.remove_class("-yaml")
        self.settings.focus()

    @on(YamlPane.Typed)
    def _type_yaml(self, event: YamlPane.Typed) -> None:
        self._apply_yaml(event.text, is_typing=True)

    def _apply_yaml(self, text: str, *, is_typing: bool) -> None:
        try:
            self.document.apply_yaml(text, is_typing=is_typing)
            self._yaml_error = ""
        except ConfigError as error:
            problem = error.problems[0]
            line = problem.where.rpartition(":")[2]
            self._yaml_error = f"line {line}: {problem.what}" if line.isdigit() else problem.what
            self.pane.mark_lines({int(line): ""} if line.isdigit() else {})
        self._draw()

    def _take_typed_yaml(self) -> None:
        text = self.pane.take_typed()
        if text is not None:
            self._apply_yaml(text, is_typing=True)

    def on_descendant_blur(self) -> None:
        if self._document is not None:
            self._take_typed_yaml()
        if self._document is not None and not self._edited:
            self.document.end_typing()

    def on_descendant_focus(self) -> None:
        if self._document is not None:
            self._draw_yaml()

    def action_editor(self) -> None:
        if not self._is_yaml_readable():
            return
        try:
            text = edit_outside(self.app, self.document.to_yaml())
        except TuitrainError as error:
            self.tuitrain.toast(f"{error}; e edits the YAML here", is_warning=True)
            return
        self._apply_yaml(text, is_typing=False)
        if self._yaml_error:
            self._open_yaml()
            self.pane.load_text(text)

    # Files

    def action_save(self) -> None:
        self._save(lambda: None)

    def _is_yaml_readable(self) -> bool:
        """Take what is typed in the pane; False, with a sentence, while it cannot be read."""
        self._take_typed_yaml()
        if self._yaml_error:
            what = f"The YAML cannot be read: {self._yaml_error}. e goes back to it, u drops it."
            self.tuitrain.toast(what, is_warning=True)
        return not self._yaml_error

    def _save(self, then: Callable[[], None]) -> None:
        def finish() -> None:
            self._draw()
            then()

        if self._is_yaml_readable():
            save(self.tuitrain, self.document, finish)

    def action_save_preset(self) -> None:
        if self._is_yaml_readable():
            save_as_preset(self.tuitrain, self.document)

    def confirm_leave(self) -> bool:
        if self._document is None or not (self._document.is_modified or self._yaml_error):
            return True
        leave = self.tuitrain.leave
        ask_unsaved(
            self.tuitrain,
            self.document,
            keep="keep editing",
            save_it="save, then leave",
            discard="discard the changes and leave",
            go_on=lambda is_saving: self._save(leave) if is_saving else leave(),
        )
        return False

    def _ask_about_former(self, former: ConfigDocument, document: ConfigDocument) -> None:
        self.tuitrain.document = former
        show = partial(self._show_document, document)
        ask_unsaved(
            self.tuitrain,
            former,
            keep=f"keep editing {former.name}",
            save_it=f"save it, then open {document.name}",
            discard=f"discard its changes and open {document.name}",
            go_on=lambda is_saving: self._save(show) if is_saving else show(),
        )

    # Starting

    def action_start(self) -> None:
        self._check_and_start(self.tuitrain.start)

    def action_start_detached(self) -> None:
        self._check_and_start(self._start_detached)

    def _check_and_start(self, start: "Callable[[TrainConfig], None]") -> None:
        if not self._is_yaml_readable():
            return
        hosted = self.tuitrain.hosted
        if start == self.tuitrain.start and hosted is not None and hosted.is_alive:
            self.tuitrain.toast("A run is training here already; D starts this one in a process of its own.")
            return
        config = self.document.config
        if config is None:
            self.action_next_problem()
            num = len(self.document.problems)
            what = f"{num} setting{'s are' if num > 1 else ' is'} wrong"
            self.tuitrain.toast(f"Cannot start: {what}. n goes to the next.", is_warning=True)
            return

        def go_on(answer: "Problem | bool | None") -> None:
            if answer is True:
                start(config)
            elif isinstance(answer, Problem):
                self._show_start_problem(answer)

        self.app.push_screen(StartCheckScreen(config, self.document.name), go_on)

    def _show_start_problem(self, problem: Problem) -> None:
        path = find_setting(self.document, problem)
        if path:
            self._set_filter(Filter())
            self.settings.go_to(path)
            self.settings.focus()
        self.tuitrain.toast(str(problem), is_warning=True)

    def _start_detached(self, config: "TrainConfig") -> None:
        def start() -> "Run":
            from tuitrain.detached import start_detached

            return start_detached(config)[0]

        self.run_worker(start, group="detach", thread=True, exclusive=True, exit_on_error=False)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        event.stop()
        if event.state == WorkerState.SUCCESS:
            assert event.worker.result is not None
            self.tuitrain.open_run(event.worker.result)
        elif event.state == WorkerState.ERROR:
            error = event.worker.error
            if not isinstance(error, TuitrainError | OSError):
                assert error is not None
                raise error
            self.tuitrain.toast(str(error), is_warning=True)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        del parameters
        if action not in _ACTIONS:
            return True
        if self._document is None:
            return False
        if action in _IN_LIST:
            return self.settings.has_focus
        return True
