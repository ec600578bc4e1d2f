"""What goes wrong in a step, a sample, a worker or a device: nothing that is trained is touched by it."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tests.engine.harness import (
    hash_tensors,
    of_kind,
    prepared_trainer,
    small_config,
    train,
    train_well,
    write_pictures,
)
from tests.reliability.figures import tell_figure
from tests.reliability.resumption import (
    DieAfterCheckpoint,
    Setup,
    die_and_resume,
    differences,
    resume,
    resume_well,
    samples_recorded,
)
from tuitrain.config.files import config_to_yaml
from tuitrain.config.schema import TrainConfig
from tuitrain.data.loader import TrainLoader
from tuitrain.engine.launch import create_run
from tuitrain.engine.thread import TrainerThread
from tuitrain.engine.trainer import MAX_SKIPPED_STEPS, Trainer
from tuitrain.errors import DatasetError, NonFiniteLossError, TuitrainError
from tuitrain.runs import events
from tuitrain.runs.checkpoints import list_checkpoints, verify_checkpoint
from tuitrain.runs.control import CommandQueue
from tuitrain.runs.events import Event
from tuitrain.runs.journal import read_journal
from tuitrain.runs.run import Run, find_runs, summarize
from tuitrain.runs.states import read_state

JOURNALS = "*/journal.jsonl"
PRECISIONS = {
    "float32": {"weight_dtype": "float32"},
    "bfloat16": {"weight_dtype": "bfloat16"},
    "mixed": {"weight_dtype": "float32", "mixed_precision": "bf16"},
}


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 8)


@contextmanager
def ready(config: TrainConfig) -> Iterator[Trainer]:
    trainer = prepared_trainer(config)
    try:
        yield trainer
    finally:
        trainer.close()


def moving_hash(trainer: Trainer) -> str:
    """Of all that a step changes: weights, optimizer, average."""
    params = list(trainer.models.unet.parameters())
    states = [trainer.optimizer.optimizer.state[param] for param in params]
    tensors = [value for state in states for _, value in sorted(state.items()) if isinstance(value, Tensor)]
    averages = [] if trainer.ema is None else trainer.ema.averages
    return hash_tensors([*params, *tensors, *averages])


def warnings_of(journal: list[Event]) -> list[str]:
    return [event.what for event in of_kind(journal, events.WarningRaised)]


# ---------------------------------------------------------------------------------------------------------- not finite


def nothing() -> None:
    """To undo what is gone with its batch."""


def poison_latents(trainer: Trainer, micro_batches: list[Any], value: float) -> Callable[[], None]:
    micro_batches[0]["latents"][0, 0, 0, 0] = value
    return nothing


def poison_gradient(trainer: Trainer, micro_batches: list[Any], value: float) -> Callable[[], None]:
    bias = trainer.models.unet.conv_in.bias
    handle = bias.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), value))
    return handle.remove


def poison_loss(trainer: Trainer, micro_batches: list[Any], value: float) -> Callable[[], None]:
    micro_batches[0]["loss_weight"][0] = value
    return nothing


SITES = {"latents": poison_latents, "gradient": poison_gradient, "loss": poison_loss}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", pytest.param("mixed", marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_moves_nothing_whether_it_stops_or_is_left_out(
    precision: str, tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    unchanged = tried = 0
    for policy in ("stop", "skip"):
        config = small_config(
            tmp_path,
            tiny_sdxl,
            jsonl,
            on_non_finite=policy,
            ema_decay=0.9,
            max_train_steps=100,
            **PRECISIONS[precision],
        )
        with ready(config) as trainer:
            steps = iter(trainer.loader)
            for poison in SITES.values():
                for value in (float("nan"), float("inf")):
                    trainer.train_step(next(steps))  # a good one between two bad ones
                    before, step = moving_hash(trainer), trainer.step
                    micro_batches = next(steps)
                    undo = poison(trainer, micro_batches, value)
                    if policy == "stop":
                        with pytest.raises(NonFiniteLossError) as caught:
                            trainer.train_step(micro_batches)
                        assert micro_batches[0]["image_names"][0] in str(caught.value)
                        trainer.optimizer.zero_grad()
                        trainer.num_skipped = 0
                    else:
                        trainer.train_step(micro_batches)
                        assert trainer.step == step + 1
                    tried += 1
                    unchanged += moving_hash(trainer) == before
                    assert not trainer.gradients()
                    undo()
    tell_figure(f"not finite, {precision}: everything unchanged {unchanged} / {tried}")
    assert unchanged == tried


@contextmanager
def when_prepared(do: Callable[[Trainer], object]) -> Iterator[None]:
    """Let `do` have every trainer just before its first step."""
    prepare = Trainer.prepare

    def prepare_and_do(self: Trainer) -> None:
        prepare(self)
        do(self)

    Trainer.prepare = prepare_and_do  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.prepare = prepare  # type: ignore[method-assign]


def overflow_on_white(trainer: Trainer) -> None:
    """A VAE that overflows on a white picture, as one in float16 does on some."""
    trainer.models.vae.encoder.register_forward_hook(
        lambda _, args, output: output * float("nan") if args[0].mean() > 0.99 else output
    )


@pytest.fixture
def with_white(tmp_path: Path) -> Path:
    """Seven pictures, the fourth of them white."""
    jsonl = write_pictures(tmp_path / "with_white", 7)
    Image.new("RGB", (64, 64), "white").save(jsonl.parent / "3.png")
    return jsonl


def test_steps_with_a_bad_picture_are_left_out_and_named_and_the_run_ends_well(
    tmp_path: Path, tiny_sdxl: Path, with_white: Path
) -> None:
    config = Setup(ema=True).config(
        tmp_path / "a", tiny_sdxl, with_white, "on_non_finite=skip", "cache_vae_outputs=false", "train_batch_size=1"
    )
    with when_prepared(overflow_on_white):
        run, journal = train_well(config)
    named = [what for what in warnings_of(journal) if "is left out" in what]
    assert len(named) == 2  # in each epoch once
    assert all("its loss is nan" in what and what.endswith("3.png") for what in named)
    logged = of_kind(journal, events.StepLogged)
    left_out = {int(what.split()[1]) for what in named}
    assert [event.step for event in logged] == [step for step in range(1, 15) if step not in left_out]
    assert [event.epoch for event in of_kind(journal, events.EpochFinished)] == [1, 2]
    (checkpoint,) = list_checkpoints(run.checkpoints_dir)
    weights = load_file(checkpoint.path / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.slow
def test_a_run_that_left_steps_out_resumes_to_the_last_bit(tmp_path: Path, tiny_sdxl: Path, with_white: Path) -> None:
    setup = Setup("AdamW", "bfloat16", ema=True)
    options = ("on_non_finite=skip", "cache_vae_outputs=false")
    exact = tried = 0
    with samples_recorded(), when_prepared(overflow_on_white):
        reference, _ = train_well(setup.config(tmp_path / "reference", tiny_sdxl, with_white, *options))
        for step in (1, 3):
            config = setup.config(
                tmp_path / f"{step}", tiny_sdxl, with_white, *options, f"save_every_n_steps={step}", "save_state=all"
            )
            run = die_and_resume(config, step=step)
            tried += 1
            exact += differences(run, reference) == []
    tell_figure(f"resumed after steps that were left out, exact: {exact} / {tried}")
    assert exact == tried


def test_a_resumed_run_reports_though_its_first_step_is_left_out(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    def nan_in_third(trainer: Trainer) -> None:
        trainer.models.unet.register_forward_hook(
            lambda _, __, output: (output[0] * float("nan"),) if trainer.step == 2 else output
        )

    setup, options = Setup(), ("on_non_finite=skip", "log_every_n_steps=3")
    with samples_recorded(), when_prepared(nan_in_third):
        reference, _ = train_well(setup.config(tmp_path / "reference", tiny_sdxl, jsonl, *options))
        config = setup.config(tmp_path / "a", tiny_sdxl, jsonl, *options, "save_every_n_steps=2")
        run = die_and_resume(config, step=2)
    assert differences(run, reference) == []


@pytest.mark.slow
def test_a_run_that_stopped_goes_on_with_the_remedy_as_if_it_had_been_set_before(
    tmp_path: Path, tiny_sdxl: Path, with_white: Path
) -> None:
    setup, options = Setup(ema=True), ("cache_vae_outputs=false", "save_every_n_steps=1")
    with samples_recorded(), when_prepared(overflow_on_white):
        reference, _ = train_well(setup.config(tmp_path / "a", tiny_sdxl, with_white, *options, "on_non_finite=skip"))
        config = setup.config(tmp_path / "b", tiny_sdxl, with_white, *options)
        run, journal, exit_code = train(config)
        assert (exit_code, of_kind(journal, events.RunFailed)[0].error) == (1, "NonFiniteLossError")
        assert of_kind(journal, events.RunFailed)[0].step > 0, "there is nothing to resume"
        resume_well(run, None, "on_non_finite=skip")
    assert differences(run, reference) == []


def always_nan(trainer: Trainer) -> None:
    trainer.models.unet.register_forward_hook(lambda _, __, output: (output[0] * float("nan"),))


def test_five_bad_steps_in_a_row_stop_the_run_also_across_a_resume(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    options = ("on_non_finite=skip", "save_every_n_steps=3")
    config = Setup().config(tmp_path / "a", tiny_sdxl, jsonl, *options, "train_batch_size=1")
    with when_prepared(always_nan):
        run, _, exit_code = train(config, DieAfterCheckpoint(Path(config.base_output_dir), 3))
        assert exit_code == 1
        assert read_state(list_checkpoints(run.checkpoints_dir)[-1].path).num_skipped == 3
        assert resume(run) == 1
    journal = read_journal(run.journal_path)
    failure = of_kind(journal, events.RunFailed)[-1]
    assert failure.step == MAX_SKIPPED_STEPS - 1
    assert failure.error == "NonFiniteLossError"
    assert "the loss is nan at step 5, the 5th such in a row; the weights were not touched by it" in failure.what
    assert len({what for what in warnings_of(journal) if "is left out" in what}) == 4


def test_a_good_step_ends_the_row(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    def nan_but_for_every_fourth(trainer: Trainer) -> None:
        trainer.models.unet.register_forward_hook(
            lambda _, __, output: output if trainer.step % 4 == 3 else (output[0] * float("nan"),)
        )

    options = ("on_non_finite=skip", "train_batch_size=1")
    with when_prepared(nan_but_for_every_fourth):
        _, journal = train_well(Setup().config(tmp_path / "a", tiny_sdxl, jsonl, *options))
    assert [event.step for event in of_kind(journal, events.StepLogged)] == [4, 8, 12, 16]


def test_a_loss_scale_that_collapses_stops_the_run_with_a_sentence(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path
) -> None:
    """The scaler's own steps back are expected, down to no scale at all."""
    with ready(small_config(tmp_path, tiny_sdxl, jsonl, max_train_steps=100)) as trainer:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        trainer.accelerator.scaler = scaler
        trainer.accelerator.native_amp, trainer.accelerator.state._mixed_precision = True, "fp16"
        trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, device_placement=False, scaler=scaler)
        trainer.accelerator._optimizers = [trainer.optimizer]
        trainer.models.unet.conv_in.bias.register_hook(lambda gradient: gradient * float("inf"))
        before = hash_tensors(trainer.models.unet.parameters())
        steps = iter(trainer.loader)
        for scale in (4.0, 2.0, 1.0):
            trainer.train_step(next(steps))
            assert scaler.get_scale() == scale
        with pytest.raises(NonFiniteLossError, match="overflow float16 however small the loss is scaled"):
            trainer.train_step(next(steps))
        assert hash_tensors(trainer.models.unet.parameters()) == before


