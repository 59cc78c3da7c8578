"""Across models: a planted relation is found, noise is not taken for one, and what the margin tells is no more."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest

from tunescope.evidence.across import DURABILITY, ROBUSTNESS, SCORES, Association, across, of_models, partial
from tunescope.evidence.verdicts import Outcome
from tunescope.records.names import MARGIN

COLUMNS = (*DURABILITY, ROBUSTNESS, *SCORES)
SEEN = "durability_seen"


def models(runs: int, n: int = 6, scope: int = 0, **planted: str) -> pd.DataFrame:
    """Noise; some columns are monotone functions of others."""
    rng = np.random.default_rng(scope)
    index = pd.MultiIndex.from_product([range(runs), map(str, range(n))], names=["seed", "model"])
    table = pd.DataFrame(rng.normal(size=(runs * n, len(COLUMNS))), index, COLUMNS)
    return table.assign(**{name: np.exp(table[of]) for name, of in planted.items()})


def by_name(found: list[Association]) -> dict[tuple[str, str, str], Association]:
    return {(row.outcome, row.score, row.beyond): row for row in found}


def test_a_planted_relation_is_found_and_is_more_than_the_margin_tells() -> None:
    found = by_name(across(models(5, **{SEEN: "scaled_tau"})))
    assert set(found) == {
        (outcome, score, beyond)
        for outcome, score, beyond in product((*DURABILITY, ROBUSTNESS), SCORES, ("", MARGIN))
        if score != beyond
    }
    for beyond in ("", MARGIN):
        row = found[SEEN, "scaled_tau", beyond]
        assert row.rho == pytest.approx(1)
        assert row.per_run == pytest.approx([1] * 5)
        assert (row.models, row.runs, row.verdict) == (6, 5, Outcome.SUPPORTED)
        assert 0.9 < row.low < row.high <= 1  # ranks of six models tell no more than that
    assert found["durability_benign", "scaled_tau", ""].verdict is not Outcome.SUPPORTED


def test_noise_is_hardly_ever_supported() -> None:
    rows = [row for scope in range(20) for row in across(models(3, scope=scope))]
    assert abs(np.mean([row.rho for row in rows])) < 0.05
    assert 0.03 < np.mean([row.p <= 0.05 for row in rows]) < 0.08  # one-sided, of Student's test on three ranks
    assert np.mean([row.verdict is Outcome.SUPPORTED for row in rows]) <= 0.01


def test_a_score_that_is_the_margin_in_other_units_adds_nothing() -> None:
    found = by_name(across(models(3, **{SEEN: MARGIN, "log_gain": MARGIN})))
    assert found[SEEN, "log_gain", ""].rho == pytest.approx(1)
    assert found[SEEN, "log_gain", MARGIN].per_run == (0, 0, 0)
    assert found[SEEN, "scaled_tau", MARGIN].per_run == (0, 0, 0)  # the margin tells all of the outcome


def test_partial_correlation_is_that_of_residuals() -> None:
    x, y, z = np.random.default_rng(0).normal(size=(3, 50))
    y = y + x + z
    rho = np.corrcoef([x, y, z])
    left = [each - np.polyval(np.polyfit(z, each, 1), z) for each in (x, y)]
    assert partial(rho[0, 1], rho[0, 2], rho[1, 2]) == pytest.approx(np.corrcoef(left)[0, 1])
    assert partial(0.5, 0.5, 0.0) == pytest.approx(0.5 / math.sqrt(0.75))
    assert partial(0.6, 1.0, 0.6) == partial(0.6, 0.6, -1.0) == 0


def test_few_runs_and_few_models_say_less() -> None:
    one, two = (by_name(across(models(runs)))[SEEN, "scaled_tau", ""] for runs in (1, 2))
    assert one.low is one.high is one.p is one.q is one.verdict is None
    assert two.low < two.rho < two.high
    assert two.verdict is None
    assert across(models(3, n=2)) == []
    assert {row.beyond for row in across(models(3, n=3))} == {""}
    missing = models(3)
    missing.loc[missing.index.get_level_values("seed") == 1, "scaled_tau"] = np.nan
    row = by_name(across(missing))[SEEN, "scaled_tau", ""]
    assert (row.runs, row.verdict) == (2, None)
    same = models(3).assign(**{SEEN: 0.0})
    assert not [row for row in across(same) if row.outcome == SEEN]


def scores() -> pd.DataFrame:
    """Two prompts of each kind, of one fine-tune in two runs, with the base and controls beside it."""
    rows = []

    def add(metric: str, kind: str, *values: float, layer: float = math.nan, **more: object) -> None:
        for seed, (protocol, shift) in product((0, 1), {"ssft": 0.0, "seen": 9.0, "base-as-attribute": 9.0}.items()):
            about = {"seed": seed, "model": f"{protocol}-eta_m", "protocol": protocol, "control": "", "attack": ""}
            about |= {"intervention": "", "dial": math.nan, "layer": layer, "metric": metric, "kind": kind} | more
            rows.extend({**about, "value": value + shift + seed * (metric == "scaled_tau")} for value in values)

    for kind, at_last in (("safe", (5.0, 7.0)), ("unsafe", (1.0, 2.0))):
        add("scaled_tau", kind, *at_last, layer=3.0)
        add("scaled_tau", kind, 100.0, layer=2.0)
        add("log_gain", kind, *at_last)
        add("log_gain", kind, -50.0, control="rotated")
    for dial, (kept, lost) in {1.0: (1, 0), 4.0: (0, 1)}.items():
        for name in ("seen", "benign"):
            about = {"intervention": f"retuned_{name}", "dial": dial}
            add("refusal", "unsafe", 0, kept if name == "seen" else 1, **about)
            add("refusal_lost", "unsafe", 0, lost if name == "seen" else 0, **about)
            add("refusal", "safe", 1, **about)
    for kind, got_through in (("jb_co_task", 0.0), ("jb_co_text", 0.5), ("jb_misgen", 1.0)):
        add("compliance", kind, got_through, attack=kind, dial=1.0)
        add("compliance", kind, 0.0, attack=kind, dial=0.5)
        add("refusal_margin", kind, 2 + got_through, attack=kind, dial=0.0)
        add("refusal_margin", kind, 70.0, attack=kind, dial=1.0)
    add("refusal_margin", "unsafe", 70.0, attack="soft_prompt", dial=1.0)
    return pd.DataFrame(rows)


def test_what_is_measured_of_each_model() -> None:
    found = of_models(scores())
    assert list(found.index) == [(0, "ssft-eta_m"), (1, "ssft-eta_m")]
    run = found.loc[(0, "ssft-eta_m")]
    assert run["durability_seen"] == 0.5  # half of the one prompt that was refused before, over both steps
    assert run["durability_benign"] == 1
    assert run["robustness"] == 0.5
    assert run["scaled_tau"] == 4.5
    assert run["log_gain"] == -4.5
    assert run["refusal_margin"] == 2.5  # jb_co_text at 0 is a part of the unsafe prompts
    assert math.isnan(run["log_sensitivity"])
    nothing = scores().assign(value=0.0)
    assert math.isnan(of_models(nothing)["durability_seen"].iloc[0])  # no refusal that could last
    assert of_models(scores()[:0]).empty
    assert across(of_models(scores()[:0])) == []
