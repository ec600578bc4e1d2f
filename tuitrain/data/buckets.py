"""Aspect buckets and the order of batches, in pure integers; knows nothing of pictures, tensors or files.

All sizes are (height, width).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tuitrain.errors import ConfigError

Size = tuple[int, int]
T = TypeVar("T")
Step = list[list[int]]  # micro-batches of record indices, each for all ranks together


def bucket_sizes(target_resolution: int, start_dim: int, end_dim: int, divisible_by: int) -> list[Size]:
    """All bucket sizes whose sides are multiples of `divisible_by` and whose area is about `target_resolution` squared.

    For every height in start_dim..end_dim the width is target_resolution^2 / height, rounded down to a multiple; both
    orientations are kept. A height so large that the width would be zero gives no bucket.

    Returns:
        The distinct sizes, sorted. {1024, 512, 1536, 128} gives 11, from (512, 2048) to (2048, 512).

    Raises:
        ConfigError: no height gives a width.
    """
    sizes: set[Size] = set()
    for height in range(start_dim, end_dim + 1, divisible_by):
        width = target_resolution**2 // height // divisible_by * divisible_by
        if width > 0:
            sizes |= {(height, width), (width, height)}
    if not sizes:
        raise ConfigError(
            f"no aspect bucket of about {target_resolution}x{target_resolution} pixels has a side of {start_dim}",
            hint="set data_loader.aspect_ratio_buckets.start_dim to at most target_resolution",
        )
    return sorted(sizes)


def nearest_bucket(size_hw: Size, buckets: Sequence[Size]) -> Size:
    """The bucket with the smallest |h/w - bucket h / bucket w|; the first of equals, as invoke-training chooses."""
    ratio = size_hw[0] / size_hw[1]
    return min(buckets, key=lambda bucket: abs(ratio - bucket[0] / bucket[1]))


@dataclass(frozen=True)
class Fit:
    """How a picture comes to its target size: resize to `resized_hw`, then cut the target out at `crop_top_left`."""

    resized_hw: Size
    crop_top_left: Size
    target_hw: Size

    @property
    def flipped_crop_left(self) -> int:
        """The crop's left edge as seen in the mirrored picture."""
        return self.resized_hw[1] - self.target_hw[1] - self.crop_top_left[1]


