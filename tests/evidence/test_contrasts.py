"""Contrasts against numbers worked out by hand, and intervals that hold what they promise."""

import math

import numpy as np
import pytest
from scipy import stats

from tunescope.evidence.contrasts import Contrast, over_prompts, over_runs, weighted

MORE = {"unsafe": 1.0, "safe": -1.0}


def test_numbers_by_hand() -> None:
    values = {"unsafe": np.array([1.0, 3.0]), "safe": np.array([0.0, 0.0, 3.0])}
    assert weighted(values, MORE) == 1.0
    found = over_prompts(values, MORE)
    assert (found.estimate, found.over, found.n) == (1.0, "prompts", 5)
    assert found.error == pytest.approx((2 / 2 + 3 / 3) ** 0.5)  # variances 2 and 3


def test_a_prompt_at_several_strengths_is_one_prompt() -> None:
    """What varies is its slope: that prompts differ at every strength alike is of no matter."""
    level = np.array([0.0, 10.0, -7.0, 3.0])
    slope = {"jb@0": level, "jb@1": level + np.array([1.0, 2.0, 1.0, 2.0])}
    found = over_prompts(slope, {"jb@1": 1.0, "jb@0": -1.0})
    assert (found.estimate, found.n) == (1.5, 4)
    assert found.error == pytest.approx((1 / 3 / 4) ** 0.5)
    with pytest.raises(ValueError, match="jb@0: 3 prompts, 4 at other strengths"):
        over_prompts({**slope, "jb@0": level[:3]}, {"jb@1": 1.0, "jb@0": -1.0})


def test_shares_where_all_prompts_agree_have_an_error() -> None:
    values = {"unsafe": np.ones(18)}
    assert over_prompts(values, {"unsafe": 1.0}).error == 0
    found = over_prompts(values, {"unsafe": 1.0}, shares=True)
    assert (found.estimate, found.n) == (1.0, 18)
    assert found.error == pytest.approx((np.var([*values["unsafe"], -1, 1], ddof=1) / 20) ** 0.5)
    alone = over_prompts({"unsafe": np.ones(1)}, {"unsafe": 1.0}, shares=True)
    assert (alone.error, alone.n) == (None, 1)


def test_groups_of_prompts_vary_together() -> None:
    """Two prompts of a group say as much as one; a group's safe and unsafe prompts may cancel."""
    one = np.array([1.0, 2.0, 4.0])
    twice, groups = np.repeat(one, 2), np.repeat(np.arange(3), 2)
    apart = over_prompts({"unsafe": one}, {"unsafe": 1.0})
    found = over_prompts({"unsafe": twice}, {"unsafe": 1.0}, groups={"unsafe": groups})
    assert (found.over, found.n) == ("groups", 3)
    assert found.error == pytest.approx(apart.error)
    both = over_prompts({"unsafe": one, "safe": one}, MORE, groups={"unsafe": np.arange(3), "safe": np.arange(3)})
    assert both.error == pytest.approx(0)
    others = over_prompts({"unsafe": one, "safe": one}, MORE, groups={"unsafe": np.arange(3), "safe": np.arange(3, 6)})
    assert others.error == pytest.approx(2**0.5 * apart.error * (6 / 5 / (3 / 2)) ** 0.5)  # six groups in all
    shares = over_prompts({"unsafe": np.ones(6)}, {"unsafe": 1.0}, shares=True, groups={"unsafe": groups})
    assert shares.error is not None
    assert shares.error > 0
    assert shares.n == 3


def test_prompts_of_no_group_are_each_their_own() -> None:
    """Whatever their number, and whatever the groups of another kind."""
    rng = np.random.default_rng(0)
    values = {kind: rng.normal(size=40) for kind in ("grouped", "one", "other")}
    weights = {"grouped": 1.0, "one": 1.0, "other": -1.0}
    found = over_prompts(values, weights, groups={"grouped": np.arange(40) // 2, "one": None, "other": None})
    apart = over_prompts({k: values[k] for k in ("one", "other")}, {"one": 1.0, "other": -1.0})
    alone = over_prompts({"grouped": values["grouped"]}, {"grouped": 1.0}, groups={"grouped": np.arange(40) // 2})
    assert found.n == 20 + 40 + 40
    assert found.error == pytest.approx((alone.error**2 + apart.error**2) ** 0.5, rel=0.05)


def runs(*estimates: float, error: float | None = None) -> list[Contrast]:
    return [Contrast(estimate, error, "prompts", 9) for estimate in estimates]


def test_several_runs_have_students_interval_and_test() -> None:
    found = over_runs(runs(1.0, 2.0, 3.0, error=0.1))
    test = stats.ttest_1samp([1.0, 2.0, 3.0], 0, alternative="greater")
    low, high = stats.ttest_1samp([1.0, 2.0, 3.0], 0).confidence_interval(0.95)
    assert found == pytest.approx((2.0, 1 / math.sqrt(3), low, high, test.pvalue))


def test_runs_that_agree_better_than_their_own_errors_allow() -> None:
    found = over_runs(runs(2.0, 2.0, 2.0, error=0.3))
    half = stats.t.ppf(0.975, 2) * 0.3 / 3**0.5
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    assert over_runs(runs(2.0, 2.0, 2.0))[:4] == (2.0, 0.0, 2.0, 2.0)
    assert over_runs(runs(0.0, 0.0, 0.0)).p == 1.0


def test_one_run_speaks_of_itself_alone() -> None:
    assert over_runs(runs(2.0)) == (2.0, None, None, None, None)
    found = over_runs(runs(2.0, error=1.0))
    assert found[:4] == pytest.approx((2.0, 1.0, 2 - 1.96, 2 + 1.96), abs=1e-3)
    assert found.p is None


def test_shares_stay_shares() -> None:
    assert over_runs(runs(0.9, 1.0, 0.8), 1.0).high == 1.0
    assert over_runs(runs(-0.9, -1.0, -0.8), 1.0).low == -1.0
    assert over_runs(runs(0.9, 1.0, 0.8)).high > 1.0


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_hold_the_true_mean_as_often_as_they_say(n: int) -> None:
    """Runs differ, and within each prompts do: nineteen intervals of twenty hold what runs are on average."""
    rng, held = np.random.default_rng(n), 0
    for _ in range(1000):
        true = 1 + 0.3 * rng.normal(size=n)
        found = over_runs([Contrast(mean + 0.1 * rng.normal(), 0.1, "prompts", 9) for mean in true])
        held += found.low <= 1 <= found.high
    assert 930 <= held <= 975
