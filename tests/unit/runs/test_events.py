"""Events survive the way to a line and back, whoever wrote the line."""

import ast
import json
import math
import typing
from pathlib import Path

import pytest

from tuitrain.runs.events import (
    EVENT_KINDS,
    Event,
    PhaseProgressed,
    RunFailed,
    SampleImage,
    SamplesSaved,
    StepLogged,
    UnknownEvent,
    event_from_line,
    event_to_line,
    step_of,
)

STEP = StepLogged(time=5.0, step=7, epoch=1, loss=0.25, lr=1e-5, seconds_per_step=0.5, images_per_second=8.0)
LINE = '{"kind":"StepLogged","time":5.0,"step":7,"epoch":1,"loss":0.25,"lr":1e-05,"grad_norm":null,'
LINE += '"seconds_per_step":0.5,"images_per_second":8.0,"data_seconds":null,'
LINE += '"allocated_memory_gib":null,"reserved_memory_gib":null,"peak_memory_gib":null,"d":null}'

EXAMPLES = {str: "text", int: 3, float: 0.5, bool: True, dict[str, str]: {"a": "b"}, dict[str, int]: {"64x64": 4}}
SAMPLE = SampleImage(path="validation/a.jpg", prompt_index=0, image_index=1, prompt="a red circle")


def example(kind: type[Event]) -> Event:
    """An event of `kind` with a value of the right type in every field."""

    def value(hint: typing.Any) -> typing.Any:
        if hint == list[SampleImage]:
            return [SAMPLE]
        if typing.get_origin(hint) is typing.Literal:
            return typing.get_args(hint)[0]
        return EXAMPLES[hint] if hint in EXAMPLES else value(typing.get_args(hint)[0])

    return kind(**{name: value(hint) for name, hint in typing.get_type_hints(kind).items()})


def test_the_line_is_the_one_readers_of_other_versions_know() -> None:
    assert event_to_line(STEP) == LINE


@pytest.mark.parametrize("kind", EVENT_KINDS.values())
def test_every_kind_comes_back_as_it_was(kind: type[Event]) -> None:
    event = example(kind)
    assert event_from_line(event_to_line(event)) == event


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_survives_as_strict_json(loss: float) -> None:
    line = event_to_line(StepLogged(**{**vars(STEP), "loss": loss}))

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    assert json.loads(line, parse_constant=refuse)["loss"] == str(loss)
    read = event_from_line(line)
    assert isinstance(read, StepLogged)
    assert str(read.loss) == str(loss)


@pytest.mark.parametrize("text", ["\x1b]52;c;UFdO\x07", "\u202e\x9b31m", "\ud800", "a\nb\r\0", '{"kind":"RunFailed"'])
def test_hostile_text_stays_one_line_of_printable_ascii_and_comes_back(text: str) -> None:
    event = RunFailed(what=text, step=3, exit_code=1)
    line = event_to_line(event)
    assert line.isascii()
    assert line.isprintable()
    assert event_from_line(line) == event


def test_an_unknown_kind_is_kept_whole() -> None:
    line = '{"kind":"LossSmoothed","time":9.5,"step":3,"value":[1,{"a":null}]}'
    event = event_from_line(line)
    assert event == UnknownEvent(time=9.5, kind="LossSmoothed", fields={"step": 3, "value": [1, {"a": None}]})
    assert event_to_line(event) == line
    assert step_of(event) == 3


def test_an_unknown_field_is_ignored() -> None:
    assert event_from_line(LINE.replace('"step"', '"colour":"blue","step"')) == STEP


def test_a_new_choice_of_a_known_field_is_kept() -> None:
    event = event_from_line('{"kind":"PhaseProgressed","time":1.0,"phase":"warm_up","done":1,"total":2}')
    assert event == PhaseProgressed(time=1.0, phase="warm_up", done=1, total=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line",
    [
        LINE.replace('"loss":0.25', '"loss":"low"'),
        LINE.replace('"loss":0.25', '"loss":null'),
        LINE.replace('"loss":0.25,', ""),
        LINE.replace('"step":7', '"step":[7]'),
        LINE.replace('"time":5.0', '"time":"noon"'),
    ],
)
def test_a_known_kind_with_a_damaged_field_is_not_trusted(line: str) -> None:
    event = event_from_line(line)
    assert isinstance(event, UnknownEvent)
    assert event.kind == "StepLogged"


@pytest.mark.parametrize(
    "line", [b"", b"\xff\xfe", b"{}", b"[]", b"null", b'"kind"', b'{"kind":"StepL', b"[" * 100_000, b"1" * 5000]
)
def test_a_line_that_is_no_event_is_kept_as_text(line: bytes) -> None:
    event = event_from_line(line)
    assert isinstance(event, UnknownEvent)
    assert event.kind == ""
    assert event.fields == {"line": line.decode("utf-8", "backslashreplace")}


@pytest.mark.parametrize("line", ['{"kind":["a"]}', '{"kind":null,"time":null}', '{"kind":"UnknownEvent","fields":3}'])
def test_a_strange_kind_is_unknown(line: str) -> None:
    assert isinstance(event_from_line(line), UnknownEvent)


def test_saved_samples_read_back_as_sample_images() -> None:
    event = event_from_line(event_to_line(SamplesSaved(step=1, epoch=0, images=[SAMPLE], seconds=math.nan)))
    assert isinstance(event, SamplesSaved)
    assert event.images == [SAMPLE]


def test_every_kind_is_made_by_the_engine() -> None:
    engine = Path(__file__).parents[3] / "tuitrain" / "engine"
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in engine.glob("*.py")]
    calls = [node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = {getattr(function, "attr", getattr(function, "id", "")) for function in calls}
    assert set(EVENT_KINDS) - made == set()
