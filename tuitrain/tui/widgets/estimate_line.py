"""What the run of a config would take, made anew a moment after each change, in a thread; knows no single setting."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text
from textual.timer import Timer
from textual.widgets import Static
from textual.worker import Worker, WorkerState

from tuitrain.errors import TuitrainError
from tuitrain.tui.config_rows import describe_estimate
from tuitrain.tui.document import ConfigDocument

if TYPE_CHECKING:
    from tuitrain.config.schema import TrainConfig
    from tuitrain.plan import Estimate

WAIT_SECONDS = 0.4
"""An estimate is made when nothing was changed for so long."""


class EstimateLine(Static):
    """Two lines: the estimate, and what the preset says of time and memory."""

    DEFAULT_CSS = """
    EstimateLine { height: 2; color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self) -> None:
        super().__init__(markup=False)
        self._document: ConfigDocument | None = None
        self._config: TrainConfig | None = None
        self._found: Estimate | str | None = None
        self._timer: Timer | None = None
        self._sizes: dict[Path, tuple[int, int] | None] = {}
        self._shown = Text()

    def show_document(self, document: ConfigDocument) -> None:
        """Tell of `document` as it is now, at once where that is known."""
        config = document.config
        if self._document is not document or self._config is not config:
            self._document, self._config, self._found = document, config, None
            if self._timer is not None:
                self._timer.stop()
            if config is not None:
                self._timer = self.set_timer(WAIT_SECONDS, partial(self._start, config))
        self._draw()

    def _start(self, config: "TrainConfig") -> None:
        work = partial(_estimate, config, self._sizes)
        self.run_worker(work, thread=True, exclusive=True, exit_on_error=False)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        event.stop()
        if event.state == WorkerState.ERROR:
            assert event.worker.error is not None
            raise event.worker.error
        if event.state == WorkerState.SUCCESS:
            assert event.worker.result is not None
            config, found = event.worker.result
            if config is self._config:
                self._found = found
                self._draw()

    def _draw(self) -> None:
        assert self._document is not None
        text = describe_estimate(self._document, self._found)
        if text != self._shown:
            self._shown = text
            self.update(text)


def _estimate(config: "TrainConfig", sizes: dict[Path, tuple[int, int] | None]) -> "tuple[TrainConfig, Estimate | str]":
    """(the config, its estimate or why there is none)."""
    from tuitrain.plan import estimate_run  # Pillow and numpy: 0.2 s

    try:
        return config, estimate_run(config, sizes)
    except TuitrainError as error:
        return config, str(error.problems[0])
    except OSError as error:
        return config, f"{error.filename}: {error.strerror}"
