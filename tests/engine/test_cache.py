"""The tensor cache: what it gives back is what was stored, and what is made anew is what changed."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tuitrain.data.buckets import Fit, fit
from tuitrain.data.cache import (
    FillResult,
    TensorCache,
    cache_key,
    fill_latents,
    fill_text,
    latent_key,
    load_mask_pixels,
    load_pixels,
    text_key,
)
from tuitrain.data.files import PathSource
from tuitrain.data.images import ImageRecord
from tuitrain.errors import DatasetError, ModelError, TuitrainError

KEY = cache_key(name="one")
OTHER_KEY = cache_key(name="two")


def noise_picture(path: Path, *, size_hw: tuple[int, int] = (24, 40), seed: int = 0, compress_level: int = 6) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (*size_hw, 3), generator=generator, dtype=torch.uint8)
    Image.frombytes("RGB", size_hw[::-1], bytes(pixels.flatten().tolist())).save(path, compress_level=compress_level)


def scanned(path: Path, *, mask_path: Path | None = None) -> ImageRecord:
    with Image.open(path) as image:
        width, height = image.size
    content = path.read_bytes() + (mask_path.read_bytes() if mask_path else b"")
    return ImageRecord(
        id=path.stem,
        caption=f"picture {path.stem}",
        source=PathSource(path),
        size_hw=(height, width),
        content_hash=hashlib.sha256(content).hexdigest(),
        mask_path=mask_path,
    )


def encode_by_pooling(pixel_values: Tensor, generator: torch.Generator) -> Tensor:
    """(1, 3, H, W) -> (1, 4, H/4, W/4): three pooled channels, and one of noise."""
    pooled = F.avg_pool2d(pixel_values, 4)
    return torch.cat([pooled, torch.randn(1, 1, *pooled.shape[-2:], generator=generator)], dim=1)


class PromptEncoder:
    """Embeds a caption as its bytes, and remembers what it was asked."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        self.batches.append(captions)
        codes = torch.tensor([list(caption.encode().ljust(77, b"\0")[:77]) for caption in captions]).float()
        return codes.unsqueeze(-1).repeat(1, 1, 6), codes[:, :5]


def ignore_progress(done: int, total: int) -> None:
    pass


@pytest.fixture
def cache(tmp_path: Path) -> TensorCache:
    return TensorCache(tmp_path / "cache")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for seed, path in enumerate(paths):
        noise_picture(path, seed=seed)
    return paths


def fill_pictures(
    cache: TensorCache,
    pictures: list[Path],
    *,
    target_hw: tuple[int, int] = (16, 16),
    vae_hash: str = "vae",
    background: str = "white",
    report: Callable[[int, int], None] = ignore_progress,
) -> FillResult:
    return fill_latents(
        [scanned(path) for path in pictures],
        [target_hw] * len(pictures),
        cache=cache,
        encode_image=encode_by_pooling,
        vae_hash=vae_hash,
        background=background,
        report=report,
    )


def fill_captions(
    cache: TensorCache, captions: list[str], *, text_hash: str = "text", dtype: torch.dtype = torch.float32
) -> FillResult:
    return fill_text(
        captions,
        cache=cache,
        encode_prompt=PromptEncoder(),
        text_hash=text_hash,
        dtype=dtype,
        batch_size=2,
        report=ignore_progress,
    )


def stored_files(cache: TensorCache) -> list[Path]:
    return [path for path in cache.directory.rglob("*") if path.is_file()]


# The cache itself


def test_what_is_stored_comes_back_bit_for_bit(cache: TensorCache) -> None:
    tensors = {
        "half": torch.randn(3, 4).bfloat16(),
        "whole": torch.randn(2, 3, 5),
        "empty": torch.zeros(0, 4),
        "single": torch.tensor(3.0),
    }
    cache.put(KEY, tensors)
    found = cache.get(KEY)
    assert found is not None
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


def test_an_unknown_key_gives_none(cache: TensorCache) -> None:
    assert cache.get(KEY) is None


