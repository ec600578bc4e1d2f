"""The steps of a run that left a checkpoint or samples, newest first, as a list; knows no file and no run."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tuitrain.runs.checkpoints import Checkpoint
from tuitrain.runs.events import SampleImage, SamplesSaved
from tuitrain.wording import format_age

_WIDE = 42  # columns from which epoch and age have room


SampleKey = tuple[int, int]
"""Index of the prompt, index among its pictures: what stays when the step changes."""


@dataclass(frozen=True)
class CheckpointRow:
    """A step worth going back to.

    Args:
        step: completed optimizer steps.
        epoch: completed epochs.
        checkpoint: None where only samples are left.
        images: the samples of this step, by prompt.
        loss: mean of the last logged ones; None where there is no checkpoint, or none was finite.
        is_best: the lowest loss of several.
        is_newest: the last checkpoint.
        is_pinned: the user wants it kept.
    """

    step: int
    epoch: int
    checkpoint: Checkpoint | None = None
    images: tuple[SampleImage, ...] = ()
    loss: float | None = None
    is_best: bool = False
    is_newest: bool = False
    is_pinned: bool = False

    @property
    def tags(self) -> str:
        """What sets it apart, in words."""
        words = {"keep": self.is_pinned, "best": self.is_best, "new": self.is_newest}
        if self.checkpoint is None:
            return "samples"
        return " ".join(word for word, holds in words.items() if holds)

    def matches(self, query: str) -> bool:
        """Whether each word of `query` stands in the step's number, its tags or its prompts."""
        text = " ".join((str(self.step), self.tags, *(image.prompt for image in self.images))).casefold()
        return all(word in text for word in query.casefold().split())

    # Which of the samples

    def find_image(self, key: SampleKey) -> SampleImage | None:
        """The sample of that prompt and number, else another of the prompt, else the first."""
        same = [one for one in self.images if (one.prompt_index, one.image_index) == key]
        same_prompt = [one for one in self.images if one.prompt_index == key[0]]
        return next(iter((*same, *same_prompt, *self.images)), None)

    def neighbour(self, key: SampleKey, by: int) -> SampleKey:
        """The key of the sample `by` further on, around the end."""
        image = self.find_image(key)
        if image is None:
            return key
        other = self.images[(self.images.index(image) + by) % len(self.images)]
        return other.prompt_index, other.image_index

    def position(self, image: SampleImage) -> str:
        """`prompt 2/4`, and which of its pictures if there are several."""
        prompts = sorted({one.prompt_index for one in self.images})
        numbers = [one.image_index for one in self.images if one.prompt_index == image.prompt_index]
        words = f"prompt {prompts.index(image.prompt_index) + 1}/{len(prompts)}"
        return words if len(numbers) == 1 else f"{words}  image {numbers.index(image.image_index) + 1}/{len(numbers)}"


def list_rows(checkpoints: Sequence[Checkpoint], samples: Iterable[SamplesSaved]) -> list[CheckpointRow]:
    """Each step once, newest first."""
    by_step = {checkpoint.manifest.step: checkpoint for checkpoint in checkpoints}
    samples_by_step = {saved.step: saved for saved in samples}  # the last ones of each step
    losses = {step: loss for step, one in by_step.items() if (loss := mean_loss(one.manifest.last_losses)) is not None}
    best = min(losses, key=lambda step: losses[step]) if len(losses) > 1 else None
    rows = []
    for step in sorted(by_step.keys() | samples_by_step.keys(), reverse=True):
        checkpoint, saved = by_step.get(step), samples_by_step.get(step)
        images = sorted(saved.images, key=lambda image: (image.prompt_index, image.image_index)) if saved else ()
        rows.append(
            CheckpointRow(
                step=step,
                epoch=checkpoint.manifest.epoch if checkpoint else _epoch_of(saved),
                checkpoint=checkpoint,
                images=tuple(images),
                loss=losses.get(step),
                is_best=step == best,
                is_newest=step == max(by_step, default=None),
                is_pinned=checkpoint is not None and checkpoint.is_pinned,
            )
        )
    return rows


def _epoch_of(saved: SamplesSaved | None) -> int:
    return saved.epoch if saved else 0


