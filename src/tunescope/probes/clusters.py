"""Clusters: do safe and unsafe prompts form separate groups of activations? (Jain et al. 2024, observation 1)

Activations are [n, width], one row per prompt. Means and covariances are running sums in float64, so that memory does
not grow with the number of prompts.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from sklearn.metrics import silhouette_score
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Running sums of one cluster: number of prompts, sum [width] and sum of outer products [width, width]."""

    n: int
    total: Float[Tensor, " width"]
    outer: Float[Tensor, "width width"]

    @classmethod
    def of(cls, activations: Float[Tensor, "n width"]) -> "Moments":
        a = activations.double()
        return cls(len(a), a.sum(0), a.mT @ a)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.n + other.n, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Float[Tensor, " width"]:
        return self.total / self.n

    def top_share(self) -> float:
        """Share of the largest in the sum of the singular values of the centred cluster; 0 if it is one point."""
        covariance = self.outer / self.n - torch.outer(self.mean, self.mean)
        values = torch.linalg.eigvalsh(covariance).clamp(min=0).sqrt()
        noise = torch.finfo(torch.float64).eps ** 0.5 * self.outer.diagonal().sum().div(self.n).sqrt()
        return (values[-1] / values.sum()).item() if values[-1] > noise else 0.0


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


def within_class_sd(safe: Float[Tensor, " n"], unsafe: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """Standard deviation within a class: the root of the mean of both variances."""
    return ((safe.var() + unsafe.var()) / 2).sqrt()


def in_units_of(values: Float[Tensor, " n"], deviation: Float[Tensor, ""]) -> Float[Tensor, " n"]:
    """Values in units of a standard deviation; 0 where there is none."""
    return values / deviation if deviation > 0 else torch.zeros_like(values)


def auc(low: Float[Tensor, " n"], high: Float[Tensor, " m"]) -> tuple[float, float]:
    """Probability that a draw of `high` exceeds one of `low`, ties counting half, and its standard error.

    The error is that of DeLong et al. 1988; it needs two draws of each.
    """
    order = low.sort().values
    above = torch.searchsorted(order, high, side="left") + torch.searchsorted(order, high, side="right")
    order = high.sort().values
    below = torch.searchsorted(order, low, side="left") + torch.searchsorted(order, low, side="right")
    of_high, of_low = above.double() / (2 * len(low)), 1 - below.double() / (2 * len(high))
    error = (of_high.var() / len(high) + of_low.var() / len(low)).sqrt()
    return of_high.mean().item(), error.item()


def silhouette(first: Float[Tensor, "n width"], second: Float[Tensor, "m width"]) -> float:
    """Mean silhouette of two labelled clusters (Rousseeuw 1987), in [-1, 1]; 0 if all points are one."""
    points = torch.cat([first, second]).double().cpu().numpy()
    if (points == points[0]).all():
        return 0.0
    return float(silhouette_score(points, [0] * len(first) + [1] * len(second)))