# ------------------------------------------------------------------------------------------------------- out of memory


def real_cpu_error() -> None:
    torch.empty(2**50)


def cuda_error() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def library_error() -> None:
    raise RuntimeError("CUDA error: out of memory")


ERRORS = {"cpu allocator": real_cpu_error, "torch.OutOfMemoryError": cuda_error, "RuntimeError": library_error}


def run_out_of_memory(
    *, above: int, error: Callable[[], None] = cuda_error, in_backward: bool = False, from_step: int = 0
) -> Callable[[Trainer], None]:
    """Memory for no more than `above` pictures at a time."""

    def install(trainer: Trainer) -> None:
        def check(module: torch.nn.Module, values: tuple[Any, ...]) -> None:
            if trainer.step >= from_step and values[0].shape[0] > above:
                error()

        block = trainer.models.unet.mid_block
        (block.register_full_backward_pre_hook if in_backward else block.register_forward_pre_hook)(check)

    return install


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four times the same picture, so that the order, which the size of a batch decides, does not show."""
    jsonl = write_pictures(tmp_path_factory.mktemp("twins"), 1)
    jsonl.write_text(jsonl.read_text() * 4)
    return jsonl


@pytest.fixture
def batch_config(tmp_path: Path, tiny_sdxl: Path) -> Callable[..., TrainConfig]:
    def config(
        name: str, jsonl: Path, *overrides: str, batch: int, accumulation: int = 1, **values: Any
    ) -> TrainConfig:
        return small_config(
            tmp_path / name,
            tiny_sdxl,
            jsonl,
            *overrides,
            train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            cache_dir=str(tmp_path / "cache"),
            save_dtype="float32",
            **values,
        )

    return config


@pytest.mark.parametrize("in_backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    "error", ["cpu allocator", "torch.OutOfMemoryError", pytest.param("RuntimeError", marks=pytest.mark.slow)]
)
def test_a_step_without_memory_is_trained_in_halves_as_a_run_that_began_so(
    error: str, in_backward: bool, batch_config: Callable[..., TrainConfig], twins: Path
) -> None:
    with when_prepared(run_out_of_memory(above=1, error=ERRORS[error], in_backward=in_backward)):
        run, journal = train_well(batch_config("split", twins, batch=4, max_train_steps=2))
        reference, wanted = train_well(batch_config("clean", twins, batch=1, accumulation=4, max_train_steps=2))
    assert losses_of(journal) == losses_of(wanted)
    assert weights_of(run) == weights_of(reference)
    told = [what for what in warnings_of(journal) if "out of memory" in what]
    assert ["2 pictures instead of 4" in told[0], "1 picture instead of 2" in told[1], len(told)] == [True, True, 2]
    tell_figure(f"out of memory, {error}, {'backward' if in_backward else 'forward'}: recovered 2 / 2, equal 1 / 1")


@pytest.mark.parametrize("pictures", [3, 8])
def test_halves_learn_what_the_whole_would_have(
    pictures: int, batch_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """Of batches that are not full, too, and with live encoders."""
    jsonl = write_pictures(tmp_path / "few", pictures, masks=True)
    live = {"cache_vae_outputs": False, "cache_text_encoder_outputs": False, "use_masks": True, "caption_dropout": 0.5}
    whole, wanted = train_well(batch_config("whole", jsonl, batch=5, accumulation=2, **live))
    with when_prepared(run_out_of_memory(above=3, from_step=1)):
        halves, journal = train_well(batch_config("halves", jsonl, batch=5, accumulation=2, **live))
    assert losses_of(journal)[0] == losses_of(wanted)[0]
    assert losses_of(journal) == pytest.approx(losses_of(wanted), rel=1e-4)
    assert len([what for what in warnings_of(journal) if "out of memory" in what]) == (pictures == 8)
    assert (weights_of(halves) == weights_of(whole)) == (pictures == 3)


def test_nothing_of_a_pass_without_memory_is_left(batch_config: Callable[..., TrainConfig], jsonl: Path) -> None:
    held: list[weakref.ref[Tensor]] = []

    def run_out(module: torch.nn.Module, values: tuple[Any, ...]) -> None:
        if values[0].shape[0] > 2:
            held.append(weakref.ref(values[0]))
            cuda_error()

    with ready(batch_config("leak", jsonl, batch=8)) as trainer:
        trainer.models.unet.mid_block.register_forward_pre_hook(run_out)
        passes = trainer.run_passes
        alive = []

        def counted(*args: Any, **values: Any) -> Tensor:
            alive.append(sum(reference() is not None for reference in held))
            return passes(*args, **values)

        trainer.run_passes = counted  # type: ignore[method-assign]
        trainer.train_step(next(iter(trainer.loader)))
    tell_figure(f"out of memory, leaked activations: {sum(alive)} / {len(held)}")
    assert (alive, len(held)) == ([0, 0, 0], 2)


@pytest.mark.slow
def test_a_run_that_was_halved_resumes_to_the_last_bit(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    """Memory may even suffice again: the passes stay as they were."""
    setup = Setup("AdamW", "bfloat16", buckets=True, ema=True)
    exact = tried = 0
    with samples_recorded():
        with when_prepared(run_out_of_memory(above=1, from_step=1)):
            reference, _ = train_well(setup.config(tmp_path / "reference", tiny_sdxl, jsonl))
        for step in (1, 3):
            config = setup.config(tmp_path / f"{step}", tiny_sdxl, jsonl, f"save_every_n_steps={step}")
            with when_prepared(run_out_of_memory(above=1, from_step=1)):
                run, _, _ = train(config, DieAfterCheckpoint(Path(config.base_output_dir), step))
            with when_prepared(run_out_of_memory(above=1, from_step=1) if step == 1 else lambda trainer: None):
                resume_well(run)
            tried += 1
            exact += differences(run, reference) == []
    tell_figure(f"resumed around a split for want of memory, exact: {exact} / {tried}")
    assert exact == tried


@pytest.mark.parametrize("policy", ["split", "stop"])
def test_where_nothing_can_be_halved_the_run_stops_with_remedies(
    policy: str, batch_config: Callable[..., TrainConfig], jsonl: Path
) -> None:
    batch = 1 if policy == "split" else 2
    with when_prepared(run_out_of_memory(above=0)):
        _, journal, exit_code = train(batch_config("small", jsonl, batch=batch, on_oom=policy))
    (failure,) = of_kind(journal, events.RunFailed)
    assert (failure.error, exit_code, failure.step) == ("OutOfMemory", 1, 0)
    assert "gradient_checkpointing" in failure.hint
    assert ("one picture in a pass, which cannot be halved" in failure.what) == (policy == "split")


def test_an_optimizer_without_memory_ends_the_run_for_its_step_cannot_be_tried_again(
    batch_config: Callable[..., TrainConfig], jsonl: Path
) -> None:
    def fail_in_second_step(trainer: Trainer) -> None:
        trainer.optimizer.optimizer.register_step_pre_hook(lambda *_: cuda_error() if trainer.step == 1 else None)

    with when_prepared(fail_in_second_step):
        _, journal, exit_code = train(batch_config("optimizer", jsonl, batch=2))
    (failure,) = of_kind(journal, events.RunFailed)
    assert (failure.error, exit_code, failure.step) == ("OutOfMemory", 1, 1)
    assert "some weights may have moved and others not, so the step cannot be tried again" in failure.what
    assert "use_8bit" in failure.hint


# --------------------------------------------------------------------------------------------------------- dead workers


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have DataLoader look after its workers five times a second rather than every five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


def kill(worker: BaseProcess) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(20)
    assert not worker.is_alive()


class KillingLoader(TrainLoader):
    """Has a worker killed just before it takes its micro-batches of the given numbers, once for each."""

    kill_before: list[int]
    num_taken = 0

    def _prepare(self, *, first_batch: int) -> Iterator[Any]:
        all_prepared: Any = super()._prepare(first_batch=first_batch)
        while True:
            if self.num_taken in self.kill_before:
                self.kill_before.remove(self.num_taken)
                kill(all_prepared._workers[0])
            prepared = next(all_prepared)
            self.num_taken += 1
            yield prepared


def killing_loader(trainer: Trainer, *, num_workers: int, kill_before: list[int]) -> tuple[KillingLoader, list[str]]:
    """The loader of a trainer, with workers that are killed, and what it warns of."""
    told: list[str] = []
    loader = KillingLoader.__new__(KillingLoader)
    vars(loader).update(vars(trainer.loader))
    loader._num_workers, loader._warn = num_workers, lambda what, hint: told.append(what)
    loader.kill_before = kill_before
    return loader, told


@pytest.mark.usefixtures("impatient")
def test_a_worker_that_dies_is_replaced_and_the_batches_are_the_same(
    batch_config: Callable[..., TrainConfig], jsonl: Path
) -> None:
    with ready(batch_config("workers", jsonl, batch=1, accumulation=3)) as trainer:
        undisturbed = list(islice(iter(trainer.loader), 6))
        equal = tried = 0
        for killed in ([0], [4], [2, 9]):  # before the first, in a step, in the first and the second epoch
            trainer.loader.load_state_dict({"epoch": 0, "step_in_epoch": 0})
            loader, told = killing_loader(trainer, num_workers=2, kill_before=[*killed])
            taken = list(islice(iter(loader), 6))
            tried += 1
            equal += [describe_step(step) for step in taken] == [describe_step(step) for step in undisturbed]
            assert len(told) == len(killed)
            assert all("died and is replaced, the pictures come in the same order" in what for what in told)
    tell_figure(f"a worker killed, batches equal: {equal} / {tried}")
    assert equal == tried


def describe_step(step: list[Any]) -> list[Any]:
    return [
        {name: value.tolist() if isinstance(value, Tensor) else value for name, value in batch.items()}
        for batch in step
    ]


@pytest.mark.usefixtures("impatient")
def test_workers_that_die_one_after_the_other_stop_the_run_with_a_remedy(
    batch_config: Callable[..., TrainConfig], jsonl: Path
) -> None:
    with ready(batch_config("workers", jsonl, batch=1)) as trainer:
        loader, told = killing_loader(trainer, num_workers=1, kill_before=[0, 0, 0])
        with pytest.raises(TuitrainError, match="die, 3 one after the other") as caught:
            next(iter(loader))
    assert "dataloader_num_workers to 0" in str(caught.value)
    assert len(told) == 2


class FailingCache:
    """Stands for a library that fails in a worker."""

    def get(self, key: str) -> None:
        raise RuntimeError(f"it failed on {key}")


@pytest.mark.slow
def test_an_error_in_a_worker_is_no_death_of_it(batch_config: Callable[..., TrainConfig], jsonl: Path) -> None:
    with ready(batch_config("workers", jsonl, batch=1)) as trainer:
        loader, told = killing_loader(trainer, num_workers=1, kill_before=[])
        loader._batches = replace(loader._batches, latent_cache=FailingCache())  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="it failed on"):
            next(iter(loader))
    assert told == []


@pytest.mark.slow
def test_a_run_with_a_worker_killed_trains_the_undisturbed_run(
    batch_config: Callable[..., TrainConfig], jsonl: Path
) -> None:
    """Within DataLoader's own time."""
    config = batch_config(
        "killed", jsonl, "data_loader.dataloader_num_workers=2", batch=1, accumulation=3, max_train_steps=6
    )
    kills: list[float] = []

    def kill_after_two_steps() -> None:
        if not kills and any(b'"step":2,' in path.read_bytes() for path in Path(config.base_output_dir).glob(JOURNALS)):
            kill(multiprocessing.active_children()[0])
            kills.append(time.monotonic())

    run, journal = train_well(config, kill_after_two_steps)
    seconds = time.monotonic() - kills[0]
    reference, wanted = train_well(batch_config("undisturbed", jsonl, batch=1, accumulation=3, max_train_steps=6))
    assert losses_of(journal) == losses_of(wanted)
    assert weights_of(run) == weights_of(reference)
    assert len([what for what in warnings_of(journal) if "died and is replaced" in what]) == 1
    tell_figure(f"a run with a worker killed: losses and weights equal 1 / 1, {seconds:.1f} s to its end")
    assert seconds < 20


