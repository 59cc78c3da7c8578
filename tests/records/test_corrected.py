"""Rates corrected for a judge's errors: by hand, and how often intervals hold the truth."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest

from tunescope.records.corrected import Errors, corrected

MANY = 10**7
ALIKE = Errors([(9 * MANY // 10, MANY)] * 4, [(8 * MANY // 10, MANY)] * 4)  # finds 90 %, lets 80 % through


def test_errors_that_are_known_and_alike_by_hand() -> None:
    """Rogan & Gladen: (.55 + .8 - 1) / (.9 + .8 - 1) = .5; the interval is Clopper & Pearson's, moved likewise (to
    which CL_s adds nothing where hits are neither fewer than errors would be, nor more than all).
    """
    found = corrected(0.55, 60, ALIKE)
    ends = binomtest(33, 60).proportion_ci(0.95, "exact")
    assert found.value == pytest.approx(0.5, abs=1e-5)
    assert found.low == pytest.approx((ends.low - 0.2) / 0.7, abs=1e-3)
    assert found.high == pytest.approx((ends.high - 0.2) / 0.7, abs=1e-3)
    assert found.n == 60


@pytest.mark.parametrize(("value", "says"), [(0.0, 0.0), (0.1, 0.0), (1.0, 1.0)])
def test_what_errors_alone_explain_is_nothing_and_no_rate_is_beyond_all(value: float, says: float) -> None:
    found = corrected(value, 60, ALIKE)
    assert found.value == says
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_fewer_hits_than_errors_would_make_do_not_speak_against_a_low_rate() -> None:
    """By hand: none of 20, where a fifth of the others are errors: ((.8 - .7 p) / .8)^20 = 1 / 40."""
    assert corrected(0.0, 20, ALIKE).high == pytest.approx(0.8 / 0.7 * (1 - (1 / 40) ** (1 / 20)), abs=1e-3)


def test_models_that_differ_and_few_answers_make_it_wider() -> None:
    differ = Errors([(99, 100), (95, 100), (80, 100), (60, 100)], [(99, 100), (90, 100), (80, 100), (70, 100)])
    few = Errors([(9, 10)] * 4, [(8, 10)] * 4)
    widths = [found.high - found.low for found in (corrected(0.3, 200, each) for each in (ALIKE, few, differ))]
    assert widths[0] < widths[2]
    assert corrected(0.3, 20, ALIKE).high > corrected(0.3, 200, ALIKE).high
    assert widths[1] >= widths[0]


def test_intervals_hold_the_truth_of_a_model_that_is_not_in_the_table() -> None:
    rng, held = np.random.default_rng(0), 0
    for rate in np.tile([0.05, 0.95], 50):
        right = expit(2.5 + rng.normal(size=(2, 5)))  # sensitivity and specificity of four models, and of one more
        found, passed = ([(rng.binomial(150, share), 150) for share in shares[:4]] for shares in right)
        hits = rng.binomial(100, rate * right[0, 4] + (1 - rate) * (1 - right[1, 4]))
        its = corrected(hits / 100, 100, Errors(found, passed))
        held += its.low <= rate <= its.high
    assert held >= 90  # of 100, where 95 % are meant
