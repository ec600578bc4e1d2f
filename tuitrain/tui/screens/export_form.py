"""Small forms that ask what an export shall be, check it while it is typed, and make a Job of it; export nothing."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from rich.text import Text
from textual import on
from textual.app import ComposeResult, RenderResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Input, Static

from tuitrain.errors import ConfigError, Problem
from tuitrain.export.progress import Progress, ProgressReport
from tuitrain.export.request import check_target, parse_ranks, parse_size
from tuitrain.runs.checkpoints import Checkpoint
from tuitrain.runs.run import Run
from tuitrain.tui.jobs import Job
from tuitrain.wording import escape_control


@dataclass(frozen=True)
class FormField:
    """One line of a form.

    Args:
        name: of its value.
        label: before it.
        help: one or two sentences.
        choices: what there is to choose from; empty for free text.
    """

    name: str
    label: str
    help: str
    choices: tuple[str, ...] = ()


class ChoiceField(Widget, can_focus=True):
    """All choices on one line, one of them chosen: `[float16]  bfloat16  float32`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "choose(-1)", "Choose", show=False),
        Binding("right,l,space", "choose(1)", "Choose", show=False),
    ]

    @dataclass
    class Changed(Message):
        """Another choice was made."""

        field: "ChoiceField"

        @property
        def control(self) -> "ChoiceField":
            return self.field

    def __init__(self, choices: Sequence[str], value: str, *, id: str) -> None:
        super().__init__(id=id)
        self._choices = choices
        self.value = value

    def render(self) -> RenderResult:
        text = Text(no_wrap=True)
        for choice in self._choices:
            is_chosen = choice == self.value
            style = ("bold reverse" if self.has_focus else "bold") if is_chosen else ""
            text.append(f"[{choice}]" if is_chosen else f" {choice} ", style)
            text.append(" ")
        return text

    def action_choose(self, by: int) -> None:
        self.value = self._choices[(self._choices.index(self.value) + by) % len(self._choices)]
        self.refresh()
        self.post_message(self.Changed(self))


class ExportForm(ModalScreen[Job[Any] | None]):
    """Fields, what is wrong with them, and a Job when Enter finds nothing wrong.

    Attributes:
        values: of the fields, by name.
    """

    TITLE_TEXT: ClassVar[str]
    FIELDS: ClassVar[tuple[FormField, ...]]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Back", show=False),
        Binding("enter", "start", "Start", show=False),
        Binding("up,shift+tab", "app.focus_previous", "Up", show=False),
        Binding("down,tab", "app.focus_next", "Down", show=False),
    ]
    CSS_PATH = "export_form.tcss"

    def __init__(self, values: dict[str, str]) -> None:
        super().__init__()
        self.values = values

    def find_problem(self) -> tuple[str, Problem] | None:
        """The first field that is wrong, and why."""
        raise NotImplementedError

    def make_job(self) -> Job[Any]:
        """The work, once nothing is wrong."""
        raise NotImplementedError

    def is_needed(self, name: str) -> bool:
        """Whether the field `name` matters as the others are."""
        del name
        return True

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Text(self.TITLE_TEXT)
            for field in self.FIELDS:
                with Horizontal(classes="row", id=f"row-{field.name}"):
                    yield Static(field.label, classes="label", markup=False)
                    yield self._widget(field)
            yield Static(id="help", markup=False)
            yield Static(id="problem", markup=False)
            yield Static(
                Text.assemble(
                    ("enter", "bold"), " Start   ", ("↑/↓", "bold"), " Field   ", ("←/→", "bold"), " Choose   ",
                    ("esc", "bold"), " Back",
                ),
                id="keys",
                markup=False,
            )  # fmt: skip

    def _widget(self, field: FormField) -> Widget:
        value = self.values[field.name]
        if field.choices:
            return ChoiceField(field.choices, value, id=field.name)
        box = Input(value, id=field.name, compact=True, select_on_focus=False)
        box.cursor_blink = False
        return box

    def on_mount(self) -> None:
        self.query_one(f"#{self.FIELDS[0].name}").focus()
        self._draw()

    def on_descendant_focus(self) -> None:
        self._draw()

    @on(Input.Changed)
    def _type(self, event: Input.Changed) -> None:
        self._set(str(event.input.id), event.value)

    @on(ChoiceField.Changed)
    def _choose(self, event: ChoiceField.Changed) -> None:
        self._set(str(event.field.id), event.field.value)

    def _set(self, name: str, value: str) -> None:
        if self.values[name] != value:
            self.values[name] = value
            self.adapt(name)
            self._draw()

    def adapt(self, name: str) -> None:
        """Change other fields to the new value of the field `name`."""

    def change(self, name: str, value: str) -> None:
        """Put `value` into the text field `name`."""
        self.values[name] = value
        if self.is_mounted:
            self.query_one(f"#{name}", Input).value = value

    def _draw(self) -> None:
        focused = self.focused.id if self.focused is not None else None
        problem = self.find_problem()
        for field in self.FIELDS:
            row = self.query_one(f"#row-{field.name}")
            row.display = self.is_needed(field.name)
            mark = "! " if problem is not None and problem[0] == field.name else "  "
            row.query_one(".label", Static).update(Text(mark + field.label))
            if field.name == focused:
                self.query_one("#help", Static).update(Text(field.help))
        words = "" if problem is None else f"! {in_form_words(str(problem[1]))}"
        self.query_one("#problem", Static).update(Text(escape_control(words), style="bold"))

    @on(Input.Submitted)
    def _submit(self) -> None:
        self.action_start()

    def action_start(self) -> None:
        problem = self.find_problem()
        if problem is not None:
            self.query_one(f"#{problem[0]}").focus()
        else:
            self.dismiss(self.make_job())


