"""How to use an export: the code that loads it in diffusers, the steps in InvokeAI and ComfyUI; reads nothing."""

import json
import shlex
from pathlib import Path

_IMPORTS = "import torch; from diffusers import StableDiffusionXLPipeline"


def folder_in_diffusers(folder: Path, *, dtype: str, variant: str | None) -> tuple[str, ...]:
    """The lines of Python that load a packaged folder."""
    with_variant = f', variant="{variant}"' if variant else ""
    return (
        _IMPORTS,
        f"pipeline = StableDiffusionXLPipeline.from_pretrained({_quoted(folder)}, "
        f"torch_dtype=torch.{dtype}{with_variant})",
    )


def file_in_diffusers(
    file: Path, *, dtype: str, config_dir: Path, scheduler_changes: dict[str, object]
) -> tuple[str, ...]:
    """The lines of Python that load a single file without asking the Hub.

    Args:
        config_dir: a diffusers folder with the configs and tokenizers of its base.
        scheduler_changes: where the scheduler config differs from the one in `config_dir`; diffusers takes it from
            there, not from the file.
    """
    load = (
        f"pipeline = StableDiffusionXLPipeline.from_single_file({_quoted(file)}, "
        f"config={_quoted(config_dir)}, torch_dtype=torch.{dtype})"
    )
    if not scheduler_changes:
        return _IMPORTS, load
    changes = ", ".join(f"{key}={value!r}" for key, value in sorted(scheduler_changes.items()))
    scheduler = f"pipeline.scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config, {changes})"
    return _IMPORTS, load, scheduler


def folder_in_clients(folder: Path, *, prediction_type: str) -> tuple[str, ...]:
    """A sentence for each program a person paints with."""
    if prediction_type == "v_prediction":
        comfyui = "ComfyUI: package once more with --single-file; its folder loader does not see v-prediction"
    else:
        comfyui = (
            f"ComfyUI: move or link the folder to models/diffusers/{folder.name}, then use the node DiffusersLoader"
        )
    return _in_invokeai(folder), comfyui


def file_in_clients(file: Path) -> tuple[str, ...]:
    """A sentence for each program a person paints with."""
    return (
        _in_invokeai(file),
        f"ComfyUI: move or link the file to models/checkpoints/{file.name}, then use the node CheckpointLoaderSimple",
    )


def lora_in_diffusers(file: Path) -> str:
    """The line of Python that adds a LoRA to a pipeline of its base model."""
    return f"pipeline.load_lora_weights({_quoted(file.parent)}, weight_name={_quoted(Path(file.name))})"


def lora_in_clients(file: Path) -> tuple[str, ...]:
    """A sentence for each program a person paints with."""
    return (
        _in_invokeai(file),
        f"ComfyUI: move or link the file to models/loras/{file.name}, then use the node LoraLoaderModelOnly",
    )


def _in_invokeai(path: Path) -> str:
    return f"InvokeAI: tuitrain install-invokeai {shlex.quote(str(path))}; or Model Manager, Add Models, the same path"


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)
