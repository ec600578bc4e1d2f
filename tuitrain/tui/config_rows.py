"""A config document as lines of text: rows of the list, details of a setting, what a run would take. Draws nothing."""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from tuitrain.config.fields import IS_SET, SECTION_TITLES, Field, list_fields, show_default
from tuitrain.config.problems import ConfigProblem
from tuitrain.errors import Problem, printable
from tuitrain.tui.document import ConfigDocument
from tuitrain.tui.widgets.field_list import FieldRow
from tuitrain.wording import format_bytes

if TYPE_CHECKING:
    from tuitrain.plan import Estimate

SHORT_TITLES = {**SECTION_TITLES, "schedule": "Schedule"}


class Filter(NamedTuple):
    """Which settings are listed.

    Args:
        query: words that must all be in key, label or help; empty lists all.
        is_changed_only: only what differs from the preset.
    """

    query: str = ""
    is_changed_only: bool = False


def build_rows(document: ConfigDocument, wanted: Filter) -> list[FieldRow]:
    """The rows to list: by section, the settings most runs change before the others; best matches first in a search."""
    if wanted.query:
        return [_row(document, field) for field in search_fields(document, wanted.query)]
    rows: list[FieldRow] = []
    fields = [field for field in document.fields if not wanted.is_changed_only or field.path in document.changed]
    groups = {field.path: field.tier for field in fields if field.type == "group"}
    for section, title in SECTION_TITLES.items():
        for tier, heading in (("basic", title), ("advanced", f"{title}, advanced")):
            inside = [
                field for field in fields if field.section == section and groups.get(field.parent, field.tier) == tier
            ]
            if inside:
                rows += [FieldRow("", heading), *(_row(document, field) for field in inside)]
    return rows


def search_fields(document: ConfigDocument, query: str) -> list[Field]:
    """All settings with every word of `query`, also those that do not exist now; matches of the key come first."""
    words = query.casefold().split()
    existing = document.fields
    paths = {field.path for field in existing}
    others = [field for field in list_fields() if field not in existing and field.path not in paths]
    found: dict[str, tuple[bool, Field]] = {}
    for field in [*existing, *others]:
        key = field.path.casefold()
        # In sentences a word begins with what is sought: "rate" is not to find "generate".
        text = f" {SECTION_TITLES[field.section]} {re.sub(r'[^0-9A-Za-z_.]', ' ', field.help)}".casefold()
        if field.path not in found and all(word in key or f" {word}" in text for word in words):
            found[field.path] = (not all(word in key for word in words), field)
    return [field for _, field in sorted(found.values(), key=lambda entry: entry[0])]


def label_of(field: Field) -> str:
    """The path without its first group, where that leaves a name that says enough: `dataset.jsonl_path`."""
    label = field.path.partition(".")[2] or field.path
    return field.path if label == "type" else label


def section_lines(document: ConfigDocument) -> list[tuple[str, str]]:
    """(title, marks) of each section; the marks count what differs and what is wrong: `*3 !1`."""
    sections = {field.path: field.section for field in document.fields}
    changed = Counter(sections[path] for path in document.changed)
    fields = [document.field_of(problem) for problem in document.problems]
    wrong = Counter(field.section for field in fields if field is not None)
    lines = []
    for section, title in SHORT_TITLES.items():
        counts = (("*", changed[section]), ("!", wrong[section]))
        lines.append((title, " ".join(f"{sign}{count}" for sign, count in counts if count)))
    return lines


def short_reason(problem: ConfigProblem) -> str:
    """What is wrong without the setting and its value, which stand beside it."""
    before, is_rule, rule = problem.what.partition(", it must be ")
    if is_rule:
        return f"{'missing, ' if before.endswith(' is missing') else ''}must be {rule}"
    return problem.what


def _row(document: ConfigDocument, field: Field) -> FieldRow:
    if document.field_at(field.path) != field:
        return FieldRow(field.path, label_of(field), note=_needs(document, field), rule=field.rule, is_off=True)
    problem = document.problem_of(field)
    base = document.changed.get(field.path)
    note = mark = ""
    if problem is not None:
        note, mark = short_reason(problem), "!"
    elif base is not None:
        note, mark = (f"was {base}" if base else "new"), "*"
    unit = f" {field.unit}" if field.unit and field.unit not in field.rule else ""
    return FieldRow(
        field.path,
        label_of(field),
        value=document.line_of(field),
        note=note,
        base=document.base_line_of(field),
        rule=f"{field.rule}{unit}",
        mark=mark,
        is_set=document.is_set(field),
    )


