"""What is kept on disk is written through tuitrain/atomic.py, but for the places named here, each with its reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "tuitrain"

ALLOWED = {
    # appended to, or written in place on purpose
    ("runs/journal.py", "Journal.__init__"): "appended line by line; a torn last line waits or is closed",
    ("runs/journal.py", "Journal._write_waiting"): "the same file",
    (
        "runs/heartbeat.py",
        "Heartbeat.beat",
    ): "40 bytes over the 40 before; who cannot read them knows no beat",
    (
        "runs/run.py",
        "Run.lock",
    ): "a renamed file would not be the locked one; unreadable, it names nobody",
    ("runs/run.py", "Run.create"): "an empty journal, which makes the folder a run",
    ("runs/checkpoints.py", "pin_checkpoint"): "an empty file, there or not",
    ("engine/launch.py", "_logging_to"): "the log, for humans",
    ("foreground.py", "_redirect"): "the log, for humans",
    ("detached.py", "_start"): "the log, for humans",
    ("tui/terminal_guard.py", "TerminalGuard.log_to"): "the log, for humans",
    ("tui/terminal_guard.py", "_TerminalDevice.write"): "the terminal",
    # inside a folder of atomic_dir that a caller opened, or of a process that removes it
    ("export/package.py", "_write_texts"): "into the folder of atomic_dir in package",
    ("export/base_files.py", "copy_file"): "into the folder of atomic_dir in package",
    ("export/compare.py", "_write"): "a picture of the folder of atomic_dir above it",
    ("export/lora_file.py", "FactorStore.__init__"): "memory on disk that has lost its name when it is used",
    ("engine/bench.py", "write_pictures"): "in a folder that goes with the measurement",
    ("engine/bench.py", "run_training"): "in a folder that goes with the measurement",
    ("engine/checkpoint.py", "write_frozen_parts"): "into the staged checkpoint",
    ("tui/external_editor.py", "edit_outside"): "in a folder that goes with the editor",
    # run by hand, to make what ships
    ("demo/build.py", "save_base"): "makes what ships, in the checkout",
    ("demo/picture_set.py", "write_picture_set"): "makes what ships, in the checkout",
    ("demo/vocabulary.py", "write_tokenizers"): "makes what ships, in the checkout",
}
"""(module, function): why it may write without atomic.py."""

WRITING_METHODS = {
    "write_text", "write_bytes", "touch", "save_pretrained", "save_file", "hardlink_to", "symlink_to",
    "save_to_disk", "FileHandler", "NamedTemporaryFile", "mkstemp", "copytree", "copyfile", "copy2",
}  # fmt: skip
WRITING_FUNCTIONS = {
    "torch.save", "json.dump", "pickle.dump", "numpy.save", "np.save", "np.savez",
    "os.write", "os.pwrite", "os.ftruncate", "os.link", "os.symlink", "shutil.copy", "shutil.move",
    "save_file", "copyfile",
}  # fmt: skip
OTHER_SAVES = {"safetensors.torch.save", "document.save", "self.saver.save"}
"""To memory, or by functions of ours that are looked at themselves."""
WRITING_FLAGS = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND", "O_TRUNC"}


def writing_calls(source: str) -> Iterator[tuple[str, int, str]]:
    """(qualified name of the function, line, call) of all that writes, but into what an atomic_* around it yields."""
    yield from _in(ast.parse(source), "", frozenset())


def _in(node: ast.AST, name: str, temporaries: frozenset[str]) -> Iterator[tuple[str, int, str]]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        name = f"{name}.{node.name}" if name else node.name
    if isinstance(node, ast.With):
        temporaries |= {
            item.optional_vars.id
            for item in node.items
            if isinstance(item.optional_vars, ast.Name)
            and isinstance(item.context_expr, ast.Call)
            and ast.unparse(item.context_expr.func) in ("atomic_file", "atomic_dir")
        }
    if isinstance(node, ast.Call) and _writes(node):
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        if not names & temporaries:
            yield name, node.lineno, ast.unparse(node)
    for child in ast.iter_child_nodes(node):
        yield from _in(child, name, temporaries)


def _writes(call: ast.Call) -> bool:
    if "os.devnull" in ast.unparse(call):
        return False
    function = ast.unparse(call.func)
    last = function.rpartition(".")[2]
    arguments = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg in ("mode", "flags"))]
    if function == "os.open":
        return any(flag in ast.unparse(argument) for argument in arguments for flag in WRITING_FLAGS)
    if last in ("open", "fdopen"):
        modes = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
        return any(isinstance(mode, str) and set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes)
    if last == "save" and "." in function and call.args:
        return function not in OTHER_SAVES
    return function in WRITING_FUNCTIONS or ("." in function and last in WRITING_METHODS)


def found_writers() -> dict[tuple[str, str], list[str]]:
    writers: dict[tuple[str, str], list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        if module != "atomic.py":
            for name, line, call in writing_calls(path.read_text(encoding="utf-8")):
                writers.setdefault((module, name), []).append(f"{module}:{line}: {call}")
    return writers


def test_only_the_named_places_write_to_disk_without_the_atomic_writers() -> None:
    unnamed = [call for place, calls in found_writers().items() if place not in ALLOWED for call in calls]
    assert unnamed == [], "use atomic_file, write_text_atomic or atomic_dir of tuitrain/atomic.py"


def test_every_named_place_still_writes() -> None:
    assert sorted(ALLOWED.keys() - found_writers().keys()) == []


@pytest.mark.parametrize(
    "call",
    [
        'open(path, "w")',
        'open(path, mode="ab")',
        'path.open("xb")',
        'path.open("r+b")',
        "os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)",
        'os.fdopen(descriptor, "w")',
        "path.write_text(text)",
        "path.write_bytes(data)",
        "path.touch()",
        "torch.save(tensors, path)",
        "unet.save_pretrained(folder)",
        "json.dump(values, file)",
        "save_file(tensors, path)",
        "safetensors.torch.save_file(tensors, path)",
        "picture.save(path)",
        "shutil.copytree(source, target)",
        "with other(path) as temporary:\n    temporary.write_text(text)",
    ],
)
def test_a_write_is_seen(call: str) -> None:
    assert list(writing_calls(call))


@pytest.mark.parametrize(
    "call",
    [
        'open(path, "rb")',
        "open(path)",
        "os.open(path, os.O_RDONLY)",
        "Run.open(path)",
        "path.read_text()",
        "text.replace(old, new)",
        "os.open(os.devnull, os.O_WRONLY)",
        "temporary.rename(path)",
        "write_text_atomic(path, text)",
        "with atomic_file(path) as temporary:\n    temporary.write_text(text)",
        "with atomic_dir(path) as folder:\n    picture.save(folder / name)",
    ],
)
def test_what_does_not_write_is_not_reported(call: str) -> None:
    assert not list(writing_calls(call))
