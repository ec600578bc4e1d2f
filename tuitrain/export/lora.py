"""Makes a LoRA of what a training changed: the difference of two UNets, cut layer by layer to a low rank.

Both models are read tensor by tensor, once (twice where a budget decides the ranks). The factors wait in a file without
a name, so that memory holds one layer at a time; the LoRA is written when all are there, or not at all.
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tuitrain.atomic import write_text_atomic
from tuitrain.engine.base_model import few
from tuitrain.engine.quiet import quiet_libraries
from tuitrain.engine.sdxl import build_network
from tuitrain.engine.weights import LazyTensor, write_safetensors
from tuitrain.errors import ConfigError, ExportError
from tuitrain.export.device import lack_of_memory_told, open_device
from tuitrain.export.lora_file import FactorStore, lora_metadata, lora_num_bytes, lora_tensors
from tuitrain.export.lora_modules import BlockModule, block_modules, lora_key
from tuitrain.export.lora_report import ChangeSummary, GroupQuality, LoraReport, RankChoice, report_path
from tuitrain.export.low_rank import (
    Spectrum,
    all_energies,
    cut_to_rank,
    kept_energy,
    ranks_for_energy,
    ranks_for_size,
    with_guessed_tail,
)
from tuitrain.export.progress import Progress, WorkCount, no_progress
from tuitrain.export.request import check_target
from tuitrain.export.target import writing
from tuitrain.export.trained_unet import (
    TrainedUnet,
    base_name,
    check_origin,
    lazy_part,
    num_checked_bytes,
    open_base,
    open_trained_unet,
    scheduler_config_of,
)
from tuitrain.runs.checkpoints import reading

SUSPICIOUS_CHANGE = 0.2
"""||D|| / ||W|| above which the base model is probably another one; the demo, at a high rate, comes to 0.17."""

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""Of a LoRA file, by name."""

_NORM_PIECE = 4096
_SUSPICIOUS_UNCOVERED = 0.1
_TABLE_RANKS = (4, 8, 16, 32, 64, 128, 256)
_TABLE_ENERGIES = (0.5, 0.7, 0.8, 0.9, 0.95)

Ranks = dict[BlockModule, int]


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """What kind of LoRA.

    Args:
        ranks: of every layer, one file for each; at most as many as a layer has rows or columns.
        conv_rank: of the convolutions over more than one pixel, instead.
        energy: in place of ranks: the share of the change to keep, 0 to 1, with ranks where they keep most.
        max_bytes: in place of ranks: the size of the file, with ranks where they keep most.
        dtype: of the file.
        clamp_quantile: cut both factors at this quantile of their entries as older tools do, which loses energy.
        with_extras: write norms, biases and top-level modules to a second file.

    Raises:
        ConfigError: two of them contradict each other, or one is out of bounds.
    """

    ranks: tuple[int, ...] = (32,)
    conv_rank: int | None = None
    energy: float | None = None
    max_bytes: int | None = None
    dtype: torch.dtype = torch.float16
    clamp_quantile: float | None = None
    with_extras: bool = False

    def __post_init__(self) -> None:
        if not self.ranks or min(*self.ranks, self.conv_rank or 1) < 1 or self.conv_rank == 0:
            raise ConfigError("a rank must be at least 1", hint="try --rank 32")
        if self.energy is not None and not 0 < self.energy < 1:
            raise ConfigError(f"the energy to keep is {self.energy:g}, it must lie between 0 and 1")
        if self.energy is not None and self.max_bytes is not None:
            raise ConfigError("both an energy and a size are given", hint="give one of --energy and --max-size")
        if self.has_budget and self.conv_rank is not None:
            raise ConfigError("a budget chooses the ranks of convolutions too", hint="leave --conv-rank out")
        if self.clamp_quantile is not None and not 0.5 < self.clamp_quantile <= 1:
            raise ConfigError(f"the clamp quantile is {self.clamp_quantile:g}, it must lie above 0.5 and at most at 1")
        if self.clamp_quantile is not None and len(self.ranks) > 1:
            raise ConfigError("clamped factors hold for one rank", hint="give one --rank with --clamp-quantile")

    @property
    def has_budget(self) -> bool:
        """Whether `energy` or `max_bytes` decides the ranks."""
        return self.energy is not None or self.max_bytes is not None

    @property
    def budget_in_words(self) -> str:
        """`energy 0.9` or the size."""
        return f"energy {self.energy:g}" if self.energy is not None else f"at most {self.max_bytes:,} bytes"

    def uniform(self, modules: Collection[BlockModule], rank: int) -> Ranks:
        """`rank` for every module, as far as its shape and `conv_rank` allow."""
        conv_rank = self.conv_rank or rank
        return {one: min(conv_rank if one.is_spatial else rank, one.m, one.n) for one in modules}


