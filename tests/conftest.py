"""Fixtures for every test: the tiny SDXL, and the folders of real pictures where the machine has them."""

import os
import signal

# Started in the background of a shell, programs ignore Ctrl-C, and so would those that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test may reach the network; the libraries read these when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# The tiny model's tensors are too small to share between threads, which spin while they wait: 3 times slower on two
# cores that do something else as well. torch reads both when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Diffusers folder of a random SDXL with VAE factor 4 and float32 weights. Read-only: copy it to change it."""
    from tests.tiny_sdxl import build_tiny_sdxl  # torch and diffusers: 8 s that tests without a model do not pay

    return build_tiny_sdxl(tmp_path_factory.mktemp("model") / "tiny_sdxl")


@pytest.fixture(scope="session")
def gnome_dir() -> Path:
    """Four photographs of a garden gnome with captions (`data.jsonl`) and two masks (`data_masked.jsonl`)."""
    return _pictures("bruce_the_gnome")


@pytest.fixture(scope="session")
def robocats_dir() -> Path:
    """Two pictures of robot cats with captions in `metadata.jsonl` and in `.txt` files."""
    return _pictures("robocats")


def _pictures(name: str) -> Path:
    root = Path(os.environ.get("TUITRAIN_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    folder = root / name
    if not folder.is_dir():
        pytest.skip(f"no pictures at {folder}; set TUITRAIN_TEST_DATA to the folder that holds {name}")
    return folder
