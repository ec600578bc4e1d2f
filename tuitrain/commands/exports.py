"""The commands that turn a checkpoint into something to use: package, extract-lora, compare, install-invokeai."""

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tuitrain.commands.options import AllowOtherBaseOption, DebugOption, JsonOption, check_choice
from tuitrain.commands.outcome import as_values, errors_told
from tuitrain.errors import ConfigError


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
    with errors_told(as_json=as_json, debug=debug):
        check_choice("--variant", variant, ("auto", "fp16", "none"))
        check_choice("--dtype", dtype, ("float16", "bfloat16", "float32"))
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
            write_json(as_values(result))
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
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="cpu|cuda", help="Where to calculate; by default cuda if it is there."),
    ] = None,
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
    with errors_told(as_json=as_json, debug=debug):
        check_choice("--dtype", dtype, ("float16", "bfloat16", "float32"))
        check_choice("--device", device, ("cpu", "cuda"))
        if rank is not None and (energy is not None or max_size is not None):
            raise ConfigError("--rank is given together with a budget", hint="one of --rank, --energy, --max-size")
        if out is None and not report_only:
            raise ConfigError("--out is missing", hint="add --out F.safetensors, or --report-only")
        from tuitrain.export.request import parse_ranks, parse_size

        ranks = parse_ranks(rank or "32")
        max_bytes = None if max_size is None else parse_size(max_size)
        from tuitrain.export.loading import lora_in_clients, lora_in_diffusers
        from tuitrain.export.lora import DTYPES, LoraOptions, extract_lora, survey_change
        from tuitrain.export.lora_report import describe_change, describe_loras
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
            write_json([as_values(report) for report in reports] if reports else as_values(change))
            return
        for line in (*describe_loras(reports), *describe_change(change)):
            write_line(line)
        if reports:
            file = Path(reports[0].file).absolute()
            for line in (*lora_in_clients(file), "diffusers, after the base model:", f"  {lora_in_diffusers(file)}"):
                write_line(line)
        for warning in change.warnings:
            write_line(f"warning: {warning}", stream=sys.stderr)


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
    with errors_told(as_json=as_json, debug=debug):
        check_choice("--device", device, ("cpu", "cuda"))
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
    with errors_told(as_json=as_json, debug=debug):
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
            write_json(as_values(model))
            return
        write_line(f"InvokeAI {model.invokeai_version} has {model.name}: {model.type}, {model.base}, {model.format}")
        write_line(f"key {model.key}; it stays in {model.path}, do not move it")


def _parse_size_hw(text: str) -> tuple[int, int]:
    """(height, width) in "1024" or "1216x832"."""
    try:
        height, width = (int(number) for number in (text.split("x") if "x" in text else (text, text)))
    except ValueError:
        raise ConfigError(f"--size is {text}", hint="a number, or height x width: 1024, 1216x832") from None
    return height, width
