"""Runs the clients' own code on exports of a narrow SDXL and prints what it makes of them; none of that code is here.

    python -m tests.export.client_checks [--invokeai FOLDER ...] [--comfyui FOLDER]

`--invokeai` names folders to import InvokeAI and what it needs from, behind those of this Python; none where it is
installed. `--comfyui` names a checkout. Exit status 1 where a client does not do what is said in the first column.
`tests/export/test_clients.py` states the same rules without the clients.
"""

import argparse
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from tests.engine.model_variants import Tensors, edit_json, edit_part, rename_to_fp16
from tests.export.narrow_sdxl import build_narrow_sdxl
from tuitrain.engine.sdxl import build_network
from tuitrain.engine.weight_files import read_json
from tuitrain.export.lora import LoraOptions, extract_lora
from tuitrain.export.lora_modules import block_modules
from tuitrain.export.package import package_folder
from tuitrain.export.single_file import package_single_file
from tuitrain.wording import format_table

NUM_MODULES = 788
CHANNELS = (320, 64, 96)  # ComfyUI knows SDXL by 320
Finding = tuple[str, str, bool]
"""What was checked, what the client said, and whether that is what it should say."""


class Exports:
    """The exports of a model that differs from its base in every weight.

    Args:
        folder: empty; about 1 GB goes there.
    """

    def __init__(self, folder: Path) -> None:
        base = build_narrow_sdxl(folder / "base", channels=CHANNELS)
        shutil.copytree(base / "unet", folder / "trained" / "unet")
        unet = edit_part(folder / "trained", "unet", _change) / "unet"
        self.base = base
        self.plain = package_folder(unet, folder / "plain", base=str(base), dtype="float16").path
        self.single = package_single_file(unet, folder / "single.safetensors", base=str(base), dtype="float16").path
        self.lora = folder / "lora.safetensors"
        extract_lora(unet, self.lora, LoraOptions(ranks=(4,)), base=str(base))
        config = read_json(base / "unet" / "config.json")
        with torch.device("meta"):
            self.modules = block_modules(build_network("unet", config), config)
        fp16_base = rename_to_fp16(build_narrow_sdxl(folder / "fp16-base", channels=CHANNELS))
        self.fp16 = package_folder(unet, folder / "fp16", base=str(fp16_base)).path
        scheduler_file = base / "scheduler" / "scheduler_config.json"
        edit_json(scheduler_file, prediction_type="v_prediction", rescale_betas_zero_snr=True)
        self.v_prediction = package_folder(unet, folder / "v", base=str(base), dtype="float16").path
        self.v_single = package_single_file(unet, folder / "v.safetensors", base=str(base), dtype="float16").path

    def patched(self) -> dict[str, torch.Tensor]:
        """What base and LoRA make together, by the name of the weight in diffusers."""
        base, lora = load_file(next((self.base / "unet").glob("*.safetensors"))), load_file(self.lora)
        result = {}
        for module in self.modules:
            up, down = (lora[f"{module.key}.lora_{leaf}.weight"].float().flatten(1) for leaf in ("up", "down"))
            scale = lora[f"{module.key}.alpha"].item() / len(down)
            result[module.weight] = base[module.weight] + scale * (up @ down).reshape(module.shape)
        return result


def _change(tensors: Tensors) -> None:
    generator = torch.Generator().manual_seed(1)
    for tensor in tensors.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.01 * (float(tensor.abs().mean()) or 0.1))


