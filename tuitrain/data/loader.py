"""Batches in a reproducible order with a position that can be saved; knows nothing of models or of the config file.

B micro-batch of one rank; H, W pixels; h, w latent size; D width of both text encoders together, P of the pooled one.
"""

import multiprocessing
import random
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NotRequired, TypedDict, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tuitrain.data.buckets import BatchPlan, Fit, Size, fit, share_of_rank
from tuitrain.data.cache import TensorCache, load_mask_pixels, load_pixels
from tuitrain.data.captions import shuffle_caption, with_prefix
from tuitrain.data.images import ImageRecord
from tuitrain.errors import CheckpointError, DatasetError, TuitrainError

T = TypeVar("T")

MAX_WORKER_DEATHS = 3  # without a batch in between; what kills them then is here to stay

_WORKER_DIED = re.compile(r"DataLoader worker \(pid.*")  # DataLoader's words, not those for what a worker has raised


class Batch(TypedDict):
    """One micro-batch of one rank, on the CPU.

    Either `latents` (cached) or `pixel_values`, and either both embeddings (cached) or `captions`, are there. `mask` is
    there when any record of the dataset has one: of the latents' size beside `latents`, of the pixels' beside
    `pixel_values`.
    """

    latents: NotRequired[Tensor]  # (B, 4, h, w) float32, already times the VAE's scaling factor
    pixel_values: NotRequired[Tensor]  # (B, 3, H, W) float32 in [-1, 1]
    prompt_embeds: NotRequired[Tensor]  # (B, 77, D)
    pooled_prompt_embeds: NotRequired[Tensor]  # (B, P)
    captions: NotRequired[list[str]]  # shuffled, then with the prefix in front
    mask: NotRequired[Tensor]  # (B, 1, h, w) or (B, 1, H, W) float32 in [0, 1]
    time_ids: Tensor  # (B, 6) float32: original h, w; crop top, left; target h, w
    loss_weight: Tensor  # (B,) float32; 0 for a sample that only keeps an otherwise idle rank in step
    image_ids: list[str]
    image_names: list[str]  # for messages
    positions: list[int]  # place of each sample in the optimizer step, over its micro-batches and ranks
    drop_caption: list[bool]  # caption dropout: train this sample on the empty prompt
    num_global: int  # samples of this micro-batch over all ranks


@dataclass(frozen=True)
class _Share:
    """What one rank has of one micro-batch.

    Args:
        indices: of records.
        positions: of the samples in the optimizer step.
        is_filler: the rank has nothing to do, and keeps in step with a sample that does not count.
        ends_step: the optimizer moves after this micro-batch.
    """

    epoch: int
    indices: list[int]
    positions: list[int]
    is_filler: bool
    num_global: int
    ends_step: bool