def _needs(document: ConfigDocument, field: Field) -> str:
    """The choice that has the field, the outermost that is not made."""
    for condition in field.when:
        chosen = document.field_at(condition.path)
        value = "" if chosen is None else document.line_of(chosen)
        if condition.values == (IS_SET,):
            if value in ("", "null"):
                return f"needs {condition.path}"
        elif value not in condition.values:
            return f"needs {condition.path} {' or '.join(condition.values)}"
    return ""


# ---------------------------------------------------------------------------------------------------------- details


def describe_field(document: ConfigDocument, field: Field) -> Text:
    """What is wrong first, then the help and where the value comes from; last what a path stands for."""
    text = Text()
    problem = document.problem_of(field)
    is_here = document.field_at(field.path) == field
    if problem is not None:
        text.append(f"! {printable(problem.what)}", style="bold")
        text.append(f": {printable(problem.hint)}" if problem.hint else "")
        text.append("  (tab takes it)" if problem.suggestion else "")
        text.append("\n")
    elif not is_here:
        text.append(f"! {_needs(document, field)}\n", style="bold")
    text.append(f"{field.help}\n")
    facts = []
    if is_here:
        origin = "Preset" if document.preset is not None else "Opened with"
        facts.append(f"{origin} {document.base_line_of(field) or 'none'}")
    facts.append("no default" if field.required else f"default {show_default(field)}")
    facts += [field.unit] if field.unit else []
    facts += [f"source: {field.source}"] if field.source else []
    text.append(" · ".join(facts), style="dim")
    if is_here and field.path_kind and document.line_of(field) != "null":
        text.append(f"\n{describe_path(field, document.text_of(field))}")
    return text


def describe_path(field: Field, value: str) -> str:
    """What a path in a config stands for: it is relative to the folder the app was started in."""
    try:
        path = Path(value).expanduser().absolute()
        is_there = path.exists()
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL, no such home
        return "! no path on this system"
    shown = printable(path)
    if is_there:
        is_wrong = path.is_dir() != (field.path_kind == "folder") and field.path_kind != "hub"
        return f"= {shown}" + (f"  ! a {'folder' if path.is_dir() else 'file'}" if is_wrong else "")
    if field.path_kind == "hub" and re.fullmatch(r"[\w.-]+/[\w.-]+", value):
        return "A name on the Hugging Face Hub: no such folder is here."
    return f"= {shown}  (not there yet)"


def describe_estimate(document: ConfigDocument, estimate: "Estimate | str | None") -> Text:
    """What the run would take, as far as it is known; everything here is an estimate and says so.

    Args:
        estimate: by names and headers; why it cannot be made; or None while it is made.
    """
    facts = []
    if isinstance(estimate, str):
        facts.append(f"! {printable(estimate)}")
    elif estimate is None:
        facts.append("est. …" if document.config is not None else "no estimate while something is wrong")
    else:
        facts.append(f"est. {_describe_length(estimate)}")
        if estimate.checkpoints_bytes is not None:
            is_short = estimate.checkpoints_bytes > estimate.free_bytes
            facts.append(
                f"{'! ' if is_short else ''}disk {format_bytes(estimate.checkpoints_bytes)} of "
                f"{format_bytes(estimate.free_bytes)}"
            )
    text = Text(" · ".join(facts), no_wrap=True, overflow="ellipsis")
    header = document.header
    if header is not None and (header.time or header.vram):
        origin = "Preset" if document.preset is not None else "Its header"
        text.append(f"\n{origin}: {printable(header.time)} · memory {printable(header.vram)}", style="dim")
    return text


def _describe_length(estimate: "Estimate") -> str:
    pictures = "pictures: after the download" if estimate.num_images is None else f"{estimate.num_images} pictures"
    steps = "" if estimate.total_steps is None else f" · {estimate.total_steps} steps"
    epochs = "" if estimate.num_epochs is None else f" · {estimate.num_epochs} epochs"
    each = f" of {estimate.steps_per_epoch}" if estimate.steps_per_epoch else ""
    return f"{pictures}{steps}{epochs}{each}"


def find_setting(document: ConfigDocument, problem: Problem) -> str:
    """Path of the setting that `problem`, found in files, names by its key or whose path it is in; else empty."""
    for field in document.fields:
        value = document.text_of(field)
        if field.path_kind and value != "null" and problem.where.startswith(value):
            return field.path
    names = {field.path: field for field in document.fields} | {
        field.name: field for field in reversed(document.fields)
    }
    for text in (problem.where, problem.hint, problem.what):
        for word in re.findall(r"[a-z_][\w.]*\w", text):
            if word in names and ("_" in word or "." in word or word == "model"):
                return names[word].path
    return ""