# What all exports of a checkpoint ask

_TARGET = (
    "Where it is written; folders on the way are made, nothing is overwritten. Relative to where tuitrain started."
)
_BASE = FormField(
    "base", "base model", "The model that was trained on: a folder, a file or a name on the Hub. All but the UNet is "
    "taken from it.",
)  # fmt: skip
_OTHER_BASE = FormField(
    "other_base", "other base", "Whether a base model whose UNet is not the one trained on is refused or only warned "
    "of: the same model in another form is fine, another model is not.", ("refuse", "warn"),
)  # fmt: skip
_DTYPES = ("float16", "bfloat16", "float32")

_OPTIONS = {
    "--out": "target",
    "--base": "base model",
    "--allow-other-base": "other base: warn",
    "--variant": "variant",
    "--dtype": "dtype",
    "--rank": "rank",
    "--energy": "energy",
    "--max-size": "size",
    "--url": "address",
    "--single-file": "made as: single file",
}


def in_form_words(text: str) -> str:
    """`text` with the options of the command line called what the forms call them."""
    for option, label in _OPTIONS.items():
        text = text.replace(option, f'"{label}"')
    return text


class _CheckpointForm(ExportForm):
    """A form about one checkpoint.

    Args:
        run: it belongs to.
        checkpoint: to export.
        is_training: whether the GPU is busy with the run.
    """

    def __init__(self, run: Run, checkpoint: Checkpoint, *, is_training: bool) -> None:
        self._checkpoint = checkpoint
        self._default_base = checkpoint.manifest.base_model
        super().__init__(
            {
                "target": default_target(run, checkpoint.manifest.step),
                "base": self._default_base,
                "other_base": "refuse",
                **self.first_values(is_training=is_training),
            }
        )

    def first_values(self, *, is_training: bool) -> dict[str, str]:
        """Of the form's own fields."""
        raise NotImplementedError

    @property
    def target(self) -> Path:
        """Where it is written."""
        return Path(self.values["target"].strip()).expanduser()

    def _base_options(self) -> dict[str, Any]:
        """The base model, for all exports; untouched it is the one that the checkpoint knows more about."""
        base = self.values["base"].strip()
        return {
            "base": None if base in ("", self._default_base) else base,
            "allow_other_base": self.values["other_base"] == "warn",
        }

    def _find_target_problem(self, *, is_file: bool) -> tuple[str, Problem] | None:
        if not self.values["target"].strip():
            return "target", Problem("there is no target", "type the path of what is to be written")
        if is_file and self.target.suffix != ".safetensors":
            return "target", Problem(f"{self.target.name} is not the name of a model file", "end it in .safetensors")
        return _problem_of("target", lambda: check_target(self.target, self._checkpoint.path))


