"""What a LoRA keeps of a training, in numbers and as lines of a table; knows no tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class GroupQuality:
    """What is kept of one kind of layer.

    Args:
        name: "self-attention", "3x3 convolutions" and so on.
        num_modules: changed ones.
        share: of the energy of all covered layers, 0 to 1; energy is the squared Frobenius norm of the change.
        energy_kept: 0 to 1.
        relative_residual: ||D - BA|| / ||D||.
        min_rank: of its modules.
        max_rank: of its modules.
    """

    name: str
    num_modules: int
    share: float
    energy_kept: float
    relative_residual: float
    min_rank: int
    max_rank: int


@dataclass(frozen=True)
class RankChoice:
    """What another choice would give.

    Args:
        choice: "rank 64" or "energy 0.9".
        energy_kept: 0 to 1.
        num_bytes: of the file.
        is_estimate: the singular values beyond the computed ones are guessed from a sample of the layers.
    """

    choice: str
    energy_kept: float
    num_bytes: int
    is_estimate: bool


@dataclass(frozen=True)
class ChangeSummary:
    """What the training changed, whatever the rank.

    Args:
        checkpoint: it was taken from.
        base_model: it is the difference to.
        device: what calculated it.
        num_changed: block modules with a change.
        num_unchanged: block modules without.
        relative_change: ||D|| / ||W|| over the block modules.
        uncovered_share: of the energy of all changes, what lies in norms, biases and top-level modules.
        choices: what ranks and budgets give.
        warnings: what the user should know, as sentences.
    """

    checkpoint: str
    base_model: str
    device: str
    num_changed: int
    num_unchanged: int
    relative_change: float
    uncovered_share: float
    choices: tuple[RankChoice, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class LoraReport:
    """What one LoRA file holds and how good it is.

    Args:
        file: the LoRA.
        extras_file: its companion with norms, biases and top-level modules, or None.
        num_bytes: of the LoRA.
        dtype: of its tensors.
        choice: what was asked for: "rank 32", "energy 0.9", "at most 200000000 bytes".
        num_modules: in the file.
        energy_kept: of the covered layers' change, 0 to 1.
        relative_residual: ||D - BA|| / ||D|| over them.
        groups: the same by kind of layer.
        ranks: of each module, by its key.
        change: what the training changed.
    """

    file: str
    extras_file: str | None
    num_bytes: int
    dtype: str
    choice: str
    num_modules: int
    energy_kept: float
    relative_residual: float
    groups: tuple[GroupQuality, ...]
    ranks: dict[str, int]
    change: ChangeSummary

    def as_values(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def report_path(lora: Path) -> Path:
    """Beside the LoRA; not `NAME.json`, which InvokeAI and A1111 read as notes of the user."""
    return lora.with_name(f"{lora.stem}.report.json")


def describe_loras(reports: Sequence[LoraReport]) -> list[str]:
    """What one extraction wrote, for a person; the change itself is told by `describe_change`."""
    lines = [line for report in reports for line in _describe_lora(report)]
    extras = {report.extras_file: None for report in reports if report.extras_file is not None}
    return [*lines, *(f"wrote {extras_file}, for ComfyUI alone" for extras_file in extras)]


def _describe_lora(report: LoraReport) -> list[str]:
    return [
        f"wrote {report.file} ({report.num_bytes / 1e6:.1f} MB, {report.dtype}, {report.num_modules} layers,"
        f" {report.choice})",
        f"keeps {report.energy_kept:.1%} of the change's energy, relative residual {report.relative_residual:.3f}",
        *_table([_group_row(group) for group in report.groups]),
    ]


def describe_change(change: ChangeSummary) -> list[str]:
    """What was changed and what other choices would keep, for a person."""
    unchanged = f", {change.num_unchanged} unchanged" if change.num_unchanged else ""
    return [
        f"{change.num_changed} layers changed{unchanged}, by {change.relative_change:.2%} of their weights"
        f" (calculated on {change.device})",
        f"norms, biases and top-level modules, which no LoRA covers: {change.uncovered_share:.2%} of all change",
        *_table([_choice_row(choice) for choice in change.choices]),
    ]


def _group_row(group: GroupQuality) -> dict[str, str]:
    return {
        "layers": group.name,
        "number": str(group.num_modules),
        "share": f"{group.share:.1%}",
        "kept": f"{group.energy_kept:.1%}",
        "residual": f"{group.relative_residual:.3f}",
        "ranks": str(group.max_rank) if group.min_rank == group.max_rank else f"{group.min_rank}-{group.max_rank}",
    }


def _choice_row(choice: RankChoice) -> dict[str, str]:
    return {
        "choice": choice.choice,
        "kept": f"{'about ' if choice.is_estimate else ''}{choice.energy_kept:.1%}",
        "size": f"{choice.num_bytes / 1e6:.1f} MB",
    }


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Lines with aligned columns under their names."""
    names = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in names]
    lines = [names, *([row[name] for name in names] for row in rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
