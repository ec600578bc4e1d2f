"""What clients ask of our files, stated in our own words and checked on files we write.

Each rule says which version of which client it was compared with; `tests/export/client_checks.py` runs those clients'
own code on such files. The model is an SDXL with few channels: every tensor name and the widths clients look at are
the real ones.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.engine.model_variants import edit_part, rename_to_fp16
from tests.export.narrow_sdxl import build_narrow_sdxl
from tuitrain.engine.base_model import SDXL_BASE
from tuitrain.engine.original_names import original_tensor
from tuitrain.engine.sdxl import build_network
from tuitrain.engine.weight_files import read_json
from tuitrain.export.invokeai import check_installable
from tuitrain.export.lora import LoraOptions, extract_lora
from tuitrain.export.lora_modules import block_modules
from tuitrain.export.package import package_folder
from tuitrain.export.single_file import package_single_file

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain` and `fp16` folders, `single.safetensors` and `lora.safetensors` of one trained model."""
    folder = tmp_path_factory.mktemp("clients")
    base = build_narrow_sdxl(folder / "base")

    def change(tensors: dict[str, Tensor]) -> None:
        generator = torch.Generator().manual_seed(1)
        for tensor in tensors.values():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=1e-3)

    shutil.copytree(base / "unet", folder / "trained" / "unet")
    unet = edit_part(folder / "trained", "unet", change) / "unet"
    extract_lora(unet, folder / "lora.safetensors", LoraOptions(ranks=(2,)), base=str(base))
    package_folder(unet, folder / "plain", base=str(base), dtype="float16")
    package_single_file(unet, folder / "single.safetensors", base=str(base), dtype="float16")
    package_folder(unet, folder / "fp16", base=str(rename_to_fp16(base)))
    return folder


@pytest.fixture(scope="module")
def lora(exports: Path) -> dict[str, Tensor]:
    return load_file(exports / "lora.safetensors")


@pytest.fixture(scope="module")
def single(exports: Path) -> dict[str, Tensor]:
    return load_file(exports / "single.safetensors")


def modules_of(lora: Mapping[str, Tensor]) -> set[str]:
    return {name.partition(".")[0] for name in lora}


# ---- InvokeAI 6.14.2


@pytest.mark.parametrize("name", ["plain", "fp16", "single.safetensors", "lora.safetensors"])
def test_invokeai_installs_it(name: str, exports: Path) -> None:
    check_installable(exports / name)


def test_invokeai_takes_a_lora_with_one_prefix_and_sdxls_text_width(lora: dict[str, Tensor]) -> None:
    """One name without a known prefix refuses the file; the base is told by the cross-attention's input."""
    assert [name for name in lora if not name.startswith("lora_unet_")] == []
    widths = Counter(
        tensor.shape[1]
        for name, tensor in lora.items()
        if name.endswith(("attn2_to_k.lora_down.weight", "attn2_to_v.lora_down.weight"))
    )
    assert widths == {2048: 2 * 70}


def test_invokeai_converts_all_names_or_none(lora: dict[str, Tensor]) -> None:
    """A file in which only a part is spelled in the original way is refused."""
    original = ("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")
    assert [name for name in modules_of(lora) if not name.startswith(original)] == []
    assert len(modules_of(lora)) == 788


def test_every_alpha_is_one_number_and_the_rank(lora: dict[str, Tensor]) -> None:
    """InvokeAI and diffusers ask it for its item; all scale by alpha / rank."""
    for name in modules_of(lora):
        assert lora[f"{name}.alpha"].item() == len(lora[f"{name}.lora_down.weight"]) == 2
    assert {name.partition(".")[2] for name in lora} == {"alpha", "lora_down.weight", "lora_up.weight"}


@pytest.mark.parametrize("name", ["plain", "fp16"])
def test_invokeai_knows_a_folder_by_its_configs(name: str, exports: Path) -> None:
    folder = exports / name
    index, unet, scheduler = (
        json.loads((folder / file).read_text())
        for file in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
    )
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert (unet["cross_attention_dim"], unet["in_channels"]) == (2048, 4)
    assert scheduler["prediction_type"] == "epsilon"


