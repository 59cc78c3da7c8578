"""Contrasts: right by hand, uniform p-values without an effect, intervals that hold the truth as often as they say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tunescope.evidence import contrasts
from tunescope.evidence.contrasts import (
    Contrast,
    once,
    over_draws,
    over_prompts,
    over_prompts_and_draws,
    over_seeds,
    weighted,
)

WEIGHTS = {"unsafe": 1.0, "safe": -1.0}
REPEATS = 200


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrasts, "RESAMPLES", 199)


def rng(scope: int = 0) -> np.random.Generator:
    return np.random.default_rng(scope)


def plausible(hits: int, p: float, n: int = REPEATS) -> bool:
    """Whether so many of n is nothing out of the ordinary, where each has this probability."""
    return bool(stats.binom.ppf(0.001, n, p) <= hits <= stats.binom.ppf(0.999, n, p))


def noise(scope: int, sizes: tuple[int, ...], effect: float = 0.0) -> list[dict[str, np.ndarray]]:
    """Differences of 40 unsafe and 30 safe prompts, once for every size of noise: the effect is of the unsafe."""
    draws = rng(scope)
    return [{"unsafe": s * draws.normal(size=40) + effect, "safe": s * draws.normal(size=30)} for s in sizes]


def test_weighted_by_hand() -> None:
    values = {"unsafe": np.array([1.0, 3.0]), "safe": np.array([0.5]), "other": np.array([9.0])}
    assert weighted(values, WEIGHTS) == 1.5
    assert weighted(values, {"unsafe": -1.0}) == -2.0


def test_over_prompts_by_hand() -> None:
    """Of the eight ways to give three differences of one their signs, one has as large a sum."""
    found = over_prompts({"unsafe": np.ones(3)}, {"unsafe": 1.0}, rng())
    assert found == Contrast(1.0, 1.0, 1.0, 1 / 8, "prompts", 3)
    found = over_prompts({"unsafe": np.ones(3)}, {"unsafe": -1.0}, rng())
    assert found == Contrast(-1.0, -1.0, -1.0, 1.0, "prompts", 3)


def test_prompts_count_by_the_share_of_their_kind() -> None:
    """3 - 1 = 2 is reached only when the two threes are dealt to the two unsafe prompts, one of 15 ways."""
    found = over_prompts({"unsafe": np.full(2, 3.0), "safe": np.ones(4)}, WEIGHTS, rng())
    assert found == Contrast(2.0, 2.0, 2.0, 1 / 15, "prompts", 6)


def test_a_prompt_s_strengths_go_together() -> None:
    """Prompts differ a lot, but each rises by one: of eight ways to sign three rises, one has as large a sum."""
    level = np.array([-50.0, 0.0, 90.0])
    found = over_prompts({"jb@0": level, "jb@1": level + 1}, {"jb@0": -1.0, "jb@1": 1.0}, rng())
    assert found == Contrast(1.0, 1.0, 1.0, 1 / 8, "prompts", 3)
    two = {"a@0": level, "a@1": level + 1, "b@0": level, "b@1": level + 3}
    found = over_prompts(two, {"a@0": -0.5, "a@1": 0.5, "b@0": -0.5, "b@1": 0.5}, rng())
    assert (found.estimate, found.low, found.high) == pytest.approx((2, 2, 2))
    assert found.n == 6
    assert found.p == 1 / 64
    with pytest.raises(ValueError, match="jb@1: 2 prompts, 3 at other strengths"):
        over_prompts({"jb@0": level, "jb@1": level[:2]}, {"jb@0": -1.0, "jb@1": 1.0}, rng())


@pytest.mark.usefixtures("few")
def test_slopes_without_an_effect_have_uniform_p_and_intervals_that_hold_zero() -> None:
    found = []
    for i in range(REPEATS):
        level, draws = 5 * rng(i).normal(size=40), rng(1000 + i)
        values = {f"jb@{s}": level + draws.normal(size=40) for s in (0, 0.5, 1)}
        found.append(over_prompts(values, {"jb@0": -1.0, "jb@0.5": 0.0, "jb@1": 1.0}, rng(i)))
    p = np.array([c.p for c in found])
    assert plausible(int((p < 0.05).sum()), 0.05)
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert plausible(sum(c.low <= 0 <= c.high for c in found), 0.95)


def test_over_prompts_leaves_out_kinds_without_weight() -> None:
    (values,) = noise(0, (1,))
    assert over_prompts({**values, "other": np.array([math.pi])}, WEIGHTS, rng()) == over_prompts(
        values, WEIGHTS, rng()
    )


def test_no_difference_is_no_effect() -> None:
    found = over_prompts({"unsafe": np.zeros(20), "safe": np.zeros(10)}, WEIGHTS, rng())
    assert found == Contrast(0.0, 0.0, 0.0, 1.0, "prompts", 30)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_shares_that_are_all_alike_have_an_interval(share: float) -> None:
    """Nearly that of Bonett & Price: of 40 of 40, 41/42 - 1/42 and its standard error."""
    found = over_prompts({"unsafe": np.full(40, share)}, {"unsafe": 1.0}, rng(), shares=True)
    middle = 40 * share / 42
    half = 1.96 * ((2 + 40 * abs(share)) / 42 - middle**2) ** 0.5 / 42**0.5
    assert found.estimate == share
    assert (found.low, found.high) == pytest.approx((max(middle - half, -1), min(middle + half, 1)), abs=0.03)
    assert found.low <= share <= found.high
    assert found.high - found.low > 0.05


@pytest.mark.parametrize("rate", [0.02, 0.2])
def test_the_interval_of_shares_covers(rate: float) -> None:
    draws = [rng(i).binomial(1, rate, 40).astype(float) for i in range(200)]
    found = [over_prompts({"unsafe": x}, {"unsafe": 1.0}, rng(i), shares=True) for i, x in enumerate(draws)]
    assert np.mean([c.low <= rate <= c.high for c in found]) >= 0.92


def test_the_interval_of_one_kind_is_that_of_a_mean() -> None:
    values = rng(5).normal(2, 3, size=400)
    found = over_prompts({"unsafe": values}, {"unsafe": 1.0}, rng())
    half = 1.96 * values.std() / 20
    assert found.estimate == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_the_interval_of_two_kinds_has_the_noise_of_both() -> None:
    values = {"unsafe": 3 * rng(1).normal(size=300), "safe": 4 * rng(2).normal(size=300)}
    found = over_prompts(values, WEIGHTS, rng())
    half = 1.96 * (sum(v.var() for v in values.values()) / 300) ** 0.5
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert found.low < found.estimate < found.high


@pytest.mark.usefixtures("few")
def test_without_an_effect_p_is_uniform_and_the_interval_holds_zero() -> None:
    found = [over_prompts(noise(i, (1,))[0], WEIGHTS, rng(i)) for i in range(REPEATS)]
    p = np.array([c.p for c in found])
    assert plausible(int((p < 0.05).sum()), 0.05)
    assert plausible(int((p > 0.95).sum()), 0.05)
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert plausible(sum(c.low <= 0 <= c.high for c in found), 0.95)
    assert plausible(sum(c.low > 0 for c in found), 0.03)


@pytest.mark.usefixtures("few")
def test_with_an_effect_the_interval_holds_it_and_p_finds_it() -> None:
    effect = 1.5
    found = [over_prompts(noise(i, (1,), effect)[0], WEIGHTS, rng(i)) for i in range(REPEATS)]
    assert plausible(sum(c.low <= effect <= c.high for c in found), 0.95)
    assert all(c.p < 0.05 for c in found)
    assert np.mean([c.estimate for c in found]) == pytest.approx(effect, abs=0.06)


@pytest.mark.usefixtures("few")
def test_over_seeds_without_an_effect() -> None:
    found = []
    for i in range(REPEATS):
        seeds = [over_prompts(values, WEIGHTS, rng(i)) for values in noise(i, (1, 1, 1))]
        found.append(over_seeds(seeds, rng(i)))
    assert plausible(sum(c.p < 0.05 for c in found), 0.05)
    assert plausible(sum(c.low <= 0 <= c.high for c in found), 0.95)
    assert {(c.over, c.n) for c in found} == {("seeds", 3)}


def test_over_seeds_by_hand() -> None:
    """Student's interval with two degrees of freedom, Fisher's p with six."""
    seeds = [Contrast(e, e - 1, e + 1, p, "prompts", 50) for e, p in ((1.0, 0.1), (2.0, 0.2), (3.0, 0.5))]
    found = over_seeds(seeds, rng())
    assert found.estimate == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert found.p == pytest.approx(stats.chi2.sf(-2 * math.log(0.1 * 0.2 * 0.5), 6))
    assert (found.over, found.n) == ("seeds", 3)


def test_seeds_that_agree_by_chance_keep_their_own_uncertainty() -> None:
    found = over_seeds([Contrast(1.0, 0.88, 1.0, 0.01, "prompts", 40)] * 4, rng())
    assert (found.low, found.high) == pytest.approx((1 - 0.12 / 2, 1.0))


def test_seeds_without_a_p_of_their_own_are_flipped() -> None:
    assert over_seeds([once(e) for e in (1.0, 2.0, 3.0)], rng()).p == pytest.approx(1 / 8)
    assert over_seeds([once(e) for e in (-1.0, -2.0, 3.0)], rng()).p == pytest.approx(5 / 8)
    assert over_seeds([once(0.0), once(0.0)], rng()) == Contrast(0.0, 0.0, 0.0, 1.0, "seeds", 2)


@pytest.mark.parametrize("one", [once(0.3), Contrast(0.3, 0.1, 0.5, 0.02, "prompts", 9)])
def test_one_seed_is_what_it_was(one: Contrast) -> None:
    assert over_seeds([one], rng()) == one


def test_draws_of_a_control_vary_as_well_as_prompts() -> None:
    """Where dW is itself a random draw, a contrast with many draws is called an effect as often as it should."""
    p = []
    for i in range(200):
        draws = {kind: rng(10 * i + kind_number).normal(size=101) for kind_number, kind in enumerate(WEIGHTS)}
        own = {kind: values[0] + rng(10 * i + 9).normal(scale=0.1, size=40) for kind, values in draws.items()}
        p.append(over_prompts_and_draws(own, {k: v[1:] for k, v in draws.items()}, WEIGHTS, rng(i)))
    assert plausible(sum(c.p <= 0.05 for c in p), 0.05, n=200)
    assert np.mean([c.low <= 0 <= c.high for c in p]) > 0.9


def test_a_planted_effect_is_beyond_all_draws() -> None:
    draws = {kind: rng(10 + i).normal(scale=0.1, size=100) for i, kind in enumerate(WEIGHTS)}
    own = {kind: WEIGHTS[kind] + rng(20 + i).normal(scale=0.1, size=40) for i, kind in enumerate(WEIGHTS)}
    found = over_prompts_and_draws(own, draws, WEIGHTS, rng())
    assert found.estimate == pytest.approx(sum(w * w for w in WEIGHTS.values()), abs=0.1)
    assert (found.over, found.n, found.p) == ("draws", 100, pytest.approx(1 / 101))
    assert found.low is not None
    assert found.low > 1


def test_once_has_no_interval() -> None:
    assert once(0.25) == Contrast(0.25, None, None, None, "seeds", 1)


def test_over_draws_by_hand() -> None:
    draws = np.arange(39) / 10  # 0 .. 3.8, whose 2.5 % and 97.5 % quantiles are 0.095 and 3.705
    found = over_draws(3.6, draws)
    assert found.estimate == pytest.approx(3.6 - 1.9)
    assert (found.low, found.high) == pytest.approx((3.6 - 3.705, 3.6 - 0.095))
    assert (found.p, found.over, found.n) == (4 / 40, "draws", 39)  # reached by 3.6, 3.7 and 3.8
    assert over_draws(9.0, draws).p == 1 / 40
    assert over_draws(-1.0, draws).p == 1.0


def test_over_draws_of_one_more_draw_has_uniform_p() -> None:
    found = [over_draws(float(v[0]), v[1:]) for v in rng(3).normal(size=(REPEATS, 100))]
    p = np.array([c.p for c in found])
    assert plausible(int((p <= 0.05).sum()), 0.05)
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert plausible(sum(c.low > 0 for c in found), 0.03)


@given(st.floats(-2, 2), st.floats(0.1, 3))
def test_more_noise_is_a_wider_interval_about_the_same_estimate(effect: float, scale: float) -> None:
    shape = np.concatenate([np.full(10, -1.0), np.full(10, 1.0)])
    narrow, wide = (over_prompts({"unsafe": effect + s * shape}, {"unsafe": 1.0}, rng()) for s in (scale, 3 * scale))
    assert narrow.estimate == pytest.approx(wide.estimate, abs=1e-9) == pytest.approx(effect, abs=1e-9)
    assert wide.high - wide.low == pytest.approx(3 * (narrow.high - narrow.low))


def test_the_same_generator_gives_the_same_numbers() -> None:
    (values,) = noise(0, (1,))
    assert over_prompts(values, WEIGHTS, rng(1)) == over_prompts(values, WEIGHTS, rng(1))
    assert over_prompts(values, WEIGHTS, rng(1)) != over_prompts(values, WEIGHTS, rng(2))


def test_one_prompt_or_one_group_of_a_kind_has_no_spread_to_resample() -> None:
    found = over_prompts({"unsafe": np.array([1.0]), "safe": np.array([1.0, 2.0, 3.0])}, WEIGHTS, rng())
    assert found == Contrast(-1.0, None, None, None, "prompts", 4)
    found = over_prompts({"unsafe": np.ones(5)}, {"unsafe": 1.0}, rng(), groups={"unsafe": np.zeros(5, int)})
    assert found == Contrast(1.0, None, None, None, "groups", 1)


def clustered(scope: int, effect: float = 0.0, groups: int = 40, each: int = 5) -> tuple[dict, dict]:
    """Differences of prompts in groups: most of what varies is common to a group, whatever its prompts' kind."""
    draws = rng(scope)
    common = draws.normal(size=groups)
    numbers = {kind: np.repeat(np.arange(groups), each) for kind in WEIGHTS}
    values = {kind: common[of] + 0.3 * draws.normal(size=len(of)) for kind, of in numbers.items()}
    return {"unsafe": values["unsafe"] + effect, "safe": values["safe"]}, numbers


