"""Series of runs that never ran, for charts."""

import random

from tuitrain.runs.events import CheckpointSaved, Event, SamplesSaved, StepLogged
from tuitrain.runs.series import RunSeries

SPIKE_STEP = 1588


def step_logged(step: int, *, loss: float = 0.05) -> StepLogged:
    return StepLogged(
        time=float(step),
        step=step,
        epoch=0,
        loss=loss,
        lr=8e-5 * min(1.0, step / 100),
        grad_norm=0.3,
        seconds_per_step=0.5,
        images_per_second=8.0,
        peak_memory_gib=22.5,
    )


def falling_loss(num_steps: int, *, seed: int = 1) -> list[Event]:
    """A noisy loss that falls, one spike, a checkpoint every 250 steps, samples every 500."""
    noise = random.Random(seed)
    events: list[Event] = []
    for step in range(1, num_steps + 1):
        loss = 0.9 if step == SPIKE_STEP else (0.04 + 0.1 / (1 + step / 300)) * noise.lognormvariate(0, 0.25)
        events.append(step_logged(step, loss=loss))
        if step % 250 == 0:
            events.append(CheckpointSaved(time=0.0, step=step, epoch=0, name="", num_bytes=1, seconds=1.0))
        if step % 500 == 0:
            events.append(SamplesSaved(time=0.0, step=step, epoch=0, images=[], seconds=1.0))
    return events


def series_of(events: list[Event]) -> RunSeries:
    series = RunSeries()
    series.feed(events)
    return series
