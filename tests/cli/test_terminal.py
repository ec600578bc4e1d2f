"""What reaches a terminal: escaped text, one sentence for each event, a progress line."""

import io
import json
import unicodedata
from dataclasses import MISSING, fields
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tuitrain import terminal, wording
from tuitrain.runs import events
from tuitrain.runs.events import EVENT_KINDS, Event, SampleImage, UnknownEvent

PAYLOADS = {
    "OSC 52 sets the clipboard": "\x1b]52;c;UFdORUQ=\x07",
    "OSC 0 sets the title": "\x1b]0;PWNED\x1b\\",
    "CSI clears the screen": "\x1b[2J",
    "8-bit CSI": "\x9b2J",
    "8-bit OSC": "\x9d0;PWNED\x9c",
    "DCS": "\x1bP+q544e\x1b\\",
    "carriage return": "good\rbad",
    "backspace": "good\x08\x08bad",
    "bell": "\x07",
    "NUL": "a\x00b",
    "delete": "a\x7fb",
    "line feed": "one\ntwo",
    "line separator": "one\u2028two",
    "right-to-left override": "gpj.\u202eexe",
    "isolate": "\u2066a\u2069",
    "zero width space": "a\u200bb",
    "surrogate": "a\udc80b",
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_no_character_that_a_terminal_obeys_survives(payload: str) -> None:
    escaped = wording.escape_control(payload)
    assert all(unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for character in escaped)
    assert escaped != payload


def test_an_escaped_character_can_be_recognised() -> None:
    assert wording.escape_control("\x1b\n\x9b\u202e\udc80\x7f") == r"\x1b\n\x9b\u202e\udc80\x7f"


@pytest.mark.parametrize("text", ["Schöne Grüße", "日本語", "👩\u200d🚀", "C:\\pictures\\new", "क्\u200dष"])
def test_text_of_any_script_stays_as_it_is(text: str) -> None:
    assert wording.escape_control(text) == text


@given(st.text(st.characters(exclude_categories=[])))
def test_escaped_text_is_one_printable_line_in_utf8(text: str) -> None:
    escaped = wording.escape_control(text)
    escaped.encode("utf-8")
    assert len(escaped.splitlines()) <= 1


HOSTILE = "\x1b]0;PWNED\x07\u202e"


def _example(kind: type[Event], text: str) -> Event:
    """An event of `kind` whose every text is `text`."""
    examples = {
        str: text,
        int: 3,
        float: 0.5,
        bool: True,
        dict[str, int]: {text: 2},
        dict[str, str]: {text: text},
        list[SampleImage]: [SampleImage(path=text, prompt_index=0, image_index=0, prompt=text)],
    }
    hints = get_type_hints(kind)
    required = {field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING}
    return kind(**{name: examples.get(hints[name], text if name not in ("resumed_from",) else 3) for name in required})


@pytest.mark.parametrize("kind", EVENT_KINDS.values(), ids=EVENT_KINDS.keys())
def test_every_kind_of_event_has_a_sentence_of_its_own(kind: type[Event]) -> None:
    sentence = wording.describe(_example(kind, "word"), total_steps=10)
    assert sentence
    assert "{" not in sentence


@pytest.mark.parametrize("make_view", [terminal.LineView, terminal.JsonView], ids=["lines", "json"])
def test_hostile_text_in_any_event_reaches_stdout_escaped(
    make_view: type[terminal.EventView], capsys: pytest.CaptureFixture[str]
) -> None:
    view = make_view()
    unknown = UnknownEvent(kind=HOSTILE, fields={HOSTILE: HOSTILE})
    for event in [*(_example(kind, HOSTILE) for kind in EVENT_KINDS.values()), unknown]:
        view.show(event)
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == len(EVENT_KINDS) + 1
    assert all(character.isprintable() for character in shown.replace("\n", ""))


def test_the_progress_line_never_writes_hostile_text() -> None:
    output = io.StringIO()
    view = terminal.ProgressView(Console(file=output, force_terminal=True, width=200, markup=False, highlight=False))
    for kind in EVENT_KINDS.values():
        view.show(_example(kind, HOSTILE))
        view.tick()
    view.close()
    assert "PWNED" in output.getvalue()
    assert "\x1b]0" not in output.getvalue()
    assert "\u202e" not in output.getvalue()


def test_square_brackets_are_no_markup() -> None:
    output = io.StringIO()
    view = terminal.ProgressView(Console(file=output, force_terminal=True, width=200, markup=False, highlight=False))
    view.show(events.WarningRaised(what="[red]caption[/red] [/nonsense]"))
    view.close()
    assert "[red]caption[/red] [/nonsense]" in output.getvalue()


def test_the_progress_line_shows_step_loss_speed_time_left_and_memory() -> None:
    output = io.StringIO()
    view = terminal.ProgressView(Console(file=output, force_terminal=True, width=200, markup=False, highlight=False))
    view.show(
        events.DatasetScanned(
            num_images=4, num_skipped=0, buckets={"64x64": 4}, steps_per_epoch=4, total_steps=200, num_epochs=50
        )
    )
    view.show(events.PhaseStarted(phase="train"))
    view.show(
        events.StepLogged(
            step=80,
            epoch=20,
            loss=0.12344,
            lr=1e-5,
            seconds_per_step=0.5,
            images_per_second=2.0,
            peak_memory_gib=11.96,
        )
    )
    view.tick()
    view.close()
    for fact in ("80/200", "loss 0.1234", "2.00 it/s", "1:00 left", "12.0 GiB"):
        assert fact in output.getvalue()


def test_json_lines_are_strict_and_have_no_raw_delete(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.write_json({"loss": float("nan"), "limit": float("-inf"), "name": "a\x7f\x9b"})
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert "\x7f" not in shown
    assert json.loads(shown, parse_constant=pytest.fail) == {"loss": "nan", "limit": "-inf", "name": "a\x7f\x9b"}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3661, "1:01:01"), (-5, "0:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert wording.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1024, "1.0 KiB"), (5.13e9, "4.8 GiB"), (7 * 2**40, "7.0 TiB")],
)
def test_sizes(num_bytes: float, text: str) -> None:
    assert wording.format_bytes(num_bytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.25, "4.00 it/s"), (2.5, "2.50 s/it"), (0.0, "- it/s")])
def test_speed(seconds: float, text: str) -> None:
    assert wording.format_speed(seconds) == text
