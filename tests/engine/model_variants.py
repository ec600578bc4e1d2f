"""Stores one SDXL folder in the other ways a base model comes in; knows nothing of what reads them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from tuitrain.engine.original_names import PREFIXES, original_tensor
from tuitrain.engine.weight_files import PARTS, read_json

Tensors = dict[str, Tensor]


def copy_model(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def edit_part(folder: Path, part: str, edit: Callable[[Tensors], Tensors | None]) -> Path:
    """Rewrite the tensors of one part of a copy, in place or by what `edit` returns."""
    path = folder / part / f"{PARTS[part]}.safetensors"
    tensors = load_file(path)
    edited = edit(tensors)
    save_file(tensors if edited is None else edited, path, metadata={"format": "pt"})
    return folder


def round_to_half(folder: Path) -> Path:
    """Make every value one that float16 holds, so that storing it as float16 changes nothing."""
    for part in PARTS:
        edit_part(folder, part, lambda tensors: {name: tensor.half().float() for name, tensor in tensors.items()})
    return folder


def rename_to_fp16(folder: Path, parts: tuple[str, ...] = tuple(PARTS)) -> Path:
    """Store `parts` as float16 under the names of the fp16 variant alone."""
    for part in parts:
        path = folder / part / f"{PARTS[part]}.safetensors"
        halves = {name: tensor.half() for name, tensor in load_file(path).items()}
        path.unlink()
        save_file(halves, path.with_name(f"{PARTS[part]}.fp16.safetensors"), metadata={"format": "pt"})
    return folder


def shard_unet(folder: Path, *, variant: str | None = None) -> Path:
    """Let diffusers store the UNet in shards of at most 2 MB."""
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="2MB", variant=variant)
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    return folder


def publish_to_hub_cache(folder: Path, cache: Path, name: str) -> str:
    """Lay `folder` out as the Hub's cache does: blobs by hash, a snapshot of relative links, a ref. Returns `name`."""
    repository = cache / f"models--{name.replace('/', '--')}"
    revision = "0123456789abcdef0123456789abcdef01234567"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        link = repository / "snapshots" / revision / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path("../" * (len(path.relative_to(folder).parts) + 1)) / "blobs" / blob.name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    return name


def write_single_file(folder: Path, path: Path, *, markers: tuple[str, ...] = ()) -> Path:
    """Store the model in SDXL's original layout, with what real files have beside the four networks."""
    tensors: Tensors = {marker: torch.zeros(0) for marker in markers}
    thirds: dict[str, dict[int, Tensor]] = {}
    for part, prefix in PREFIXES.items():
        config = read_json(folder / part / "config.json")
        for name, tensor in load_file(folder / part / f"{PARTS[part]}.safetensors").items():
            original = original_tensor(part, name, config)
            if original.third is not None:
                thirds.setdefault(prefix + original.name, {})[original.third] = tensor
            elif part == "vae" and tensor.ndim == 2:  # the original attention of the VAE is made of 1x1 convolutions
                tensors[prefix + original.name] = tensor[:, :, None, None]
            else:
                tensors[prefix + original.name] = (tensor.T if original.is_transposed else tensor).contiguous()
    for key, parts in thirds.items():
        tensors[key] = torch.cat([parts[third] for third in range(3)])
    text = PREFIXES["text_encoder"] + "text_model.embeddings."
    tensors[text + "position_ids"] = torch.arange(77).unsqueeze(0)
    tensors[PREFIXES["text_encoder_2"] + "logit_scale"] = torch.tensor(4.6)
    tensors["alphas_cumprod"] = torch.rand(1000)
    save_file(tensors, path, metadata={"modelspec.architecture": "stable-diffusion-xl-v1-base"})
    return path


def edit_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))
