"""The words for failed runs: real failures where this machine can have them, PyTorch's own texts where it cannot."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.harness import of_kind, small_config, train, train_well, write_pictures
from tuitrain.config.files import config_to_yaml
from tuitrain.config.schema import TrainConfig
from tuitrain.engine.failure import describe_failure
from tuitrain.errors import CheckpointError
from tuitrain.runs import events
from tuitrain.runs.run import Run, find_runs
from tuitrain.tui.failures import Failure, RunFacts, explain, facts_of, last_traceback, redact, report, with_machine
from tuitrain.tui.live import LiveRun

# As PyTorch 2.13 words it on a 24 GiB card.
CUDA_OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 1.60 GiB. GPU 0 has a total capacity of 23.99 GiB of which 409.60 MiB is "
    "free. Including non-PyTorch memory, this process has 23.19 GiB memory in use. Of the allocated memory 22.10 GiB "
    "is allocated by PyTorch, and 301.00 MiB is reserved by PyTorch but unallocated."
)


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def diagnose(run: Run) -> tuple[Failure, RunFacts]:
    """What the screen would say of `run`."""
    live = LiveRun.watch(run)
    live.load()
    facts = with_machine(facts_of(live))
    return explain(facts), facts


def facts(failure: events.RunFailed | None = None, **values: Any) -> RunFacts:
    config = {
        "type": "SDXL_FINETUNE",
        "model": "m",
        "base_output_dir": "o",
        "max_train_steps": 9,
        "save_every_n_steps": 3,
        "weight_dtype": "bfloat16",
        "mixed_precision": "no",
        "gradient_checkpointing": False,
        "cache_vae_outputs": True,
        "cache_text_encoder_outputs": False,
        "train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_grad_norm": None,
        "max_checkpoints": None,
        "optimizer": {"optimizer_type": "AdamW", "learning_rate": 1e-5, "use_8bit": False},
        "data_loader": {
            "type": "IMAGE_CAPTION_SD_DATA_LOADER",
            "dataset": {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "a.jsonl"},
            "dataloader_num_workers": 4,
        },
    }
    defaults: dict[str, Any] = {
        "run_path": Path("/runs/1"),
        "is_alive": False,
        "pid": 4182,
        "host": "box",
        "step": 1640,
        "phase": "train",
        "started": 0.0,
        "updated": 0.0,
        "seconds_per_step": 0.5,
        "last_checkpoint": events.CheckpointSaved(step=1500, epoch=4, name="c", num_bytes=2**30, seconds=3.0),
        "num_trainable_parameters": 2_567_463_684,
        "config_values": config,
        "versions": {"tuitrain": "0.1.0", "torch": "2.13"},
    }
    return RunFacts(failure=failure, **{**defaults, **values})


def failed(error: events.ErrorName, what: str, **values: Any) -> events.RunFailed:
    return events.RunFailed(**{"what": what, "step": 1640, "exit_code": 1, "error": error, **values})


def changes(failure: Failure) -> dict[str, Any]:
    return {path: value for remedy in failure.remedies for path, value in remedy.overrides}


# Real failures


def test_a_loss_that_explodes_offers_a_lower_rate_and_clipping(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    settings = {"optimizer_type": "AdamW", "learning_rate": 1.0}
    config = small_config(tmp_path, tiny_sdxl, jsonl, optimizer=settings, max_train_steps=50, max_grad_norm=None)
    run, journal, _ = train(config)
    assert of_kind(journal, events.RunFailed)[0].error == "NonFiniteLossError"
    failure, found = diagnose(run)
    assert failure.title == f"The loss is not finite at step {found.step + 1}"
    assert ".png" in failure.sentence
    assert changes(failure) == {"optimizer.learning_rate": 0.1, "on_non_finite": "skip", "max_grad_norm": 1.0}
    assert failure.remedies[0].label == "optimizer.learning_rate: 1.0 → 0.1"
    assert [remedy.key for remedy in failure.remedies] == ["a", "b", "c"]
    assert "no checkpoint yet" in failure.saved


def test_a_picture_that_is_missing_can_be_left_out(tmp_path: Path, tiny_sdxl: Path) -> None:
    jsonl = write_pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "2.png").unlink()
    run, journal, _ = train(small_config(tmp_path, tiny_sdxl, jsonl))
    assert of_kind(journal, events.RunFailed)[0].error == "DatasetError"
    failure, found = diagnose(run)
    assert failure.title == "1 of 5 pictures cannot be trained on"
    assert "2.png" in failure.sentence
    assert "No such file" in failure.sentence
    assert failure.remedies[0].overrides == (("on_bad_image", "skip"),)
    assert failure.remedies[2].focus == "data_loader.dataset.jsonl_path"
    assert failure.saved == "no step was taken, nothing is lost"
    skipping = found.config_values | dict(failure.remedies[0].overrides)
    train_well(TrainConfig.model_validate(skipping))


def test_damaged_pictures_are_counted(tmp_path: Path, tiny_sdxl: Path) -> None:
    jsonl = write_pictures(tmp_path / "pictures")
    for name in ("1.png", "2.png", "3.png"):
        (tmp_path / "pictures" / name).write_bytes(b"no picture")
    run, _, _ = train(small_config(tmp_path, tiny_sdxl, jsonl))
    failure, _ = diagnose(run)
    assert failure.title == "3 of 5 pictures cannot be trained on"
    assert "1.png" in failure.sentence
    assert failure.sentence.endswith("And 2 more, see the log.")


def test_a_folder_without_a_model_points_at_the_setting(tmp_path: Path, jsonl: Path) -> None:
    (tmp_path / "empty").mkdir()
    run, journal, _ = train(small_config(tmp_path, tmp_path / "empty", jsonl))
    assert of_kind(journal, events.RunFailed)[0].error == "ModelError"
    failure, _ = diagnose(run)
    assert failure.error == "ModelError"
    assert "empty" in failure.sentence
    assert failure.remedies[0].focus == "model"
    assert "while loading the model" not in failure.title


def test_a_full_disk_offers_fewer_and_smaller_checkpoints() -> None:
    given = facts(failed("DiskFull", "the disk is full"), phase="save")
    values = {**given.config_values, "save_dtype": "float32", "max_checkpoints": None}
    failure = explain(replace(given, config_values=values))
    assert failure.title == f"The disk is full while saving step {given.step}"
    assert changes(failure) == {"max_checkpoints": 1, "save_dtype": "float16"}


def test_a_killed_process_is_told_from_one_that_failed(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    path = tmp_path / "config.yaml"
    config = small_config(tmp_path, tiny_sdxl, jsonl, "save_every_n_steps=2", max_train_steps=100_000)
    path.write_text(config_to_yaml(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "tuitrain", "train", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        runs = Path(config.base_output_dir)
        while not any(b"CheckpointSaved" in run.journal_path.read_bytes() for run in find_runs(runs)):
            assert time.monotonic() < deadline, "no checkpoint came"
            assert process.poll() is None
            time.sleep(0.05)
        (run,) = find_runs(runs)
        alive = LiveRun.watch(run)
        alive.load()
        assert not alive.snapshot.is_lost
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    failure, found = diagnose(run)
    assert failure.error == "Killed"
    assert failure.title.startswith("The run was killed")
    assert "without a word" in failure.sentence
    assert failure.saved.startswith("checkpoint of step ")
    assert not found.is_alive
    assert failure.remedies[-1].overrides == ()


# Failures that need another machine


def test_the_numbers_of_a_full_gpu_come_in_one_sentence() -> None:
    failure = explain(facts(failed("OutOfMemory", f"the GPU is out of memory: {CUDA_OUT_OF_MEMORY}")))
    assert failure.title == "GPU out of memory at step 1641"
    assert failure.sentence == "Needed 1.6 GiB more: 24.0 GiB card, 23.2 held by this run, 0.4 by others."
    assert failure.saved == "checkpoint of step 1500, 1.0 GiB (1:10 of work lost, 140 steps)"


def test_a_checkpoint_that_has_gone_from_the_disk_is_not_called_saved() -> None:
    failure = explain(facts(failed("CheckpointError", "cannot write c"), is_checkpoint_gone=True))
    lost = "13:40 of work lost, 1640 steps"
    assert failure.saved == f"nothing: the checkpoint of step 1500 is gone from the disk ({lost})"


def test_a_full_gpu_is_relieved_by_what_changes_nothing_that_is_learned_first() -> None:
    failure = explain(facts(failed("OutOfMemory", f"the GPU is out of memory: {CUDA_OUT_OF_MEMORY}")))
    assert [remedy.overrides for remedy in failure.remedies] == [
        (("gradient_checkpointing", True),),
        (("cache_text_encoder_outputs", True),),
        (("optimizer.use_8bit", True),),
    ]
    assert failure.remedies[0].label == "gradient_checkpointing: false → true"
    assert failure.remedies[1].effect == "est. 1.5 GiB less"  # 817.7 M numbers of 2 bytes
    assert failure.remedies[2].effect == "est. 4.8 GiB less"  # 2567.5 M x (2 x 2 - 2) bytes


def test_a_smaller_batch_keeps_the_batch_in_all() -> None:
    event = failed("OutOfMemory", f"the GPU is out of memory: {CUDA_OUT_OF_MEMORY}")
    given = facts(event)
    tight = {"gradient_checkpointing": True, "cache_text_encoder_outputs": True, "optimizer": {"use_8bit": True}}
    optimizer = {**given.config_values["optimizer"], "use_8bit": True}
    failure = explain(replace(given, config_values={**given.config_values, **tight, "optimizer": optimizer}))
    assert failure.remedies[0].overrides == (("train_batch_size", 2), ("gradient_accumulation_steps", 2))
    assert failure.remedies[0].effect == "less memory, the same batch in all"


def test_a_policy_that_would_have_gone_on_is_offered() -> None:
    given = facts(failed("OutOfMemory", f"the GPU is out of memory: {CUDA_OUT_OF_MEMORY}"))
    stopping = replace(given, config_values={**given.config_values, "on_oom": "stop"})
    assert explain(stopping).remedies[0].overrides == (("on_oom", "split"),)
    assert explain(stopping).remedies[0].label == "on_oom: stop → split"
    alone = replace(stopping, config_values={**stopping.config_values, "train_batch_size": 1})
    assert "on_oom" not in changes(explain(alone))
    values = {**given.config_values, "on_non_finite": "stop"}
    once = explain(facts(failed("NonFiniteLossError", "the loss is nan at step 1641"), config_values=values))
    assert changes(once)["on_non_finite"] == "skip"
    often = failed("NonFiniteLossError", "the loss is nan at step 1641, the 5th such in a row")
    assert "on_non_finite" not in changes(explain(facts(often, config_values=values)))


def test_a_process_that_lost_its_gpu_is_to_be_left_before_anything_else() -> None:
    event = failed("DeviceError", "the GPU failed: CUDA error: an illegal memory access", exit_code=70)
    here = explain(facts(event, pid=os.getpid()))
    assert "leave it and start tuitrain anew" in here.sentence
    assert here.remedies == ()
    assert explain(facts(event)).remedies  # it was another process


def test_a_run_with_a_training_state_is_resumed_rather_than_started_again() -> None:
    failure = explain(facts(failed("OutOfMemory", "CUDA out of memory"), resume_step=120))
    first, *_others = failure.remedies
    assert first.resume_from == 120
    assert first.label.startswith("resume from step 120 with ")
    killed = explain(facts(None, resume_step=120))
    assert [(remedy.resume_from, "resume from step 120" in remedy.label) for remedy in killed.remedies[-1:]] == [
        (120, True)
    ]


def test_no_remedy_breaks_a_rule_of_the_config() -> None:
    event = failed("OutOfMemory", f"the GPU is out of memory: {CUDA_OUT_OF_MEMORY}")
    given = facts(event)
    shuffled = {**given.config_values, "caption_shuffle": True}  # so captions cannot be cached
    failure = explain(replace(given, config_values=shuffled))
    assert "cache_text_encoder_outputs" not in changes(failure)


@pytest.mark.parametrize(
    ("error", "what", "hint", "title"),
    [
        ("ModelError", "stabilityai/x is a gated repository", "", "The base model needs your login"),
        ("ModelError", "there is no model owner/name", "", "The base model is not there"),
        ("ModelError", "unet lacks 3 of 9 tensors: a", "", "The base model cannot be used"),
        ("DeviceError", "the GPU failed: CUDA error: no kernel image is available", "", "do not fit"),
        ("DeviceError", "the GPU failed: CUDA error: an illegal memory access", "", "The GPU failed at step 1641"),
        ("LibraryError", "a library cannot be imported: libcudart.so.12", "install it", "A library is missing"),
        ("ConfigError", "train_batch_size is 0", "set train_batch_size to 1", "A setting cannot be trained with"),
        ("CheckpointError", "cannot write it: Input/output error", "check the disk", "The run failed at step 1641"),
        ("Bug", "KeyError: 'loss'", "", "tuitrain failed at step 1641"),
        ("", "ValueError: from an older engine", "", "tuitrain failed at step 1641"),
    ],
)
def test_every_kind_has_its_own_title(error: events.ErrorName, what: str, hint: str, title: str) -> None:
    failure = explain(facts(failed(error, what, hint=hint)))
    assert title in failure.title
    assert failure.sentence
    assert len(failure.remedies) <= 3
    assert [remedy.key for remedy in failure.remedies] == list("abc"[: len(failure.remedies)])


def test_a_wrong_setting_is_pointed_at() -> None:
    failure = explain(facts(failed("ConfigError", "it is 0", hint="set train_batch_size to 1")))
    assert failure.remedies[0].focus == "train_batch_size"


def test_silence_is_told_from_death_and_starts_nothing_beside_the_living() -> None:
    failure = explain(facts(None, is_alive=True))
    assert failure.error == "Silent"
    assert "process 4182 on box still holds the run" in failure.sentence
    assert failure.remedies == ()


def test_a_crash_of_a_library_is_told_from_a_kill() -> None:
    failure = explain(facts(None, log_tail="all well\nFatal Python error: Segmentation fault\n\nThread 0x1:\n"))
    assert failure.title == "A library crashed at step 1641"
    assert "Segmentation fault" in failure.sentence


def test_a_run_whose_config_is_gone_offers_nothing_that_would_need_it() -> None:
    for error in ("OutOfMemory", "DatasetError", "ModelError", "DiskFull", "Bug"):
        assert explain(facts(failed(error, "x"), config_values={})).remedies == ()


# The kind of error, from what was raised


def as_cause(error: OSError) -> CheckpointError:
    outer = CheckpointError("cannot write it")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (torch.OutOfMemoryError(CUDA_OUT_OF_MEMORY), "OutOfMemory"),
        (MemoryError(), "OutOfMemory"),
        (RuntimeError("CUDA error: out of memory"), "OutOfMemory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "OutOfMemory"),
        (OSError(28, "No space left on device"), "DiskFull"),
        (OSError(122, "Disk quota exceeded"), "DiskFull"),
        (as_cause(OSError(28, "No space left on device")), "DiskFull"),
        (as_cause(OSError(5, "Input/output error")), "CheckpointError"),
        (OSError(5, "Input/output error"), "Bug"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "DeviceError"),
        (RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."), "DeviceError"),
        (RuntimeError("The size of tensor a (4) must match the size of tensor b (5)"), "Bug"),
        (ImportError("libcudart.so.12: cannot open shared object file"), "LibraryError"),
        (KeyError("loss"), "Bug"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_was_raised_decides_the_kind(error: Exception, name: str, tmp_path: Path) -> None:
    words = describe_failure(error, tmp_path)
    assert words.name == name
    assert words.what
    assert words.hint or isinstance(error, CheckpointError)


def test_a_cpu_that_cannot_allocate_is_out_of_memory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    words = describe_failure(raised.value, tmp_path)
    assert words.name == "OutOfMemory"
    assert words.what.startswith("the computer is out of memory")
    assert explain(facts(failed("OutOfMemory", words.what))).title == "Out of memory at step 1641"


# The report


def test_a_report_has_versions_settings_and_the_end_of_the_log_without_secrets() -> None:
    log = "\n".join(f"line {number}" for number in range(100))
    log += "\nreading with token=abcdefgh12345 from https://me:passw0rd@example.org/x and hf_abcdefghijklmnop"
    log += "\nAuthorization: Bearer eyJhbGciOi.abc\nthe value s3cr3t-value leaked"
    given = facts(failed("Bug", "KeyError"), log_tail=log)
    text = report(explain(given), given, environment={"WANDB_API_KEY": "s3cr3t-value", "HOME": "/home/maria"})
    for secret in ("abcdefgh12345", "passw0rd", "hf_abcdefghijklmnop", "eyJhbGciOi", "s3cr3t-value"):
        assert secret not in text
    assert "torch 2.13" in text
    assert "train_batch_size: 4" not in text.partition("## settings")[0]
    assert "optimizer.learning_rate: 1e-05" in text
    assert "line 99" in text
    assert "line 30" not in text
    assert "error: Bug: KeyError" in text


@pytest.mark.parametrize("text", ["keep_tokens: 3", "tokenizer = x", "/home/maria/sk/pictures", "2 tokens at 7:30"])
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text, {"PATH": "/usr/bin", "SSH_AUTH_SOCK": "/tmp/agent", "HF_TOKEN": ""}) == text


def test_the_last_traceback_is_that_of_the_last_error() -> None:
    log = (
        "2026-01-01 10:00:00,000 ERROR tuitrain: first\nTraceback (most recent call last):\n  a\nKeyError: 1\n"
        "2026-01-01 10:00:01,000 INFO tuitrain: on\n"
        "2026-01-01 10:00:02,000 ERROR tuitrain: the run failed\nTraceback (most recent call last):\n  b\nKeyError: 2\n"
        "2026-01-01 10:00:02,001 ERROR tuitrain: failed at step 3: KeyError\n"
    )
    assert last_traceback(log).splitlines()[0].endswith("the run failed")
    assert last_traceback(log).endswith("KeyError: 2")
    assert last_traceback("nothing of note") == ""


def test_the_tail_of_a_huge_log_starts_at_a_line(tmp_path: Path) -> None:
    from tuitrain.tui.failures import read_log_tail

    path = tmp_path / "log.txt"
    path.write_bytes(b"".join(b"line %08d\n" % number for number in range(100_000)))
    tail = read_log_tail(path)
    assert len(tail) <= 256 * 1024
    assert tail.startswith("line ")
    assert tail.endswith("line 00099999\n")
    assert read_log_tail(tmp_path / "none") == ""
