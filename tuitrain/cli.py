"""The commands: options, exit status and errors; each imports what it needs when it runs, so that help stays fast.

Exit status: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted with the state saved.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tuitrain.errors import EXIT_INTERRUPTED, ConfigError, Problem, TuitrainError

if TYPE_CHECKING:
    from tuitrain.config.schema import TrainConfig
    from tuitrain.tui.app import TuitrainApp

EXIT_FAILED = 1
EXIT_WRONG_REQUEST = 2

app = typer.Typer(
    name="tuitrain",
    help="Fine-tune Stable Diffusion XL from a terminal.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
presets_app = typer.Typer(help="List the presets, or show one.", rich_markup_mode=None)
app.add_typer(presets_app, name="presets", invoke_without_command=True)

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
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def main() -> None:
    """The program `tuitrain`."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: `tuitrain ... >&-`
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  until the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names and captions hold what some locales lack
    app()


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
) -> None:
    """Fine-tune Stable Diffusion XL from a terminal: without a command, the app with the presets and recent runs."""
    if context.invoked_subcommand is None:
        with _errors_told(as_json=False, debug=False):
            raise typer.Exit(_run_app(lambda app: None, images=images))


@app.command("open")
def open_command(
    target: Annotated[
        str, typer.Argument(metavar="CONFIG|PRESET|RUN", help="A YAML file, the name of a preset, or a run's folder.")
    ],
    images: ImagesOption = "auto",
    debug: DebugOption = False,
) -> None:
    """Open the app on a config or a run."""
    with _errors_told(as_json=False, debug=debug):
        if Path(target).is_dir():
            from tuitrain.runs.run import Run

            run = Run.open(Path(target))
            raise typer.Exit(_run_app(lambda app: app.open_run(run), images=images))
        from tuitrain.tui.document import ConfigDocument

        document = ConfigDocument.open(target)
        raise typer.Exit(_run_app(lambda app: app.open_document(document), images=images))


@app.command()
def attach(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Its folder; by default the newest that trains, here or below.")
    ] = None,
    images: ImagesOption = "auto",
    debug: DebugOption = False,
) -> None:
    """Watch and steer a run that another process trains."""
    with _errors_told(as_json=False, debug=debug):
        from tuitrain.runs.run import Run, find_runs, summarize

        if run is None:
            found = next((found for found in find_runs(Path()) if found.lock_holder()), None)
            if found is None:
                hint = "give the run's folder, or go to the folder that the runs are in or below"
                raise ConfigError(f"no run is being trained in or below {Path().absolute()}", hint=hint)
        else:
            found = Run.open(run)
            if not found.lock_holder():
                raise ConfigError(
                    f"{run} is not running, it is {summarize(found).state}", hint=f"`tuitrain open {run}` shows it"
                )
        raise typer.Exit(_run_app(lambda app: app.open_run(found), images=images))


