"""The best product of two thin matrices for a given one, and how to share ranks between many; knows no model, no file.

Letters as in Halko, Martinsson, Tropp (2011), https://arxiv.org/abs/0909.4061: D (m, n) is the matrix, Q an orthonormal
basis, r the rank, q = r + oversampling the size of the block; D = U diag(s) V^T with s falling. The product is B A with
B (m, r) and A (r, n). Everything given is float32 and, for the same D on the same device, the same at every call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

OVERSAMPLING = 8
ITERATIONS = 3
"""With both, at rank 32 the residual is 1.001 of the best one for a spectrum of i^-0.3, 1.004 for noise alone."""

_LARGEST_BLOCK_RANK = 64  # above it the block costs what the exact decomposition costs
_FLOAT32_ENERGY = 1e-5  # s_i^2 / s_1^2 below which the eigenvectors of D D^T in float32 begin to be noise
_SEED = 0

Key = TypeVar("Key")  # of a matrix among many


@dataclass(frozen=True)
class LowRank:
    """D cut down to rank r, or less: the first k columns of U and rows of V^T are the best cut to k.

    Args:
        U: (m, r), the left singular vectors.
        s: (r,), the singular values, falling.
        Vh: (r, n), the right singular vectors; a row is zero where its singular value is.
        energies: s_i^2 of all min(m, n) singular values where they came for free, else None.
    """

    U: Tensor
    s: Tensor
    Vh: Tensor
    energies: Tensor | None

    def balanced(self) -> tuple[Tensor, Tensor]:
        """B = U sqrt(s) and A = sqrt(s) V^T: factors of one size, which float16 holds without subnormal numbers."""
        root = self.s.sqrt()
        return self.U * root, root[:, None] * self.Vh

    def clamped(self, quantile: float) -> tuple[Tensor, Tensor]:
        """B = U s and A = V^T, both cut to +-x with x the `quantile` of all their entries, as older tools do.

        Signed entries count, so about 2 (1 - quantile) of them are cut. It makes the residual larger.
        """
        B, A = self.U * self.s, self.Vh
        limit = _quantile(torch.cat((B.flatten(), A.flatten())), quantile)
        return B.clamp(-limit, limit), A.clamp(-limit, limit)


def cut_to_rank(D: Tensor, r: int) -> LowRank:
    """The best approximation of D by a matrix of rank r, or of rank min(m, n) where that is less.

    Small ranks come from a block power iteration with a fixed seed (algorithm 4.4 and 5.1 of the paper, but that the
    last two blocks make the basis), whose residual is within 1.005 of the best; larger ones exactly, from the
    eigenvectors of D D^T.

    Args:
        D: (m, n), float32, finite.
        r: at least 1.
    """
    if D.shape[0] > D.shape[1]:  # both ways below work on the shorter side
        flipped = cut_to_rank(D.T, r)
        return LowRank(flipped.Vh.T, flipped.s, flipped.U.T, flipped.energies)
    m, r = D.shape[0], min(r, D.shape[0])
    q = r + OVERSAMPLING
    if r <= _LARGEST_BLOCK_RANK and q <= m // 4:
        return _project(D, _block_basis(D, q), r, None)
    eigenvalues, eigenvectors = torch.linalg.eigh(D @ D.T)
    if eigenvalues[-r] < _FLOAT32_ENERGY * eigenvalues[-1]:  # a steep spectrum, once more at twice the cost
        eigenvalues, eigenvectors = (tensor.float() for tensor in torch.linalg.eigh(D.double() @ D.T.double()))
    return _project(D, eigenvectors[:, -r:].flip(1), r, eigenvalues.flip(0).clamp(min=0.0))


def all_energies(D: Tensor) -> Tensor:
    """s_i^2 of all min(m, n) singular values of D, falling; their sum is ||D||^2.

    They are the eigenvalues of D D^T or D^T D. Squaring costs precision: below 1e-6 of the largest they are noise.
    """
    gram = D @ D.T if D.shape[0] <= D.shape[1] else D.T @ D
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.flip(0).clamp(min=0.0)


def _block_basis(D: Tensor, q: int) -> Tensor:
    """Q (m, 2 q), which spans nearly what the first singular vectors span."""
    generator = torch.Generator().manual_seed(_SEED)  # of the CPU, so that every device starts from the same numbers
    start = torch.randn(D.shape[1], q, generator=generator).to(D.device)
    Q: Tensor = torch.linalg.qr(D @ start).Q
    last = Q
    for _ in range(ITERATIONS):
        last, Q = Q, torch.linalg.qr(D @ (D.T @ Q)).Q
    # The last two together cost less than one more iteration and keep more than two more.
    both: Tensor = torch.linalg.qr(torch.cat((last, Q), dim=1)).Q
    return both


def _project(D: Tensor, Q: Tensor, r: int, energies: Tensor | None) -> LowRank:
    """The best cut of D to r directions in the span of Q.

    s comes from the rows of U^T D and not from the eigenvalues, so that U s V^T is the projection U U^T D also where
    the squares are lost in rounding, and the energy kept is the sum of s^2. The squares are float64, 1 % of the cost:
    in float32 a spectrum over 4 decades loses its lower end, and the residual doubles.
    """
    W = Q.T @ D  # (columns of Q, n)
    P = torch.linalg.eigh(W.double() @ W.T.double()).eigenvectors[:, -r:].flip(1).float()
    W = P.T @ W
    s = W.norm(dim=1)
    s, order = s.sort(descending=True, stable=True)
    Vh = W[order] / torch.where(s > 0, s, 1.0)[:, None]
    return LowRank((Q @ P)[:, order], s, Vh, energies)


def _quantile(values: Tensor, quantile: float) -> float:
    """As torch.quantile, which refuses more than 16 million values."""
    ordered = values.sort().values
    place = quantile * (len(ordered) - 1)
    low, high = ordered[int(place)].item(), ordered[min(int(place) + 1, len(ordered) - 1)].item()
    return low + (high - low) * (place - int(place))


# ---- ranks for many matrices


@dataclass(frozen=True)
class Spectrum:
    """What the cut of one matrix to any rank keeps and costs.

    Args:
        energies: s_i^2, falling, on the CPU.
        cost: stored numbers for each rank, m + n for two factors.
    """

    energies: Tensor
    cost: int


def kept_energy(spectra: Mapping[Key, Spectrum], ranks: Mapping[Key, int]) -> float:
    """The sum of s_i^2 that `ranks` keep of all."""
    return sum(float(spectra[name].energies[:rank].sum(dtype=torch.float64)) for name, rank in ranks.items())


def ranks_for_energy(spectra: Mapping[Key, Spectrum], wanted: float) -> dict[Key, int]:
    """The ranks that keep the sum of s_i^2 `wanted`, spent where a stored number keeps most; see `_by_density`."""
    order = _by_density(spectra)
    kept = order.energies.cumsum(0)
    # One more than those that stay below; what is wanted beyond everything there is takes all.
    count = min(int((kept < wanted).sum()) + 1, len(kept))
    return order.ranks(count)


def ranks_for_size(spectra: Mapping[Key, Spectrum], fits: Callable[[Mapping[Key, int]], bool]) -> dict[Key, int]:
    """The most ranks, spent where a stored number keeps most, of which `fits` is true; none where one is too many."""
    order = _by_density(spectra)
    low, high = 0, len(order.energies)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(order.ranks(middle)) else (low, middle - 1)
    return order.ranks(low)


@dataclass(frozen=True)
class _Order(Generic[Key]):
    """All (matrix, i) of some spectra, those that keep most by stored number first.

    Args:
        names: of the matrices.
        owners: for each place the index of its matrix.
        energies: for each place its s_i^2, float64.
    """

    names: Sequence[Key]
    owners: Tensor
    energies: Tensor

    def ranks(self, count: int) -> dict[Key, int]:
        """The ranks that the first `count` places are; a matrix without any is left out."""
        counts = torch.bincount(self.owners[:count], minlength=len(self.names)).tolist()
        return {name: rank for name, rank in zip(self.names, counts, strict=True) if rank}


def _by_density(spectra: Mapping[Key, Spectrum]) -> "_Order[Key]":
    """The order by s_i^2 / (m + n): greedy, and best for every budget that ends between two places.

    Within a matrix s_i^2 falls, so the first places of an order are the first ranks of each matrix.
    """
    energies = torch.cat([spectrum.energies.double() for spectrum in spectra.values()])
    costs = torch.cat([torch.full((len(one.energies),), float(one.cost)) for one in spectra.values()])
    owners = torch.cat([torch.full((len(one.energies),), index) for index, one in enumerate(spectra.values())])
    order = (energies / costs).argsort(descending=True, stable=True)
    order = order[energies[order] > 0]
    return _Order(list(spectra), owners[order], energies[order])


def with_guessed_tail(known: Tensor, total: float, pattern: Tensor) -> Tensor:
    """All s_i^2 of a matrix whose first ones and ||D||^2 are known, the rest shaped like another matrix's.

    Args:
        known: (k,), its first s_i^2.
        total: its ||D||^2.
        pattern: (min(m, n),), all s_i^2 of a matrix of the same kind and as many.
    """
    tail = pattern[len(known) :].double()
    rest = max(total - float(known.sum(dtype=torch.float64)), 0.0)
    scale = rest / max(float(tail.sum()), torch.finfo(torch.float64).tiny)
    return torch.cat((known, (tail * scale).float()))
