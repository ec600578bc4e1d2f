"""Checkpoints: folders that are complete or not there, each described by its checkpoint.json; knows no tensors.

Who reads one holds it with `reading`, which keeps it from being deleted until the end.

Order of a save: all files, fsync, checkpoint.json, fsync, all read back from the disk and verified, rename to the final
name, fsync of the parent; only then are older ones deleted. Whatever dies in between leaves a `.tmp-*` folder that
nothing here lists, so what stands under a final name was verified once.
"""

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuitrain.atomic import atomic_dir, fsync_tree, remove_dir_atomic, write_text_atomic
from tuitrain.errors import CheckpointError, ConfigError, Problem
from tuitrain.runs.manifest import (
    ManifestFile,
    describe_files,
    find_damages,
    list_files,
    load_manifest,
    manifest_to_json,
)
from tuitrain.runs.states import STATE_DIR, has_state, verify_state

CheckpointKind = Literal["trained_only_diffusers", "full_diffusers"]
WeightsKind = Literal["trained", "ema"]

FORMAT_VERSION = 1
NAME_PATTERN = re.compile(r"checkpoint-epoch_\d{8,}-step_(\d{8,})")
"""Of a checkpoint's folder, see `checkpoint_name`."""

MANIFEST_NAME = "checkpoint.json"
PIN_NAME = ".pinned"
_NOT_PAYLOAD = {MANIFEST_NAME, PIN_NAME}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """What checkpoint.json says.

    Args:
        format_version: of this description.
        kind: what is inside: the UNet alone or a full pipeline.
        weights: the weights as trained, or their exponential moving average.
        step: completed optimizer steps.
        epoch: completed epochs.
        time: when it was written, Unix seconds.
        config_hash: sha256 of the run's canonical config.
        base_model: as named in the config.
        base_model_hash: content hash of its weights.
        prediction_type: "epsilon" or "v_prediction".
        save_dtype: of the weights, "float16", "bfloat16" or "float32".
        files: all files but this one and those of the state, which has a manifest of its own (states.py).
        last_losses: the last logged ones, oldest first.
        validation_images: of this step, relative to the run's folder.
    """

    format_version: int
    kind: CheckpointKind
    weights: WeightsKind
    step: int
    epoch: int
    time: float
    config_hash: str
    base_model: str
    base_model_hash: str
    prediction_type: str
    save_dtype: str
    files: list[ManifestFile]
    last_losses: list[float]
    validation_images: list[str]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Args:
        path: its folder.
        manifest: what its checkpoint.json says.
        num_bytes: size of its files, by the manifest.
    """

    path: Path
    manifest: CheckpointManifest
    num_bytes: int

    @property
    def is_pinned(self) -> bool:
        """Whether the user wants it kept."""
        return (self.path / PIN_NAME).exists()

    @property
    def is_resumable(self) -> bool:
        """Whether the state is there to go on from it."""
        return has_state(self.path)


def checkpoint_name(epoch: int, step: int) -> str:
    """The folder of a checkpoint: "checkpoint-epoch_00000002-step_00000500"."""
    return f"checkpoint-epoch_{epoch:08d}-step_{step:08d}"


def step_of_name(name: str) -> int | None:
    """The step of the checkpoint whose folder is called `name`; None when that is no checkpoint's name."""
    match = NAME_PATTERN.fullmatch(name)
    return int(match[1]) if match else None


class StagedCheckpoint:
    """A checkpoint being written.

    Args:
        path: the temporary folder to write into.
        epoch: completed epochs.
        step: completed optimizer steps.
    """

    def __init__(self, path: Path, *, epoch: int, step: int) -> None:
        self.path = path
        self.manifest: CheckpointManifest | None = None
        self._epoch = epoch
        self._step = step

    def finish(
        self,
        *,
        kind: CheckpointKind,
        weights: WeightsKind,
        config_hash: str,
        base_model: str,
        base_model_hash: str,
        prediction_type: str,
        save_dtype: str,
        last_losses: Sequence[float] = (),
        validation_images: Sequence[str] = (),
        known_sha256: Mapping[str, str] | None = None,
    ) -> CheckpointManifest:
        """Write checkpoint.json, when every other file is there; the fields are those of CheckpointManifest.

        Args:
            known_sha256: hashes taken while writing, by relative path; the other files are read and hashed here.
        """
        fsync_tree(self.path)
        files = describe_files(self.path, _payload_names(self.path), known_sha256 or {})
        self.manifest = CheckpointManifest(
            format_version=FORMAT_VERSION,
            kind=kind,
            weights=weights,
            step=self._step,
            epoch=self._epoch,
            time=time.time(),
            config_hash=config_hash,
            base_model=base_model,
            base_model_hash=base_model_hash,
            prediction_type=prediction_type,
            save_dtype=save_dtype,
            files=files,
            last_losses=list(last_losses),
            validation_images=list(validation_images),
        )
        write_text_atomic(self.path / MANIFEST_NAME, manifest_to_json(self.manifest))
        return self.manifest


