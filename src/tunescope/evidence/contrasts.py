"""Contrasts: how large an effect is beyond its control, within a run and over runs.

Within a run prompts vary, or random draws. Between runs everything does: weights, data, and the world. What is said of
runs to come is said from runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from tunescope.records.intervals import Groups

CONFIDENCE = 0.95
FEWEST_RUNS = 3  # from which on there are verdicts

ByKind = Mapping[str, Float[np.ndarray, " n"]]
Weights = Mapping[str, float]
GroupsByKind = Mapping[str, Groups]


@dataclass(frozen=True)
class Contrast:
    """An effect beyond its control, in one run.

    Attributes:
        error: standard error over what varies within the run; None where it was seen once.
        over: what that is: `prompts`, `groups` of them, random `draws`, or `values` of something else. n: how many.
    """

    estimate: float
    error: float | None
    over: str
    n: int


class Interval(NamedTuple):
    """A mean over runs, its standard error and 95 % interval, and the one-sided p of no effect; None: there is none."""

    estimate: float
    error: float | None
    low: float | None
    high: float | None
    p: float | None


def weighted(values: ByKind, weights: Weights) -> float:
    """Sum over kinds of weight times mean: {"unsafe": 1, "safe": -1} is by how much unsafe prompts score higher."""
    return float(sum(weight * values[kind].mean() for kind, weight in weights.items()))


def over_prompts(
    values: ByKind, weights: Weights, *, shares: bool = False, groups: GroupsByKind | None = None
) -> Contrast:
    """The weighted sum of the kinds' means, with its standard error over prompts.

    Prompts that were scored at several strengths, as `kind@strength`, are the same at each: what varies is a prompt's
    weighted sum over strengths.

    Args:
        shares: each value is a difference of two answers of no and yes, in [-1, 1]. Two prompts more, one with either
            extreme, count for the error, so that there is one where all prompts agree (the adjustment of Bonett & Price
            2012, Adjusted Wald confidence interval for a difference of binomial proportions, sec. 2).
        groups: of each prompt, where prompts of a group vary together; the same number is the same group in all kinds.
            Where a kind has none, each of its prompts is one. The error is over groups (Liang & Zeger 1986,
            cluster-robust).

    Raises:
        ValueError: a kind with more prompts at one strength than at another.
    """
    estimate = weighted(values, weights)
    varied = {at: np.append(v, (-1.0, 1.0)) for at, v in values.items()} if shares else values
    sums = _sums(varied, weights)
    if min(map(len, sums.values())) - 2 * shares < 2:
        return Contrast(estimate, None, "prompts", 1)
    by_kind = {at.partition("@")[0]: of for at, of in (groups or {}).items()}
    if not any(of is not None for of in by_kind.values()):
        error = sum(v.var(ddof=1) / len(v) for v in sums.values()) ** 0.5
        return Contrast(estimate, float(error), "prompts", sum(len(v) for v in sums.values()) - 2 * shares * len(sums))
    beyond: dict[object, float] = {}
    for kind, v in sums.items():
        of = by_kind.get(kind)
        numbers: list[object] = [] if of is None else of.tolist()
        numbers += [(kind, i) for i in range(len(numbers), len(v))]  # of no group, and the extremes: each its own
        for group, one in zip(numbers, v - v.mean(), strict=True):
            beyond[group] = beyond.get(group, 0.0) + one / len(v)
    n = len(beyond)
    error = (n / (n - 1) * sum(each**2 for each in beyond.values())) ** 0.5
    return Contrast(estimate, float(error), "groups", n - 2 * shares * len(sums))


def over_runs(runs: Sequence[Contrast], bound: float | None = None) -> Interval:
    """From the contrast of each run: Student's interval of their mean, and p of Student's test, one-sided.

    A bootstrap of a handful of runs would be too narrow. Where runs happen to agree better than their own errors allow,
    the mean's error is made of these. Of one run, the normal interval from its own error: it speaks of this run alone.

    Args:
        bound: largest size that an effect can have; the interval is cut there.
    """
    estimates, n = np.array([run.estimate for run in runs]), len(runs)
    mean = float(estimates.mean())
    known = [run.error for run in runs if run.error is not None]
    within = sum(error**2 for error in known) ** 0.5 / n
    if n == 1:
        error, quantile, p = within, float(stats.norm.ppf((1 + CONFIDENCE) / 2)), None
        if not known:
            return Interval(mean, None, None, None, None)
    else:
        error = max(within, float(estimates.std(ddof=1)) / n**0.5)
        quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
        p = float(stats.t.sf(mean / error, n - 1)) if error else float(mean <= 0)
    low, high = mean - quantile * error, mean + quantile * error
    if bound is not None:
        low, high = max(low, min(-bound, mean)), min(high, max(bound, mean))
    return Interval(mean, error, low, high, p)


def _sums(differences: ByKind, weights: Weights) -> dict[str, Float[np.ndarray, " _"]]:
    """By kind, each prompt's weighted sum over the strengths at which it was scored."""
    sums: dict[str, np.ndarray] = {}
    for at, weight in weights.items():
        kind, values = at.partition("@")[0], weight * differences[at]
        if kind in sums and len(sums[kind]) != len(values):
            raise ValueError(f"{at}: {len(values)} prompts, {len(sums[kind])} at other strengths")
        sums[kind] = sums[kind] + values if kind in sums else values
    return sums