def width(found: Contrast) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


def test_groups_that_vary_together_widen_the_interval_of_a_mean_and_narrow_that_of_a_difference() -> None:
    values, groups = clustered(0)
    one = {"unsafe": 1.0}
    apart, together = over_prompts(values, one, rng()), over_prompts(values, one, rng(), groups=groups)
    assert width(together) == pytest.approx(width(apart) * 5**0.5, rel=0.25)  # five prompts say little more than one
    assert (together.over, together.n, together.estimate) == ("groups", 40, apart.estimate)
    assert width(over_prompts(values, WEIGHTS, rng(), groups=groups)) < 0.6 * width(
        over_prompts(values, WEIGHTS, rng())
    )


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("weights", [{"unsafe": 1.0}, WEIGHTS], ids=["one kind", "two kinds"])
def test_groups_without_an_effect_have_uniform_p_and_intervals_that_hold_zero(weights: dict[str, float]) -> None:
    found = []
    for i in range(REPEATS):
        values, groups = clustered(i)
        found.append(over_prompts(values, weights, rng(i), groups=groups))
    assert plausible(sum(c.low <= 0 <= c.high for c in found), 0.945)
    p = np.array([c.p for c in found])
    assert plausible(int((p < 0.05).sum()), 0.05)
    assert stats.kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.usefixtures("few")
