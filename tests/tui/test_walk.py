"""The whole walk, by keyboard only, in tmux: the README's demo, its samples, a packaged model, a LoRA, and out."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.tui.pty_session import REPOSITORY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed: apt-get install tmux"),
]


class Tmux:
    """A tmux server of its own with one window."""

    def __init__(self, folder: Path, *, size: tuple[int, int]) -> None:
        self._command = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        columns, rows = map(str, size)
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
        subprocess.run(
            [*self._command, "new-session", "-d", "-x", columns, "-y", rows, "-c", str(folder), "sh"],
            env=environment,
            check=True,
        )

    def type(self, text: str) -> None:
        """Type `text` as it stands."""
        self._run("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        """Press keys, named as tmux does."""
        self._run("send-keys", *keys)

    def screen(self) -> str:
        return self._run("capture-pane", "-p")

    def wait_for(self, *texts: str, seconds: float = 120.0) -> str:
        """The screen, once it shows all of `texts`."""
        return self.wait_until(lambda screen: all(text in screen for text in texts), what=str(texts), seconds=seconds)

    def wait_until(self, is_there: Callable[[str], bool], *, what: str, seconds: float = 120.0) -> str:
        deadline = time.monotonic() + seconds
        while not is_there(screen := self.screen()):
            assert time.monotonic() < deadline, f"{what} did not come within {seconds:.0f} s:\n{screen}"
            time.sleep(0.1)
        return screen

    def kill(self) -> None:
        subprocess.run([*self._command, "kill-server"], check=False, capture_output=True)

    def _run(self, *arguments: str) -> str:
        return subprocess.run([*self._command, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    server = Tmux(tmp_path, size=(80, 24))
    yield server
    server.kill()


def test_from_the_demo_to_a_packaged_model_and_a_lora_by_keyboard(tmux: Tmux, tmp_path: Path) -> None:
    every = "--set save_every_n_steps=20 --set validate_every_n_steps=20 --set validation_steps=4"
    tmux.type(f"{sys.executable} -m tuitrain demo --steps 40 {every}; echo left $?")
    tmux.press("Enter")
    tmux.wait_for("TRAINING", "/40", seconds=180)
    tmux.wait_for("FINISHED", "step 40/40", "Completed", seconds=300)

    tmux.press("4")
    tmux.wait_for("checkpoints", "a woodcut of a red star", "▀", "40", "20")
    tmux.press("Right")
    tmux.wait_for("a woodcut of a pink heart")
    tmux.press("Down")
    tmux.wait_for("step 20")
    tmux.press("Up")
    tmux.wait_for("step 40")

    tmux.press("p")
    tmux.wait_for("Package full diffusers model", "Start")
    tmux.press("Enter")
    tmux.wait_for("done: package step-40", "read back and compared", seconds=180)
    tmux.press("Escape")
    tmux.wait_until(lambda screen: "done: package" not in screen, what="the result to close")
    tmux.press("L")
    tmux.wait_for("Extract LoRA", "rank")
    tmux.press("Enter")
    tmux.wait_for("done: extract", seconds=180)
    tmux.press("Escape")
    tmux.wait_until(lambda screen: "done: extract" not in screen, what="the result to close")
    tmux.press("q")
    tmux.wait_for("left 0")

    exports = tmp_path / "tuitrain-demo" / "runs" / "exports"
    (package,) = [path for path in exports.iterdir() if path.is_dir()]
    assert json.loads((package / "model_index.json").read_text())["_class_name"] == "StableDiffusionXLPipeline"
    (lora,) = exports.glob("*.safetensors")
    with safe_open(lora, framework="pt") as file:
        names = list(file.keys())
    assert names and all(name.startswith("lora_unet_") for name in names)
