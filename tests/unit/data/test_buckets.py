"""Bucket sizes, fits and batch plans against numbers worked out by hand."""

from collections import Counter
from math import ceil

import pytest

from tuitrain.data.buckets import BatchPlan, Fit, bucket_sizes, fit, nearest_bucket, plan_batches, share_of_rank
from tuitrain.errors import ConfigError

SDXL_SIZES = [
    (512, 2048),
    (640, 1536),
    (640, 1408),
    (768, 1280),
    (896, 1152),
    (1024, 1024),
    (1152, 896),
    (1280, 768),
    (1408, 640),
    (1536, 640),
    (2048, 512),
]


def flat(steps: list[list[list[int]]]) -> list[int]:
    return [index for step in steps for batch in step for index in batch]


def test_the_shipped_presets_buckets_are_the_eleven_sizes_of_sdxl() -> None:
    assert bucket_sizes(1024, 512, 1536, 128) == sorted(SDXL_SIZES)


def test_a_height_that_leaves_no_width_gives_no_bucket() -> None:
    # 64^2 / 128 = 32 -> 32; 64^2 / 160 = 25.6 -> 0
    assert bucket_sizes(64, 128, 160, 32) == [(32, 128), (128, 32)]


def test_buckets_that_are_all_without_width_are_an_error_naming_the_key() -> None:
    with pytest.raises(ConfigError, match=r"aspect_ratio_buckets\.start_dim"):
        bucket_sizes(64, 160, 192, 32)


def test_the_nearest_bucket_has_the_smallest_difference_of_height_by_width() -> None:
    # 1000/600 = 1.667: 1280/768 = 1.667 against 1408/640 = 2.2
    assert nearest_bucket((1000, 600), SDXL_SIZES) == (1280, 768)
    # 700/1000 = 0.7: |0.7 - 896/1152| = 0.078 against |0.7 - 768/1280| = 0.1
    assert nearest_bucket((700, 1000), SDXL_SIZES) == (896, 1152)
    # Not by logarithms: 0.64 is below 0.68, the middle of 0.36 and 1, but above their geometric middle 0.6.
    assert nearest_bucket((64, 100), [(36, 100), (100, 100)]) == (36, 100)


def test_of_equally_near_buckets_the_first_is_taken() -> None:
    assert nearest_bucket((3, 4), [(1, 2), (1, 1)]) == (1, 2)
    assert nearest_bucket((3, 4), [(1, 1), (1, 2)]) == (1, 1)


def test_a_wide_picture_is_scaled_by_its_height_and_cut_at_both_sides() -> None:
    # 300x500 to cover 100x100: scale 1/3 -> 100 x 166.67 -> 167; 67 columns too many, 33 of them on the left.
    assert fit((300, 500), (100, 100), center_crop=True) == Fit((100, 167), (0, 33), (100, 100))


def test_a_tall_picture_is_scaled_by_its_width_and_cut_at_top_and_bottom() -> None:
    # 1500x1000 to cover 768x1280: scale 1.28 -> 1920 x 1280; 1152 rows too many.
    assert fit((1500, 1000), (768, 1280), center_crop=True) == Fit((1920, 1280), (576, 0), (768, 1280))


def test_a_resized_picture_always_covers_its_target() -> None:
    for height in range(1, 40):
        for width in range(1, 40):
            placement = fit((height, width), (16, 24), center_crop=True)
            assert placement.resized_hw[0] >= 16
            assert placement.resized_hw[1] >= 24
            assert 16 in placement.resized_hw or 24 in placement.resized_hw


@pytest.mark.parametrize(
    ("crop_u", "left"), [((0.0, 0.0), 0), ((0.0, 0.49), 33), ((0.9, 0.5), 34), ((0.999, 0.999999), 67)]
)
def test_a_random_crop_takes_every_place_from_one_edge_to_the_other(crop_u: tuple[float, float], left: int) -> None:
    # 68 places, 0..67
    assert fit((300, 500), (100, 100), center_crop=False, crop_u=crop_u).crop_top_left == (0, left)


def test_the_left_edge_of_a_crop_in_the_mirrored_picture_counts_from_the_other_side() -> None:
    placement = Fit(resized_hw=(100, 167), crop_top_left=(0, 20), target_hw=(100, 100))
    assert placement.flipped_crop_left == 47  # 167 - 100 - 20


def test_an_epoch_holds_every_record_once_in_batches_of_one_bucket() -> None:
    groups = [list(range(7)), list(range(7, 12)), [12]]
    plan = BatchPlan(groups, batch_size=3, seed=1)
    steps = plan.epoch(0)
    assert sorted(flat(steps)) == list(range(13))
    for [batch] in steps:
        assert any(set(batch) <= set(group) for group in groups)
    # 7 = 3 + 3 + 1, 5 = 3 + 2, 1 = 1
    assert sorted(len(batch) for [batch] in steps) == [1, 1, 2, 3, 3, 3]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    groups = [list(range(20)), list(range(20, 30))]
    order = BatchPlan(groups, batch_size=2, seed=1).epoch(0)
    assert order == BatchPlan(groups, batch_size=2, seed=1).epoch(0)
    assert order != BatchPlan(groups, batch_size=2, seed=1).epoch(1)
    assert order != BatchPlan(groups, batch_size=2, seed=2).epoch(0)


def test_the_order_of_an_epoch_stays_the_same_between_releases() -> None:
    # A run resumed by a later release must go on with the pictures it has not seen.
    plan = BatchPlan([[0, 1, 2, 3, 4], [5, 6, 7]], batch_size=2, gradient_accumulation_steps=2, seed=3)
    assert plan.epoch(1) == [[[3, 2], [4, 0]], [[1], [7, 5]], [[6]]]


