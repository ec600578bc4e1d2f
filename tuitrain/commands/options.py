"""The arguments and options that several commands share; knows no command."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuitrain.errors import ConfigError

if TYPE_CHECKING:
    from tuitrain.config.schema import TrainConfig

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG|PRESET", help="A YAML file, or the name of a preset.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting: --set optimizer.learning_rate=1e-5. May be given several times.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
AllowOtherBaseOption = Annotated[
    bool, typer.Option("--allow-other-base", help="Warn of a base that is not the checkpoint's, not refuse it.")
]
ImagesOption = Annotated[
    str,
    typer.Option(
        "--images",
        metavar="auto|half|kitty|sixel|off",
        envvar="TUITRAIN_IMAGES",
        help="How pictures are drawn; kitty and sixel need the extra tuitrain[images].",
    ),
]
AsciiOption = Annotated[
    bool, typer.Option("--ascii", envvar="TUITRAIN_ASCII", help="Draw frames with + - |, for fonts without lines.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def load_config(source: str | Path, overrides: Sequence[str]) -> "TrainConfig":
    from tuitrain.config.files import load_config  # pydantic: 0.2 s

    return load_config(source, overrides)


def check_choice(option: str, value: str | None, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise ConfigError(f"{option} is {value}", hint=f"one of {', '.join(choices)}")
