"""Contrasts: how much larger an effect is in a safety-tuned model than in its control, with interval and p-value.

Three designs, one for each thing that varies: prompts (one seed), seeds (several), draws of a random control.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

RESAMPLES = 1999
CONFIDENCE = 0.95

ByKind = Mapping[str, Float[np.ndarray, " n"]]
Weights = Mapping[str, float]


@dataclass(frozen=True)
class Contrast:
    """An effect beyond its control.

    Attributes:
        low, high: 95 % interval; None where nothing that varies was seen more than once.
        p: one-sided, of no effect or one in the other direction; None likewise.
        over: what the interval speaks of: `prompts`, `seeds` or `draws`. n: how many of them.
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


def over_prompts(differences: ByKind, weights: Weights, rng: np.random.Generator, *, shares: bool = False) -> Contrast:
    """From each prompt's score less its score in the control: bootstrap within each kind, and a permutation test.

    Prompts that were scored at several strengths, as `kind@strength`, are the same at each: what is resampled is a
    prompt's weighted sum over strengths. Two kinds without strengths: the differences are dealt out anew to the kinds,
    which without an effect have the same. Otherwise signs are flipped, which exchanges the model and its control.

    Args:
        shares: each difference is one of two answers of no and yes, in [-1, 1]. Two prompts more, one with either
            extreme, are resampled with them, so that an interval has width where all prompts agree (the adjustment of
            Bonett & Price 2012, Adjusted Wald confidence interval for a difference of binomial proportions, sec. 2).

    Raises:
        ValueError: a kind with fewer than two prompts, or with more of them at one strength than at another.
    """
    estimate = weighted(differences, weights)
    sums = _sums(differences, weights)
    varied = (
        _sums({at: np.append(values, (-1.0, 1.0)) for at, values in differences.items()}, weights) if shares else sums
    )
    if all(np.ptp(values) == 0 for values in varied.values()):
        low = high = estimate
    else:
        resampled = sum(_bootstrap_means(values, rng) for values in varied.values())
        low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        low, high = min(low, estimate), max(high, estimate)
    if len(weights) == len(sums) == 2:
        p = _dealt_out([differences[kind] for kind in weights], list(weights.values()), rng)
    else:
        p = _sign_flip(list(sums.values()), rng)
    return Contrast(estimate, float(low), float(high), p, "prompts", sum(map(len, sums.values())))


def _sums(differences: ByKind, weights: Weights) -> dict[str, Float[np.ndarray, " _"]]:
    """By kind, each prompt's weighted sum over the strengths at which it was scored."""
    sums: dict[str, np.ndarray] = {}
    for at, weight in weights.items():
        kind, values = at.partition("@")[0], weight * differences[at]
        if kind in sums and len(sums[kind]) != len(values):
            raise ValueError(f"{at}: {len(values)} prompts, {len(sums[kind])} at other strengths")
        sums[kind] = sums[kind] + values if kind in sums else values
    return sums


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
    p = float(stats.combine_pvalues(known).pvalue) if len(known) == n else _sign_flip([estimates], rng)
    below = _norm(c.estimate - c.low for c in per_seed if c.low is not None) / n
    above = _norm(c.high - c.estimate for c in per_seed if c.high is not None) / n
    return Contrast(mean, mean - max(half, below), mean + max(half, above), p, "seeds", n)


def over_draws(observed: float, draws: Float[np.ndarray, " n"]) -> Contrast:
    """From random draws of a control: how far the observed value is from them, and how many reach it."""
    beyond = observed - draws
    low, high = np.quantile(beyond, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    p = (1 + int((draws >= observed).sum())) / (1 + len(draws))
    return Contrast(float(beyond.mean()), float(low), float(high), p, "draws", len(draws))


def over_prompts_and_draws(
    observed: ByKind, draws: Mapping[str, Float[np.ndarray, " draws"]], weights: Weights, rng: np.random.Generator
) -> Contrast:
    """How far prompts' scores are from those under random draws of a control, of which both vary.

    Args:
        draws: by kind, the mean score of its prompts under each draw; draws are the same for all kinds.
    """
    drawn = np.asarray(sum(weight * draws[kind] for kind, weight in weights.items()))
    estimate = weighted(observed, weights)
    resampled = np.sum([_bootstrap_means(values, rng) for values in _sums(observed, weights).values()], axis=0)
    beyond = resampled - rng.choice(drawn, len(resampled))
    low, high = np.quantile(beyond, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    p = (1 + int((drawn >= estimate).sum())) / (1 + len(drawn))
    return Contrast(estimate - float(drawn.mean()), float(low), float(high), p, "draws", len(drawn))


def once(difference: float) -> Contrast:
    """A difference of two numbers of which there is one each: no interval can be had."""
    return Contrast(difference, None, None, None, "seeds", 1)


def _norm(values: Iterable[float]) -> float:
    return sum(value**2 for value in values) ** 0.5


def _bootstrap_means(values: Float[np.ndarray, " n"], rng: np.random.Generator) -> Float[np.ndarray, " resamples"]:
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", batch=100, rng=rng, vectorized=True
    )
    return np.asarray(result.bootstrap_distribution)


def _sign_flip(kinds: Sequence[Float[np.ndarray, " _"]], rng: np.random.Generator) -> float:
    values = np.concatenate([x / len(x) for x in kinds])
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
