"""The training loader: every sample once, in the same order and with the same content however it is prepared."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tuitrain.data.buckets import BatchPlan, Fit, fit, plan_batches
from tuitrain.data.cache import TensorCache, cache_key, load_pixels
from tuitrain.data.files import PathSource
from tuitrain.data.images import ImageRecord
from tuitrain.data.loader import Batch, TrainLoader, time_ids
from tuitrain.errors import CheckpointError, DatasetError

Step = list[Batch]
BUCKETS = [(8, 16), (12, 12), (16, 8)]
NUM_RECORDS = 11
RANDOM_LOOKS: dict[str, Any] = {
    "center_crop": False,
    "random_flip": True,
    "caption_shuffle": True,
    "caption_dropout": 0.3,
}


def picture_record(folder: Path, number: int, size_hw: tuple[int, int], *, with_mask: bool = False) -> ImageRecord:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (*size_hw, 3), generator=generator, dtype=torch.uint8)
    path = folder / f"{number}.png"
    Image.frombytes("RGB", size_hw[::-1], bytes(pixels.flatten().tolist())).save(path)
    mask_path = folder / f"{number}_mask.png" if with_mask else None
    if mask_path:
        Image.frombytes("L", size_hw[::-1], bytes(pixels[..., 0].flatten().tolist())).save(mask_path)
    return ImageRecord(
        id=str(number),
        caption=f"red, green, blue, number {number}",
        source=PathSource(path),
        size_hw=size_hw,
        content_hash=hashlib.sha256(path.read_bytes()).hexdigest(),
        mask_path=mask_path,
    )


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRecord]:
    folder = tmp_path_factory.mktemp("pictures")
    sizes = [(20, 31), (26, 24), (33, 17)]
    return [picture_record(folder, number, sizes[number % 3]) for number in range(NUM_RECORDS)]


def build_loader(
    records: Sequence[ImageRecord],
    *,
    batch_size: int = 2,
    world_size: int = 1,
    accumulation: int = 2,
    seed: int = 1,
    buckets: list[tuple[int, int]] | None = BUCKETS,
    **options: Any,
) -> TrainLoader:
    target_hw, plan = plan_batches(
        [record.size_hw for record in records],
        resolution_hw=(12, 12),
        buckets=buckets,
        is_class_image=[record.class_image for record in records],
        batch_size=batch_size,
        world_size=world_size,
        gradient_accumulation_steps=accumulation,
        seed=seed,
    )
    return TrainLoader(records, target_hw, plan, seed=seed, background="white", **options)


def take(loader: TrainLoader, num_steps: int) -> list[Step]:
    return list(islice(iter(loader), num_steps))


def take_epoch(loader: TrainLoader) -> list[Batch]:
    return [batch for step in take(loader, loader.steps_per_epoch) for batch in step]


def assert_equal_steps(left: list[Step], right: list[Step]) -> None:
    assert [len(step) for step in left] == [len(step) for step in right]
    for left_step, right_step in zip(left, right, strict=True):
        for left_batch, right_batch in zip(left_step, right_step, strict=True):
            assert_equal_batches(dict(left_batch), dict(right_batch))


def assert_equal_batches(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        is_equal = torch.equal(value, right[name]) if isinstance(value, Tensor) else value == right[name]
        assert is_equal, name


def by_sample(batches: Sequence[Batch], field: str) -> dict[str, Any]:
    """{image id: its value of `field`}"""
    found: dict[str, Any] = {}
    for batch in batches:
        found |= dict(zip(batch["image_ids"], batch[field], strict=True))  # type: ignore[literal-required]
    return found


# Order and position


def test_an_epoch_gives_every_sample_once(records: list[ImageRecord]) -> None:
    ids = [image_id for batch in take_epoch(build_loader(records)) for image_id in batch["image_ids"]]
    assert sorted(ids, key=int) == [record.id for record in records]


def test_two_workers_give_exactly_what_none_gives(records: list[ImageRecord]) -> None:
    alone = take(build_loader(records, **RANDOM_LOOKS), 7)
    with_workers = take(build_loader(records, **RANDOM_LOOKS, num_workers=2), 7)
    assert_equal_steps(alone, with_workers)


def test_the_position_counts_steps_handed_out_not_those_prepared_ahead(records: list[ImageRecord]) -> None:
    loader = build_loader(records, num_workers=2)
    steps = iter(loader)
    assert loader.state_dict() == {"epoch": 0, "step_in_epoch": 0}
    next(steps)
    assert loader.state_dict() == {"epoch": 0, "step_in_epoch": 1}
    next(steps)
    assert loader.state_dict() == {"epoch": 0, "step_in_epoch": 2}


def test_an_epoch_is_complete_with_its_last_step(records: list[ImageRecord]) -> None:
    # buckets of 4, 4 and 3 records in pairs: 2 + 2 + 2 batches, 3 steps
    loader = build_loader(records)
    assert loader.steps_per_epoch == 3
    epochs = [(loader.epoch, loader.step_in_epoch) for _ in islice(iter(loader), 7)]
    assert epochs == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]


@pytest.mark.parametrize("position", range(8))
def test_a_restored_position_goes_on_with_exactly_the_steps_that_are_left(
    records: list[ImageRecord], position: int
) -> None:
    uninterrupted = take(build_loader(records, **RANDOM_LOOKS), 9)
    first = build_loader(records, **RANDOM_LOOKS)
    take(first, position)
    second = build_loader(records, **RANDOM_LOOKS)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert_equal_steps(take(second, 9 - position), uninterrupted[position:])


def test_a_position_saved_with_workers_is_restored_without(records: list[ImageRecord]) -> None:
    uninterrupted = take(build_loader(records, **RANDOM_LOOKS), 6)
    first = build_loader(records, **RANDOM_LOOKS, num_workers=2)
    take(first, 4)
    second = build_loader(records, **RANDOM_LOOKS)
    second.load_state_dict(first.state_dict())
    assert_equal_steps(take(second, 2), uninterrupted[4:])


def test_a_second_iterator_goes_on_where_the_first_was_left(records: list[ImageRecord]) -> None:
    loader = build_loader(records)
    assert_equal_steps(take(loader, 2) + take(loader, 2), take(build_loader(records), 4))


@pytest.mark.parametrize("state", [{"epoch": 0, "step_in_epoch": 3}, {"epoch": -1, "step_in_epoch": 0}, {"epoch": 1}])
def test_a_position_outside_the_epoch_is_refused(records: list[ImageRecord], state: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match="epochs of 3 steps"):
        build_loader(records).load_state_dict(state)


def test_seed_and_epoch_change_the_order(records: list[ImageRecord]) -> None:
    epochs = [take_epoch(loader) for loader in [build_loader(records)] * 2 + [build_loader(records, seed=2)]]
    orders = [tuple(image_id for batch in epoch for image_id in batch["image_ids"]) for epoch in epochs]
    assert len(set(orders)) == 3


@pytest.mark.parametrize("field", ["time_ids", "captions", "drop_caption"])
def test_seed_and_epoch_change_how_a_sample_looks(records: list[ImageRecord], field: str) -> None:
    one, two = build_loader(records, **RANDOM_LOOKS), build_loader(records, seed=2, **RANDOM_LOOKS)
    looks = [by_sample(take_epoch(loader), field) for loader in (one, one, two)]
    assert len({str(sorted(look.items())) for look in looks}) == 3


def test_the_global_random_state_is_not_touched(records: list[ImageRecord]) -> None:
    before = torch.get_rng_state()
    take(build_loader(records, **RANDOM_LOOKS), 4)
    assert torch.equal(torch.get_rng_state(), before)


# Ranks


def test_two_ranks_together_see_the_samples_and_positions_of_one_with_twice_the_batch(
    records: list[ImageRecord],
) -> None:
    one = take(build_loader(records, batch_size=4, **RANDOM_LOOKS), 6)
    two = [take(build_loader(records, batch_size=2, world_size=2, rank=rank, **RANDOM_LOOKS), 6) for rank in (0, 1)]
    for step, *rank_steps in zip(one, *two, strict=True):
        for batch, *shares in zip(step, *rank_steps, strict=True):
            counted = [share for share in shares if share["loss_weight"].any()]
            for field in ("image_ids", "positions", "captions", "drop_caption"):
                joined = [value for share in counted for value in share[field]]
                assert joined == batch[field]
            assert torch.equal(torch.cat([share["pixel_values"] for share in counted]), batch["pixel_values"])
            assert torch.equal(torch.cat([share["time_ids"] for share in counted]), batch["time_ids"])
            assert {share["num_global"] for share in shares} == {batch["num_global"]} == {len(batch["image_ids"])}


def test_positions_count_over_the_micro_batches_of_a_step(records: list[ImageRecord]) -> None:
    [full] = take(build_loader(records[:6], batch_size=2, accumulation=3, buckets=None), 1)
    assert [batch["positions"] for batch in full] == [[0, 1], [2, 3], [4, 5]]
    [with_a_gap] = take(build_loader(records[:5], batch_size=2, accumulation=3, buckets=None), 1)
    assert sorted(len(batch["image_ids"]) for batch in with_a_gap) == [1, 2, 2]
    assert [batch["positions"][0] for batch in with_a_gap] == [0, 2, 4]


def test_a_rank_without_a_sample_gets_one_that_weighs_nothing(records: list[ImageRecord]) -> None:
    ranks = [
        take(build_loader(records[:1], batch_size=2, world_size=3, rank=rank, buckets=None), 1)[0][0]
        for rank in range(3)
    ]
    assert [batch["loss_weight"].tolist() for batch in ranks] == [[0.0], [0.0], [1.0]]
    assert [batch["image_ids"] for batch in ranks] == [["0"]] * 3
    assert [batch["num_global"] for batch in ranks] == [1, 1, 1]


# Content


def test_pixels_and_time_ids_are_those_of_the_same_crop(records: list[ImageRecord]) -> None:
    loader = build_loader(records, buckets=None, center_crop=False, random_flip=True)
    num_mirrored = 0
    for batch in take_epoch(loader):
        for place, image_id in enumerate(batch["image_ids"]):
            record = records[int(image_id)]
            *original_hw, top, left, target_h, target_w = (int(value) for value in batch["time_ids"][place])
            target_hw = (target_h, target_w)
            assert tuple(original_hw) == record.size_hw
            assert batch["pixel_values"][place].shape == (3, *target_hw)
            resized_hw = fit(record.size_hw, target_hw, center_crop=True).resized_hw
            plain = load_pixels(record, Fit(resized_hw, (top, left), target_hw), background="white")
            # Seen in the mirror the crop is at `left`, so in the picture it is as far from the right edge.
            left_in_picture = resized_hw[1] - target_w - left
            mirrored = load_pixels(
                record, Fit(resized_hw, (top, left_in_picture), target_hw), background="white", flipped=True
            )
            is_mirrored = torch.equal(batch["pixel_values"][place], mirrored)
            assert is_mirrored or torch.equal(batch["pixel_values"][place], plain)
            num_mirrored += is_mirrored
    assert 0 < num_mirrored < NUM_RECORDS


def test_time_ids_are_original_size_crop_and_bucket() -> None:
    # 1500x1000 to the bucket 768x1280: resized to 1920x1280, 576 rows cut off at the top.
    placement = fit((1500, 1000), (768, 1280), center_crop=True)
    assert time_ids((1500, 1000), placement, flipped=False).tolist() == [1500, 1000, 576, 0, 768, 1280]
    assert time_ids((1500, 1000), placement, flipped=False).dtype == torch.float32


def test_time_ids_of_a_mirrored_picture_have_the_mirrored_crop() -> None:
    # 300x500 to 100x100: resized to 100x167; a crop at column 20 ends 47 columns before the right edge.
    placement = Fit((100, 167), (0, 20), (100, 100))
    assert time_ids((300, 500), placement, flipped=False).tolist() == [300, 500, 0, 20, 100, 100]
    assert time_ids((300, 500), placement, flipped=True).tolist() == [300, 500, 0, 47, 100, 100]


def test_the_target_size_can_be_told_to_be_the_resolution(records: list[ImageRecord]) -> None:
    batches = take_epoch(build_loader(records, time_ids_target_hw=(512, 512)))
    assert {tuple(row) for batch in batches for row in batch["time_ids"][:, 4:].tolist()} == {(512.0, 512.0)}
    own = take_epoch(build_loader(records))
    assert {tuple(row) for batch in own for row in batch["time_ids"][:, 4:].int().tolist()} == set(BUCKETS)
    assert all(
        torch.equal(told["time_ids"][:, :4], bucket["time_ids"][:, :4])
        for told, bucket in zip(batches, own, strict=True)
    )


def test_crops_reach_every_column(records: list[ImageRecord]) -> None:
    # 20x31 to 8x8: resized to 8x12, so that columns 0..4 are possible.
    record = records[0]
    loader = TrainLoader(
        [record], [(8, 8)], BatchPlan([[0]], batch_size=1, seed=0), seed=0, background="white", center_crop=False
    )
    columns = [int(step[0]["time_ids"][0, 3]) for step in take(loader, 200)]
    assert {column: columns.count(column) > 20 for column in set(columns)} == dict.fromkeys(range(5), True)


def test_captions_are_shuffled_behind_prefix_and_kept_tags(records: list[ImageRecord]) -> None:
    loader = build_loader(records, caption_prefix="In the style, of", caption_shuffle=True, keep_tokens=1)
    captions = by_sample(take_epoch(loader), "captions")
    for image_id, caption in captions.items():
        assert caption.startswith("In the style, of red, ")
        assert sorted(caption.removeprefix("In the style, of red, ").split(", ")) == sorted(
            ["green", "blue", f"number {image_id}"]
        )
    assert len({caption.replace(image_id, "") for image_id, caption in captions.items()}) > 1


def test_captions_stay_as_written_without_options(records: list[ImageRecord]) -> None:
    captions = by_sample(take_epoch(build_loader(records)), "captions")
    assert captions == {record.id: record.caption for record in records}


def test_dropout_strikes_at_its_rate_and_others_in_every_epoch(records: list[ImageRecord]) -> None:
    loader = build_loader(records, caption_dropout=0.25)
    dropped = [by_sample(take_epoch(loader), "drop_caption") for _ in range(40)]
    rate = sum(sum(epoch.values()) for epoch in dropped) / (40 * NUM_RECORDS)
    assert 0.19 < rate < 0.31  # 440 draws: three standard deviations are 0.062
    assert len({tuple(sorted(epoch.items())) for epoch in dropped}) > 30
    assert all(sum(epoch[record.id] for epoch in dropped) > 0 for record in records)


@pytest.mark.parametrize(("rate", "expected"), [(0.0, {False}), (1.0, {True})])
def test_dropout_of_none_and_of_all(records: list[ImageRecord], rate: float, expected: set[bool]) -> None:
    assert set(by_sample(take_epoch(build_loader(records, caption_dropout=rate)), "drop_caption").values()) == expected


def test_turning_dropout_on_leaves_order_and_crops_alone(records: list[ImageRecord]) -> None:
    without = take(build_loader(records, center_crop=False), 4)
    with_dropout = take(build_loader(records, center_crop=False, caption_dropout=0.5), 4)
    for left, right in zip(without, with_dropout, strict=True):
        assert [batch["time_ids"].tolist() for batch in left] == [batch["time_ids"].tolist() for batch in right]


def test_class_pictures_carry_their_loss_weight(tmp_path: Path) -> None:
    instances = [picture_record(tmp_path, number, (12, 12)) for number in range(2)]
    classes = [
        ImageRecord(
            id=f"class_{number}",
            caption="a cat",
            source=instance.source,
            size_hw=instance.size_hw,
            content_hash=instance.content_hash,
            loss_weight=0.25,
            class_image=True,
        )
        for number, instance in enumerate(instances)
    ]
    [batch] = take_epoch(build_loader([*instances, *classes], batch_size=4, buckets=None))
    assert [image_id.startswith("class_") for image_id in batch["image_ids"]] == [False, True, False, True]
    assert batch["loss_weight"].tolist() == [1.0, 0.25, 1.0, 0.25]


def test_masks_come_at_pixel_size_and_are_full_where_a_record_has_none(tmp_path: Path) -> None:
    records = [
        picture_record(tmp_path, 0, (12, 12), with_mask=True),
        picture_record(tmp_path, 1, (12, 12), with_mask=False),
    ]
    loader = build_loader(records, buckets=None, random_flip=True)
    seen = set()
    for _ in range(8):
        batches = take_epoch(loader)
        masks, pixels = by_sample(batches, "mask"), by_sample(batches, "pixel_values")
        assert torch.equal(masks["1"], torch.ones(1, 12, 12))
        # The mask is the picture's red channel, so it must be placed and mirrored as the picture is.
        torch.testing.assert_close(masks["0"] * 2 - 1, pixels["0"][:1])
        seen.add(str(pixels["0"].tolist()))
    assert len(seen) == 2  # as it is, and mirrored


def test_a_dataset_without_masks_has_none_in_its_batches(records: list[ImageRecord]) -> None:
    assert all("mask" not in batch for batch in take_epoch(build_loader(records)))


# Caches


@pytest.fixture
def filled(tmp_path: Path, records: list[ImageRecord]) -> tuple[TensorCache, list[str], list[str]]:
    """A cache whose values say which record and what they are of."""
    cache = TensorCache(tmp_path / "cache")
    latent_keys = [cache_key(latents=record.id) for record in records]
    text_keys = [cache_key(text=record.id) for record in records]
    for number, (latent_key, text_key) in enumerate(zip(latent_keys, text_keys, strict=True)):
        cache.put(latent_key, {"latents": torch.full((4, 3, 3), float(number))})
        cache.put(
            text_key,
            {
                "prompt_embeds": torch.full((77, 6), number + 0.5, dtype=torch.bfloat16),
                "pooled_prompt_embeds": torch.full((5,), number + 0.25, dtype=torch.bfloat16),
            },
        )
    return cache, latent_keys, text_keys


def test_cached_tensors_take_the_place_of_pixels_and_captions(
    records: list[ImageRecord], filled: tuple[TensorCache, list[str], list[str]]
) -> None:
    cache, latent_keys, text_keys = filled
    loader = build_loader(
        records, latent_cache=cache, latent_keys=latent_keys, text_cache=cache, text_keys=text_keys, num_workers=1
    )
    for batch in take_epoch(loader):
        assert "pixel_values" not in batch
        assert "captions" not in batch
        numbers = torch.tensor([float(image_id) for image_id in batch["image_ids"]])
        assert torch.equal(batch["latents"], numbers.view(-1, 1, 1, 1).expand(-1, 4, 3, 3))
        assert torch.equal(batch["prompt_embeds"], (numbers + 0.5).bfloat16().view(-1, 1, 1).expand(-1, 77, 6))
        assert torch.equal(batch["pooled_prompt_embeds"], (numbers + 0.25).bfloat16().view(-1, 1).expand(-1, 5))


def test_cached_latents_come_with_the_time_ids_of_the_centre_crop(
    records: list[ImageRecord], filled: tuple[TensorCache, list[str], list[str]]
) -> None:
    cache, latent_keys, _ = filled
    cached = by_sample(take_epoch(build_loader(records, latent_cache=cache, latent_keys=latent_keys)), "time_ids")
    pixels = by_sample(take_epoch(build_loader(records)), "time_ids")
    assert {key: value.tolist() for key, value in cached.items()} == {
        key: value.tolist() for key, value in pixels.items()
    }


def spoil(cache: TensorCache, key: str) -> None:
    cache.path(key).write_bytes(cache.path(key).read_bytes()[:-1])


def remove(cache: TensorCache, key: str) -> None:
    cache.path(key).unlink()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("damage", [spoil, remove])
def test_an_entry_that_goes_bad_while_training_names_its_picture(
    records: list[ImageRecord],
    filled: tuple[TensorCache, list[str], list[str]],
    damage: Callable[[TensorCache, str], None],
    num_workers: int,
) -> None:
    cache, latent_keys, _ = filled
    damage(cache, latent_keys[4])
    loader = build_loader(records, latent_cache=cache, latent_keys=latent_keys, num_workers=num_workers)
    with pytest.raises(DatasetError) as raised:
        take_epoch(loader)
    [problem] = raised.value.problems
    assert problem.where == records[4].source.name
    assert "Traceback" not in str(raised.value)


def test_a_picture_that_disappears_is_an_error_naming_it(tmp_path: Path) -> None:
    records = [picture_record(tmp_path, number, (12, 12)) for number in range(2)]
    steps: Iterator[Step] = iter(build_loader(records, buckets=None, batch_size=1, accumulation=1))
    next(steps)
    for record in records:
        (tmp_path / f"{record.id}.png").unlink()
    with pytest.raises(DatasetError) as raised:
        next(steps)
    assert raised.value.problems[0].where in {record.source.name for record in records}
