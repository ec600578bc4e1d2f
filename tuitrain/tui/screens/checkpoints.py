"""The checkpoints of the run on show beside their samples, and what can be made of them; knows no weights."""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Input, Static
from textual.worker import Worker, WorkerState

from tuitrain.errors import TuitrainError
from tuitrain.runs.checkpoints import (
    Checkpoint,
    delete_checkpoint,
    list_checkpoints,
    pin_checkpoint,
    unpin_checkpoint,
)
from tuitrain.runs.run import Run
from tuitrain.runs.states import STATE_DIR, list_states
from tuitrain.tui.actions import bindings
from tuitrain.tui.jobs import Job, JobState
from tuitrain.tui.screens.base import TuitrainScreen
from tuitrain.tui.screens.export_form import ExportForm, InstallForm, LoraForm, PackageForm
from tuitrain.tui.screens.picture import PictureScreen
from tuitrain.tui.screens.result import Next, ResultScreen
from tuitrain.tui.widgets.checkpoint_list import CheckpointList, CheckpointRow, SampleKey, list_rows
from tuitrain.tui.widgets.confirm import Choice, ConfirmScreen
from tuitrain.tui.widgets.image import ImageView
from tuitrain.tui.widgets.job_line import JobLine
from tuitrain.tui.widgets.key_bar import KeyBar
from tuitrain.wording import escape_control, format_bytes

if TYPE_CHECKING:
    from tuitrain.tui.live import LiveRun

_NO_RUN = "No run on show.\n\n1  choose a run"
_NOTHING_YET = "No checkpoints and no samples yet.\n\n3  the run: c there saves a checkpoint now, s makes samples"
_NOTHING = "This run left no checkpoint and no samples.\n\n1  choose another run"
_NO_SAMPLES = "no samples at this step"
_OF_CHECKPOINTS = {"package", "extract", "pin", "delete", "resume"}


@dataclass(frozen=True)
class _Found:
    """What lies on disk."""

    run: Run
    checkpoints: Sequence[Checkpoint]
    state_bytes: int
    free_bytes: int


class SamplePane(Vertical):
    """A sample of one step, and which step that is."""

    def compose(self) -> ComposeResult:
        yield Static(classes="caption", markup=False)
        yield ImageView()

    def show(self, run: Run, row: CheckpointRow, key: SampleKey, *, otherwise: str) -> None:
        """Show the sample `key` of `row`."""
        image = row.find_image(key)
        self.query_one(ImageView).show(run.path / image.path if image else None, otherwise=otherwise)
        caption = f"step {row.step}" + (f"  {row.tags}" if row.tags else "")
        _update(self.query_one(".caption", Static), Text(caption, no_wrap=True, style="bold"))


