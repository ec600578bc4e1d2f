"""What ended a run, in words and as a name for programs; imports no torch, which may be what failed."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tuitrain.errors import EXIT_DEVICE_LOST, TuitrainError
from tuitrain.runs.checkpoints import checkpoint_folders, step_of_name
from tuitrain.runs.events import ErrorName
from tuitrain.runs.journal import DISK_FULL_ERRNOS
from tuitrain.runs.run import Run

OUT_OF_MEMORY_HINT = (
    "set gradient_checkpointing, cache_vae_outputs and cache_text_encoder_outputs to true, or lower train_batch_size "
    "and raise gradient_accumulation_steps by the same factor"
)
DEVICE_HINT = (
    "start tuitrain anew, for this process can use the GPU no more; `tuitrain doctor` checks the GPU, its driver and "
    "PyTorch; a fault that comes back after a restart is the card's"
)
LIBRARY_HINT = "install tuitrain and its libraries again, and see what `tuitrain doctor` says"

# PyTorch's and the driver's own words, in RuntimeError and its subclasses.
_OUT_OF_MEMORY_WORDS = re.compile(r"out of memory|can't allocate memory|STATUS_ALLOC_FAILED", re.IGNORECASE)
_DEVICE_WORDS = re.compile(
    r"CUDA (driver )?error|CUDA driver|NVIDIA driver|no kernel image|cuDNN|CUBLAS|cusolver|NCCL|HIP error|"
    r"CUDA-capable device|device-side assert",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FailureWords:
    """An error for the journal; the fields are those of RunFailed, `name` is its `error`."""

    name: ErrorName
    what: str
    hint: str
    where: str
    exit_code: int


def describe_failure(error: BaseException, run_folder: Path) -> FailureWords:
    """What ended a run.

    Args:
        error: with its causes: an error of tuitrain tells its own story, and what lies below decides its name.
        run_folder: the disk that is looked at when one is full; its checkpoints are what is saved, its log.txt has the
            traceback.
    """
    if is_device_lost(error):
        what = f"the GPU failed: {_first_line(error)}; {_describe_last_saved(run_folder)}"
        return FailureWords("DeviceError", what, DEVICE_HINT, "", EXIT_DEVICE_LOST)
    if isinstance(error, TuitrainError):
        first, *others = error.problems
        return FailureWords(
            name=_name_of(error),
            what="\n".join([first.what, *map(str, others)]),
            hint=first.hint,
            where=first.where,
            exit_code=error.exit_code,
        )
    if is_disk_full(error):
        free_gib = shutil.disk_usage(run_folder).free / 2**30
        what = f"the disk is full: {error} ({free_gib:.1f} GiB are free in {run_folder})"
        hint = "make room, or set base_output_dir and cache_dir to another disk"
        return FailureWords("DiskFull", what, hint, "", 1)
    if is_out_of_memory(error):
        of_what = "the computer" if _is_of_host(error) else "the GPU"
        return FailureWords("OutOfMemory", f"{of_what} is out of memory: {error}", OUT_OF_MEMORY_HINT, "", 1)
    if isinstance(error, ImportError):
        return FailureWords("LibraryError", f"a library cannot be imported: {error}", LIBRARY_HINT, "", 1)
    hint = f"this looks like a fault of tuitrain; {run_folder / 'log.txt'} has the traceback to report"
    return FailureWords("Bug", f"{type(error).__name__}: {error}", hint, "", 1)


def is_disk_full(error: BaseException) -> bool:
    """Whether what lies below `error` is a full disk, an exceeded quota or a limit on the size of files."""
    return any(isinstance(cause, OSError) and cause.errno in DISK_FULL_ERRNOS for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _name_of(error: TuitrainError) -> ErrorName:
    if is_disk_full(error):
        return "DiskFull"
    if any(map(is_out_of_memory, _causes(error))):
        return "OutOfMemory"
    names: tuple[ErrorName, ...] = get_args(ErrorName)
    return next((name for name in names if name == type(error).__name__), "TuitrainError")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` itself says so: MemoryError, torch.OutOfMemoryError, which is a RuntimeError, and what
    bitsandbytes and PyTorch's CPU allocator raise.
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY_WORDS.search(str(error)))


def is_device_lost(error: BaseException) -> bool:
    """Whether the GPU or its driver failed below `error`; then no further call of this process to it can succeed."""
    return any(
        isinstance(cause, RuntimeError) and bool(_DEVICE_WORDS.search(str(cause))) and not is_out_of_memory(cause)
        for cause in _causes(error)
    )


def _first_line(error: BaseException) -> str:
    """Without the advice that PyTorch adds to the driver's words."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(". ")


def _describe_last_saved(run_folder: Path) -> str:
    """By what stands on the disk: a save that was under way does not count."""
    steps = [step_of_name(folder.name) for folder in checkpoint_folders(Run(run_folder).checkpoints_dir)]
    known = [step for step in steps if step is not None]
    return f"the last saved step is {max(known)}" if known else "no step was saved"


def _is_of_host(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