def test_taken_for_prompts_of_their_own_groups_are_called_effects() -> None:
    found = [over_prompts(clustered(i)[0], {"unsafe": 1.0}, rng(i)) for i in range(REPEATS)]
    assert sum(c.p < 0.05 for c in found) > 0.15 * REPEATS
    assert sum(c.low <= 0 <= c.high for c in found) < 0.75 * REPEATS


@pytest.mark.usefixtures("few")
def test_groups_of_one_kind_each_are_dealt_out_whole() -> None:
    p = []
    for i in range(REPEATS):
        draws = rng(i)
        groups = {"unsafe": np.repeat(np.arange(12), 5), "safe": np.repeat(np.arange(12, 27), 5)}
        common = draws.normal(size=27)
        values = {kind: common[of] + 0.3 * draws.normal(size=len(of)) for kind, of in groups.items()}
        p.append(over_prompts(values, WEIGHTS, rng(i), groups=groups).p)
    assert plausible(int((np.array(p) < 0.05).sum()), 0.05)
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_groups_by_hand() -> None:
    """Three groups whose sums all point one way: one of eight ways to sign them has as large a sum."""
    values, groups = {"unsafe": np.array([1.0, 2.0, 1.0, 1.0])}, {"unsafe": np.array([7, 7, 1, 4])}
    found = over_prompts(values, {"unsafe": 1.0}, rng(), groups=groups)
    assert (found.estimate, found.p, found.n) == (1.25, 1 / 8, 3)
    values, groups = clustered(3, effect=1.0)
    found = over_prompts(values, WEIGHTS, rng(), groups=groups)
    assert found.p == 1 / (1 + contrasts.RESAMPLES)
    assert found.low is not None
    assert found.low > 0.8