class CheckpointsScreen(TuitrainScreen):
    """A list at the left, the highlighted step's pictures at the right."""

    SCOPE = "checkpoints"
    BINDINGS: ClassVar[list[BindingType]] = bindings(SCOPE)
    CSS_PATH = "checkpoints.tcss"
    AUTO_FOCUS = "CheckpointList"

    def __init__(self) -> None:
        super().__init__()
        self.list = CheckpointList(id="list", classes="panel")
        self._run: Run | None = None
        self._seen: object = None  # of the run, when the disk was last looked at
        self._found: _Found | None = None
        self._key: SampleKey = (0, 0)
        self._held: CheckpointRow | None = None
        self._last_form: Callable[[], ExportForm] | None = None

    def compose_body(self) -> ComposeResult:
        yield Static(_NO_RUN, id="nothing", markup=False)
        with Vertical(id="browser"):
            yield Static(id="summary", markup=False)
            words = Input(
                placeholder="a step, best, keep, words of a prompt; Enter keeps it, esc shows all", id="filter"
            )
            words.compact = True
            words.cursor_blink = False
            yield words
            with Horizontal(id="columns"):
                with Vertical(id="left"):
                    self.list.border_title = "checkpoints"
                    yield self.list
                    details = Static(id="details", classes="panel", markup=False)
                    details.border_title = "this step"
                    yield details
                with Vertical(id="samples", classes="panel") as samples:
                    samples.border_title = "samples"
                    yield Static(id="settings", markup=False)
                    yield Static(id="prompt", markup=False)
                    with Horizontal(id="pictures"):
                        yield SamplePane(id="held")
                        yield SamplePane(id="highlighted")

    @property
    def row(self) -> CheckpointRow | None:
        """The highlighted step."""
        return self.list.row

    # Following the run

    def on_screen_resume(self, _event: events.ScreenResume) -> None:
        self._seen = None  # others may have made or deleted checkpoints meanwhile

    def show_live(self, live: "LiveRun | None") -> None:
        if live is None:
            self._show_nothing(_NO_RUN)
            return
        if live.run != self._run:
            self._run, self._found, self._held = live.run, None, None
            self.query_one("#filter", Input).value = ""
            self.remove_class("filtering")
            self.list.show_rows(())
        snapshot = live.snapshot
        seen = (
            live.is_alive,
            [saved.name for saved in snapshot.checkpoints],
            [saved.time for saved in snapshot.samples],
        )
        if seen != self._seen:
            self._seen = seen
            self._look()
        self.list.tick()
        self._take_job()

    def _look(self) -> None:
        assert self._run is not None
        self.run_worker(partial(_look, self._run), group="look", thread=True, exclusive=True, exit_on_error=False)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        event.stop()
        if event.worker.group == "change":
            self._changed(event.worker, event.state)
        elif event.state == WorkerState.SUCCESS and isinstance(event.worker.result, _Found):
            if event.worker.result.run == self._run:
                self._found = event.worker.result
                self._show_found()
        elif event.state == WorkerState.ERROR:
            _raise_bug(event.worker.error)
            self.tuitrain.toast(f"cannot list the checkpoints: {event.worker.error}", is_warning=True)

    def _show_found(self) -> None:
        live, found = self.tuitrain.live, self._found
        if live is None or found is None:
            return
        rows = list_rows(found.checkpoints, live.snapshot.samples)
        if not rows:
            self._show_nothing(_NOTHING_YET if live.is_alive else _NOTHING)
            return
        is_new = not self.query_one("#browser").display
        self.query_one("#nothing").display = False
        self.query_one("#browser").display = True
        self.query_one("#summary", Static).update(_summary(found))
        if is_new:
            self.list.focus()
        if self._held is not None:
            self._held = next((row for row in rows if row.step == self._held.step), None)
        query = self.query_one("#filter", Input).value
        shown = [row for row in rows if row.matches(query)]
        matching = f"  {len(shown)} of {len(rows)} match" if query.strip() else ""
        self.list.border_title = Content(f"checkpoints{matching}")
        self.list.border_subtitle = "esc shows all" if query.strip() else ""
        self.set_class(not shown, "unmatched")
        self.list.show_rows(shown)
        self._show_samples()

    def _show_nothing(self, text: str) -> None:
        self.query_one("#browser").display = False
        nothing = self.query_one("#nothing", Static)
        nothing.display = True
        nothing.update(text)

    @on(CheckpointList.Highlighted)
    def _highlight(self) -> None:
        self._show_samples()

    def _show_samples(self) -> None:
        row, live = self.row, self.tuitrain.live
        if row is None or live is None:
            return
        otherwise = f"{_NO_SAMPLES} - press s on the train screen" if live.is_alive else _NO_SAMPLES
        image = row.find_image(self._key)
        shown = row if image is not None or self._held is None else self._held
        described = shown.find_image(self._key)
        settings = "" if described is None else _settings(shown.position(described), live)
        prompt = "" if described is None else f'"{escape_control(described.prompt)}"'
        _update(self.query_one("#settings", Static), Text(settings, no_wrap=True, overflow="crop"))
        _update(self.query_one("#prompt", Static), Text(prompt))
        _update(self.query_one("#details", Static), _details(row))
        self.set_class(self._held is not None, "comparing")
        self.list.hold(self._held.step if self._held else None)
        if self._held is not None:
            self.query_one("#held", SamplePane).show(live.run, self._held, self._key, otherwise=_NO_SAMPLES)
        self.query_one("#highlighted", SamplePane).show(live.run, row, self._key, otherwise=otherwise)
        self._tell_depth(self.query_one(ImageView).depth_in_words)
        self.query_one(KeyBar).refresh_keys()

    def _tell_depth(self, words: str) -> None:
        samples = self.query_one("#samples")
        if samples.border_subtitle != words:
            samples.border_subtitle = Text(words)

    # Finding a step

    def action_filter(self) -> None:
        self.add_class("filtering")
        self.query_one("#filter", Input).focus()

    @on(Input.Changed, "#filter")
    def _filter(self) -> None:
        self._show_found()

    @on(Input.Submitted, "#filter")
    def _end_filter(self) -> None:
        self.list.focus()

    # Looking at samples

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        row = self.row
        if action in _OF_CHECKPOINTS:
            return row is not None and row.checkpoint is not None
        if action == "path":
            return row is not None
        if action in ("filter", "zoom_panel"):
            return self.query_one("#browser").display
        if action in ("previous_prompt", "next_prompt"):
            return row is not None and len(row.images) > 1
        if action == "full_size":
            return row is not None and bool(row.images)
        if action == "compare":
            return sum(bool(row.images) for row in self.list.rows) > 1
        return super().check_action(action, parameters)

    def action_previous_prompt(self) -> None:
        self._change_prompt(-1)

    def action_next_prompt(self) -> None:
        self._change_prompt(1)

    def _change_prompt(self, by: int) -> None:
        if self.row is not None:
            self._key = self.row.neighbour(self._key, by)
            self._show_samples()

    def action_compare(self) -> None:
        """Hold the highlighted step at the left and go on to an older one; again: let go."""
        row = self.row
        if self._held is not None or row is None:
            self._held = None
        elif not row.images:
            self.tuitrain.toast("this step has no samples to compare; go to one that has")
        else:
            self._held = row
            steps = [other.step for other in self.list.rows if other.images and other != row]
            self.list.highlight(max((step for step in steps if step < row.step), default=min(steps)))
        self._show_samples()

    def key_escape(self) -> None:
        job = self.tuitrain.job
        if self.has_class("filtering"):
            self.remove_class("filtering")
            self.query_one("#filter", Input).value = ""
            self.list.focus()
        elif self._held is not None:
            self.action_compare()
        elif job is not None and job.is_running:
            choices = [Choice("n", "let it go on", False), Choice("y", "cancel it; nothing is left behind", True)]
            self.app.push_screen(ConfirmScreen(f"Cancel {job.title}?", choices), self._cancel_job)

    def _cancel_job(self, is_wanted: bool | None) -> None:
        if is_wanted:
            self.tuitrain.action_cancel_job()

    def action_full_size(self) -> None:
        assert self._run is not None and self.row is not None
        rows = [row for row in self.list.rows if row.images]
        self.app.push_screen(PictureScreen(self._run, rows, self.row, self._key), self._come_back)

    def _come_back(self, place: tuple[int, SampleKey] | None) -> None:
        if place is not None:
            step, self._key = place
            self.list.highlight(step)
            self._show_samples()

    # Checkpoints on disk

    def _checkpoint(self) -> Checkpoint:
        assert self.row is not None and self.row.checkpoint is not None, "check_action allows it on checkpoints alone"
        return self.row.checkpoint

    def action_path(self) -> None:
        row = self.row
        assert row is not None and self._run is not None
        image = row.find_image(self._key)
        path = row.checkpoint.path if row.checkpoint else self._run.path / (image.path if image else "")
        self.tuitrain.send_to_clipboard(str(path))

    def action_pin(self) -> None:
        checkpoint = self._checkpoint()
        self._change(partial(unpin_checkpoint if checkpoint.is_pinned else pin_checkpoint, checkpoint.path))

    def action_delete(self) -> None:
        checkpoint = self._checkpoint()
        if checkpoint.is_pinned:
            self.tuitrain.toast("it is kept; m lets it go, then d deletes it", is_warning=True)
            return
        size = format_bytes(checkpoint.num_bytes)
        question = f"Delete the checkpoint of step {checkpoint.manifest.step} ({size})? Its samples stay."
        choices: list[Choice[Path | None]] = [
            Choice("n", "keep it", None),
            Choice("y", "delete it for good", checkpoint.path),
        ]
        self.app.push_screen(ConfirmScreen[Path | None](question, choices), self._delete)

    def _delete(self, path: Path | None) -> None:
        if path is not None:
            self._change(partial(delete_checkpoint, path))

    def _change(self, change: Callable[[], None]) -> None:
        """Touch the disk in a thread: a folder of gigabytes on a network disk takes a while to go."""
        self.run_worker(change, group="change", thread=True, exit_on_error=False)

    def _changed(self, worker: Worker[None], state: WorkerState) -> None:
        if state == WorkerState.ERROR:
            _raise_bug(worker.error)
            self.tuitrain.toast(str(worker.error), is_warning=True)
        if state in (WorkerState.ERROR, WorkerState.SUCCESS):
            self._look()

    def action_resume(self) -> None:
        live, checkpoint = self.tuitrain.live, self._checkpoint()
        if live is not None and live.is_alive:
            self.tuitrain.toast("the run is training; x on the train screen stops it first", is_warning=True)
        elif not checkpoint.is_resumable:
            words = "this checkpoint was saved without its training state, so no run can go on from it"
            self.tuitrain.toast(f"{words}; p makes a model of it that a new run can start from", is_warning=True)
        else:
            question = f"Train on from step {checkpoint.manifest.step}? What came after it leaves the charts."
            choices: list[Choice[Path | None]] = [
                Choice("n", "go back", None),
                Choice("y", "train on from here", checkpoint.path),
            ]
            self.app.push_screen(ConfirmScreen[Path | None](question, choices), self._resume)

    def _resume(self, checkpoint: Path | None) -> None:
        if checkpoint is not None and self._run is not None:
            self.tuitrain.resume(self._run, checkpoint)

    # Exports

    def action_package(self) -> None:
        self._open_form(PackageForm)

    def action_extract(self) -> None:
        self._open_form(LoraForm)

    def _open_form(self, form: type[PackageForm] | type[LoraForm]) -> None:
        assert self._run is not None
        live = self.tuitrain.live
        is_training = live is not None and live.is_alive
        self._push_form(partial(form, self._run, self._checkpoint(), is_training=is_training))

    def _push_form(self, make: Callable[[], ExportForm]) -> None:
        job = self.tuitrain.job
        if job is not None and job.is_running:
            self.tuitrain.toast("one export at a time: wait for it, or cancel it with ^x", is_warning=True)
            return
        if job is not None:  # it has ended since the last look
            self._take_job()
            return
        form = make()
        self._last_form = make
        self.app.push_screen(form, partial(self._start_job, form))

    def _start_job(self, form: ExportForm, job: Job[object] | None) -> None:
        if job is None:
            return
        make = self._last_form
        assert make is not None
        self._last_form = partial(_with_values, make, form.values)
        self.tuitrain.job = job
        job.start()
        self.draw_live()

    def _take_job(self) -> None:
        """Show what a job that has ended came to."""
        job = self.tuitrain.job
        if job is None or job.is_running:
            return
        self.tuitrain.job = None
        self.query_one(JobLine).show_job(None)
        if job.state is JobState.CANCELLED:
            self.tuitrain.toast(f"{job.title} cancelled; nothing was left behind")
        else:
            self.app.push_screen(ResultScreen(job), self._go_on)

    def _go_on(self, wish: Next | None) -> None:
        if wish is None:
            return
        if wish.install is not None:
            self._push_form(partial(InstallForm, wish.install))
        elif self._last_form is not None:
            self._push_form(self._last_form)


