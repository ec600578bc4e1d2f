"""The schema as a flat list of fields, for forms, messages and docs. Knows no single setting."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tuitrain.atomic import write_text_atomic
from tuitrain.config.schema import TrainConfig
from tuitrain.config.settings import MAX_SIDE, Settings, refuse_blank

FieldType = Literal["whole", "number", "switch", "choice", "text", "name", "size", "texts", "group"]

IS_SET = "(set)"
"""In `Field.when`: the group at the path is not null."""


class Bounds(NamedTuple):
    """Limits of a number; None where there is none."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def admit(self, number: float) -> bool:
        """Whether `number` lies within."""
        return (
            (self.ge is None or number >= self.ge)
            and (self.gt is None or number > self.gt)
            and (self.le is None or number <= self.le)
            and (self.lt is None or number < self.lt)
        )


class Condition(NamedTuple):
    """A field exists only while the setting at `path` has one of `values`."""

    path: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One setting as a form, a message or a page of docs shows it.

    Args:
        path: keys from the top, joined by dots: "optimizer.learning_rate". Variants may share a path.
        type: "whole" number, "number", "switch" (true or false), "choice", "text" (may be empty), "name" (may not),
            "size" in pixels, "texts" (a list), "group" (of settings; listed only where it may be null).
        default: as the config holds it; None when `required`.
        required: has no default.
        nullable: null is a value.
        bounds: limits of a number.
        choices: allowed texts of a choice.
        unit: of a number, perhaps empty.
        section: the group it is shown in.
        tier: "basic" for what most users change, else "advanced".
        help: effect, and when to change it.
        source: where the value or the method comes from, perhaps empty.
        rule: what a value must be, as the end of "it must be ...": "a number above 0 and at most 1, or null".
        path_kind: "folder", "file" or "hub" where the text names something on disk; see `about`.
        example: a value to start from where there is no default; None for most.
        when: all must hold for the field to exist; empty for most.
    """

    path: str
    type: FieldType
    default: object
    required: bool
    nullable: bool
    bounds: Bounds
    choices: tuple[str, ...]
    unit: str
    section: str
    tier: str
    help: str
    source: str
    rule: str
    path_kind: str
    example: object
    when: tuple[Condition, ...]

    @property
    def name(self) -> str:
        """Last key of the path."""
        return self.path.rpartition(".")[2]

    @property
    def parent(self) -> str:
        """Path of the group the field is in; empty at the top."""
        return self.path.rpartition(".")[0]


@cache
def list_fields() -> tuple[Field, ...]:
    """All fields in the order of the schema; the kind of a union comes first, then the fields of its variants."""
    merged: dict[Field, tuple[Condition, ...]] = {}
    for field in _walk(TrainConfig, "", ()):
        bare = replace(field, when=())
        merged[bare] = _either(merged[bare], field.when) if bare in merged else field.when
    all_kinds = {field.path: field.choices for field in merged}
    return tuple(
        replace(bare, when=tuple(condition for condition in when if condition.values != all_kinds.get(condition.path)))
        for bare, when in merged.items()
    )


def existing_fields(values: Mapping[str, Any]) -> list[Field]:
    """The fields that a config with `values`, right or wrong, has: those of its variants and of the groups it sets."""
    defaults = {field.path: field.default for field in list_fields()}
    return [field for field in list_fields() if all(_holds(condition, values, defaults) for condition in field.when)]


def _holds(condition: Condition, values: Mapping[str, Any], defaults: Mapping[str, object]) -> bool:
    value = value_at(values, condition.path)
    if condition.values == (IS_SET,):
        return value is not None
    return (defaults[condition.path] if value is None else value) in condition.values


def value_at(values: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    node: Any = values
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


@cache
def union_kinds() -> dict[str, str]:
    """Path of each union of groups -> name of the key that says which variant it is."""
    kinds: dict[str, str] = {}
    for field in list_fields():
        for condition in field.when:
            if condition.values != (IS_SET,):
                parent, _, key = condition.path.rpartition(".")
                kinds[parent] = key
    return kinds


def _either(first: tuple[Condition, ...], second: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """Conditions of a field that two variants of a union share."""
    return tuple(
        Condition(one.path, tuple(dict.fromkeys((*one.values, *other.values))))
        for one, other in zip(first, second, strict=True)
    )


def _walk(
    model: type[Settings], prefix: str, when: tuple[Condition, ...], *, skip: str | None = None
) -> Iterator[Field]:
    for name, info in model.model_fields.items():
        if name == skip:
            continue
        path = f"{prefix}{name}"
        members, metadata, nullable = _unpack(info)
        variants = [member for member in members if isinstance(member, type) and issubclass(member, Settings)]
        if len(variants) > 1:
            yield from _walk_union(info, path, variants, when)
        elif variants:
            inner = when
            if nullable:
                yield _field(info, path, "group", nullable=True, when=when)
                inner = (*when, Condition(path, (IS_SET,)))
            yield from _walk(variants[0], f"{path}.", inner)
        else:
            yield _leaf(info, path, members, metadata, nullable=nullable, when=when)


def _walk_union(
    info: FieldInfo, path: str, variants: list[type[Settings]], when: tuple[Condition, ...]
) -> Iterator[Field]:
    key = "optimizer_type" if "optimizer_type" in variants[0].model_fields else "type"
    kinds = {variant: get_args(variant.model_fields[key].annotation)[0] for variant in variants}
    variant_help = " ".join(f"{kind}: {variant.model_fields[key].description}" for variant, kind in kinds.items())
    field = _field(info, f"{path}.{key}", "choice", nullable=False, when=when, choices=tuple(kinds.values()))
    default = getattr(info.default, key, None)
    yield replace(field, default=default, help=f"{field.help} {variant_help}")
    for variant, kind in kinds.items():
        yield from _walk(variant, f"{path}.", (*when, Condition(f"{path}.{key}", (kind,))), skip=key)


def _unpack(info: FieldInfo) -> tuple[list[Any], list[Any], bool]:
    """(alternatives of the annotation without null, metadata of all of them, whether null is one)."""
    members: list[Any] = []
    metadata: list[Any] = list(info.metadata)
    pending: list[Any] = [info.annotation]
    nullable = False
    while pending:
        annotation = pending.pop(0)
        origin = get_origin(annotation)
        if annotation is NoneType:
            nullable = True
        elif origin is Annotated:
            inner, *extra = get_args(annotation)
            metadata += extra
            pending.insert(0, inner)
        elif origin in (Union, UnionType):
            pending = [*get_args(annotation), *pending]
        else:
            members.append(annotation)
    return members, metadata, nullable


def _leaf(
    info: FieldInfo,
    path: str,
    members: list[Any],
    metadata: list[Any],
    *,
    nullable: bool,
    when: tuple[Condition, ...],
) -> Field:
    bounds = Bounds(
        ge=_limit(metadata, Ge, "ge"),
        gt=_limit(metadata, Gt, "gt"),
        le=_limit(metadata, Le, "le"),
        lt=_limit(metadata, Lt, "lt"),
    )
    return _field(
        info,
        path,
        _type_of(members, metadata),
        nullable=nullable,
        when=when,
        bounds=bounds,
        choices=get_args(members[0]) if get_origin(members[0]) is Literal else (),
    )


def _limit(metadata: list[Any], kind: type, attribute: str) -> float | None:
    return next((getattr(item, attribute) for item in metadata if isinstance(item, kind)), None)


def _type_of(members: list[Any], metadata: list[Any]) -> FieldType:
    first = members[0]
    if len(members) > 1:
        return "size"
    if get_origin(first) is Literal:
        return "choice"
    if get_origin(first) is tuple:
        return "texts"
    if first is str:
        is_name = any(isinstance(item, AfterValidator) and item.func is refuse_blank for item in metadata)
        return "name" if is_name else "text"
    types: dict[Any, FieldType] = {bool: "switch", int: "whole", float: "number"}
    return types[first]


def _field(
    info: FieldInfo,
    path: str,
    type_: FieldType,
    *,
    nullable: bool,
    when: tuple[Condition, ...],
    bounds: Bounds = Bounds(),  # noqa: B008 - an immutable tuple
    choices: tuple[str, ...] = (),
) -> Field:
    shown = info.json_schema_extra
    assert isinstance(shown, dict), path
    assert info.description, path
    return Field(
        path=path,
        type=type_,
        default=None if info.default is PydanticUndefined else info.default,
        required=info.is_required(),
        nullable=nullable,
        bounds=bounds,
        choices=choices,
        unit=str(shown["unit"]),
        section=str(shown["section"]),
        tier=str(shown["tier"]),
        help=info.description,
        source=str(shown["source"]),
        rule=_rule(str(shown["rule"]), type_, bounds, choices, nullable=nullable),
        path_kind=str(shown["path_kind"]),
        example=info.examples[0] if info.examples else None,
        when=when,
    )


def _rule(declared: str, type_: FieldType, bounds: Bounds, choices: tuple[str, ...], *, nullable: bool) -> str:
    nouns: dict[FieldType, str] = {
        "whole": "a whole number",
        "number": "a number",
        "switch": "true or false",
        "choice": choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}",
        "text": "text",
        "name": "text that is not empty",
        "size": f"a whole number of pixels from 1 to {MAX_SIDE}, or two of them as [height, width]",
        "texts": "a list of texts",
        "group": "a group of settings",
    }
    words = (("at least", bounds.ge), ("above", bounds.gt), ("at most", bounds.le), ("below", bounds.lt))
    limits = " and ".join(f"{word} {limit:.10g}" for word, limit in words if limit is not None)
    rule = declared or f"{nouns[type_]} {limits}".rstrip()
    return f"{rule}, or null" if nullable else rule


# ---------------------------------------------------------------------------------------------------------------- docs

SECTION_TITLES = {
    "run": "Run",
    "model": "Model",
    "dataset": "Pictures",
    "captions": "Captions",
    "optimizer": "Optimizer",
    "schedule": "Length, batch and learning rate schedule",
    "loss": "Loss",
    "memory": "Precision and memory",
    "validation": "Samples",
    "checkpoints": "Checkpoints",
}

_DOCS_HEAD = """\
# Settings