@app.command()
def train(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG|PRESET", help="A YAML file, or the name of a preset.")
    ] = None,
    overrides: SetOption = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN|CHECKPOINT", help="Go on with a run, in place of a CONFIG, as it was."),
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume although it will not be exact, and say so.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="In a process of its own, which outlives this terminal.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train; Ctrl-C finishes the step, saves and stops."""
    with _errors_told(as_json=as_json, debug=debug):
        source = _train_source(config, resume, accept_changes=accept_changes)
        if detach:
            _train_detached(source, overrides or [], as_json=as_json)
        else:
            raise typer.Exit(_train(source, overrides or [], as_json=as_json, debug=debug))


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where to put it.")] = Path("tuitrain-demo"),
    headless: Annotated[bool, typer.Option("--headless", help="Train without the screen.")] = False,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Train this many steps.")] = None,
    overrides: SetOption = None,
    images: ImagesOption = "auto",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train the mini SDXL that ships with it; no GPU."""
    with _errors_told(as_json=as_json, debug=debug):
        from tuitrain.demo.create import create_demo

        if not headless:
            from tuitrain.tui.launch import check_terminal

            check_terminal()  # before anything is written

        # The mini model's tensors are too small to share: 0.09 s a step, with two threads 0.29 s on a busy machine.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        length = [] if steps is None else [f"max_train_steps={steps}", "max_train_epochs=null"]
        config_path = create_demo(directory)
        overrides = [*length, *(overrides or [])]
        if headless:
            raise typer.Exit(_train(config_path, overrides, as_json=as_json, debug=debug))
        config = _load_config(config_path, overrides)
        raise typer.Exit(_run_app(lambda app: app.start(config), runs_dir=config_path.parent, images=images))


def _run_app(on_ready: "Callable[[TuitrainApp], None]", *, images: str, runs_dir: Path = Path()) -> int:
    from tuitrain.tui.launch import run_app  # Textual: 0.2 s

    return run_app(on_ready, runs_dir=runs_dir, images=images)


@dataclass(frozen=True)
class _Resume:
    """What to go on with."""

    target: Path
    accept_changes: bool


def _train_source(config: str | None, resume: Path | None, *, accept_changes: bool) -> str | _Resume:
    if resume is not None and config is not None:
        hint = "leave the CONFIG out, and change settings with --set"
        raise ConfigError("--resume goes on with the run's own config", hint=hint)
    if resume is not None:
        return _Resume(resume, accept_changes)
    if accept_changes:
        raise ConfigError("--accept-changes is for --resume", hint="leave it out, or add --resume RUN")
    if config is None:
        raise ConfigError("there is nothing to train", hint="give a CONFIG, a PRESET or --resume RUN")
    return config


def _train_detached(source: str | _Resume, overrides: Sequence[str], *, as_json: bool) -> None:
    from tuitrain.terminal import write_json, write_line

    if isinstance(source, _Resume):
        from tuitrain.detached import resume_detached
        from tuitrain.engine.resume import open_resume_target

        run, checkpoint = open_resume_target(source.target)
        holder = resume_detached(run, checkpoint, overrides, accept_changes=source.accept_changes)
    else:
        config = _load_config(source, overrides)
        from tuitrain.detached import start_detached

        run, holder = start_detached(config)
    if as_json:
        write_json({"run": str(run.path), "pid": holder.pid, "log": str(run.log_path)})
        return
    write_line(f"training in the background, process {holder.pid}: {run.path}")
    write_line(f"log: {run.log_path}")
    write_line(f"watch and steer it: tuitrain attach {run.path}")


def _train(source: str | Path | _Resume, overrides: Sequence[str], *, as_json: bool, debug: bool) -> int:
    config = None if isinstance(source, _Resume) else _load_config(source, overrides)
    from tuitrain.engine.launch import create_run, resume_run, share_with_ranks, train_as_other_rank
    from tuitrain.engine.resume import ResumePoint, open_resume_target
    from tuitrain.foreground import train_in_foreground
    from tuitrain.runs.run import Run

    def begin() -> "tuple[TrainConfig, Run, ResumePoint | None]":
        if isinstance(source, _Resume):
            run, checkpoint = open_resume_target(source.target)
            config_of_run, resume = resume_run(run, checkpoint, overrides, accept_changes=source.accept_changes)
            return config_of_run, run, resume
        assert config is not None
        return *create_run(config), None

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # set by `accelerate launch` and `torchrun`
        (trained, run, resume), is_main = share_with_ranks(begin)
        if not is_main:
            return train_as_other_rank(trained, run, resume=resume)
    else:
        trained, run, resume = begin()
    return train_in_foreground(trained, run, resume=resume, as_json=as_json, debug=debug)


@app.command()
def check(
    config: ConfigArgument, overrides: SetOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Tell what would be trained, and all that is wrong.

    Every picture is decoded; the model is not loaded.
    """
    with _errors_told(as_json=as_json, debug=debug):
        settings = _load_config(config, overrides or [])
        from tuitrain.plan import describe_plan, plan_run
        from tuitrain.terminal import write_json, write_line, write_problems

        plan = plan_run(settings)
        if as_json:
            write_json({**_as_values(plan), "exit_code": EXIT_WRONG_REQUEST if plan.problems else 0})
        else:
            for line in describe_plan(plan):
                write_line(line)
            write_problems(plan.problems)
        if plan.problems:
            raise typer.Exit(EXIT_WRONG_REQUEST)


