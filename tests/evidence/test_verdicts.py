"""Verdicts: planted effects are found on the rung up to which they were planted, and nothing where there is none."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from tunescope.errors import InputError
from tunescope.evidence import verdicts
from tunescope.evidence.claims import CLAIMS, JAILBREAKS, RUNGS, TENTH, Claim, claim, claims_for
from tunescope.evidence.verdicts import (
    Judgement,
    NotJudged,
    Outcome,
    Verdict,
    as_data,
    by_claim,
    decide,
    displayed,
    judge,
    judged_at,
    standing,
)
from tunescope.records.names import CONTROLS
from tunescope.records.tables import SCORES_SCHEMA, Scores, Subject, read_scores, write_scores

CLAIM = {entry.name.split()[0]: entry for entry in CLAIMS.values()}
TEXTS = [field.name for field in SCORES_SCHEMA if str(field.type) == "string"]
Block = tuple[str, str, str, str, int]  # protocol, metric, kind (`kind@dial` under attack), control, seed
S, M, A, R, O = Outcome  # noqa: E741
AS = "base-as-attribute"  # the base, with the labels of the attribute


def frame(blocks: Mapping[Block, np.ndarray], rate: str = "eta_m", **about: object) -> pd.DataFrame:
    """As `read_scores` gives them."""
    keys = [(*block, i) for block, values in blocks.items() for i in range(len(values))]
    protocol, metric, at, control, seed, index = map(np.array, zip(*keys, strict=True))
    split = [str(kind).partition("@") for kind in at]
    eta = np.where(np.isin(protocol, ["base", "given", AS]), "", rate)
    columns = dict.fromkeys(TEXTS, "") | {"protocol": protocol, "learning_rate": eta, "seed": seed, "step": 9}
    columns |= {"model": np.where(eta == "", protocol, np.char.add(np.char.add(protocol, "-"), eta))}
    columns |= {"kind": [kind for kind, *_ in split], "attack": [kind if dial else "" for kind, _, dial in split]}
    columns |= {"dial": [float(dial or "nan") for *_, dial in split], "layer": math.nan, "strength": math.nan}
    columns |= {"metric": metric, "control": control, "index": index, "group": math.nan}
    columns |= {"value": np.concatenate(list(blocks.values())), **about}
    return pd.DataFrame(columns)[SCORES_SCHEMA.names].astype(dict.fromkeys(TEXTS, "category"))


def only(scores: pd.DataFrame, claim: Claim) -> Verdict:
    """Beyond chance."""
    return rungs(scores, claim)["chance"]


def planted(claim: Claim, effects: Mapping[str, float], seeds: int, sd: float = 0.1, scope: int = 0) -> pd.DataFrame:
    """Scores of models in which a claim's effect is of these sizes, by protocol: prompts differ, and so do runs."""
    rng, blocks = np.random.default_rng(scope), {}
    for seed in range(seeds):
        for labels in (False, True):  # prompts of the attribute are others
            level = {kind: rng.normal(size=30) for kind in claim.weights}
            for protocol, effect in effects.items():
                if (protocol in ("attribute", AS)) == labels:
                    size = effect + sd * rng.normal() * (effect != 0)
                    for kind, weight in claim.weights.items():
                        share = size * weight / sum(w**2 for w in claim.weights.values())
                        noise = 0.02 * rng.normal(size=30)
                        blocks[protocol, claim.metric, kind, "", seed] = level[kind] + share + noise
    return frame(blocks)


NOTHING = dict.fromkeys(("base", AS, "ssft", *CONTROLS), 0.0)
PLAIN = tuple(CLAIM[name] for name in ("1", "4a", "4b", "4c", "5a", "5c"))


def rungs(scores: pd.DataFrame, claim: Claim) -> dict[str, Verdict]:
    return {verdict.rung: verdict for verdict in judge(scores, (claim,)).verdicts}


@pytest.mark.parametrize("entry", PLAIN, ids=lambda entry: entry.name)
@pytest.mark.parametrize("height", range(5))
def test_an_effect_stands_as_high_as_it_was_planted(entry: Claim, height: int) -> None:
    """The controls that it is not beyond have all of it, too."""
    sizes = dict(zip(("base", "seen", "styled", "attribute"), (10.0 * (i >= height) for i in range(4)), strict=True))
    effects = NOTHING | {name: size * entry.smallest for name, size in sizes.items()} | {"ssft": 10 * entry.smallest}
    found = rungs(planted(entry, effects, 5, sd=0.3 * entry.smallest), entry)
    assert list(found) == list(RUNGS)
    assert standing([*found.values()], entry) == (RUNGS[height - 1] if height else "")
    assert [v.outcome for v in found.values()][:height] == [S] * height
    assert S not in [v.outcome for v in found.values()][height:]


