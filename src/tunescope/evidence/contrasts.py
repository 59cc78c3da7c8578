"""Contrasts: how much larger an effect is in a safety-tuned model than in its control, with interval and p-value.

Three designs, one for each thing that varies: prompts (one seed), seeds (several), draws of a random control.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

RESAMPLES = 1999
CONFIDENCE = 0.95

ByKind = Mapping[str, Float[np.ndarray, " n"]]
Weights = Mapping[str, float]
GroupsByKind = Mapping[str, Int[np.ndarray, " n"]]


@dataclass(frozen=True)
class Contrast:
    """An effect beyond its control.

    Attributes:
        low, high: 95 % interval; None where nothing that varies was seen more than once.
        p: one-sided, of no effect or one in the other direction; None likewise.
        over: what the interval speaks of: `prompts`, `groups` of them, `seeds` or `draws`. n: how many of them.
    """

    estimate: float
    low: float | None
    high: float | None
    p: float | None
    over: str
    n: int


def weighted(values: ByKind, weights: Weights) -> float:
    """Sum over kinds of weight times mean: {"unsafe": 1, "safe": -1} is by how much unsafe prompts score higher."""
    return float(sum(weight * values[kind].mean() for kind, weight in weights.items()))


def over_prompts(
    differences: ByKind,
    weights: Weights,
    rng: np.random.Generator,
    *,
    shares: bool = False,
    groups: GroupsByKind | None = None,
) -> Contrast:
    """From each prompt's score less its score in the control: bootstrap within each kind, and a permutation test.

    Prompts that were scored at several strengths, as `kind@strength`, are the same at each: what is resampled is a
    prompt's weighted sum over strengths. Two kinds without strengths: the differences are dealt out anew to the kinds,
    which without an effect have the same. Otherwise signs are flipped, which exchanges the model and its control.

    Args:
        shares: each difference is one of two answers of no and yes, in [-1, 1]. Two prompts more, one with either
            extreme, are resampled with them, so that an interval has width where all prompts agree (the adjustment of
            Bonett & Price 2012, Adjusted Wald confidence interval for a difference of binomial proportions, sec. 2).
        groups: of each prompt, where prompts of a group vary together; the same number is the same group in all kinds.
            Whole groups are then resampled, dealt out and flipped, and of groups there are two more with `shares`.

    Raises:
        ValueError: a kind with more prompts at one strength than at another.
    """
    estimate, sums = weighted(differences, weights), _sums(differences, weights)
    totals = _Totals.of(sums, groups) if groups is not None else None
    units, over = (totals.groups, "groups") if totals else (list(map(len, sums.values())), "prompts")
    n = totals.totals.shape[1] if totals else sum(units)
    if min(units) < 2:
        return Contrast(estimate, None, None, None, over, n)
    low = high = estimate
    varied = _sums({at: np.append(v, (-1.0, 1.0)) for at, v in differences.items()}, weights) if shares else sums
    if any(np.ptp(values) for values in varied.values()):
        if totals:
            resampled = (totals.with_extremes(weights) if shares else totals).resampled(rng)
        else:
            resampled = _resampled(varied, rng)
        low, high = _middle(resampled)
    if len(weights) == len(sums) == 2:
        plain, both = {kind: differences[kind] for kind in weights}, list(weights.values())
        if groups is None:
            p = _dealt_out(list(plain.values()), both, rng)
        else:
            p = _Totals.of(plain, groups).dealt_out(both, rng)
    else:
        p = _sign_flip(totals.of_groups() if totals else np.concatenate([x / len(x) for x in sums.values()]), rng)
    return Contrast(estimate, min(low, estimate), max(high, estimate), p, over, n)


def _sums(differences: ByKind, weights: Weights) -> dict[str, Float[np.ndarray, " _"]]:
    """By kind, each prompt's weighted sum over the strengths at which it was scored."""
    sums: dict[str, np.ndarray] = {}
    for at, weight in weights.items():
        kind, values = at.partition("@")[0], weight * differences[at]
        if kind in sums and len(sums[kind]) != len(values):
            raise ValueError(f"{at}: {len(values)} prompts, {len(sums[kind])} at other strengths")
        sums[kind] = sums[kind] + values if kind in sums else values
    return sums


