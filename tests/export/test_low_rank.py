"""The cut to a low rank against the full decomposition, and the ranks a budget buys."""

import pytest
import torch
from torch import Tensor

from tuitrain.export.low_rank import (
    Spectrum,
    all_energies,
    cut_to_rank,
    kept_energy,
    ranks_for_energy,
    ranks_for_size,
    with_guessed_tail,
)


def decaying(m: int, n: int, *, power: float = 0.8, floor: float = 0.02, seed: int = 1) -> Tensor:
    """A matrix as training makes them: singular values by a power law above a floor of noise."""
    generator = torch.Generator().manual_seed(seed)
    k = min(m, n)
    U = torch.linalg.qr(torch.randn(m, k, generator=generator)).Q
    V = torch.linalg.qr(torch.randn(n, k, generator=generator)).Q
    s = torch.arange(1, k + 1, dtype=torch.float32) ** -power + floor
    return 1e-3 * (U * s) @ V.T


def residual(D: Tensor, r: int) -> float:
    B, A = cut_to_rank(D, r).balanced()
    return float((D - B @ A).norm())


def best_residual(D: Tensor, r: int) -> float:
    """By Eckart and Young: what the singular values beyond r amount to."""
    return float(torch.linalg.svdvals(D.double())[r:].norm())


SHAPES = [(320, 320), (256, 512), (640, 160), (320, 1440)]


@pytest.mark.parametrize("r", [4, 16, 32])
def test_the_block_iteration_is_within_half_a_percent_of_the_best_over_all_layers(r: int) -> None:
    layers = [decaying(*shape, seed=seed) for seed, shape in enumerate(SHAPES)]
    ours, best = [residual(D, r) for D in layers], [best_residual(D, r) for D in layers]
    assert sum(x * x for x in ours) ** 0.5 <= 1.005 * sum(x * x for x in best) ** 0.5
    assert all(x <= 1.02 * y for x, y in zip(ours, best, strict=True))
    assert all(x >= (1 - 1e-5) * y for x, y in zip(ours, best, strict=True))


STEEP = {
    "square": lambda i: i**-2.0,
    "cubic": lambda i: i**-3.0,
    "exponential above a floor": lambda i: torch.exp(-i / 8) + 1e-5,
}


@pytest.mark.parametrize("spectrum", STEEP)
@pytest.mark.parametrize("r", [32, 80])
def test_no_spectrum_is_too_steep(spectrum: str, r: int) -> None:
    """Squaring it in float32 would lose all below 1/3000 of the largest value: residuals 1.2 to 40 times the best."""
    generator = torch.Generator().manual_seed(1)
    U, V = (torch.linalg.qr(torch.randn(n, 320, generator=generator)).Q for n in (320, 480))
    D = (U * STEEP[spectrum](torch.arange(1, 321, dtype=torch.float32))) @ V.T
    low_rank = cut_to_rank(D, r)
    product = (low_rank.U.double() * low_rank.s.double()) @ low_rank.Vh.double()
    assert float((D.double() - product).norm()) <= 1.005 * best_residual(D, r)


@pytest.mark.parametrize("shape", [(96, 160), (160, 96)])
def test_large_ranks_are_exact(shape: tuple[int, int]) -> None:
    D = decaying(*shape)
    low_rank = cut_to_rank(D, 70)
    assert residual(D, 70) == pytest.approx(best_residual(D, 70), rel=1e-4)
    torch.testing.assert_close(low_rank.s, torch.linalg.svdvals(D)[:70], rtol=1e-4, atol=0)
    assert low_rank.energies is not None
    torch.testing.assert_close(low_rank.energies, torch.linalg.svdvals(D) ** 2, rtol=1e-3, atol=0)


def test_both_ways_give_the_same_leading_values() -> None:
    D = decaying(320, 400)
    block, exact = cut_to_rank(D, 8), cut_to_rank(D, 80)
    assert block.energies is None
    torch.testing.assert_close(block.s, exact.s[:8], rtol=1e-3, atol=0)


@pytest.mark.parametrize("r", [8, 90])
def test_the_first_columns_are_the_cut_to_a_lower_rank(r: int) -> None:
    D = decaying(384, 384)
    B, A = cut_to_rank(D, r).balanced()
    for k in (2, r // 2):
        assert float((D - B[:, :k] @ A[:k]).norm()) <= 1.005 * best_residual(D, k)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24)])