<!-- Generated from tuitrain/config/schema.py by `make docs`; do not edit. -->

A config is a YAML file with the keys below; a dot stands for one level of indentation. `type`, `base_output_dir`, a
`data_loader` with its dataset, one of `max_train_steps` and `max_train_epochs`, and one of `save_every_n_steps` and
`save_every_n_epochs` must be there; with `validation_prompts`, also one of `validate_every_n_steps` and
`validate_every_n_epochs`. All else has a default. Unknown keys are errors.

`--set KEY=VALUE` on the command line sets one key, as in `--set optimizer.learning_rate=1e-5`; the value is YAML. To
change the kind of a group, set all of it: `--set 'optimizer={optimizer_type: Prodigy}'`.

Configs of type `SDXL_FINETUNE` written for invoke-training load unchanged. Settings in **bold** are the ones most runs
change.
"""


def render_config_docs() -> str:
    """The reference page of all settings, as Markdown."""
    sections = [
        "\n".join(_render_section(title, [field for field in list_fields() if field.section == section]))
        for section, title in SECTION_TITLES.items()
    ]
    return "\n".join([_DOCS_HEAD, *sections])


def write_config_docs(path: Path) -> None:
    """Write `render_config_docs()` to `path`."""
    write_text_atomic(path, render_config_docs())


def _render_section(title: str, fields: list[Field]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| key | value | default | what it does |"
    yield "|---|---|---|---|"
    for field in fields:
        key = f"**`{field.path}`**" if field.tier == "basic" else f"`{field.path}`"
        rule = f"{field.rule}; {field.unit}" if field.unit and field.unit not in field.rule else field.rule
        default = "needed" if field.required else f"`{show_default(field)}`"
        only = "".join(f" Only with {_render_condition(condition)}." for condition in field.when[-1:])
        source = f" Source: {field.source}." if field.source else ""
        yield f"| {key} | {rule} | {default} | {field.help}{only}{source} |"
    yield ""


def _render_condition(condition: Condition) -> str:
    if condition.values == (IS_SET,):
        return f"`{condition.path}`"
    return f"`{condition.path}` " + " or ".join(condition.values)


def show_default(field: Field) -> str:
    """The default of a field as YAML."""
    if field.default is None:
        return "null"
    if isinstance(field.default, tuple):
        return "[]"
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
