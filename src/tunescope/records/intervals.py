"""95 % intervals of what is measured on prompts. Where prompts come in groups, it is groups that vary.

Every estimate here is, near enough, a mean of one influence per prompt: their sum within a group is what one group adds
(Liang & Zeger 1986). Prompts without groups are each a group of their own.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest, norm
from torch import Tensor

NORMAL_95 = 1.96  # half width of a 95 % interval, in standard errors

PerPrompt = Float[Tensor, " n"]
Groups = Int[np.ndarray, " n"] | None
GroupsOfTwo = Int[np.ndarray, " n_and_m"] | None  # of a first sample, then of a second


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; None where there is none. n: how many prompts, or 1."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 1


def share(hits: Bool[Tensor, " n"] | PerPrompt, groups: Groups = None) -> Estimate:
    """Share of prompts with its Wilson score interval (Wilson 1927); of prompts hit in part the sum is rounded.

    With groups the interval is that of as many independent prompts as would vary as much (Korn & Graubard 1998).
    """
    n = len(hits)
    value = round(hits.double().sum().item()) / n
    low, high = wilson(value, effective_number(hits, groups))
    return Estimate(value, low, high, n)


def effective_number(hits: Bool[Tensor, " n"] | PerPrompt, groups: Groups = None) -> float:
    """How many independent prompts the share of hits would vary as much with; as many as groups where it cannot."""
    values, n = hits.double(), len(hits)
    value = round(values.sum().item()) / n
    if groups is None:
        return float(n)
    if 0 < value < 1 and (spread := clustered_error((values - value) / n, groups)) > 0:
        return min(n, value * (1 - value) / spread**2)
    return len(np.unique(groups))


def wilson(value: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share of n prompts; n may be an effective, fractional number."""
    if float(n).is_integer() and float(value * n).is_integer():
        ends = binomtest(round(value * n), round(n)).proportion_ci(confidence, method="wilson")
        return float(ends.low), float(ends.high)
    z = float(norm.ppf((1 + confidence) / 2))
    middle, half = value + z * z / (2 * n), z * (value * (1 - value) / n + z * z / (4 * n * n)) ** 0.5
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def mean(values: PerPrompt, groups: Groups = None) -> Estimate:
    """Mean over prompts with its normal interval."""
    n, middle = len(values), values.mean().item()
    half = NORMAL_95 * clustered_error((values.double() - values.double().mean()) / n, groups)
    return Estimate(middle, *_ends(middle - half, middle + half), n)


def auc(low: PerPrompt, high: Float[Tensor, " m"], groups: GroupsOfTwo = None) -> Estimate:
    """How often a draw of `high` exceeds one of `low`, ties counting half, with its interval (DeLong et al. 1988).

    Args:
        groups: of the prompts of `low`, then of those of `high`.
    """
    of_low, of_high = placements(low, high)
    value = of_high.mean().item()
    influences = torch.cat([(of_low - of_low.mean()) / len(low), (of_high - of_high.mean()) / len(high)])
    half = NORMAL_95 * _error_of_two(influences, len(low), groups)
    return Estimate(value, *_ends(value - half, value + half, 0.0, 1.0), len(low) + len(high))


def log_ratio(below: PerPrompt, above: Float[Tensor, " m"], groups: GroupsOfTwo = None) -> Estimate:
    """Ratio of geometric means with its interval (normal, of the logarithm), from logarithms of both.

    Args:
        groups: of the prompts of `below`, then of those of `above`.
    """
    influences = torch.cat([-(below - below.mean()) / len(below), (above - above.mean()) / len(above)])
    middle = (above.mean() - below.mean()).item()
    half = NORMAL_95 * _error_of_two(influences, len(below), groups)
    value, low, high = np.exp([middle, middle - half, middle + half]).tolist()
    return Estimate(value, *_ends(low, high), len(below) + len(above))


def placements(low: PerPrompt, high: Float[Tensor, " m"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " m"]]:
    """For each draw of `low` the share of `high` above it, for each of `high` the share of `low` below it."""
    order = low.sort().values
    above = torch.searchsorted(order, high, side="left") + torch.searchsorted(order, high, side="right")
    order = high.sort().values
    below = torch.searchsorted(order, low, side="left") + torch.searchsorted(order, low, side="right")
    return 1 - below.double() / (2 * len(high)), above.double() / (2 * len(low))


def clustered_error(influences: PerPrompt, groups: Groups = None) -> float:
    """Standard error of a sum of influences that are independent between groups alone; NaN of one group."""
    sums = influences.double()
    if groups is not None:
        number = torch.from_numpy(np.unique(groups, return_inverse=True)[1]).to(sums.device)
        sums = sums.new_zeros(int(number.max()) + 1).index_add_(0, number, sums)
    n = len(sums)
    return (sums.square().sum() * n / (n - 1)).sqrt().item() if n > 1 else math.nan


def _ends(
    low: float, high: float, least: float = -math.inf, most: float = math.inf
) -> tuple[float | None, float | None]:
    """An interval within bounds; none where nothing was seen to vary."""
    return (None, None) if math.isnan(low) else (max(least, low), min(most, high))


def _error_of_two(influences: PerPrompt, first: int, groups: Groups) -> float:
    """Of two samples, the first of so many: each its own where there are no groups."""
    if groups is not None:
        return clustered_error(influences, groups)
    return float(np.hypot(clustered_error(influences[:first]), clustered_error(influences[first:])))
