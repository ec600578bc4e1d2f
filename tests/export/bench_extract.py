"""Prints what cutting SDXL's layers to a low rank costs, beside torch.linalg.svd on two of its shapes.

    OMP_NUM_THREADS=1 python -m tests.export.bench_extract [--rank 32] [--every-shape]

Both are timed in one run in CPU seconds of this process, so that other work on the machine counts little; the cost of
all 788 layers is extrapolated by n m^2, m <= n, from the shape whose n / m is the nearest from below. torch.linalg.svd
makes a square V by default, which grows faster than that, so its total is at least what is printed for long shapes.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tests.export.test_low_rank import decaying
from tuitrain.engine.base_model import SDXL_BASE
from tuitrain.engine.sdxl import build_network
from tuitrain.engine.weight_files import read_json
from tuitrain.export.lora_modules import block_modules
from tuitrain.export.low_rank import cut_to_rank
from tuitrain.wording import format_table

PAIRED = ((1280, 1280), (1280, 5120))  # with torch.linalg.svd
OURS_ALONE = ((640, 640), (640, 5760))

Shape = tuple[int, int]


def layer_shapes() -> Counter[Shape]:
    """How often the UNet has each shape, the shorter side first."""
    config = read_json(SDXL_BASE / "unet" / "config.json")
    with torch.device("meta"):
        modules = block_modules(build_network("unet", config), config)
    return Counter((min(module.m, module.n), max(module.m, module.n)) for module in modules)


def cpu_seconds(work: Callable[[], object], *, times: int = 1) -> float:
    """The least CPU time of some runs."""
    seconds = []
    for _ in range(times):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def matrix(m: int, n: int) -> Tensor:
    """A power law above noise where it is cheap to make; noise and a few strong directions elsewhere."""
    if m * n <= 640 * 640:
        return decaying(m, n)
    generator = torch.Generator().manual_seed(0)
    strong = torch.randn(m, 64, generator=generator) * torch.arange(1, 65) ** -0.8
    return strong @ torch.randn(64, n, generator=generator) / 8 + 0.1 * torch.randn(m, n, generator=generator)


def measure(shape: Shape, r: int, *, with_svd: bool) -> dict[str, float]:
    D = matrix(*shape)
    cut_to_rank(D, r)  # the first call loads the libraries
    ours = cpu_seconds(lambda: cut_to_rank(D, r), times=3)
    if not with_svd:
        return {"ours": ours}
    svd = cpu_seconds(lambda: torch.linalg.svd(D))
    thin = cpu_seconds(lambda: torch.linalg.svd(D, full_matrices=False))
    low_rank = cut_to_rank(D, r)
    best = float(torch.linalg.svdvals(D)[r:].double().norm())
    residual = float((D - (low_rank.U * low_rank.s) @ low_rank.Vh).double().norm())
    return {"ours": ours, "svd": svd, "thin": thin, "residual": residual / best}


def extrapolated(found: Mapping[Shape, Mapping[str, float]], shape: Shape, key: str) -> float:
    """CPU seconds for a layer: as measured, or by n m^2 (ours by n m, as its rank is fixed) from a measured shape."""
    if shape in found and key in found[shape]:
        return found[shape][key]
    measured = [one for one in found if key in found[one] and one[1] * shape[0] <= shape[1] * one[0]]
    m, n = max(measured, key=lambda one: (one[1] / one[0], -abs(one[0] - shape[0])))
    growth = shape[0] * shape[1] / (m * n)
    return found[m, n][key] * growth * (1 if key == "ours" else shape[0] / m)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--every-shape", action="store_true", help="time the cut on every shape, minutes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    counts = layer_shapes()
    shapes = sorted(counts) if options.every_shape else [*PAIRED, *OURS_ALONE]
    found = {shape: measure(shape, options.rank, with_svd=shape in PAIRED) for shape in shapes}
    rows = [
        {
            "shape": f"{m} x {n}",
            "layers": str(counts[m, n]),
            "svd s": f"{one['svd']:.2f}" if "svd" in one else "-",
            "thin svd s": f"{one['thin']:.2f}" if "thin" in one else "-",
            f"rank {options.rank} s": f"{one['ours']:.3f}",
            "svd / ours": f"{one['svd'] / one['ours']:.0f}" if "svd" in one else "-",
            "residual / best": f"{one['residual']:.5f}" if "residual" in one else "-",
        }
        for (m, n), one in found.items()
    ]
    ours_all = sum(number * extrapolated(found, shape, "ours") for shape, number in counts.items())
    lines = [*format_table(rows), f"all {counts.total()} layers: rank {options.rank} {ours_all:.0f} s"]
    for name, key in (("torch.linalg.svd", "svd"), ("with full_matrices=False", "thin")):
        all_layers = sum(number * extrapolated(found, shape, key) for shape, number in counts.items())
        lines.append(f"{name} {all_layers:.0f} s, {all_layers / ours_all:.0f} times as much")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
