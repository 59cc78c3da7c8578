"""Seeds as one table: means, intervals over seeds, and base models of different lengths."""

import pandas as pd
import pytest
from scipy import stats

from tunescope.evidence.pool import pool
from tunescope.evidence.records import ORDER, Record


def frame(*records: Record) -> pd.DataFrame:
    return pd.DataFrame([vars(record) for record in records])[ORDER]


def rate(seed: int, value: float, metric: str = "refusal") -> Record:
    return Record("ssft-eta_m", "ssft", "eta_m", seed, 300, metric, value, "unsafe", low=0.1, high=0.9, n=100)


def test_one_seed_is_left_alone() -> None:
    records = frame(rate(4, 0.5), rate(4, 0.1, "compliance"))
    assert pool(records) is records


def test_a_mean_and_students_interval_over_seeds() -> None:
    values = [0.5, 0.6, 0.4]
    (row,) = pool(frame(*(rate(seed, value) for seed, value in enumerate(values)))).to_dict("records")
    low, high = stats.t.interval(0.95, 2, loc=0.5, scale=stats.sem(values))
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.5, low, high))
    assert (row["n"], row["seed"], row["kind"]) == (300, 0, "unsafe")


def test_rates_stay_between_zero_and_one_and_other_values_do_not() -> None:
    pooled = pool(frame(rate(0, 0.2), rate(1, 1.0), rate(0, 0.2, "gain"), rate(1, 1.0, "gain"))).set_index("metric")
    assert (pooled.loc["refusal", "low"], pooled.loc["refusal", "high"]) == (0, 1)
    assert pooled.loc["gain", "high"] > 1


@pytest.mark.parametrize(
    "metric", ["refusal_without_direction", "refusal_direction_ablated", "compliance_random_direction_added"]
)
def test_a_direction_is_pooled_whatever_layer_each_seed_chose(metric: str) -> None:
    def without(seed: int, layer: int, value: float) -> Record:
        about = {"kind": "unsafe", "layer": layer, "n": 50}
        return Record("ssft-eta_m", "ssft", "eta_m", seed, 300, metric, value, **about)

    (row,) = pool(frame(without(0, 2, 0.0), without(1, 3, 0.2))).to_dict("records")
    assert (row["value"], row["n"]) == (pytest.approx(0.1), 100)


def test_the_spread_of_random_draws_is_not_that_of_seeds() -> None:
    def share(seed: int) -> Record:
        return Record("m", "ssft", "eta_m", seed, 9, "null_share", 0.75, control="rotated", low=0.7, high=0.8, n=100)

    (row,) = pool(frame(share(0), share(1))).to_dict("records")
    assert (row["low"], row["high"]) == pytest.approx((0.7, 0.8))


def test_base_models_of_different_lengths_are_one_and_their_curves_are_not() -> None:
    def base(seed: int, step: int, metric: str) -> Record:
        return Record("base", "pretraining", "", seed, step, metric, 0.5)

    steps = {0: 300, 1: 350}
    ends = [base(seed, step, "compliance") for seed, step in steps.items()]
    pooled = pool(frame(*ends, *(base(seed, step, "loss") for seed, step in steps.items())))
    assert pooled.loc[pooled["metric"] == "compliance", "step"].tolist() == [350]
    assert pooled.loc[pooled["metric"] == "loss", "step"].tolist() == [300, 350]
