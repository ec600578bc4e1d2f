"""A LoRA from two tiny models: names, shapes, numbers, files, and what the report says."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.engine.model_variants import Tensors, copy_model, edit_json, edit_part
from tests.export.checkpoints import publish
from tests.export.stored_bases import STORED, settings_of
from tests.tiny_sdxl import build_tiny_sdxl
from tuitrain.engine.base_model import SDXL_BASE
from tuitrain.engine.sdxl import build_network
from tuitrain.engine.weight_files import read_json
from tuitrain.engine.weights import hash_weights
from tuitrain.errors import CheckpointError, ConfigError, DeviceError, ExportError, ModelError
from tuitrain.export.lora import LoraOptions, extract_lora, survey_change
from tuitrain.export.lora_modules import block_modules
from tuitrain.export.lora_report import LoraReport
from tuitrain.export.progress import ProgressReport
from tuitrain.runs.checkpoints import checkpoint_name, delete_checkpoint, publish_checkpoint

FULL = 10_000  # above every layer's dimensions


@cache
def sdxl_modules() -> list[Any]:
    config = read_json(SDXL_BASE / "unet" / "config.json")
    with torch.device("meta"):
        return block_modules(build_network("unet", config), config)


def trained_copy(model: Path, target: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    """A copy of `model` whose UNet tensors are what `change` makes of them."""
    copy = copy_model(model, target)
    return edit_part(copy, "unet", lambda tensors: {name: change(name, tensor) for name, tensor in tensors.items()})


def decaying_change(name: str, tensor: Tensor) -> Tensor:
    """0.5 % of the weights, with singular values that fall."""
    generator = torch.Generator().manual_seed(len(name) * 1000 + tensor.numel())
    noise = torch.randn(tensor.shape, generator=generator) * 0.005 * tensor.std().nan_to_num(0.0)
    if tensor.ndim < 2:
        return tensor + 1e-5 * torch.randn(tensor.shape, generator=generator)
    U, s, Vh = torch.linalg.svd(noise.flatten(1), full_matrices=False)
    s = s[0] * torch.arange(1, len(s) + 1) ** -0.8
    return tensor + ((U * s) @ Vh).reshape(tensor.shape)


@pytest.fixture(scope="module")
def trained(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_copy(tiny_sdxl, tmp_path_factory.mktemp("trained") / "model", decaying_change)


def extract(trained: Path, base: Path, out: Path, **options: Any) -> list[LoraReport]:
    return extract_lora(trained / "unet", out, LoraOptions(**options), base=str(base))


def weights(model: Path) -> Tensors:
    return load_file(model / "unet" / "diffusion_pytorch_model.safetensors")


def deltas(trained: Path, base: Path) -> Tensors:
    before = weights(base)
    return {name: tensor - before[name] for name, tensor in weights(trained).items()}


def tiny_modules(model: Path) -> list[Any]:
    config = read_json(model / "unet" / "config.json")
    with torch.device("meta"):
        return block_modules(build_network("unet", config), config)


# ---- which layers, which names


def test_all_788_block_modules_of_sdxl_are_covered() -> None:
    modules = sdxl_modules()
    assert len(modules) == 788
    assert sum(module.m * module.n for module in modules) / 2_567_463_684 == pytest.approx(0.9965, abs=0.0005)
    assert len({module.key for module in modules}) == 788
    kinds = {len(module.shape): 0 for module in modules}
    for module in modules:
        kinds[len(module.shape)] += 1
    assert kinds == {2: 739, 4: 49}


@pytest.mark.parametrize(
    ("weight", "key"),
    [
        (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight",
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        ),
        ("down_blocks.0.downsamplers.0.conv.weight", "lora_unet_input_blocks_3_0_op"),
        ("up_blocks.0.upsamplers.0.conv.weight", "lora_unet_output_blocks_2_2_conv"),
        ("up_blocks.1.upsamplers.0.conv.weight", "lora_unet_output_blocks_5_2_conv"),
        ("mid_block.resnets.1.conv1.weight", "lora_unet_middle_block_2_in_layers_2"),
        ("mid_block.resnets.0.time_emb_proj.weight", "lora_unet_middle_block_0_emb_layers_1"),
        ("down_blocks.1.resnets.0.conv_shortcut.weight", "lora_unet_input_blocks_4_0_skip_connection"),
        ("up_blocks.2.resnets.2.conv2.weight", "lora_unet_output_blocks_8_0_out_layers_3"),
        (
            "mid_block.attentions.0.transformer_blocks.9.ff.net.2.weight",
            "lora_unet_middle_block_1_transformer_blocks_9_ff_net_2",
        ),
    ],
)
def test_names_are_the_original_ones(weight: str, key: str) -> None:
    assert {module.weight: module.key for module in sdxl_modules()}[weight] == key


def test_a_file_holds_down_up_and_a_scalar_alpha_of_each_module_and_nothing_else(
    trained: Path, tiny_sdxl: Path, tmp_path: Path
) -> None:
    (report,) = extract(trained, tiny_sdxl, tmp_path / "a.safetensors", ranks=(4,))
    tensors = load_file(tmp_path / "a.safetensors")
    modules = tiny_modules(tiny_sdxl)
    suffixes = ("alpha", "lora_down.weight", "lora_up.weight")
    assert tensors.keys() == {f"{module.key}.{suffix}" for module in modules for suffix in suffixes}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    for module in modules:
        alpha, down, up = (tensors[f"{module.key}.{suffix}"] for suffix in suffixes)
        assert (alpha.shape, alpha.item()) == ((), 4)
        assert down.shape == (4, *module.shape[1:])
        assert up.shape == ((module.m, 4, 1, 1) if len(module.shape) == 4 else (module.m, 4))
    assert report.num_bytes == (tmp_path / "a.safetensors").stat().st_size


# ---- the numbers


def test_at_full_rank_the_base_and_the_lora_are_the_trained_model(
    trained: Path, tiny_sdxl: Path, tmp_path: Path
) -> None:
    (report,) = extract(trained, tiny_sdxl, tmp_path / "a.safetensors", ranks=(FULL,), dtype=torch.float32)
    tensors, wanted = load_file(tmp_path / "a.safetensors"), deltas(trained, tiny_sdxl)
    for module in tiny_modules(tiny_sdxl):
        assert tensors[f"{module.key}.alpha"].item() == min(module.m, module.n) == report.ranks[module.key]
        up, down = tensors[f"{module.key}.lora_up.weight"], tensors[f"{module.key}.lora_down.weight"]
        product = (up.flatten(1) @ down.flatten(1)).reshape(module.shape)
        torch.testing.assert_close(
            product, wanted[module.weight], rtol=0, atol=1e-5 * float(wanted[module.weight].norm())
        )
    assert report.energy_kept == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("r", [2, 8])
def test_the_residual_is_the_best_there_is_and_the_report_tells_it(
    trained: Path, tiny_sdxl: Path, tmp_path: Path, r: int
) -> None:
    (report,) = extract(trained, tiny_sdxl, tmp_path / "a.safetensors", ranks=(r,))
    tensors, wanted = load_file(tmp_path / "a.safetensors"), deltas(trained, tiny_sdxl)
    ours = best = total = 0.0
    for module in tiny_modules(tiny_sdxl):
        D = wanted[module.weight].flatten(1).double()
        up, down = tensors[f"{module.key}.lora_up.weight"], tensors[f"{module.key}.lora_down.weight"]
        layer = float((D - up.flatten(1).double() @ down.flatten(1).double()).square().sum())
        layer_best = float(torch.linalg.svdvals(D)[r:].square().sum())
        assert layer <= 1.02**2 * layer_best + 1e-12
        ours, best, total = ours + layer, best + layer_best, total + float(D.square().sum())
    assert ours <= 1.005**2 * best
    assert report.energy_kept == pytest.approx(1 - ours / total, abs=1e-4)
    assert report.relative_residual == pytest.approx((ours / total) ** 0.5, rel=1e-3)


def test_several_ranks_come_from_one_pass_and_equal_those_asked_for_alone(
    trained: Path, tiny_sdxl: Path, tmp_path: Path
) -> None:
    reports = extract(trained, tiny_sdxl, tmp_path / "a.safetensors", ranks=(4, 20))
    assert [Path(report.file).name for report in reports] == ["a-rank4.safetensors", "a-rank20.safetensors"]
    extract(trained, tiny_sdxl, tmp_path / "alone.safetensors", ranks=(4,))
    together, alone = load_file(tmp_path / "a-rank4.safetensors"), load_file(tmp_path / "alone.safetensors")
    key = tiny_modules(tiny_sdxl)[0].key

    def product(tensors: Tensors) -> Tensor:
        return tensors[f"{key}.lora_up.weight"].float().flatten(1) @ tensors[f"{key}.lora_down.weight"].float().flatten(
            1
        )

    assert together.keys() == alone.keys()
    torch.testing.assert_close(product(together), product(alone), rtol=0, atol=0.02 * float(product(alone).abs().max()))


def test_the_same_models_give_the_same_file(trained: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        torch.manual_seed(len(list(tmp_path.iterdir())))
        extract(trained, tiny_sdxl, tmp_path / folder / "a.safetensors", ranks=(8,))
    files = [(tmp_path / folder / "a.safetensors").read_bytes() for folder in ("one", "two")]
    assert files[0] == files[1]


def test_convolutions_over_several_pixels_can_have_their_own_rank(
    trained: Path, tiny_sdxl: Path, tmp_path: Path
) -> None:
    (report,) = extract(trained, tiny_sdxl, tmp_path / "a.safetensors", ranks=(4,), conv_rank=12)
    for module in tiny_modules(tiny_sdxl):
        assert report.ranks[module.key] == (12 if module.shape[2:] == (3, 3) else 4)


# ---- budgets


def test_an_energy_is_kept_and_costs_less_than_one_rank_for_all(trained: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    (report,) = extract(trained, tiny_sdxl, tmp_path / "a.safetensors", energy=0.8)
    assert 0.8 <= report.energy_kept < 0.81
    assert len(set(report.ranks.values())) > 3
    uniform = [
        choice for choice in report.change.choices if choice.choice.startswith("rank") and choice.energy_kept >= 0.8
    ]
    assert report.num_bytes < min(choice.num_bytes for choice in uniform)
    tensors = load_file(tmp_path / "a.safetensors")
    for key, rank in report.ranks.items():
        assert tensors[f"{key}.alpha"].item() == rank == len(tensors[f"{key}.lora_down.weight"])


def test_a_size_is_never_exceeded_and_nearly_used(trained: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    (report,) = extract(trained, tiny_sdxl, tmp_path / "a.safetensors", max_bytes=300_000)
    assert 250_000 < (tmp_path / "a.safetensors").stat().st_size == report.num_bytes <= 300_000


def test_a_size_for_nothing_is_refused(trained: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not even one rank"):
        extract(trained, tiny_sdxl, tmp_path / "a.safetensors", max_bytes=100)
    assert list(tmp_path.iterdir()) == []


# ---- what the report says


def test_the_report_lies_beside_the_file_under_a_name_no_client_reads(
    trained: Path, tiny_sdxl: Path, tmp_path: Path
) -> None:
    (report,) = extract(trained, tiny_sdxl, tmp_path / "a.safetensors", ranks=(4,))
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "a.report.json"}
    written = json.loads((tmp_path / "a.report.json").read_text())
    assert written["energy_kept"] == report.energy_kept
    assert sum(group["share"] for group in written["groups"]) == pytest.approx(1.0)
    assert {group["name"] for group in written["groups"]} >= {"self-attention", "cross-attention", "3x3 convolutions"}


def test_higher_ranks_are_told_as_the_survey_finds_them(trained: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    (report,) = extract(trained, tiny_sdxl, tmp_path / "a.safetensors", ranks=(8,))
    survey = survey_change(trained / "unet", LoraOptions(ranks=(8,)), base=str(tiny_sdxl))
    exact = {choice.choice: choice for choice in survey.choices}
    assert "energy 0.9" in exact and not any(choice.is_estimate for choice in survey.choices)
    for choice in report.change.choices:
        if choice.choice.startswith("rank"):
            assert choice.energy_kept == pytest.approx(exact[choice.choice].energy_kept, abs=0.01)
            assert choice.num_bytes == exact[choice.choice].num_bytes


def test_metadata_tells_clients_that_it_is_sdxl(trained: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    extract(trained, tiny_sdxl, tmp_path / "a.safetensors", ranks=(4,), conv_rank=2)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert (metadata["ss_network_module"], metadata["ss_network_dim"]) == ("networks.lora", "4")
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "2"}
    assert metadata["modelspec.prediction_type"] == "epsilon"
    content = (tmp_path / "a.safetensors").read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()


def test_another_base_model_is_called_suspicious(trained: Path, tmp_path: Path) -> None:
    other = build_tiny_sdxl(tmp_path / "other", seed=1)
    (report,) = extract(trained, other, tmp_path / "a.safetensors", ranks=(4,))
    assert any("probably not the model" in warning for warning in report.change.warnings)


def test_the_right_base_model_is_not(trained: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    (report,) = extract(trained, tiny_sdxl, tmp_path / "a.safetensors", ranks=(4,))
    assert report.change.warnings == ()
    assert report.change.relative_change < 0.02


def test_layers_without_a_change_are_left_out(tiny_sdxl: Path, tmp_path: Path) -> None:
    partly = trained_copy(
        tiny_sdxl, tmp_path / "model", lambda name, tensor: decaying_change(name, tensor) if "attn2" in name else tensor
    )
    (report,) = extract(partly, tiny_sdxl, tmp_path / "a.safetensors", ranks=(4,))
    assert report.ranks and all("attn2" in key for key in report.ranks)
    assert report.change.num_unchanged == len(tiny_modules(tiny_sdxl)) - len(report.ranks)
    assert {name.split(".")[0] for name in load_file(tmp_path / "a.safetensors")} == report.ranks.keys()


def test_what_no_lora_covers_is_told(tiny_sdxl: Path, tmp_path: Path) -> None:
    def change(name: str, tensor: Tensor) -> Tensor:
        return tensor + 0.01 if name in ("conv_in.weight", "mid_block.resnets.0.conv1.weight") else tensor

    partly = trained_copy(tiny_sdxl, tmp_path / "model", change)
    (report,) = extract(partly, tiny_sdxl, tmp_path / "a.safetensors", ranks=(4,))
    tensors = weights(tiny_sdxl)
    inside, outside = tensors["mid_block.resnets.0.conv1.weight"].numel(), tensors["conv_in.weight"].numel()
    assert report.change.uncovered_share == pytest.approx(outside / (inside + outside), rel=1e-3)


# ---- a checkpoint of a run


def published(trained: Path, base: Path, folder: Path, *, base_model_hash: str) -> Path:
    folder.mkdir()
    with publish_checkpoint(folder, epoch=1, step=20) as staged:
        shutil.copytree(trained / "unet", staged.path / "unet")
        staged.finish(
            kind="trained_only_diffusers",
            weights="trained",
            config_hash="0",
            base_model=str(base),
            base_model_hash=base_model_hash,
            prediction_type="v_prediction",
            save_dtype="float32",
        )
    return folder / checkpoint_name(1, 20)


def test_a_checkpoint_knows_its_base_and_prediction_type(trained: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    base_hash = hash_weights([tiny_sdxl / "unet" / "diffusion_pytorch_model.safetensors"])
    checkpoint = published(trained, tiny_sdxl, tmp_path / "checkpoints", base_model_hash=base_hash)
    (report,) = extract_lora(checkpoint, tmp_path / "a.safetensors", LoraOptions(ranks=(4,)))
    assert report.change.warnings == ()
    assert report.change.base_model == str(tiny_sdxl)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata()["modelspec.prediction_type"] == "v"


def test_a_base_of_another_hash_is_refused_unless_it_is_allowed(trained: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    checkpoint = published(trained, tiny_sdxl, tmp_path / "checkpoints", base_model_hash="0" * 64)
    options, out = LoraOptions(ranks=(4,)), tmp_path / "a.safetensors"
    for base in (None, str(tiny_sdxl)):
        with pytest.raises(ModelError, match=r"is not the one that .* was trained from") as error:
            extract_lora(checkpoint, out, options, base=base)
        assert "--allow-other-base" in error.value.problems[0].hint
        with pytest.raises(ModelError):
            survey_change(checkpoint, options, base=base)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints"}
    (report,) = extract_lora(checkpoint, out, options, allow_other_base=True)
    (warning,) = report.change.warnings
    assert "is not the one that" in warning


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", [lambda content: content[:-1] + b"!", lambda content: content + b" "])
def test_a_damaged_checkpoint_is_refused(
    name: str, damage: Callable[[bytes], bytes], trained: Path, tiny_sdxl: Path, tmp_path: Path
) -> None:
    base_hash = hash_weights([tiny_sdxl / "unet" / "diffusion_pytorch_model.safetensors"])
    checkpoint = published(trained, tiny_sdxl, tmp_path / "checkpoints", base_model_hash=base_hash)
    file = checkpoint / "unet" / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises((ExportError, ModelError)) as error:
        extract_lora(checkpoint, tmp_path / "a.safetensors", LoraOptions(ranks=(4,)))
    assert str(file) in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints"}


def test_the_checkpoint_is_held_while_it_is_read(trained: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    base_hash = hash_weights([tiny_sdxl / "unet" / "diffusion_pytorch_model.safetensors"])
    checkpoint = published(trained, tiny_sdxl, tmp_path / "checkpoints", base_model_hash=base_hash)
    refused: dict[str, bool] = {}

    def delete(report: ProgressReport) -> None:
        with pytest.raises(CheckpointError, match="is being read"):
            delete_checkpoint(checkpoint)
        refused[report.phase] = True

    extract_lora(checkpoint, tmp_path / "a.safetensors", LoraOptions(ranks=(4,)), progress=delete)
    assert refused.keys() == {"check", "unet", "write"}
    delete_checkpoint(checkpoint)


@pytest.mark.parametrize("stored", STORED)
def test_every_way_to_store_the_base_gives_the_same_lora(
    stored: str, half_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's values are those of float16, so that storing it in another way rounds nothing."""
    unet = trained_copy(half_sdxl, tmp_path / "model", decaying_change) / "unet"
    (expected,) = extract_lora(unet, tmp_path / "expected.safetensors", LoraOptions(ranks=(4,)), base=str(half_sdxl))
    checkpoint = publish(
        tmp_path / "runs", STORED[stored](half_sdxl, tmp_path, monkeypatch), unet, **settings_of(stored, half_sdxl)
    )
    (found,) = extract_lora(checkpoint, tmp_path / "found.safetensors", LoraOptions(ranks=(4,)))
    tensors, reference = (load_file(tmp_path / f"{name}.safetensors") for name in ("found", "expected"))
    assert tensors.keys() == reference.keys()
    assert [name for name, tensor in reference.items() if not torch.equal(tensors[name], tensor)] == []
    assert (found.energy_kept, found.groups) == (expected.energy_kept, expected.groups)


