"""Latents and text embeddings on disk, named by what they were made from; knows no model, only functions it is given.

An entry's name is a hash of all that decides its content, so it is never stale: what changes gets another name. One
that is torn, altered or under a wrong name counts as absent and is made again. H, W pixels; h, w latent size.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache as remember
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from tuitrain.atomic import atomic_file
from tuitrain.data.buckets import Fit, Size, fit
from tuitrain.data.images import ImageRecord, load_image, load_mask
from tuitrain.errors import DatasetError, ModelError, TuitrainError

# Part of every key. Raise it when the way from a picture or caption to an entry changes.
ENTRY_FORMAT = 1


class TensorCache:
    """A folder of named tensors by key. Several processes may share it: entries appear whole, by rename."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, key: str) -> Path:
        """Where the entry of `key` is kept, in one of 256 folders."""
        return self.directory / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under `key`, or None when there are none or they are not exactly what was stored.

        Raises:
            TuitrainError: the folder cannot be read.
        """
        try:
            data = self.path(key).read_bytes()
            tensors = safetensors.torch.load(data)
        except (FileNotFoundError, SafetensorError):
            return None
        except OSError as error:
            raise self._explain(error, "read") from error
        metadata = _read_metadata(data)
        is_intact = metadata.get("key") == key and metadata.get("sha256") == _hash_tensors(tensors)
        return tensors if is_intact and _are_finite(tensors) else None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store finite, contiguous CPU tensors under `key`, replacing what was there.

        Raises:
            TuitrainError: the folder cannot be written.
        """
        assert _are_finite(tensors)
        path = self.path(key)
        data = safetensors.torch.save(tensors, metadata={"key": key, "sha256": _hash_tensors(tensors)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise self._explain(error, "write") from error

    def _explain(self, error: OSError, verb: str) -> TuitrainError:
        return TuitrainError(
            f"cannot {verb} the cache: {error.strerror}",
            hint="make room or give access, or set cache_dir to another folder",
            where=str(self.directory),
        )


def _read_metadata(data: bytes) -> dict[str, str]:
    """The metadata of safetensors bytes that have been parsed before; safetensors itself gives it for files only."""
    header_length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + header_length]).get("__metadata__", {})
    return metadata