def fit(size_hw: Size, target_hw: Size, *, center_crop: bool, crop_u: tuple[float, float] = (0.0, 0.0)) -> Fit:
    """Scale a picture to cover the target, keeping its aspect ratio, and place the crop.

    Args:
        size_hw: size of the upright picture.
        target_hw: size to come to.
        center_crop: crop the middle (an odd pixel goes to the bottom and right); otherwise where `crop_u` says.
        crop_u: two uniform numbers in [0, 1) that choose the crop's top and left among all positions evenly.
    """
    height, width = size_hw
    target_height, target_width = target_hw
    if target_height * width >= target_width * height:  # the height decides the scale
        resized_hw = (target_height, _divide_rounding(width * target_height, height))
    else:
        resized_hw = (_divide_rounding(height * target_width, width), target_width)
    room = (resized_hw[0] - target_height, resized_hw[1] - target_width)
    if center_crop:
        crop_top_left = (room[0] // 2, room[1] // 2)
    else:
        crop_top_left = (int(crop_u[0] * (room[0] + 1)), int(crop_u[1] * (room[1] + 1)))
    return Fit(resized_hw, crop_top_left, target_hw)


def _divide_rounding(numerator: int, denominator: int) -> int:
    """Nearest integer, halves up, without floats: a covering side can then never fall short of its target."""
    return (2 * numerator + denominator) // (2 * denominator)


class BatchPlan:
    """Which records form which batch in which step of an epoch, the same for every caller with the same arguments.

    A micro-batch holds up to batch_size * world_size records of one bucket; ranks share it. So world_size ranks with
    batch_size train the same steps as one rank with batch_size * world_size. A bucket's last batch may be smaller, and
    an epoch's last step may have fewer micro-batches than gradient_accumulation_steps.

    With `pair_with` (dreambooth) instance and class records alternate, starting with an instance, for twice the length
    of the shorter list; the longer one contributes a new random part in every epoch.

    Args:
        groups: record indices of each bucket.
        pair_with: indices of the class records of each bucket; None without class pictures.
        pair_samples: alternate record by record, so that every batch holds both kinds; only for a single size.
            Otherwise alternate batch by batch.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        *,
        batch_size: int,
        world_size: int = 1,
        gradient_accumulation_steps: int = 1,
        seed: int,
        pair_with: Sequence[Sequence[int]] | None = None,
        pair_samples: bool = False,
    ) -> None:
        assert not pair_samples or (pair_with is not None and len(groups) == len(pair_with) == 1)
        self.groups = groups
        self.pair_with = pair_with
        self.pair_samples = pair_samples
        self.batch_size = batch_size
        self.world_size = world_size
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.seed = seed
        self._global_batch_size = batch_size * world_size

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of one epoch; every rank has a part in each."""
        if self.pair_with is None:
            return self._num_batches(self.groups)
        if self.pair_samples:
            return -(-2 * min(len(self.groups[0]), len(self.pair_with[0])) // self._global_batch_size)
        return 2 * min(self._num_batches(self.groups), self._num_batches(self.pair_with))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch: ceil(batches / gradient_accumulation_steps)."""
        return -(-self.batches_per_epoch // self.gradient_accumulation_steps)

    def epoch(self, epoch: int) -> list[Step]:
        """The steps of epoch number `epoch`, a function of (seed, epoch) and the arguments of the plan alone."""
        rng = random.Random(f"batch order/{self.seed}/{epoch}")
        batches = self._shuffled_batches(rng)
        return _cut(batches, self.gradient_accumulation_steps)

    def _shuffled_batches(self, rng: random.Random) -> list[list[int]]:
        if self.pair_with is None:
            return self._bucket_batches(self.groups, rng)
        if self.pair_samples:
            instances, classes = _shuffled(self.groups[0], rng), _shuffled(self.pair_with[0], rng)
            return _cut(_alternate(instances, classes), self._global_batch_size)
        return _alternate(self._bucket_batches(self.groups, rng), self._bucket_batches(self.pair_with, rng))

    def _bucket_batches(self, groups: Sequence[Sequence[int]], rng: random.Random) -> list[list[int]]:
        """Shuffle within each bucket, cut, then shuffle the batches of all buckets."""
        batches = [batch for group in groups for batch in _cut(_shuffled(group, rng), self._global_batch_size)]
        rng.shuffle(batches)
        return batches

    def _num_batches(self, groups: Sequence[Sequence[int]]) -> int:
        return sum(-(-len(group) // self._global_batch_size) for group in groups)


def plan_batches(
    sizes_hw: Sequence[Size],
    *,
    resolution_hw: Size,
    buckets: Sequence[Size] | None,
    is_class_image: Sequence[bool],
    batch_size: int,
    world_size: int = 1,
    gradient_accumulation_steps: int = 1,
    seed: int,
) -> tuple[list[Size], BatchPlan]:
    """Give every record its target size, and make the plan of a whole dataset.

    Args:
        sizes_hw: size of every record's upright picture.
        resolution_hw: the one target size when there are no buckets.
        buckets: sizes of the aspect buckets, or None.
        is_class_image: for every record, whether it is a dreambooth class picture.

    Returns:
        The target size of every record, and the plan. Class pictures alternate with the others record by record without
        buckets and batch by batch with them, as invoke-training does.
    """
    if buckets is None:
        target_hw = [resolution_hw] * len(sizes_hw)
    else:
        target_hw = [nearest_bucket(size_hw, buckets) for size_hw in sizes_hw]
    has_class_images = any(is_class_image)
    plan = BatchPlan(
        _group_by_size(target_hw, [not is_class for is_class in is_class_image]),
        batch_size=batch_size,
        world_size=world_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        seed=seed,
        pair_with=_group_by_size(target_hw, is_class_image) if has_class_images else None,
        pair_samples=has_class_images and buckets is None,
    )
    return target_hw, plan


def share_of_rank(indices: Sequence[int], *, rank: int, world_size: int) -> range:
    """The places of one rank in a global micro-batch: contiguous, in rank order, sizes differing by at most one."""
    return range(rank * len(indices) // world_size, (rank + 1) * len(indices) // world_size)


def _group_by_size(target_hw: Sequence[Size], is_wanted: Sequence[bool]) -> list[list[int]]:
    groups: dict[Size, list[int]] = {}
    for index, (size, wanted) in enumerate(zip(target_hw, is_wanted, strict=True)):
        if wanted:
            groups.setdefault(size, []).append(index)
    return [groups[size] for size in sorted(groups)]


def _shuffled(items: Sequence[int], rng: random.Random) -> list[int]:
    return rng.sample(items, len(items))


def _alternate(first: Sequence[T], second: Sequence[T]) -> list[T]:
    """first[0], second[0], first[1], ... until the shorter one ends."""
    return [item for pair in zip(first, second, strict=False) for item in pair]


def _cut(items: Sequence[T], size: int) -> list[list[T]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