@app.command()
def runs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to look.")] = Path(),
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the runs in a folder and below, newest first."""
    with _errors_told(as_json=as_json, debug=debug):
        from datetime import datetime

        from tuitrain.runs.run import find_runs, summarize
        from tuitrain.terminal import write_json, write_line
        from tuitrain.wording import format_table

        if not directory.is_dir():
            raise ConfigError(f"{directory} is not a folder", hint="give the folder that the runs are in or below")
        summaries = [summarize(run) for run in find_runs(directory)]
        if as_json:
            write_json([_as_values(summary) for summary in summaries])
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


@app.command()
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
    with _errors_told(as_json=as_json, debug=debug):
        from tuitrain.plot import PlotOptions, describe_series, draw_plot, name_runs
        from tuitrain.runs.run import Run
        from tuitrain.runs.series import METRIC_LABELS, load_journal
        from tuitrain.terminal import stdout_has_color, terminal_size, write_drawing, write_json

        wanted = list(dict.fromkeys(metrics or ["loss"]))
        for metric in wanted:
            _check_choice("--metric", metric, tuple(METRIC_LABELS))
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


@app.command()
def checkpoints(run: RunArgument, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the checkpoints of a run."""
    with _errors_told(as_json=as_json, debug=debug):
        from tuitrain.runs.checkpoints import list_checkpoints
        from tuitrain.runs.run import Run
        from tuitrain.terminal import write_json, write_line
        from tuitrain.wording import format_bytes, format_table

        found = list_checkpoints(Run.open(run).checkpoints_dir)
        if as_json:
            write_json([{"name": checkpoint.path.name, **_as_values(checkpoint)} for checkpoint in found])
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


