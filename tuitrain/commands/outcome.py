"""How a command ends: errors become words and an exit status; knows no command.

Exit status: 0 done, 1 the work failed, 2 the request was wrong, 70 the GPU failed, 130 interrupted with the
state saved.
"""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from tuitrain.errors import EXIT_INTERRUPTED, Problem, TuitrainError

EXIT_FAILED = 1
EXIT_WRONG_REQUEST = 2


@contextmanager
def errors_told(*, as_json: bool, debug: bool) -> Iterator[None]:
    """Turn exceptions into words and an exit status."""
    try:
        yield
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the process's edge
        raise typer.Exit(tell_failure(error, as_json=as_json, debug=debug)) from None


def tell_failure(error: BaseException, *, as_json: bool = False, debug: bool = False) -> int:
    """Write what went wrong, as a sentence and with `debug` its traceback, too; gives the exit status."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):  # `tuitrain runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    problems, exit_code = _words(error)
    from tuitrain.terminal import write_json, write_line, write_problems

    if debug:
        for line in "".join(traceback.format_exception(error)).splitlines():
            write_line(line, stream=sys.stderr)
    if as_json:
        write_json({"errors": [as_values(problem) for problem in problems], "exit_code": exit_code})
    else:
        write_problems(problems)
    return exit_code


def _words(error: BaseException) -> tuple[Sequence[Problem], int]:
    if isinstance(error, TuitrainError):
        return error.problems, error.exit_code
    if isinstance(error, OSError):
        return [Problem(error.strerror or str(error), where=str(error.filename or ""))], EXIT_FAILED
    words = f"a bug in tuitrain: {type(error).__name__}: {error}"
    return [Problem(words, "add --debug for the traceback")], EXIT_FAILED


def as_values(record: Any) -> dict[str, Any]:
    """A dataclass as JSON-ready values."""
    from dataclasses import asdict

    return asdict(record)