# ---- what is refused


def test_a_model_without_a_change_is_refused(tiny_sdxl: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing was changed"):
        extract(tiny_sdxl, tiny_sdxl, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_not_finite_is_refused_by_name(tiny_sdxl: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    broken = trained_copy(
        tiny_sdxl,
        tmp_path / "model",
        lambda name, tensor: tensor.index_fill(0, torch.tensor([1]), float("nan")) if "attn2.to_k" in name else tensor,
    )
    with pytest.raises(ExportError, match=r"attn2\.to_k\.weight holds NaN"):
        extract(broken, tiny_sdxl, tmp_path / "out" / "a.safetensors")
    assert list((tmp_path / "out").iterdir()) == []


def test_another_architecture_is_refused(trained: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    other = copy_model(tiny_sdxl, tmp_path / "model")
    edit_json(other / "unet" / "config.json", transformer_layers_per_block=[1, 1])
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(other / "unet"))
    shutil.rmtree(other / "unet")
    unet.save_pretrained(other / "unet")
    with pytest.raises(ExportError, match="two architectures"):
        extract(trained, other, tmp_path / "a.safetensors")


def test_folders_above_the_file_are_made_and_go_again_with_a_failure(
    trained: Path, tiny_sdxl: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "folders" / "a.safetensors"
    with pytest.raises(ExportError, match="nothing was changed"):
        extract(tiny_sdxl, tiny_sdxl, out)
    assert list(tmp_path.iterdir()) == []
    extract(trained, tiny_sdxl, out, ranks=(4,))
    assert out.is_file()


@pytest.mark.parametrize("name", ["a.safetensors", "a.report.json", "a-extras.safetensors"])
def test_no_file_is_overwritten(trained: Path, tiny_sdxl: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        extract(trained, tiny_sdxl, tmp_path / "a.safetensors", with_extras=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "options",
    [
        {"ranks": ()},
        {"ranks": (0,)},
        {"conv_rank": 0},
        {"energy": 1.0},
        {"energy": 0.9, "max_bytes": 10**6},
        {"energy": 0.9, "conv_rank": 4},
        {"clamp_quantile": 0.3},
        {"clamp_quantile": 0.99, "ranks": (4, 8)},
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LoraOptions(**options)


@pytest.mark.parametrize("moment", ["first", "middle", "last"])
def test_a_cancel_leaves_nothing(trained: Path, tiny_sdxl: Path, tmp_path: Path, moment: str) -> None:
    calls: list[ProgressReport] = []
    options = LoraOptions(energy=0.5, with_extras=True)
    (tmp_path / "whole").mkdir()

    extract_lora(
        trained / "unet", tmp_path / "whole" / "a.safetensors", options, base=str(tiny_sdxl), progress=calls.append
    )
    done_bytes = [call.done_bytes for call in calls]
    assert done_bytes == sorted(done_bytes) and done_bytes[-1] == calls[-1].total_bytes
    assert all(0 <= call.done <= call.total for call in calls)
    last = {"first": 1, "middle": len(calls) // 2, "last": len(calls)}[moment]
    calls.clear()

    def cancel(report: ProgressReport) -> None:
        calls.append(report)
        if len(calls) == last:
            raise KeyboardInterrupt

    (tmp_path / "cancelled").mkdir()
    with pytest.raises(KeyboardInterrupt):
        extract_lora(
            trained / "unet", tmp_path / "cancelled" / "a.safetensors", options, base=str(tiny_sdxl), progress=cancel
        )
    assert list((tmp_path / "cancelled").iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(trained: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        extract_lora(trained / "unet", tmp_path / "a.safetensors", LoraOptions(), base=str(tiny_sdxl), device="cuda")
    assert list(tmp_path.iterdir()) == []


# ---- options for others


def test_clamping_as_older_tools_do_keeps_less(trained: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    (plain,) = extract(trained, tiny_sdxl, tmp_path / "a.safetensors", ranks=(8,))
    (clamped,) = extract(trained, tiny_sdxl, tmp_path / "b.safetensors", ranks=(8,), clamp_quantile=0.9)
    assert clamped.energy_kept < plain.energy_kept - 0.001


def test_extras_lie_in_a_second_file_and_complete_the_change(trained: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    (report,) = extract(
        trained, tiny_sdxl, tmp_path / "a.safetensors", ranks=(4,), with_extras=True, dtype=torch.float32
    )
    assert report.extras_file == str(tmp_path / "a-extras.safetensors")
    extras = load_file(tmp_path / "a-extras.safetensors")
    wanted = deltas(trained, tiny_sdxl)
    torch.testing.assert_close(extras["lora_unet_input_blocks_0_0.diff"], wanted["conv_in.weight"], rtol=0, atol=0)
    torch.testing.assert_close(extras["lora_unet_out_0.diff_b"], wanted["conv_norm_out.bias"], rtol=0, atol=0)
    covered = {module.weight for module in tiny_modules(tiny_sdxl)}
    changed = [name for name, D in wanted.items() if name not in covered and float(D.norm()) > 0]
    assert len(extras) == len(changed)
    assert not any("diff" in name for name in load_file(tmp_path / "a.safetensors"))


# ---- diffusers


def test_diffusers_loads_every_key_and_predicts_what_the_trained_model_does(
    trained: Path, tiny_sdxl: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("peft")
    extract(trained, tiny_sdxl, tmp_path / "a.safetensors", ranks=(FULL,))
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, local_files_only=True)
    tuned = UNet2DConditionModel.from_pretrained(tiny_sdxl, subfolder="unet")
    covered = {module.weight for module in tiny_modules(tiny_sdxl)}
    tuned.load_state_dict({name: tensor for name, tensor in weights(trained).items() if name in covered}, strict=False)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 4, 16, 16, generator=generator)
    text = torch.randn(1, 77, 80, generator=generator)
    conditions = {"text_embeds": torch.randn(1, 40, generator=generator), "time_ids": torch.ones(1, 6) * 64}

    @torch.no_grad()
    def predict(unet: Any) -> Tensor:
        return unet(sample, 500, text, added_cond_kwargs=conditions).sample

    before = predict(pipeline.unet)
    diffusers_logger = logging.getLogger("diffusers")
    diffusers_logger.addHandler(caplog.handler)
    with caplog.at_level("WARNING", logger="diffusers"):
        pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    diffusers_logger.removeHandler(caplog.handler)
    # It says so of both text encoders, whose keys are left out on purpose.
    assert caplog.records
    assert all("No LoRA keys associated to CLIPText" in record.message for record in caplog.records)
    adapted = {name.split(".lora_A")[0] for name, _ in pipeline.unet.named_parameters() if ".lora_A." in name}
    assert adapted == {module.weight.removesuffix(".weight") for module in tiny_modules(tiny_sdxl)}
    after, wanted = predict(pipeline.unet), predict(tuned)
    assert float((after - wanted).norm()) < 0.02 * float((wanted - before).norm())
