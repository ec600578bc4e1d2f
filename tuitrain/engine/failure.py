"""What ended a run, in words and as a name for programs; imports no torch, which may be what failed."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tuitrain.errors import TuitrainError
from tuitrain.runs.events import ErrorName
from tuitrain.runs.journal import DISK_FULL_ERRNOS

OUT_OF_MEMORY_HINT = (
    "set gradient_checkpointing, cache_vae_outputs and cache_text_encoder_outputs to true, or lower train_batch_size "
    "and raise gradient_accumulation_steps by the same factor"
)
DEVICE_HINT = (
    "`tuitrain doctor` checks the GPU, its driver and PyTorch; a fault that comes back after a restart is the card's"
)
LIBRARY_HINT = "install tuitrain and its libraries again, and see what `tuitrain doctor` says"

# PyTorch's and the driver's own words, in RuntimeError and its subclasses.
_OUT_OF_MEMORY_WORDS = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)
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


def describe_failure(error: Exception, run_folder: Path) -> FailureWords:
    """What ended a run.

    Args:
        error: with its causes: an error of tuitrain tells its own story, and what lies below decides its name.
        run_folder: the disk that is looked at when one is full; its log.txt has the traceback.
    """
    is_full = is_disk_full(error)
    if isinstance(error, TuitrainError):
        first, *others = error.problems
        return FailureWords(
            name="DiskFull" if is_full else _class_name(error),
            what="\n".join([first.what, *map(str, others)]),
            hint=first.hint,
            where=first.where,
            exit_code=error.exit_code,
        )
    if is_full:
        free_gib = shutil.disk_usage(run_folder).free / 2**30
        what = f"the disk is full: {error} ({free_gib:.1f} GiB are free in {run_folder})"
        hint = "make room, or set base_output_dir and cache_dir to another disk"
        return FailureWords("DiskFull", what, hint, "", 1)
    if _is_out_of_memory(error):
        of_what = "the computer" if _is_of_host(error) else "the GPU"
        return FailureWords("OutOfMemory", f"{of_what} is out of memory: {error}", OUT_OF_MEMORY_HINT, "", 1)
    if isinstance(error, RuntimeError) and _DEVICE_WORDS.search(str(error)):
        return FailureWords("DeviceError", f"the GPU failed: {error}", DEVICE_HINT, "", 1)
    if isinstance(error, ImportError):
        return FailureWords("LibraryError", f"a library cannot be imported: {error}", LIBRARY_HINT, "", 1)
    hint = f"this looks like a fault of tuitrain; {run_folder / 'log.txt'} has the traceback to report"
    return FailureWords("Bug", f"{type(error).__name__}: {error}", hint, "", 1)


def is_disk_full(error: Exception) -> bool:
    """Whether what lies below `error` is a full disk, an exceeded quota or a limit on the size of files."""
    return any(isinstance(cause, OSError) and cause.errno in DISK_FULL_ERRNOS for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _class_name(error: TuitrainError) -> ErrorName:
    names: tuple[ErrorName, ...] = get_args(ErrorName)
    return next((name for name in names if name == type(error).__name__), "TuitrainError")


def _is_out_of_memory(error: Exception) -> bool:
    """torch.OutOfMemoryError is a RuntimeError, and so is what bitsandbytes and PyTorch's CPU allocator raise."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY_WORDS.search(str(error)))


def _is_of_host(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