class PackageForm(_CheckpointForm):
    """Asks how a checkpoint becomes a whole model."""

    TITLE_TEXT = "Package full diffusers model"
    FIELDS = (
        FormField("target", "target", _TARGET),
        FormField(
            "layout", "made as", "A diffusers folder, or one .safetensors in SDXL's original layout, which ComfyUI and "
            "A1111 load.", ("folder", "single file"),
        ),
        FormField("dtype", "dtype", "Of the weights. Every program loads float16, at half of float32's size.", _DTYPES),
        FormField(
            "variant", "variant", "fp16 puts .fp16 into the names of the weight files; auto does so where the base "
            "model has such names.", ("auto", "fp16", "none"),
        ),
        _BASE,
        _OTHER_BASE,
    )  # fmt: skip

    def first_values(self, *, is_training: bool) -> dict[str, str]:
        del is_training
        return {"layout": "folder", "dtype": "float16", "variant": "auto"}

    @property
    def _is_single_file(self) -> bool:
        return self.values["layout"] == "single file"

    def is_needed(self, name: str) -> bool:
        return not (name == "variant" and self._is_single_file)

    def adapt(self, name: str) -> None:
        if name == "layout":
            target = self.values["target"].removesuffix(".safetensors")
            self.change("target", f"{target}.safetensors" if self._is_single_file else target)

    def find_problem(self) -> tuple[str, Problem] | None:
        if not self._is_single_file and self.values["variant"] == "fp16" and self.values["dtype"] != "float16":
            what = f"the variant fp16 is float16, not {self.values['dtype']}"
            return "variant", Problem(what, "choose auto, or float16 above")
        return self._find_target_problem(is_file=self._is_single_file)

    def make_job(self) -> Job[Any]:
        checkpoint, out, is_single_file = self._checkpoint.path, self.target, self._is_single_file
        options: dict[str, Any] = {"dtype": self.values["dtype"], **self._base_options()}
        variant = cast("Literal['auto', 'fp16', 'none']", self.values["variant"])

        def work(progress: Progress) -> object:
            if is_single_file:
                from tuitrain.export.single_file import package_single_file  # torch and diffusers: seconds

                return package_single_file(checkpoint, out, **options, progress=progress)
            from tuitrain.export.package import package_folder

            return package_folder(checkpoint, out, variant=variant, **options, progress=progress)

        return Job(f"package step-{self._checkpoint.manifest.step}", work)


class LoraForm(_CheckpointForm):
    """Asks what kind of LoRA a checkpoint becomes."""

    TITLE_TEXT = "Extract LoRA"
    FIELDS = (
        FormField("target", "target", _TARGET),
        FormField("choice", "choose by", "What decides the size of the file.", ("rank", "energy", "size")),
        FormField("rank", "rank", "The higher, the larger and the closer; 32 suits most. Several, as in 8,32,128, make "
                  "a file each."),
        FormField("energy", "energy", "The share of the change to keep, above 0 and below 1: 0.9 keeps most of it. The "
                  "ranks follow, layer by layer."),
        FormField("size", "size", "Of the file, as in 200MB or 1GiB. The ranks are spent where they keep most."),
        FormField("dtype", "dtype", "Of the file; float16 loses next to nothing.", _DTYPES),
        FormField("extras", "with extras", "Norms, biases and top-level modules in a second file, which ComfyUI alone "
                  "loads.", ("no", "yes")),
        FormField("device", "device", "Where to calculate: cuda is many times faster, and needs GPU memory that a "
                  "training may hold.", ("cpu", "cuda")),
        _BASE,
        _OTHER_BASE,
    )  # fmt: skip

    def first_values(self, *, is_training: bool) -> dict[str, str]:
        device = "cpu" if is_training or not _has_gpu() else "cuda"
        return {
            "choice": "rank", "rank": "32", "energy": "0.9", "size": "200MB", "dtype": "float16", "extras": "no",
            "device": device,
        }  # fmt: skip

    def __init__(self, run: Run, checkpoint: Checkpoint, *, is_training: bool) -> None:
        super().__init__(run, checkpoint, is_training=is_training)
        self.values["target"] = default_target(run, checkpoint.manifest.step, ending="-lora.safetensors")

    def is_needed(self, name: str) -> bool:
        return name not in ("rank", "energy", "size") or name == self.values["choice"]

    def find_problem(self) -> tuple[str, Problem] | None:
        choice = self.values["choice"]
        check: Mapping[str, Callable[[], object]] = {
            "rank": lambda: parse_ranks(self.values["rank"]),
            "energy": lambda: parse_energy(self.values["energy"]),
            "size": lambda: parse_size(self.values["size"]),
        }
        return _problem_of(choice, check[choice]) or self._find_target_problem(is_file=True)

    def make_job(self) -> Job[Any]:
        checkpoint, out, values = self._checkpoint.path, self.target, dict(self.values)
        base_options = self._base_options()
        choice = values["choice"]

        def work(progress: Progress) -> object:
            from tuitrain.export.lora import DTYPES, LoraOptions, extract_lora  # torch and diffusers: seconds

            options = LoraOptions(
                ranks=parse_ranks(values["rank"]) if choice == "rank" else (32,),
                energy=parse_energy(values["energy"]) if choice == "energy" else None,
                max_bytes=parse_size(values["size"]) if choice == "size" else None,
                dtype=DTYPES[values["dtype"]],
                with_extras=values["extras"] == "yes",
            )
            return extract_lora(checkpoint, out, options, device=values["device"], **base_options, progress=progress)

        return Job(f"extract LoRA step-{self._checkpoint.manifest.step} {choice} {values[choice]}", work)


