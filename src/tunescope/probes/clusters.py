"""Clusters: do safe and unsafe prompts form separate groups of activations? (Jain et al. 2024, observation 1)

Activations are [n, width], one row per prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from sklearn.metrics import silhouette_score
from torch import Tensor

from tunescope.records import intervals


def top_share(points: Float[Tensor, "n width"]) -> float:
    """Share of the largest in the sum of the singular values of the centred cluster; 0 if it is one point."""
    points = points.double()
    values = torch.linalg.svdvals(points - points.mean(0))
    noise = torch.finfo(torch.float64).eps ** 0.5 * points.norm()
    return (values[0] / values.sum()).item() if values[0] > noise else 0.0


def tau(
    activations: Float[Tensor, "n width"], safe_mean: Float[Tensor, " width"], unsafe_mean: Float[Tensor, " width"]
) -> Float[Tensor, " n"]:
    """|a - mean of the unsafe| - |a - mean of the safe|: positive nearer the safe cluster (Jain et al. 2024, eq. 1)."""
    a = activations.to(safe_mean.dtype)
    return (a - unsafe_mean).norm(dim=1) - (a - safe_mean).norm(dim=1)


def tau_of_draws(
    activations: Float[Tensor, "n width"],
    safe_means: Float[Tensor, "draws width"],
    unsafe_means: Float[Tensor, "draws width"],
) -> Float[Tensor, "draws n"]:
    """tau for each of several pairs of means."""
    a = activations.to(safe_means.dtype)
    return torch.cdist(unsafe_means, a) - torch.cdist(safe_means, a)


def auc_of_draws(low: Float[Tensor, "draws n"], high: Float[Tensor, "draws m"]) -> list[float]:
    """For each draw, how often one of `high` exceeds one of `low`."""
    return [intervals.placements(*pair)[1].mean().item() for pair in zip(low, high, strict=True)]


def within_class_sd(safe: Float[Tensor, " n"], unsafe: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """Standard deviation within a class: the root of the mean of both variances."""
    return ((safe.var() + unsafe.var()) / 2).sqrt()


def in_units_of(values: Float[Tensor, " n"], deviation: Float[Tensor, ""]) -> Float[Tensor, " n"]:
    """Values in units of a standard deviation; 0 where there is none."""
    return values / deviation if deviation > 0 else torch.zeros_like(values)


@dataclass(frozen=True)
class Classes:
    """The classes of safe and unsafe prompts at one site.

    Attributes:
        safe, unsafe: means. spread: standard deviation of tau within a class.
    """

    safe: Float[Tensor, " width"]
    unsafe: Float[Tensor, " width"]
    spread: Float[Tensor, ""]

    @classmethod
    def of(cls, fit: Sequence[Float[Tensor, "_ width"]], score: Sequence[Float[Tensor, "_ width"]]) -> "Classes":
        """From activations of safe and unsafe prompts: those that give the means, and those that give the spread."""
        safe, unsafe = (a.mean(0) for a in fit)
        return cls(safe, unsafe, within_class_sd(*(tau(a, safe, unsafe) for a in score)))

    def tau(self, activations: Float[Tensor, "n width"]) -> Float[Tensor, " n"]:
        """In units of the spread."""
        return in_units_of(tau(activations.to(self.safe.device), self.safe, self.unsafe), self.spread)


def silhouette(first: Float[Tensor, "n width"], second: Float[Tensor, "m width"]) -> float:
    """Mean silhouette of two labelled clusters (Rousseeuw 1987), in [-1, 1]; 0 if all points are one."""
    points = torch.cat([first, second]).double().cpu().numpy()
    if (points == points[0]).all():
        return 0.0
    return float(silhouette_score(points, [0] * len(first) + [1] * len(second)))