@pytest.mark.parametrize(("name", "is_fp16"), [("plain", False), ("fp16", True)])
def test_one_fp16_name_makes_a_folder_fp16_so_all_are_or_none(name: str, is_fp16: bool, exports: Path) -> None:
    """InvokeAI loads every part in the variant that any file name shows; ComfyUI prefers fp16 names."""
    weights = [path.name for path in (exports / name).rglob("*.safetensors")]
    assert len(weights) == 4
    assert {".fp16." in path for path in weights} == {is_fp16}


def test_invokeai_knows_a_single_file_by_two_tensors(single: dict[str, Tensor]) -> None:
    assert single[f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"].shape[-1] == 2048
    assert single[f"{UNET}input_blocks.0.0.weight"].shape[1] == 4


# ---- ComfyUI: lora.py at 17358c8f, supported_models.py at 01f03bbd, model_detection.py at 006dd0ae


def test_comfyui_finds_one_weight_for_each_lora_module(lora: dict[str, Tensor], single: dict[str, Tensor]) -> None:
    """Its key of a weight is the name in the single file with underscores; shapes must multiply to the weight's."""
    weights: dict[str, list[str]] = {}
    for name in single:
        if name.startswith(UNET) and name.endswith(".weight"):
            key = "lora_unet_" + name.removeprefix(UNET).removesuffix(".weight").replace(".", "_")
            weights.setdefault(key, []).append(name)
    for module in modules_of(lora):
        (name,) = weights[module]
        up, down = lora[f"{module}.lora_up.weight"], lora[f"{module}.lora_down.weight"]
        product = up.flatten(1) @ down.flatten(1)
        assert product.numel() == single[name].numel() and len(product) == len(single[name])
        assert down.shape[1:] == single[name].shape[1:]


def test_comfyui_counts_sdxl_in_a_single_file() -> None:
    """By channels, depth of each input block, text width, width of the added conditions, and linear projections."""
    config = read_json(SDXL_BASE / "unet" / "config.json")
    with torch.device("meta"):
        unet = build_network("unet", config)
    shapes = {original_tensor("unet", name, config).name: tensor.shape for name, tensor in unet.state_dict().items()}

    def depth(block: int) -> int:
        prefix = f"input_blocks.{block}.1.transformer_blocks."
        return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})

    assert shapes["input_blocks.0.0.weight"][:2] == (320, 4)
    assert [depth(block) for block in range(1, 9) if f"input_blocks.{block}.0.in_layers.0.weight" in shapes] == [
        *(0, 0),
        *(2, 2),
        *(10, 10),
    ]
    assert shapes["input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"][1] == 2048
    assert shapes["label_emb.0.0.weight"][1] == 2816
    assert len(shapes["input_blocks.4.1.proj_in.weight"]) == 2
    assert shapes["middle_block.1.transformer_blocks.9.attn1.to_q.weight"] == (1280, 1280)


def test_comfyui_finds_all_of_both_text_encoders(exports: Path, single: dict[str, Tensor]) -> None:
    """It strips two prefixes; the first encoder has the Hub's names behind it, the second those of open_clip."""
    first = "conditioner.embedders.0.transformer."
    assert {name.removeprefix(first) for name in single if name.startswith(first)} == load_file(
        exports / "plain" / "text_encoder" / "model.safetensors"
    ).keys()
    second = {name for name in single if name.startswith("conditioner.embedders.1.model.")}
    layers = {name.split("resblocks.")[1].split(".", 1)[1] for name in second if "resblocks." in name}
    pairs = ("attn.in_proj_", "attn.out_proj.", "ln_1.", "ln_2.", "mlp.c_fc.", "mlp.c_proj.")
    assert layers == {pair + leaf for pair in pairs for leaf in ("weight", "bias")}
    rest = {name.rpartition("model.")[2] for name in second if "resblocks." not in name}
    assert rest == {
        "positional_embedding",
        "token_embedding.weight",
        "ln_final.weight",
        "ln_final.bias",
        "text_projection",
    }


# ---- all of them


def test_every_module_of_the_full_sdxl_has_the_name_that_was_checked(lora: dict[str, Tensor]) -> None:
    """So that what clients said of the narrow model holds for the real one."""
    config = read_json(SDXL_BASE / "unet" / "config.json")
    with torch.device("meta"):
        modules = block_modules(build_network("unet", config), config)
    assert {module.key for module in modules} == modules_of(lora)
    assert {module.key: len(module.shape) for module in modules} == {
        name: lora[f"{name}.lora_down.weight"].ndim for name in modules_of(lora)
    }