def _raise_bug(error: BaseException | None) -> None:
    """Let an error of a worker through that no user can do anything about."""
    if error is not None and not isinstance(error, TuitrainError | OSError):
        raise error


def _with_values(make: Callable[[], ExportForm], values: dict[str, str]) -> ExportForm:
    """The form as it was left."""
    form = make()
    form.values.update(values)
    return form


def _update(static: Static, text: Text) -> None:
    """Show `text` without a new layout, which would send the pictures once more: all these have sizes of their own."""
    if static.content != text:
        static.update(text, layout=False)


def _look(run: Run) -> _Found:
    """In a thread: the disk may be slow."""
    state_bytes = sum(_num_bytes(folder / STATE_DIR) for folder in list_states(run.checkpoints_dir))
    return _Found(run, list_checkpoints(run.checkpoints_dir), state_bytes, shutil.disk_usage(run.path).free)


def _num_bytes(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except FileNotFoundError:  # pruned meanwhile
        return 0


def _summary(found: _Found) -> Text:
    total = sum(checkpoint.num_bytes for checkpoint in found.checkpoints)
    number = len(found.checkpoints)
    states = f" · training state {format_bytes(found.state_bytes)}" if found.state_bytes else ""
    return Text(
        f"{number} checkpoint{'' if number == 1 else 's'} · {format_bytes(total)}{states} · "
        f"disk free {format_bytes(found.free_bytes)}",
        no_wrap=True,
    )


def _details(row: CheckpointRow) -> Text:
    """What is known of a step, a fact a line."""
    facts = {"step": f"{row.step}, epoch {row.epoch}", "samples": str(len(row.images))}
    if row.checkpoint is not None:
        manifest = row.checkpoint.manifest
        weights = "moving average of the weights" if manifest.weights == "ema" else "weights as trained"
        facts |= {
            "loss": "unknown" if row.loss is None else f"{row.loss:.4f}, mean of the last {len(manifest.last_losses)}",
            "saved": time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.time)),
            "holds": f"{weights}, {manifest.save_dtype}",
            "size": format_bytes(row.checkpoint.num_bytes),
            "state": "kept, o trains on" if row.checkpoint.is_resumable else "none, no run can go on from here",
            "name": row.checkpoint.path.name,
            "base": f"{manifest.base_model}, {manifest.prediction_type}",
        }
    text = Text()
    for label, value in facts.items():
        text.append(f"{label:<8}", "bold")
        text.append(f"{escape_control(value)}\n")
    return text


def _settings(position: str, live: "LiveRun") -> str:
    """`prompt 2/4  seed 42  30 steps  cfg 6`, as far as the config is known."""
    config = live.config_values
    facts = [position]
    with suppress(KeyError):
        facts += [f"seed {config['seed']}", f"{config['validation_steps']} steps"]
        facts += [f"cfg {config['validation_guidance_scale']}"]
    return escape_control("  ".join(facts))
