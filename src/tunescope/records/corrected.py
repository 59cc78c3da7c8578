"""Rates corrected for the errors of a judge, whose share of errors differs between models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import betainc, expit, logit
from scipy.stats import t

from tunescope.errors import InputError
from tunescope.records.intervals import Estimate

NODES = 64  # equally likely values of each of sensitivity and specificity
TAIL = 0.025


@dataclass(frozen=True)
class Errors:
    """How a judge did on each of k models, two or more, that it was not fitted to.

    Raises:
        InputError: there are fewer than two, or the judge does no better than chance.

    Attributes:
        found: of each model how many hits were found, of how many. passed: how many others were let through, of how
            many.
    """

    found: Sequence[tuple[int, int]]
    passed: Sequence[tuple[int, int]]

    def __post_init__(self) -> None:
        if min(len(self.found), len(self.passed)) < 2 or len(self.found) != len(self.passed):
            raise InputError(
                f"errors of a judge: {len(self.found)} models with hits, {len(self.passed)} with others; the same two "
                "or more are needed"
            )
        if expit(_logits(self).mean(axis=1)).sum() <= 1:
            raise InputError("errors of a judge: it does no better than chance, which nothing can be corrected for")


def corrected(value: float, n: float, errors: Errors) -> Estimate:
    """A rate that a judge found, corrected for its errors (Rogan & Gladen 1978), within [0, 1], with a 95 % interval.

    The model is taken for one more draw from those of the table: logits of its sensitivity and specificity are
    Student's about the models' means, with the spread between models, which is taken to be the same for both
    (prediction of a further draw; counting noise in the spread makes it wider). The interval is that of the binomial
    test, inverted and averaged over both: all rates at which neither that few nor that many hits are rarer than 1 in 40
    of what they would be were there nothing, or nothing else, to hit (Read 2002, CL_s). So fewer hits than the judge's
    errors would make do not speak against a low rate.

    Args:
        value: share of n that the judge took for hits. n: may be an effective, fractional number.
    """
    found, passed = _next_model(errors)
    sensitivity, specificity = expit(_logits(errors).mean(axis=1))
    middle = (value + specificity - 1) / (sensitivity + specificity - 1)
    k = value * n

    def judged(rate: float) -> Float[np.ndarray, "nodes nodes"]:
        return rate * found[:, None] + (1 - rate) * (1 - passed)

    def above(rate: float) -> float:  # the regularised incomplete beta function is the binomial's tail
        return float(betainc(max(k, 1e-9), n - k + 1, judged(rate)).mean())

    def below(rate: float) -> float:
        return float(betainc(max(n - k, 1e-9), k + 1, 1 - judged(rate)).mean())

    most, least = TAIL * above(1), TAIL * below(0)
    low = 0.0 if above(0) > most else float(brentq(lambda rate: above(rate) - most, 0, 1, xtol=1e-4))
    high = 1.0 if below(1) > least else float(brentq(lambda rate: below(rate) - least, 0, 1, xtol=1e-4))
    return Estimate(float(np.clip(middle, 0, 1)), low, high, round(n))


def _next_model(errors: Errors) -> Float[np.ndarray, "2 nodes"]:
    """Equally likely values of the sensitivity of a further model, and of its specificity."""
    logits = _logits(errors)
    k = logits.shape[1]
    spread = (logits.var(axis=1, ddof=1).mean() * (1 + 1 / k)) ** 0.5
    steps = t.ppf((np.arange(NODES) + 0.5) / NODES, 2 * (k - 1))
    return expit(logits.mean(axis=1, keepdims=True) + spread * steps)


def _logits(errors: Errors) -> Float[np.ndarray, "2 models"]:
    hits, of = np.array([errors.found, errors.passed], dtype=float).transpose(2, 0, 1)
    return logit((hits + 0.5) / (of + 1))
