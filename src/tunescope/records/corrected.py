"""Rates corrected for the errors of a judge, whose share of errors differs between models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import betainc, expit, logit
from scipy.stats import t

from tunescope.records.intervals import Estimate

NODES = 64  # equally likely values of each of sensitivity and specificity
TAIL = 0.025


@dataclass(frozen=True)
class Errors:
    """How a judge did on each of k models, two or more, that it was not fitted to.

    Attributes:
        found: of each model how many hits were found, of how many. passed: how many others were let through, of how
            many.
    """

    found: Sequence[tuple[int, int]]
    passed: Sequence[tuple[int, int]]


def corrected(value: float, n: float, errors: Errors) -> Estimate:
    """A rate that a judge found, corrected for its errors (Rogan & Gladen 1978), within [0, 1], with a 95 % interval.

    The model is taken for one more draw from those of the table: logits of sensitivity and of specificity are Student's
    about the models' mean, with the spread between models (prediction of a further draw; what is counting noise in it
    makes it wider). The interval has all rates at which neither that few nor that many hits are rarer than 1 in 40
    (the test of a binomial share, inverted, averaged over sensitivity and specificity).

    Args:
        value: share of n that the judge took for hits. n: may be an effective, fractional number.
    """
    found, passed = _next_model(errors.found), _next_model(errors.passed)
    sensitivity, specificity = expit(logit([found, passed]).mean(axis=1))
    middle = (value + specificity - 1) / (sensitivity + specificity - 1)
    k = value * n

    def judged(rate: float) -> Float[np.ndarray, "nodes nodes"]:
        return rate * found[:, None] + (1 - rate) * (1 - passed[None, :])

    def above(rate: float) -> float:  # the regularised incomplete beta function is the binomial's tail
        return float(betainc(max(k, 1e-9), n - k + 1, judged(rate)).mean()) - TAIL

    def below(rate: float) -> float:
        return float(betainc(max(n - k, 1e-9), k + 1, 1 - judged(rate)).mean()) - TAIL

    low = 0.0 if above(0) > 0 else 1.0 if above(1) < 0 else float(brentq(above, 0, 1, xtol=1e-4))
    high = 1.0 if below(1) > 0 else 0.0 if below(0) < 0 else float(brentq(below, 0, 1, xtol=1e-4))
    return Estimate(float(np.clip(middle, 0, 1)), low, high, round(n))


def _next_model(counts: Sequence[tuple[int, int]]) -> Float[np.ndarray, " nodes"]:
    """Equally likely values of a share in a further model, from those in k."""
    hits, of = np.array(counts, dtype=float).T
    each = logit((hits + 0.5) / (of + 1))
    spread = each.std(ddof=1) * (1 + 1 / len(each)) ** 0.5
    return expit(each.mean() + spread * t.ppf((np.arange(NODES) + 0.5) / NODES, len(each) - 1))
