"""A log file as a scrolling view that reads only what it shows; knows nothing of who writes the file."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widget import Widget

from tuitrain.wording import escape_control

_CHUNK = 1 << 16
_MAX_LINE = 1 << 14
_MAX_SCAN = 32 << 20
_RECORD = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (\w+) ")
_SERIOUS = (b"WARNING", b"ERROR", b"CRITICAL")


class LogLine(NamedTuple):
    """One line of a file.

    Args:
        start: offset of its first byte.
        end: offset after its newline.
        content: without the newline.
    """

    start: int
    end: int
    content: bytes


class LogFile:
    """A file of lines, read from any offset in either direction; a gigabyte costs what its visible lines cost.

    Args:
        path: need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def size(self) -> int:
        """Bytes now; 0 while it is not there."""
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def before(self, offset: int) -> Iterator[LogLine]:
        """The lines that end at or before `offset`, the last one first."""
        position = end = offset
        data = b""  # the file from position to end
        while end > 0:
            cut = data.rfind(b"\n", 0, max(end - position - 1, 0))
            if cut < 0 and position > 0 and len(data) < _MAX_LINE:
                length = min(_CHUNK, position)
                position -= length
                data = self._read(position, length) + data
                continue
            start = position + cut + 1
            yield LogLine(start, end, data[cut + 1 :].removesuffix(b"\n"))
            data, end = data[: cut + 1], start

    def after(self, offset: int) -> Iterator[LogLine]:
        """The complete lines from `offset` on, which is the start of one."""
        rest = b""
        while chunk := self._read(offset + len(rest), _CHUNK):
            rest += chunk
            *complete, rest = rest.split(b"\n")
            if not complete and len(rest) >= _MAX_LINE:
                complete, rest = [rest], b""
                yield LogLine(offset, offset + len(complete[0]), complete[0])
                offset += len(complete[0])
                continue
            for content in complete:
                yield LogLine(offset, offset + len(content) + 1, content)
                offset += len(content) + 1

    def _read(self, offset: int, length: int) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError:
            return b""


