"""The commands about what is here: presets, doctor, bench."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuitrain.commands.options import DebugOption, JsonOption, SetOption, load_config
from tuitrain.commands.outcome import EXIT_FAILED, as_values, errors_told
from tuitrain.errors import Problem

if TYPE_CHECKING:
    pass


def presets(context: typer.Context, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the presets, or show one."""
    if context.invoked_subcommand is None:
        with errors_told(as_json=as_json, debug=debug):
            _list_presets(as_json=as_json)


def list_presets_command(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the presets."""
    with errors_told(as_json=as_json, debug=debug):
        _list_presets(as_json=as_json)


def show_preset(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `tuitrain presets` lists it.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Print a preset's YAML: a start for a config of your own."""
    with errors_told(as_json=as_json, debug=debug):
        from tuitrain.config.files import find_preset
        from tuitrain.terminal import write_json, write_text

        preset = find_preset(name)
        text = preset.path.read_text(encoding="utf-8")
        if as_json:
            write_json({**as_values(preset), "yaml": text})
        else:
            write_text(text)


def doctor(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Tell versions, GPUs, bf16, 8-bit AdamW and free disk."""
    with errors_told(as_json=as_json, debug=debug):
        from tuitrain.doctor import describe_diagnosis, diagnose
        from tuitrain.terminal import write_json, write_line, write_problems

        diagnosis = diagnose()
        if as_json:
            write_json(as_values(diagnosis))
        else:
            for line in describe_diagnosis(diagnosis):
                write_line(line)
            write_problems([Problem(text) for text in diagnosis.problems])
        if diagnosis.problems:
            raise typer.Exit(EXIT_FAILED)


def bench(
    config: Annotated[
        str, typer.Argument(metavar="PRESET|CONFIG", help="What to measure: the name of a preset, or a YAML file.")
    ] = "robocats_24gb",
    overrides: SetOption = None,
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Train this many steps, at least 3.")] = 12,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="DIR", help="Base model; by default a full-size SDXL of random numbers."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure the memory and the speed of a config.

    It trains a few steps on pictures made for it, and downloads nothing.
    """
    with errors_told(as_json=as_json, debug=debug):
        settings = load_config(config, overrides or [])
        from tuitrain.engine.bench import bench as measure
        from tuitrain.engine.bench import result_row
        from tuitrain.terminal import write_json, write_line
        from tuitrain.wording import format_table

        result = measure(
            settings,
            name=config,
            num_steps=steps,
            model=model,
            tell=lambda text: write_line(text, stream=sys.stderr),
        )
        if as_json:
            write_json(as_values(result))
        else:
            write_line(f"on {result.device}, without samples and checkpoints")
            for line in format_table([result_row(result)]):
                write_line(line)
            if result.reason:
                write_line(result.reason)


def _list_presets(*, as_json: bool) -> None:
    from tuitrain.config.files import list_presets
    from tuitrain.terminal import write_json, write_line
    from tuitrain.wording import format_table

    found = list_presets()
    if as_json:
        write_json([as_values(preset) for preset in found])
    else:
        rows = [{"preset": preset.name, "title": preset.title, "memory": preset.vram} for preset in found]
        for line in format_table(rows):
            write_line(line)
