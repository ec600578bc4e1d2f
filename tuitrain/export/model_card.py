"""The README.md of a packaged model: what it is, what it was made from, how to load it; knows no tensor."""

import json
from collections.abc import Sequence
from pathlib import Path

from tuitrain.engine.hub import is_hub_name
from tuitrain.export.trained_unet import TrainedUnet


def card_text(
    trained: TrainedUnet,
    *,
    title: str,
    base: str,
    prediction_type: str,
    dtype: str,
    loading: Sequence[str],
    licences: Sequence[str],
) -> str:
    """The card in Markdown, with the header that the Hub reads.

    Args:
        base: the base model as the user calls it; of a path only the last name is told.
        loading: lines of Python.
        licences: file names in the package.
    """
    header = ["---", "library_name: diffusers", "pipeline_tag: text-to-image", "tags:", "- stable-diffusion-xl"]
    if is_hub_name(base) and not Path(base).expanduser().exists():
        header.append(f"base_model: {base}")
    facts = {"base model": short_name(base), **training_facts(trained), "predicts": prediction_type, "UNet": dtype}
    lines = [*header, "---", "", f"# {title}", "", "SDXL, its UNet fine-tuned with tuitrain.", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    prefix = caption_prefix(trained)
    prompts = trained.run_config.get("validation_prompts") or ()
    if prefix:
        lines += ["", "Every caption began with:", "", _as_code([json.dumps(prefix, ensure_ascii=False)])]
    if prompts:
        quoted = [json.dumps(prompt, ensure_ascii=False) for prompt in prompts]
        lines += ["", "Prompts of the training's samples:", "", _as_code(quoted)]
    lines += ["", "In diffusers:", "", _as_code(loading), ""]
    lines += ["The licence of the base model holds for this one" + (f": {', '.join(licences)}." if licences else ".")]
    return "\n".join(lines) + "\n"


def training_facts(trained: TrainedUnet) -> dict[str, str]:
    """What is known of the training, for people."""
    facts = {}
    if trained.run is not None:
        facts["run"] = trained.run.run_id
    if trained.manifest is not None:
        facts |= {"step": str(trained.manifest.step), "epoch": str(trained.manifest.epoch)}
        if trained.manifest.weights == "ema":
            facts["weights"] = "exponential moving average"
    return facts


def caption_prefix(trained: TrainedUnet) -> str:
    """What the training put before every caption."""
    data_loader = trained.run_config.get("data_loader")
    prefix = data_loader.get("caption_prefix") if isinstance(data_loader, dict) else None
    return prefix or ""


def short_name(base: str) -> str:
    """A Hub name as it is, of a path the last name: where it lies on this machine is nobody's concern."""
    path = Path(base).expanduser()
    return base if is_hub_name(base) and not path.exists() else path.name


def _as_code(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)
