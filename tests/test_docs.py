"""The documentation against the code: generated pages are fresh, links lead somewhere, commands exist."""

import re
import shlex
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from tuitrain.commands.program import app
from tuitrain.config.fields import render_config_docs
from tuitrain.runs.event_docs import render_event_docs
from tuitrain.tui.key_docs import render_key_docs

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def _relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def _shell_lines(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def test_the_page_of_settings_is_fresh() -> None:
    assert (REPOSITORY / "docs" / "config.md").read_text(encoding="utf-8") == render_config_docs(), "run `make docs`"


def test_the_page_of_events_is_fresh() -> None:
    assert (REPOSITORY / "docs" / "events.md").read_text(encoding="utf-8") == render_event_docs(), "run `make docs`"


def test_the_page_of_keys_is_fresh() -> None:
    assert (REPOSITORY / "docs" / "keys.md").read_text(encoding="utf-8") == render_key_docs(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=_relative)
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=_relative)
def test_commands_in_the_docs_exist_with_their_options(page: Path) -> None:
    program = get_command(app)
    assert isinstance(program, TyperGroup)
    for line in _shell_lines(page):
        for words in _invocations(line):
            command = program.commands.get(words[0])
            assert command is not None, line
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=_relative)
def test_modules_in_the_docs_can_be_run(page: Path) -> None:
    names = re.findall(r"-m ((?:tuitrain|tests)[\w.]*)", page.read_text(encoding="utf-8"))
    for name in names:
        path = REPOSITORY / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name


def _invocations(line: str) -> list[list[str]]:
    """The arguments of each call of `tuitrain` in a shell line."""
    calls = (shlex.split(part, comments=True) for part in re.split(r"&&|;|\|(?![^ ]*[a-z]\b)|>", line))
    programs = ("tuitrain", ".venv/bin/tuitrain")
    return [call[1:] for call in calls if call and call[0] in programs and len(call) > 1]


def test_the_readme_has_one_single_line_for_the_demo_and_one_for_the_tests() -> None:
    lines = [line for line in _shell_lines(REPOSITORY / "README.md") if line.startswith("python3 -m venv")]
    assert len(lines) == 2
    demo, tests = lines
    assert demo.endswith(".venv/bin/tuitrain demo")
    assert tests.endswith(".venv/bin/pytest")


def test_every_direct_dependency_is_pinned_within_its_bounds() -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    bounds = [Requirement(text) for text in [*project["dependencies"], *(text for extra in extras for text in extra)]]
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {pin.name: pin for pin in (Requirement(line) for line in lines if not line.startswith("#"))}
    assert {bound.name for bound in bounds} == set(pins)
    for bound in bounds:
        (pinned,) = pins[bound.name].specifier
        assert pinned.operator == "=="
        assert bound.specifier.contains(pinned.version), bound