@contextmanager
def publish_checkpoint(
    checkpoints_dir: Path, *, epoch: int, step: int, read: Callable[[int], None] | None = None
) -> Iterator[StagedCheckpoint]:
    """Yield a StagedCheckpoint to write into and to `finish`; on a clean exit it stands verified under its final name.

    Args:
        read: called with the number of bytes of each piece that is read back.

    Raises:
        CheckpointError: the disk is full, fails or gives back something else than was written, or there is a checkpoint
            of this step already. Nothing is left.
    """
    path = checkpoints_dir / checkpoint_name(epoch, step)
    try:
        if path.exists():
            raise CheckpointError(f"{path} exists already")
        with atomic_dir(path) as temporary:
            staged = StagedCheckpoint(temporary, epoch=epoch, step=step)
            yield staged
            assert staged.manifest is not None, "a checkpoint is finished before it is published"
            if problems := _verify(temporary, staged.manifest, read=read):
                summary = Problem(f"cannot write {path}: the disk gives back something else", "check the disk")
                raise CheckpointError.from_problems([summary, *problems])
    except OSError as error:
        what = f"cannot write {path}: {error.strerror or error}"
        hint = "nothing was done to older checkpoints; see that the folder is there, may be written to and has room"
        raise CheckpointError(what, hint=hint) from error


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """What the checkpoint.json of the folder `checkpoint` says.

    Raises:
        CheckpointError: it is missing, damaged, edited or made by a newer version.
    """
    try:
        return load_manifest(checkpoint / MANIFEST_NAME, CheckpointManifest, newest_format=FORMAT_VERSION)
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint} is not a complete checkpoint: it holds no {MANIFEST_NAME}") from None


def list_checkpoints(checkpoints_dir: Path) -> list[Checkpoint]:
    """The complete checkpoints, lowest step first; reads manifests only."""
    checkpoints = []
    for path in checkpoints_dir.glob("checkpoint-*"):
        try:
            manifest = read_manifest(path)
        except CheckpointError:  # torn or foreign; verify_checkpoint tells why
            continue
        checkpoints.append(Checkpoint(path, manifest, sum(file.size for file in manifest.files)))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.manifest.step)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Keep the checkpoint `path`, or the one whose folder `path` is, from being deleted until the exit.

    A shared lock (flock) on its checkpoint.json; whoever deletes takes the exclusive one. It holds between threads and
    processes and ends with its process. A folder that is no checkpoint is nobody's to delete and is not locked. A file
    system without locks gives no protection: the reader goes on, and files that it has open stay readable to it.

    Raises:
        ConfigError: it is still being written.
        CheckpointError: it is being deleted.
    """
    check_is_published(path)
    manifests = [folder / MANIFEST_NAME for folder in (path.absolute(), path.absolute().parent)]
    manifest = next((manifest for manifest in manifests if manifest.is_file()), None)
    if manifest is None:
        yield
        return
    with _locked(manifest, fcntl.LOCK_SH) as is_locked:
        if not is_locked:
            raise CheckpointError(f"{path} is being deleted", hint="take a later checkpoint")
        yield


def check_is_published(path: Path) -> None:
    """Check that the checkpoint `path`, or the one whose folder `path` is, stands under its final name.

    Raises:
        ConfigError: it is still being written, or being deleted.
    """
    if any(folder.name.startswith(".tmp-") for folder in (path.absolute(), path.absolute().parent)):
        raise ConfigError(f"{path} is being written or deleted", hint="take a checkpoint without .tmp in its name")


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[bool]:
    """Yield whether the file at `path` could be locked at once and is still there.

    Args:
        path: a manifest.
        kind: LOCK_SH to read the checkpoint, LOCK_EX to delete it.
    """
    try:
        file = path.open("rb" if kind == fcntl.LOCK_SH else "r+b")  # NFS locks what is open for writing alone
    except FileNotFoundError:
        yield False
        return
    with file:
        if not _lock(file.fileno(), kind):
            yield False
            return
        try:
            yield _is_at(file.fileno(), path)
        finally:
            _lock(file.fileno(), fcntl.LOCK_UN)  # closing is not enough once a forked child has the descriptor too


def _lock(descriptor: int, kind: int) -> bool:
    """Whether the lock could be had; true also where the file system knows no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def pin_checkpoint(path: Path) -> None:
    """Keep the checkpoint `path` from being pruned and deleted.

    Raises:
        CheckpointError: it is no checkpoint, or is being deleted.
    """
    with reading(path):
        read_manifest(path)
        (path / PIN_NAME).touch()


def unpin_checkpoint(path: Path) -> None:
    """Let the checkpoint `path` be pruned and deleted again."""
    (path / PIN_NAME).unlink(missing_ok=True)


