"""The log view reads any file from any place, and only what it shows."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from textual.app import App, ComposeResult

from tests.tui.harness import screen_text
from tuitrain.tui.widgets import log_view
from tuitrain.tui.widgets.log_view import LogFile, LogView


@given(
    st.lists(st.text(st.characters(blacklist_characters="\n", codec="utf-8"), max_size=12), max_size=30), st.booleans()
)
def test_lines_come_out_as_they_stand_in_the_file_in_both_directions(tmp_path_factory, lines, is_torn) -> None:
    path = tmp_path_factory.mktemp("log") / "log.txt"
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(content + (b"torn" if is_torn else b""))
    file = LogFile(path)
    expected = [line.encode() for line in lines]
    assert [line.content for line in file.after(0)] == expected
    assert [line.content for line in file.before(len(content))][::-1] == expected
    backwards = list(file.before(file.size()))
    assert b"".join(content_of(path, line.start, line.end) for line in reversed(backwards)) == path.read_bytes()


def content_of(path: Path, start: int, end: int) -> bytes:
    return path.read_bytes()[start:end]


def test_lines_across_chunks_and_longer_than_any_line_should_be(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(log_view, "_CHUNK", 16)
    monkeypatch.setattr(log_view, "_MAX_LINE", 40)
    path = tmp_path / "log.txt"
    path.write_bytes(
        b"".join(b"%d:" % length + b"x" * length + b"\n" for length in (3, 14, 15, 16, 17, 30)) + b"y" * 500
    )
    file = LogFile(path)
    assert b"".join(line.content for line in reversed(list(file.before(file.size())))).count(b"x") == 95
    assert max(len(line.content) for line in file.before(file.size())) < 80
    assert sum(line.end - line.start for line in file.before(file.size())) == file.size()


class _LogApp(App[None]):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def compose(self) -> ComposeResult:
        yield LogView()

    def on_mount(self) -> None:
        self.query_one(LogView).focus()
        self.query_one(LogView).show_file(self.path)


async def test_a_gigabyte_opens_at_its_end_and_scrolls(tmp_path) -> None:
    path = tmp_path / "log.txt"
    with path.open("wb") as file:
        file.seek(1 << 30)  # a hole: reading it all would be noticed
        file.write(b"\n" + b"".join(b"line %d\n" % number for number in range(1000)))
    app = _LogApp(path)
    async with app.run_test(size=(40, 10)) as pilot:
        await pilot.pause()
        assert screen_text(app).splitlines()[-1].strip() == "line 999"
        await pilot.press("pageup")
        assert "line 989" in screen_text(app) and "line 999" not in screen_text(app)
        with path.open("ab") as file:
            file.write(b"appended\n")
        app.query_one(LogView).poll()
        await pilot.pause()
        assert "appended" not in screen_text(app)
        app.query_one(LogView).follow()
        await pilot.pause()
        assert "appended" in screen_text(app)


async def test_warnings_keep_the_lines_that_belong_to_them(tmp_path) -> None:
    path = tmp_path / "log.txt"
    path.write_text(
        "2026-01-01 00:00:00,000 INFO tuitrain: step 1\n"
        "2026-01-01 00:00:01,000 ERROR tuitrain: the run failed\nTraceback\n  boom\n"
        "2026-01-01 00:00:02,000 INFO tuitrain: step 2\n"
    )
    app = _LogApp(path)
    async with app.run_test(size=(60, 10)) as pilot:
        await pilot.pause()
        app.query_one(LogView).set_serious_only(True)
        await pilot.pause()
        assert [line[26:].strip() or line.strip() for line in screen_text(app).splitlines() if line.strip()][1:] == [
            "Traceback",
            "boom",
        ]
        assert "step" not in screen_text(app)


async def test_escape_sequences_in_a_log_are_shown_and_not_obeyed(tmp_path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"\x1b]0;owned\x07 [bold]not markup[/bold] \xff\n")
    app = _LogApp(path)
    async with app.run_test(size=(60, 4)) as pilot:
        await pilot.pause()
        assert r"\x1b]0;owned\x07 [bold]not markup[/bold]" in screen_text(app)


def test_a_line_knows_its_place_in_the_file(tmp_path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"line {number}\n" for number in range(100)) + "End\n")
    file = LogFile(path)
    assert next(line for line in file.before(file.size()) if line.content == b"line 9").start == 63