def extract_lora(
    checkpoint: Path,
    out: Path,
    options: LoraOptions,
    *,
    base: str | None = None,
    allow_other_base: bool = False,
    device: torch.device | str | None = None,
    progress: Progress = no_progress,
) -> list[LoraReport]:
    """Write what `checkpoint` learned as a LoRA to `out`, and a report beside it.

    Args:
        checkpoint: a published checkpoint, or a UNet folder in diffusers layout.
        out: `NAME.safetensors`; with several ranks they become `NAME-rank8.safetensors` and so on. Folders above it
            are made.
        base: a folder, file or Hub name; None is the model that the checkpoint was trained from.
        allow_other_base: warn of a base that is not the checkpoint's, instead of refusing it.
        device: where the mathematics is done; None is CUDA where torch can use it.
        progress: see `Progress`.

    Returns:
        A report for each file.

    Raises:
        ConfigError: a target exists, there is no such checkpoint, or nothing tells its base.
        CheckpointError: the checkpoint's description is damaged, or it is being deleted.
        DeviceError: there is no such device, or its memory is too small.
        ExportError: nothing was changed, a value is not finite, the size is too small, the checkpoint is damaged, or
            the disk is full.
        ModelError: one of the UNets is incomplete or not as its config says, or the base is not the checkpoint's.
    """
    files = _Files.of(out, options)
    for path in files.all():
        check_target(path, checkpoint)
    with _open_deltas(checkpoint, base, device) as deltas:
        work = WorkCount(deltas.num_checked_bytes + deltas.num_bytes() * (2 if options.has_budget else 1), progress)
        origin = _check_origin(deltas, base, work, allow_other_base=allow_other_base)
        with writing(out), _all_or_none() as written:
            if options.has_budget:
                survey, loras = _cut_to_budget(deltas, files, options, work)
            else:
                survey, loras = _cut_to_ranks(deltas, files, options, work)
            return list(_write_all(files, loras, survey, origin, options, work, written))


def survey_change(
    checkpoint: Path,
    options: LoraOptions,
    *,
    base: str | None = None,
    allow_other_base: bool = False,
    device: torch.device | str | None = None,
    progress: Progress = no_progress,
) -> ChangeSummary:
    """What ranks and budgets would give, from all singular values; writes nothing. See `extract_lora`."""
    with _open_deltas(checkpoint, base, device) as deltas:
        work = WorkCount(deltas.num_checked_bytes + deltas.num_bytes(), progress)
        origin = _check_origin(deltas, base, work, allow_other_base=allow_other_base)
        survey = _survey(deltas, lambda _, D: all_energies(D), work, keep_extras=False)
        return _summary(survey, origin, options)


def _cut_to_budget(
    deltas: "_Deltas", files: "_Files", options: LoraOptions, work: WorkCount
) -> "tuple[_Survey, list[_Lora]]":
    """Two readings: one for all singular values, which decide the ranks, one for the factors."""
    survey = _survey(deltas, lambda _, D: all_energies(D), work, keep_extras=options.with_extras)
    chosen = _ranks_for_budget(survey, options)
    cutter = _Cutter(files.folder, chosen, options)
    names = [module.weight for module in chosen]
    work.begin("cut", len(names))
    work.add_bytes(deltas.num_bytes() - deltas.num_bytes(names))  # what the budget leaves out is not read again
    for delta in deltas.each(names, work):
        module = deltas.modules[delta.name]
        cutter(module, delta.D.reshape(module.m, module.n))
    return survey, [_Lora(files.loras[0], options.budget_in_words, None, chosen, cutter)]


def _cut_to_ranks(
    deltas: "_Deltas", files: "_Files", options: LoraOptions, work: WorkCount
) -> "tuple[_Survey, list[_Lora]]":
    """One reading, for the factors of the largest rank, whose beginnings are those of the lower ones."""
    cutter = _Cutter(files.folder, options.uniform(deltas.modules.values(), max(options.ranks)), options)
    survey = _survey(deltas, cutter, work, keep_extras=options.with_extras)
    return survey, [
        _Lora(path, f"rank {rank}", rank, options.uniform(survey.spectra, rank), cutter)
        for path, rank in zip(files.loras, options.ranks, strict=True)
    ]


