"""Who loads what when it runs; import-linter checks who may name whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "tuitrain"
TENSORS = {"torch", "diffusers", "transformers", "accelerate", "safetensors", "bitsandbytes", "tensorboard"}
PIXELS = {"PIL", "numpy", "datasets"}
SCREEN = {"textual", "rich", "typer", "click"}


def _loaded_by(statement: str) -> set[str]:
    """Top-level names in sys.modules after `statement` has run in a fresh interpreter."""
    code = (
        f"import contextlib, sys\nwith contextlib.suppress(SystemExit):\n    {statement}\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("sys.argv = ['tuitrain', '--help']; import tuitrain.cli; tuitrain.cli.main()", TENSORS | PIXELS | {"yaml"}),
        ("sys.argv = ['tuitrain', 'train', '--help']; import tuitrain.cli; tuitrain.cli.main()", TENSORS | PIXELS),
        ("import tuitrain.cli", TENSORS | PIXELS | {"pydantic", "yaml", "rich"}),
        ("import tuitrain.foreground, tuitrain.plan", TENSORS),
        ("import tuitrain.engine.thread, tuitrain.engine.launch", TENSORS | PIXELS | SCREEN),
        ("import tuitrain.engine.bench", TENSORS | SCREEN),
        (
            "import tuitrain.engine.hub, tuitrain.engine.original_names",
            TENSORS | PIXELS | SCREEN | {"pydantic", "yaml"},
        ),
        ("import tuitrain.config.files, tuitrain.config.fields", TENSORS | PIXELS | SCREEN),
        (
            "import tuitrain.runs.run, tuitrain.runs.journal, tuitrain.runs.control, tuitrain.runs.checkpoints",
            TENSORS | PIXELS | SCREEN | {"pydantic", "yaml"},
        ),
        ("import tuitrain.gpu, tuitrain.errors, tuitrain.atomic", TENSORS | PIXELS | SCREEN | {"pydantic", "yaml"}),
        ("import tuitrain.data.buckets, tuitrain.data.captions", TENSORS | PIXELS | SCREEN),
        ("import tuitrain.data.sources, tuitrain.data.files", TENSORS | PIXELS | SCREEN | {"pydantic", "yaml"}),
        ("import tuitrain.data.images, tuitrain.data.dataset", TENSORS | SCREEN),
        (
            "import tuitrain.export.comparison, tuitrain.export.request",
            TENSORS | PIXELS | SCREEN | {"pydantic", "yaml"},
        ),
        ("import tuitrain.export.invokeai", TENSORS - {"safetensors"} | PIXELS | SCREEN | {"pydantic", "yaml"}),
        ("import tuitrain.demo.create", TENSORS | PIXELS | SCREEN),
        ("import tuitrain.demo.measure, tuitrain.demo.picture_set, tuitrain.demo.vocabulary", TENSORS | SCREEN),
    ],
)
def test_import_loads_nothing_heavier_than_its_room_needs(statement: str, forbidden: set[str]) -> None:
    assert _loaded_by(statement) & forbidden == set()


@pytest.mark.slow  # 8 s: it loads torch and diffusers
def test_the_trainer_loads_no_screen() -> None:
    assert _loaded_by("import tuitrain.engine.trainer") & {"textual", "typer"} == set()


def test_package_init_files_are_empty() -> None:
    assert [str(path) for path in PACKAGE.rglob("__init__.py") if path.stat().st_size] == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is(path: Path) -> None:
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
