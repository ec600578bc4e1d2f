"""The rest of a path from what is on disk."""

from pathlib import Path

import pytest

from tuitrain.tui.completion import complete_path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("data/cats", "data/cattle", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data" / "cats.jsonl").touch()
    (tmp_path / "data" / "bad\x1bname").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "completed", "names"),
    [
        ("da", "data/", ["data/"]),
        ("data/c", "data/cat", ["cats.jsonl", "cats/", "cattle/"]),
        ("data/catt", "data/cattle/", ["cattle/"]),
        ("data/x", "data/x", []),
        ("nowhere/x", "nowhere/x", []),
        ("~/da", "~/data/", ["data/"]),
        ("~nobody-here/x", "~nobody-here/x", []),
        ("", "data/", ["data/"]),
        (".h", ".hidden/", [".hidden/"]),
        ("data/bad", "data/bad", []),
        ("a\0b/c", "a\0b/c", []),
    ],
)
def test_a_path_grows_as_far_as_all_that_begin_with_it_agree(text: str, completed: str, names: list[str]) -> None:
    assert complete_path(text) == (completed, names)


def test_files_are_left_out_where_a_folder_is_wanted() -> None:
    assert complete_path("data/cats", folders_only=True) == ("data/cats/", ["cats/"])