def test_an_entry_with_any_byte_altered_is_not_used(cache: TensorCache) -> None:
    cache.put(KEY, {"latents": torch.randn(2, 3), "mask": torch.rand(1, 2)})
    path = cache.path(KEY)
    sound = path.read_bytes()
    for place in range(len(sound)):
        altered = bytearray(sound)
        altered[place] ^= 1 << (place % 8)
        path.write_bytes(altered)
        assert cache.get(KEY) is None, f"byte {place} of {len(sound)}"


def test_an_entry_cut_short_anywhere_or_lengthened_is_not_used(cache: TensorCache) -> None:
    cache.put(KEY, {"latents": torch.randn(2, 3)})
    path = cache.path(KEY)
    sound = path.read_bytes()
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        assert cache.get(KEY) is None, f"{length} of {len(sound)} bytes"
    path.write_bytes(sound + b"\0")
    assert cache.get(KEY) is None


def test_an_entry_whose_body_was_never_written_is_not_used(cache: TensorCache) -> None:
    cache.put(KEY, {"latents": torch.randn(2, 3)})
    sound = cache.path(KEY).read_bytes()
    cache.path(KEY).write_bytes(sound[:-24] + bytes(24))
    assert cache.get(KEY) is None


def test_two_entries_that_changed_places_are_not_used(cache: TensorCache) -> None:
    cache.put(KEY, {"latents": torch.randn(2, 3)})
    cache.put(OTHER_KEY, {"latents": torch.randn(2, 3)})
    one, other = cache.path(KEY).read_bytes(), cache.path(OTHER_KEY).read_bytes()
    cache.path(KEY).write_bytes(other)
    cache.path(OTHER_KEY).write_bytes(one)
    assert cache.get(KEY) is None
    assert cache.get(OTHER_KEY) is None


def test_a_foreign_safetensors_file_is_not_used(cache: TensorCache) -> None:
    cache.path(KEY).parent.mkdir(parents=True)
    save_file({"latents": torch.randn(2, 3)}, cache.path(KEY))
    assert cache.get(KEY) is None


def test_putting_again_replaces_a_damaged_entry(cache: TensorCache) -> None:
    cache.put(KEY, {"latents": torch.zeros(2)})
    cache.path(KEY).write_bytes(b"damaged")
    cache.put(KEY, {"latents": torch.ones(2)})
    found = cache.get(KEY)
    assert found is not None
    assert found["latents"].tolist() == [1.0, 1.0]


def test_non_finite_tensors_are_never_stored(cache: TensorCache) -> None:
    with pytest.raises(AssertionError):
        cache.put(KEY, {"latents": torch.tensor([1.0, float("nan")])})
    assert not cache.directory.exists()


def test_entries_are_readable_as_the_umask_says(cache: TensorCache) -> None:
    before = os.umask(0o027)
    try:
        cache.put(KEY, {"latents": torch.zeros(2)})
    finally:
        os.umask(before)
    assert cache.path(KEY).stat().st_mode & 0o777 == 0o640


def test_a_cache_that_cannot_be_written_names_its_folder_and_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = TensorCache(tmp_path / "file")
    with pytest.raises(TuitrainError, match="cache_dir") as raised:
        cache.put(KEY, {"latents": torch.zeros(2)})
    assert raised.value.problems[0].where == str(tmp_path / "file")


# Latents


def test_latents_are_of_the_centre_crop_and_their_noise_follows_from_the_key(
    cache: TensorCache, pictures: list[Path]
) -> None:
    [key] = fill_pictures(cache, pictures[:1]).keys
    found = cache.get(key)
    assert found is not None
    # 24x40 covers 16x16 as 16x27, of which columns 5..20 are kept.
    placement = Fit(resized_hw=(16, 27), crop_top_left=(0, 5), target_hw=(16, 16))
    pixel_values = load_pixels(scanned(pictures[0]), placement, background="white")
    generator = torch.Generator().manual_seed(int(key[:12], 16))
    assert torch.equal(found["latents"], encode_by_pooling(pixel_values[None], generator)[0])
    assert found["latents"].shape == (4, 4, 4)