# ------------------------------------------------------------------------------------------------------------- samples


def fail_to_denoise(error: BaseException) -> Callable[[Trainer], None]:
    def fail(module: torch.nn.Module, _: Any) -> None:
        if not module.training:
            raise error

    return lambda trainer: trainer.models.unet.register_forward_pre_hook(fail)


def fail_to_decode(error: BaseException) -> Callable[[Trainer], None]:
    def fail(*_: Any) -> None:
        raise error

    return lambda trainer: trainer.models.vae.decoder.register_forward_pre_hook(fail)


def put_a_file_in_the_way(trainer: Trainer) -> None:
    trainer.run.validation_dir.rmdir()
    trainer.run.validation_dir.write_text("")


SAMPLING: dict[str, Callable[[Trainer], Any]] = {
    "good": lambda trainer: None,
    "out of memory while denoising": fail_to_denoise(torch.OutOfMemoryError("CUDA out of memory.")),
    "out of memory while decoding": fail_to_decode(RuntimeError("DefaultCPUAllocator: can't allocate memory")),
    "no memory in the computer": fail_to_decode(MemoryError()),
    "an error of a library": fail_to_denoise(KeyError("timesteps")),
    "a folder that cannot be written": put_a_file_in_the_way,
}


@pytest.mark.slow
def test_sampling_changes_nothing_that_is_trained_however_it_fails(
    batch_config: Callable[..., TrainConfig], jsonl: Path
) -> None:
    sampling = {
        "validation_prompts": ["a red ball"],
        "validate_every_n_steps": 1,
        "num_validation_images_per_prompt": 1,
        "validation_steps": 2,
        "enable_cpu_offload_during_validation": True,
    }
    values: dict[str, Any] = {"batch": 2, "max_train_steps": 2, "ema_decay": 0.9, "weight_dtype": "bfloat16"}
    plain, wanted = train_well(batch_config("plain", jsonl, **values))
    equal = 0
    for name, install in SAMPLING.items():
        with when_prepared(install):
            run, journal = train_well(batch_config(name, jsonl, **values, **sampling))
        equal += (weights_of(run), losses_of(journal)) == (weights_of(plain), losses_of(wanted))
        told = [what for what in warnings_of(journal) if what.startswith("no samples at step ")]
        assert len(told) == (0 if name == "good" else 2)
        assert len(of_kind(journal, events.SamplesSaved)) == 2 - len(told)
        (checkpoint,) = list_checkpoints(run.checkpoints_dir)
        assert len(checkpoint.manifest.validation_images) == (name == "good")
    tell_figure(f"sampling on, off and failing, training equal: {equal} / {len(SAMPLING)}")
    assert equal == len(SAMPLING)


