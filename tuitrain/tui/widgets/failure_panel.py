"""A failed run: one sentence, what is saved, what to do; knows what to say from failures.py and starts nothing."""

import os
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.worker import Worker, WorkerState

from tuitrain.tui.failures import Failure, Remedy, RunFacts, explain, facts_of, last_traceback, report, with_machine
from tuitrain.wording import escape_control

if TYPE_CHECKING:
    from tuitrain.tui.app import TuitrainApp
    from tuitrain.tui.live import LiveRun

_MARK = "▸"


@dataclass(frozen=True)
class _Diagnosis:
    facts: RunFacts
    failure: Failure
    traceback: list[str]


class FailurePanel(Widget, can_focus=True):
    """What ended the run, and up to three remedies that a key carries out.

    The words are made in a thread, because they need the log's end and the GPU's driver.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "choose(-1)", "Choose", show=False),
        Binding("down,j", "choose(1)", "Choose", show=False),
        Binding("pageup", "scroll_lines(-10)", "Page up", show=False),
        Binding("pagedown", "scroll_lines(10)", "Page down", show=False),
        Binding("g,home", "scroll_lines(-1000000)", "Top", show=False),
        Binding("G,end", "scroll_lines(1000000)", "Bottom", show=False),
        Binding("enter", "carry_out", "Do it", show=False),
        Binding("t", "traceback", "Traceback", show=False),
        Binding("escape", "words", "Back", show=False),
        Binding("y", "copy_report", "Copy report", show=False),
        Binding("o", "log_path", "Path of the log", show=False),
    ]
    DEFAULT_CSS = """
    FailurePanel { border: round $error; border-title-color: $error; border-title-style: bold; padding: 0 1; }
    FailurePanel:focus { border: heavy $error; }
    """

    class Chosen(Message):
        """The user wants `remedy`."""

        def __init__(self, remedy: Remedy) -> None:
            super().__init__()
            self.remedy = remedy

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._asked: tuple[object, ...] | None = None
        self._diagnosis: _Diagnosis | None = None
        self._chosen = 0
        self._traceback: list[str] | None = None  # shown instead of the words
        self._top = 0

    def show_live(self, live: "LiveRun") -> None:
        """Explain how `live` ended; does nothing when that is on show already."""
        asked = (live.run.path, live.snapshot.failure, live.is_alive)
        if asked == self._asked:
            return
        self._asked = asked
        self._diagnosis = self._traceback = None
        self._chosen = self._top = 0
        self.border_title = "What happened"
        facts = facts_of(live)
        self.run_worker(lambda: _diagnose(facts), group="failure", thread=True, exclusive=True)
        self.call_after_refresh(self.focus)  # it may be about to appear

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        event.stop()
        if event.state == WorkerState.SUCCESS and event.worker.group == "failure":
            assert event.worker.result is not None
            self._diagnosis = event.worker.result
            self.border_title = Content(escape_control(self._diagnosis.failure.title))
            self.refresh()

    # Keys

    def on_key(self, event: events.Key) -> None:
        for remedy in self._remedies:
            if event.key == remedy.key and self._traceback is None:
                event.stop()
                event.prevent_default()
                self.post_message(self.Chosen(remedy))

    def action_choose(self, count: int) -> None:
        if self._traceback is not None:
            self.action_scroll_lines(count)
        elif self._remedies:
            self._chosen = (self._chosen + count) % len(self._remedies)
            self.refresh()

    def action_carry_out(self) -> None:
        if self._remedies and self._traceback is None:
            self.post_message(self.Chosen(self._remedies[self._chosen]))

    def action_traceback(self) -> None:
        if self._traceback is not None or self._diagnosis is None:
            self.action_words()
            return
        lines = self._diagnosis.traceback
        self._traceback = lines or [f"{self._diagnosis.failure.log_path} holds no traceback."]
        self.border_subtitle = Content(f"traceback ({len(lines)} lines): arrows scroll, t goes back")
        self.action_scroll_lines(len(self._traceback))  # the last line says what it was

    def action_words(self) -> None:
        self._traceback, self._top = None, 0
        self.border_subtitle = ""
        self.refresh()

    def action_scroll_lines(self, count: int) -> None:
        if self._traceback is not None:
            self._top = max(0, min(self._top + count, len(self._traceback) - self.size.height))
            self.refresh()

    def action_copy_report(self) -> None:
        if self._diagnosis is not None:
            text = report(self._diagnosis.failure, self._diagnosis.facts, environment=os.environ)
            cast("TuitrainApp", self.app).send_to_clipboard(text)

    def action_log_path(self) -> None:
        if self._diagnosis is not None:
            self.notify(escape_control(str(self._diagnosis.failure.log_path)), markup=False, title="log")

    # Drawing

    @property
    def _remedies(self) -> tuple[Remedy, ...]:
        return self._diagnosis.failure.remedies if self._diagnosis else ()

    def render(self) -> Text:
        width, height = self.size
        if self._diagnosis is None:
            return Text("Looking at the log ...")
        if self._traceback is not None:
            lines = [Text(escape_control(line)) for line in self._traceback[self._top : self._top + height]]
        else:
            lines = self._words(self._diagnosis, width, height)
        text = Text(no_wrap=True, overflow="ellipsis")
        for line in lines[:height]:
            line.truncate(width, overflow="ellipsis")
            text.append_text(line).append("\n")
        return text

    def _words(self, diagnosis: _Diagnosis, width: int, height: int) -> list[Text]:
        """The panel's lines, with air between them where there is room."""
        failure = diagnosis.failure
        sentence = [Text(line) for line in textwrap.wrap(escape_control(failure.sentence), width)]
        saved = Text.assemble(("Saved: ", "bold"), escape_control(failure.saved))
        remedies = self._remedy_lines(width)
        keys = Text.assemble(
            ("t", "bold"),
            f"  traceback ({len(diagnosis.traceback)} lines)   ",
            ("y", "bold"),
            "  copy a report   ",
            ("o", "bold"),
            "  path of the log",
        )
        path = escape_control(str(failure.log_path))
        log = Text.assemble(("Log: ", "bold"), path if len(path) + 5 <= width else f"…{path[6 - width :]}")
        heading = [Text("What to do:", "bold")] if remedies else []
        actions = [*heading, *remedies]
        room = height - len(sentence) - len([saved, *actions, keys, log])
        if room < 0:  # the sentence gives way: the log has it all
            sentence[max(1, len(sentence) + room) :] = []
            sentence[-1].truncate(width - 4)
            sentence[-1].append(" ...")
        lines: list[Text] = []
        for block in ([*sentence, saved], actions, [keys, log]):
            if lines and room > 0 and block:
                lines.append(Text())
                room -= 1
            lines += block
        return lines

    def _remedy_lines(self, width: int) -> list[Text]:
        """A line for each; the effect at its right where it fits, else that of the chosen one below."""
        lines: list[Text] = []
        for index, remedy in enumerate(self._remedies):
            is_chosen = index == self._chosen
            line = Text.assemble(
                (_MARK if is_chosen else " ", "bold"),
                " ",
                (remedy.key, "bold"),
                ("  " + escape_control(remedy.label), "bold" if is_chosen else ""),
            )
            effect = escape_control(remedy.effect)
            gap = width - line.cell_len - len(effect)
            if effect and gap >= 2:
                line.append(" " * gap).append(effect, "dim")
                effect = ""
            lines.append(line)
            if effect and is_chosen:
                lines.append(Text.assemble("     ", (effect, "dim")))
        return lines


def _diagnose(facts: RunFacts) -> _Diagnosis:
    facts = with_machine(facts)
    return _Diagnosis(facts, explain(facts), last_traceback(facts.log_tail).splitlines())