class InstallForm(ExportForm):
    """Asks which InvokeAI an export is registered with.

    Args:
        path: the packaged folder, single file or LoRA.
    """

    TITLE_TEXT = "Install into InvokeAI"
    FIELDS = (
        FormField("address", "address", "Of a running InvokeAI that sees this disk. The model stays where it is."),
        FormField("name", "name", "In InvokeAI's lists."),
    )  # fmt: skip

    def __init__(self, path: Path) -> None:
        from tuitrain.export.invokeai import LOCAL_URL  # with safetensors

        self._local_url = LOCAL_URL
        super().__init__({"address": LOCAL_URL, "name": path.stem if path.is_file() else path.name})
        self._path = path

    def find_problem(self) -> tuple[str, Problem] | None:
        if not self.values["address"].strip().startswith(("http://", "https://")):
            return "address", Problem("the address must begin with http://", f"InvokeAI's own is {self._local_url}")
        if not self.values["name"].strip():
            return "name", Problem("there is no name", "type one")
        return None

    def make_job(self) -> Job[Any]:
        path, url, name = self._path, self.values["address"].strip(), self.values["name"].strip()

        def work(progress: Progress) -> object:
            from tuitrain.export.invokeai import install_in_invokeai  # safetensors with numpy: 0.2 s

            def tell(status: str) -> None:
                progress(ProgressReport(status, 0, 1, "models"))

            return install_in_invokeai(path, url=url, name=name, tell=tell)

        return Job(f"install {path.name} into InvokeAI", work)


def default_target(run: Run, step: int, *, ending: str = "") -> str:
    """A place beside the run's folder that is free: `runs/exports/1716373799.2-step-1500`."""
    folder = run.path.parent / "exports"
    name = f"{run.run_id}-step-{step}"
    numbers = ("", *(f"-{number}" for number in range(2, 1000)))
    free = next((number for number in numbers if not os.path.lexists(folder / f"{name}{number}{ending}")), "")
    path = folder / f"{name}{free}{ending}"
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def parse_energy(text: str) -> float:
    """The share in "0.9".

    Raises:
        ConfigError: it is no number between 0 and 1.
    """
    try:
        energy = float(text)
    except ValueError:
        energy = -1.0
    if not 0 < energy < 1:
        raise ConfigError(f"the energy is {text}, it must be a number above 0 and below 1", hint="try 0.9")
    return energy


def _problem_of(name: str, check: Callable[[], object]) -> tuple[str, Problem] | None:
    try:
        check()
    except ConfigError as error:
        return name, error.problems[0]
    except (OSError, ValueError) as error:  # a path that the system cannot have
        return name, Problem(f"this cannot be a path: {error}", "type another")
    return None


def _has_gpu() -> bool:
    from tuitrain.gpu import read_gpus

    return bool(read_gpus())
