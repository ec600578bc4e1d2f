"""The commands that open the app and that train: open, attach, train, demo, check."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuitrain.commands.options import (
    AsciiOption,
    ConfigArgument,
    DebugOption,
    ImagesOption,
    JsonOption,
    SetOption,
    load_config,
)
from tuitrain.commands.outcome import EXIT_WRONG_REQUEST, as_values, errors_told
from tuitrain.errors import ConfigError
from tuitrain.tui.entry import open_app

if TYPE_CHECKING:
    from tuitrain.config.schema import TrainConfig


def open_command(
    target: Annotated[
        str, typer.Argument(metavar="CONFIG|PRESET|RUN", help="A YAML file, the name of a preset, or a run's folder.")
    ],
    images: ImagesOption = "auto",
    is_ascii: AsciiOption = False,
    debug: DebugOption = False,
) -> None:
    """Open the app on a config or a run."""
    with errors_told(as_json=False, debug=debug):
        if Path(target).is_dir():
            from tuitrain.runs.run import Run

            run = Run.open(Path(target))
            raise typer.Exit(
                open_app(lambda app: app.open_run(run), first_mode="train", images=images, is_ascii=is_ascii)
            )
        from tuitrain.tui.document import ConfigDocument

        document = ConfigDocument.open(target)
        raise typer.Exit(open_app(lambda app: app.open_document(document), images=images, is_ascii=is_ascii))


def attach(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Its folder; by default the newest that trains, here or below.")
    ] = None,
    images: ImagesOption = "auto",
    is_ascii: AsciiOption = False,
    debug: DebugOption = False,
) -> None:
    """Watch and steer a run that another process trains."""
    with errors_told(as_json=False, debug=debug):
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
        raise typer.Exit(
            open_app(lambda app: app.open_run(found), first_mode="train", images=images, is_ascii=is_ascii)
        )


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
    with errors_told(as_json=as_json, debug=debug):
        source = _train_source(config, resume, accept_changes=accept_changes)
        if detach:
            _train_detached(source, overrides or [], as_json=as_json)
        else:
            raise typer.Exit(_train(source, overrides or [], as_json=as_json, debug=debug))


def demo(
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where to put it.")] = Path("tuitrain-demo"),
    headless: Annotated[bool, typer.Option("--headless", help="Train without the screen.")] = False,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Train this many steps.")] = None,
    overrides: SetOption = None,
    images: ImagesOption = "auto",
    is_ascii: AsciiOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train the mini SDXL that ships with it; no GPU."""
    with errors_told(as_json=as_json, debug=debug):
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
        config = load_config(config_path, overrides)
        raise typer.Exit(
            open_app(lambda app: app.start(config), runs_dir=config_path.parent, images=images, is_ascii=is_ascii)
        )


def check(
    config: ConfigArgument, overrides: SetOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Tell what would be trained, and all that is wrong.

    Every picture is decoded; the model is not loaded.
    """
    with errors_told(as_json=as_json, debug=debug):
        settings = load_config(config, overrides or [])
        from tuitrain.plan import describe_plan, plan_run
        from tuitrain.terminal import write_json, write_line, write_problems

        plan = plan_run(settings)
        if as_json:
            write_json({**as_values(plan), "exit_code": EXIT_WRONG_REQUEST if plan.problems else 0})
        else:
            for line in describe_plan(plan):
                write_line(line)
            write_problems(plan.problems)
        if plan.problems:
            raise typer.Exit(EXIT_WRONG_REQUEST)


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
        config = load_config(source, overrides)
        from tuitrain.detached import start_detached

        run, holder = start_detached(config)
    if as_json:
        write_json({"run": str(run.path), "pid": holder.pid, "log": str(run.log_path)})
        return
    write_line(f"training in the background, process {holder.pid}: {run.path}")
    write_line(f"log: {run.log_path}")
    write_line(f"watch and steer it: tuitrain attach {run.path}")


def _train(source: str | Path | _Resume, overrides: Sequence[str], *, as_json: bool, debug: bool) -> int:
    config = None if isinstance(source, _Resume) else load_config(source, overrides)
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
