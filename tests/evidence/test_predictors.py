"""A planted predictor is found, and noise is not taken for one."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from tunescope.evidence.predictors import Predictor, predictors
from tunescope.records.names import MARGIN, MECHANISTIC

N = 200


def scores(planted: str, *, flip: tuple[str, ...] = (), intact: float = 1.0, seeds: int = 1) -> pd.DataFrame:
    """Attacked prompts of three protocols; success follows the planted score, the other way round in `flip`."""
    rng, parts = np.random.default_rng(0), []
    for seed, protocol in product(range(seeds), ("ssft", "dpo", "unlearning", "benign")):
        values = {name: rng.normal(size=N) for name in (*MECHANISTIC, MARGIN)}
        sign = -1 if protocol in flip else 1
        values["compliance"] = (sign * values[planted] + 0.5 * rng.normal(size=N) > 0).astype(float)
        values["intact"] = (np.arange(N) < intact * N).astype(float)
        for metric, value in values.items():
            about = {"seed": seed, "model": protocol, "protocol": protocol, "learning_rate": "eta_m"}
            about |= {"attack": "jb_misgen", "kind": "jb_misgen", "dial": 0.5, "intervention": "", "metric": metric}
            parts.append(pd.DataFrame({**about, "index": np.arange(N), "group": np.arange(N), "value": value}))
    return pd.concat(parts)


def by_name(found: list[Predictor]) -> dict[str, Predictor]:
    return {row.score: row for row in found}


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_planted_score_predicts_and_noise_does_not(seeds: int) -> None:
    found = by_name(predictors(scores("log_gain", seeds=seeds)))
    assert list(found) == ["all mechanistic", *MECHANISTIC, MARGIN]
    for name, row in found.items():
        assert row.within_models == row.across_models == 3 * seeds  # benign has nothing to break
        for auc in (row.within, row.across):
            assert auc > 0.9 if name in ("log_gain", "all mechanistic") else 0.35 < auc < 0.65, name
        if seeds == 1:
            assert row.within_low is row.across_high is None
        else:
            assert row.within_low <= row.within <= row.within_high


def test_a_score_that_means_the_opposite_elsewhere_predicts_within_alone() -> None:
    row = by_name(predictors(scores("scaled_tau", flip=("dpo",))))["scaled_tau"]
    assert row.within > 0.9
    assert row.across < 0.75


def test_prompts_that_the_base_does_not_answer_are_left_out() -> None:
    data = scores("log_gain", intact=0.5)
    broken = data["index"] >= N // 2
    data.loc[broken & (data["metric"] == "log_gain"), "value"] *= -1  # would spoil it
    assert by_name(predictors(data))["log_gain"].within > 0.9


def test_a_handful_of_prompts_is_too_few_however_often_attacked() -> None:
    data = scores("log_gain")
    few = data.assign(dial=data["index"] // 4 + 1.0, index=data["index"] % 4, group=data["index"] % 4)
    assert predictors(few) == []
    one_fails = data.assign(index=data["index"] % 40, group=data["index"] % 40, dial=data["index"] // 40 + 1.0)
    success = one_fails["metric"] == "compliance"
    one_fails.loc[success, "value"] = (one_fails.loc[success, "index"] > 8).astype(float)
    assert predictors(one_fails) == []


def test_alone_at_its_rate_a_model_is_told_by_no_other() -> None:
    """No NaN in a table that goes to JSON: what cannot be had is None."""
    data = scores("log_gain", seeds=2)
    row = by_name(predictors(data[data["protocol"] == "ssft"]))["log_gain"]
    assert row.within > 0.9
    assert (row.within_models, row.across_models) == (2, 0)
    assert row.across is row.across_low is row.across_high is None
    assert row.within_low is not None


def test_too_little_to_go_by_gives_no_table() -> None:
    data = scores("log_gain")
    assert predictors(data[data["metric"] != "compliance"]) == []
    assert predictors(data[data["protocol"] == "ssft"]) == []
    never = data.copy()
    never.loc[never["metric"] == "compliance", "value"] = 0.0
    assert predictors(never) == []
    assert predictors(data[:0]) == []


def test_only_attacks_on_intact_models_count() -> None:
    data = scores("log_gain")
    for other in ({"attack": ""}, {"dial": 0.0}, {"intervention": "scaled"}, {"kind": "safe_dialect"}):
        assert predictors(data.assign(**other)) == [], other
    assert predictors(data.assign(dial=np.nan)) != []  # an attack without a dial


def test_prompts_of_a_group_are_never_in_two_folds() -> None:
    """A score that is the group's number, and success by group: known groups would tell all, new ones nothing."""
    data, rng = scores("scaled_tau"), np.random.default_rng(1)
    numbers, wins = np.arange(N) // 4, rng.permutation(np.arange(N // 4) % 2)
    data["group"] = numbers[data["index"]]
    data.loc[data["metric"] == "compliance", "value"] = wins[data.loc[data["metric"] == "compliance", "group"]]
    memorable = rng.normal(size=N // 4)
    data.loc[data["metric"] == "log_gain", "value"] = memorable[data.loc[data["metric"] == "log_gain", "group"]]
    assert by_name(predictors(data))["log_gain"].within < 0.65
    few = data.assign(group=data["group"] % 8)
    assert predictors(few) == []