class LogView(Widget, can_focus=True):
    """The lines around one place of a LogFile; follows the end until the user goes up."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "go(-1)", "Up", show=False),
        Binding("down,j", "go(1)", "Down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "Page up", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "Page down", show=False),
    ]
    DEFAULT_CSS = """
    LogView { height: 1fr; width: 1fr; }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._file: LogFile | None = None
        self._num_bytes = 0
        self._end = 0
        self._shown: list[LogLine] = []
        self._cursor = 0
        self.is_following = True
        self.is_serious_only = False
        self.needle = ""

    def show_file(self, path: Path) -> None:
        """Go to the end of another file."""
        self._file = LogFile(path)
        self._num_bytes = -1
        self.follow()

    def poll(self) -> None:
        """Draw what was appended, if the view follows."""
        if self._file is not None and self.is_following and self._file.size() != self._num_bytes:
            self._to_end()

    def follow(self) -> None:
        """Stay at the end from now on."""
        self.is_following = True
        self._to_end()

    def _to_end(self) -> None:
        if self._file is not None:
            self._num_bytes = self._end = self._file.size()
            self._load()
            self._cursor = len(self._shown) - 1
            self.refresh()

    def to_start(self) -> None:
        """Show the first lines."""
        self._fill_down(0)
        self._cursor = 0

    def go_to(self, line: LogLine) -> None:
        """Show `line` in the middle."""
        assert self._file is not None
        self.is_following = False
        self._fill_down(self._start_above(line.start, self.size.height // 2))
        self._cursor = next((i for i, shown in enumerate(self._shown) if shown.start == line.start), 0)
        self.refresh()

    def set_serious_only(self, is_on: bool) -> None:
        """Show warnings and errors with what belongs to them, or everything."""
        self.is_serious_only = is_on
        self.follow()

    @property
    def current(self) -> LogLine | None:
        """The line under the cursor."""
        return self._shown[self._cursor] if 0 <= self._cursor < len(self._shown) else None

    @property
    def position(self) -> str:
        """Where in the file: percent, or that it follows."""
        if not self._num_bytes:
            return "empty"
        return "► live" if self.is_following else f"{100 * self._end / self._num_bytes:.0f} %"

    def find(self, needle: str, *, backwards: bool) -> LogLine | None:
        """The next line with `needle`, without regard to case; reads 32 MiB at most, so call it in a thread."""
        current = self.current
        if self._file is None or current is None:
            return None
        lines = self._file.before(current.start) if backwards else self._file.after(current.end)
        wanted = needle.lower().encode()
        scanned = 0
        for line in lines:
            if wanted in line.content.lower():
                return line
            scanned += line.end - line.start
            if scanned > _MAX_SCAN:
                return None
        return None

    def on_resize(self) -> None:
        if self._file is not None:
            self._load()
            self._cursor = len(self._shown) - 1
            self.refresh()

    def action_go(self, count: int) -> None:
        target = self._cursor + count
        if 0 <= target < len(self._shown):
            self._cursor = target
        elif count < 0:
            self._scroll_up(-count)
        else:
            self._scroll_down(count)
        self.refresh()

    def action_page(self, direction: int) -> None:
        if direction < 0:
            self._scroll_up(self.size.height)
        else:
            self._scroll_down(self.size.height)
        self.refresh()

    def _scroll_up(self, count: int) -> None:
        if self._shown:
            self.is_following = False
            self._fill_down(self._start_above(self._shown[0].start, count))
            self._cursor = 0

    def _scroll_down(self, count: int) -> None:
        assert self._file is not None
        if not self._shown:
            return
        more = self._take(self._file.after(self._shown[-1].end), count)
        if not more:
            self.follow()
            return
        self._shown = (self._shown + more)[-self.size.height :]
        self._end = self._shown[-1].end
        self._cursor = len(self._shown) - 1

    def _start_above(self, offset: int, count: int) -> int:
        assert self._file is not None
        above = self._take(self._file.before(offset), count)
        return above[-1].start if above else offset

    def _fill_down(self, offset: int) -> None:
        assert self._file is not None
        self.is_following = False
        self._shown = self._take(self._file.after(offset), self.size.height)
        self._end = self._shown[-1].end if self._shown else 0
        self.refresh()

    def _load(self) -> None:
        """Fill the view upwards from its end."""
        assert self._file is not None
        self._shown = self._take(self._file.before(self._end), max(self.size.height, 1))[::-1]

    def _take(self, lines: Iterator[LogLine], count: int) -> list[LogLine]:
        is_wanted: Callable[[LogLine], bool] = _is_serious if self.is_serious_only else lambda line: True
        taken: list[LogLine] = []
        scanned = 0
        for line in lines:
            if is_wanted(line):
                taken.append(line)
            scanned += line.end - line.start
            if len(taken) >= count or scanned > _MAX_SCAN:
                break
        return taken

    def render(self) -> Text:
        width = self.size.width
        text = Text(no_wrap=True, overflow="crop")
        for index, line in enumerate(self._shown):
            entry = Text(escape_control(line.content[:_MAX_LINE].decode("utf-8", "backslashreplace")), no_wrap=True)
            entry.truncate(width, overflow="ellipsis", pad=index == self._cursor and self.has_focus)
            if _is_serious(line):
                entry.stylize("bold")
            if self.needle:
                entry.highlight_words([self.needle], "reverse", case_sensitive=False)
            if index == self._cursor and self.has_focus:
                entry.stylize("underline")
            text.append_text(entry)
            text.append("\n")
        return (
            text
            if self._shown
            else Text("No warnings: w shows all lines." if self.is_serious_only else "Nothing in the log yet.", "dim")
        )


def _is_serious(line: LogLine) -> bool:
    """Whether a line is a warning or an error, or belongs to one, as the lines of a traceback do."""
    record = _RECORD.match(line.content)
    return record is None or record[1] in _SERIOUS
