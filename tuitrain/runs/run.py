"""A Run: one folder that holds all there is to know of one training; knows nothing of what trains.

<base_output_dir>/<Unix time>/
    config.yaml config.json     the resolved config
    journal.jsonl               the Events; the file that makes a folder a run
    lock                        who trains it: pid, host, since
    control/                    Commands from other processes
    checkpoints/ validation/ logs/ log.txt
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """The places inside one run's folder.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def config_path(self) -> Path:
        """The resolved config, YAML."""
        return self.path / "config.yaml"

    @property
    def journal_path(self) -> Path:
        """The Events, one line each."""
        return self.path / "journal.jsonl"

    @property
    def log_path(self) -> Path:
        """Free text for humans: tracebacks, messages of libraries."""
        return self.path / "log.txt"

    @property
    def lock_path(self) -> Path:
        """Held while a process trains this run."""
        return self.path / "lock"

    @property
    def control_dir(self) -> Path:
        """Commands from other processes."""
        return self.path / "control"

    @property
    def checkpoints_dir(self) -> Path:
        """Checkpoints, one folder each."""
        return self.path / "checkpoints"

    @property
    def validation_dir(self) -> Path:
        """Validation images."""
        return self.path / "validation"

    @property
    def tensorboard_dir(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "logs"