def test_groups_of_shares_that_are_all_alike_have_the_interval_of_as_many_prompts() -> None:
    each = over_prompts({"unsafe": np.ones(40)}, {"unsafe": 1.0}, rng(), shares=True)
    groups = {"unsafe": np.repeat(np.arange(40), 3)}
    threes = over_prompts({"unsafe": np.ones(120)}, {"unsafe": 1.0}, rng(), shares=True, groups=groups)
    assert (threes.low, threes.high) == pytest.approx((each.low, each.high), abs=0.02)


def test_strengths_of_a_group_go_together() -> None:
    level = np.array([-50.0, -50.0, 90.0])
    values = {"jb@0": level, "jb@1": level + 1}
    groups = dict.fromkeys(values, np.array([0, 0, 1]))
    found = over_prompts(values, {"jb@0": -1.0, "jb@1": 1.0}, rng(), groups=groups)
    assert (found.estimate, found.low, found.high, found.p) == (1.0, 1.0, 1.0, 1 / 4)


def test_draws_with_groups_of_prompts_have_wider_intervals() -> None:
    values, groups = clustered(1)
    draws = {kind: rng(i).normal(scale=0.01, size=50) for i, kind in enumerate(WEIGHTS)}
    one = {"unsafe": 1.0}
    apart = over_prompts_and_draws(values, draws, one, rng())
    assert width(over_prompts_and_draws(values, draws, one, rng(), groups)) > 1.7 * width(apart)