def test_a_second_fill_encodes_nothing(cache: TensorCache, pictures: list[Path]) -> None:
    first = fill_pictures(cache, pictures)
    second = fill_pictures(cache, pictures)
    assert (first.encoded, first.reused) == (3, 0)
    assert (second.encoded, second.reused) == (0, 3)
    assert first.keys == second.keys


def test_new_bytes_under_the_same_name_size_and_time_are_encoded_anew(cache: TensorCache, pictures: list[Path]) -> None:
    noise_picture(pictures[1], seed=1, compress_level=0)  # without compression, files of other pixels are equally long
    fill_pictures(cache, pictures)
    before = pictures[1].stat()
    noise_picture(pictures[1], seed=77, compress_level=0)
    os.utime(pictures[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    after = pictures[1].stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert fill_pictures(cache, pictures).encoded == 1


@pytest.mark.parametrize(
    "change",
    [{"vae_hash": "other vae"}, {"background": "black"}, {"target_hw": (16, 20)}],
    ids=lambda change: str(change),
)
def test_another_vae_background_or_size_encodes_everything_anew(
    cache: TensorCache, pictures: list[Path], change: dict[str, object]
) -> None:
    first = fill_pictures(cache, pictures)
    second = fill_pictures(cache, pictures, **change)  # type: ignore[arg-type]
    assert second.encoded == 3
    assert not set(first.keys) & set(second.keys)
    assert fill_pictures(cache, pictures).encoded == 0  # the first ones are still there


def test_a_renamed_picture_keeps_its_latents(cache: TensorCache, pictures: list[Path]) -> None:
    fill_pictures(cache, pictures)
    moved = pictures[0].rename(pictures[0].with_name("moved.png"))
    assert fill_pictures(cache, [moved, *pictures[1:]]).encoded == 0


def test_equal_pictures_share_an_entry(cache: TensorCache, pictures: list[Path]) -> None:
    pictures[1].write_bytes(pictures[0].read_bytes())
    filled = fill_pictures(cache, pictures)
    assert (filled.encoded, filled.reused) == (2, 1)
    assert filled.keys[0] == filled.keys[1] != filled.keys[2]


def test_a_damaged_entry_is_made_again_exactly_as_it_was(cache: TensorCache, pictures: list[Path]) -> None:
    key = fill_pictures(cache, pictures).keys[2]
    first = cache.get(key)
    path = cache.path(key)
    path.write_bytes(path.read_bytes()[:-1])
    assert fill_pictures(cache, pictures).encoded == 1
    second = cache.get(key)
    assert first is not None
    assert second is not None
    assert torch.equal(first["latents"], second["latents"])


def test_a_fill_that_was_stopped_goes_on_where_it_stood(cache: TensorCache, pictures: list[Path]) -> None:
    def stop_at_two(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_pictures(cache, pictures, report=stop_at_two)
    assert fill_pictures(cache, pictures).encoded == 1


def test_progress_counts_every_record(cache: TensorCache, pictures: list[Path]) -> None:
    seen: list[tuple[int, int]] = []
    fill_pictures(cache, pictures, report=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_non_finite_latent_names_its_file_and_is_not_kept(cache: TensorCache, pictures: list[Path]) -> None:
    def encode_to_nan(pixel_values: Tensor, generator: torch.Generator) -> Tensor:
        latents = encode_by_pooling(pixel_values, generator)
        latents[0, 2, 1, 1] = float("nan")
        return latents

    with pytest.raises(DatasetError, match="not finite") as raised:
        fill_latents(
            [scanned(pictures[1])],
            [(16, 16)],
            cache=cache,
            encode_image=encode_to_nan,
            vae_hash="vae",
            background="white",
            report=ignore_progress,
        )
    assert raised.value.problems[0].where == str(pictures[1])
    assert not cache.directory.exists()


def test_latents_are_kept_in_float32_whatever_the_encoder_returns(cache: TensorCache, pictures: list[Path]) -> None:
    def encode_in_bfloat16(pixel_values: Tensor, generator: torch.Generator) -> Tensor:
        return encode_by_pooling(pixel_values, generator).bfloat16().to(memory_format=torch.channels_last)

    filled = fill_latents(
        [scanned(pictures[0])],
        [(16, 16)],
        cache=cache,
        encode_image=encode_in_bfloat16,
        vae_hash="vae",
        background="white",
        report=ignore_progress,
    )
    found = cache.get(filled.keys[0])
    assert found is not None
    assert found["latents"].dtype == torch.float32


def test_a_mask_is_kept_at_latent_size_cropped_as_its_picture(cache: TensorCache, tmp_path: Path) -> None:
    noise_picture(tmp_path / "picture.png", size_hw=(16, 32))
    mask = Image.new("L", (32, 16), 0)
    # Of the centre crop, which begins at column 8: rows 0..7 and columns 6..15, seen at every fourth row and column.
    mask.paste(255, (14, 0, 32, 8))
    mask.save(tmp_path / "mask.png")
    record = scanned(tmp_path / "picture.png", mask_path=tmp_path / "mask.png")
    filled = fill_latents(
        [record],
        [(16, 16)],
        cache=cache,
        encode_image=encode_by_pooling,
        vae_hash="vae",
        background="white",
        report=ignore_progress,
    )
    found = cache.get(filled.keys[0])
    assert found is not None
    assert found["mask"].tolist() == [[[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]]


def test_a_record_with_a_mask_and_one_without_have_different_entries(tmp_path: Path) -> None:
    noise_picture(tmp_path / "picture.png")
    plain = scanned(tmp_path / "picture.png")
    masked = ImageRecord(
        id=plain.id,
        caption=plain.caption,
        source=plain.source,
        size_hw=plain.size_hw,
        content_hash=plain.content_hash,
        mask_path=tmp_path / "mask.png",
    )
    assert latent_key(plain, (16, 16), vae_hash="v", background="white") != latent_key(
        masked, (16, 16), vae_hash="v", background="white"
    )


# Text


def test_embeddings_are_kept_under_their_own_caption(cache: TensorCache) -> None:
    captions = ["a cat", "", "a dog", "a cat"]
    filled = fill_captions(cache, captions)
    assert (filled.encoded, filled.reused) == (3, 1)
    for caption, key in zip(captions, filled.keys, strict=True):
        found = cache.get(key)
        assert found is not None
        prompt_embeds, pooled_prompt_embeds = PromptEncoder()([caption])
        assert torch.equal(found["prompt_embeds"], prompt_embeds[0])
        assert torch.equal(found["pooled_prompt_embeds"], pooled_prompt_embeds[0])


def test_editing_one_caption_encodes_one_entry(cache: TensorCache) -> None:
    fill_captions(cache, ["a cat", "a dog", "a bird"])
    assert fill_captions(cache, ["a cat", "a dog", "a bird"]).encoded == 0
    assert fill_captions(cache, ["a cat", "a blue dog", "a bird"]).encoded == 1


def test_other_text_encoders_or_another_dtype_encode_everything_anew(cache: TensorCache) -> None:
    captions = ["a cat", "a dog"]
    fill_captions(cache, captions)
    assert fill_captions(cache, captions, text_hash="other").encoded == 2
    half = fill_captions(cache, captions, dtype=torch.bfloat16)
    assert half.encoded == 2
    found = cache.get(half.keys[0])
    assert found is not None
    assert found["prompt_embeds"].dtype == torch.bfloat16


def test_captions_are_encoded_in_batches_and_only_the_missing_ones(cache: TensorCache) -> None:
    fill_captions(cache, ["b"])
    encoder = PromptEncoder()
    seen: list[tuple[int, int]] = []
    fill_text(
        ["a", "b", "c", "d", "a"],
        cache=cache,
        encode_prompt=encoder,
        text_hash="text",
        dtype=torch.float32,
        batch_size=2,
        report=lambda done, total: seen.append((done, total)),
    )
    assert encoder.batches == [["a", "c"], ["d"]]
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_a_non_finite_embedding_names_its_caption_and_is_not_kept(cache: TensorCache) -> None:
    def encode_to_infinity(captions: list[str]) -> tuple[Tensor, Tensor]:
        prompt_embeds, pooled_prompt_embeds = PromptEncoder()(captions)
        return prompt_embeds / 0, pooled_prompt_embeds

    with pytest.raises(ModelError, match="'a cat'"):
        fill_text(
            ["a cat"],
            cache=cache,
            encode_prompt=encode_to_infinity,
            text_hash="text",
            dtype=torch.float32,
            batch_size=4,
            report=ignore_progress,
        )
    assert stored_files(cache) == []


def test_a_caption_cannot_pass_for_another_part_of_its_key() -> None:
    assert text_key('a", "text_hash": "b', text_hash="c", dtype=torch.float32) != text_key(
        "a", text_hash="b", dtype=torch.float32
    )
    assert text_key("a", text_hash="b", dtype=torch.float32) == text_key("a", text_hash="b", dtype=torch.float32)


# Pixels


def test_pixels_are_127_5ths_minus_one(tmp_path: Path) -> None:
    Image.frombytes("RGB", (2, 1), bytes([0, 51, 255, 102, 204, 127])).save(tmp_path / "two.png")
    record = scanned(tmp_path / "two.png")
    pixel_values = load_pixels(record, fit((1, 2), (1, 2), center_crop=True), background="white")
    expected = torch.tensor([[[-1.0, -0.2]], [[-0.6, 0.6]], [[1.0, 127 / 127.5 - 1]]])
    torch.testing.assert_close(pixel_values, expected)


def test_a_mirrored_picture_is_the_mirror_of_its_crop(tmp_path: Path) -> None:
    noise_picture(tmp_path / "picture.png")
    record = scanned(tmp_path / "picture.png")
    placement = fit(record.size_hw, (16, 16), center_crop=False, crop_u=(0.2, 0.8))
    plain = load_pixels(record, placement, background="white")
    mirrored = load_pixels(record, placement, background="white", flipped=True)
    assert torch.equal(mirrored, plain.flip(-1))


def test_resizing_agrees_with_torch_bilinear_antialiasing_to_one_level(tmp_path: Path) -> None:
    noise_picture(tmp_path / "picture.png", size_hw=(61, 83))
    record = scanned(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    placement = fit(record.size_hw, (24, 24), center_crop=False, crop_u=(0.0, 0.6))
    resized = F.interpolate(
        pixels.view(1, 61, 83, 3).permute(0, 3, 1, 2).float(),
        size=placement.resized_hw,
        mode="bilinear",
        antialias=True,
    )
    left = placement.crop_top_left[1]
    levels = (load_pixels(record, placement, background="white") + 1) * 127.5
    assert (levels - resized[0, :, :24, left : left + 24]).abs().max() <= 1.0


def test_a_mask_is_scaled_to_one(tmp_path: Path) -> None:
    noise_picture(tmp_path / "picture.png", size_hw=(1, 3))
    Image.frombytes("L", (3, 1), bytes([0, 51, 255])).save(tmp_path / "mask.png")
    record = scanned(tmp_path / "picture.png", mask_path=tmp_path / "mask.png")
    mask = load_mask_pixels(record, fit((1, 3), (1, 3), center_crop=True), flipped=True)
    assert mask is not None
    torch.testing.assert_close(mask, torch.tensor([[[1.0, 0.2, 0.0]]]))


def test_a_picture_of_another_size_than_scanned_is_refused_by_name(tmp_path: Path) -> None:
    noise_picture(tmp_path / "picture.png")
    record = scanned(tmp_path / "picture.png")
    noise_picture(tmp_path / "picture.png", size_hw=(10, 10))
    with pytest.raises(DatasetError) as raised:
        load_pixels(record, fit(record.size_hw, (8, 8), center_crop=True), background="white")
    assert raised.value.problems[0].where == str(tmp_path / "picture.png")
