"""Seeds as one table: means, intervals over seeds, and base models of different lengths."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from scipy import stats

from tunescope.records.pool import pool
from tunescope.records.tables import ORDER, Record


def frame(*records: Record) -> pd.DataFrame:
    return pd.DataFrame([vars(record) for record in records])[ORDER]


def rate(seed: int, value: float, metric: str = "refusal") -> Record:
    about = {"kind": "unsafe", "low": 0.1, "high": 0.9, "n": 100}
    return Record("ssft-eta_m", "ssft", "eta_m", seed, 300, metric, value, **about)


def test_one_seed_is_left_alone() -> None:
    records = frame(rate(4, 0.5), rate(4, 0.1, "compliance"))
    assert pool(records) is records


def test_a_mean_and_students_interval_over_seeds() -> None:
    values = [0.5, 0.6, 0.4]
    (row,) = pool(frame(*(rate(seed, value) for seed, value in enumerate(values)))).to_dict("records")
    low, high = stats.t.interval(0.95, 2, loc=0.5, scale=stats.sem(values))
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.5, low, high))
    assert (row["n"], row["seed"], row["kind"]) == (300, 0, "unsafe")


def test_what_one_seed_alone_has_keeps_its_interval() -> None:
    pooled = pool(frame(rate(0, 0.5), rate(1, 0.5), rate(1, 0.5, "compliance"))).set_index("metric")
    assert tuple(pooled.loc["compliance", ["low", "high"]]) == pytest.approx((0.1, 0.9))


def test_rates_stay_between_zero_and_one_and_other_values_do_not() -> None:
    pooled = pool(frame(rate(0, 0.2), rate(1, 1.0), rate(0, 0.2, "gain"), rate(1, 1.0, "gain"))).set_index("metric")
    assert (pooled.loc["refusal", "low"], pooled.loc["refusal", "high"]) == (0, 1)
    assert pooled.loc["gain", "high"] > 1


def test_errors_of_the_judge_are_those_of_all_seeds() -> None:
    """Seeds that agree make the interval of a corrected rate no narrower."""
    (row,) = pool(frame(*(rate(seed, 0.5, "refusal_corrected") for seed in range(4)))).to_dict("records")
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.5, 0.1, 0.9))


@pytest.mark.parametrize("metric", ["refusal_margin", "compliance_margin", "refusal_rank_correlation"])
def test_a_margin_is_no_share_whatever_its_name_begins_with(metric: str) -> None:
    (row,) = pool(frame(rate(0, -4.0, metric), rate(1, -2.0, metric))).to_dict("records")
    half = 12.7062 * 1.0  # Student's t, one degree of freedom, times the standard error
    assert (row["value"], row["low"], row["high"]) == pytest.approx((-3.0, -3.0 - half, -3.0 + half), rel=1e-4)


@pytest.mark.parametrize("metric", ["compliance", "refusal", "other", "intact", "tau_auc"])
def test_shares_are_known_by_name(metric: str) -> None:
    (row,) = pool(frame(rate(0, 0.1, metric), rate(1, 0.9, metric))).to_dict("records")
    assert (row["low"], row["high"]) == (0, 1)


@pytest.mark.parametrize("metric", ["sensitivity", "gain_ratio"])
def test_ratios_and_norms_have_a_geometric_mean_and_stay_above_zero(metric: str) -> None:
    about = {"low": 1.9, "high": 2.1, "n": 10}
    records = [Record("ssft-eta_m", "ssft", "eta_m", s, 300, metric, v, **about) for s, v in enumerate((2.0, 8.0))]
    records[1] = replace(records[1], low=7.0, high=9.0)
    (row,) = pool(frame(*records)).to_dict("records")
    half = 12.7062 * math.log(4) / 2  # Student's t, one degree of freedom, times the standard error of the logarithms
    assert (row["value"], row["low"], row["high"]) == pytest.approx(
        (4, 4 / math.exp(half), 4 * math.exp(half)), rel=1e-4
    )


def changed(seed: int, layer: int, value: float, dial: float = 1.0) -> Record:
    about = {"kind": "unsafe", "layer": layer, "n": 50, "intervention": "direction_ablated", "dial": dial}
    return Record("ssft-eta_m", "ssft", "eta_m", seed, 300, "refusal", value, **about)


def test_an_intervention_is_pooled_whatever_layer_each_seed_chose() -> None:
    (row,) = pool(frame(changed(0, 2, 0.0), changed(1, 3, 0.2))).to_dict("records")
    assert (row["value"], row["n"]) == (pytest.approx(0.1), 100)


def test_an_intervention_is_pooled_whatever_dial_each_seed_chose() -> None:
    (row,) = pool(frame(changed(0, 2, 0.0, 1.25), changed(1, 2, 0.2, 2.0))).to_dict("records")
    assert (row["value"], row["n"], row["dial"]) == (pytest.approx(0.1), 100, 1.625)
    both = frame(*(changed(seed, 2, 0.1 * dial, dial) for seed in (0, 1) for dial in (2, 3)))
    assert pool(both).set_index("dial")["value"].to_dict() == pytest.approx({2: 0.2, 3: 0.3})


def test_an_intervention_at_several_layers_keeps_them() -> None:
    pooled = pool(frame(*(changed(seed, layer, 0.1 * layer) for seed in (0, 1) for layer in (2, 3))))
    assert pooled.set_index("layer")["value"].to_dict() == pytest.approx({2: 0.2, 3: 0.3})


@pytest.mark.parametrize("column", ["attack", "intervention", "scope", "outcome", "dial", "budget"])
def test_what_tells_measurements_apart_is_not_pooled(column: str) -> None:
    values = ("a", "b") if column not in ("dial", "budget") else (1, 2)
    rows = [rate(seed, 0.1 * (1 + at)) for seed in (0, 1) for at in (0, 1)]
    records = frame(*rows).assign(**{column: [values[at] for _ in (0, 1) for at in (0, 1)]})
    assert sorted(pool(records)["value"]) == pytest.approx([0.1, 0.2])


def test_the_spread_of_random_draws_is_not_that_of_seeds() -> None:
    def share(seed: int) -> Record:
        return Record("m", "ssft", "eta_m", seed, 9, "null_share", 0.75, control="rotated", low=0.7, high=0.8, n=100)

    (row,) = pool(frame(share(0), share(1))).to_dict("records")
    assert (row["low"], row["high"]) == pytest.approx((0.7, 0.8))


def test_base_models_of_different_lengths_are_one_and_their_curves_are_not() -> None:
    def base(seed: int, step: int, metric: str) -> Record:
        return Record("base", "base", "", seed, step, metric, 0.5)

    steps = {0: 300, 1: 350}
    ends = [base(seed, step, "compliance") for seed, step in steps.items()]
    pooled = pool(frame(*ends, *(base(seed, step, "loss") for seed, step in steps.items())))
    assert pooled.loc[pooled["metric"] == "compliance", "step"].tolist() == [350]
    assert pooled.loc[pooled["metric"] == "loss", "step"].tolist() == [300, 350]
