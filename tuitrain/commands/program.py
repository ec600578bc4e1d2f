"""The command line: which commands there are, in the order of its help.

Each command imports what it needs when it runs, so that help stays fast. Exit status: tuitrain/commands/outcome.py.
"""

from typing import Annotated

import typer

from tuitrain.commands import exports, machine, runs, training
from tuitrain.commands.options import AsciiOption, ImagesOption
from tuitrain.commands.outcome import errors_told
from tuitrain.tui.entry import open_app

app = typer.Typer(
    name="tuitrain",
    help="Fine-tune Stable Diffusion XL from a terminal.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
presets_app = typer.Typer(help="List the presets, or show one.", rich_markup_mode=None)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        from tuitrain.terminal import write_line

        write_line(f"tuitrain {version('tuitrain')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _program(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
    images: ImagesOption = "auto",
    is_ascii: AsciiOption = False,
) -> None:
    """Fine-tune Stable Diffusion XL from a terminal: without a command, the app with the presets and recent runs."""
    if context.invoked_subcommand is None:
        with errors_told(as_json=False, debug=False):
            raise typer.Exit(open_app(lambda app: None, images=images, is_ascii=is_ascii))


app.add_typer(presets_app, name="presets", invoke_without_command=True)
app.command("open")(training.open_command)
app.command()(training.attach)
app.command()(training.train)
app.command()(training.demo)
app.command()(training.check)
app.command()(runs.runs)
app.command()(runs.plot)
app.command()(runs.checkpoints)
app.command()(runs.verify)
app.command()(runs.control)
app.command()(exports.package)
app.command("extract-lora")(exports.extract_lora_command)
app.command("compare")(exports.compare_command)
app.command("install-invokeai")(exports.install_invokeai_command)
presets_app.callback()(machine.presets)
presets_app.command("list")(machine.list_presets_command)
presets_app.command("show")(machine.show_preset)
app.command()(machine.doctor)
app.command()(machine.bench)
