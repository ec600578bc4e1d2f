"""Single files in the original SDXL layout: what is in them, what loads them, and what they say of the training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from tests.engine.model_variants import copy_model, edit_part, write_single_file
from tests.export.checkpoints import publish, unet_tensors
from tuitrain.commands.program import app
from tuitrain.engine.base_model import hub_tensor_name, open_base_model
from tuitrain.engine.original_names import PREFIXES
from tuitrain.errors import ConfigError, ExportError
from tuitrain.export.progress import ProgressReport
from tuitrain.export.single_file import package_single_file

TE2 = PREFIXES["text_encoder_2"]


@pytest.fixture
def checkpoint(half_sdxl: Path, trained: Path, tmp_path: Path) -> Path:
    """A checkpoint of a run that trained the tiny SDXL."""
    return publish(tmp_path / "runs", str(half_sdxl), trained / "unet")


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name].to(tensor.dtype), tensor)] == []


def test_the_file_has_the_names_and_shapes_of_the_original_layout(
    half_sdxl: Path, trained: Path, tmp_path: Path, checkpoint: Path
) -> None:
    """Against a file made in another way, less what is optional there."""
    whole = copy_model(half_sdxl, tmp_path / "whole")
    edit_part(whole, "unet", lambda _: {name: tensor.half().float() for name, tensor in unet_tensors(trained).items()})
    expected = load_file(write_single_file(whole, tmp_path / "expected.safetensors"))
    optional = ("alphas_cumprod", "logit_scale", "position_ids")
    package_single_file(checkpoint, tmp_path / "out.safetensors", dtype="float16")
    assert_same(
        load_file(tmp_path / "out.safetensors"),
        {name: tensor.half() for name, tensor in expected.items() if not name.endswith(optional)},
    )


def test_query_key_and_value_are_one_matrix_and_the_projection_is_turned(
    half_sdxl: Path, checkpoint: Path, tmp_path: Path
) -> None:
    package_single_file(checkpoint, tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    hub = load_file(half_sdxl / "text_encoder_2" / "model.safetensors")
    layer = "text_model.encoder.layers.1.self_attn"
    expected = torch.cat([hub[f"{layer}.{letter}_proj.weight"] for letter in "qkv"])
    assert torch.equal(written[f"{TE2}transformer.resblocks.1.attn.in_proj_weight"], expected)
    assert torch.equal(written[f"{TE2}text_projection"], hub["text_projection.weight"].T)
    vae = load_file(half_sdxl / "vae" / "diffusion_pytorch_model.safetensors")
    attention = vae["decoder.mid_block.attentions.0.to_q.weight"]
    assert torch.equal(written["first_stage_model.decoder.mid.attn_1.q.weight"], attention[:, :, None, None])


def test_a_single_file_base_gives_the_same_file(half_sdxl: Path, trained: Path, tmp_path: Path) -> None:
    base = write_single_file(half_sdxl, tmp_path / "base.safetensors")
    from_file = publish(tmp_path / "runs", str(base), trained / "unet", model_config_dir=str(half_sdxl))
    from_folder = publish(tmp_path / "runs", str(half_sdxl), trained / "unet")
    package_single_file(from_file, tmp_path / "a.safetensors")
    package_single_file(from_folder, tmp_path / "b.safetensors")
    assert_same(load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors"))


@pytest.mark.parametrize(
    ("prediction_type", "zero_terminal_snr", "markers", "spelled"),
    [
        ("epsilon", None, set(), "epsilon"),
        ("v_prediction", None, {"v_pred"}, "v"),
        ("v_prediction", True, {"v_pred", "ztsnr"}, "v"),
    ],
)
def test_the_file_says_what_was_trained(
    prediction_type: str,
    zero_terminal_snr: bool | None,
    markers: set[str],
    spelled: str,
    half_sdxl: Path,
    trained: Path,
    tmp_path: Path,
) -> None:
    checkpoint = publish(
        tmp_path / "runs",
        str(half_sdxl),
        trained / "unet",
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
    )
    out = tmp_path / "out.safetensors"
    package_single_file(checkpoint, out)
    written = load_file(out)
    assert {name for name, tensor in written.items() if tensor.numel() == 0} == markers
    metadata = metadata_of(out)
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert metadata["modelspec.prediction_type"] == spelled
    assert metadata["modelspec.resolution"] == "64x64"  # sample_size 16, 4 pixels to a latent
    assert "step 7" in metadata["modelspec.description"]
    config = open_base_model(
        str(out), hf_variant=None, vae_model=None, model_config_dir=str(half_sdxl)
    ).scheduler_config
    assert config["prediction_type"] == prediction_type
    assert config.get("rescale_betas_zero_snr", False) == bool(zero_terminal_snr)


def test_the_printed_lines_load_the_file_with_its_scheduler(half_sdxl: Path, trained: Path, tmp_path: Path) -> None:
    checkpoint = publish(
        tmp_path / "runs", str(half_sdxl), trained / "unet", prediction_type="v_prediction", zero_terminal_snr=True
    )
    package = package_single_file(checkpoint, tmp_path / "out.safetensors", dtype="float32")
    names: dict[str, Any] = {}
    exec("\n".join(package.loading), names)
    pipeline: StableDiffusionXLPipeline = names["pipeline"]
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.rescale_betas_zero_snr is True
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    assert_same(pipeline.unet.state_dict(), unet_tensors(trained))
    for part, stem in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model"), ("text_encoder_2", "model")):
        loaded = {hub_tensor_name(part, name): t for name, t in getattr(pipeline, part).state_dict().items()}
        expected = load_file(half_sdxl / part / f"{stem}.safetensors")
        assert_same({name: loaded[name] for name in expected}, expected)


def test_an_epsilon_file_loads_in_one_line(checkpoint: Path, half_sdxl: Path, tmp_path: Path) -> None:
    package = package_single_file(checkpoint, tmp_path / "out.safetensors", dtype="float16")
    assert package.loading[1:] == (
        f'pipeline = StableDiffusionXLPipeline.from_single_file("{tmp_path / "out.safetensors"}", '
        f'config="{half_sdxl}", torch_dtype=torch.float16)',
    )


class CancelledError(Exception):
    pass


@pytest.mark.parametrize("share", [0.0, 0.4, 0.6, 1.0])
def test_a_cancelled_file_leaves_nothing(share: float, checkpoint: Path, tmp_path: Path) -> None:
    def cancel(report: ProgressReport) -> None:
        if report.share >= share:
            raise CancelledError

    with pytest.raises(CancelledError):
        package_single_file(checkpoint, tmp_path / "out.safetensors", progress=cancel)
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_a_frozen_weight_that_float16_cannot_hold_is_refused(half_sdxl: Path, trained: Path, tmp_path: Path) -> None:
    def overflow(tensors: dict[str, Tensor]) -> None:
        tensors["encoder.conv_in.weight"][0, 0, 0, 0] = 1e6

    base = edit_part(copy_model(half_sdxl, tmp_path / "base"), "vae", overflow)
    with pytest.raises(ExportError, match=r"first_stage_model\.encoder\.conv_in\.weight"):
        package_single_file(trained / "unet", tmp_path / "out.safetensors", base=str(base), dtype="float16")
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


def test_an_existing_file_and_another_ending_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists already"):
        package_single_file(checkpoint, out)
    assert out.read_bytes() == b"mine"
    with pytest.raises(ConfigError, match="not the name of a single file"):
        package_single_file(checkpoint, tmp_path / "out")


def test_the_command_takes_the_layout_from_the_name(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["package", str(checkpoint), "--out", str(tmp_path / "out.safetensors"), "--json"]
    facts = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert facts["layout"] == "single_file"
    assert facts["num_bytes"] == (tmp_path / "out.safetensors").stat().st_size
