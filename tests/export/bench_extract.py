"""Prints what extracting a LoRA of full size costs and how good it is, beside torch.linalg.svd and plain reading.

    python -m tests.export.bench_extract [--rank 32] [--threads 1] [--models FOLDER [--every-layer]]

The mathematics: the cut of every shape among the 788 layers, and torch.linalg.svd of two of them, in CPU seconds of
this process at the same number of threads, in turns within one run, the least of some. What torch.linalg.svd would take
for the other shapes is extrapolated by n m^2, m <= n, from the one of the two whose n / m is the nearest from below.
That is too little for long shapes, where it makes a square V by default.

With --models, the whole: FOLDER gets a random SDXL in float16 and a UNet in float32 that differs from it as a trained
one does (17 GB; used again when they are there). Reading both tensor by tensor and the extraction begin with nothing
of them in the page cache. The residual is that of the written file, float16 included, against the best one by all
singular values in float64, of one layer of each kind and shape or of every layer.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.export.test_low_rank import decaying
from tuitrain.atomic import atomic_dir
from tuitrain.engine.base_model import SDXL_BASE, open_part
from tuitrain.engine.random_model import write_random_model
from tuitrain.engine.sdxl import build_network
from tuitrain.engine.weight_files import PARTS, read_json, weight_name
from tuitrain.engine.weights import LazyTensor, write_safetensors
from tuitrain.export.lora import LoraOptions, extract_lora, squared_norm
from tuitrain.export.lora_modules import BlockModule, block_modules
from tuitrain.export.low_rank import cut_to_rank
from tuitrain.export.trained_unet import lazy_part
from tuitrain.wording import format_table

PAIRED = ((1280, 1280), (1280, 5120))  # with torch.linalg.svd

Shape = tuple[int, int]


def sdxl_modules() -> list[BlockModule]:
    config = read_json(SDXL_BASE / "unet" / "config.json")
    with torch.device("meta"):
        return block_modules(build_network("unet", config), config)


def show(lines: Sequence[str]) -> None:
    sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.flush()


# ---- the mathematics


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def matrix(m: int, n: int) -> Tensor:
    """A power law above noise where it is cheap to make; noise and a few strong directions elsewhere."""
    if m * n <= 640 * 640:
        return decaying(m, n)
    generator = torch.Generator().manual_seed(0)
    strong = torch.randn(m, 64, generator=generator) * torch.arange(1, 65) ** -0.8
    return strong @ torch.randn(64, n, generator=generator) / 8 + 0.1 * torch.randn(m, n, generator=generator)


def measure_shape(shape: Shape, r: int) -> dict[str, float]:
    """The least CPU seconds of each way; where several are compared, in turns."""
    D = matrix(*shape)
    ways: dict[str, Callable[[], object]] = {"ours": lambda: cut_to_rank(D, r)}
    if shape in PAIRED:
        ways["svd"] = lambda: torch.linalg.svd(D)
        ways["thin"] = lambda: torch.linalg.svd(D, full_matrices=False)
    seconds: dict[str, list[float]] = defaultdict(list)
    cut_to_rank(D, r)  # the first call loads libraries
    for _ in range(3):
        for name, work in ways.items():
            seconds[name].append(cpu_seconds(work))
    return {name: min(found) for name, found in seconds.items()}


def extrapolated(found: Mapping[Shape, Mapping[str, float]], shape: Shape, way: str) -> float:
    """CPU seconds for a layer: as measured, or by n m^2 from the measured shape whose n / m is nearest from below."""
    m, n = shape
    if way in found[shape]:
        return found[shape][way]
    known = [one for one in PAIRED if one[1] / one[0] <= n / m]
    m0, n0 = max(known, key=lambda one: one[1] / one[0])
    return found[m0, n0][way] * (n * m * m) / (n0 * m0 * m0)


def bench_mathematics(r: int) -> None:
    counts = Counter((min(module.m, module.n), max(module.m, module.n)) for module in sdxl_modules())
    found = {shape: measure_shape(shape, r) for shape in sorted(counts)}
    rows = [
        {
            "shape": f"{m} x {n}",
            "layers": str(number),
            f"rank {r} s": f"{found[m, n]['ours']:.4f}",
            "svd s": f"{extrapolated(found, (m, n), 'svd'):.3f}{'' if (m, n) in PAIRED else ' extrapolated'}",
            "thin svd s": f"{extrapolated(found, (m, n), 'thin'):.3f}{'' if (m, n) in PAIRED else ' extrapolated'}",
        }
        for (m, n), number in sorted(counts.items())
    ]
    total = {way: sum(n * extrapolated(found, shape, way) for shape, n in counts.items()) for way in found[PAIRED[0]]}
    show(
        [
            f"CPU seconds a layer, {torch.get_num_threads()} threads",
            *format_table(rows),
            f"all {counts.total()} layers: rank {r} {total['ours']:.0f} s, torch.linalg.svd {total['svd']:.0f} s,"
            f" with full_matrices=False {total['thin']:.0f} s",
            f"torch.linalg.svd / rank {r}: {total['svd'] / total['ours']:.1f};"
            f" with full_matrices=False: {total['thin'] / total['ours']:.1f}",
        ]
    )


# ---- the models


def build_models(folder: Path) -> None:
    """A base model, and beside it a UNet in float32 whose every tensor differs from the base's a little."""
    if not (folder / "base").exists():
        write_random_model(folder / "base")
    if (folder / "trained").exists():
        return
    base = lazy_part(open_part(folder / "base" / "unet", "unet", None))
    noise = torch.randn(40_000_000, generator=torch.Generator().manual_seed(1))

    def trained(index: int, tensor: LazyTensor) -> LazyTensor:
        return LazyTensor(tensor.shape, torch.float32, lambda: tensor.read().float() + change(tensor, index, noise))

    with atomic_dir(folder / "trained") as temporary:
        (temporary / "config.json").write_bytes((folder / "base" / "unet" / "config.json").read_bytes())
        tensors = [(name, trained(index, tensor)) for index, (name, tensor) in enumerate(base.items())]
        write_safetensors(temporary / weight_name(PARTS["unet"], None), tensors, dtype=torch.float32)


