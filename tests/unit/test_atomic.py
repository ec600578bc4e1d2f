"""Files and folders appear whole or not at all."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tuitrain.atomic import atomic_dir, atomic_file, remove_dir_atomic, write_text_atomic


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text_atomic(path, "old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_mode_is_the_wanted_one_even_when_a_library_replaces_the_temporary_file(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        with atomic_file(tmp_path / "file") as temporary:
            private = tmp_path / "private"
            private.touch(mode=0o600)
            private.rename(temporary)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_a_private_file_is_private_from_its_first_moment(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file", mode=0o600) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600


def test_a_folder_is_not_there_before_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_dir(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("content")
        assert not path.exists()
    assert (path / "inner" / "file").read_text() == "content"
    assert os.listdir(tmp_path) == ["folder"]


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_dir(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("content")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileExistsError), atomic_dir(tmp_path / "folder"):
        pytest.fail("the body must not run")
    assert os.listdir(tmp_path) == ["folder"]


def test_removing_a_folder_follows_no_link_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "outside")
    remove_dir_atomic(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["outside", "precious"]


def test_a_kill_during_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text_atomic(path, "0" * 100_000)
    script = f"""
from pathlib import Path
from tuitrain.atomic import write_text_atomic
print("ready", flush=True)
while True:
    for digit in "0123456789":
        write_text_atomic(Path({str(path)!r}), digit * 100_000)
"""
    for wait_seconds in (0.0, 0.003, 0.01, 0.03):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(wait_seconds)
            writer.send_signal(signal.SIGKILL)
        text = path.read_text()
        assert text == text[0] * 100_000
