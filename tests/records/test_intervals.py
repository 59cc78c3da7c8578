"""Intervals of shares and of separations: Wilson's formula, and DeLong's error pair by pair."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tunescope.records.intervals import NORMAL_95, auc, mean, share, wilson
from tunescope.rng import Stream

FEW = st.lists(st.integers(0, 5), min_size=2, max_size=12)  # few values, many ties
CPU = torch.device("cpu")


def draw(*shape: int, scope: object = 0) -> Tensor:
    return Stream.named(0, "clusters", scope).normal(shape, CPU)


def formula(p: float, n: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson 1927, with the 97.5 % quantile of the normal distribution."""
    centre, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_closed_formula(counts: tuple[int, int]) -> None:
    hits, n = counts
    found = share(torch.arange(n) < hits)
    assert (found.value, found.n) == (hits / n, n)
    assert (found.low, found.high) == pytest.approx(formula(hits / n, n), abs=1e-9)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high


@given(st.floats(0, 1), st.floats(1, 500))
def test_wilson_of_an_effective_number_of_prompts_is_too(value: float, n: float) -> None:
    assert wilson(value, n) == pytest.approx(formula(value, n), abs=1e-9)


def test_wilson_is_narrower_for_less_confidence() -> None:
    sure, unsure = wilson(0.7, 10, 0.99), wilson(0.7, 10, 0.5)
    assert sure[0] < unsure[0] < 0.7 < unsure[1] < sure[1]


def error(low: Tensor, high: Tensor) -> float:
    """DeLong's, pair by pair, in Python's own numbers."""
    wins = torch.tensor([[float(h > x) + 0.5 * (h == x) for x in low.tolist()] for h in high.tolist()]).double()
    return (wins.mean(1).var() / len(high) + wins.mean(0).var() / len(low)).sqrt().item()


def test_auc_and_its_error_by_hand() -> None:
    """Of the four pairs three are in order and one is a tie; the placements are 1 and 3/4 on either side."""
    found = auc(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
    assert (found.value, found.n) == (3.5 / 4, 4)
    assert found.low == pytest.approx(3.5 / 4 - NORMAL_95 * (2 * (1 / 32) / 2) ** 0.5)
    assert found.high == 1.0  # and no more


@given(FEW, FEW)
def test_auc_is_that_of_scikit_learn_with_delong_s_error(low: list[int], high: list[int]) -> None:
    pair = torch.tensor(low).double(), torch.tensor(high).double()
    found = auc(*pair)
    assert found.value == pytest.approx(roc_auc_score([0] * len(low) + [1] * len(high), low + high))
    assert auc(*pair[::-1]).value == pytest.approx(1 - found.value)
    half = NORMAL_95 * error(*pair)
    assert found.low == pytest.approx(max(0, found.value - half), abs=1e-9)
    assert found.high == pytest.approx(min(1, found.value + half), abs=1e-9)


def test_auc_of_normal_scores_and_the_spread_over_repetitions() -> None:
    shift, low, high = 0.8, draw(600, 40), draw(600, 60, scope="high") + 0.8
    found = [auc(a, b) for a, b in zip(low, high, strict=True)]
    values = torch.tensor([each.value for each in found])
    errors = torch.tensor([(each.value - (each.low or 0)) / NORMAL_95 for each in found])
    assert values.mean().item() == pytest.approx(norm.cdf(shift / 2**0.5), abs=0.006)
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.08)


def test_auc_of_noise_is_one_half() -> None:
    found = auc(draw(4000), draw(4000, scope="high"))
    assert found.low is not None
    assert abs(found.value - 0.5) < 2 * (found.value - found.low) < 0.04


@pytest.mark.parametrize(("high", "value"), [(1.0, 0.5), (2.0, 1.0), (0.0, 0.0)])
def test_auc_of_constant_scores(high: float, value: float) -> None:
    found = auc(torch.ones(4), torch.full((5,), high))
    assert (found.value, found.low, found.high) == (value, value, value)


def test_auc_of_a_class_of_one_has_no_interval() -> None:
    found = auc(torch.tensor([1.0, 3.0]), torch.tensor([2.0]))
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_prompts_of_one_group_have_no_interval_and_of_two_a_wide_one() -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert mean(values, np.zeros(4, int)).low is None
    apart, together = mean(values), mean(values, np.array([0, 0, 1, 1]))
    assert apart.low is not None
    assert together.low is not None
    assert together.low < apart.low
    # By hand: sums of influences of the groups are -.5 and .5, times 2 / (2 - 1).
    assert together.low == pytest.approx(1.5 - 1.96 * 1.0)


def test_groups_of_two_samples_are_those_of_both() -> None:
    low, high = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.5, 4.0])
    own = auc(low, high, np.arange(5))
    assert own.value == auc(low, high).value
    paired = auc(low, high, np.array([0, 1, 2, 0, 1]))
    assert paired.low != own.low