def largest_difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Over all weights, relative to the largest number in each; infinite where the names differ."""
    if found.keys() != wanted.keys():
        return float("inf")
    return max(float((found[name] - wanted[name]).abs().max() / wanted[name].abs().max()) for name in wanted)


# ---- InvokeAI


def check_invokeai(exports: Exports) -> Iterator[Finding]:
    """Identification as at an installation, and a LoRA patched into the UNet as at painting."""
    # First: two of its modules import each other, and only this order works.
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory  # isort: skip
    from invokeai.backend.model_manager.load.model_loaders.lora import (  # isort: skip
        convert_sdxl_keys_to_diffusers_format,
        lora_model_from_sd_state_dict,
    )
    from invokeai.backend.patches.layer_patcher import LayerPatcher
    from invokeai.backend.patches.lora_conversions.sd_lora_conversion_utils import _group_state

    def identify(path: Path) -> str:
        found = ModelConfigFactory.from_model_on_disk(path, hash_algo="random", allow_unknown=False).config
        if found is None:
            return "not known"
        fields = ("type", "base", "format", "variant", "prediction_type", "repo_variant")
        return " ".join(str(getattr(v, "value", v)) for name in fields if (v := getattr(found, name, None)) is not None)

    for what, path, wanted in (
        ("folder, plain names", exports.plain, "main sdxl diffusers normal epsilon"),
        ("folder, fp16 names", exports.fp16, "main sdxl diffusers normal epsilon fp16"),
        ("folder, v-prediction", exports.v_prediction, "main sdxl diffusers normal v_prediction"),
        ("single file", exports.single, "main sdxl checkpoint normal epsilon"),
        ("LoRA", exports.lora, "lora sdxl lycoris"),
    ):
        said = identify(path)
        yield what, said, said.split() == wanted.split()

    state = load_file(exports.lora)
    converted = convert_sdxl_keys_to_diffusers_format(state)
    layers = lora_model_from_sd_state_dict(state_dict=converted)
    leaves = {leaf for group in _group_state(converted).values() for leaf in group}
    yield (
        "LoRA: layers and leaves",
        f"{len(layers.layers)} layers, leaves {', '.join(sorted(leaves))}",
        len(layers.layers) == NUM_MODULES and leaves == {"alpha", "lora_down.weight", "lora_up.weight"},
    )
    unet = UNet2DConditionModel.from_pretrained(exports.base, subfolder="unet")
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    known = {"lora_unet_" + name.replace(".", "_") for name, _ in unet.named_modules()}
    strangers = layers.layers.keys() - known
    with LayerPatcher.apply_smart_model_patches(
        model=unet, patches=[(layers, 1.0)], prefix="lora_unet_", dtype=torch.float32, force_direct_patching=True
    ):
        after = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    changed = {name: tensor for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    difference = largest_difference(changed, exports.patched())
    yield (
        "LoRA: patched into the UNet",
        f"{len(changed)} weights changed, {len(strangers)} keys left over, off by {difference:.1e}",
        len(changed) == NUM_MODULES and not strangers and difference < 1e-5,
    )
    mixed = {exports.modules[0].weight.removesuffix(".weight").replace(".", "_"): torch.zeros(1)}
    try:
        convert_sdxl_keys_to_diffusers_format({**state, **{f"lora_unet_{key}.alpha": t for key, t in mixed.items()}})
        said = "taken"
    except ValueError as error:
        said = f"refused: {str(error)[:60]}..."
    yield "LoRA with both spellings", said, said.startswith("refused")


# ---- ComfyUI


def check_comfyui(exports: Exports) -> Iterator[Finding]:
    """Detection of the model as its loaders do it, and the keys of a LoRA."""
    import comfy.lora
    import comfy.model_detection

    for what, path, wanted in (
        ("single file", exports.single, "SDXL EPS"),
        ("single file, v-prediction", exports.v_single, "SDXL V_PREDICTION zsnr"),
    ):
        state = load_file(path)
        prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
        config = comfy.model_detection.model_config_from_unet(state, prefix)
        said = "not known"
        if config is not None:
            kind = config.model_type(state, prefix).name
            said = " ".join((type(config).__name__, kind, *(key for key in config.sampling_settings if key == "zsnr")))
        yield what, said, said == wanted

    for what, path in (("folder, plain names", exports.plain), ("folder, fp16 names", exports.fp16)):
        (weights,) = (path / "unet").glob("*.safetensors")
        found = comfy.model_detection.model_config_from_diffusers_unet(load_file(weights))
        yield what, type(found).__name__, type(found).__name__ == "SDXL"

    state = load_file(exports.single)
    prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
    config = comfy.model_detection.model_config_from_unet(state, prefix)
    text = config.process_clip_state_dict(dict(state))
    expected = {
        f"{stem}.transformer.{name}"
        for stem, part in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2"))
        for name in load_file(exports.plain / part / "model.safetensors")
    }
    optional = ("position_ids", "logit_scale")
    strangers = {name for name in text.keys() ^ expected if not name.endswith(optional)}
    yield "single file: text encoders", f"{len(text)} tensors, {len(strangers)} misplaced", not strangers

    unet = {"diffusion_model." + name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)}
    model = SimpleNamespace(state_dict=lambda: unet, model_config=config)
    with _RootWarnings() as warnings:
        patches = comfy.lora.load_lora(load_file(exports.lora), comfy.lora.model_lora_keys_unet(model, {}))
    unknown = patches.keys() - unet.keys()
    yield (
        "LoRA: keys",
        f"{len(patches)} weights patched, {len(unknown)} unknown, {len(warnings)} keys left over",
        len(patches) == NUM_MODULES and not unknown and not warnings,
    )
    base = load_file(next((exports.base / "unet").glob("*.safetensors")))
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    to_diffusers = {f"diffusion_model.{original}": name for name, original in names.items()}
    found = {}
    for key, patch in patches.items():
        name = to_diffusers[key]
        found[name] = patch.calculate_weight(base[name].clone(), key, 1.0, 1.0, None, lambda x: x)
    difference = largest_difference(found, exports.patched())
    yield "LoRA: patched weights", f"{len(found)} weights, off by {difference:.1e}", difference < 1e-5


class _RootWarnings(logging.Handler):
    """The warnings on the root logger inside a block."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger().addHandler(self)
        return self.records

    def __exit__(self, *_: Any) -> None:
        logging.getLogger().removeHandler(self)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--invokeai", nargs="*", metavar="FOLDER", help="folders to import InvokeAI from, if any")
    parser.add_argument("--comfyui", metavar="FOLDER", help="a checkout of ComfyUI")
    options = parser.parse_args(arguments)
    sys.path.extend(options.invokeai or [])
    checks: list[tuple[str, Callable[[Exports], Iterator[Finding]]]] = []
    if options.invokeai is not None:
        checks.append((f"InvokeAI {_version_of('InvokeAI')}", check_invokeai))
    if options.comfyui:
        sys.path.append(options.comfyui)
        checks.append(("ComfyUI", check_comfyui))
    if not checks:
        parser.error("name at least one client")
    rows, all_right = [], True
    with tempfile.TemporaryDirectory(prefix="client-checks-") as folder:
        exports = Exports(Path(folder))
        for client, check in checks:
            for what, said, is_right in check(exports):
                rows.append({"client": client, "export": what, "said": said, "right": "yes" if is_right else "NO"})
                all_right = all_right and is_right
    for line in format_table(rows):
        sys.stdout.write(line + "\n")
    return 0 if all_right else 1


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of an unknown version"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