def change(tensor: LazyTensor, index: int, noise: Tensor) -> Tensor:
    """1e-4 in each value; in matrices 70 % of the energy falls off by a power law over 256 directions."""
    start = index * 7919 % 1_000_000
    flat = noise[start : start + tensor.numel()]
    if len(tensor.shape) < 2:
        return 1e-4 * flat.reshape(tensor.shape)
    m, n = tensor.shape[0], math.prod(tensor.shape[1:])
    generator = torch.Generator().manual_seed(index)
    weights = torch.arange(1, 257) ** -0.7
    strong = (torch.randn(m, 256, generator=generator) * weights) @ torch.randn(256, n, generator=generator)
    strong *= math.sqrt(0.7) / float(weights.norm())
    return 1e-4 * strong.add_(flat.view(m, n), alpha=math.sqrt(0.3)).reshape(tensor.shape)


# ---- end to end


@dataclass(frozen=True)
class Cost:
    """What a piece of work took.

    Args:
        wall: seconds by the clock.
        cpu: seconds of all threads.
        anonymous_gib: the most anonymous memory (RssAnon), libraries included; mapped files are not in it.
    """

    wall: float
    cpu: float
    anonymous_gib: float


def rss_anon_gib() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 2**20


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """A list whose one number is the peak of RssAnon, looked at 100 times a second."""
    peak, is_over = [rss_anon_gib()], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.01):
            peak[0] = max(peak[0], rss_anon_gib())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()


def measured(work: Callable[[], object]) -> Cost:
    with peak_memory() as peak:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Cost(wall, cpu, peak[0])


def forget(folder: Path) -> None:
    """Drop the models from the page cache, so that the disk is read."""
    os.sync()
    for path in folder.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_both(folder: Path) -> None:
    """Every tensor of both UNets into memory and away, as float32."""
    base = lazy_part(open_part(folder / "base" / "unet", "unet", None))
    trained = lazy_part(open_part(folder / "trained", "unet", None))
    for name, tensor in trained.items():
        tensor.read().clone()
        base[name].read().to(torch.float32)


def extract(folder: Path, out: Path, r: int) -> None:
    extract_lora(folder / "trained", out, LoraOptions(ranks=(r,)), base=str(folder / "base"))


