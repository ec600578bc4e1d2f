"""What this machine offers a training: versions, devices, disk; knows no config and no run."""

import importlib
import logging
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tuitrain.gpu import read_gpus
from tuitrain.wording import format_bytes

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "bitsandbytes",
    "prodigyopt",
    "huggingface_hub",
    "datasets",
    "pydantic",
)
_OPTIONAL_LIBRARIES = frozenset({"datasets"})


@dataclass(frozen=True)
class Diagnosis:
    """Facts about the machine.

    Args:
        python: its version.
        system: operating system and processor.
        num_cpus: processors this process may use.
        versions: of tuitrain and its libraries, None where one is not installed.
        gpus: what the driver says of each GPU.
        cuda: what torch says: is_available, version, devices (name, compute_capability, memory_gib, has_bf16).
        bitsandbytes: whether it can be imported, and if not, why.
        free_bytes: by folder: the current one, and the cache of Hub downloads.
        problems: what keeps training from working, in words.
    """

    python: str
    system: str
    num_cpus: int
    versions: dict[str, str | None]
    gpus: list[dict[str, Any]]
    cuda: dict[str, Any]
    bitsandbytes: str
    free_bytes: dict[str, int]
    problems: list[str]


def diagnose() -> Diagnosis:
    """Look at the machine; imports torch and bitsandbytes, which takes seconds."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels for inference
    versions = {name: _version(name) for name in ("tuitrain", *LIBRARIES)}
    problems = [
        f"{name} is not installed (pip install {name})"
        for name, installed in versions.items()
        if installed is None and name not in _OPTIONAL_LIBRARIES
    ]
    bitsandbytes_failure = _import_failure("bitsandbytes")
    if bitsandbytes_failure:
        problems.append(f"bitsandbytes cannot be imported: {bitsandbytes_failure}")
    torch_failure = _import_failure("torch")
    if torch_failure:
        problems.append(f"torch cannot be imported: {torch_failure}")
    return Diagnosis(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        num_cpus=len(os.sched_getaffinity(0)),
        versions=versions,
        gpus=[asdict(gpu) for gpu in read_gpus()],
        cuda={"is_available": False, "version": None, "devices": []} if torch_failure else _read_cuda(),
        bitsandbytes=bitsandbytes_failure or "ok",
        free_bytes={str(folder): shutil.disk_usage(_existing(folder)).free for folder in (Path.cwd(), _hub_cache())},
        problems=problems,
    )


def describe_diagnosis(diagnosis: Diagnosis) -> list[str]:
    """Lines for a person, without the problems."""
    facts = [("system", f"{diagnosis.system}, {diagnosis.num_cpus} CPUs"), ("python", diagnosis.python)]
    facts += [(name, installed or "not installed") for name, installed in diagnosis.versions.items()]
    facts += [("driver's GPU", ", ".join(f"{name} {value}" for name, value in gpu.items())) for gpu in diagnosis.gpus]
    facts.append(("CUDA", diagnosis.cuda["version"] or "this torch is built without"))
    for device in diagnosis.cuda["devices"]:
        bf16 = "bf16" if device["has_bf16"] else "no bf16"
        facts.append(("GPU", f"{device['name']}, {device['memory_gib']:.1f} GiB, {bf16}"))
    if not diagnosis.cuda["devices"]:
        facts.append(("GPU", "none that torch can use: trains on the CPU, which suits the demo only"))
    facts.append(("8-bit AdamW", diagnosis.bitsandbytes))
    facts += [("free disk", f"{format_bytes(free)} at {folder}") for folder, free in diagnosis.free_bytes.items()]
    return [f"{name:<15}  {fact}" for name, fact in facts]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _import_failure(name: str) -> str:
    """Why the library cannot be imported; empty when it can."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # what broken native libraries raise
        return f"{type(error).__name__}: {error}"
    return ""


def _read_cuda() -> dict[str, Any]:
    import torch  # 2 s, and only here

    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        devices.append(
            {
                "name": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory_gib": properties.total_memory / 2**30,
                "has_bf16": has_bf16,
            }
        )
    return {"is_available": torch.cuda.is_available(), "version": torch.version.cuda, "devices": devices}


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE  # 0.1 s, and only here

    return Path(HF_HUB_CACHE)


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
