"""The questions around a document's file: its name, what is in the way, what is not saved; draws nothing itself."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuitrain.errors import TuitrainError
from tuitrain.tui.document import ConfigDocument, InTheWayError
from tuitrain.tui.widgets.confirm import Choice, ConfirmScreen
from tuitrain.tui.widgets.prompt import PromptScreen

if TYPE_CHECKING:
    from tuitrain.tui.app import TuitrainApp

_ASK_PATH = "Save as (a path from the folder tuitrain was started in)"


def save(app: "TuitrainApp", document: ConfigDocument, then: Callable[[], None]) -> None:
    """Save, asking for a name where there is none; `then` follows when it is saved."""
    if document.path is None:
        _ask_path(app, document, then)
    else:
        _write(app, document, document.path, then)


def save_as_preset(app: "TuitrainApp", document: ConfigDocument) -> None:
    """Ask for a name and write a preset of the user's own."""
    app.push_screen(
        PromptScreen("Name of the preset"), lambda name: _write_preset(app, document, name) if name else None
    )


def ask_unsaved(
    app: "TuitrainApp", document: ConfigDocument, *, keep: str, save_it: str, discard: str, go_on: Callable[[bool], Any]
) -> None:
    """Ask what becomes of changes that no file has.

    Args:
        keep: words for the first answer, which changes nothing.
        save_it: for the second.
        discard: for the third.
        go_on: called with True to save first, with False to discard; not called otherwise.
    """
    choices: list[Choice[bool | None]] = [
        Choice("k", keep, None),
        Choice("s", save_it, True),
        Choice("d", discard, False),
    ]
    question = f"{document.name} has changes that no file has."
    app.push_screen(
        ConfirmScreen[bool | None](question, choices), lambda answer: None if answer is None else go_on(answer)
    )


def _ask_path(app: "TuitrainApp", document: ConfigDocument, then: Callable[[], None]) -> None:
    def write(answer: str | None) -> None:
        if answer is not None:
            path = Path(answer if "." in Path(answer).name else f"{answer}.yaml")
            _write(app, document, path, then)

    name = f"my_{document.preset.name if document.preset else 'config'}.yaml"
    app.push_screen(PromptScreen(_ASK_PATH, name, is_path=True), write)


def _write(
    app: "TuitrainApp", document: ConfigDocument, path: Path, then: Callable[[], None], *, may_replace: bool = False
) -> None:
    try:
        saved = document.save(path, may_replace=may_replace)
    except InTheWayError as error:
        replace = partial(_write, app, document, path, then, may_replace=True)
        _ask_to_replace(app, error, replace, other=partial(_ask_path, app, document, then))
    except TuitrainError as error:
        app.toast(str(error), is_warning=True)
    else:
        wrong = len(document.problems)
        app.toast(f"saved {saved}" + (f", with {wrong} things wrong in it" if wrong else ""))
        then()


def _write_preset(app: "TuitrainApp", document: ConfigDocument, name: str, *, may_replace: bool = False) -> None:
    try:
        path = document.save_as_preset(name, may_replace=may_replace)
    except InTheWayError as error:
        replace = partial(_write_preset, app, document, name, may_replace=True)
        _ask_to_replace(app, error, replace, other=partial(save_as_preset, app, document))
    except TuitrainError as error:
        app.toast(str(error), is_warning=True)
    else:
        app.toast(f"saved as preset {name}: {path}")


def _ask_to_replace(
    app: "TuitrainApp", error: InTheWayError, replace: Callable[[], None], *, other: Callable[[], None]
) -> None:
    choices = (Choice("o", "save under another name", other), Choice("r", "replace it", replace))
    app.push_screen(
        ConfirmScreen(f"{error.problems[0].what}.", choices), lambda chosen: chosen() if chosen is not None else None
    )