def delete_checkpoint(path: Path) -> None:
    """Delete the checkpoint `path`, whole or not at all.

    Raises:
        CheckpointError: it is no checkpoint but something else or a link, pinned, or being read.
    """
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link", hint="delete the link, or the checkpoint in its place")
    read_manifest(path)
    with _locked(path / MANIFEST_NAME, fcntl.LOCK_EX) as is_free:
        if not is_free:
            raise CheckpointError(f"{path} is being read", hint="wait until the export ends, or stop it")
        if (path / PIN_NAME).exists():
            raise CheckpointError(f"{path} is pinned", hint="unpin it first")
        remove_dir_atomic(path)


def set_aside_checkpoints(checkpoints_dir: Path, folder: Path, *, beyond: int) -> list[str]:
    """Move the checkpoints of steps above `beyond`, complete or damaged, into `folder`, which is made if there are any.

    Returns:
        Their names.

    Raises:
        CheckpointError: one is being read; none was moved.
    """
    paths = [path for path in checkpoint_folders(checkpoints_dir) if (step_of_name(path.name) or 0) > beyond]
    with ExitStack() as held:
        for path in paths:
            manifest = path / MANIFEST_NAME
            if manifest.exists() and not held.enter_context(_locked(manifest, fcntl.LOCK_EX)):
                raise CheckpointError(f"{path} is being read", hint="wait until the export ends, or stop it")
        for path in paths:
            folder.mkdir(parents=True, exist_ok=True)
            path.rename(folder / path.name)
    return [path.name for path in paths]


def is_checkpoint(path: Path) -> bool:
    """Whether the folder `path` is a checkpoint, complete or damaged, and no run."""
    return (path / MANIFEST_NAME).exists() or (path.is_dir() and step_of_name(path.name) is not None)


def checkpoint_folders(checkpoints_dir: Path) -> list[Path]:
    """The folders of all checkpoints, complete or damaged, lowest step first."""
    folders = (folder for folder in checkpoints_dir.glob("checkpoint-*") if folder.is_dir())
    return sorted(folders, key=lambda folder: folder.name.rpartition("_")[2])


def verify_checkpoint(path: Path) -> list[Problem]:
    """All that is not as checkpoint.json says; reads every byte (1 GB/s). Empty when the checkpoint is sound."""
    try:
        with reading(path):
            return _verify(path, read_manifest(path))
    except (CheckpointError, ConfigError) as error:
        return list(error.problems)


def _verify(path: Path, manifest: CheckpointManifest, *, read: Callable[[int], None] | None = None) -> list[Problem]:
    present = _payload_names(path)
    damages = find_damages(path, manifest.files, present, read=read)
    foreign = set(present) - {file.path for file in manifest.files}
    damages += [f"{name} does not belong here" for name in sorted(foreign)]
    problems = [Problem(damage, where=str(path)) for damage in damages]
    of_state = verify_state(path, already=manifest.files, read=read) if has_state(path) else []
    return problems + (of_state if has_state(path) else [])  # the trainer may have removed it meanwhile, as a whole


def prune_checkpoints(checkpoints_dir: Path, keep: int, *, protected: Collection[Path] = ()) -> list[str]:
    """Delete the oldest checkpoints until `keep` are left; to be called after the new one stands.

    Never deleted are the newest: the one written last and, because a clock may jump, the one with the highest step.
    Pinned and protected ones, and those that a user replaced by a link to elsewhere, are neither deleted nor counted,
    nor are those that lost a file or a part of one since they were verified; one that is being read waits for the next
    time.

    Args:
        checkpoints_dir: the run's checkpoints/.
        keep: at least 1.
        protected: folders of checkpoints that are to stay.

    Returns:
        The names of the deleted ones.
    """
    by_step = [checkpoint for checkpoint in list_checkpoints(checkpoints_dir) if _is_whole(checkpoint)]
    by_time = sorted(by_step, key=lambda checkpoint: checkpoint.manifest.time)
    newest = {checkpoint.path for checkpoint in (*by_step[-1:], *by_time[-1:])}
    prunable = [one.path for one in by_time if not (one.is_pinned or one.path.is_symlink() or one.path in protected)]
    pruned = []
    for path in prunable[: max(0, len(prunable) - keep)]:
        if path not in newest:
            with _locked(path / MANIFEST_NAME, fcntl.LOCK_EX) as is_free:
                if is_free and not (path / PIN_NAME).exists():  # pinned since it was listed
                    remove_dir_atomic(path)
                    pruned.append(path.name)
    return pruned


def _is_whole(checkpoint: Checkpoint) -> bool:
    """Whether every file is there in its full length; what is in it, publication has verified."""
    try:
        return all((checkpoint.path / file.path).stat().st_size == file.size for file in checkpoint.manifest.files)
    except OSError:
        return False


def _payload_names(folder: Path) -> list[str]:
    return [name for name in list_files(folder) if name not in _NOT_PAYLOAD and not _is_of_state(name)]


def _is_of_state(name: str) -> bool:
    """Whether a file belongs to the state, or to one whose removal was cut short."""
    folder = name.partition("/")[0]
    return folder == STATE_DIR or (folder.startswith(".tmp-") and folder.endswith(f"-{STATE_DIR}"))
