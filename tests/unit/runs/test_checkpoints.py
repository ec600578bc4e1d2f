"""A checkpoint is complete or not there, damage is found, and pruning takes only what may go."""

import errno
import fcntl
import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuitrain.errors import CheckpointError, ConfigError
from tuitrain.runs.checkpoints import (
    FORMAT_VERSION,
    CheckpointManifest,
    StagedCheckpoint,
    checkpoint_name,
    delete_checkpoint,
    list_checkpoints,
    pin_checkpoint,
    prune_checkpoints,
    publish_checkpoint,
    read_manifest,
    reading,
    set_aside_checkpoints,
    unpin_checkpoint,
    verify_checkpoint,
)

WEIGHTS = bytes(range(256)) * 16
CONFIG = b'{"_class_name": "UNet2DConditionModel"}'


def fill(staged: StagedCheckpoint, *, weights: bytes = WEIGHTS) -> CheckpointManifest:
    (staged.path / "unet").mkdir()
    (staged.path / "unet" / "config.json").write_bytes(CONFIG)
    (staged.path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    return staged.finish(
        kind="trained_only_diffusers",
        weights="trained",
        config_hash="c0ffee",
        base_model="base",
        base_model_hash="ba5e",
        prediction_type="epsilon",
        save_dtype="float16",
        last_losses=[0.5, math.nan],
        validation_images=["validation/a.jpg"],
    )


def publish(checkpoints_dir: Path, step: int, *, epoch: int = 0, weights: bytes = WEIGHTS) -> Path:
    with publish_checkpoint(checkpoints_dir, epoch=epoch, step=step) as staged:
        fill(staged, weights=weights)
    return checkpoints_dir / checkpoint_name(epoch, step)


def names(checkpoints_dir: Path) -> list[str]:
    return sorted(os.listdir(checkpoints_dir))


def test_the_name_is_that_of_invoke_training() -> None:
    assert checkpoint_name(2, 500) == "checkpoint-epoch_00000002-step_00000500"


def test_the_manifest_describes_every_file(tmp_path: Path) -> None:
    path = publish(tmp_path, 500, epoch=2)
    manifest = read_manifest(path)
    assert (manifest.step, manifest.epoch, manifest.format_version) == (500, 2, FORMAT_VERSION)
    assert [(file.path, file.size, file.sha256) for file in manifest.files] == [
        ("unet/config.json", len(CONFIG), hashlib.sha256(CONFIG).hexdigest()),
        ("unet/diffusion_pytorch_model.safetensors", len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest()),
    ]
    assert manifest.last_losses[0] == 0.5
    assert math.isnan(manifest.last_losses[1])
    (checkpoint,) = list_checkpoints(tmp_path)
    assert checkpoint.num_bytes == len(CONFIG) + len(WEIGHTS)


def test_what_the_disk_does_not_give_back_as_it_was_written_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as raised, publish_checkpoint(tmp_path, epoch=0, step=1) as staged:
        (staged.path / "a").write_bytes(b"a")
        (staged.path / "b").write_bytes(b"b")
        staged.finish(
            kind="full_diffusers",
            weights="ema",
            config_hash="",
            base_model="",
            base_model_hash="",
            prediction_type="epsilon",
            save_dtype="float32",
            known_sha256={"a": hashlib.sha256(b"a").hexdigest(), "b": "0" * 64},
        )
    (_, problem) = raised.value.problems
    assert problem.what.startswith("b is damaged")
    assert names(tmp_path) == []


def test_nothing_is_listed_before_the_end_and_the_manifest_is_the_last_file(tmp_path: Path) -> None:
    with publish_checkpoint(tmp_path, epoch=0, step=1) as staged:
        fill(staged)
        manifest = staged.path / "checkpoint.json"
        written_at = {path: path.stat().st_mtime_ns for path in staged.path.rglob("*") if path.is_file()}
        assert max(written_at, key=written_at.__getitem__) == manifest
        assert list_checkpoints(tmp_path) == []
    assert [checkpoint.manifest.step for checkpoint in list_checkpoints(tmp_path)] == [1]


def test_everything_is_synced_before_the_manifest_and_the_manifest_before_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(descriptor: int) -> None:
        calls.append("fsync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def record_rename(source: Path, target: Path) -> None:
        calls.append("rename to " + Path(target).name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    name = publish(tmp_path, 1).name
    manifest_written = calls.index("rename to checkpoint.json")
    assert calls.index("fsync diffusion_pytorch_model.safetensors") < manifest_written
    assert calls.index("fsync unet") < manifest_written
    assert "checkpoint.json" in calls[manifest_written - 1]
    published = calls.index(f"rename to {name}")
    assert "fsync checkpoint.json" in calls[manifest_written:published]
    assert calls[published + 1 :] == [f"fsync {tmp_path.name}"]


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), publish_checkpoint(tmp_path, epoch=0, step=1) as staged:
        fill(staged)
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_full_disk_is_a_checkpoint_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No space left"), publish_checkpoint(tmp_path, epoch=0, step=1) as staged:
        (staged.path / "half").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_a_step_that_was_saved_already_is_refused_untouched(tmp_path: Path) -> None:
    path = publish(tmp_path, 1)
    with pytest.raises(CheckpointError, match="exists already"):
        publish(tmp_path, 1)
    assert verify_checkpoint(path) == []
    assert names(tmp_path) == [path.name]


def test_a_kill_during_a_save_leaves_nothing_that_is_listed(tmp_path: Path) -> None:
    script = f"""
import os
from pathlib import Path
from tuitrain.runs.checkpoints import publish_checkpoint
with publish_checkpoint(Path({str(tmp_path)!r}), epoch=0, step=2) as staged:
    (staged.path / "weights").write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""
    path = publish(tmp_path, 1)
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert [checkpoint.path for checkpoint in list_checkpoints(tmp_path)] == [path]


def test_foreign_and_torn_folders_are_not_listed(tmp_path: Path) -> None:
    path = publish(tmp_path, 1)
    (tmp_path / "checkpoint-of-another-program").mkdir()
    (tmp_path / "checkpoint-note.txt").touch()
    torn = publish(tmp_path, 2)
    (torn / "checkpoint.json").write_bytes((torn / "checkpoint.json").read_bytes()[:-20])
    (tmp_path / "checkpoint-loop").symlink_to(tmp_path)
    assert [checkpoint.path for checkpoint in list_checkpoints(tmp_path)] == [path]


def test_checkpoints_are_listed_by_step(tmp_path: Path) -> None:
    for step in (30, 10, 20):
        publish(tmp_path, step)
    assert [checkpoint.manifest.step for checkpoint in list_checkpoints(tmp_path)] == [10, 20, 30]


UNET = Path("unet", "diffusion_pytorch_model.safetensors")


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], object], *, reseal: bool = False) -> None:
    manifest = json.loads((path / "checkpoint.json").read_text())
    edit(manifest)
    if reseal:  # as the writer would have: the sha256 of all else, keys sorted
        del manifest["sha256"]
        manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "checkpoint.json").write_text(json.dumps(manifest))


def edit_file_entry(checkpoint: Path, **changes: object) -> None:
    edit_manifest(checkpoint, lambda manifest: manifest["files"][1].update(changes), reseal=True)


def swap_with_link(path: Path) -> None:
    (path / UNET).unlink()
    (path / UNET).symlink_to("/nowhere")


def swap_with_folder(path: Path) -> None:
    (path / UNET).unlink()
    (path / UNET).mkdir()


CORRUPTIONS: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: (path / UNET).write_bytes(WEIGHTS[:-1]),
    "empty": lambda path: (path / UNET).write_bytes(b""),
    "trailing bytes": lambda path: (path / UNET).write_bytes(WEIGHTS + b"\0"),
    "one bit flipped": lambda path: (path / UNET).write_bytes(WEIGHTS[:99] + bytes([WEIGHTS[99] ^ 1]) + WEIGHTS[100:]),
    "zeroed": lambda path: (path / UNET).write_bytes(bytes(len(WEIGHTS))),
    "missing": lambda path: (path / UNET).unlink(),
    "a folder in its place": swap_with_folder,
    "a broken link in its place": swap_with_link,
    "extra file": lambda path: (path / "unet" / "pytorch_model.bin").write_bytes(b"pickle"),
    "extra link to a folder": lambda path: (path / "text_encoder").symlink_to(path.parent),
    "size edited": lambda path: edit_file_entry(path, size=1),
    "hash edited": lambda path: edit_file_entry(path, sha256="0" * 64),
    "path edited": lambda path: edit_file_entry(path, path="../secret"),
    "step edited": lambda path: edit_manifest(path, lambda manifest: manifest.update(step=7)),
    "file entry removed": lambda path: edit_manifest(path, lambda manifest: manifest["files"].pop(), reseal=True),
    "field removed": lambda path: edit_manifest(path, lambda manifest: manifest.pop("epoch"), reseal=True),
    "field of another type": lambda path: edit_manifest(path, lambda manifest: manifest.update(files="all")),
    "newer format": lambda path: edit_manifest(path, lambda manifest: manifest.update(format_version=99)),
    "manifest truncated": lambda path: os.truncate(path / "checkpoint.json", 100),
    "manifest empty": lambda path: os.truncate(path / "checkpoint.json", 0),
    "manifest missing": lambda path: (path / "checkpoint.json").unlink(),
}


@pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=CORRUPTIONS.keys())
def test_every_corruption_is_found(tmp_path: Path, corrupt: Callable[[Path], object]) -> None:
    path = publish(tmp_path, 1)
    assert verify_checkpoint(path) == []
    corrupt(path)
    assert verify_checkpoint(path)


def test_files_swapped_between_two_checkpoints_are_found(tmp_path: Path) -> None:
    first, second = publish(tmp_path, 1), publish(tmp_path, 2, weights=WEIGHTS[::-1])
    (first / UNET).rename(tmp_path / "first")
    (second / UNET).rename(first / UNET)
    (tmp_path / "first").rename(second / UNET)
    assert verify_checkpoint(first)
    assert verify_checkpoint(second)


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(WEIGHTS)
    path = publish(tmp_path, 1)
    edit_file_entry(path, path="../secret")
    assert [problem.what for problem in verify_checkpoint(path)] == [
        "../secret is missing",
        "unet/diffusion_pytorch_model.safetensors does not belong here",
    ]


def test_a_sound_checkpoint_raises_no_alarm_after_a_copy_a_pin_or_a_rename(tmp_path: Path) -> None:
    path = publish(tmp_path, 1)
    (path / ".pinned").touch()
    os.utime(path / UNET, (0, 0))
    renamed = path.rename(tmp_path / "my-favourite")
    assert verify_checkpoint(renamed) == []


def test_pruning_deletes_the_oldest_and_keeps_the_newest(tmp_path: Path) -> None:
    paths = [publish(tmp_path, step) for step in (1, 2, 3, 4)]
    assert prune_checkpoints(tmp_path, 2) == [paths[0].name, paths[1].name]
    assert names(tmp_path) == [paths[2].name, paths[3].name]
    assert prune_checkpoints(tmp_path, 2) == []


def test_pruning_keeps_what_was_written_last_even_below_the_steps_of_an_abandoned_branch(tmp_path: Path) -> None:
    old, highest, latest = publish(tmp_path, 100), publish(tmp_path, 300), publish(tmp_path, 150)
    assert prune_checkpoints(tmp_path, 1) == [old.name]
    assert names(tmp_path) == sorted([highest.name, latest.name])


def test_pruning_keeps_the_newest_when_the_clock_jumped_back(tmp_path: Path) -> None:
    before, after = publish(tmp_path, 1), publish(tmp_path, 2)
    edit_manifest(after, lambda manifest: manifest.update(time=manifest["time"] - 3600), reseal=True)
    prune_checkpoints(tmp_path, 1)
    assert after.name in names(tmp_path)
    last = publish(tmp_path, 3)
    assert prune_checkpoints(tmp_path, 1) == [after.name, before.name]
    assert names(tmp_path) == [last.name]


def test_pinned_checkpoints_are_neither_deleted_nor_counted(tmp_path: Path) -> None:
    paths = [publish(tmp_path, step) for step in (1, 2, 3)]
    (paths[0] / ".pinned").touch()
    assert prune_checkpoints(tmp_path, 1) == [paths[1].name]
    assert names(tmp_path) == [paths[0].name, paths[2].name]


def test_protected_ones_and_truncated_ones_are_neither_deleted_nor_counted(tmp_path: Path) -> None:
    paths = [publish(tmp_path, step) for step in range(5)]
    (paths[3] / "unet" / "config.json").write_bytes(CONFIG[:-1])
    assert prune_checkpoints(tmp_path, 2, protected={paths[0]}) == [paths[1].name]
    assert names(tmp_path) == [path.name for path in (paths[0], *paths[2:])]


def test_pruning_touches_nothing_that_is_not_a_complete_checkpoint_of_the_folder(tmp_path: Path) -> None:
    checkpoints_dir, other_disk = tmp_path / "checkpoints", tmp_path / "other_disk"
    checkpoints_dir.mkdir()
    other_disk.mkdir()
    elsewhere = publish(other_disk, 1)
    (checkpoints_dir / elsewhere.name).symlink_to(elsewhere)
    (checkpoints_dir / "checkpoint-without-manifest").mkdir()
    (checkpoints_dir / ".tmp-00-checkpoint").mkdir()
    (checkpoints_dir / "notes.txt").touch()
    before = names(checkpoints_dir)
    old, new = publish(checkpoints_dir, 2), publish(checkpoints_dir, 3)
    assert prune_checkpoints(checkpoints_dir, 1) == [old.name]
    assert names(checkpoints_dir) == sorted([*before, new.name])
    assert verify_checkpoint(elsewhere) == []


@pytest.mark.parametrize("seed", range(3))
def test_no_order_of_saves_failures_and_pins_loses_the_newest_or_a_pinned_one(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    pinned: set[str] = set()
    newest = ""
    for step in range(20):
        match draw.choice(["save", "save", "fail", "pin"]):
            case "save":
                newest = publish(tmp_path, step).name
                prune_checkpoints(tmp_path, keep=draw.randint(1, 3))
            case "fail":
                with pytest.raises(CheckpointError), publish_checkpoint(tmp_path, epoch=0, step=step):
                    raise OSError(5, "Input/output error")
            case "pin" if newest:
                pinned.add(draw.choice(names(tmp_path)))
                for name in pinned:
                    (tmp_path / name / ".pinned").touch()
        assert pinned | {newest} - {""} <= set(names(tmp_path))
        assert all(verify_checkpoint(tmp_path / name) == [] for name in names(tmp_path))


# ---- readers


def test_one_being_read_is_neither_pruned_nor_deleted_and_goes_the_next_time(tmp_path: Path) -> None:
    paths = [publish(tmp_path, step) for step in (1, 2, 3)]
    with reading(paths[0]), reading(paths[0]):
        assert prune_checkpoints(tmp_path, 1) == [paths[1].name]
        with pytest.raises(CheckpointError, match="is being read"):
            delete_checkpoint(paths[0])
        assert verify_checkpoint(paths[0]) == []
    assert prune_checkpoints(tmp_path, 1) == [paths[0].name]
    assert names(tmp_path) == [paths[2].name]


def test_its_unet_folder_holds_the_checkpoint(tmp_path: Path) -> None:
    path = publish(tmp_path, 1)
    with reading(path / "unet"), pytest.raises(CheckpointError, match="is being read"):
        delete_checkpoint(path)


def test_another_process_holds_it_until_its_end_even_by_kill(tmp_path: Path) -> None:
    path = publish(tmp_path, 1)
    script = f"""
import sys
from pathlib import Path
from tuitrain.runs.checkpoints import reading
with reading(Path({str(path)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="is being read"):
            delete_checkpoint(path)
        reader.kill()
        reader.wait()
        delete_checkpoint(path)
    assert names(tmp_path) == []


def test_a_child_that_was_forked_while_it_was_read_does_not_hold_it(tmp_path: Path) -> None:
    path = publish(tmp_path, 1)
    with reading(path):
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
    try:
        delete_checkpoint(path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_one_being_deleted_is_refused_to_readers(tmp_path: Path) -> None:
    path = publish(tmp_path, 1)
    with (path / "checkpoint.json").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="is being deleted"), reading(path):
            pytest.fail("it was read")
        (problem,) = verify_checkpoint(path)
        assert "is being deleted" in problem.what


@pytest.mark.parametrize("name", [".tmp-00-checkpoint", ".tmp-00-checkpoint/unet"])
def test_one_being_written_is_refused_to_readers(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match="is being written"), reading(tmp_path / name):
        pytest.fail("it was read")


def test_a_file_system_without_locks_lets_readers_and_pruning_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    paths = [publish(tmp_path, step) for step in (1, 2)]
    with reading(paths[0]), (paths[0] / UNET).open("rb") as file:
        assert prune_checkpoints(tmp_path, 1) == [paths[0].name]
        assert file.read() == WEIGHTS


# ---- deleting


def test_a_pinned_one_is_not_deleted_before_it_is_unpinned(tmp_path: Path) -> None:
    path = publish(tmp_path, 1)
    pin_checkpoint(path)
    (checkpoint,) = list_checkpoints(tmp_path)
    assert checkpoint.is_pinned
    with pytest.raises(CheckpointError, match="is pinned"):
        delete_checkpoint(path)
    unpin_checkpoint(path)
    delete_checkpoint(path)
    assert names(tmp_path) == []


def test_only_checkpoints_are_deleted(tmp_path: Path) -> None:
    path = publish(tmp_path, 1)
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(path)
    for name in ("other", "link", "nowhere"):
        with pytest.raises(CheckpointError):
            delete_checkpoint(tmp_path / name)
    assert names(tmp_path) == [path.name, "link", "other"]


def test_checkpoints_beyond_a_step_are_set_aside_and_none_while_one_is_read(tmp_path: Path) -> None:
    checkpoints, aside = tmp_path / "checkpoints", tmp_path / "aside"
    checkpoints.mkdir()
    names = [publish(checkpoints, step).name for step in (1, 2, 3)]
    (checkpoints / names[2] / "checkpoint.json").unlink()
    assert set_aside_checkpoints(checkpoints, aside, beyond=3) == []
    assert not aside.exists()
    with reading(checkpoints / names[1]), pytest.raises(CheckpointError, match=f"{names[1]} is being read"):
        set_aside_checkpoints(checkpoints, aside, beyond=1)
    assert sorted(path.name for path in checkpoints.iterdir()) == names
    assert set_aside_checkpoints(checkpoints, aside, beyond=1) == names[1:]
    assert [path.name for path in checkpoints.iterdir()] == names[:1]
    assert sorted(path.name for path in aside.iterdir()) == names[1:]