def _write_all(
    files: "_Files",
    loras: "Sequence[_Lora]",
    survey: "_Survey",
    origin: "_Origin",
    options: LoraOptions,
    work: WorkCount,
    written: list[Path],
) -> Iterator[LoraReport]:
    """Write the LoRAs, each with its report, and before them the extras; `written` lists what is there."""
    change = _summary(survey, origin, options)
    extras = files.extras if survey.extras else None
    if extras is not None:
        write_safetensors(extras, survey.extras.items(), dtype=options.dtype)
        written.append(extras)
    for lora in loras:
        _write_lora(lora, origin, options, work)
        written.append(lora.path)
        report = _report(lora, extras, survey, change, options)
        write_text_atomic(report_path(lora.path), json.dumps(report.as_values(), indent=2) + "\n")
        written.append(report_path(lora.path))
        yield report
        work.add_bytes(0)  # the last moment to cancel


@dataclass(frozen=True)
class _Origin:
    """Where the change comes from.

    Args:
        trained: the checkpoint.
        base_model: its base in words.
        prediction_type: "epsilon" or "v_prediction".
        warnings: what does not fit, as sentences.
    """

    trained: TrainedUnet
    base_model: str
    prediction_type: str
    warnings: tuple[str, ...]


def _check_origin(deltas: "_Deltas", base: str | None, work: WorkCount, *, allow_other_base: bool) -> _Origin:
    trained = deltas.trained
    warnings = check_origin(trained, deltas.base, work, allow_other_base=allow_other_base)
    prediction_type = str(scheduler_config_of(trained, deltas.base)["prediction_type"])
    return _Origin(trained, base_name(trained, base), prediction_type, warnings)


# ---- the difference of the two models


class _Deltas:
    """D = W_trained - W_base of every tensor, in float32.

    Args:
        checkpoint: has the trained UNet.
        base: see `extract_lora`.
        device: of the differences.
    """

    def __init__(self, checkpoint: Path, base: str | None, device: torch.device) -> None:
        quiet_libraries()
        self.device = device
        self.trained = open_trained_unet(checkpoint)
        self.base = open_base(self.trained, base)
        self.config = self.trained.part.config
        self.tensors = lazy_part(self.trained.part)
        largest = max(tensor.numel() for tensor in self.tensors.values())
        self._buffers = torch.empty(2, largest, dtype=torch.float32, device=self.device)
        self._base_tensors = lazy_part(self.base.parts["unet"])
        self._check_shapes(base_name(self.trained, base))
        with torch.device("meta"):
            unet = build_network("unet", self.config)
        self.modules = {module.weight: module for module in block_modules(unet, self.config)}

    def num_bytes(self, names: Iterable[str] | None = None) -> int:
        """What both models hold of some tensors, or of all."""
        return sum(map(self._num_bytes, self.tensors if names is None else names))

    @property
    def num_checked_bytes(self) -> int:
        """What comparing both with the checkpoint's manifest reads."""
        return num_checked_bytes(self.trained, self.base)

    def _num_bytes(self, name: str) -> int:
        return sum(one[name].numel() * one[name].dtype.itemsize for one in (self.tensors, self._base_tensors))

    def _check_shapes(self, base_model: str) -> None:
        names = sorted(self.tensors.keys() | self._base_tensors.keys())
        differing = [name for name in names if _shape(self.tensors, name) != _shape(self._base_tensors, name)]
        if differing:
            raise ExportError(
                f"the UNet in {self.trained.path} and that of {base_model} are two architectures:"
                f" {len(differing)} of {len(names)} tensors differ in shape ({few(differing)})",
                hint="give the base model it was trained from with --base MODEL",
            )

    def each(self, names: Iterable[str], work: WorkCount) -> Iterator["_Delta"]:
        """The differences of some tensors.

        Raises:
            ExportError: one of the two is not finite.
        """
        for name in names:
            yield self._delta(name)
            work.add(self._num_bytes(name))

    def _delta(self, name: str) -> "_Delta":
        # Into two buffers, as fresh memory for each tensor costs as much as its reading; and never in place: what is
        # read may be the mapped file itself, and writing to it copies it into memory.
        shape = self.tensors[name].shape
        W, D = (buffer[: math.prod(shape)].view(shape) for buffer in self._buffers)
        W.copy_(self._base_tensors[name].read())
        torch.sub(self.tensors[name].read().to(self.device), W, out=D)
        delta = _Delta(name, D, energy=squared_norm(D), weight_energy=squared_norm(W))
        if not math.isfinite(delta.energy):
            raise ExportError(
                f"{name} holds NaN or infinity in the trained or the base model", hint="take an earlier checkpoint"
            )
        return delta