def mean_loss(losses: Sequence[float]) -> float | None:
    """Of the finite ones; a single logged loss says little."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return sum(finite) / len(finite) if finite else None


class CheckpointList(ScrollView, can_focus=True, inherit_bindings=False):
    """A line for each row under a fixed head; draws only what is in sight."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Newer", show=False),
        Binding("down,j", "move(1)", "Older", show=False),
        Binding("pageup", "move_page(-1)", "Page up", show=False),
        Binding("pagedown", "move_page(1)", "Page down", show=False),
        Binding("home,g", "first", "Newest", show=False),
        Binding("end,G", "last", "Oldest", show=False),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {"list--head", "list--cursor", "list--only-samples"}
    DEFAULT_CSS = """
    CheckpointList { background: $background; scrollbar-size-vertical: 1; }
    CheckpointList > .list--head { color: $text-muted; text-style: bold; }
    CheckpointList > .list--cursor { text-style: bold reverse; }
    CheckpointList > .list--only-samples { color: $text-muted; }
    """

    @dataclass
    class Highlighted(Message):
        """Another row, or the same with other facts; None when the list became empty."""

        row: CheckpointRow | None

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.rows: Sequence[CheckpointRow] = ()
        self._index = 0
        self._held_step: int | None = None
        self._ages: tuple[str, ...] = ()

    @property
    def row(self) -> CheckpointRow | None:
        """The highlighted one."""
        return self.rows[self._index] if self.rows else None

    def show_rows(self, rows: Sequence[CheckpointRow]) -> None:
        """Show `rows`; the highlight stays at its step, or near where that was."""
        before = self.row
        self.rows = rows
        steps = [row.step for row in rows]
        if before is not None and before.step in steps:
            self._index = steps.index(before.step)
        self._index = max(0, min(self._index, len(rows) - 1))
        self.virtual_size = Size(self.size.width, len(rows) + 1)
        self.tick()
        self.refresh()
        if self.row != before:
            self.post_message(self.Highlighted(self.row))

    def hold(self, step: int | None) -> None:
        """Mark the row that the others are compared with."""
        if step != self._held_step:
            self._held_step = step
            self.refresh()

    def highlight(self, step: int) -> None:
        """Go to the row of `step`."""
        for index, row in enumerate(self.rows):
            if row.step == step:
                self._go(index)

    def tick(self) -> None:
        """Draw again if an age has changed."""
        now = time.time()
        ages = tuple(_age(row, now) for row in self.rows)
        if ages != self._ages:
            self._ages = ages
            self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        if y == 0:
            return self._line(self._columns("", "step", "epoch", "loss", "size", "age", "tag"), "list--head")
        index = self.scroll_offset.y + y - 1
        if index >= len(self.rows):
            return Strip.blank(width, self.rich_style)
        row = self.rows[index]
        mark = "A" if row.step == self._held_step else "▸" if index == self._index else ""
        line = self._columns(
            mark,
            str(row.step),
            str(row.epoch),
            "" if row.loss is None else _short_loss(row.loss),
            "" if row.checkpoint is None else short_size(row.checkpoint.num_bytes),
            self._ages[index],
            row.tags,
        )
        if index == self._index:
            return self._line(line, "list--cursor")
        return self._line(line, "list--only-samples" if row.checkpoint is None else None)

    def _columns(self, mark: str, step: str, epoch: str, loss: str, size: str, age: str, tag: str) -> str:
        if self.scrollable_content_region.width < _WIDE:
            return f"{mark:1}{step:>6} {loss:>6} {size:>5} {tag}"
        return f"{mark:1} {step:>7} {epoch:>6}  {loss:>7} {size:>6} {age:>7}  {tag}"

    def _line(self, text: str, component: str | None) -> Strip:
        width = self.scrollable_content_region.width
        style: Style = self.get_component_rich_style(component) if component else self.rich_style
        return Strip([Segment(text[:width].ljust(width), style)], width)

    # Moving

    def action_move(self, by: int) -> None:
        self._go(self._index + by)

    def action_move_page(self, by: int) -> None:
        self._go(self._index + by * max(self.size.height - 2, 1))

    def action_first(self) -> None:
        self._go(0)

    def action_last(self) -> None:
        self._go(len(self.rows) - 1)

    def on_click(self, event: events.Click) -> None:
        if event.y > 0:
            self._go(self.scroll_offset.y + event.y - 1)

    def _go(self, index: int) -> None:
        index = max(0, min(index, len(self.rows) - 1))
        if self.rows and index != self._index:
            self.refresh_line(self._index + 1)
            self.refresh_line(index + 1)
            self._index = index
            # One line more than the row: the head covers the first line in sight.
            self.scroll_to_region(Region(0, index, 1, 2), animate=False, force=True)
            self.post_message(self.Highlighted(self.row))


def _age(row: CheckpointRow, now: float) -> str:
    return format_age(now - row.checkpoint.manifest.time) if row.checkpoint else ""


def _short_loss(loss: float) -> str:
    """In at most six columns, as far as losses go: .0447, 1.234."""
    return f"{loss:.4f}".removeprefix("0") if loss < 1 else f"{loss:.4g}"


def short_size(num_bytes: float) -> str:
    """In at most five columns: 1.2G, 730M; binary units."""
    for unit in "KMG":
        num_bytes /= 1024
        if num_bytes < 1000:
            return f"{num_bytes:.1f}{unit}" if num_bytes < 99.5 else f"{num_bytes:.0f}{unit}"
    return f"{num_bytes / 1024:.1f}T"