def _hash_tensors(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _are_finite(tensors: dict[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def cache_key(**parts: str | int | bool | Sequence[int]) -> str:
    """sha256 of the canonical JSON of everything that decides an entry's content."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@remember
def _release_of(distribution: str) -> str:
    return version(distribution)


def latent_key(record: ImageRecord, target_hw: Size, *, vae_hash: str, background: str) -> str:
    """The name of a record's latents: its bytes and mask, how they are brought to size, and what encodes them.

    Cheap: the content hash was taken when the picture was scanned.
    """
    return cache_key(
        kind="latents",
        format=ENTRY_FORMAT,
        content_hash=record.content_hash,
        has_mask=record.mask_path is not None,
        size_hw=record.size_hw,
        target_hw=target_hw,
        crop="center",
        background=background,
        vae_hash=vae_hash,
        dtype="float32",
        pillow=_release_of("pillow"),
        diffusers=_release_of("diffusers"),
    )


def text_key(caption: str, *, text_hash: str, dtype: torch.dtype) -> str:
    """The name of a caption's embeddings; `caption` is the whole text that the encoders see, prefix included."""
    return cache_key(
        kind="text",
        format=ENTRY_FORMAT,
        caption=caption,
        text_hash=text_hash,
        dtype=str(dtype),
        transformers=_release_of("transformers"),
    )


@dataclass(frozen=True)
class FillResult:
    """What a fill did, and where each thing asked for is.

    Args:
        encoded: entries made now.
        reused: things that had an entry, or share one that was just made.
        keys: the entry of every record or caption, in the order given.
    """

    encoded: int
    reused: int
    keys: list[str]


def fill_latents(
    records: Sequence[ImageRecord],
    target_hw: Sequence[Size],
    *,
    cache: TensorCache,
    encode_image: Callable[[Tensor, torch.Generator], Tensor],
    vae_hash: str,
    background: str,
    report: Callable[[int, int], None],
) -> FillResult:
    """Make every missing entry: "latents" (4, h, w) float32 and, for a record with a mask, "mask" (1, h, w) float32.

    The picture is cropped at the centre and not flipped. The VAE's noise is a function of the key, so an entry made
    again is the same entry.

    Args:
        target_hw: pixel size of each record's bucket.
        encode_image: (1, 3, H, W) float32 in [-1, 1] on the CPU and a CPU generator -> (1, 4, h, w), scaled.
        vae_hash: content hash of the VAE's weights.
        report: called with (done, total) after every record; what it raises passes through, and what is stored stays.

    Raises:
        DatasetError: a latent is not finite, or a picture can no longer be read.
        TuitrainError: the cache cannot be written.
    """
    keys = [
        latent_key(record, size, vae_hash=vae_hash, background=background)
        for record, size in zip(records, target_hw, strict=True)
    ]
    encoded = 0
    for index, (record, key) in enumerate(zip(records, keys, strict=True)):
        if cache.get(key) is None:
            cache.put(key, _encode_record(record, target_hw[index], key, encode_image, background))
            encoded += 1
        report(index + 1, len(records))
    return FillResult(encoded, len(records) - encoded, keys)


def _encode_record(
    record: ImageRecord,
    target_hw: Size,
    key: str,
    encode_image: Callable[[Tensor, torch.Generator], Tensor],
    background: str,
) -> dict[str, Tensor]:
    placement = fit(record.size_hw, target_hw, center_crop=True)
    pixel_values = load_pixels(record, placement, background=background)
    generator = torch.Generator().manual_seed(int(key[:12], 16))
    latents = encode_image(pixel_values.unsqueeze(0), generator)[0].to("cpu", torch.float32).contiguous()
    if not latents.isfinite().all():
        raise DatasetError(
            "the VAE turns this picture into values that are not finite",
            hint="set vae_model to a VAE that is sound in its dtype, or take the picture out of the dataset",
            where=record.source.name,
        )
    entry = {"latents": latents}
    mask = load_mask_pixels(record, placement)
    if mask is not None:
        entry["mask"] = F.interpolate(mask.unsqueeze(0), size=latents.shape[-2:], mode="nearest")[0]
    return entry


def fill_text(
    captions: Sequence[str],
    *,
    cache: TensorCache,
    encode_prompt: Callable[[list[str]], tuple[Tensor, Tensor]],
    text_hash: str,
    dtype: torch.dtype,
    batch_size: int,
    report: Callable[[int, int], None],
) -> FillResult:
    """Make every missing entry: "prompt_embeds" (77, D) and "pooled_prompt_embeds" (P,) of one caption, in `dtype`.

    Args:
        captions: what the encoders see, prefix included; repeated captions share an entry.
        encode_prompt: n captions -> (n, 77, D) and (n, P).
        text_hash: content hash of the weights of both text encoders.
        dtype: the dtype the encoders compute in, in which the entries are kept.
        batch_size: captions per call of encode_prompt.
        report: called with (done, total) captions; what it raises passes through, and what is stored stays.

    Raises:
        ModelError: an embedding is not finite.
        TuitrainError: the cache cannot be written.
    """
    keys = [text_key(caption, text_hash=text_hash, dtype=dtype) for caption in captions]
    distinct = dict(zip(keys, captions, strict=True))
    missing = {key: caption for key, caption in distinct.items() if cache.get(key) is None}
    done = len(captions) - len(missing)
    report(done, len(captions))
    missing_keys = list(missing)
    for start in range(0, len(missing_keys), batch_size):
        batch_keys = missing_keys[start : start + batch_size]
        prompt_embeds, pooled_prompt_embeds = encode_prompt([missing[key] for key in batch_keys])
        for index, key in enumerate(batch_keys):
            entry = {
                "prompt_embeds": prompt_embeds[index].to("cpu", dtype).contiguous(),
                "pooled_prompt_embeds": pooled_prompt_embeds[index].to("cpu", dtype).contiguous(),
            }
            if not _are_finite(entry):
                raise ModelError(
                    f"the text encoders turn the caption {missing[key][:80]!r} into values that are not finite",
                    hint="set weight_dtype to bfloat16 or float32",
                )
            cache.put(key, entry)
        done += len(batch_keys)
        report(done, len(captions))
    return FillResult(len(missing), len(captions) - len(missing), keys)


def load_pixels(record: ImageRecord, placement: Fit, *, background: str, flipped: bool = False) -> Tensor:
    """A record's picture, resized, cropped and mirrored: (3, H, W) float32 in [-1, 1].

    Bilinear with antialiasing, as torchvision resizes.

    Raises:
        DatasetError: the picture is no longer the one that was scanned.
    """
    image = load_image(record, background=background)
    return _place(image, record, placement, flipped=flipped).float().div_(127.5).sub_(1.0)


def load_mask_pixels(record: ImageRecord, placement: Fit, *, flipped: bool = False) -> Tensor | None:
    """A record's mask, placed as its picture is: (1, H, W) float32 in [0, 1], 1 where to learn; None where it has none.

    Raises:
        DatasetError: the mask is no longer the one that was scanned.
    """
    mask = load_mask(record)
    return None if mask is None else _place(mask, record, placement, flipped=flipped).float().div_(255.0)


def _place(image: Image.Image, record: ImageRecord, placement: Fit, *, flipped: bool) -> Tensor:
    """(channels, H, W) uint8"""
    if (image.height, image.width) != record.size_hw:
        raise DatasetError(
            f"is {image.height}x{image.width} pixels now and was {record.size_hw[0]}x{record.size_hw[1]} when scanned",
            hint="leave the pictures alone while they are trained on, and start again",
            where=record.source.name,
        )
    height, width = placement.target_hw
    top, left = placement.crop_top_left
    resized = image.resize(placement.resized_hw[::-1], Image.Resampling.BILINEAR)
    cropped = resized.crop((left, top, left + width, top + height))
    if flipped:
        cropped = cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    channels = len(cropped.getbands())
    return (
        torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8).view(height, width, channels).permute(2, 0, 1)
    )
