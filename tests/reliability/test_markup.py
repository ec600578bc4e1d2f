"""No text of others is read as markup: the calls of the screens, looked at without running them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tuitrain.tui
from tuitrain.tui.actions import ACTIONS

PACKAGE = Path(tuitrain.tui.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

TAKE_MARKUP_KEYWORD = {"Static", "Label", "OptionList", "Link", "Digits"}
"""Widgets that read str as markup unless they are told `markup=False`."""
ALWAYS_READ_MARKUP = {
    "Button", "Checkbox", "Collapsible", "DataTable", "DirectoryTree", "Markdown", "MarkdownViewer", "RadioButton",
    "RadioSet", "RichLog", "Select", "SelectionList", "Selection", "TabPane", "Tab", "Tabs", "TabbedContent", "Tree",
}  # fmt: skip
"""Widgets whose texts cannot be protected as a whole; a screen that needs one teaches this test how."""
PARSERS = {"from_markup", "render_markup", "render_str", "print"}
PLAIN = {"Text", "Content", "assemble", "from_ansi"}
"""What makes a text that is no markup: the classes, and their makers."""
MARKUP_ATTRIBUTES = {"border_title", "border_subtitle", "tooltip", "BORDER_TITLE", "BORDER_SUBTITLE"}


def findings(source: str) -> list[str]:
    """What in `source` could read the text of others as markup, as "line: what"."""
    tree = ast.parse(source)
    return [
        f"{node.lineno}: {what}"
        for function in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]
        for node, what in _findings_in(function)
    ]


def _findings_in(scope: ast.Module | ast.FunctionDef) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    nodes = list(_own_nodes(scope))
    for node in nodes:
        if isinstance(node, ast.Call):
            if what := _why_not_call(node):
                yield node, what
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {
                target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "") for target in targets
            }
            if names & MARKUP_ATTRIBUTES and not _is_plain(node.value, nodes):
                yield node, f"{', '.join(sorted(names))} takes a str as markup: give a Text or Content"
        elif isinstance(node, ast.ClassDef):
            yield from ((node, what) for what in _why_not_class(node))
    if isinstance(scope, ast.FunctionDef) and scope.name == "render":
        annotation = ast.unparse(scope.returns) if scope.returns else "nothing"
        if annotation not in ("Text", "Content", "RenderResult") or any(
            isinstance(node, ast.Return) and isinstance(node.value, ast.Constant | ast.JoinedStr) for node in nodes
        ):
            yield scope, f"render() gives {annotation}, and a str would be read as markup"


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of `scope` without those of the functions inside it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, ast.FunctionDef):
            yield from _own_nodes(child)


def _why_not_call(call: ast.Call) -> str | None:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in TAKE_MARKUP_KEYWORD and not _is_false(keywords.get("markup")):
        return f"{name} without markup=False"
    if name in ALWAYS_READ_MARKUP:
        return f"{name} reads its texts as markup"
    if name in PARSERS:
        return f"{name} parses markup"
    if name == "notify" and not _is_false(keywords.get("markup")) and not _is_plain(call.args[0], []):
        return "notify of what is no literal, without markup=False"
    if "markup" in keywords and not _is_false(keywords["markup"]):
        return f"{name} with markup"
    if "tooltip" in keywords and not _is_registered_help(keywords["tooltip"]):
        return "a tooltip that is not of the registry of actions"
    return None


def _why_not_class(node: ast.ClassDef) -> Iterator[str]:
    """A subclass of a widget with a markup switch says markup=False to it."""
    if {getattr(base, "id", "") for base in node.bases} & TAKE_MARKUP_KEYWORD:
        calls = [
            call for call in ast.walk(node) if isinstance(call, ast.Call) and "super().__init__" in ast.unparse(call)
        ]
        if not any(_is_false(keyword.value) for call in calls for keyword in call.keywords if keyword.arg == "markup"):
            yield f"{node.name} hands no markup=False to its base"


def _is_false(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _is_registered_help(node: ast.expr) -> bool:
    return ast.unparse(node) == "action.help"


def _is_plain(node: ast.expr, scope: list[ast.AST]) -> bool:
    """Whether `node` is a literal without markup, or a Text or Content made here."""
    match node:
        case ast.Constant(value=None):
            return True
        case ast.Constant(value=str(text)):
            return "[" not in text
        case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
            return name in PLAIN
        case ast.IfExp(body=body, orelse=orelse):
            return _is_plain(body, scope) and _is_plain(orelse, scope)
        case ast.Name(id=name):
            values = [
                one.value
                for one in scope
                if isinstance(one, ast.Assign)
                and any(isinstance(target, ast.Name) and target.id == name for target in one.targets)
            ]
            return bool(values) and all(_is_plain(value, []) for value in values)
    return False


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_call_reads_what_is_no_literal_as_markup(path: Path) -> None:
    assert findings(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "Static(name)",
        "Static(f'{name}')",
        "Label(name, markup=True)",
        "OptionList(name)",
        "Button(name)",
        "table = DataTable()",
        "self.notify(name)",
        "app.notify(f'{name}', title='x')",
        "box.border_title = name",
        "box.border_title = f'{name}'",
        "box.border_subtitle = escape_control(name)",
        "box.border_title = Text(name) if name else name",
        "def f():\n    title = name\n    box.border_title = title",
        "widget.tooltip = name",
        "Text.from_markup(name)",
        "Content.from_markup(name)",
        "console.print(name)",
        "Binding('a', 'b', tooltip=name)",
        "class A(Static):\n    pass",
        "class A(Widget):\n    def render(self) -> str:\n        return self.name",
        "class A(Widget):\n    def render(self) -> RenderResult:\n        return f'{self.name}'",
        "class A(Widget):\n    BORDER_TITLE = NAME",
    ],
)
def test_the_lint_finds_every_way_to_forget(source: str) -> None:
    assert len(findings(source)) == 1


def test_texts_of_the_registry_are_no_markup() -> None:
    assert [action.id for action in ACTIONS if "[" in action.label + action.help] == []