class TrainLoader:
    """Gives one rank its micro-batches, step after step, epoch after epoch.

    What a sample looks like (crop, flip, caption order, dropout) is a function of (seed, epoch, index of the record),
    and the order of samples one of (seed, epoch): neither depends on the number of workers or ranks, nor on where a run
    was interrupted.

    Args:
        records: the whole dataset, the same on every rank.
        target_hw: pixel size of each record's bucket.
        plan: which records are in which step; knows the number of ranks.
        background: colour behind transparent pictures.
        latent_cache: filled for `latent_keys`, one key per record; then there is no random crop or flip.
        text_cache: filled for `text_keys`, one key per record; then captions are as they were cached.
        keep_tokens: tags at the front that caption_shuffle leaves in place.
        caption_dropout: probability in [0, 1] that a sample is marked in `drop_caption`, drawn anew in every epoch.
        time_ids_target_hw: target size to tell the model instead of each record's bucket.
        num_workers: processes that prepare batches ahead; 0 prepares them when asked.
        warn: takes what happened and a hint when a worker has died and was replaced.
    """

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
        warn: Callable[[str, str], None] = lambda what, hint: None,
    ) -> None:
        assert latent_cache is None or (center_crop and not random_flip)
        assert text_cache is None or not caption_shuffle
        self._batches = _Batches(
            records=records,
            has_masks=any(record.mask_path is not None for record in records),
            target_hw=target_hw,
            seed=seed,
            background=background,
            latent_cache=latent_cache,
            latent_keys=latent_keys,
            text_cache=text_cache,
            text_keys=text_keys,
            center_crop=center_crop,
            random_flip=random_flip,
            caption_prefix=caption_prefix,
            caption_shuffle=caption_shuffle,
            keep_tokens=keep_tokens,
            caption_dropout=caption_dropout,
            time_ids_target_hw=time_ids_target_hw,
        )
        self._plan = plan
        self._rank = rank
        self._num_workers = num_workers
        self._warn = warn
        self.steps_per_epoch = plan.steps_per_epoch
        self.epoch = 0  # completed epochs, counted in yielded steps
        self.step_in_epoch = 0

    def state_dict(self) -> dict[str, int]:
        """The position after the last step that was yielded, whatever the workers have prepared beyond it."""
        return {"epoch": self.epoch, "step_in_epoch": self.step_in_epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a saved position; take a new iterator afterwards.

        Raises:
            CheckpointError: the position does not exist in this dataset.
        """
        epoch, step_in_epoch = state.get("epoch", -1), state.get("step_in_epoch", -1)
        if epoch < 0 or not 0 <= step_in_epoch < self.steps_per_epoch:
            raise CheckpointError(
                f"the saved data position {dict(state)} does not exist in epochs of {self.steps_per_epoch} steps",
                hint="resume with the dataset, train_batch_size and gradient_accumulation_steps of the saved run",
            )
        self.epoch, self.step_in_epoch = epoch, step_in_epoch

    def __iter__(self) -> Iterator[list[Batch]]:
        """Yield the micro-batches of one optimizer step after the other, without end, from the current position.

        When a worker process dies, new ones go on with the micro-batch that was waited for.

        Raises:
            DatasetError: a picture, mask or cache entry can no longer be read.
            TuitrainError: the cache folder cannot be read, or workers die one after the other.
        """
        step: list[Batch] = []
        num_deaths = 0
        all_prepared = self._prepare(first_batch=0)
        while True:
            try:
                prepared = next(all_prepared)
            except (RuntimeError, ConnectionError, EOFError) as error:
                num_deaths += 1
                self._tell_death(error, num_deaths)
                all_prepared = self._prepare(first_batch=len(step))
                continue
            num_deaths = 0
            if isinstance(prepared, TuitrainError):
                raise prepared
            batch, ends_step = prepared
            step.append(batch)
            if ends_step:
                self._advance()
                yield step
                step = []

    def _tell_death(self, error: Exception, num_deaths: int) -> None:
        """Warn of a worker that has died.

        Args:
            error: of DataLoader, or of the connection over which the worker handed a batch out.
            num_deaths: one after the other.

        Raises:
            TuitrainError: there were too many. The error itself, if it is of something else.
        """
        died = _WORKER_DIED.search(str(error))
        if self._num_workers == 0 or (isinstance(error, RuntimeError) and died is None):
            raise error
        reason = died[0].rstrip(". ") if died else f"{type(error).__name__}: {error}"
        if num_deaths == MAX_WORKER_DEATHS:
            raise TuitrainError(
                f"processes that prepare batches die, {num_deaths} one after the other: {reason}",
                hint="set data_loader.dataloader_num_workers to 0, or give the machine more memory and /dev/shm",
            ) from error
        self._warn(
            f"a process that prepares batches died and is replaced, the pictures come in the same order: {reason}",
            "if it was not you who ended it, lower data_loader.dataloader_num_workers",
        )

    def _advance(self) -> None:
        self.step_in_epoch += 1
        if self.step_in_epoch == self.steps_per_epoch:
            self.epoch, self.step_in_epoch = self.epoch + 1, 0

    def _prepare(self, *, first_batch: int) -> Iterator["_Prepared | TuitrainError"]:
        """All micro-batches from `first_batch` of the present step on."""
        # This iterator never ends, so the workers live as long as it does. The generator is here because DataLoader
        # would draw from the global one.
        prepared = DataLoader(
            self._batches,
            batch_size=None,
            sampler=_Shares(self._plan, self._rank, self.epoch, self.step_in_epoch, first_batch),
            num_workers=self._num_workers,
            collate_fn=_as_it_is,
            worker_init_fn=_ignore_interrupts,
            multiprocessing_context=_worker_context() if self._num_workers else None,
            generator=torch.Generator(),
        )
        return iter(prepared)


def _worker_context() -> multiprocessing.context.BaseContext:
    """Workers fork from a server that has imported this module once (0.1 s each instead of 2 s).

    A fork of this process would copy its threads' locks.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _ignore_interrupts(worker_id: int) -> None:
    """Ctrl-C goes to every process of the terminal; what it means is for the main one to decide."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Shares(Sampler[_Share]):
    """One rank's shares of the micro-batches from a position on, without end."""

    def __init__(self, plan: BatchPlan, rank: int, epoch: int, step_in_epoch: int, first_batch: int) -> None:
        self.plan = plan
        self.rank = rank
        self.epoch = epoch
        self.step_in_epoch = step_in_epoch
        self.first_batch = first_batch

    def __iter__(self) -> Iterator[_Share]:
        epoch, first_step, first_batch = self.epoch, self.step_in_epoch, self.first_batch
        while True:
            for step in self.plan.epoch(epoch)[first_step:]:
                for number in range(first_batch, len(step)):
                    yield self._share(epoch, number, step[number], ends_step=number + 1 == len(step))
                first_batch = 0
            epoch, first_step = epoch + 1, 0

    def _share(self, epoch: int, number: int, indices: list[int], *, ends_step: bool) -> _Share:
        places = share_of_rank(indices, rank=self.rank, world_size=self.plan.world_size)
        first_position = number * self.plan.batch_size * self.plan.world_size
        return _Share(
            epoch=epoch,
            indices=[indices[place] for place in places or [0]],
            positions=[first_position + place for place in places or [0]],
            is_filler=not places,
            num_global=len(indices),
            ends_step=ends_step,
        )


class _Prepared(NamedTuple):
    batch: Batch
    ends_step: bool


class _Draws(NamedTuple):
    """The random choices of one record in one epoch."""

    crop_u: tuple[float, float]
    flip_u: float
    dropout_u: float
    caption_rng: random.Random


class _Sample(NamedTuple):
    tensors: dict[str, Tensor]  # of Batch, without B
    caption: str
    drop_caption: bool


@dataclass(frozen=True, kw_only=True)
class _Batches(Dataset["_Prepared | TuitrainError"]):
    """Turns shares into batches; travels to the workers, so it holds no open file."""

    records: Sequence[ImageRecord]
    has_masks: bool
    target_hw: Sequence[Size]
    seed: int
    background: str
    latent_cache: TensorCache | None
    latent_keys: Sequence[str]
    text_cache: TensorCache | None
    text_keys: Sequence[str]
    center_crop: bool
    random_flip: bool
    caption_prefix: str | None
    caption_shuffle: bool
    keep_tokens: int
    caption_dropout: float
    time_ids_target_hw: Size | None

    def __getitem__(self, share: _Share) -> _Prepared | TuitrainError:
        """Our errors are returned, because DataLoader rewrites the text of what a worker raises."""
        try:
            samples = [self._sample(index, share.epoch) for index in share.indices]
        except TuitrainError as error:
            return error
        return _Prepared(self._collate(share, samples), share.ends_step)

    def _sample(self, index: int, epoch: int) -> _Sample:
        record = self.records[index]
        draws = self._draw(index, epoch)
        placement = fit(record.size_hw, self.target_hw[index], center_crop=self.center_crop, crop_u=draws.crop_u)
        flipped = self.random_flip and draws.flip_u < 0.5
        tensors = self._load_image(index, placement, flipped=flipped)
        tensors |= self._load_text(index)
        tensors["time_ids"] = time_ids(record.size_hw, placement, flipped=flipped, target_hw=self.time_ids_target_hw)
        caption = record.caption
        if self.caption_shuffle:
            caption = shuffle_caption(caption, self.keep_tokens, draws.caption_rng)
        return _Sample(tensors, with_prefix(caption, self.caption_prefix), draws.dropout_u < self.caption_dropout)

    def _draw(self, index: int, epoch: int) -> _Draws:
        """All draws are made whatever the settings, so that turning one option on leaves the others' choices alone."""
        rng = random.Random(f"sample/{self.seed}/{epoch}/{index}")
        return _Draws((rng.random(), rng.random()), rng.random(), rng.random(), rng)

    def _load_image(self, index: int, placement: Fit, *, flipped: bool) -> dict[str, Tensor]:
        record = self.records[index]
        if self.latent_cache is not None:
            tensors = _get_cached(self.latent_cache, self.latent_keys[index], record)
            size: Size = (tensors["latents"].shape[-2], tensors["latents"].shape[-1])
        else:
            tensors = {"pixel_values": load_pixels(record, placement, background=self.background, flipped=flipped)}
            mask = load_mask_pixels(record, placement, flipped=flipped)
            if mask is not None:
                tensors["mask"] = mask
            size = placement.target_hw
        if self.has_masks and "mask" not in tensors:
            tensors["mask"] = torch.ones(1, *size)
        return tensors

    def _load_text(self, index: int) -> dict[str, Tensor]:
        if self.text_cache is None:
            return {}
        return _get_cached(self.text_cache, self.text_keys[index], self.records[index])

    def _collate(self, share: _Share, samples: list[_Sample]) -> Batch:
        records = [self.records[index] for index in share.indices]
        tensors = {name: torch.stack([sample.tensors[name] for sample in samples]) for name in samples[0].tensors}
        loss_weight = [0.0 if share.is_filler else record.loss_weight for record in records]
        batch = cast(
            Batch,
            {
                **tensors,
                "loss_weight": torch.tensor(loss_weight),
                "image_ids": [record.id for record in records],
                "image_names": [record.source.name for record in records],
                "positions": share.positions,
                "drop_caption": [sample.drop_caption for sample in samples],
                "num_global": share.num_global,
            },
        )
        if self.text_cache is None:
            batch["captions"] = [sample.caption for sample in samples]
        return batch


def time_ids(size_hw: Size, placement: Fit, *, flipped: bool, target_hw: Size | None = None) -> Tensor:
    """SDXL's size conditioning, (6,) float32: original h, w; crop top, left; target h, w.

    Float32, because bfloat16 would round sizes above 256. The crop is measured in the resized picture, in the mirrored
    one if it is mirrored. Source: SDXL paper (arXiv 2307.01952), section 2.2.

    Args:
        size_hw: size of the upright picture before resizing.
        target_hw: tells the model this target instead of the record's bucket.
    """
    top, left = placement.crop_top_left
    if flipped:
        left = placement.flipped_crop_left
    return torch.tensor([*size_hw, top, left, *(target_hw or placement.target_hw)], dtype=torch.float32)


def _get_cached(cache: TensorCache, key: str, record: ImageRecord) -> dict[str, Tensor]:
    tensors = cache.get(key)
    if tensors is None:
        raise DatasetError(
            f"its cache entry {cache.path(key)} has gone or was altered while training",
            hint="start again: the entry will be made anew",
            where=record.source.name,
        )
    return tensors


def _as_it_is(item: T) -> T:
    return item
