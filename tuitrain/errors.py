"""The errors a user can act on.

    TuitrainError             the work failed                            exit 1
    ├── ConfigError           a setting is wrong                         exit 2
    ├── DatasetError          a picture, caption or mask cannot be used  exit 2
    ├── ModelError            the base model cannot be used              exit 2
    ├── DeviceError           the GPU or its driver said no              exit 1
    ├── NonFiniteLossError    the loss became NaN or infinite            exit 1
    ├── CheckpointError       a checkpoint cannot be written or read     exit 1
    └── ExportError           a deliverable cannot be made               exit 1

Every error is a list of problems, because a user wants all of them at once. A problem says what is wrong (with the
value), how to fix it, and where it stands; what other people wrote goes into it through `printable`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

EXIT_INTERRUPTED = 130
"""Not an error: a signal asked the process to end, as shells number SIGINT."""

EXIT_DEVICE_LOST = 70
"""The GPU or its driver failed in the middle of the work: this process can use it no more, another one may."""


def printable(text: object) -> str:
    """`text` with every character that could steer a terminal or hide itself written as an escape.

    Names of files and values of settings are other people's text: control characters, bidirectional overrides, lone
    surrogates (bytes of a name that is not UTF-8) become `\\x1b`, `\\u202e`, `\\udcff`.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in words for the user.

    Args:
        what: the fact and the rule, with values, one sentence: "learning_rate is -1, it must be above 0".
        hint: what to change, naming the key's path: "set optimizer.learning_rate to 1e-5".
        where: file, line, key, step: "run.yaml:12".
    """

    what: str
    hint: str = ""
    where: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.hint})" if self.hint else text


class TuitrainError(Exception):
    """An error whose text is meant for the user; raise a subclass where one fits."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, hint: str = "", where: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(what, hint, where),)
        super().__init__(what)

    @classmethod
    def from_problems(cls, problems: Sequence[Problem]) -> "TuitrainError":
        """One error that carries several problems; `problems` is not empty."""
        first = problems[0]
        error = cls(first.what, hint=first.hint, where=first.where)
        error.problems = tuple(problems)
        return error

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class ConfigError(TuitrainError):
    """A setting is wrong, or two settings contradict each other."""

    exit_code = 2


class DatasetError(TuitrainError):
    """A picture, caption or mask cannot be used."""

    exit_code = 2


class ModelError(TuitrainError):
    """The base model is missing, damaged or not an SDXL model."""

    exit_code = 2


class DeviceError(TuitrainError):
    """The device cannot do what the config asks, or failed."""


class NonFiniteLossError(TuitrainError):
    """The loss became NaN or infinite; the optimizer has not moved."""


class CheckpointError(TuitrainError):
    """A checkpoint cannot be written, read or verified."""


class ExportError(TuitrainError):
    """A deliverable cannot be made from a checkpoint."""
