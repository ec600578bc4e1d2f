"""Batches in a reproducible order with a position that can be saved; knows nothing of models or of the config file.

B micro-batch of one rank; H, W pixels; h, w latent size; D width of both text encoders together, P of the pooled one.
"""

from collections.abc import Iterator, Sequence
from typing import NotRequired, TypedDict

from torch import Tensor

from tuitrain.data.buckets import BatchPlan, Size
from tuitrain.data.cache import TensorCache
from tuitrain.data.images import ImageRecord


class Batch(TypedDict):
    """One micro-batch of one rank, on the CPU.

    Either `latents` (cached) or `pixel_values`, and either both embeddings (cached) or `captions`, are there. `mask` is
    there when the dataset has masks: of the latents' size with `latents`, of the pixels' size with `pixel_values`.
    """

    latents: NotRequired[Tensor]  # (B, 4, h, w) float32, already times the VAE's scaling factor
    pixel_values: NotRequired[Tensor]  # (B, 3, H, W) float32 in [-1, 1]
    prompt_embeds: NotRequired[Tensor]  # (B, 77, D)
    pooled_prompt_embeds: NotRequired[Tensor]  # (B, P)
    captions: NotRequired[list[str]]  # with prefix, shuffled
    mask: NotRequired[Tensor]  # (B, 1, h, w) or (B, 1, H, W) float32 in [0, 1]
    time_ids: Tensor  # (B, 6) float32: original h, w; crop top, left; target h, w
    loss_weight: Tensor  # (B,) float32; 0 for a sample that only keeps an otherwise idle rank in step
    image_ids: list[str]
    image_names: list[str]  # for messages
    positions: list[int]  # place of each sample in the optimizer step, over its micro-batches and ranks
    drop_caption: list[bool]  # caption dropout: train this sample on the empty prompt
    num_global: int  # samples of this micro-batch over all ranks


class TrainLoader:
    def __init__(
        self,
        records: Sequence[ImageRecord],
        target_hw: Sequence[Size],
        plan: BatchPlan,
        *,
        seed: int,
        background: str,
        rank: int = 0,
        latent_cache: TensorCache | None = None,
        latent_keys: Sequence[str] = (),
        text_cache: TensorCache | None = None,
        text_keys: Sequence[str] = (),
        center_crop: bool = True,
        random_flip: bool = False,
        caption_prefix: str | None = None,
        caption_shuffle: bool = False,
        keep_tokens: int = 0,
        caption_dropout: float = 0.0,
        time_ids_target_hw: Size | None = None,
        num_workers: int = 0,
    ) -> None:
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        """Completed epochs, counted in steps yielded."""
        raise NotImplementedError

    @property
    def steps_per_epoch(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[list[Batch]]:
        """Yield the micro-batches of one optimizer step after the other, without end, from the current position."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, int]:
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, int]) -> None:
        raise NotImplementedError