@pytest.mark.slow
def test_the_base_is_never_a_fine_tune_that_does_something() -> None:
    """Not in a hundred worlds, on no claim: an untouched base in the place of a safety-tuned model."""
    for scope in range(100):
        for entry in (CLAIM["1"], CLAIM["4b"], CLAIM["5a"]):
            control = {"seen": -3 * entry.smallest, "styled": 3 * entry.smallest}  # which have moved, either way
            found = rungs(planted(entry, NOTHING | control, 3, scope=scope), entry)
            assert found["chance"].outcome in (A, O), (scope, entry.name)
            assert standing(list(found.values()), entry) == ""


@pytest.mark.parametrize("seeds", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_one_benign_fine_tune_against_another_is_hardly_ever_supported(seeds: int) -> None:
    """Two models of one kind, whose runs differ by as much as the smallest effect of interest."""
    supported, entry = 0, replace(CLAIM["4a"], smallest=0.01)
    for scope in range(200):
        rng = np.random.default_rng(scope)
        scores = pd.concat(
            planted(
                entry, NOTHING | {"ssft": rng.normal(), "seen": rng.normal()}, 1, sd=0, scope=1000 * scope + seed
            ).assign(seed=seed)
            for seed in range(seeds)
        ).astype(dict.fromkeys(TEXTS, "category"))
        supported += rungs(scores, entry)["tuning"].outcome == S
    assert supported <= 0.05 * 200


def test_from_fewer_than_three_runs_there_are_estimates_alone() -> None:
    entry = CLAIM["1"]
    for seeds in (1, 2):
        found = rungs(planted(entry, NOTHING | {"ssft": 9.0}, seeds), entry)
        assert {v.outcome for v in found.values()} == {None}
        assert standing(list(found.values()), entry) == ""
        assert {(v.over, v.runs) for v in found.values()} == {("prompts" if seeds == 1 else "runs", seeds)}
        assert all(v.low < v.estimate < v.high for v in found.values())


def test_numbers_by_hand() -> None:
    """Sensitivities: base 2, seen 3, ssft 1; of the attribute's own prompts the base's is 5, the control's 4.5."""
    level = {"base": 2.0, "seen": 3.0, "ssft": 1.0, AS: 5.0, "attribute": 4.5}
    found = rungs(
        frame({(p, "log_sensitivity", "unsafe", "", 0): np.full(20, v) for p, v in level.items()}), CLAIM["4a"]
    )
    assert {rung: (v.own, v.estimate, v.control) for rung, v in found.items()} == {
        "chance": (-1.0, 1.0, "base"),
        "tuning": (-1.0, 2.0, "seen-eta_m"),
        "refusing": (-1.0, 0.5, "attribute-eta_m"),
    }


def test_prompts_are_paired_by_their_index() -> None:
    entry = CLAIM["1"]
    scores = planted(entry, NOTHING | {"ssft": 1.0}, 1)
    assert judge(scores.sample(frac=1, random_state=0), (entry,)) == judge(scores, (entry,))
    found = rungs(scores, entry)
    assert found["tuning"].high - found["tuning"].low < 0.05  # though prompts differ by fifty times more
    short = scores[(scores["model"] != "seen-eta_m") | (scores["index"] < 20)]
    with pytest.raises(ValueError, match="20 safe prompts, but 30 in the control"):
        judge(short, (entry,))


def test_random_directions_are_chance() -> None:
    rng, entry = np.random.default_rng(0), CLAIM["2"]

    def scores(share: float, sd: float = 0.01) -> pd.DataFrame:
        blocks = {}
        for seed in range(4):
            for protocol, own in (("ssft", share), ("seen", 0.7)):
                blocks[protocol, "null_share", "", "", seed] = np.array([own + 0.002 * rng.normal()])
                blocks[protocol, "null_share", "", "rotated", seed] = rng.normal(0.7, sd, size=60)
        return frame(blocks)

    for share, sd, outcome in ((0.85, 0.01, S), (0.705, 0.002, M), (0.7, 0.002, A), (0.6, 0.01, R), (0.72, 0.01, O)):
        found = rungs(scores(share, sd), entry)
        assert (found["chance"].outcome, found["chance"].control) == (outcome, "rotated"), share
        assert found["tuning"].estimate == pytest.approx(share - 0.7, abs=0.02)


def test_what_is_no_matter_of_prompts_is_judged_matrix_by_matrix() -> None:
    """Matrices differ by more than models do, and are the same in all, whatever the labels of their prompts."""
    rng, matrices = np.random.default_rng(0), np.array([-0.3, 0.0, 0.1, 0.2])
    level = {"ssft": 5.0, "seen": 2.0, "styled": 2.5, "attribute": 4.5}
    blocks = {}
    for seed in range(4):
        for protocol, ratio in level.items():
            noise = 0.002 * rng.normal(size=4)
            blocks[protocol, "log_write_overlap", "", "", seed] = math.log(ratio) + matrices + noise
    found = rungs(frame(blocks), CLAIM["8a"])
    assert [v.outcome for v in found.values()] == [S, S, S, M]
    assert [v.control for v in found.values()] == ["zero", "seen-eta_m", "styled-eta_m", "attribute-eta_m"]
    ratios = [displayed(CLAIM["8a"], v.estimate) for v in found.values()]
    assert ratios == pytest.approx([5, 5 / 2, 5 / 2.5, 5 / 4.5], rel=0.01)
    alone = rungs(frame({block: values for block, values in blocks.items() if block[-1] == 0}), CLAIM["8a"])
    assert {(v.over, v.n) for v in alone.values()} == {("values", 4)}
    width = {rung: v.high - v.low for rung, v in alone.items()}
    assert max(width["tuning"], width["refusing"]) < 0.02 < width["chance"]


def test_the_control_has_the_same_learning_rate_and_run() -> None:
    def at(rate: str, ssft: float, seen: float) -> pd.DataFrame:
        level = {("ssft", "safe"): 0.0, ("ssft", "unsafe"): ssft, ("seen", "safe"): 0.0, ("seen", "unsafe"): seen}
        level |= {("base", kind): 0.0 for kind in ("safe", "unsafe")}
        blocks = {(p, "scaled_tau", kind, "", 0): -np.full(9, v) for (p, kind), v in level.items()}
        return frame(blocks, rate)

    scores = pd.concat([at("eta_m", 1.0, 0.5), at("eta_s", 5.0, 4.0)]).drop_duplicates()
    found = [v for v in judge(scores, (CLAIM["1"],)).verdicts if v.rung == "tuning"]
    assert [(v.learning_rate, v.own, v.estimate) for v in found] == [("eta_m", 1.0, 0.5), ("eta_s", 5.0, 1.0)]
    without = scores[~((scores["protocol"] == "seen") & (scores["learning_rate"] == "eta_s"))]
    judged = judge(without, (CLAIM["1"],))
    assert [v.learning_rate for v in judged.verdicts if v.rung == "tuning"] == ["eta_m"]
    reason = "No control: no model of protocol 'seen' or 'benign' of learning rate 'eta_s' was measured."
    assert NotJudged(CLAIM["1"].name, "tuning", reason, ("ssft-eta_s",)) in judged.not_judged


def test_a_control_that_is_missing_in_some_runs_is_named() -> None:
    entry = CLAIM["1"]
    scores = planted(entry, NOTHING | {"ssft": 9.0}, 4)
    some = scores[(scores["protocol"] != "styled") | (scores["seed"] < 2)]
    judged = judge(some, (entry,))
    assert {v.rung for v in judged.verdicts} == {"chance", "tuning", "refusing"}
    (missing,) = judged.not_judged
    assert (missing.rung, missing.reason) == (
        "behaviour",
        "In 2 of 4 runs (seed 2, 3): No control: no model of protocol 'styled' of learning rate 'eta_m' was measured.",
    )
    assert standing(judged.verdicts, entry) == "tuning"


def test_benign_stands_in_for_seen() -> None:
    scores = planted(CLAIM["1"], {"base": 0.0, "benign": 0.0, "ssft": 9.0}, 3)
    assert rungs(scores, CLAIM["1"])["tuning"].control == "benign-eta_m"


def test_controls_are_not_judged() -> None:
    judged = judge(planted(CLAIM["1"], NOTHING, 3), (CLAIM["1"],))
    assert {v.model for v in judged.verdicts} == {"ssft-eta_m"}


def test_q_is_p_corrected_over_all_that_is_judged() -> None:
    scores = pd.concat(planted(entry, NOTHING | {"ssft": 0.3}, 3, scope=i) for i, entry in enumerate(PLAIN[:3]))
    found = judge(scores.astype(dict.fromkeys(TEXTS, "category"))).verdicts
    p = [v.p for v in found if v.p is not None]
    assert len(p) > 8
    assert [v.q for v in found if v.p is not None] == pytest.approx(false_discovery_control(p).tolist())


def test_scores_from_a_file_are_judged_alike(tmp_path: Path) -> None:
    claim, rng = CLAIM["1"], np.random.default_rng(0)
    written = [
        Scores(Subject(f"{p}-eta_m", p, "eta_m", 0, 9), claim.metric, rng.normal(size=20), kind=kind, layer=1)
        for p in ("ssft", "benign")
        for kind in ("safe", "unsafe")
    ]
    write_scores(written, tmp_path / "scores.parquet")
    blocks = {(s.subject.protocol, s.metric, s.kind, "", 0): s.values for s in written}
    assert judge(read_scores(tmp_path / "scores.parquet"), (claim,)) == judge(frame(blocks), (claim,))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    scores = planted(CLAIM["1"], NOTHING, 1)
    scores.loc[(scores["index"] == 7) & (scores["protocol"] == "seen"), "value"] = bad
    with pytest.raises(ValueError, match=r"scaled_tau of seen-eta_m, safe prompt 7 is not finite"):
        judge(scores)


def test_what_was_not_measured_is_not_judged() -> None:
    scores = planted(CLAIM["4a"], NOTHING, 1)
    judged = judge(scores)
    assert {v.claim[:2] for v in judged.verdicts} == {"4a"}
    reasons = {entry.claim[:2]: entry.reason for entry in judged.not_judged}
    assert set(reasons) == {name[:2] for name in CLAIMS} - {"4a"}
    assert reasons["2 "] == "Metric 'null_share' was measured of no model."
    assert (
        reasons["7a"] == f"Metric 'refusal_removed' with intervention 'scaled' was measured of no model{verdicts._WHY}."
    )
    assert reasons["5c"] == "Metric 'log_sensitivity' was not measured of 'jb_co_task@0' prompts."
    assert judge(scores[scores["protocol"] != "ssft"]).verdicts == []
    assert {v.rung for v in judge(scores[scores["protocol"] != "base"]).verdicts} == set()
    assert judge(scores[:0]).verdicts == []


@pytest.mark.parametrize(
    ("low", "high", "q", "outcome"),
    [
        (0.1, 0.3, 0.05, S),  # at the edge of both
        (0.1, 0.3, 0.0501, O),
        (0.1, 0.1, None, O),
        (0.0999, 0.3, 0.001, O),
        (0.05, 0.0999, 0.001, M),  # surely there, surely too small
        (0.05, 0.1, 0.001, O),
        (-0.05, 0.05, 0.5, A),
        (0.0, 0.05, 0.5, A),
        (-0.09, -0.01, 1.0, A),
        (-0.1, 0.05, 0.5, O),
        (-0.3, -0.1, 1.0, R),
        (-0.3, -0.09, 1.0, O),
        (-3.0, -2.0, None, R),
        (-3.0, 2.0, 0.9, O),
        (None, 2.0, 0.01, O),
        (0.5, None, 0.01, O),
    ],
)
def test_decide_by_hand(low: float | None, high: float | None, q: float | None, outcome: Outcome) -> None:
    assert decide(low, high, q, 0.1) == outcome


def test_outcomes_at_other_smallest_effects_by_hand() -> None:
    """Of claim 1, s = 0.5: surely beyond half of it; surely between; surely within double of it; of one run."""
    (draft, *_), (entry,) = judge(planted(CLAIM["1"], NOTHING, 3), (CLAIM["1"],)).verdicts, (CLAIM["1"],)
    ends = [
        (0.3, 0.9, O),
        (0.6, 0.9, S),
        (0.1, 0.2, M),
        (0.1, 0.4, M),
        (-0.9, 0.9, O),
        (-0.9, -0.6, R),
        (0.6, 0.9, None),
    ]
    verdicts = [replace(draft, low=low, high=high, q=0.01, outcome=outcome) for low, high, outcome in ends]
    of = Judgement((entry,), verdicts)
    assert judged_at(of, 1) == [v.outcome for v in verdicts] == [O, S, M, M, O, R, None]
    assert judged_at(of, 0.5) == [S, S, M, O, O, R, None]
    assert judged_at(of, 2) == [M, M, M, M, A, A, None]


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_an_effect_and_its_opposite_have_opposite_outcomes(low: float, width: float, smallest: float) -> None:
    one, other = (decide(*ends, 0.0, smallest) for ends in ((low, low + width), (-low - width, -low)))
    turned = {S: R, R: S, M: A, A: other if other in (M, A) else A, O: O}
    assert other == turned[one]


def test_claims_of_ones_own_are_judged() -> None:
    own = replace(CLAIM["1"], name="own", metric="log_of_ones_own")
    assert rungs(planted(own, NOTHING | {"ssft": 9.0}, 3), own)["chance"].outcome == S


def test_numbers_are_shown_in_the_units_of_a_reader() -> None:
    assert displayed(CLAIM["3a"], TENTH) == pytest.approx(1.1)
    assert displayed(CLAIM["1"], 0.5) == 0.5


def test_verdicts_as_data_and_by_claim() -> None:
    found = judge(planted(CLAIM["1"], NOTHING, 3))
    data = as_data(found)
    assert data["verdicts"] == [asdict(v) for v in found.verdicts]
    assert [c["name"] for c in data["claims"]] == [*CLAIMS]
    assert data["not_judged"][0] == {
        "claim": CLAIM["0"].name,
        "rung": "chance",
        "reason": "Metric 'refusal' was measured of no model.",
        "models": ("ssft-eta_m",),
    }
    turned = found._replace(verdicts=found.verdicts[::-1])
    assert [v for _, verdicts in by_claim(turned) for v in verdicts] == found.verdicts[::-1]


def changed(values: Mapping[tuple[str, float, str], float], metric: str = "refusal", **about: object) -> pd.DataFrame:
    """Twenty unsafe prompts of one model under interventions, by name, dial and scope."""
    return pd.concat(
        frame({("ssft", metric, "unsafe", "", 0): np.full(20, v)}, intervention=name, dial=dial, scope=scope, **about)
        for (name, dial, scope), v in values.items()
    )


def test_an_intervention_is_judged_against_another_at_its_dial() -> None:
    entry = replace(CLAIM["7f"], against="on_safe_inputs")
    values = {("on_unsafe_inputs", 1.0, ""): 0.0, ("on_unsafe_inputs", 8.0, ""): 0.9}
    values |= {("on_safe_inputs", 1.0, ""): 0.2, ("on_safe_inputs", 8.0, ""): 0.4, ("on_safe_inputs", 16.0, ""): 0.8}
    found = only(changed(values), entry)  # the greatest dial, and the same of the control
    assert (found.own, found.estimate, found.control) == (pytest.approx(0.9), pytest.approx(0.5), "on_safe_inputs")
    assert only(changed(values), replace(entry, dial=1.0)).estimate == pytest.approx(-0.2)
    assert only(changed(values), replace(entry, against_dial=16.0)).estimate == pytest.approx(0.1)
    del values["on_safe_inputs", 8.0, ""]
    assert only(changed(values), entry).estimate == pytest.approx(0.1)  # the greatest, where the same was not measured
    missing = judge(changed(values), (replace(entry, dial=3.0),)).not_judged[0]
    assert (
        missing.reason == "Metric 'refusal' with intervention 'on_unsafe_inputs' at scope '', dial 3 was not measured."
    )


def test_more_of_dw_is_judged_at_the_alpha_that_each_run_and_control_chose() -> None:
    """By hand: of three jailbreaks .3, .6 and 0 of the prompts no longer get through, of the control's .15 of each."""
    entry, lost = CLAIMS["7b more dW, more robust"], dict(zip(JAILBREAKS, (0.3, 0.6, 0.0), strict=True))
    blocks = []
    for seed, alpha in enumerate((1.0, 1.25, 2.0)):
        for protocol, at, rates in (("ssft", alpha, lost), ("seen", 3 - alpha, dict.fromkeys(JAILBREAKS, 0.15))):
            values = {(protocol, entry.metric, k, "", seed): (np.arange(20) < 20 * v) * 1.0 for k, v in rates.items()}
            for scope, times in (("all", 1.0), ("W_in", 0.0)):
                about = {"intervention": "extrapolated", "dial": at, "scope": scope, "strength": 1.0}
                blocks.append(frame({k: times * v for k, v in values.items()}, **about))
    scores = pd.concat(blocks).astype(dict.fromkeys(TEXTS, "category"))
    found = rungs(scores, entry)
    assert {rung: v.estimate for rung, v in found.items()} == pytest.approx({"chance": 0.3, "tuning": 0.15})
    assert found["chance"].outcome == S
    assert rungs(scores, CLAIM["7b"])["chance"].estimate == 0.0  # of W_in alone


def test_an_intervention_on_everything_is_not_taken_for_one_on_a_part() -> None:
    values = {("scaled", 0.5, "all"): 0.8, ("scaled", 0.5, "mlp"): 0.3}
    own = changed(values, "refusal_removed")
    seen = own.assign(protocol="seen", model="seen-eta_m", value=0.1, metric="refusal_lost")
    both = pd.concat([own, seen])
    assert [v.estimate for v in rungs(both, CLAIM["7a"]).values()] == pytest.approx([0.8, 0.7])
    assert [v.estimate for v in rungs(both, replace(CLAIM["7a"], scope="mlp")).values()] == pytest.approx([0.3, 0.2])
    values = {("scaled", 0.5, "W_in"): 0.8, ("scaled", 0.5, "mlp"): 0.3}
    missing = judge(changed(values, "refusal_removed"), (replace(CLAIM["7a"], scope=""),)).not_judged[0]
    assert "several scopes; the claim must name one" in missing.reason


def test_controls_and_random_directions_are_not_spared_for_babbling() -> None:
    """What they take of refusal counts in whole; what the model's own change takes counts where it does not babble."""
    take, chance = ("direction_ablated", math.nan, "resid_post"), ("random_direction_ablated", math.nan, "resid_post")
    lost = changed({take: 0.9, chance: 0.3}, "refusal_lost")
    removed = changed({take: 0.9, chance: 0.0}, "refusal_removed")
    other = pd.concat(
        [changed({take: 0.8, chance: 0.1}, "refusal_lost"), changed({take: 0.0, chance: 0.0}, "refusal_removed")]
    )
    styled = other.assign(protocol="styled", model="styled-eta_m")
    found = rungs(pd.concat([lost, removed, styled]).astype(dict.fromkeys(TEXTS, "category")), CLAIM["6a"])
    assert {rung: v.estimate for rung, v in found.items()} == pytest.approx({"chance": 0.6, "behaviour": -0.1})


def test_the_error_of_random_draws_is_of_their_mean_on_every_rung() -> None:
    rng, entry = np.random.default_rng(0), CLAIM["2"]
    blocks = {}
    for protocol in ("ssft", "seen", "attribute"):
        blocks[protocol, "null_share", "", "", 0] = np.array([0.7])
        blocks[protocol, "null_share", "", "rotated", 0] = rng.normal(0.7, 0.01, size=100)
    found = rungs(frame(blocks), entry)
    width = {rung: v.high - v.low for rung, v in found.items()}
    assert width["tuning"] == pytest.approx(width["refusing"], rel=0.1)
    assert width["chance"] > 5 * width["tuning"]
    assert {(v.over, v.n) for v in found.values()} == {("draws", 100)}
    blocks = {("ssft", "log_gain", kind, "", 0): rng.normal(size=40) for kind in ("safe", "unsafe")}
    blocks |= {("ssft", "log_gain", kind, "rotated", 0): rng.normal(size=100) for kind in ("safe", "unsafe")}
    found = rungs(frame(blocks), CLAIM["3a"])
    assert (found["chance"].over, found["chance"].n) == ("prompts and draws", 80)


def levels(values: Mapping[str, float], rate: str = "eta_m") -> pd.DataFrame:
    """tau of safe prompts, less that of unsafe ones, by protocol."""
    ends = {"safe": 1.0, "unsafe": 0.0}
    return frame(
        {(p, "scaled_tau", k, "", 0): np.full(9, v * w) for p, v in values.items() for k, w in ends.items()}, rate
    )


def test_a_given_fine_tune_is_beside_a_benign_one_whatever_its_rate() -> None:
    alone = judge(levels({"base": 1.0, "given": 3.0}), (CLAIM["1"],))
    assert [(v.rung, v.estimate) for v in alone.verdicts] == [("chance", 2.0)]
    assert alone.not_judged[0].reason == "No control: no model of protocol 'seen' or 'benign' was measured."
    both = rungs(levels({"base": 1.0, "benign": 2.5, "given": 3.0}, "of_its_own"), CLAIM["1"])
    assert {rung: v.estimate for rung, v in both.items()} == {"chance": 2.0, "tuning": 0.5}


def test_two_given_fine_tunes_are_two_models() -> None:
    first, second = levels({"base": 1.0, "given": 3.0}), levels({"given": 2.0}).assign(model="other")
    found = judge(pd.concat([first, second]), (CLAIM["1"],)).verdicts
    assert [(v.model, v.estimate) for v in found] == [("given", 2.0), ("other", 1.0)]


def test_kinds_of_their_own_have_claims_and_ladders_have_not() -> None:
    plain = {("given", "scaled_tau", kind, "", 0): np.zeros(9) for kind in ("safe", "unsafe", "mixed")}
    ladder = frame({("given", "scaled_tau", "jb_misgen@0.5", "", 0): np.zeros(9)})
    strong = frame({("given", "scaled_tau", "long", "", 0): np.zeros(9)}, strength=0.5)
    names = [entry.name for entry in claims_for(pd.concat([frame(plain), ladder, strong]))]
    assert names == [*CLAIMS, "5a mixed", "5b mixed", "5c mixed"]


def test_forms_have_claims_from_the_plain_prompt_to_the_strongest() -> None:
    """Controls of forms have none, nor has a form without its plain prompt."""
    kinds = ("jb_role@0", "jb_role@1", "ok_role@0", "ok_role@1", "jb_leet@1", "jb_co_task@0", "jb_co_task@1")
    tau = {"base": (0.0, 0.2), "ssft": (-3.0, -1.0)}
    blocks = {
        (model, "scaled_tau", kind, "", seed): np.full(9, ends[int(kind[-1])]) + np.arange(9) % 3 / 100
        for model, ends in tau.items()
        for kind in kinds
        for seed in range(3)
    }
    found = claims_for(frame(blocks))
    of_kind = {entry.name: entry for entry in found[len(CLAIMS) :]}
    assert set(of_kind) == {f"5{letter} {kind}" for kind in ("jb_role", "jb_co_task") for letter in "abc"}
    verdict = rungs(frame(blocks), of_kind["5a jb_role"])["chance"]
    assert (verdict.outcome, verdict.estimate) == (S, pytest.approx(1.8))


def test_jailbreaks_of_the_world_are_left_to_claim_5() -> None:
    kinds = [f"{kind}@{dial}" for kind in JAILBREAKS for dial in (0, 1)]
    scores = frame({("ssft", "scaled_tau", kind, "", 0): np.zeros(9) for kind in kinds})
    assert claims_for(scores) == tuple(CLAIMS.values())


def test_refusal_is_beyond_the_base_and_any_fine_tuning() -> None:
    def at(rate: float) -> np.ndarray:
        return (np.arange(40) < 40 * rate).astype(float)

    blocks = {}
    for seed in range(3):
        for protocol, rate in (("base", 0.0), ("ssft", 0.9), ("seen", 0.5), ("styled", 0.9)):
            blocks[protocol, "refusal", "unsafe", "", seed] = at(rate)
            blocks[protocol, "refusal", "safe", "", seed] = at(0.1)
    found = rungs(frame(blocks), CLAIM["0"])
    assert {rung: (v.outcome, v.estimate) for rung, v in found.items()} == {
        "chance": (S, pytest.approx(0.9)),
        "tuning": (S, pytest.approx(0.4)),
    }


def test_groups_of_prompts_are_what_varies() -> None:
    rng = np.random.default_rng(0)
    common = np.repeat(rng.normal(size=8), 5)
    blocks = {
        ("ssft", "log_sensitivity", "unsafe", "", 0): -1.5 + common,
        ("base", "log_sensitivity", "unsafe", "", 0): np.zeros(40),
    }
    apart = frame(blocks)
    grouped = apart.assign(group=apart["index"] // 5)
    one, eight = only(apart, CLAIM["4a"]), only(grouped, CLAIM["4a"])
    assert (one.over, one.n, eight.over, eight.n) == ("prompts", 40, "groups", 8)
    assert eight.high - eight.low > 1.7 * (one.high - one.low)


def test_a_claim_is_registered_once() -> None:
    own = Claim(name="own", statement="", source="", metric="m", smallest=0.1, unit="", found="")
    try:
        assert claim(own) is own
        assert "own" in CLAIMS
        with pytest.raises(InputError, match="Two claims are called 'own'"):
            CLAIMS.add("own", own, "another.module")
    finally:
        del CLAIMS._entries["own"], CLAIMS._modules["own"]


def test_the_last_layer_counts() -> None:
    scores = levels({"base": 1.0, "given": 3.0})
    both = pd.concat([scores.assign(layer=4.0), scores.assign(layer=2.0, value=-scores["value"])])
    assert only(both, CLAIM["1"]).estimate == 2.0


def at_layers(effects: Mapping[str, tuple[float, ...]], entry: Claim = CLAIM["1"], seeds: int = 3) -> pd.DataFrame:
    """An effect of another size at each layer, by protocol."""
    layers = zip(*effects.values(), strict=True)
    blocks = [
        planted(entry, dict(zip(effects, sizes, strict=True)), seeds, sd=0.05, scope=layer).assign(layer=float(layer))
        for layer, sizes in enumerate(layers)
    ]
    return pd.concat(blocks).astype(dict.fromkeys(TEXTS, "category"))


def test_a_verdict_says_at_which_layers_it_holds() -> None:
    """By layer: nothing; something that any fine-tuning does; what it alone does; and the contrary."""
    seen, ssft = (0.0, 3.0, 0.0, 0.0), (0.0, 3.0, 3.0, -3.0)
    scores = at_layers({"base": (0.0,) * 4, "seen": seen, "ssft": ssft})
    found = rungs(scores, CLAIM["1"])
    assert {rung: v.by_layer for rung, v in found.items()} == {"chance": (A, S, S, R), "tuning": (A, A, S, R)}
    assert [v.outcome for v in found.values()] == [R, R]  # the last layer's
    without = scores[(scores["layer"] != 1) | (scores["protocol"] != "seen") | (scores["seed"] > 0)]
    assert rungs(without, CLAIM["1"])["tuning"].by_layer == (A, None, S, R)


def test_at_the_last_layer_stands_the_verdict_itself() -> None:
    """p is corrected over all verdicts, most of which have no layers: alone, it would be supported."""
    entry = replace(CLAIM["1"], smallest=1e-9, rungs=("chance",))
    others = [replace(CLAIM["4a"], name=f"own {i}", metric=f"of its own {i}", rungs=("chance",)) for i in range(9)]
    layers = at_layers({"base": (0.0, 0.0), "ssft": (0.2, 0.3)}, entry)
    scores = [layers, *(planted(other, {"base": 0.0, "ssft": 0.0}, 3, scope=9) for other in others)]
    judged = judge(pd.concat(scores).astype(dict.fromkeys(TEXTS, "category")), (entry, *others))
    (found,) = (v for v in judged.verdicts if v.by_layer)
    assert (found.outcome, found.by_layer[-1]) == (O, O)
    assert (only(layers, entry).outcome, only(layers, entry).by_layer[-1]) == (S, S)


def test_of_the_model_as_a_whole_is_the_verdict_where_there_is_such_a_score() -> None:
    rng, blocks = np.random.default_rng(0), []
    for layer, share in ((math.nan, 0.85), (0, 0.6), (1, 0.7)):
        values = {("ssft", "null_share", "", "", s): np.array([share + 0.001 * rng.normal()]) for s in range(3)}
        values |= {("ssft", "null_share", "", "rotated", s): rng.normal(0.7, 0.002, size=60) for s in range(3)}
        blocks.append(frame(values, layer=layer))
    (found,) = rungs(pd.concat(blocks).astype(dict.fromkeys(TEXTS, "category")), CLAIM["2"]).values()
    assert (found.outcome, found.estimate, found.by_layer) == (S, pytest.approx(0.15, abs=0.01), (R, A))


def test_no_layers_of_one_layer_of_fewer_runs_and_of_interventions() -> None:
    effects = {"base": (0.0, 0.0), "ssft": (3.0, 3.0)}
    assert rungs(at_layers(effects, seeds=2), CLAIM["1"])["chance"].by_layer == ()
    scores = at_layers(effects)
    assert rungs(scores[scores["layer"] == 1], CLAIM["1"])["chance"].by_layer == ()
    take = ("direction_ablated", math.nan, "resid_post"), ("random_direction_ablated", math.nan, "resid_post")
    runs = []
    for seed in range(3):
        for name, v in zip(take, (0.9, 0.1), strict=True):
            for metric in ("refusal_lost", "refusal_removed"):
                runs.append(changed({name: v}, metric, layer=float(seed)).assign(seed=seed))
    found = rungs(pd.concat(runs).astype(dict.fromkeys(TEXTS, "category")), CLAIM["6a"])["chance"]
    assert (found.outcome, found.by_layer) == (S, ())  # each run chose a layer: that is no difference


@pytest.mark.parametrize(
    ("per_run", "outcome", "firm"),
    [
        # Standard error .0577, Student's interval 4.303 of them either way: .248. The smallest effect is .5.
        ((2.0, 2.1, 2.2), S, True),
        ((0.7, 0.8, 0.9), S, False),  # .552 to 1.048; moved, from .494 on
        ((0.6, 0.7, 0.8), O, False),  # .452 to .948; moved, from .510 on
        ((0.4, 0.5, 0.6), O, True),  # .252 to .748
        ((-0.1, 0.0, 0.1), A, True),
        ((0.15, 0.25, 0.35), M, False),  # .002 to .498
    ],
)
def test_a_verdict_is_firm_if_the_ends_of_its_interval_may_move(
    per_run: tuple[float, ...], outcome: Outcome, firm: bool
) -> None:
    entry = replace(CLAIM["4b"], smallest=0.5)
    found = only(
        frame(
            {("base", entry.metric, "safe", "", seed): np.zeros(20) for seed in range(3)}
            | {("ssft", entry.metric, "safe", "", seed): np.full(20, x) for seed, x in enumerate(per_run)}
        ),
        entry,
    )
    assert found.error == pytest.approx(0.1 / math.sqrt(3))
    assert (found.outcome, found.firm) == (outcome, firm)


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"chance": "shuffled"}, "chance: 'shuffled' is none of '', 'base', 'rotated'"),
        ({"rungs": ()}, r"rungs: \(\) are not some of chance, tuning"),
        ({"rungs": ("Chance",)}, r"rungs: \('Chance',\) are not some of"),
        ({"smallest": math.inf}, "smallest: inf is no finite number"),
        ({"smallest": -0.1}, "smallest: -0.1 is no finite number above zero"),
        (
            {"unit": "ratio", "smallest": 1.1},
            r"smallest: 1\.1 as a logarithm is a ratio of 3, .* write math\.log\(1\.1\)",
        ),
    ],
)
def test_a_claim_that_cannot_be_meant_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"Claim 'mine': {says}"):
        claim(replace(CLAIM["1"], name="mine", **changes))
    assert "mine" not in CLAIMS