@app.command()
def verify(
    target: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="The folder of a run or a checkpoint.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check every byte of checkpoints and their states."""
    with _errors_told(as_json=as_json, debug=debug):
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
            reports.append({"path": path, "is_sound": not problems, "problems": [_as_values(one) for one in problems]})
            if not as_json:
                write_line(f"{path.name}: {'damaged' if problems else 'sound'}")
                write_problems(problems)
        if as_json:
            write_json({"is_sound": is_sound, "checkpoints": reports})
        elif not reports:
            write_line(f"no checkpoints in {target}")
        if not is_sound:
            raise typer.Exit(EXIT_FAILED)


@app.command()
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
    with _errors_told(as_json=as_json, debug=debug):
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


@app.command()
def package(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint of a run, or a UNet folder with --base.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR|F.safetensors", help="What to make; must not exist.")],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="Base model: a folder, a single file or a Hub name."),
    ] = None,
    allow_other_base: AllowOtherBaseOption = False,
    variant: Annotated[
        str, typer.Option("--variant", metavar="auto|fp16|none", help="In the names of a folder's weight files.")
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", metavar="float16|bfloat16|float32", help="Of a folder's UNet, of all in a single file."
        ),
    ] = "float16",
    single_file: Annotated[
        bool, typer.Option("--single-file", help="One file in the original SDXL layout, as --out F.safetensors does.")
    ] = False,
    link: Annotated[bool, typer.Option("--link", help="Share the base's weight files by hard links.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a complete, loadable model of a checkpoint."""
    with _errors_told(as_json=as_json, debug=debug):
        _check_choice("--variant", variant, ("auto", "fp16", "none"))
        _check_choice("--dtype", dtype, ("float16", "bfloat16", "float32"))
        is_single_file = single_file or out.suffix == ".safetensors"
        if is_single_file and (link or variant != "auto"):
            raise ConfigError("--link and --variant are for folders", hint="leave them out for a single file")
        from tuitrain.terminal import export_shown, write_json, write_line
        from tuitrain.wording import format_bytes

        with export_shown(is_wanted=not as_json) as progress:
            if is_single_file:
                from tuitrain.export.single_file import package_single_file

                result = package_single_file(
                    checkpoint,
                    out,
                    base=base,
                    allow_other_base=allow_other_base,
                    dtype=cast("Any", dtype),
                    progress=progress,
                )
            else:
                from tuitrain.export.package import package_folder

                result = package_folder(
                    checkpoint,
                    out,
                    base=base,
                    allow_other_base=allow_other_base,
                    variant=cast("Any", variant),
                    dtype=cast("Any", dtype),
                    link=link,
                    progress=progress,
                )
        if as_json:
            write_json(_as_values(result))
            return
        linked = f", {format_bytes(result.num_linked_bytes)} of it shared" if result.num_linked_bytes else ""
        write_line(
            f"packaged {result.path} ({format_bytes(result.num_bytes)}{linked}), UNet in {result.dtype}, verified"
        )
        for line in (*result.steps, "diffusers:"):
            write_line(line)
        for line in result.loading:
            write_line(f"  {line}")
        for warning in result.warnings:
            write_line(f"warning: {warning}", stream=sys.stderr)


@app.command("extract-lora")
def extract_lora_command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint of a run, or a UNet folder with --base.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="F.safetensors", help="What to make; must not exist.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="Base model: a folder, a single file or a Hub name."),
    ] = None,
    allow_other_base: AllowOtherBaseOption = False,
    rank: Annotated[
        str | None, typer.Option("--rank", metavar="N[,N...]", help="Of every layer, by default 32; a file for each.")
    ] = None,
    conv_rank: Annotated[int | None, typer.Option("--conv-rank", metavar="N", help="Of 3x3 convolutions.")] = None,
    energy: Annotated[
        float | None, typer.Option("--energy", metavar="0.9", help="Keep this share of the change, in place of --rank.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", metavar="200MB", help="Keep what fits into this, in place of --rank.")
    ] = None,
    dtype: Annotated[
        str,
        typer.Option("--dtype", metavar="float16|bfloat16|float32", help="Of the file; float16 loses next to nothing."),
    ] = "float16",
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda", help="Where to calculate.")] = "cpu",
    clamp_quantile: Annotated[
        float | None, typer.Option("--clamp-quantile", metavar="Q", help="Cut large values, as older tools do; a loss.")
    ] = None,
    with_extras: Annotated[
        bool, typer.Option("--with-extras", help="Norms, biases and top-level modules in a second file, for ComfyUI.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Tell what ranks and sizes would keep; write nothing.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a LoRA of what a checkpoint learned."""
    with _errors_told(as_json=as_json, debug=debug):
        _check_choice("--dtype", dtype, ("float16", "bfloat16", "float32"))
        _check_choice("--device", device, ("cpu", "cuda"))
        if rank is not None and (energy is not None or max_size is not None):
            raise ConfigError("--rank is given together with a budget", hint="one of --rank, --energy, --max-size")
        if out is None and not report_only:
            raise ConfigError("--out is missing", hint="add --out F.safetensors, or --report-only")
        from tuitrain.export.request import parse_ranks, parse_size

        ranks = parse_ranks(rank or "32")
        max_bytes = None if max_size is None else parse_size(max_size)
        from tuitrain.export.lora import DTYPES, LoraOptions, extract_lora, survey_change
        from tuitrain.export.lora_report import describe_change, describe_lora
        from tuitrain.terminal import export_shown, write_json, write_line

        options = LoraOptions(
            ranks=ranks,
            conv_rank=conv_rank,
            energy=energy,
            max_bytes=max_bytes,
            dtype=DTYPES[dtype],
            clamp_quantile=clamp_quantile,
            with_extras=with_extras,
        )
        with export_shown(is_wanted=not as_json) as progress:
            if out is None or report_only:
                change = survey_change(
                    checkpoint,
                    options,
                    base=base,
                    allow_other_base=allow_other_base,
                    device=device,
                    progress=progress,
                )
                reports = []
            else:
                reports = extract_lora(
                    checkpoint,
                    out,
                    options,
                    base=base,
                    allow_other_base=allow_other_base,
                    device=device,
                    progress=progress,
                )
                change = reports[0].change
        if as_json:
            write_json([_as_values(report) for report in reports] if reports else _as_values(change))
            return
        for report in reports:
            for line in describe_lora(report):
                write_line(line)
        for line in describe_change(change):
            write_line(line)
        for warning in change.warnings:
            write_line(f"warning: {warning}", stream=sys.stderr)


@app.command("compare")
def compare_command(
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT...", help="Checkpoints of runs, or UNet folders with --base.")
    ],
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="P", help="What to draw. May be given several times.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="What to make; must not exist.")] = None,
    loras: Annotated[
        list[Path] | None,
        typer.Option("--lora", metavar="F.safetensors", help="Draw with the base and this too. As often as you like."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="Base model: a folder, a single file or a Hub name."),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", metavar="P", help="What not to draw; by default nothing said.")
    ] = None,
    num_images: Annotated[int, typer.Option("--num-images", metavar="N", help="Of each prompt.")] = 1,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of each prompt's noise.")] = 0,
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Denoising steps of a picture.")] = 30,
    guidance_scale: Annotated[float, typer.Option("--guidance-scale", metavar="G", help="1 is none.")] = 5.0,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="N|HEIGHTxWIDTH", help="In pixels; by default that of the run's samples."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="cpu|cuda", help="Where to draw; by default cuda if it is there.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw the same pictures with base, checkpoints, LoRAs."""
    with _errors_told(as_json=as_json, debug=debug):
        _check_choice("--device", device or "cpu", ("cpu", "cuda"))
        if out is None:
            raise ConfigError("--out is missing", hint="add --out DIR")
        from tuitrain.engine.quiet import quiet_libraries
        from tuitrain.export.comparison import CompareOptions, check_comparison, distance_rows

        options = CompareOptions(
            prompts=tuple(prompts or ()),
            negative_prompt=negative_prompt,
            seed=seed,
            num_images=num_images,
            size_hw=None if size is None else _parse_size_hw(size),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
        )
        check_comparison(checkpoints, loras or (), out)
        from tuitrain.terminal import export_shown, write_json, write_line
        from tuitrain.wording import format_table

        with export_shown(is_wanted=not as_json) as progress:
            quiet_libraries()  # before the classes that compare imports from diffusers
            from tuitrain.export.compare import compare

            comparison = compare(
                checkpoints, out, options, loras=loras or (), base=base, device=device, progress=progress
            )
        if as_json:
            write_json(comparison.as_values())
            return
        write_line(f"drew {len(comparison.pictures)} pictures on {comparison.device}: {out / comparison.grid}")
        for line in format_table(distance_rows(comparison)):
            write_line(line)
        write_line("mean distance of the final latents, relative to those it is measured to; 0 is the same picture")
        for warning in comparison.warnings:
            write_line(f"warning: {warning}", stream=sys.stderr)


def _parse_size_hw(text: str) -> tuple[int, int]:
    """(height, width) in "1024" or "1216x832"."""
    try:
        height, width = (int(number) for number in (text.split("x") if "x" in text else (text, text)))
    except ValueError:
        raise ConfigError(f"--size is {text}", hint="a number, or height x width: 1024, 1216x832") from None
    return height, width


@app.command("install-invokeai")
def install_invokeai_command(
    path: Annotated[
        Path, typer.Argument(metavar="FILE|DIR", help="A packaged folder, a single file or a LoRA; it stays there.")
    ],
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="Where InvokeAI listens; nothing else is contacted.")
    ] = "http://127.0.0.1:9090",
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="For InvokeAI's lists; by default that of the file.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", help="Wait this many seconds for InvokeAI to read it.")
    ] = 600.0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Register an export with a running InvokeAI."""
    with _errors_told(as_json=as_json, debug=debug):
        from tuitrain.export.invokeai import install_in_invokeai
        from tuitrain.terminal import write_json, write_line

        told: set[str] = set()

        def tell(status: str) -> None:
            if status not in told and not as_json:
                write_line(f"InvokeAI: {status}", stream=sys.stderr)
            told.add(status)

        try:
            model = install_in_invokeai(path, url=url, name=name, timeout_seconds=timeout, tell=tell)
        except KeyboardInterrupt as interrupt:
            for note in getattr(interrupt, "__notes__", ()):
                write_line(note, stream=sys.stderr)
            raise
        if as_json:
            write_json(_as_values(model))
            return
        write_line(f"InvokeAI {model.invokeai_version} has {model.name}: {model.type}, {model.base}, {model.format}")
        write_line(f"key {model.key}; it stays in {model.path}, do not move it")


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{option} is {value}", hint=f"one of {', '.join(choices)}")


@presets_app.callback()
def presets(context: typer.Context, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the presets, or show one."""
    if context.invoked_subcommand is None:
        with _errors_told(as_json=as_json, debug=debug):
            _list_presets(as_json=as_json)


