"""The engine in a thread of this process; imports no torch until the thread runs."""

import threading

from tuitrain.config.schema import TrainConfig
from tuitrain.engine.launch import train_run
from tuitrain.runs.control import CommandQueue
from tuitrain.runs.run import Run


class TrainerThread(threading.Thread):
    """Trains one run; what happens reaches others through the run's journal alone.

    Not a daemon: a process that ends waits for it, and for the checkpoint it may be writing.

    Args:
        control: polled between steps; `Command.STOP` ends the thread in good order.
    """

    def __init__(self, config: TrainConfig, run: Run, *, control: CommandQueue) -> None:
        super().__init__(name="trainer", daemon=False)
        self.config = config
        self.run_to_train = run
        self.control = control
        self.exit_code = 1  # until the end says otherwise

    def run(self) -> None:
        self.exit_code = train_run(self.config, self.run_to_train, self.control.poll)
