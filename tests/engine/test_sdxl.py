"""Loading SDXL however it is stored, and encoding with it, against diffusers' own pipeline."""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.engine.model_variants import (
    copy_model,
    edit_json,
    edit_part,
    publish_to_hub_cache,
    rename_to_fp16,
    round_to_half,
    shard_unet,
    write_single_file,
)
from tests.tiny_sdxl import build_tiny_sdxl
from tuitrain.engine.sdxl import SDXLModels, encode_image, encode_prompt, load_sdxl

CAPTIONS = ["a red circle on a blue ground", "", "a caption that is much longer than all of 77 tokens " * 4]
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def models(tiny_sdxl: Path) -> SDXLModels:
    return load_sdxl(str(tiny_sdxl))


@pytest.fixture(scope="module")
def pipeline(tiny_sdxl: Path) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)


@pytest.fixture(scope="module")
def rounded_sdxl(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with values that float16 holds, so that every way to store it holds the same."""
    return round_to_half(copy_model(tiny_sdxl, tmp_path_factory.mktemp("rounded") / "model"))


@pytest.fixture(scope="module")
def expected(rounded_sdxl: Path) -> dict[str, Tensor]:
    return tensors_of(StableDiffusionXLPipeline.from_pretrained(rounded_sdxl))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def tensors_of(models: SDXLModels | StableDiffusionXLPipeline) -> dict[str, Tensor]:
    networks: dict[str, nn.Module] = {name: getattr(models, name) for name in NETWORKS}
    return {f"{name}.{key}": tensor for name in NETWORKS for key, tensor in networks[name].state_dict().items()}


def assert_same(loaded: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert loaded.keys() == expected.keys()
    different = [name for name, tensor in loaded.items() if not torch.equal(tensor, expected[name])]
    assert different == []


# ---- encoding


def test_encode_prompt_equals_the_pipelines(models: SDXLModels, pipeline: StableDiffusionXLPipeline) -> None:
    prompt_embeds, pooled_prompt_embeds = encode_prompt(models, CAPTIONS, device="cpu")
    with torch.no_grad():
        expected, _, expected_pooled, _ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
    assert prompt_embeds.shape == (3, 77, 80)
    assert pooled_prompt_embeds.shape == (3, 40)
    torch.testing.assert_close(prompt_embeds, expected)
    torch.testing.assert_close(pooled_prompt_embeds, expected_pooled)


def test_encode_prompt_gives_a_caption_the_same_embedding_alone_and_among_others(models: SDXLModels) -> None:
    together, pooled_together = encode_prompt(models, CAPTIONS, device="cpu")
    alone, pooled_alone = encode_prompt(models, CAPTIONS[1:2], device="cpu")
    torch.testing.assert_close(together[1:2], alone)
    torch.testing.assert_close(pooled_together[1:2], pooled_alone)


def test_encode_image_is_a_scaled_sample_of_the_vae(models: SDXLModels, pipeline: StableDiffusionXLPipeline) -> None:
    pixel_values = torch.rand(2, 3, 32, 48) * 2 - 1
    latents = encode_image(models.vae, pixel_values, torch.Generator().manual_seed(3))
    with torch.no_grad():
        sample = pipeline.vae.encode(pixel_values).latent_dist.sample(torch.Generator().manual_seed(3))
    assert latents.shape == (2, 4, 8, 12)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, sample * 0.13025)


def test_encode_image_undoes_what_the_pipeline_does_to_latents_before_decoding(tiny_sdxl: Path) -> None:
    vae = load_sdxl(str(tiny_sdxl)).vae
    pixel_values = torch.rand(1, 3, 16, 16) * 2 - 1
    plain = encode_image(vae, pixel_values, torch.Generator().manual_seed(3)) / 0.13025
    vae.register_to_config(latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[5.0, 6.0, 7.0, 8.0])
    latents = encode_image(vae, pixel_values, torch.Generator().manual_seed(3))
    mean, std = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0, 6.0, 7.0, 8.0])
    torch.testing.assert_close(latents * std.view(1, 4, 1, 1) / 0.13025 + mean.view(1, 4, 1, 1), plain)


def test_vae_scale_factor_is_that_of_the_vae(models: SDXLModels) -> None:
    assert models.vae_scale_factor == 4


# ---- every way to store a model


Store = Callable[[Path, Path], str]


def as_is(folder: Path, _: Path) -> str:
    return str(folder)


def as_fp16_variant(folder: Path, tmp_path: Path) -> str:
    return str(rename_to_fp16(copy_model(folder, tmp_path / "model")))


def as_mixed_variants(folder: Path, tmp_path: Path) -> str:
    return str(rename_to_fp16(copy_model(folder, tmp_path / "model"), ("unet", "text_encoder_2")))


def as_shards(folder: Path, tmp_path: Path) -> str:
    return str(shard_unet(copy_model(folder, tmp_path / "model")))


def as_fp16_shards(folder: Path, tmp_path: Path) -> str:
    return str(shard_unet(copy_model(folder, tmp_path / "model"), variant="fp16"))


def as_written_by_transformers_5(folder: Path, tmp_path: Path) -> str:
    copy = copy_model(folder, tmp_path / "model")
    edit_part(copy, "text_encoder", lambda tensors: {k.removeprefix("text_model."): v for k, v in tensors.items()})
    return str(copy)


def as_written_long_ago(folder: Path, tmp_path: Path) -> str:
    """With position_ids in the text encoders, the VAE's old attention names, and a dtype in the configs."""
    copy = copy_model(folder, tmp_path / "model")
    for part in ("text_encoder", "text_encoder_2"):
        edit_part(copy, part, lambda t: {**t, "text_model.embeddings.position_ids": torch.arange(77).unsqueeze(0)})
        edit_json(copy / part / "config.json", torch_dtype="float16", transformers_version="4.32.0.dev0")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(name: str) -> str:
        for new_word, old_word in old.items():
            name = name.replace(f".{new_word}.", f".{old_word}.")
        return name

    edit_part(copy, "vae", lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    assert any(".query." in name for name in load_file(copy / "vae" / "diffusion_pytorch_model.safetensors"))
    return str(copy)


def as_hub_name(folder: Path, tmp_path: Path) -> str:
    return publish_to_hub_cache(folder, tmp_path / "hub", "someone/tiny-sdxl")


def as_hub_name_fp16(folder: Path, tmp_path: Path) -> str:
    return as_hub_name(rename_to_fp16(copy_model(folder, tmp_path / "model")), tmp_path)


def as_hub_snapshot_folder(folder: Path, tmp_path: Path) -> str:
    publish_to_hub_cache(folder, tmp_path / "hub", "someone/tiny-sdxl")
    return str(next((tmp_path / "hub").glob("models--*/snapshots/*")))


@pytest.mark.parametrize("hf_variant", ["fp16", None])
@pytest.mark.parametrize(
    "store",
    [
        as_is,
        as_fp16_variant,
        as_mixed_variants,
        as_shards,
        as_fp16_shards,
        as_written_by_transformers_5,
        as_written_long_ago,
        as_hub_name,
        as_hub_name_fp16,
        as_hub_snapshot_folder,
    ],
)
def test_a_model_is_the_same_however_it_is_stored(
    store: Store,
    hf_variant: str | None,
    rounded_sdxl: Path,
    expected: dict[str, Tensor],
    hub_cache: Path,
    tmp_path: Path,
) -> None:
    loaded = load_sdxl(store(rounded_sdxl, tmp_path), hf_variant=hf_variant)
    assert_same(tensors_of(loaded), expected)
    assert loaded.base.folder is not None
    assert (loaded.base.folder / "model_index.json").is_file()


def test_a_single_file_is_the_same_model_and_diffusers_reads_it_alike(
    rounded_sdxl: Path, expected: dict[str, Tensor], tmp_path: Path
) -> None:
    path = write_single_file(rounded_sdxl, tmp_path / "model.safetensors")
    upstream = StableDiffusionXLPipeline.from_single_file(str(path), config=str(rounded_sdxl))
    assert_same(tensors_of(upstream), expected)
    loaded = load_sdxl(str(path), model_config_dir=str(rounded_sdxl))
    assert_same(tensors_of(loaded), expected)
    assert loaded.base.folder is None


def test_a_single_file_and_its_folder_share_caches(rounded_sdxl: Path, tmp_path: Path) -> None:
    path = write_single_file(rounded_sdxl, tmp_path / "model.safetensors")
    single, folder = load_sdxl(str(path), model_config_dir=str(rounded_sdxl)), load_sdxl(str(rounded_sdxl))
    assert (single.vae_hash, single.text_hash) == (folder.vae_hash, folder.text_hash)


@pytest.mark.parametrize(
    ("markers", "prediction_type", "is_zero_snr"),
    [((), "epsilon", False), (("v_pred",), "v_prediction", False), (("v_pred", "ztsnr"), "v_prediction", True)],
)
def test_a_single_files_markers_say_what_it_predicts(
    markers: tuple[str, ...], prediction_type: str, is_zero_snr: bool, tiny_sdxl: Path, tmp_path: Path
) -> None:
    path = write_single_file(tiny_sdxl, tmp_path / "model.safetensors", markers=markers)
    scheduler_config = load_sdxl(str(path), model_config_dir=str(tiny_sdxl)).scheduler_config
    assert scheduler_config["prediction_type"] == prediction_type
    assert scheduler_config.get("rescale_betas_zero_snr", False) is is_zero_snr


def test_the_variant_asked_for_wins_over_plain_files(rounded_sdxl: Path, tmp_path: Path) -> None:
    copy = copy_model(rounded_sdxl, tmp_path / "model")
    plain = copy / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v.half() + 1 for k, v in load_file(plain).items()}, plain.with_stem(plain.stem + ".fp16"))
    asked, plain_style = load_sdxl(str(copy), hf_variant="fp16"), load_sdxl(str(copy), hf_variant=None)
    bias = plain_style.unet.conv_in.bias
    torch.testing.assert_close(asked.unet.conv_in.bias, (bias.half() + 1).float(), rtol=0, atol=0)
    assert asked.unet_hash != plain_style.unet_hash


