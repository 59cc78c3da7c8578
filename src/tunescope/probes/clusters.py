"""Clusters: do safe and unsafe prompts form separate groups of activations? (Jain et al. 2024, observation 1)

Activations are [n, width], one row per prompt.
"""

import torch
from jaxtyping import Float
from sklearn.metrics import silhouette_score
from torch import Tensor


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