# ------------------------------------------------------------------------------------------ the device, and other ends

STICKY = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later."


def fail_at_step(step: int, error: BaseException) -> Callable[[Trainer], None]:
    def install(trainer: Trainer) -> None:
        def fail(*_: Any) -> None:
            if trainer.step == step:
                raise error

        trainer.models.unet.register_forward_pre_hook(fail)

    return install


@pytest.mark.parametrize("saved", [2, None])
def test_after_an_error_of_the_device_it_is_left_alone_and_the_last_saved_step_is_named(
    saved: int | None, batch_config: Callable[..., TrainConfig], jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def watch_device(trainer: Trainer) -> None:
        fail_at_step(3, RuntimeError(STICKY))(trainer)
        for name in ("is_available", "empty_cache", "synchronize", "memory_allocated"):
            monkeypatch.setattr(torch.cuda, name, lambda name=name: trainer.step == 3 and calls.append(name))

    config = batch_config("device", jsonl, batch=2, max_train_steps=6, save_every_n_steps=saved or 1000)
    with when_prepared(watch_device):
        run, journal, exit_code = train(config)
    (failure,) = of_kind(journal, events.RunFailed)
    assert journal[-1] == failure
    assert (exit_code, failure.exit_code, failure.error, failure.step) == (70, 70, "DeviceError", 3)
    last_saved = "the last saved step is 2" if saved else "no step was saved"
    assert failure.what == (f"the GPU failed: {STICKY.splitlines()[0]}; {last_saved}")
    assert calls == []
    assert [verify_checkpoint(checkpoint.path) for checkpoint in list_checkpoints(run.checkpoints_dir)] == [[]] * bool(
        saved
    )


def test_a_device_that_fails_while_sampling_ends_the_run(batch_config: Callable[..., TrainConfig], jsonl: Path) -> None:
    values = {"validation_prompts": ["a red ball"], "validate_at_start": True, "validate_every_n_steps": 10}
    with when_prepared(fail_to_denoise(RuntimeError(STICKY))):
        _, journal, exit_code = train(batch_config("sampling", jsonl, batch=2, **values))
    assert exit_code == 70
    assert of_kind(journal, events.RunFailed)[0].step == 0


ENDS: dict[str, tuple[BaseException, int, str]] = {
    "fault of tuitrain": (KeyError("loss"), 1, "Bug"),
    "library that leaves": (SystemExit(0), 1, "Bug"),
    "interrupt in the thread": (KeyboardInterrupt(), 1, "Bug"),
    "generator that is closed": (GeneratorExit(), 1, "Bug"),
    "device": (RuntimeError("CUDA error: unspecified launch failure"), 70, "DeviceError"),
    "error of tuitrain": (NonFiniteLossError("the loss is nan"), 1, "NonFiniteLossError"),
    "worker": (DatasetError("it has gone"), 2, "DatasetError"),
}


def test_whatever_ends_the_thread_the_run_has_failed_with_its_exit_status(
    batch_config: Callable[..., TrainConfig], jsonl: Path
) -> None:
    right = 0
    for name, (error, exit_code, kind) in ENDS.items():
        config, run = create_run(batch_config(name, jsonl, batch=2))
        thread = TrainerThread(config, run, control=CommandQueue())
        with when_prepared(fail_at_step(1, error)):
            thread.start()
            thread.join(60)
        last = read_journal(run.journal_path)[-1]
        assert isinstance(last, events.RunFailed), name
        found = (thread.exit_code, last.exit_code, last.error, last.step, summarize(run).state)
        right += found == (exit_code, exit_code, kind, 1, "failed")
        assert thread.failure is None
        assert "Traceback (most recent call last)" in run.log_path.read_text()
    tell_figure(f"failed with the right exit status: {right} / {len(ENDS)}")
    assert right == len(ENDS)


def run_process(tmp_path: Path, config: TrainConfig, fault: str, *launcher: str) -> subprocess.CompletedProcess[str]:
    """`tuitrain train` in a process of its own, with a fault installed."""
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    program = tmp_path / "program.py"
    program.write_text(
        "from tests.reliability.test_faults import *\n"
        "from tuitrain.cli import main\n"
        f"with when_prepared({fault}):\n"
        "    main()\n"
    )
    command = [sys.executable, *launcher, str(program), "train", str(tmp_path / "config.yaml")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_the_process_ends_with_the_status_of_a_lost_device_and_one_sentence(
    batch_config: Callable[..., TrainConfig], jsonl: Path, tmp_path: Path
) -> None:
    config = batch_config("process", jsonl, batch=2)
    result = run_process(tmp_path, config, f"fail_at_step(2, RuntimeError({STICKY!r}))")
    assert result.returncode == 70
    told = "error: the GPU failed: CUDA error: an illegal memory access was encountered; no step was saved"
    assert told in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def limit_memory(num_bytes: int) -> Callable[[Trainer], None]:
    """Let the process have no more memory than it has when the first step begins and `num_bytes`."""

    def limit(_: Trainer) -> None:
        torch.backends.mkldnn.enabled = False  # it has no words for want of memory
        num_pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (num_pages * resource.getpagesize() + num_bytes, resource.RLIM_INFINITY))

    return limit


@pytest.mark.slow
def test_a_process_whose_memory_is_really_short_trains_in_smaller_passes_to_its_end(
    batch_config: Callable[..., TrainConfig], jsonl: Path, tmp_path: Path
) -> None:
    def run(name: str, num_bytes: int) -> list[Event]:
        config = batch_config(name, jsonl, "data_loader.resolution=256", batch=8, max_train_steps=2)
        result = run_process(tmp_path, config, f"limit_memory({num_bytes})")
        assert result.returncode == 0, result.stderr
        (run,) = find_runs(Path(config.base_output_dir))
        return read_journal(run.journal_path)

    wanted, journal = run("enough", 2**40), run("short", 420 * 2**20)
    assert losses_of(journal) == pytest.approx(losses_of(wanted), rel=1e-4)
    told = [what for what in warnings_of(journal) if "out of memory" in what]
    assert told
    assert not [what for what in warnings_of(wanted) if "out of memory" in what]
    tell_figure(f"a process short of memory: halved {len(told)} times, to its end 1 / 1")


# -------------------------------------------------------------------------------------------------------- several ranks

TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def nan_on_second_rank(trainer: Trainer) -> None:
    """In the second step."""
    trainer.models.unet.register_forward_hook(
        lambda _, __, output: (
            (output[0] * float("nan"),) if (trainer.step, trainer.accelerator.process_index) == (1, 1) else output
        )
    )


@pytest.mark.slow
def test_ranks_leave_a_step_out_alike_and_name_the_pictures_of_all(
    batch_config: Callable[..., TrainConfig], jsonl: Path, tmp_path: Path
) -> None:
    config = batch_config("ranks", jsonl, batch=1, max_train_steps=3, on_non_finite="skip")
    result = run_process(tmp_path, config, "nan_on_second_rank", *TWO_PROCESSES)
    assert result.returncode == 0, result.stderr
    (run,) = find_runs(Path(config.base_output_dir))
    journal = read_journal(run.journal_path)
    (told,) = [what for what in warnings_of(journal) if "is left out" in what]
    assert told.count(".png") == 2
    assert [event.step for event in of_kind(journal, events.StepLogged)] == [1, 3]
    (checkpoint,) = list_checkpoints(run.checkpoints_dir)
    weights = load_file(checkpoint.path / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.slow
def test_ranks_without_memory_stop_with_the_remedy(
    batch_config: Callable[..., TrainConfig], jsonl: Path, tmp_path: Path
) -> None:
    config = batch_config("ranks", jsonl, batch=2, max_train_steps=3)
    result = run_process(tmp_path, config, "run_out_of_memory(above=1)", *TWO_PROCESSES)
    assert result.returncode != 0
    (run,) = find_runs(Path(config.base_output_dir))
    (failure,) = of_kind(read_journal(run.journal_path), events.RunFailed)
    assert failure.error == "OutOfMemory"
    assert "several processes cannot halve their batches in a step" in failure.what
    assert "lower train_batch_size" in failure.hint


def losses_of(journal: list[Event]) -> list[float]:
    return [event.loss for event in of_kind(journal, events.StepLogged)]


def weights_of(run: Run) -> str:
    (checkpoint,) = list_checkpoints(run.checkpoints_dir)
    return hash_tensors(load_file(checkpoint.path / "unet" / "diffusion_pytorch_model.safetensors").values())
