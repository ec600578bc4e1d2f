"""How a micro-batch is cut into forward passes that fit in memory; knows batches, not models."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from tuitrain.data.loader import Batch


def cut_batch(batch: Batch, num_pictures: int) -> list[Batch]:
    """The samples of a micro-batch in order, in parts of at most `num_pictures`.

    `num_global` stays that of the whole, so that the losses of the parts add up to its loss, and `positions` stay those
    of the samples, so that each gets the noise it would have got in the whole.
    """
    size = len(batch["image_ids"])
    if size <= num_pictures:
        return [batch]
    return [_part(batch, slice(start, start + num_pictures)) for start in range(0, size, num_pictures)]


def _part(batch: Batch, part: slice) -> Batch:
    values = {name: value[part] if isinstance(value, Tensor | Sequence) else value for name, value in batch.items()}
    return cast(Batch, values)


def largest(batches: Sequence[Batch]) -> int:
    """The number of samples in the largest of `batches`."""
    return max(len(batch["image_ids"]) for batch in batches)
