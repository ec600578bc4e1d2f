"""The last look before a training starts: pictures, model, disk, GPU, each with its tick; knows no editor."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Static
from textual.widgets.option_list import Option
from textual.worker import Worker, WorkerState

from tuitrain.errors import Problem, TuitrainError
from tuitrain.tui.widgets.list_box import ListBox
from tuitrain.wording import escape_control, format_bytes

if TYPE_CHECKING:
    from tuitrain.config.schema import TrainConfig

_TINY_MODEL = 100_000_000
"""Parameters up to which a CPU trains in a reasonable time."""
_BUSY_GIB = 1.0
_SYMBOLS = {"waiting": "·", "working": "◌", "done": "✓", "warned": "!", "failed": "✖"}
_NUM_PROBLEMS_SHOWN = 200


@dataclass(frozen=True)
class CheckStep:
    """One thing that is looked at.

    Args:
        name: in a word or two.
        state: how far it is.
        detail: what was found.
        warnings: what a user should know before the start.
        problems: what keeps the training from its start or its end.
    """

    name: str
    state: Literal["waiting", "working", "done", "warned", "failed"] = "waiting"
    detail: str = ""
    warnings: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = field(default=())


STEPS = ("settings", "pictures", "model", "disk", "GPU")


class _CancelledError(Exception):
    """The user went back."""


def check_start(config: "TrainConfig", report: Callable[[int, CheckStep], None]) -> None:
    """Look at everything a training of `config` needs; in a thread, for seconds or, with many pictures, minutes.

    Args:
        report: takes the index in `STEPS` and what is known of it.
    """
    from tuitrain.data.dataset import load_dataset  # Pillow: 0.2 s
    from tuitrain.plan import add_up, read_model_figures  # the second loads torch: 2 s

    report(0, CheckStep("settings", "done", "all valid"))

    def count(done: int, total: int) -> None:
        if done % 25 == 0 or done == total:
            report(1, CheckStep("pictures", "working", f"{done}/{total}"))

    report(1, CheckStep("pictures", "working"))
    dataset = figures = None
    try:
        dataset = load_dataset(config, seed=config.seed or 0, report=count)
        skipped = tuple(f"skipped: {problem}" for problem in dataset.rejected)
        detail = f"{len(dataset.records)}, {dataset.plan.steps_per_epoch} steps an epoch"
        report(1, CheckStep("pictures", "warned" if skipped else "done", detail, skipped))
    except TuitrainError as error:
        report(1, CheckStep("pictures", "failed", "cannot be used as they are", problems=error.problems))
    report(2, CheckStep("model", "working", "reading its headers"))
    try:
        figures = read_model_figures(config)
        detail = f"{figures.num_unet_parameters / 1e6:.0f} M parameters to train"
        report(2, CheckStep("model", "done", "to be downloaded first" if figures.is_assumed else detail))
    except TuitrainError as error:
        report(2, CheckStep("model", "failed", "cannot be used", problems=error.problems))
    if dataset is not None and figures is not None:
        plan = add_up(config, dataset, figures)
        free = min(plan.free_bytes.values())
        detail = f"{format_bytes(plan.needed_bytes)} of {format_bytes(free)} free"
        state: Literal["failed", "done"] = "failed" if plan.problems else "done"
        report(3, CheckStep("disk", state, detail, problems=tuple(plan.problems)))
    else:
        report(3, CheckStep("disk", "waiting", "not looked at: the above comes first"))
    report(4, _check_gpu(is_tiny=figures is not None and figures.num_unet_parameters < _TINY_MODEL))


def _check_gpu(*, is_tiny: bool) -> CheckStep:
    from tuitrain.gpu import read_gpus

    gpus = read_gpus()
    if not gpus:
        warning = "no NVIDIA GPU: a CPU needs weeks for a model of this size"
        state: Literal["done", "warned"] = "done" if is_tiny else "warned"
        return CheckStep("GPU", state, "none, trains on the CPU", () if is_tiny else (warning,))
    details: list[str] = []
    warnings: list[str] = []
    for gpu in gpus:
        if gpu.memory_total_gib is None or gpu.memory_used_gib is None:
            details.append(gpu.name)
            continue
        details.append(f"{gpu.name}, {gpu.memory_total_gib - gpu.memory_used_gib:.1f} GiB free")
        if gpu.memory_used_gib > _BUSY_GIB:
            warnings.append(f"others hold {gpu.memory_used_gib:.1f} GiB of GPU {gpu.index}'s memory")
    return CheckStep("GPU", "warned" if warnings else "done", "; ".join(details), tuple(warnings))


class StartCheckScreen(ModalScreen["Problem | bool"]):
    """Checks, and ends with True to start, False to go back, or the problem that the user wants to see to.

    Starts by itself when there is nothing to tell.

    Args:
        config: what would be trained.
        title: of the config.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "back", "Back", show=False)]
    DEFAULT_CSS = """
    StartCheckScreen { align: center middle; background: $background 60%; }
    StartCheckScreen > Vertical {
        width: 90%; max-width: 110; height: auto; max-height: 90%; padding: 0 2; border: round $primary;
        background: $surface;
    }
    StartCheckScreen #steps { height: 5; margin: 1 0 0 0; }
    StartCheckScreen ListBox, StartCheckScreen ListBox:focus {
        height: auto; max-height: 12; border: none; padding: 0; background: $surface;
    }
    StartCheckScreen #whole { height: auto; max-height: 5; color: $text-muted; }
    StartCheckScreen #hint { height: 1; margin: 1 0 0 0; }
    """

    class Reported(Message):
        """The thread knows more of a step."""

        def __init__(self, index: int, step: CheckStep) -> None:
            super().__init__()
            self.index = index
            self.step = step

    def __init__(self, config: "TrainConfig", title: str) -> None:
        super().__init__()
        self._config = config
        self._title = title
        self._steps = [CheckStep(name) for name in STEPS]
        self._is_cancelled = False
        self._findings: list[Problem | str] = []

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Text(f"◌ CHECKING  {escape_control(self._title)}")
            yield Static(id="steps", markup=False)
            yield ListBox(id="findings")
            yield Static(id="whole", markup=False)
            yield Static("esc back", id="hint", markup=False)

    def on_mount(self) -> None:
        self.query_one("#findings").display = False
        self._draw_steps()
        self.run_worker(self._check, thread=True, exit_on_error=False)

    def _check(self) -> None:
        def report(index: int, step: CheckStep) -> None:
            if self._is_cancelled:
                raise _CancelledError
            self.post_message(self.Reported(index, step))

        try:
            check_start(self._config, report)
        except _CancelledError:
            return
        except OSError as error:
            report(3, CheckStep("disk", "failed", problems=(Problem(f"{error.filename}: {error.strerror}"),)))

    def on_start_check_screen_reported(self, event: Reported) -> None:
        self._steps[event.index] = event.step
        self._draw_steps()

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        event.stop()
        if event.state == WorkerState.ERROR:
            assert event.worker.error is not None
            raise event.worker.error
        if event.state == WorkerState.SUCCESS and not self._is_cancelled:
            self.call_later(self._finish)  # after the reports that were posted before the end

    def _finish(self) -> None:
        problems: list[Problem | str] = [problem for step in self._steps for problem in step.problems]
        warnings = [warning for step in self._steps for warning in step.warnings]
        if not problems and not warnings:
            self.dismiss(True)
            return
        self._findings = [*problems, *warnings][:_NUM_PROBLEMS_SHOWN]
        box = self.query_one("#findings", ListBox)
        box.display = True
        box.add_options([Option(_finding_line(finding)) for finding in self._findings])
        box.highlighted = 0
        box.focus()
        title = "✖ cannot start yet" if problems else "! look before you start"
        self.query_one(Vertical).border_title = Text(f"{title}  {escape_control(self._title)}")
        hint = "enter go to the setting   esc back" if problems else "s start all the same   esc back"
        self.query_one("#hint", Static).update(Text(hint))

    def on_option_list_option_highlighted(self, event: ListBox.OptionHighlighted) -> None:
        finding = self._findings[event.option_index]
        lines = [finding] if isinstance(finding, str) else [finding.what, finding.hint, finding.where]
        self.query_one("#whole", Static).update(Text("\n".join(escape_control(line) for line in lines if line)))

    def on_option_list_option_selected(self, event: ListBox.OptionSelected) -> None:
        finding = self._findings[event.option_index]
        if isinstance(finding, Problem):
            self.dismiss(finding)

    def key_s(self) -> None:
        if self._findings and not any(step.problems for step in self._steps):
            self.dismiss(True)

    def action_back(self) -> None:
        self._is_cancelled = True
        self.dismiss(False)

    def _draw_steps(self) -> None:
        text = Text(no_wrap=True, overflow="ellipsis")
        for step in self._steps:
            colour = {"failed": "bold", "warned": "bold", "waiting": "dim"}.get(step.state, "")
            text.append(f"{_SYMBOLS[step.state]} {step.name:<9} {escape_control(step.detail)}\n", style=colour)
        text.right_crop(1)
        self.query_one("#steps", Static).update(text)


def _finding_line(finding: Problem | str) -> Text:
    if isinstance(finding, str):
        return Text(f"! {escape_control(finding)}", no_wrap=True, overflow="ellipsis")
    where = f"{finding.where}: " if finding.where else ""
    return Text(f"✖ {escape_control(where + finding.what)}", no_wrap=True, overflow="ellipsis")