@dataclass(frozen=True)
class _Totals:
    """By kind and group: the sum of its prompts' weighted values, and how many prompts it has."""

    totals: Float[np.ndarray, "kinds groups"]
    sizes: Float[np.ndarray, "kinds groups"]

    @classmethod
    def of(cls, sums: ByKind, groups: GroupsByKind) -> "_Totals":
        of_kind = {at.partition("@")[0]: numbers for at, numbers in groups.items()}
        names, number = np.unique(np.concatenate([of_kind[kind] for kind in sums]), return_inverse=True)
        ends = np.cumsum([len(values) for values in sums.values()])[:-1]
        places, n = np.split(number, ends), len(names)
        totals = [np.bincount(at, values, n) for at, values in zip(places, sums.values(), strict=True)]
        return cls(np.array(totals), np.array([np.bincount(at, minlength=n) for at in places], float))

    @property
    def groups(self) -> list[int]:
        """How many groups each kind has."""
        return [int(n) for n in (self.sizes > 0).sum(axis=1)]

    def with_extremes(self, weights: Weights) -> "_Totals":
        """With two groups more of each kind, of the usual size, in which all prompts are at one extreme."""
        reach: dict[str, float] = {}
        for at, weight in weights.items():
            reach[at.partition("@")[0]] = reach.get(at.partition("@")[0], 0.0) + weight
        usual = self.sizes.sum(axis=1) / self.groups
        both = np.kron(np.diag(usual), [[1.0, 1.0]])
        totals = np.kron(np.diag(usual * list(reach.values())), [[-1.0, 1.0]])
        return _Totals(np.hstack([self.totals, totals]), np.hstack([self.sizes, both]))

    def resampled(self, rng: np.random.Generator) -> Float[np.ndarray, " resamples"]:
        """The sum over kinds of means, in bootstrap samples of groups that have prompts of all kinds."""
        n = self.totals.shape[1]
        times = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)
        of_kind, sizes = times @ self.totals.T, times @ self.sizes.T
        whole = (sizes > 0).all(axis=1)
        return np.asarray((of_kind[whole] / sizes[whole]).sum(axis=1))

    def of_groups(self) -> Float[np.ndarray, " groups"]:
        """What each group adds to the sum over kinds of means."""
        return np.asarray((self.totals / self.sizes.sum(axis=1, keepdims=True)).sum(axis=0))

    def dealt_out(self, weights: Sequence[float], rng: np.random.Generator) -> float:
        """p of the weighted sum of two kinds' means: groups of one kind are dealt out anew to the kinds.

        In groups that have prompts of both kinds, the two exchange theirs.
        """
        mixed = (self.sizes > 0).all(axis=0)
        second = np.tile(self.sizes[1, ~mixed] > 0, (RESAMPLES, 1))
        turned = rng.random((RESAMPLES, int(mixed.sum()))) < 0.5

        def anew(values: Float[np.ndarray, "2 groups"]) -> list[Float[np.ndarray, " resamples"]]:
            alone = values[:, ~mixed].sum(axis=0)
            into = dealt @ alone + np.where(turned, values[0, mixed], values[1, mixed]).sum(axis=1)
            return [values.sum() - into, into]

        dealt = rng.permuted(second, axis=1)
        of_kinds = zip(weights, anew(self.totals), anew(self.sizes), strict=True)
        found = sum(weight * total / size for weight, total, size in of_kinds)
        own = sum(weights * self.totals.sum(axis=1) / self.sizes.sum(axis=1))
        return (1 + int((found >= own - 1e-12 * np.abs(self.totals).sum()).sum())) / (1 + RESAMPLES)