def test_buckets_are_mixed_over_the_epoch() -> None:
    steps = BatchPlan([list(range(20)), list(range(20, 40))], batch_size=2, seed=0).epoch(0)
    buckets = [batch[0] // 20 for [batch] in steps]
    assert buckets != sorted(buckets)
    assert buckets != sorted(buckets, reverse=True)


@pytest.mark.parametrize("accumulation", [1, 2, 3, 4, 7])
def test_steps_per_epoch_is_the_ceiling_of_batches_by_accumulation(accumulation: int) -> None:
    # ceil(7/2) + ceil(5/2) + 1 = 8 batches
    plan = BatchPlan(
        [list(range(7)), list(range(7, 12)), [12]], batch_size=2, gradient_accumulation_steps=accumulation, seed=0
    )
    steps = plan.epoch(4)
    assert plan.batches_per_epoch == 8
    assert plan.steps_per_epoch == len(steps) == ceil(8 / accumulation)
    assert [len(step) for step in steps[:-1]] == [accumulation] * (len(steps) - 1)
    assert len(steps[-1]) == 8 - accumulation * (len(steps) - 1)


def test_two_ranks_take_the_steps_of_one_rank_with_twice_the_batch() -> None:
    groups = [list(range(9)), list(range(9, 14))]
    two = BatchPlan(groups, batch_size=2, world_size=2, gradient_accumulation_steps=2, seed=5)
    one = BatchPlan(groups, batch_size=4, world_size=1, gradient_accumulation_steps=2, seed=5)
    assert [two.epoch(epoch) for epoch in range(3)] == [one.epoch(epoch) for epoch in range(3)]
    assert two.steps_per_epoch == one.steps_per_epoch


@pytest.mark.parametrize(
    ("num_samples", "shares"),
    [(8, [[0, 1], [2, 3], [4, 5], [6, 7]]), (5, [[0], [1], [2], [3, 4]]), (2, [[], [0], [], [1]])],
)
def test_ranks_share_a_batch_evenly_and_in_order(num_samples: int, shares: list[list[int]]) -> None:
    batch = list(range(num_samples))
    assert [list(share_of_rank(batch, rank=rank, world_size=4)) for rank in range(4)] == shares


def test_without_buckets_instance_and_class_records_alternate_in_every_batch() -> None:
    plan = BatchPlan([[0, 1, 2]], batch_size=4, seed=0, pair_with=[list(range(10, 20))], pair_samples=True)
    order = flat(plan.epoch(0))
    assert plan.steps_per_epoch == len(plan.epoch(0)) == 2  # 2 x 3 records = 4 + 2
    assert [index >= 10 for index in order] == [False, True] * 3
    assert sorted(order[::2]) == [0, 1, 2]
    assert len(set(order[1::2])) == 3


def test_with_buckets_instance_and_class_batches_alternate() -> None:
    plan = BatchPlan([[0, 1, 2], [3]], batch_size=2, seed=0, pair_with=[list(range(10, 30))])
    batches = [batch for [batch] in plan.epoch(0)]
    # 3 instance batches (2 + 1 + 1), 10 class batches: twice the shorter
    assert plan.batches_per_epoch == len(batches) == 6
    assert [{index >= 10 for index in batch} for batch in batches] == [{False}, {True}] * 3
    assert sorted(index for batch in batches[::2] for index in batch) == [0, 1, 2, 3]


def test_the_longer_side_of_a_pair_shows_other_records_in_other_epochs() -> None:
    plan = BatchPlan([[0, 1]], batch_size=2, seed=0, pair_with=[list(range(10, 40))], pair_samples=True)
    seen = Counter(index for epoch in range(40) for index in flat(plan.epoch(epoch)) if index >= 10)
    assert len(seen) > 20


def test_records_go_to_their_nearest_bucket_and_batches_hold_one_size() -> None:
    sizes = [(100, 100), (60, 100), (100, 60), (99, 100), (61, 100)]
    buckets = [(48, 80), (64, 64), (80, 48)]
    target_hw, plan = plan_batches(
        sizes, resolution_hw=(64, 64), buckets=buckets, is_class_image=[False] * 5, batch_size=4, seed=0
    )
    assert target_hw == [(64, 64), (48, 80), (80, 48), (64, 64), (48, 80)]
    assert sorted(sorted(batch) for [batch] in plan.epoch(0)) == [[0, 3], [1, 4], [2]]


def test_without_buckets_every_record_has_the_resolution_as_target() -> None:
    target_hw, plan = plan_batches(
        [(100, 100), (60, 100), (100, 60)],
        resolution_hw=(64, 32),
        buckets=None,
        is_class_image=[False] * 3,
        batch_size=3,
        seed=0,
    )
    assert target_hw == [(64, 32)] * 3
    assert [sorted(batch) for [batch] in plan.epoch(0)] == [[0, 1, 2]]


@pytest.mark.parametrize(("buckets", "kinds"), [(None, [{False, True}]), ([(64, 64)], [{False}, {True}])])
def test_class_records_are_paired_by_sample_without_buckets_and_by_batch_with_them(
    buckets: list[tuple[int, int]] | None, kinds: list[set[bool]]
) -> None:
    _, plan = plan_batches(
        [(64, 64)] * 6,
        resolution_hw=(64, 64),
        buckets=buckets,
        is_class_image=[False, True] * 3,
        batch_size=6,
        seed=0,
    )
    assert [{index % 2 == 1 for index in batch} for [batch] in plan.epoch(0)] == kinds
