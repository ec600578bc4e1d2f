"""A field's value as one types and reads it, and the next value up or down; knows no single setting.

What is typed is never refused here: a text that cannot be read as the field's type stays the text, for the check to
report and the user to see.
"""

import json
import math
import re
from typing import Any

from tuitrain.config.fields import Field
from tuitrain.config.yaml_text import read_yaml
from tuitrain.errors import ConfigError, printable

_WHOLE = re.compile(r"[-+]?[0-9]+")
_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = ("", "null", "~")
_RUNGS = (1, 2, 5)
_STARTS = (1, 0.999)
"""What a number that is null or no number becomes, where the field says nothing: 0.999 where it must be below 1."""
_LARGEST_LINEAR_STEP = 10
_MAX_DIGITS = 60


# ------------------------------------------------------------------------------------------------------- text <-> value


def parse_text(field: Field, text: str) -> Any:
    """What `text`, typed for `field`, means, as YAML would give it.

    Lists of texts have one entry a line. A text in double quotes is read as JSON, so that every text can be typed:
    `"null"`, one with a line end, one that starts with a quote.
    """
    if field.type == "texts":
        return _parse_texts(field, text)
    if field.type in ("text", "name"):
        return None if field.nullable and text in _NULLS else _parse_plain(text)
    bare = text.strip()
    if field.type == "choice" and bare in field.choices:
        return bare
    if field.nullable and bare in _NULLS:
        return None
    if field.type == "switch":
        return _SWITCHES.get(bare.lower(), bare)
    if field.type in ("whole", "number") and len(bare) < _MAX_DIGITS and _WHOLE.fullmatch(bare):
        return int(bare)
    return _parse_yaml(bare) if field.type in ("number", "size", "group") else bare


def show_text(field: Field, value: Any) -> str:
    """`value` of `field` as one types it: `parse_text` of it gives the value back."""
    if field.type == "texts" and isinstance(value, list | tuple):
        return "\n".join(_show_entry(entry) for entry in value) or ("[]" if field.nullable else "")
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, str) and field.type in ("text", "name"):
        is_plain = value.isprintable() and not _is_quoted(value) and not (field.nullable and value in _NULLS)
        return value if is_plain else json.dumps(value)
    return str(value)


def show_line(field: Field, value: Any) -> str:
    """`value` of `field` on one line, for a list of settings; nothing in it steers a terminal."""
    if field.type == "texts" and isinstance(value, list | tuple):
        return f"{len(value)}: {printable(' | '.join(map(str, value)))}" if value else "none"
    if field.type == "group" and isinstance(value, dict):
        return "set"
    return printable(show_text(field, value))


def parse_suggestion(text: str) -> Any:
    """The value that the suggestion of a `ConfigProblem` stands for."""
    return read_yaml(text, name="").values


def is_same(field: Field, one: Any, other: Any) -> bool:
    """Whether two values of `field`, however they are written, are the same setting."""
    return type(one := _canonical(field, one)) is type(other := _canonical(field, other)) and one == other


def _parse_plain(text: str) -> str:
    if _is_quoted(text):
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return value if isinstance(value, str) else text
    return text


def _is_quoted(text: str) -> bool:
    return text[:1] == '"'


def _parse_texts(field: Field, text: str) -> Any:
    bare = text.strip()
    if bare == "[]":
        return []
    if field.nullable and bare in _NULLS:
        return None
    return [_parse_plain(line) for line in text.split("\n") if line.strip()]


def _show_entry(entry: Any) -> str:
    if not isinstance(entry, str):
        return json.dumps(entry, default=str)
    is_plain = entry.strip() and entry.isprintable() and not _is_quoted(entry) and entry not in ("[]", *_NULLS)
    return entry if is_plain else json.dumps(entry)


def _parse_yaml(text: str) -> Any:
    try:
        document = read_yaml(text, name="")
    except ConfigError:
        return text
    is_wanted = isinstance(document.values, int | float | list | dict) and not document.problems
    return document.values if is_wanted else text


def _canonical(field: Field, value: Any) -> Any:
    if field.type in ("whole", "number"):
        number = _as_number(value)
        return value if number is None else number
    if field.type == "choice" and value is False:  # what YAML makes of a bare no
        return "no"
    return list(value) if isinstance(value, tuple) else value


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


# ---------------------------------------------------------------------------------------------------------------- steps


def next_value(field: Field, value: Any, *, is_up: bool) -> Any:
    """The value of `field` after or before `value`; `value` itself where there is none.

    Numbers climb 1, 2, 5, 10, 20..., whole ones below ten by one, a share near 1 by its distance from 1 (0.99, 0.995,
    0.998). Choices and switches go round, through null where it is a value.
    """
    if field.type in ("choice", "switch", "group"):
        return _next_choice(field, value, is_up=is_up)
    if field.type not in ("whole", "number"):
        return value
    number = _as_number(value)
    if number is None:
        starts = (field.default, field.example, field.bounds.ge, *_STARTS)
        return next(start for start in starts if isinstance(start, int | float) and field.bounds.admit(start))
    stepped = _next_number(field, number, is_up=is_up)
    limit = field.bounds.le if is_up else field.bounds.ge
    if limit is not None:
        stepped = min(stepped, limit) if is_up else max(stepped, limit)
    stepped = round(stepped) if field.type == "whole" else float(f"{stepped:.6g}")
    return stepped if field.bounds.admit(stepped) else value


def _next_choice(field: Field, value: Any, *, is_up: bool) -> Any:
    if field.type == "group":
        return {} if value is None else None
    values: list[Any] = [None] if field.nullable else []
    values += [True, False] if field.type == "switch" else field.choices
    index = values.index(value) if value in values else (-1 if is_up else 0)
    return values[(index + (1 if is_up else -1)) % len(values)]


def _next_number(field: Field, number: float, *, is_up: bool) -> float:
    sign = 1 if is_up else -1
    if field.type == "whole" and abs(number) < _LARGEST_LINEAR_STEP + (0 if is_up else 1):
        return number + sign
    if field.unit == "pixels":
        return number + sign * 64
    if field.bounds.ge is not None and field.bounds.ge < 0:
        return number + sign * 0.1
    if field.bounds.lt == 1 and 0.5 <= number < 1:
        return 1 - _rung(1 - number, is_up=not is_up)
    if number <= 0:
        return 0.001 if is_up else number - 1
    smallest = 1e-3 if field.bounds.ge == 0 and not field.bounds.gt else 0.0
    stepped = _rung(number, is_up=is_up)
    return 0.0 if not is_up and number <= smallest else stepped


def _rung(number: float, *, is_up: bool) -> float:
    """The next of 1, 2, 5 times a power of ten above or below a positive `number`."""
    power = math.floor(math.log10(number))
    rungs = [rung * 10.0**exponent for exponent in (power - 1, power, power + 1) for rung in _RUNGS]
    if is_up:
        return next(rung for rung in rungs if rung > number * (1 + 1e-9))
    return next(rung for rung in reversed(rungs) if rung < number * (1 - 1e-9))
