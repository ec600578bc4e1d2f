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
    except TuitrainError as error:
        raise told(error.problems, error.exit_code, as_json=as_json, debug=debug) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:  # `tuitrain runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_FAILED) from None
    except OSError as error:
        problem = Problem(error.strerror or str(error), where=str(error.filename or ""))
        raise told([problem], EXIT_FAILED, as_json=as_json, debug=debug) from None
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001  the process's edge: a user gets a sentence, a traceback on request
        problem = Problem(f"a bug in tuitrain: {type(error).__name__}: {error}", "add --debug for the traceback")
        raise told([problem], EXIT_FAILED, as_json=as_json, debug=debug) from None


def told(problems: Sequence[Problem], exit_code: int, *, as_json: bool, debug: bool) -> typer.Exit:
    """Write `problems`; gives the Exit to raise. Called while an exception is handled."""
    from tuitrain.terminal import write_json, write_line, write_problems

    if debug:
        for line in traceback.format_exc().splitlines():
            write_line(line, stream=sys.stderr)
    if as_json:
        write_json({"errors": [as_values(problem) for problem in problems], "exit_code": exit_code})
    else:
        write_problems(problems)
    return typer.Exit(exit_code)


def as_values(record: Any) -> dict[str, Any]:
    """A dataclass as JSON-ready values."""
    from dataclasses import asdict

    return asdict(record)