@contextmanager
def _open_deltas(checkpoint: Path, base: str | None, device: torch.device | str | None) -> Iterator[_Deltas]:
    """The differences, while `checkpoint` is kept from being deleted; see `extract_lora`."""
    opened = open_device(device)
    with reading(checkpoint), lack_of_memory_told(opened, "a layer", "end what else uses it, or --device cpu"):
        yield _Deltas(checkpoint, base, opened)


@dataclass(frozen=True)
class _Delta:
    """The difference of a tensor.

    Args:
        name: in diffusers.
        D: float32, in the tensor's shape; written over by the next difference.
        energy: ||D||^2.
        weight_energy: ||W_base||^2.
    """

    name: str
    D: Tensor
    energy: float
    weight_energy: float


def _shape(tensors: Mapping[str, LazyTensor], name: str) -> tuple[int, ...] | None:
    return tensors[name].shape if name in tensors else None


def squared_norm(tensor: Tensor) -> float:
    """||.||^2 of a float32 tensor; a host-device sync.

    Piece by piece, the pieces summed in float64: one sum in float32 is 0.3 % wrong over 30 million values.
    """
    flat = tensor.reshape(-1)
    whole = len(flat) // _NORM_PIECE * _NORM_PIECE
    pieces = torch.linalg.vector_norm(flat[:whole].view(-1, _NORM_PIECE), dim=1).double().square().sum()
    return float(pieces + flat[whole:].double().square().sum())


@dataclass
class _Survey:
    """What was found out about every change.

    Args:
        device: what calculated it.
        spectra: of each changed module; beyond `num_known` the values are guessed.
        totals: ||D||^2 of each changed module.
        unchanged: modules without a change.
        weights: ||W||^2 of all block modules.
        uncovered: ||D||^2 of everything else.
        extras: the changes of everything else by the names of a LoRA file, on the CPU.
        dtypes: of the trained tensors.
    """

    device: str
    spectra: dict[BlockModule, Spectrum] = field(default_factory=dict)
    num_known: dict[BlockModule, int] = field(default_factory=dict)
    totals: dict[BlockModule, float] = field(default_factory=dict)
    unchanged: list[BlockModule] = field(default_factory=list)
    weights: float = 0.0
    uncovered: float = 0.0
    extras: dict[str, Tensor] = field(default_factory=dict)
    dtypes: set[torch.dtype] = field(default_factory=set)

    @property
    def total(self) -> float:
        """||D||^2 of all changed modules."""
        return sum(self.totals.values())


def _survey(
    deltas: _Deltas, measure: Callable[[BlockModule, Tensor], Tensor], work: WorkCount, *, keep_extras: bool
) -> _Survey:
    """Look at every change once.

    Args:
        measure: gives the first s_i^2 of a module's D (m, n), or all.
        keep_extras: keep the changes that no LoRA covers.

    Raises:
        ExportError: nothing was changed, or a value is not finite.
    """
    survey = _Survey(str(deltas.device), dtypes={tensor.dtype for tensor in deltas.tensors.values()})
    patterns: dict[tuple[object, ...], Tensor] = {}
    work.begin("unet", len(deltas.tensors))
    for delta in deltas.each(deltas.tensors, work):
        module = deltas.modules.get(delta.name)
        if module is None:
            survey.uncovered += delta.energy
            if keep_extras and delta.energy > 0:
                suffix = "diff_b" if delta.name.endswith(".bias") else "diff"
                survey.extras[f"{lora_key(delta.name, deltas.config)}.{suffix}"] = delta.D.clone().cpu()
            continue
        survey.weights += delta.weight_energy
        if delta.energy == 0:
            survey.unchanged.append(module)
            continue
        matrix = delta.D.reshape(module.m, module.n)
        energies = measure(module, matrix).cpu()
        survey.num_known[module] = len(energies)
        if len(energies) < min(module.m, module.n):
            # One layer of each kind and number of values is taken apart whole and tells how the others may go on.
            kind = (module.group, min(module.m, module.n))
            if kind not in patterns:
                patterns[kind] = all_energies(matrix).cpu()
            energies = with_guessed_tail(energies, delta.energy, patterns[kind])
        survey.spectra[module] = Spectrum(energies, module.m + module.n)
        survey.totals[module] = delta.energy
    if not survey.totals:
        raise ExportError(
            "nothing was changed: every layer that a LoRA covers is equal in the checkpoint and the base model",
            hint="is --base the trained model itself, or was the learning rate 0?",
        )
    return survey