def over_seeds(per_seed: Sequence[Contrast], rng: np.random.Generator) -> Contrast:
    """From the contrast of each seed: Student's interval of their mean, and p by sign flips of whole seeds or prompts.

    A bootstrap of a handful of seeds would be too narrow. Where seeds happen to agree better than their own intervals
    allow, it is these that the mean's is made of. Where each seed has a p-value of its own they are combined (Fisher),
    else seeds are flipped.
    """
    estimates = np.array([c.estimate for c in per_seed])
    n, mean = len(estimates), float(estimates.mean())
    if n == 1:
        return per_seed[0]
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * estimates.std(ddof=1) / n**0.5)
    known = [c.p for c in per_seed if c.p is not None]
    p = float(stats.combine_pvalues(known).pvalue) if len(known) == n else _sign_flip(estimates / n, rng)
    below = _norm(c.estimate - c.low for c in per_seed if c.low is not None) / n
    above = _norm(c.high - c.estimate for c in per_seed if c.high is not None) / n
    return Contrast(mean, mean - max(half, below), mean + max(half, above), p, "seeds", n)


def over_draws(observed: float, draws: Float[np.ndarray, " n"]) -> Contrast:
    """From random draws of a control: how far the observed value is from them, and how many reach it."""
    beyond = observed - draws
    low, high = _middle(beyond)
    p = (1 + int((draws >= observed).sum())) / (1 + len(draws))
    return Contrast(float(beyond.mean()), low, high, p, "draws", len(draws))


def over_prompts_and_draws(
    observed: ByKind,
    draws: Mapping[str, Float[np.ndarray, " draws"]],
    weights: Weights,
    rng: np.random.Generator,
    groups: GroupsByKind | None = None,
) -> Contrast:
    """How far prompts' scores are from those under random draws of a control, of which both vary.

    Args:
        draws: by kind, the mean score of its prompts under each draw; draws are the same for all kinds.
        groups: as in `over_prompts`.
    """
    drawn = np.asarray(sum(weight * draws[kind] for kind, weight in weights.items()))
    estimate = weighted(observed, weights)
    sums = _sums(observed, weights)
    resampled = _Totals.of(sums, groups).resampled(rng) if groups is not None else _resampled(sums, rng)
    beyond = resampled - rng.choice(drawn, len(resampled))
    low, high = _middle(beyond)
    p = (1 + int((drawn >= estimate).sum())) / (1 + len(drawn))
    return Contrast(estimate - float(drawn.mean()), low, high, p, "draws", len(drawn))


def once(difference: float) -> Contrast:
    """A difference of two numbers of which there is one each: no interval can be had."""
    return Contrast(difference, None, None, None, "seeds", 1)


def _norm(values: Iterable[float]) -> float:
    return sum(value**2 for value in values) ** 0.5


def _middle(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The ends of the middle 95 %."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _resampled(sums: ByKind, rng: np.random.Generator) -> Float[np.ndarray, " resamples"]:
    """The sum over kinds of means, in bootstrap samples of the prompts of each."""
    found = np.zeros(())
    for values in sums.values():
        result = stats.bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, method="percentile", batch=100, rng=rng, vectorized=True
        )
        found = found + np.asarray(result.bootstrap_distribution)
    return found


def _sign_flip(values: Float[np.ndarray, " n"], rng: np.random.Generator) -> float:
    return _permuted((values,), np.sum, "samples", rng) if values.any() else 1.0


def _dealt_out(kinds: Sequence[Float[np.ndarray, " _"]], weights: Sequence[float], rng: np.random.Generator) -> float:
    def statistic(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(weights[0] * a.mean(axis=axis) + weights[1] * b.mean(axis=axis))

    return _permuted(tuple(kinds), statistic, "independent", rng) if np.ptp(np.concatenate(kinds)) else 1.0


def _permuted(
    data: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray], kind: str, rng: np.random.Generator
) -> float:
    test = stats.permutation_test(
        data,
        statistic,
        permutation_type=kind,
        n_resamples=RESAMPLES,
        batch=100,
        alternative="greater",
        rng=rng,
        vectorized=True,
    )
    return float(test.pvalue)
