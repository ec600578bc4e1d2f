"""The commands that look at runs and steer them: runs, plot, checkpoints, verify, control."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tuitrain.commands.options import DebugOption, JsonOption, RunArgument, check_choice
from tuitrain.commands.outcome import EXIT_FAILED, as_values, errors_told
from tuitrain.errors import ConfigError

if TYPE_CHECKING:
    pass


def runs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to look.")] = Path(),
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the runs in a folder and below, newest first."""
    with errors_told(as_json=as_json, debug=debug):
        from datetime import datetime

        from tuitrain.runs.run import find_runs, summarize
        from tuitrain.terminal import write_json, write_line
        from tuitrain.wording import format_table

        if not directory.is_dir():
            raise ConfigError(f"{directory} is not a folder", hint="give the folder that the runs are in or below")
        summaries = [summarize(run) for run in find_runs(directory)]
        if as_json:
            write_json([as_values(summary) for summary in summaries])
        elif not summaries:
            write_line(f"no runs in {directory}")
        else:
            rows = [
                {
                    "run": str(directory / summary.path.relative_to(directory.absolute())),
                    "state": summary.state,
                    "step": f"{summary.step}/{summary.total_steps or '?'}",
                    "epoch": str(summary.epoch),
                    "loss": "" if summary.loss is None else f"{summary.loss:.4f}",
                    "checkpoints": str(summary.num_checkpoints),
                    "started": f"{datetime.fromtimestamp(summary.started):%Y-%m-%d %H:%M}",
                }
                for summary in summaries
            ]
            for line in format_table(rows):
                write_line(line)


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="The folders of runs.")],
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", metavar="METRIC", help="loss, lr, grad_norm, speed, memory or d; a second at the right."
        ),
    ] = None,
    log_y: Annotated[bool, typer.Option("--log-y", help="Make the values' axis logarithmic.")] = False,
    log_x: Annotated[bool, typer.Option("--log-x", help="Make the steps' axis logarithmic.")] = False,
    smoothing: Annotated[
        float, typer.Option("--smoothing", metavar="F", help="Of noisy metrics: 0 none, nearer to 1 more.")
    ] = 0.98,
    width: Annotated[int | None, typer.Option("--width", min=20, help="In cells; by default the terminal's.")] = None,
    height: Annotated[int | None, typer.Option("--height", min=8, help="In rows; by default 24 at most.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw the loss or other metrics of runs, together."""
    with errors_told(as_json=as_json, debug=debug):
        from tuitrain.plot import PlotOptions, describe_series, draw_plot, name_runs
        from tuitrain.runs.run import Run
        from tuitrain.runs.series import METRIC_LABELS, load_journal
        from tuitrain.terminal import stdout_has_color, terminal_size, write_drawing, write_json

        wanted = list(dict.fromkeys(metrics or ["loss"]))
        for metric in wanted:
            check_choice("--metric", metric, tuple(METRIC_LABELS))
        if len(wanted) > 2:
            raise ConfigError(f"{len(wanted)} metrics are asked for", hint="two at most: there are two axes")
        if not 0.0 <= smoothing < 1.0:
            raise ConfigError(f"--smoothing is {smoothing:g}", hint="0 or more, and less than 1")
        opened = name_runs([Run.open(path) for path in runs])
        series = {name: load_journal(run.journal_path).series for name, run in opened.items()}
        options = PlotOptions(metrics=cast("Any", tuple(wanted)), is_log_y=log_y, is_log_x=log_x, smoothing=smoothing)
        if as_json:
            write_json([{"run": str(opened[name].path), **describe_series(series[name], options)} for name in opened])
            return
        columns, rows = terminal_size()
        text = draw_plot(
            series,
            options,
            width=width or columns,
            height=height or min(24, rows - 2),
            has_color=stdout_has_color(),
        )
        write_drawing(text)


def checkpoints(run: RunArgument, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the checkpoints of a run."""
    with errors_told(as_json=as_json, debug=debug):
        from tuitrain.runs.checkpoints import list_checkpoints
        from tuitrain.runs.run import Run
        from tuitrain.terminal import write_json, write_line
        from tuitrain.wording import format_bytes, format_table

        found = list_checkpoints(Run.open(run).checkpoints_dir)
        if as_json:
            write_json([{"name": checkpoint.path.name, **as_values(checkpoint)} for checkpoint in found])
        elif not found:
            write_line(f"no checkpoints in {run}")
        else:
            rows = [
                {
                    "checkpoint": checkpoint.path.name,
                    "step": str(checkpoint.manifest.step),
                    "epoch": str(checkpoint.manifest.epoch),
                    "kind": checkpoint.manifest.kind,
                    "dtype": checkpoint.manifest.save_dtype,
                    "size": format_bytes(checkpoint.num_bytes),
                }
                for checkpoint in found
            ]
            for line in format_table(rows):
                write_line(line)


def verify(
    target: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="The folder of a run or a checkpoint.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check every byte of checkpoints and their states."""
    with errors_told(as_json=as_json, debug=debug):
        from tuitrain.runs.checkpoints import checkpoint_folders, is_checkpoint, verify_checkpoint
        from tuitrain.runs.run import Run
        from tuitrain.terminal import write_json, write_line, write_problems

        is_sound = True
        reports = []
        for path in [target] if is_checkpoint(target) else checkpoint_folders(Run.open(target).checkpoints_dir):
            problems = verify_checkpoint(path)
            if not path.exists():  # pruned meanwhile
                continue
            is_sound &= not problems
            reports.append({"path": path, "is_sound": not problems, "problems": [as_values(one) for one in problems]})
            if not as_json:
                write_line(f"{path.name}: {'damaged' if problems else 'sound'}")
                write_problems(problems)
        if as_json:
            write_json({"is_sound": is_sound, "checkpoints": reports})
        elif not reports:
            write_line(f"no checkpoints in {target}")
        if not is_sound:
            raise typer.Exit(EXIT_FAILED)


def control(
    run: RunArgument,
    command: Annotated[
        str,
        typer.Argument(metavar="COMMAND", help="pause, resume, save, sample, stop, or discard: stop without saving."),
    ],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Steer a run that is being trained.

    It obeys after its current step.
    """
    with errors_told(as_json=as_json, debug=debug):
        from tuitrain.runs.control import Command, send_command
        from tuitrain.runs.run import Run, summarize
        from tuitrain.terminal import write_json, write_line

        if command not in list(Command):
            raise ConfigError(f"{command} is not a command", hint=f"one of {', '.join(Command)}")
        opened = Run.open(run)
        state = summarize(opened).state
        if state != "running":
            raise ConfigError(f"{run} is not running, it is {state}", hint="`tuitrain runs DIR` tells the states")
        send_command(opened.control_dir, Command(command))
        if as_json:
            write_json({"run": str(opened.path), "command": command})
        else:
            write_line(f"asked {opened.path} to {command}")
