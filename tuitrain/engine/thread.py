"""The engine in a thread of this process; imports no torch until the thread runs."""

import threading

from tuitrain.config.schema import TrainConfig
from tuitrain.engine.launch import train_run
from tuitrain.engine.resume import ResumePoint
from tuitrain.runs.control import CommandQueue
from tuitrain.runs.run import Run


class TrainerThread(threading.Thread):
    """Trains one run; what happens reaches others through the run's journal alone.

    Not a daemon: a process that ends waits for it, and for the checkpoint it may be writing.

    Args:
        control: polled between steps; `Command.STOP` ends the thread in good order.
        resume: where to go on, from `resume_run`; None begins.

    Attributes:
        exit_code: after the end, the process's exit status.
        failure: what kept the run from being journalled, if anything did.
    """

    def __init__(
        self, config: TrainConfig, run: Run, *, control: CommandQueue, resume: ResumePoint | None = None
    ) -> None:
        super().__init__(name="trainer", daemon=False)
        self.config = config
        self.run_to_train = run
        self.control = control
        self.resume = resume
        self.exit_code = 1  # until the end says otherwise
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            self.exit_code = train_run(self.config, self.run_to_train, self.control.poll, resume=self.resume)
        except Exception as error:  # noqa: BLE001  the run is locked, or its journal cannot be written: no event tells
            self.failure = error
