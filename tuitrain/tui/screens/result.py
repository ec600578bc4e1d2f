"""What an export came to: where it is, how good it is, how it is used, what can be done next. Knows no weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tuitrain.errors import Problem
from tuitrain.export.loading import lora_in_clients, lora_in_diffusers
from tuitrain.export.lora_report import LoraReport, describe_change, describe_loras
from tuitrain.tui.jobs import Job, JobState
from tuitrain.tui.screens.export_form import in_form_words
from tuitrain.wording import escape_control, format_bytes

if TYPE_CHECKING:
    from tuitrain.export.invokeai import InstalledModel
    from tuitrain.export.package import Package
    from tuitrain.tui.app import TuitrainApp


@dataclass(frozen=True)
class Next:
    """What the user wants after the result.

    Args:
        install: an export to register with InvokeAI; None to try the same form again.
    """

    install: Path | None = None


class ResultScreen(ModalScreen[Next | None]):
    """The outcome of a Job that has ended.

    Args:
        job: done or failed.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "dismiss", "Back", show=False),
        Binding("y", "path", "Path", show=False),
        Binding("i", "install", "InvokeAI", show=False),
        Binding("r", "again", "Again", show=False),
        Binding("j,down", "scroll(1)", "Down", show=False),
        Binding("k,up", "scroll(-1)", "Up", show=False),
    ]
    CSS_PATH = "result.tcss"

    def __init__(self, job: Job[Any]) -> None:
        super().__init__(classes="failed" if job.state is JobState.FAILED else None)
        self._job = job
        self._path = path_of(job.result)

    @property
    def _is_installable(self) -> bool:
        return self._path is not None and not _is_installed(self._job.result)

    def compose(self) -> ComposeResult:
        has_failed = self._job.state is JobState.FAILED
        with Vertical() as box:
            title = f"{'✖ failed' if has_failed else '✓ done'}: {self._job.title}"
            box.border_title = Content(escape_control(title))
            lines = describe_problems(self._job.problems) if has_failed else describe_result(self._job.result)
            with VerticalScroll():
                yield Static(Text("\n".join(map(escape_control, lines))), markup=False)
            yield Static(self._keys(), id="keys", markup=False)

    def _keys(self) -> Text:
        keys = [("↑/↓", "scroll"), ("esc", "back")]
        if self._job.state is JobState.FAILED:
            keys.insert(0, ("r", "change and try again"))
        if self._path is not None:
            keys.insert(0, ("y", "path"))
        if self._is_installable:
            keys.insert(1, ("i", "install into InvokeAI"))
        text = Text(no_wrap=True)
        for key, label in keys:
            text.append(key, "bold")
            text.append(f" {label}   ")
        return text

    def action_path(self) -> None:
        if self._path is not None:
            cast("TuitrainApp", self.app).send_to_clipboard(str(self._path))

    def action_install(self) -> None:
        if self._is_installable:
            self.dismiss(Next(install=self._path))

    def action_again(self) -> None:
        if self._job.state is JobState.FAILED:
            self.dismiss(Next())

    def action_scroll(self, by: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)


def path_of(result: object) -> Path | None:
    """Where the export is; of several LoRAs the first."""
    if isinstance(result, list):
        return Path(cast("LoraReport", result[0]).file).absolute()
    return None if result is None else cast("Package | InstalledModel", result).path.absolute()


def _is_installed(result: object) -> bool:
    return hasattr(result, "invokeai_version")


def describe_problems(problems: Sequence[Problem]) -> list[str]:
    """What went wrong and what helps."""
    lines = []
    for problem in problems:
        lines.append(f"{problem.where}: {problem.what}" if problem.where else problem.what)
        if problem.hint:
            lines += ["", f"What to do: {in_form_words(problem.hint)}"]
    return [*lines, "", "Nothing was left behind."]


def describe_result(result: object) -> list[str]:
    """The finished export, for a person."""
    if isinstance(result, list):
        return _describe_extraction(result)
    if _is_installed(result):
        return _describe_installed(cast("InstalledModel", result))
    return _describe_package(cast("Package", result))


def _describe_package(package: "Package") -> list[str]:
    kind = "diffusers folder" if package.layout == "diffusers" else "single file"
    names = f", names with .{package.variant}" if package.variant else ""
    shared = f", {format_bytes(package.num_linked_bytes)} shared with the base" if package.num_linked_bytes else ""
    terminal = ", zero terminal SNR" if package.zero_terminal_snr else ""
    return [
        str(package.path),
        f"{kind}, {format_bytes(package.num_bytes)}, {package.dtype}{names}{shared}",
        f"{package.prediction_type}{terminal}; base model {package.base_model}",
        "read back and compared, tensor by tensor",
        *_warnings(package.warnings),
        "",
        "Load it in Python:",
        *package.loading,
        "",
        *package.steps,
    ]


def _describe_extraction(reports: Sequence[LoraReport]) -> list[str]:
    first = Path(reports[0].file).absolute()
    return [
        *describe_loras(reports),
        "",
        *describe_change(reports[0].change),
        *_warnings(reports[0].change.warnings),
        "",
        "Load it in Python, after the base model:",
        lora_in_diffusers(first),
        "",
        *lora_in_clients(first),
    ]


def _describe_installed(model: "InstalledModel") -> list[str]:
    return [
        f"InvokeAI {model.invokeai_version} at {model.url} has it as {model.name}",
        f"{model.type}, {model.base}, {model.format}, key {model.key}",
        "",
        f"It is read where it lies; leave it there: {model.path}",
    ]


def _warnings(warnings: Sequence[str]) -> list[str]:
    return [f"! {warning}" for warning in warnings]
