"""How a run stands now, folded from its events; knows no screen, no file and no clock of its own."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from tuitrain.runs import events
from tuitrain.runs.events import CheckpointSaved, Event, RunFailed, RunFinished, SamplesSaved, StepLogged
from tuitrain.runs.series import DEFAULT_SMOOTHING, NUM_LOSSES_TO_JUDGE, Smoothed, is_spike
from tuitrain.wording import describe, escape_control, format_amount, format_bytes, format_duration, phase_name

Level = Literal["·", "✓", "▣", "!", "✖"]

SPEED_SMOOTHING = 0.8
MAX_LINES = 500
NUM_REJECTED_TOLD = 5
LOGS_BETWEEN_SPIKE_LINES = 10
MIN_STEPS_OF_A_TOLD_EPOCH = 50
"""Shorter epochs would fill the event list."""


class State(StrEnum):
    """What a run is doing, in the word that the screen shows."""

    IDLE = "IDLE"
    CHECKING = "CHECKING"
    LOADING = "LOADING"
    CACHING = "CACHING"
    TRAINING = "TRAINING"
    PAUSED = "PAUSED"
    SAMPLING = "SAMPLING"
    SAVING = "SAVING"
    STOPPING = "STOPPING"
    FINISHED = "FINISHED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    LOST = "LOST"

    @property
    def symbol(self) -> str:
        """One cell that says the same as the word."""
        return _SYMBOLS[self]

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self in (State.FINISHED, State.STOPPED, State.FAILED, State.LOST)


_SYMBOLS = {
    State.IDLE: "■",
    State.CHECKING: "◌",
    State.LOADING: "◌",
    State.CACHING: "◌",
    State.TRAINING: "►",
    State.PAUSED: "‖",
    State.SAMPLING: "▣",
    State.SAVING: "⇩",
    State.STOPPING: "◌",
    State.FINISHED: "✓",
    State.STOPPED: "■",
    State.FAILED: "✖",
    State.LOST: "?",
}
_PHASE_STATES = {
    "import_libraries": State.LOADING,
    "load_state": State.LOADING,
    "scan_images": State.CHECKING,
    "load_model": State.LOADING,
    "cache_latents": State.CACHING,
    "cache_text": State.CACHING,
    "train": State.TRAINING,
    "sample": State.SAMPLING,
    "save": State.SAVING,
}


@dataclass(frozen=True)
class EventLine:
    """One line of the event list.

    Args:
        time: Unix seconds.
        level: "·" news, "✓" saved or done, "▣" pictures to look at, "!" a warning, "✖" a failure.
        text: one line, safe for a terminal.
    """

    time: float
    level: Level
    text: str


@dataclass
class Phase:
    """A part of the run that is at work.

    Args:
        name: as in PhaseStarted.
        since: when it began, Unix seconds.
        done, total: items; both None until it has said how far it is.
        seconds: it took until it last said how far it is.
        rate: items a second, recently; None while unknown.
        detail: what is at work, such as "sample 2/4"; "" while nothing is known.
    """

    name: str
    since: float
    done: int | None = None
    total: int | None = None
    seconds: float = 0.0
    rate: float | None = None
    detail: str = ""

    @property
    def label(self) -> str:
        """Its name in words: "cache latents"."""
        return phase_name(self.name)

    @property
    def fraction(self) -> float | None:
        """How much of it is done, 0 to 1."""
        return self.done / self.total if self.done is not None and self.total else None

    @property
    def eta_seconds(self) -> float | None:
        """What it still takes at its rate."""
        if self.done is None or self.total is None or not self.rate:
            return None
        return (self.total - self.done) / self.rate

    @property
    def amount(self) -> str:
        """How far it is, in words: "812/1640", "0.7 GiB/1.2 GiB"; "" while unknown."""
        return "" if self.done is None or self.total is None else format_amount(self.name, self.done, self.total)

    def progress(self, done: int, total: int, seconds: float) -> None:
        """Take in how far it is after `seconds`."""
        num_more = done - (self.done or 0)
        if seconds > self.seconds and num_more > 0:
            rate = num_more / (seconds - self.seconds)
            self.rate = rate if self.rate is None else 0.5 * self.rate + 0.5 * rate
        self.done, self.total, self.seconds = done, total, seconds


class RunSnapshot:
    """What the events of one run amount to; several sessions of a resumed run are one story.

    Attributes:
        run_id: of the run's folder; "" until RunStarted.
        is_lost: set from outside when the engine has gone without a word.
        is_paused, is_stop_requested: as the engine has acknowledged.
        pending_commands: received and not yet obeyed, oldest first.
        step, epoch: completed. total_steps, steps_per_epoch, num_epochs, num_images, num_skipped: None until the
            pictures are scanned.
        loss, lr, grad_norm, seconds_per_step, images_per_second, data_seconds, memory_*_gib: of the newest StepLogged.
        started: Unix seconds of the first event, session_started of this session's first, updated of the newest.
        paused_since: Unix seconds, None when not paused.
        finished_seconds: what the last session took, once it has ended well.
        failure, ending: how the run ended; both None while it runs.
        last_phase: what is at work, as in PhaseStarted, or was at the end; "" between phases.
        unprotected_since: step of the newest checkpoint, or 0, after a save that failed; None when all is well.
        checkpoints: that stand, oldest first. samples: oldest first.
        lines: newest last.
    """

    def __init__(self) -> None:
        self.run_id = ""
        self.pid: int | None = None
        self.host = ""
        self.device = ""
        self.seed: int | None = None
        self.tuitrain_version = ""
        self.versions: dict[str, str] = {}
        self.model = ""
        self.prediction_type = ""
        self.num_trainable_parameters: int | None = None
        self.buckets: dict[str, int] = {}
        self.num_images: int | None = None
        self.num_skipped: int | None = None
        self.total_steps: int | None = None
        self.steps_per_epoch: int | None = None
        self.num_epochs: int | None = None

        self.step = 0
        self.epoch = 0
        self.loss: float | None = None
        self.lr: float | None = None
        self.grad_norm: float | None = None
        self.d: float | None = None
        self.seconds_per_step: float | None = None
        self.images_per_second: float | None = None
        self.data_seconds: float | None = None
        self.memory_allocated_gib: float | None = None
        self.memory_reserved_gib: float | None = None
        self.memory_peak_gib: float | None = None

        self.started: float | None = None
        self.session_started: float | None = None
        self.updated: float | None = None
        self.paused_since: float | None = None
        self.failure: RunFailed | None = None
        self.ending: RunFinished | None = None
        self.last_phase = ""
        self.is_stop_requested = False
        self.is_lost = False
        self.pending_commands: list[str] = []

        self.unprotected_since: int | None = None
        self.checkpoints: list[CheckpointSaved] = []
        self.samples: list[SamplesSaved] = []
        self.lines: deque[EventLine] = deque(maxlen=MAX_LINES)

        self._phases: list[Phase] = []
        self._forget_losses()
        self._recent_seconds_per_step: float | None = None
        self._step_logged_at: float | None = None
        self._logged_step = 0
        self._num_steps_logged = 0  # by the newest StepLogged
        self._num_rejected = 0
        self._logs_since_spike = LOGS_BETWEEN_SPIKE_LINES

    # What it amounts to

    @property
    def state(self) -> State:
        """The word for what the run is doing."""
        if self.failure is not None:
            return State.FAILED
        if self.ending is not None:
            return State.FINISHED if self.ending.reason == "completed" else State.STOPPED
        if self.is_lost:
            return State.LOST
        if self.is_stop_requested:
            return State.STOPPING
        phase = self.phase
        if phase is None:
            return State.IDLE if self.started is None else State.LOADING
        if phase.name == "train" and self.is_paused:
            return State.PAUSED
        return _PHASE_STATES.get(phase.name, State.LOADING)

    @property
    def phase(self) -> Phase | None:
        """The innermost part at work: sampling inside training, for one; None between parts and after the end."""
        return self._phases[-1] if self._phases else None

    @property
    def is_paused(self) -> bool:
        return self.paused_since is not None

    @property
    def progress(self) -> float | None:
        """Share of the steps that are done, 0 to 1; of the phase, while none is; None while unknown."""
        if self.phase is not None and not self.step:
            return 0.0 if self.phase.name == "train" else self.phase.fraction
        return min(self.step / self.total_steps, 1.0) if self.total_steps else None

    @property
    def finished_seconds(self) -> float | None:
        return self.ending.seconds if self.ending else None

    def eta_seconds(self, now: float) -> float | None:
        """Seconds until the last step at the recent speed, without sampling and saving; None while unknown.

        It runs down between two logged steps, and no further: then the speed or the clock is not what it was.

        Args:
            now: Unix seconds.
        """
        if self.total_steps is None or self._recent_seconds_per_step is None or self._step_logged_at is None:
            return None
        remaining = max(self.total_steps - self.step, 0) * self._recent_seconds_per_step
        if self.state is not State.TRAINING:
            return remaining
        waited = min(max(now - self._step_logged_at, 0.0), self._num_steps_logged * self._recent_seconds_per_step)
        return max(remaining - waited, 0.0)

    # Folding

    def feed(self, new_events: Iterable[Event]) -> None:
        """Take in `new_events`, in the journal's order."""
        for event in new_events:
            self._fold(event)

    def _fold(self, event: Event) -> None:
        if isinstance(event, events.UnknownEvent):
            return
        if self.started is None:
            self.started = self.session_started = event.time
        self.updated = event.time
        match event:
            case StepLogged():
                self._log_step(event)
            case events.PhaseProgressed():
                self._progress(event)
            case events.PhaseStarted():
                if event.phase == "import_libraries":
                    self._begin_session(event.time)
                self._phases.append(Phase(event.phase, since=event.time))
                self.last_phase = event.phase
            case events.PhaseFinished():
                self._finish_phase(event)
            case events.RunStarted():
                self._start(event)
            case events.DatasetScanned():
                self._know_dataset(event)
            case events.ModelLoaded():
                self.model = event.model
                self.prediction_type = event.prediction_type
                self.num_trainable_parameters = event.num_trainable_parameters
            case events.ImageRejected():
                self._reject(event)
            case events.EpochFinished():
                self.epoch, self.step = event.epoch, event.step
                if self.steps_per_epoch is not None and self.steps_per_epoch >= MIN_STEPS_OF_A_TOLD_EPOCH:
                    self._tell(event, "·", f"epoch {event.epoch}/{self.num_epochs} finished")
            case CheckpointSaved():
                self.checkpoints.append(event)
                self.unprotected_since = None
                size, time = format_bytes(event.num_bytes), format_short(event.seconds)
                self._tell(event, "✓", f"checkpoint step-{event.step} saved ({size}, {time})")
            case events.SaveFailed():
                self.unprotected_since = self.checkpoints[-1].step if self.checkpoints else 0
                self._tell(event, "!", describe(event, total_steps=None))
            case events.CheckpointPruned():
                self.checkpoints = [saved for saved in self.checkpoints if saved.name != event.name]
                self._tell(event, "·", f"{event.name} pruned")
            case SamplesSaved():
                self.samples.append(event)
                noun = "sample" if len(event.images) == 1 else "samples"
                self._tell(event, "▣", f"{len(event.images)} {noun} @{event.step} - press 4 to view")
            case events.CommandReceived():
                self._receive(event)
            case events.CommandObeyed():
                if event.command in self.pending_commands:
                    self.pending_commands.remove(event.command)
                self.is_stop_requested |= event.command in ("stop", "discard")
            case events.Paused():
                self.paused_since = event.time
                self._tell(event, "·", f"paused at step {event.step}")
            case events.Unpaused():
                self.paused_since = None
                self._step_logged_at = event.time
                self._tell(event, "·", f"going on from step {event.step}")
            case events.WarningRaised():
                self._tell(event, "!", event.what + (f" - {event.hint}" if event.hint else ""))
            case RunFinished():
                self._end(event)
                self.ending = event
                word = "finished" if event.reason == "completed" else "stopped"
                self._tell(event, "✓", f"{word} at step {event.step} in {format_duration(event.seconds)}")
            case RunFailed():
                self._end(event)
                self.failure = event
                self._tell(
                    event, "✖", f"failed at step {event.step}: {event.what.splitlines()[0] if event.what else ''}"
                )

    def _tell(self, event: Event, level: Level, text: str) -> None:
        self.lines.append(EventLine(event.time, level, escape_control(text)))

    def _begin_session(self, time: float) -> None:
        """Forget what only concerns the process that has ended."""
        self.session_started = time
        self.failure = self.ending = None
        self.is_stop_requested = self.is_lost = False
        self.paused_since = None
        self.pending_commands.clear()
        self.unprotected_since = None
        self._phases.clear()
        self._num_rejected = 0
        self._recent_seconds_per_step = self._step_logged_at = None

    def _start(self, event: events.RunStarted) -> None:
        if self.failure is not None or self.ending is not None:
            self._begin_session(event.time)
        self.run_id, self.pid, self.host = event.run_id, event.pid, event.host
        self.device, self.seed = event.device, event.seed
        self.tuitrain_version, self.versions = event.tuitrain_version, event.versions
        if event.resumed_from is not None:
            self._go_back_to(event.resumed_from)
        self._tell(event, "·", describe(event, total_steps=None))

    def _go_back_to(self, step: int) -> None:
        """Forget the branch that a resume abandons."""
        if self.step > step:
            self._forget_losses()
            self.loss = self.grad_norm = None
        self.checkpoints = [saved for saved in self.checkpoints if saved.step <= step]
        self.samples = [saved for saved in self.samples if saved.step <= step]
        self.step = self._logged_step = step
        self.epoch = step // self.steps_per_epoch if self.steps_per_epoch else 0

    def _progress(self, event: events.PhaseProgressed) -> None:
        if self.phase is not None and self.phase.name == event.phase:
            self.phase.progress(event.done, event.total, event.seconds)
            self.phase.detail = event.detail

    def _finish_phase(self, event: events.PhaseFinished) -> None:
        self._phases = [phase for phase in self._phases if phase.name != event.phase]
        self.last_phase = self._phases[-1].name if self._phases else ""
        if event.phase in ("sample", "save"):
            self._step_logged_at = event.time
            return  # SamplesSaved and CheckpointSaved tell more
        detail = f": {event.detail}" if event.detail else ""
        self._tell(event, "·", f"{phase_name(event.phase)} done in {format_short(event.seconds)}{detail}")

    def _know_dataset(self, event: events.DatasetScanned) -> None:
        self.buckets, self.num_images, self.num_skipped = event.buckets, event.num_images, event.num_skipped
        self.total_steps, self.steps_per_epoch = event.total_steps, event.steps_per_epoch
        self.num_epochs = event.num_epochs
        if self._num_rejected > NUM_REJECTED_TOLD:
            self._tell(event, "!", f"and {self._num_rejected - NUM_REJECTED_TOLD} more pictures skipped: see the log")
        self._tell(
            event,
            "·",
            f"{event.num_images} pictures in {len(event.buckets)} size{'' if len(event.buckets) == 1 else 's'}: "
            f"{event.total_steps} steps, "
            f"{event.num_epochs} epochs of {event.steps_per_epoch}",
        )

    def _reject(self, event: events.ImageRejected) -> None:
        self._num_rejected += 1
        if self._num_rejected <= NUM_REJECTED_TOLD:
            self._tell(event, "!", f"skipped {event.path}: {event.reason}")

    def _receive(self, event: events.CommandReceived) -> None:
        self.pending_commands.append(event.command)
        self.is_stop_requested |= event.command in ("stop", "discard")
        self._tell(event, "·", f"{event.command} asked for")

    def _end(self, event: RunFinished | RunFailed) -> None:
        self.step = max(self.step, event.step)
        self._phases.clear()
        self.pending_commands.clear()
        self.paused_since = None

    def _log_step(self, event: StepLogged) -> None:
        self._num_steps_logged = num_steps = max(event.step - self._logged_step, 1)
        self._logged_step = event.step
        self.step, self.epoch = event.step, event.epoch
        self.loss, self.lr, self.grad_norm, self.d = event.loss, event.lr, event.grad_norm, event.d
        self.seconds_per_step, self.images_per_second = event.seconds_per_step, event.images_per_second
        self.data_seconds = event.data_seconds
        self.memory_allocated_gib = event.allocated_memory_gib
        self.memory_reserved_gib = event.reserved_memory_gib
        self.memory_peak_gib = event.peak_memory_gib
        self._step_logged_at = event.time
        if math.isfinite(event.seconds_per_step):
            recent, weight = self._recent_seconds_per_step, 1 - SPEED_SMOOTHING**num_steps
            speed = event.seconds_per_step
            self._recent_seconds_per_step = speed if recent is None else recent + weight * (speed - recent)
        self._tell_spike(event)

    def _forget_losses(self) -> None:
        self._loss_mean, self._loss_mean_square = Smoothed(DEFAULT_SMOOTHING), Smoothed(DEFAULT_SMOOTHING)

    def _tell_spike(self, event: StepLogged) -> None:
        loss, mean = event.loss, self._loss_mean.mean
        is_judged = len(self._loss_mean.values) >= NUM_LOSSES_TO_JUDGE or not math.isfinite(loss)
        self._logs_since_spike += 1
        if is_judged and is_spike(loss, mean, self._loss_mean_square.mean):
            if self._logs_since_spike >= LOGS_BETWEEN_SPIKE_LINES:
                words = f" (ema {mean:.3g})" if math.isfinite(mean) else ""
                self._tell(event, "!", f"loss spike {loss:.3g} @{event.step}{words}, continuing")
            self._logs_since_spike = 0
        self._loss_mean.extend([loss])
        self._loss_mean_square.extend([loss * loss])


def format_short(seconds: float) -> str:
    """3.1 s below a minute, M:SS above."""
    return f"{seconds:.1f} s" if seconds < 60 else format_duration(seconds)