def test_the_full_rank_is_the_matrix(shape: tuple[int, int]) -> None:
    D = decaying(*shape)
    B, A = cut_to_rank(D, 1000).balanced()
    assert (B.shape, A.shape) == ((shape[0], 24), (24, shape[1]))
    torch.testing.assert_close(B @ A, D, rtol=0, atol=1e-6 * float(D.abs().max()) * 10)


def test_a_matrix_of_lower_rank_than_asked_for_has_finite_factors() -> None:
    D = decaying(128, 3) @ decaying(3, 256)
    for r in (8, 100):
        B, A = cut_to_rank(D, r).balanced()
        assert bool(B.isfinite().all()) and bool(A.isfinite().all())
        torch.testing.assert_close(B @ A, D, rtol=0, atol=1e-5 * float(D.abs().max()))


def test_factors_are_balanced() -> None:
    B, A = cut_to_rank(decaying(320, 400), 8).balanced()
    torch.testing.assert_close(B.norm(dim=0), A.norm(dim=1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("r", [8, 90])
def test_the_same_matrix_gives_the_same_bits_whatever_the_global_seed(r: int) -> None:
    D = decaying(384, 400)
    torch.manual_seed(1)
    first = cut_to_rank(D, r)
    torch.manual_seed(2)
    second = cut_to_rank(D, r)
    assert torch.equal(first.U, second.U) and torch.equal(first.Vh, second.Vh)


def test_clamping_cuts_at_the_quantile_of_both_factors_and_costs_energy() -> None:
    D = decaying(128, 160)
    low_rank = cut_to_rank(D, 16)
    B, A = low_rank.clamped(0.9)
    together = torch.cat(((low_rank.U * low_rank.s).flatten(), low_rank.Vh.flatten()))
    assert float(A.max()) == pytest.approx(float(together.quantile(0.9)), rel=1e-5)
    assert float((D - B @ A).norm()) > 1.01 * best_residual(D, 16)


def test_energies_sum_to_the_norm() -> None:
    D = decaying(160, 96)
    assert len(all_energies(D)) == 96
    assert float(all_energies(D).sum()) == pytest.approx(float(D.norm()) ** 2, rel=1e-4)


SPECTRA = {
    "wide": Spectrum(torch.tensor([100.0, 10.0, 1.0]), cost=100),
    "small": Spectrum(torch.tensor([20.0, 6.0, 0.0]), cost=10),
}
# By energy for a stored number: small 2, wide 1, small 0.6, wide 0.1, wide 0.01.


@pytest.mark.parametrize(
    ("wanted", "ranks"),
    [
        (19.0, {"small": 1}),
        (21.0, {"wide": 1, "small": 1}),
        (121.0, {"wide": 1, "small": 2}),
        (136.0, {"wide": 2, "small": 2}),
        (1e9, {"wide": 3, "small": 2}),
    ],
)
def test_an_energy_is_bought_where_it_is_cheapest(wanted: float, ranks: dict[str, int]) -> None:
    assert ranks_for_energy(SPECTRA, wanted) == ranks


@pytest.mark.parametrize(
    ("budget", "ranks"),
    [(9, {}), (10, {"small": 1}), (119, {"wide": 1, "small": 1}), (120, {"wide": 1, "small": 2})],
)
def test_a_size_is_spent_to_its_limit(budget: int, ranks: dict[str, int]) -> None:
    def fits(chosen: object) -> bool:
        assert isinstance(chosen, dict)
        return sum(SPECTRA[name].cost * rank for name, rank in chosen.items()) <= budget

    assert ranks_for_size(SPECTRA, fits) == ranks


def test_kept_energy_adds_up_the_first_of_each() -> None:
    assert kept_energy(SPECTRA, {"wide": 2, "small": 1}) == 130.0


def test_a_guessed_tail_keeps_what_is_known_and_the_total() -> None:
    guessed = with_guessed_tail(torch.tensor([8.0, 4.0]), 18.0, torch.tensor([5.0, 5.0, 2.0, 1.0]))
    torch.testing.assert_close(guessed, torch.tensor([8.0, 4.0, 4.0, 2.0]))