def test_vae_model_replaces_the_vae_and_nothing_else(models: SDXLModels, tiny_sdxl: Path, tmp_path: Path) -> None:
    other = build_tiny_sdxl(tmp_path / "other", seed=1)
    loaded = load_sdxl(str(tiny_sdxl), vae_model=str(other / "vae"))
    expected = {name: tensor for name, tensor in tensors_of(models).items() if not name.startswith("vae.")} | {
        name: tensor for name, tensor in tensors_of(load_sdxl(str(other))).items() if name.startswith("vae.")
    }
    assert_same(tensors_of(loaded), expected)
    assert loaded.vae_hash != models.vae_hash
    assert loaded.text_hash == models.text_hash


def test_vae_model_can_be_a_hub_name(tiny_sdxl: Path, models: SDXLModels, hub_cache: Path, tmp_path: Path) -> None:
    other = build_tiny_sdxl(tmp_path / "other", seed=1)
    name = publish_to_hub_cache(other / "vae", hub_cache, "someone/vae")
    assert load_sdxl(str(tiny_sdxl), vae_model=name).vae_hash == load_sdxl(str(other)).vae_hash


@pytest.mark.parametrize("unet_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float16, torch.bfloat16])
def test_text_encoders_and_unet_have_the_dtype_asked_for_and_the_vae_float32(
    weight_dtype: torch.dtype, unet_dtype: torch.dtype, tiny_sdxl: Path
) -> None:
    loaded = load_sdxl(str(tiny_sdxl), weight_dtype=weight_dtype, unet_dtype=unet_dtype)
    dtypes = {name: {tensor.dtype for tensor in getattr(loaded, name).state_dict().values()} for name in NETWORKS}
    assert dtypes == {
        "unet": {unet_dtype},
        "text_encoder": {weight_dtype},
        "text_encoder_2": {weight_dtype},
        "vae": {torch.float32},
    }


def test_loaded_weights_are_no_view_of_the_file(tiny_sdxl: Path, tmp_path: Path) -> None:
    copy = copy_model(tiny_sdxl, tmp_path / "model")
    loaded = load_sdxl(str(copy))
    before = loaded.unet.conv_in.weight.clone()
    with (copy / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-1_000_000, 2)
        file.write(b"\xff" * 1_000_000)
        file.seek(100_000)
        file.write(b"\xff" * 4_000_000)
    torch.testing.assert_close(loaded.unet.conv_in.weight, before, rtol=0, atol=0)


# ---- hashes


def test_a_changed_caption_encoder_changes_the_text_hash_alone(
    models: SDXLModels, tiny_sdxl: Path, tmp_path: Path
) -> None:
    def nudge(tensors: dict[str, Tensor]) -> None:
        tensors["text_model.final_layer_norm.bias"][0] += 1e-6

    loaded = load_sdxl(str(edit_part(copy_model(tiny_sdxl, tmp_path / "model"), "text_encoder_2", nudge)))
    assert loaded.text_hash != models.text_hash
    assert loaded.vae_hash == models.vae_hash
    assert loaded.unet_hash == models.unet_hash


def test_a_changed_tokenizer_or_dtype_changes_the_text_hash(
    models: SDXLModels, tiny_sdxl: Path, tmp_path: Path
) -> None:
    copy = copy_model(tiny_sdxl, tmp_path / "model")
    edit_json(copy / "tokenizer_2" / "tokenizer_config.json", pad_token="<|endoftext|>")
    hashes = {
        models.text_hash,
        load_sdxl(str(copy)).text_hash,
        load_sdxl(str(tiny_sdxl), weight_dtype=torch.bfloat16).text_hash,
    }
    assert len(hashes) == 3


def test_a_changed_scaling_factor_changes_the_vae_hash(models: SDXLModels, tiny_sdxl: Path, tmp_path: Path) -> None:
    copy = copy_model(tiny_sdxl, tmp_path / "model")
    edit_json(copy / "vae" / "config.json", scaling_factor=0.5)
    assert load_sdxl(str(copy)).vae_hash != models.vae_hash


# ---- the terminal is the user's


@pytest.fixture
def log_records() -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    yield records
    logging.getLogger().removeHandler(handler)


def test_loading_and_encoding_print_nothing(
    tiny_sdxl: Path, capfd: pytest.CaptureFixture[str], log_records: list[logging.LogRecord]
) -> None:
    loaded = load_sdxl(str(tiny_sdxl), hf_variant=None)
    encode_prompt(loaded, CAPTIONS, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert [record.getMessage() for record in log_records] == []


@pytest.mark.slow
def test_a_fresh_process_prints_nothing_when_it_imports_and_loads(tiny_sdxl: Path) -> None:
    code = f"from tuitrain.engine.sdxl import load_sdxl; load_sdxl({str(tiny_sdxl)!r})"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (process.stdout, process.stderr) == ("", "")
