"""What every group of settings is made of: the frozen base class, the types of values, and what a field says of itself.

In the types below, a size is a whole number of pixels (a square) or (height, width).
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidatorFunctionWrapHandler, WrapValidator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

Section = Literal[
    "run", "model", "dataset", "captions", "optimizer", "schedule", "loss", "memory", "validation", "checkpoints"
]
Tier = Literal["basic", "advanced"]
PathKind = Literal["", "folder", "file", "hub"]

PAIR_LENGTH = 2
MAX_SIDE = 8192
"""Longest side of a training or sample picture in pixels; latents above it fit on no card."""


def about(
    section: Section,
    *,
    unit: str = "",
    tier: Tier = "advanced",
    source: str = "",
    rule: str = "",
    path_kind: PathKind = "",
) -> JsonDict:
    """What a form or a page of docs shows of a field beside its help.

    Args:
        section: the group the field is shown in.
        unit: of the number; empty for a pure number or a text.
        tier: "basic" for what most users change.
        source: where the value or the method comes from.
        rule: what a value must be, where type and bounds do not say it.
        path_kind: what the text names on disk, relative to the current folder: a "folder", a "file", or with "hub"
            either of them or a name on the Hugging Face Hub.
    """
    return {
        "section": section,
        "unit": unit,
        "tier": tier,
        "source": source,
        "rule": rule,
        "path_kind": path_kind,
    }


def _refuse_bool(value: object) -> object:
    """YAML reads `yes` as true, and Python counts true as 1: a slip, never a number."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_from_bool", "a number is needed, not true or false")
    return value


def _refuse_control_characters(text: str) -> str:
    """NUL ends a path in C, ESC steers a terminal, a lone surrogate cannot be written as UTF-8."""
    for character in text:
        code = ord(character)
        if (code < 0x20 and character not in "\n\t") or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000:
            raise PydanticCustomError("control_character", "a control character")
    return text


def refuse_blank(text: str) -> str:
    """Let text through that has something to see."""
    if not text.strip():
        raise PydanticCustomError("blank_text", "empty text")
    return text


def _read_size(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """One sentence for a wrong size, in place of one complaint per member of the union."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    is_pair = isinstance(value, list | tuple) and len(values) == PAIR_LENGTH
    if isinstance(value, list | tuple) and not is_pair:
        raise PydanticCustomError("size", "a size has one or two numbers")
    sides = []
    for side in values:
        try:
            number = float(side) if isinstance(side, int | float | str) and not isinstance(side, bool) else 0.0
        except (ValueError, OverflowError):
            number = 0.0
        if not (1 <= number <= MAX_SIDE and number == int(number)):
            raise PydanticCustomError("size", "not a size in pixels")
        sides.append(int(number))
    return handler(tuple(sides) if is_pair else sides[0])


Whole = Annotated[int, BeforeValidator(_refuse_bool)]
Number = Annotated[float, BeforeValidator(_refuse_bool)]
Text = Annotated[str, AfterValidator(_refuse_control_characters)]
Name = Annotated[str, AfterValidator(_refuse_control_characters), AfterValidator(refuse_blank)]
"""A path, a model name or a column name: text that is not empty."""
Size = Annotated[int | tuple[int, int], WrapValidator(_read_size)]


class Settings(BaseModel):
    """Base of every section: frozen, unknown keys and non-finite numbers refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
    )