# ---- the ranks


def _ranks_for_budget(survey: _Survey, options: LoraOptions) -> Ranks:
    if options.energy is not None:
        return ranks_for_energy(survey.spectra, options.energy * survey.total)
    max_bytes = options.max_bytes or 0
    ranks = ranks_for_size(survey.spectra, lambda ranks: lora_num_bytes(ranks, options.dtype) <= max_bytes)
    if not ranks:
        raise ExportError(f"not even one rank of one layer fits into {max_bytes:,} bytes", hint="raise --max-size")
    return ranks


class _Cutter:
    """Cuts the changes of modules to their ranks and keeps the factors.

    Args:
        folder: whose disk has room for the factors.
        ranks: of each module that may come.
    """

    def __init__(self, folder: Path, ranks: Ranks, options: LoraOptions) -> None:
        self.store = FactorStore(folder, ranks, options.dtype)
        self.clamped_energy: dict[BlockModule, float] = {}
        self._ranks = ranks
        self._clamp_quantile = options.clamp_quantile

    def __call__(self, module: BlockModule, D: Tensor) -> Tensor:
        """Keep the factors of D (m, n) and give the s_i^2 that came along, at least as many as the rank."""
        cut = cut_to_rank(D, self._ranks[module])
        if self._clamp_quantile is None:
            B, A = cut.balanced()
        else:
            B, A = cut.clamped(self._clamp_quantile)
            self.clamped_energy[module] = squared_norm(D) - squared_norm(D - B @ A)
        self.store.put(module, B, A)
        known = cut.s.square()
        return known if cut.energies is None else torch.cat((known, cut.energies[len(known) :]))


# ---- the files


@dataclass(frozen=True)
class _Lora:
    """A LoRA to be written.

    Args:
        path: of the file.
        choice: what was asked for, in words.
        rank: asked for, None where a budget decided.
        ranks: of its modules, in the order of the file.
        cutter: has the factors.
    """

    path: Path
    choice: str
    rank: int | None
    ranks: Ranks
    cutter: _Cutter

    def kept(self, spectra: Mapping[BlockModule, Spectrum], modules: Collection[BlockModule]) -> float:
        """The energy kept of `modules`."""
        if self.cutter.clamped_energy:
            return sum(self.cutter.clamped_energy.get(module, 0.0) for module in modules)
        return kept_energy(spectra, {module: self.ranks[module] for module in modules if module in self.ranks})


@dataclass(frozen=True)
class _Files:
    """The files of an extraction.

    Args:
        loras: one for each rank or one for the budget.
        extras: what no LoRA covers, None where that is not wanted.
    """

    loras: tuple[Path, ...]
    extras: Path | None

    @classmethod
    def of(cls, out: Path, options: LoraOptions) -> "_Files":
        """By the name that the user gave."""
        if out.suffix != ".safetensors":
            raise ConfigError(f"{out} is not the name of a LoRA, it must end in .safetensors")
        is_one = options.has_budget or len(options.ranks) == 1
        loras = [out] if is_one else [out.with_name(f"{out.stem}-rank{rank}.safetensors") for rank in options.ranks]
        extras = out.with_name(f"{out.stem}-extras.safetensors") if options.with_extras else None
        return cls(tuple(loras), extras)

    @property
    def folder(self) -> Path:
        return self.loras[0].parent

    def all(self) -> tuple[Path, ...]:
        """Reports included."""
        return (*self.loras, *map(report_path, self.loras), *([self.extras] if self.extras else []))


