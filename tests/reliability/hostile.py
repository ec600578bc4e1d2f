"""Runs, configs and pictures whose every text was written by somebody who wants to steer the terminal."""

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from tuitrain.runs import events
from tuitrain.runs.checkpoints import checkpoint_name, publish_checkpoint
from tuitrain.runs.journal import Journal
from tuitrain.runs.run import Run

PAYLOADS = {
    "OSC 0 title": "\x1b]0;owned\x07",
    "OSC 8 link": "\x1b]8;;http://evil\x1b\\x\x1b]8;;\x1b\\",
    "OSC 52 clipboard": "\x1b]52;c;UFdORUQ=\x07",
    "CSI clear": "\x1b[2J\x1b[H",
    "CSI colour": "\x1b[31m",
    "C1 CSI": "\x9b31m",
    "C1 OSC": "\x9d52;c;x\x9c",
    "carriage return": "a\rb",
    "bell": "\x07",
    "NUL": "\x00",
    "right to left override": "\u202etxt.exe",
    "surrogate": "\udc9b31m",
    "unterminated OSC": "\x1b]0;open",
    "DCS": "\x1bP0;1|17/ab\x1b\\",
}
MARKUP = ("[/", "[b", "[@click=app.quit]", "[0]", "[/data/x.png]", "[@click=app.leave]x[/]")

RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal would obey, or cannot be sent to it, in a text of lines."""

ALL = "".join(PAYLOADS.values())


def as_name(payload: str) -> str:
    """`payload` as a file name may hold it."""
    return payload.replace("\0", "").replace("/", "")


class HostileRun:
    """A failed run with two checkpoints, whose texts all hold `payload` after a word that names the field.

    Args:
        folder: where its base folder is made.
    """

    def __init__(self, folder: Path, payload: str) -> None:
        self.payload = payload
        self.base = folder / f"Base{as_name(payload)}"
        self.config_path = self.base / f"Config{as_name(payload)}.yaml"
        pictures = self.base / f"Pictures{as_name(payload)}"
        pictures.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(pictures / "good.png")
        (pictures / "good.txt").write_text(self.text("Caption"), encoding="utf-8", errors="replace")
        (pictures / f"Bad{as_name(payload)}.png").write_bytes(b"no picture")
        values = {
            "type": "SDXL_FINETUNE",
            "base_output_dir": str(self.base / "new"),
            "model": self.text("Model"),
            "max_train_steps": 3,
            "save_every_n_steps": 1,
            "validation_prompts": [self.text("Prompt")],
            "data_loader": {
                "type": "IMAGE_CAPTION_SD_DATA_LOADER",
                "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(pictures)},
            },
        }
        text = json.dumps(values).replace("\x7f", "\\x7f")  # JSON is YAML, and escapes every character but these
        self.config_path.write_text(re.sub(r"\\ud[c-f]..", "?", text))
        run = Run.create(self.base, config_yaml=self.config_path.read_text(), config_json=text)
        self.run = Run(run.path.rename(self.base / f"Run{as_name(payload)}"))
        self._write_journal()
        lines = "".join(f"2026-01-01 00:00:00,000 ERROR tuitrain: {self.text('Log')}\n" for _ in range(3))
        trace = f"Traceback (most recent call last):\n  File\nRuntimeError: {self.text('Exception')}\n"
        self.run.log_path.write_bytes((lines + trace).encode("utf-8", "surrogateescape"))

    def text(self, field: str) -> str:
        return f"{field}{self.payload}"

    def _write_journal(self) -> None:
        text = self.text
        image = f"validation/{as_name(text('Sample'))}.png"
        Image.new("RGB", (16, 16)).save(self.run.path / image)
        happened: list[Any] = [
            events.RunStarted(
                run_id=text("RunId"), pid=1, host=text("Host"), tuitrain_version="0", versions={},
                device=text("Device"), world_size=1, config_hash="", seed=1, resumed_from=None,
            ),
            events.DatasetScanned(
                num_images=1, num_skipped=0, buckets={text("Bucket"): 1}, steps_per_epoch=1, total_steps=9, num_epochs=9
            ),
            events.ModelLoaded(
                model=text("Base"), prediction_type=text("Prediction"), zero_terminal_snr=False,
                num_trainable_parameters=1, seconds=1.0,
            ),
            events.StepLogged(step=1, epoch=1, loss=0.5, lr=1e-5, seconds_per_step=1.0, images_per_second=1.0),
            events.StepLogged(step=2, epoch=2, loss=0.4, lr=1e-5, seconds_per_step=1.0, images_per_second=1.0),
            events.SamplesSaved(
                step=2, epoch=2, seconds=1.0,
                images=[events.SampleImage(path=image, prompt_index=0, image_index=0, prompt=text("Prompt"))],
            ),
            *(self._checkpoint(step) for step in (1, 2)),
            events.CheckpointPruned(name=text("Pruned")),
            events.SaveFailed(step=2, what=text("Unsaved"), hint=text("Room")),
            events.ImageRejected(path=text("Picture"), reason=text("Reason")),
            events.ImageNoted(path=text("Noted"), note=text("Note")),
            events.PhaseFinished(phase="save", seconds=1.0, detail=text("Detail")),
            events.CommandReceived(command=text("Command")),
            events.WarningRaised(what=text("Warning"), hint=text("Hint")),
            events.RunFailed(
                what=text("Failure"), hint=text("Remedy"), where=text("Where"), step=2, exit_code=1,
            ),
        ]  # fmt: skip
        journal = Journal(self.run.journal_path)
        for event in happened:
            journal.append(event)
        journal.close()

    def _checkpoint(self, step: int) -> events.CheckpointSaved:
        return publish(
            self.run,
            step,
            {as_name(self.text("File")): b"0"},
            base_model=self.text("Base"),
            prediction_type=self.text("Prediction"),
            save_dtype=self.text("Dtype"),
        )


def publish(
    run: Run,
    step: int,
    files: dict[str, bytes],
    *,
    base_model: str = "base",
    prediction_type: str = "epsilon",
    save_dtype: str = "float16",
) -> events.CheckpointSaved:
    """A checkpoint of `files`, each with what it holds."""
    with publish_checkpoint(run.checkpoints_dir, epoch=step, step=step) as staged:
        for name, content in files.items():
            (staged.path / name).write_bytes(content)
        staged.finish(
            kind="trained_only_diffusers",
            weights="trained",
            config_hash="0",
            base_model=base_model,
            base_model_hash="0",
            prediction_type=prediction_type,
            save_dtype=save_dtype,
        )
    name = checkpoint_name(step, step)
    return events.CheckpointSaved(step=step, epoch=step, name=name, num_bytes=1, seconds=1.0)
