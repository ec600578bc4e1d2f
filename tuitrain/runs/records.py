"""Dataclasses as lines of strict JSON and back; knows nothing of what they mean.

Strict JSON has no NaN or infinity, and a loss can be either: such floats travel as the strings "nan", "inf" and "-inf".
Reading is forgiving to newer writers (unknown fields are dropped) and strict to damage (a missing or mistyped field is
a ValueError), so what has been read can be trusted without further checks.
"""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Record = TypeVar("Record")
Reader = Callable[[Any], Any]

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_json(values: Mapping[str, Any], *, indent: int | None = None) -> str:
    """`values`, which may hold dataclasses, as ASCII JSON: no control or bidirectional character survives unescaped."""
    separators = (",", ":") if indent is None else None
    try:
        return json.dumps(values, default=vars, allow_nan=False, indent=indent, separators=separators)
    except ValueError:  # a non-finite float; rare, so only these pay for the walk (10 µs)
        return json.dumps(_without_non_finite(values), indent=indent, separators=separators)


def _without_non_finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else str(value)
        case list() | tuple():
            return [_without_non_finite(item) for item in value]
        case Mapping():
            return {key: _without_non_finite(item) for key, item in value.items()}
        case _ if dataclasses.is_dataclass(value):
            return _without_non_finite(vars(value))
        case _:
            return value


def from_values(record_type: type[Record], values: Any) -> Record:
    """Build a `record_type` from the fields it knows in `values`, a parsed JSON object.

    Raises:
        ValueError: `values` is not an object, or a field is missing or of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{values!r} is not an object")
    record_class: type = record_type
    readers = _field_readers(record_class)
    fields = {name: readers[name](value) for name, value in values.items() if name in readers}
    try:
        return record_type(**fields)
    except TypeError:
        missing = _names_without_default(record_class) - fields.keys()
        raise ValueError(f"it lacks {' and '.join(sorted(missing))}") from None


def _names_without_default(record_type: type) -> set[str]:
    return {
        field.name
        for field in dataclasses.fields(record_type)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }


@functools.cache
def _field_readers(record_type: type) -> dict[str, Reader]:
    return {name: _reader(hint) for name, hint in typing.get_type_hints(record_type).items()}


def _reader(hint: Any) -> Reader:
    """A function that returns a parsed JSON value as `hint` wants it, or raises ValueError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is float:
        return _read_float
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return functools.partial(from_values, hint)
    if origin is typing.Literal:  # a newer version may know more choices, so any string passes
        return _instance_reader(str)
    if origin is types.UnionType:
        (present,) = (argument for argument in arguments if argument is not types.NoneType)
        read_present = _reader(present)
        return lambda value: None if value is None else read_present(value)
    if origin is list:
        read_list, read_item = _instance_reader(list), _reader(arguments[0])
        return lambda value: [read_item(item) for item in read_list(value)]
    if origin is dict:
        read_dict, read_item = _instance_reader(dict), _reader(arguments[1])
        return lambda value: {key: read_item(item) for key, item in read_dict(value).items()}
    return _instance_reader(hint)


def _instance_reader(expected: type) -> Reader:
    def read(value: Any) -> Any:
        if isinstance(value, expected):
            return value
        raise ValueError(f"{value!r} is not of type {expected.__name__}")

    return read


def _read_float(value: Any) -> float:
    if isinstance(value, int | float):
        return value
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    raise ValueError(f"{value!r} is not a number")