@contextmanager
def _all_or_none() -> Iterator[list[Path]]:
    """Yield a list for the files as they are written; an error deletes them again."""
    written: list[Path] = []
    try:
        yield written
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _write_lora(lora: _Lora, origin: _Origin, options: LoraOptions, work: WorkCount) -> None:
    tensors = lora_tensors(lora.cutter.store, lora.ranks, options.dtype)
    manifest = origin.trained.manifest
    metadata = lora_metadata(
        lora.path.stem,
        tensors,
        rank=lora.rank,
        conv_rank=options.conv_rank,
        prediction_type=origin.prediction_type,
        time=manifest.time if manifest is not None else None,
    )
    work.begin("write", len(tensors))
    write_safetensors(lora.path, tensors, dtype=options.dtype, metadata=metadata, written=lambda _: work.add(0))


# ---- the report


def _report(
    lora: _Lora, extras_path: Path | None, survey: _Survey, change: ChangeSummary, options: LoraOptions
) -> LoraReport:
    kept = _share(lora.kept(survey.spectra, survey.spectra), survey.total)
    by_group: dict[str, list[BlockModule]] = {}
    for module in survey.spectra:
        by_group.setdefault(module.group, []).append(module)
    return LoraReport(
        file=str(lora.path),
        extras_file=str(extras_path) if extras_path else None,
        num_bytes=lora.path.stat().st_size,
        dtype=str(options.dtype).removeprefix("torch."),
        choice=lora.choice,
        num_modules=len(lora.ranks),
        energy_kept=kept,
        relative_residual=math.sqrt(1 - kept),
        groups=tuple(_group(lora, survey, name, modules) for name, modules in by_group.items()),
        ranks={module.key: rank for module, rank in lora.ranks.items()},
        change=change,
    )


def _group(lora: _Lora, survey: _Survey, name: str, modules: Sequence[BlockModule]) -> GroupQuality:
    total = sum(survey.totals[module] for module in modules)
    kept = _share(lora.kept(survey.spectra, modules), total)
    ranks = [lora.ranks.get(module, 0) for module in modules]
    return GroupQuality(
        name, len(modules), _share(total, survey.total), kept, math.sqrt(1 - kept), min(ranks), max(ranks)
    )


def _summary(survey: _Survey, origin: _Origin, options: LoraOptions) -> ChangeSummary:
    relative_change = math.sqrt(survey.total / survey.weights) if survey.weights > 0 else math.inf
    uncovered_share = _share(survey.uncovered, survey.uncovered + survey.total)
    return ChangeSummary(
        checkpoint=str(origin.trained.path),
        base_model=origin.base_model,
        device=survey.device,
        num_changed=len(survey.totals),
        num_unchanged=len(survey.unchanged),
        relative_change=relative_change,
        uncovered_share=uncovered_share,
        choices=tuple(_choices(survey, options)),
        warnings=(*origin.warnings, *_warnings(survey, origin, relative_change, uncovered_share)),
    )


def _choices(survey: _Survey, options: LoraOptions) -> Iterator[RankChoice]:
    def choice(name: str, ranks: Ranks, *, is_estimate: bool) -> RankChoice:
        kept = _share(kept_energy(survey.spectra, ranks), survey.total)
        return RankChoice(name, kept, lora_num_bytes(ranks, options.dtype), is_estimate)

    for rank in sorted({*_TABLE_RANKS, *options.ranks}):
        ranks = options.uniform(survey.spectra, rank)
        is_estimate = any(ranks[module] > survey.num_known[module] for module in ranks)
        yield choice(f"rank {rank}", ranks, is_estimate=is_estimate)
    if all(survey.num_known[module] == len(spectrum.energies) for module, spectrum in survey.spectra.items()):
        for energy in _TABLE_ENERGIES:
            ranks = ranks_for_energy(survey.spectra, energy * survey.total)
            yield choice(f"energy {energy:g}", ranks, is_estimate=False)


def _warnings(survey: _Survey, origin: _Origin, relative_change: float, uncovered_share: float) -> Iterator[str]:
    if relative_change > SUSPICIOUS_CHANGE:
        yield (
            f"the change is {relative_change:.0%} of the weights, fine-tuning gives a few percent at most:"
            f" {origin.base_model} is probably not the model this was trained from"
        )
    if torch.bfloat16 in survey.dtypes:
        yield "the trained weights are stored in bfloat16, so a part of the change is rounding; save in float32"
    if uncovered_share > _SUSPICIOUS_UNCOVERED:
        yield f"{uncovered_share:.0%} of the change is in norms, biases and top-level modules, which no LoRA covers"


def _share(part: float, total: float) -> float:
    return min(max(part / total, 0.0), 1.0) if total > 0 else 0.0
