"""What is no whole SDXL base model is refused before anything is trained, with the reason."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.engine.model_variants import (
    Tensors,
    copy_model,
    edit_json,
    edit_part,
    publish_to_hub_cache,
    rename_to_fp16,
    shard_unet,
    write_single_file,
)
from tuitrain.engine.original_names import PREFIXES
from tuitrain.engine.sdxl import load_sdxl
from tuitrain.errors import ModelError

UNET = "unet/diffusion_pytorch_model.safetensors"
CONV_IN = "conv_in.weight"


def overwrite(path: Path, start: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


def header_length(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


def with_unet(edit: Callable[[Tensors], Tensors | None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        edit_part(folder, "unet", edit)

    return damage


def with_unet_config(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        edit_json(folder / "unet" / "config.json", **changes)

    return damage


def half_a_file(folder: Path) -> None:
    path = folder / UNET
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_file_with_a_longer_tail(folder: Path) -> None:
    with (folder / UNET).open("ab") as file:
        file.write(b"\0" * 8)


def a_file_written_to_its_middle(folder: Path) -> None:
    path = folder / UNET
    middle = path.stat().st_size // 2
    overwrite(path, middle, b"\0" * (path.stat().st_size - middle))


def a_file_with_nothing_but_its_header(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    start = 8 + header_length(path)
    overwrite(path, start, b"\0" * (path.stat().st_size - start))


def a_flipped_bit_in_the_header_length(folder: Path) -> None:
    overwrite(folder / UNET, 5, b"\x01")


def a_flipped_bit_in_a_tensors_name(folder: Path) -> None:
    path = folder / UNET
    overwrite(path, path.read_bytes().index(b"conv_in.bias"), b"cond_in.bias")


def a_flipped_bit_in_a_tensors_dtype(folder: Path) -> None:
    path = folder / UNET
    overwrite(path, path.read_bytes().index(b'"F32"'), b'"I32"')


def an_empty_file(folder: Path) -> None:
    (folder / UNET).write_bytes(b"")


def a_web_page(folder: Path) -> None:
    (folder / UNET).write_text("<!DOCTYPE html><html>401 Unauthorized</html>")


def drop_conv_in(tensors: Tensors) -> None:
    del tensors[CONV_IN]


def add_a_tensor(tensors: Tensors) -> None:
    tensors["conv_in.lora_scale"] = torch.ones(1)


def put_nan(tensors: Tensors) -> None:
    tensors[CONV_IN][3, 1, 2, 0] = float("nan")


def put_infinity(tensors: Tensors) -> None:
    tensors["conv_out.bias"][0] = -float("inf")


def make_int64(tensors: Tensors) -> None:
    tensors[CONV_IN] = torch.ones(tensors[CONV_IN].shape, dtype=torch.int64)


def make_float8(tensors: Tensors) -> None:
    tensors[CONV_IN] = tensors[CONV_IN].to(torch.float8_e4m3fn)


def make_inpainting(tensors: Tensors) -> None:
    tensors[CONV_IN] = torch.ones(32, 9, 3, 3)


def reshape_conv_out(tensors: Tensors) -> None:
    tensors["conv_out.weight"] = torch.ones(4, 32, 1, 1)


def remove(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def weights_in_bin_alone(folder: Path) -> None:
    path = folder / UNET
    torch.save(load_file(path), path.with_name("diffusion_pytorch_model.bin"))
    path.unlink()


def weights_of_an_unknown_variant(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")


def a_shard_short(folder: Path) -> None:
    shard_unet(folder)
    next((folder / "unet").glob("*-00002-of-*.safetensors")).unlink()


def a_shard_outside(folder: Path) -> None:
    shard_unet(folder)
    edit_json(folder / "unet" / "diffusion_pytorch_model.safetensors.index.json", weight_map={"a": "../../a"})


def a_refiner(folder: Path) -> None:
    edit_json(folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    shutil.rmtree(folder / "text_encoder")


def a_checkpoint(folder: Path) -> None:
    for name in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
        shutil.rmtree(folder / name)
    (folder / "model_index.json").unlink()
    (folder / "checkpoint.json").write_text("{}")


def a_folder_with_a_single_file(folder: Path) -> None:
    write_single_file(folder, folder / "sdxl.safetensors")
    (folder / "model_index.json").unlink()


def other_text_encoder(folder: Path) -> None:
    edit_json(folder / "text_encoder_2" / "config.json", hidden_size=64)


def no_json(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text("{")


def a_json_list(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text("[]")


def a_shorter_vocabulary(folder: Path) -> None:
    (folder / "tokenizer" / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')


FOLDERS = [
    (half_a_file, r"unet.*safetensors \(2,77\d,\d+ bytes\) is not a complete safetensors file"),
    (a_file_with_a_longer_tail, "is not a complete safetensors file"),
    (a_file_written_to_its_middle, r"unet has \d+ tensors of zeros alone, its file was never written to the end"),
    (a_file_with_nothing_but_its_header, r"vae has \d+ tensors of zeros alone"),
    (a_flipped_bit_in_the_header_length, "is not a complete safetensors file"),
    (a_flipped_bit_in_a_tensors_name, "unet lacks 1 of 292 tensors: conv_in.bias"),
    (a_flipped_bit_in_a_tensors_name, "unet has 1 tensor that its config does not know: cond_in.bias"),
    (a_flipped_bit_in_a_tensors_dtype, "1 tensor is I32, weights must be F32, F16 or BF16"),
    (an_empty_file, r"\(0 bytes\) is not a complete safetensors file"),
    (a_web_page, "is not a complete safetensors file"),
    (with_unet(drop_conv_in), "unet lacks 1 of 292 tensors: conv_in.weight"),
    (with_unet(add_a_tensor), "unet has 1 tensor that its config does not know: conv_in.lora_scale"),
    (with_unet(put_nan), "unet has 1 tensor with NaN or infinity: conv_in.weight"),
    (with_unet(put_infinity), "unet has 1 tensor with NaN or infinity: conv_out.bias"),
    (with_unet(make_int64), "1 tensor is I64, weights must be F32, F16 or BF16: conv_in.weight"),
    (with_unet(make_float8), "1 tensor is F8_E4M3, weights must be F32, F16 or BF16"),
    (with_unet(reshape_conv_out), r"conv_out.weight is \[4, 32, 1, 1\] \(the config asks for \[4, 32, 3, 3\]\)"),
    (with_unet(make_inpainting), "takes 9 channels: it is an inpainting model, give the SDXL base model"),
    (with_unet_config(addition_embed_type=None), "it is a Stable Diffusion 1 or 2 model, not SDXL"),
    (with_unet_config(projection_class_embeddings_input_dim=5 * 8 + 40), "it is the SDXL refiner"),
    (with_unet_config(cross_attention_dim=768), r"reads text of width 768, the text encoders give 32 \+ 48"),
    (with_unet_config(down_block_types=["NoSuchBlock"] * 2), "the config of unet describes no network: .*NoSuchBlock"),
    (with_unet_config(addition_time_embed_dim=None), "says addition_time_embed_dim is None, it must be an integer"),
    (a_refiner, "is a StableDiffusionXLPipeline without text_encoder: the SDXL refiner has one text encoder"),
    (other_text_encoder, r"reads text of width 80, the text encoders give 32 \+ 64"),
    (remove("text_encoder_2"), "has no text_encoder_2 folder"),
    (remove("tokenizer_2/merges.txt"), "tokenizer_2 has no merges.txt"),
    (remove("tokenizer"), "tokenizer has no vocab.json"),
    (remove("scheduler"), "scheduler_config.json cannot be read: No such file or directory"),
    (remove("vae/config.json"), "config.json cannot be read: No such file or directory"),
    (remove("model_index.json"), "is no diffusers model: it has no model_index.json, it has scheduler, text_encoder"),
    (remove(UNET), "unet has no diffusion_pytorch_model.fp16.safetensors or diffusion_pytorch_model.safetensors"),
    (a_shorter_vocabulary, "tokenizer has 2 tokens, its text encoder knows 514"),
    (no_json, "config.json is not valid JSON"),
    (a_json_list, "scheduler_config.json holds a list, it must be a JSON object"),
    (weights_in_bin_alone, "has its weights as diffusion_pytorch_model.bin, a pickle, which can run code"),
    (weights_of_an_unknown_variant, "it has config.json, diffusion_pytorch_model.non_ema.safetensors"),
    (a_shard_short, r"lacks 1 of its \d shards: diffusion_pytorch_model-00002-of-0000\d.safetensors"),
    (a_shard_outside, r"lists \.\./\.\./a, a shard outside its folder"),
    (a_checkpoint, "is a checkpoint with the trained UNet alone: give the base model it was trained from"),
    (a_folder_with_a_single_file, r"to use a single file, give its path: .*sdxl\.safetensors"),
]


@pytest.mark.parametrize(("damage", "message"), FOLDERS)
def test_a_folder_is_refused(damage: Callable[[Path], None], message: str, tiny_sdxl: Path, tmp_path: Path) -> None:
    copy = copy_model(tiny_sdxl, tmp_path / "model")
    damage(copy)
    with pytest.raises(ModelError, match=message) as refusal:
        load_sdxl(str(copy))
    assert str(copy) in str(refusal.value)


# ---- single files


def single_file(edit: Callable[[Tensors], object]) -> Callable[[Path, Path], Path]:
    def store(folder: Path, tmp_path: Path) -> Path:
        path = write_single_file(folder, tmp_path / "model.safetensors")
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)
        return path

    return store


def tensors_named(*names: str) -> Callable[[Path, Path], Path]:
    def store(_: Path, tmp_path: Path) -> Path:
        save_file({name: torch.ones(4, 4) for name in names}, tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    return store


def as_ckpt(folder: Path, tmp_path: Path) -> Path:
    torch.save({"state_dict": {"w": torch.ones(1)}}, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def as_text(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").write_text("GGUF")
    return tmp_path / "model.gguf"


def pickle_called_safetensors(folder: Path, tmp_path: Path) -> Path:
    return as_ckpt(folder, tmp_path).rename(tmp_path / "model.safetensors")


def drop_the_vae(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith(PREFIXES["vae"])]:
        del tensors[name]


def drop_an_open_clip_matrix(tensors: Tensors) -> None:
    del tensors["conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight"]


def add_a_unet_block(tensors: Tensors) -> None:
    tensors["model.diffusion_model.input_blocks.99.0.weight"] = torch.ones(2, 2)


def widen_the_first_convolution(tensors: Tensors) -> None:
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.ones(32, 9, 3, 3)


SINGLE_FILES = [
    (tensors_named("lora_unet_down_blocks_0.lora_up.weight"), "is a LoRA, not a base model"),
    (tensors_named("unet.down_blocks.0.attn.to_q.lora_A.weight"), "is a LoRA, not a base model"),
    (tensors_named("cond_stage_model.transformer.w", "model.diffusion_model.w"), "is a Stable Diffusion 1 or 2 model"),
    (tensors_named("conditioner.embedders.0.model.w", "model.diffusion_model.w"), "is the SDXL refiner"),
    (tensors_named("model.diffusion_model.joint_blocks.0.w"), "is a transformer model"),
    (tensors_named("down_blocks.0.resnets.0.conv1.weight"), "holds one network in diffusers names, not a whole model"),
    (tensors_named("model.diffusion_model.w"), r"holds no vae \(first_stage_model\.\*\), no text_encoder"),
    (tensors_named("anything"), "is no SDXL model; it holds anything"),
    (tensors_named(), "is no SDXL model; it holds no tensor"),
    (as_ckpt, "is not a .safetensors file and may be a pickle, which can run code when read"),
    (as_text, r"model\.gguf is not a \.safetensors file"),
    (pickle_called_safetensors, "is not a complete safetensors file"),
    (single_file(drop_the_vae), r"holds no vae \(first_stage_model\.\*\); it must hold a whole SDXL model"),
    (single_file(drop_an_open_clip_matrix), "text_encoder_2 lacks 3 of 37 tensors: transformer.resblocks.1.attn.in_"),
    (single_file(add_a_unet_block), "unet has 1 tensor that its config does not know: input_blocks.99.0.weight"),
    (single_file(widen_the_first_convolution), "takes 9 channels: it is an inpainting model"),
]


@pytest.mark.parametrize(("store", "message"), SINGLE_FILES)
def test_a_single_file_is_refused(
    store: Callable[[Path, Path], Path], message: str, tiny_sdxl: Path, tmp_path: Path
) -> None:
    path = store(tiny_sdxl, tmp_path)
    with pytest.raises(ModelError, match=message) as refusal:
        load_sdxl(str(path), model_config_dir=str(tiny_sdxl))
    assert str(path) in str(refusal.value)


def test_a_single_file_of_another_size_is_refused_by_sdxls_own_configs(tiny_sdxl: Path, tmp_path: Path) -> None:
    path = write_single_file(tiny_sdxl, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="text_encoder lacks 160 of 196 tensors"):
        load_sdxl(str(path))


def test_configs_for_a_folder_that_has_its_own_are_refused(tiny_sdxl: Path) -> None:
    with pytest.raises(ModelError, match="is no single file and brings its own configs"):
        load_sdxl(str(tiny_sdxl), model_config_dir=str(tiny_sdxl))


def test_weights_too_large_for_half_precision_are_refused_in_it_alone(tiny_sdxl: Path, tmp_path: Path) -> None:
    def enlarge(tensors: dict[str, Tensor]) -> None:
        tensors["text_projection.weight"][0, 0] = 70_000.0

    copy = edit_part(copy_model(tiny_sdxl, tmp_path / "model"), "text_encoder_2", enlarge)
    load_sdxl(str(copy), weight_dtype=torch.bfloat16)
    with pytest.raises(ModelError, match=r"text_encoder_2 has 1 tensor with values too large for torch\.float16"):
        load_sdxl(str(copy), weight_dtype=torch.float16)


def test_every_problem_of_a_network_is_told_at_once(tiny_sdxl: Path, tmp_path: Path) -> None:
    def damage(tensors: Tensors) -> None:
        drop_conv_in(tensors)
        add_a_tensor(tensors)
        reshape_conv_out(tensors)

    copy = edit_part(copy_model(tiny_sdxl, tmp_path / "model"), "unet", damage)
    with pytest.raises(ModelError) as refusal:
        load_sdxl(str(copy))
    assert len(refusal.value.problems) == 3


# ---- not there


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./no/such/model", "there is no folder or file .*/no/such/model"),
        ("~/no-such-model", r"there is no folder or file /.*no-such-model"),
        ("model.safetensors", "there is no folder or file .*/model.safetensors"),
        ("", "there is no model: `model` is empty"),
        ("https://huggingface.co/owner/name", "there is no folder or file"),
    ],
)
def test_a_path_that_is_not_there_is_named(model: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_sdxl(model)


def test_a_dangling_link_names_its_target(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"is a link to .*/gone, which does not exist"):
        load_sdxl(str(tmp_path / "model"))


def test_a_hub_name_that_is_not_cached_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as refusal:
        load_sdxl("owner/name")
    assert refusal.value.problems[0].what == (
        f"owner/name is neither a folder nor a file here, and not in the Hub cache {tmp_path}"
        " (offline mode, the Hub was not asked)"
    )


def test_a_hub_model_of_which_the_cache_lacks_a_part_says_which(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    copy = rename_to_fp16(copy_model(tiny_sdxl, tmp_path / "model"))
    (copy / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    name = publish_to_hub_cache(copy, tmp_path / "hub", "someone/half-downloaded")
    with pytest.raises(ModelError, match=r"vae has no diffusion_pytorch_model\.fp16\.safetensors or"):
        load_sdxl(name)


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    call = "fetch_model('owner/name', descriptions=[], weights={}, hf_variant=None)"
    code = f"from tuitrain.engine.hub import fetch_model; {call}"
    closed_port = "http://127.0.0.1:9"
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": closed_port, "HF_HUB_CACHE": str(tmp_path)}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert process.stderr.splitlines()[-1] == (
        "tuitrain.errors.ModelError: owner/name is neither a folder nor a file here,"
        f" not in the Hub cache {tmp_path}, and the Hub cannot be reached"
        " (check the path of `model`, or fetch the model on a machine with network and copy it here)"
    )


@pytest.mark.parametrize(
    ("vae_model", "message"),
    [
        ("/no/such/vae", "vae_model is /no/such/vae, it must be a folder with config.json and weights, or a Hub name"),
        ("owner/vae", "owner/vae is neither a folder nor a file here"),
    ],
)
def test_a_vae_that_is_not_there_is_named(
    vae_model: str, message: str, tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=message):
        load_sdxl(str(tiny_sdxl), vae_model=vae_model)
