"""Verdicts: planted effects are found, small ones refuted, noise called neither, and all of it the same every time."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from tunescope.errors import InputError
from tunescope.evidence import contrasts
from tunescope.evidence.claims import CLAIMS, TENTH, Claim, claim, claims_for
from tunescope.evidence.verdicts import NotJudged, Outcome, Verdict, as_data, by_claim, decide, displayed, judge
from tunescope.records.tables import SCORES_SCHEMA, Scores, Subject, read_scores, write_scores

REPEATS = 100
CLAIM = {entry.name.split()[0]: entry for entry in CLAIMS.values()}
TEXTS = [field.name for field in SCORES_SCHEMA if str(field.type) == "string"]
Block = tuple[str, str, str, str, int]  # protocol, metric, kind (`kind@strength` under attack), control, seed
S, R, I = Outcome.SUPPORTED, Outcome.REFUTED, Outcome.INCONCLUSIVE  # noqa: E741


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrasts, "RESAMPLES", 199)


def frame(blocks: Mapping[Block, np.ndarray], rate: str = "eta_m", **about: object) -> pd.DataFrame:
    """As `read_scores` gives them."""
    keys = [(*block, i) for block, values in blocks.items() for i in range(len(values))]
    protocol, metric, at, control, seed, index = map(np.array, zip(*keys, strict=True))
    split = [str(kind).partition("@") for kind in at]
    eta = np.where(np.isin(protocol, ["base", "given"]), "", rate)
    columns = dict.fromkeys(TEXTS, "") | {"protocol": protocol, "learning_rate": eta, "seed": seed, "step": 9}
    columns |= {"model": np.where(eta == "", protocol, np.char.add(np.char.add(protocol, "-"), eta))}
    columns |= {"kind": [kind for kind, *_ in split], "attack": [kind if dial else "" for kind, _, dial in split]}
    columns |= {"dial": [float(dial or "nan") for *_, dial in split], "layer": math.nan, "strength": math.nan}
    columns |= {"metric": metric, "control": control, "index": index, "group": math.nan}
    columns |= {"value": np.concatenate(list(blocks.values())), **about}
    return pd.DataFrame(columns)[SCORES_SCHEMA.names].astype(dict.fromkeys(TEXTS, "category"))


def prompts(claim: Claim, effect: float, sd: float, seeds: int, scope: int = 0, n: int = 20) -> pd.DataFrame:
    """Scores of a claim on prompts: prompts differ by more than models do, and the effect is of the unsafe alone, or
    grows with the strength of attacks.
    """
    rng, blocks = np.random.default_rng(scope), {}
    attacked = [kind for kind in claim.weights if "@" in kind]
    for seed, kind in product(range(seeds), attacked or ("safe", "unsafe")):
        base, sign = rng.normal(size=n), claim.weights.get("unsafe", 0) * (kind == "unsafe")
        if attacked:
            sign = float(kind.split("@")[1]) * np.sign(claim.weights[attacked[-1]])
        for protocol, by in {"base": 0.0, "benign": 0.0, "ssft": effect}.items():
            if protocol == "base" and not claim.before:
                continue
            blocks[protocol, claim.metric, kind, "", seed] = base + sd * rng.normal(size=n) + by * sign
    return frame(blocks)


def draws(
    observed: Callable[[np.random.Generator], float], seeds: int, scope: int = 0, sd: float = 0.01
) -> pd.DataFrame:
    """Scores of claim 2a: one share in the null space for each seed, and those of 60 rotated draws."""
    rng, blocks = np.random.default_rng(scope), {}
    for seed in range(seeds):
        blocks["ssft", "null_share", "", "", seed] = np.array([observed(rng)])
        blocks["ssft", "null_share", "", "rotated", seed] = rng.normal(0.7, sd, size=60)
    return frame(blocks)


def only(scores: pd.DataFrame, claim: Claim) -> Verdict:
    (verdict,) = judge(scores, (claim,)).verdicts
    return verdict


def supported(claim: Claim, scores: Callable[[int], pd.DataFrame]) -> int:
    """How often, of 100 draws without an effect, the claim of any effect at all is supported: with a smallest effect
    of interest above zero it is at most as often.
    """
    any_at_all = replace(claim, smallest=0.0)
    return sum(only(scores(i), any_at_all).outcome == S for i in range(REPEATS))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("seeds", [1, 3])
def test_noise_on_prompts_is_rarely_called_an_effect(seeds: int) -> None:
    for name in ("1", "5a"):
        assert supported(CLAIM[name], lambda i, c=CLAIM[name]: prompts(c, 0.0, 0.5, seeds, i)) <= 0.05 * REPEATS, name


@pytest.mark.parametrize("seeds", [1, 3])
def test_noise_in_rotated_draws_is_rarely_called_an_effect(seeds: int) -> None:
    scores = partial(draws, lambda rng: rng.normal(0.7, 0.01), seeds)
    assert supported(CLAIM["2a"], scores) <= 0.05 * REPEATS


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(("times", "sd", "outcome"), [(5, 0.3, S), (0, 0.1, R), (5, 60.0, I)])
def test_planted_effects_on_prompts(times: float, sd: float, outcome: Outcome, seeds: int) -> None:
    for name in ("1", "3a", "4a", "4c", "5a", "5b"):
        claim = CLAIM[name]
        scores = prompts(claim, times * claim.smallest, sd * claim.smallest, seeds)
        assert only(scores, claim).outcome == outcome, name


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(("share", "sd", "outcome"), [(0.85, 0.01, S), (0.7, 0.002, R), (0.72, 0.01, I)])
def test_planted_null_shares_against_rotated_draws(share: float, sd: float, outcome: Outcome, seeds: int) -> None:
    scores = draws(lambda rng: rng.normal(share, sd), seeds, sd=sd)
    assert only(scores, CLAIM["2a"]).outcome == outcome


def single(values: list[float], benign: list[float]) -> Verdict:
    blocks = {("dpo", "null_share", "", "", seed): np.array([v]) for seed, v in enumerate(values)}
    blocks |= {("benign", "null_share", "", "", seed): np.array([v]) for seed, v in enumerate(benign)}
    return only(frame(blocks), CLAIM["2b"])


def test_one_seed_of_single_numbers_decides_nothing() -> None:
    found = single([0.9], [0.5])
    assert (found.outcome, found.low, found.high, found.p, found.q) == (I, None, None, None, None)
    assert (found.uncontrolled, found.control, found.estimate) == pytest.approx((0.9, 0.5, 0.4))
    assert (found.over, found.n, found.seeds) == ("seeds", 1, 1)


def test_single_numbers_of_several_seeds() -> None:
    six = [0.9, 0.91, 0.89, 0.9, 0.92, 0.88]
    found = single(six, [0.5] * 6)
    assert (found.outcome, found.n, found.p) == (S, 6, pytest.approx(1 / 64))
    assert single(six[:3], [0.5] * 3).outcome == I  # of the eight ways to flip three seeds one is as large
    assert single([0.9, 0.1, 0.5, 0.6], [0.1, 0.9, 0.6, 0.5]).outcome == I
    assert single([0.5, 0.501, 0.502], [0.501, 0.5, 0.502]).outcome == R


def test_numbers_by_hand_for_a_claim_on_the_change_from_the_base() -> None:
    """Sensitivities: base 2, benign 3, ssft 1. It fell by one, that of the control rose by one."""
    level = {"base": 2.0, "benign": 3.0, "ssft": 1.0}
    scores = frame({(p, "log_sensitivity", "unsafe", "", 0): np.full(20, v) for p, v in level.items()})
    found = only(scores, CLAIM["4a"])
    assert (found.uncontrolled, found.control, found.estimate, found.low, found.high) == (1.0, -1.0, 2.0, 2.0, 2.0)
    assert (found.outcome, found.over, found.n, found.seeds) == (S, "prompts", 20, 1)


def test_prompts_are_paired_by_their_index() -> None:
    claim = CLAIM["3a"]
    scores = prompts(claim, 1.0, 0.01, 1)
    assert judge(scores.sample(frac=1, random_state=0), (claim,)) == judge(scores, (claim,))
    assert only(scores, claim).estimate == pytest.approx(1.0, abs=0.02)
    assert only(scores, claim).high - only(scores, claim).low < 0.02  # though prompts differ by a hundred times more


def test_the_control_has_the_same_learning_rate_and_seed() -> None:
    def at(rate: str, ssft: float, benign: float) -> pd.DataFrame:
        level = {("ssft", "safe"): 0.0, ("ssft", "unsafe"): ssft, ("benign", "safe"): 0.0, ("benign", "unsafe"): benign}
        return frame({(p, "log_gain", kind, "", 0): np.full(9, v) for (p, kind), v in level.items()}, rate)

    scores = pd.concat([at("eta_m", 1.0, 0.5), at("eta_s", 5.0, 4.0)])
    found = judge(scores, (CLAIM["3a"],)).verdicts
    assert [(v.learning_rate, v.uncontrolled, v.control) for v in found] == [("eta_m", 1.0, 0.5), ("eta_s", 5.0, 4.0)]
    without = scores[~((scores["protocol"] == "benign") & (scores["learning_rate"] == "eta_s"))]
    judged = judge(without, (CLAIM["3a"],))
    assert [v.learning_rate for v in judged.verdicts] == ["eta_m"]
    reason = "No control: no model of protocol 'benign' of learning rate 'eta_s' was measured."
    assert judged.not_judged == [NotJudged(CLAIM["3a"].name, reason, ("ssft-eta_s",))]


@pytest.fixture(scope="module")
def several() -> pd.DataFrame:
    """Scores for all claims on plain prompts but 2b and 6, with effects from none to large."""
    names = ["1", "3a", "3b", "3c", "4c"]
    parts = [prompts(CLAIM[n], effect, 0.5, 1, i) for i, (n, effect) in enumerate(zip(names, range(5), strict=True))]
    return pd.concat([*parts, draws(lambda _: 0.75, 1)]).astype(dict.fromkeys(TEXTS, "category"))


def test_q_is_p_corrected_over_all_verdicts(several: pd.DataFrame) -> None:
    found = judge(pd.concat([several, frame({("benign", "null_share", "", "", 0): np.ones(1)})])).verdicts
    p = [v.p for v in found if v.p is not None]
    assert len(p) >= 6
    assert [v.q for v in found if v.p is not None] == pytest.approx(false_discovery_control(p).tolist())
    ranked = sorted(p)
    by_hand = [min(p_ * len(p) / (j + 1) for j, p_ in enumerate(ranked) if p_ >= own) for own in p]
    assert [v.q for v in found if v.p is not None] == pytest.approx(by_hand)
    assert [(v.claim, v.q, v.outcome) for v in found if v.p is None] == [(CLAIM["2b"].name, None, I)]


def test_judging_twice_in_any_order_gives_the_same_numbers(several: pd.DataFrame) -> None:
    assert judge(several) == judge(several)
    assert judge(several.sample(frac=1, random_state=0)) == judge(several)


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
    scores = prompts(CLAIM["3a"], 1.0, 0.1, 1)
    scores.loc[scores["index"] == 7, "value"] = bad
    with pytest.raises(ValueError, match=r"log_gain of benign-eta_m, safe prompt 7 is not finite"):
        judge(scores)


def test_what_was_not_measured_is_not_judged() -> None:
    scores = prompts(CLAIM["4a"], 1.0, 0.1, 1)
    judged = judge(scores)
    assert {v.claim[:2] for v in judged.verdicts} == {"4a", "4b", "4c"}
    assert {entry.claim for entry in judged.not_judged} == {*CLAIMS} - {v.claim for v in judged.verdicts}
    reasons = {entry.claim[:2]: entry.reason for entry in judged.not_judged}
    assert reasons["2a"] == "Nobody measured metric 'null_share'."
    assert reasons["7a"] == "Nobody measured metric 'refusal_lost' with intervention 'scaled'."
    assert reasons["5c"] == "Metric 'log_sensitivity' was not measured of 'jb_co_task@0' prompts."
    for protocol in ("base", "ssft"):
        assert judge(scores[scores["protocol"] != protocol]).verdicts == []
    assert judge(scores[:0]).verdicts == []


@pytest.mark.parametrize(
    ("low", "high", "q", "outcome"),
    [
        (0.1, 0.3, 0.05, S),  # at the edge of both
        (0.1, 0.3, 0.0501, I),
        (0.1, 0.1, None, I),
        (0.0999, 0.3, 0.001, I),
        (0.05, 0.0999, 0.001, R),  # surely there, surely too small
        (0.05, 0.1, 0.001, I),
        (-3.0, -2.0, 1.0, R),
        (-3.0, -2.0, None, R),
        (-3.0, 2.0, 0.9, I),
        (None, 2.0, 0.01, I),
        (0.5, None, 0.01, I),
    ],
)
def test_decide_by_hand(low: float | None, high: float | None, q: float | None, outcome: Outcome) -> None:
    assert decide(low, high, q, 0.1) == outcome


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_no_interval_that_holds_the_smallest_effect_inside_decides(low: float, w: float, q: float, to: float) -> None:
    assert decide(low, low + w, q, low + to * w + 1e-9) == (I if low + w >= low + to * w + 1e-9 else R)


def test_claims_of_ones_own_are_judged() -> None:
    own = replace(CLAIM["3a"], name="own", metric="log_of_ones_own")
    assert only(prompts(own, 1.0, 0.1, 1), own).outcome == S


def test_numbers_are_shown_in_the_units_of_a_reader() -> None:
    assert displayed(CLAIM["3a"], TENTH) == pytest.approx(1.1)
    assert displayed(CLAIM["1"], 0.5) == 0.5


def test_verdicts_as_data_and_by_claim(several: pd.DataFrame) -> None:
    found = judge(several)
    data = as_data(found)
    assert data["verdicts"] == [asdict(v) for v in found.verdicts]
    assert [c["name"] for c in data["claims"]] == [*CLAIMS]
    assert data["not_judged"][0] == {
        "claim": CLAIM["0"].name,
        "reason": "Nobody measured metric 'refusal'.",
        "models": ("ssft-eta_m",),
    }
    turned = found._replace(verdicts=found.verdicts[::-1])
    assert [v for _, verdicts in by_claim(turned) for v in verdicts] == found.verdicts


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
    assert (found.uncontrolled, found.control, found.estimate) == pytest.approx((0.9, 0.4, 0.5))
    assert only(changed(values), replace(entry, dial=1.0)).estimate == pytest.approx(-0.2)
    assert only(changed(values), replace(entry, against_dial=16.0)).estimate == pytest.approx(0.1)
    del values["on_safe_inputs", 8.0, ""]
    assert only(changed(values), entry).estimate == pytest.approx(0.1)  # the greatest, where the same was not measured
    (missing,) = judge(changed(values), (replace(entry, dial=3.0),)).not_judged
    assert (
        missing.reason == "Metric 'refusal' with intervention 'on_unsafe_inputs' at scope '', dial 3 was not measured."
    )


def test_an_intervention_on_everything_is_not_taken_for_one_on_a_part() -> None:
    values = {("scaled", 0.5, "all"): 0.8, ("scaled", 0.5, "mlp"): 0.3}
    own, benign = changed(values, "refusal_lost"), changed(values, "refusal_lost")
    benign = benign.assign(protocol="benign", model="benign-eta_m", value=0.1)
    assert only(pd.concat([own, benign]), CLAIM["7a"]).estimate == pytest.approx(0.7)
    assert only(pd.concat([own, benign]), replace(CLAIM["7a"], scope="mlp")).estimate == pytest.approx(0.2)
    values = {("scaled", 0.5, "W_in"): 0.8, ("scaled", 0.5, "mlp"): 0.3}
    (missing,) = judge(changed(values, "refusal_lost"), (replace(CLAIM["7a"], scope=""),)).not_judged
    assert "several scopes; the claim must name one" in missing.reason


def levels(values: Mapping[str, float], rate: str = "eta_m") -> pd.DataFrame:
    """tau of safe prompts, less that of unsafe ones, by protocol."""
    ends = {"safe": 1.0, "unsafe": 0.0}
    return frame(
        {(p, "scaled_tau", k, "", 0): np.full(9, v * w) for p, v in values.items() for k, w in ends.items()}, rate
    )


def test_a_given_fine_tune_is_beside_a_benign_one_or_else_the_base() -> None:
    alone = judge(levels({"base": 1.0, "given": 3.0}), (CLAIM["1"],))
    assert [v.estimate for v in alone.verdicts] == [2.0]
    assert (alone.claims[0].control, alone.claims[0].found) == ("base", "the gap between the clusters, beyond the base")
    both = judge(levels({"base": 1.0, "benign": 2.5, "given": 3.0}, "of_its_own"), (CLAIM["1"],))
    assert [(v.model, v.estimate) for v in both.verdicts] == [("given", 0.5)]
    assert both.claims == (CLAIM["1"],)
    (missing,) = judge(levels({"base": 1.0, "given": 3.0}), (replace(CLAIM["1"], alone=None),)).not_judged
    assert missing.reason == "No control: no model of protocol 'benign' was measured."


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


def test_refusal_is_judged_for_every_fine_tune_but_the_control() -> None:
    def at(rate: float) -> np.ndarray:
        return (np.arange(40) < 40 * rate).astype(float)

    blocks = {(p, "refusal", "unsafe", "", 0): at(r) for p, r in (("base", 0.0), ("ssft", 0.9), ("benign", 0.5))}
    blocks |= {(p, "refusal", "safe", "", 0): at(0.1) for p in ("base", "ssft", "benign")}
    found = only(frame(blocks), CLAIM["0"])
    assert (found.protocol, found.outcome, found.estimate) == ("ssft", S, pytest.approx(0.9))


@pytest.mark.usefixtures("few")
def test_groups_of_prompts_are_what_varies() -> None:
    rng = np.random.default_rng(0)
    common = np.repeat(rng.normal(size=8), 5)
    blocks = {
        ("ssft", "log_sensitivity", "unsafe", "", 0): -1.5 + common,
        ("base", "log_sensitivity", "unsafe", "", 0): np.zeros(40),
    }
    apart = frame(blocks | {("benign", "log_sensitivity", "unsafe", "", 0): np.zeros(40)})
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
