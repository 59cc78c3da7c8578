"""Spectra of large matrices without their singular vectors: through Gram matrices, which are as small as a side.

Squaring costs accuracy: singular values are right to about 1e-8 of the largest one (the root of float64's precision),
so that below it they are noise; `torch.linalg.svdvals` has no such floor and takes longer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tunescope.probes.subspaces import GRAM_FLOOR, RANK_THRESHOLD, effective_rank

BLOCK, PART = 1024, 512  # rows that are in float64 at a time, and columns of a Gram matrix


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a change dW, descending, in float64, and where its energy lies.

    Attributes:
        null_shares: by threshold, the share of the squared Frobenius norm in N(W^T) and the rank of W; empty where W is
            not taller than wide.
    """

    values: Float[Tensor, " k"]
    null_shares: Mapping[float, tuple[float, int]]

    @property
    def null_share(self) -> float:
        """At the threshold that everything else takes; 0 where W is not taller than wide."""
        return self.null_shares.get(RANK_THRESHOLD, (0.0, 0))[0]

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over squared spectral norm; 0 for no change."""
        return (self.values.square().sum() / self.values[0].square()).item() if self.values.any() else 0.0

    @property
    def effective_rank(self) -> float:
        """See `subspaces.effective_rank`."""
        return effective_rank(self.values)


def spectrum(
    w: Float[Tensor, "out in"],
    delta: Float[Tensor, "out in"],
    thresholds: Sequence[float] = (RANK_THRESHOLD,),
    *,
    exact: bool = False,
) -> Spectrum:
    """Singular values of dW, and its share in the left null space of W.

    Args:
        thresholds: singular values of W above such a share of the largest count as its rank.
        exact: by singular value decomposition, not through the Gram matrix.
    """
    tall = len(w) > w.shape[1]
    if exact:
        values = torch.linalg.svdvals(delta.double())
    else:
        values = torch.linalg.eigvalsh(gram(delta)).flip(0).clamp(min=0).sqrt()
        values = torch.where(values > GRAM_FLOOR * values[0], values, 0.0)
    if not tall:
        return Spectrum(values, {})
    energies, v = torch.linalg.eigh(gram(w))
    written = (v.mT @ product(w, delta)).square().sum(1)  # energy along each left singular vector of W, times its own
    whole, shares = values.square().sum(), {}
    for threshold in thresholds:
        kept = energies > threshold**2 * energies[-1]
        inside = (written[kept] / energies[kept]).sum()
        share = (1 - inside / whole).clamp(0, 1).item() if whole > 0 else 0.0
        shares[threshold] = (share, int(kept.sum()))
    return Spectrum(values, shares)


def gram(a: Float[Tensor, "out in"]) -> Float[Tensor, "k k"]:
    """a^T a, or a a^T where that is the smaller, in float64: blocks of rows in turn, and one of two equal halves."""
    if len(a) < a.shape[1]:
        a = a.mT
    total = torch.zeros(a.shape[1], a.shape[1], dtype=torch.float64, device=a.device)
    parts = [slice(start, start + PART) for start in range(0, a.shape[1], PART)]
    for start in range(0, len(a), BLOCK):
        block = a[start : start + BLOCK].double()
        for across in parts:
            total[across, : across.stop].addmm_(block[:, across].mT, block[:, : across.stop])
    return total.tril() + total.tril(-1).mT


def product(a: Float[Tensor, "out in"], b: Float[Tensor, "out in"]) -> Float[Tensor, "in in"]:
    """a^T b in float64, blocks of rows in turn."""
    total = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64, device=a.device)
    for rows in (slice(start, start + BLOCK) for start in range(0, len(a), BLOCK)):
        total.addmm_(a[rows].double().mT, b[rows].double())
    return total


def gaussian_effective_rank(out: int, into: int) -> float:
    """Effective rank of a large matrix of independent normal entries: the control, from Marchenko & Pastur's law."""
    short, ratio = min(out, into), min(out, into) / max(out, into)
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    # x = low + (high - low) sin^2: the density's square roots at both ends are gone.
    angle = (np.arange(4096) + 0.5) / 4096 * np.pi / 2
    x = low + (high - low) * np.sin(angle) ** 2
    density = np.sqrt((high - x) * (x - low)) / x * np.sin(2 * angle)
    shares = np.cumsum(density) / density.sum()
    at = np.interp((np.arange(short) + 0.5) / short, shares, x)
    return effective_rank(torch.from_numpy(np.sqrt(at)))