def in_child(threads: int, work: Callable[..., object], *arguments: object) -> Cost:
    """`work` in a process of its own, whose memory is not that of what came before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_in_child, threads, work, *arguments).result()


def _in_child(threads: int, work: Callable[..., object], *arguments: object) -> Cost:
    torch.set_num_threads(threads)
    return measured(lambda: work(*arguments))


def bench_end_to_end(folder: Path, out: Path, r: int, threads: int) -> None:
    costs: dict[str, list[Cost]] = {"read both UNets": [], f"extract rank {r}": []}
    for turn in range(2):
        forget(folder)
        costs["read both UNets"].append(in_child(threads, read_both, folder))
        forget(folder)
        lora = out.with_name(f"{out.stem}{turn}.safetensors") if turn else out
        costs[f"extract rank {r}"].append(in_child(threads, extract, folder, lora, r))
    rows = [
        {
            "work": name,
            "wall s": ", ".join(f"{one.wall:.1f}" for one in found),
            "CPU s": ", ".join(f"{one.cpu:.1f}" for one in found),
            "peak RssAnon GiB": f"{max(one.anonymous_gib for one in found):.2f}",
        }
        for name, found in costs.items()
    ]
    read, extracted = costs.values()
    by_clock = sum(one.wall for one in extracted) / sum(one.wall for one in read)
    by_cpu = sum(one.cpu for one in extracted) / sum(one.cpu for one in read)
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    show(
        [
            f"end to end from a cold page cache, {threads} threads, two runs of each in turns, load average now {load}",
            *format_table(rows),
            f"extraction / reading: {by_clock:.2f} by the clock, {by_cpu:.2f} by CPU seconds",
        ]
    )


# ---- the residual


@dataclass(frozen=True)
class Layer:
    """A changed layer and its factors in the file."""

    D: Tensor
    B: Tensor
    A: Tensor

    def ours(self) -> float:
        """||D - B A||^2."""
        return squared_norm(self.D - self.B @ self.A)

    def best(self) -> float:
        """The least possible at this rank, by Eckart and Young; exact to 1e-13 of the largest s_i^2."""
        D = self.D.double() if self.D.shape[0] <= self.D.shape[1] else self.D.T.double()
        return float(torch.linalg.eigvalsh(D @ D.T)[: -len(self.A)].sum())


def bench_residual(folder: Path, lora_file: Path, *, every_layer: bool) -> None:
    base = lazy_part(open_part(folder / "base" / "unet", "unet", None))
    trained = lazy_part(open_part(folder / "trained", "unet", None))
    lora = load_file(lora_file)

    def read(module: BlockModule) -> Layer:
        D = trained[module.weight].read() - base[module.weight].read().float()
        B, A = (lora[f"{module.key}.lora_{name}.weight"].float().flatten(1) for name in ("up", "down"))
        return Layer(D.reshape(module.m, module.n), B, A)

    kinds: dict[tuple[str, int, int], list[BlockModule]] = defaultdict(list)
    for module in sdxl_modules():
        kinds[module.group, module.m, module.n].append(module)
    rows, ratios, all_ours, all_best, all_total = [], [], 0.0, 0.0, 0.0
    for (group, m, n), modules in sorted(kinds.items()):
        ours, total, found = 0.0, 0.0, []
        for place, module in enumerate(modules):
            layer = read(module)
            layer_ours = layer.ours()
            ours, total = ours + layer_ours, total + squared_norm(layer.D)
            if every_layer or place == 0:
                found.append(math.sqrt(layer_ours / layer.best()))
        all_ours, all_best, all_total = all_ours + ours, all_best + ours / fmean(found) ** 2, all_total + total
        ratios += found
        rows.append(
            {
                "layers": group,
                "shape": f"{m} x {n}",
                "number": str(len(modules)),
                "kept": f"{1 - ours / total:.4f}",
                "residual / best": f"{fmean(found):.5f}",
                "worst": f"{max(found):.5f}",
            }
        )
    reported = json.loads(lora_file.with_suffix(".report.json").read_text())["energy_kept"]
    show(
        [
            f"residual of the written file; the best one of {len(ratios)} layers",
            *format_table(rows),
            f"network: kept {1 - all_ours / all_total:.5f}, by its report {reported:.5f};"
            f" residual / best {math.sqrt(all_ours / all_best):.5f}, worst layer {max(ratios):.5f}",
        ]
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", type=Path, help="a folder with 17 GB of room")
    parser.add_argument("--every-layer", action="store_true", help="measure the residual of all 788 layers")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    show([f"torch {version('torch')}, safetensors {version('safetensors')}, {os.cpu_count()} cores"])
    if options.models is not None:
        options.models.mkdir(parents=True, exist_ok=True)
        in_child(options.threads, build_models, options.models)
        with tempfile.TemporaryDirectory(dir=options.models) as scratch:
            lora = Path(scratch) / "lora.safetensors"
            bench_end_to_end(options.models, lora, options.rank, options.threads)
            bench_residual(options.models, lora, every_layer=options.every_layer)
    bench_mathematics(options.rank)


if __name__ == "__main__":
    main(sys.argv[1:])