@presets_app.command("list")
def list_presets_command(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the presets."""
    with _errors_told(as_json=as_json, debug=debug):
        _list_presets(as_json=as_json)


@presets_app.command("show")
def show_preset(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `tuitrain presets` lists it.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Print a preset's YAML: a start for a config of your own."""
    with _errors_told(as_json=as_json, debug=debug):
        from tuitrain.config.files import find_preset
        from tuitrain.terminal import write_json, write_text

        preset = find_preset(name)
        text = preset.path.read_text(encoding="utf-8")
        if as_json:
            write_json({**_as_values(preset), "yaml": text})
        else:
            write_text(text)


def _list_presets(*, as_json: bool) -> None:
    from tuitrain.config.files import list_presets
    from tuitrain.terminal import write_json, write_line
    from tuitrain.wording import format_table

    found = list_presets()
    if as_json:
        write_json([_as_values(preset) for preset in found])
    else:
        rows = [{"preset": preset.name, "title": preset.title, "memory": preset.vram} for preset in found]
        for line in format_table(rows):
            write_line(line)


@app.command()
def doctor(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Tell versions, GPUs, bf16, 8-bit AdamW and free disk."""
    with _errors_told(as_json=as_json, debug=debug):
        from tuitrain.doctor import describe_diagnosis, diagnose
        from tuitrain.terminal import write_json, write_line, write_problems

        diagnosis = diagnose()
        if as_json:
            write_json(_as_values(diagnosis))
        else:
            for line in describe_diagnosis(diagnosis):
                write_line(line)
            write_problems([Problem(text) for text in diagnosis.problems])
        if diagnosis.problems:
            raise typer.Exit(EXIT_FAILED)


@app.command()
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
    with _errors_told(as_json=as_json, debug=debug):
        settings = _load_config(config, overrides or [])
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
            write_json(_as_values(result))
        else:
            write_line(f"on {result.device}, without samples and checkpoints")
            for line in format_table([result_row(result)]):
                write_line(line)
            if result.reason:
                write_line(result.reason)


def _load_config(source: str | Path, overrides: Sequence[str]) -> "TrainConfig":
    from tuitrain.config.files import load_config  # pydantic: 0.2 s

    return load_config(source, overrides)


def _as_values(record: Any) -> dict[str, Any]:
    """A dataclass as JSON-ready values."""
    from dataclasses import asdict

    return asdict(record)


@contextmanager
def _errors_told(*, as_json: bool, debug: bool) -> Iterator[None]:
    """Turn exceptions into words and an exit status."""
    try:
        yield
    except TuitrainError as error:
        raise _told(error.problems, error.exit_code, as_json=as_json, debug=debug) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:  # `tuitrain runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_FAILED) from None
    except OSError as error:
        problem = Problem(error.strerror or str(error), where=str(error.filename or ""))
        raise _told([problem], EXIT_FAILED, as_json=as_json, debug=debug) from None
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001  the process's edge: a user gets a sentence, a traceback on request
        problem = Problem(f"a bug in tuitrain: {type(error).__name__}: {error}", "add --debug for the traceback")
        raise _told([problem], EXIT_FAILED, as_json=as_json, debug=debug) from None


def _told(problems: Sequence[Problem], exit_code: int, *, as_json: bool, debug: bool) -> typer.Exit:
    """Write `problems`; gives the Exit to raise. Called while an exception is handled."""
    from tuitrain.terminal import write_json, write_line, write_problems

    if debug:
        for line in traceback.format_exc().splitlines():
            write_line(line, stream=sys.stderr)
    if as_json:
        write_json({"errors": [_as_values(problem) for problem in problems], "exit_code": exit_code})
    else:
        write_problems(problems)
    return typer.Exit(exit_code)


if __name__ == "__main__":
    main()
