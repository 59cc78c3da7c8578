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

from tunescope.evidence import contrasts
from tunescope.evidence.claims import CLAIMS, TENTH, Claim
from tunescope.evidence.records import SCORES_SCHEMA, Scores, Subject, read_scores, write_scores
from tunescope.evidence.verdicts import Outcome, Verdict, as_data, by_claim, decide, displayed, judge

REPEATS = 200
CLAIM = {claim.name.split()[0]: claim for claim in CLAIMS}
TEXTS = ("model", "protocol", "learning_rate", "kind", "metric", "control")
Block = tuple[str, str, str, str, int]  # protocol, metric, kind (`kind@strength` under attack), control, seed
S, R, I = Outcome.SUPPORTED, Outcome.REFUTED, Outcome.INCONCLUSIVE  # noqa: E741


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrasts, "RESAMPLES", 199)


def frame(blocks: Mapping[Block, np.ndarray], rate: str = "eta_m") -> pd.DataFrame:
    """As `read_scores` gives them."""
    at = {kind: kind.split("@") for _, _, kind, _, _ in blocks}
    sizes = [len(values) for values in blocks.values()]
    protocol, metric, kind, control, seed = (np.repeat(names, sizes) for names in zip(*blocks, strict=True))
    eta = np.where(protocol == "pretraining", "", rate)
    columns = {
        "model": np.where(protocol == "pretraining", "base", protocol + "-" + eta),
        "protocol": protocol,
        "learning_rate": eta,
        "seed": seed.astype(int),
        "step": 9,
        "layer": math.nan,
        "kind": [at[k][0] for k in kind],
        "strength": [float(at[k][1]) if len(at[k]) > 1 else math.nan for k in kind],
        "metric": metric,
        "control": control,
        "index": np.concatenate([np.arange(size) for size in sizes]),
        "value": np.concatenate(list(blocks.values())),
    }
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
        for protocol, by in {"pretraining": 0.0, "benign": 0.0, "ssft": effect}.items():
            if protocol == "pretraining" and not claim.before:
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
    (verdict,) = judge(scores, (claim,))
    return verdict


def supported(claim: Claim, scores: Callable[[int], pd.DataFrame]) -> int:
    """How often, of 200 draws without an effect, the claim of any effect at all is supported: with a smallest effect
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
    level = {"pretraining": 2.0, "benign": 3.0, "ssft": 1.0}
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
    found = judge(scores, (CLAIM["3a"],))
    assert [(v.learning_rate, v.uncontrolled, v.control) for v in found] == [("eta_m", 1.0, 0.5), ("eta_s", 5.0, 4.0)]
    without = scores[~((scores["protocol"] == "benign") & (scores["learning_rate"] == "eta_s"))]
    assert [v.learning_rate for v in judge(without, (CLAIM["3a"],))] == ["eta_m"]


@pytest.fixture(scope="module")
def several() -> pd.DataFrame:
    """Scores for all claims on plain prompts but 2b and 6, with effects from none to large."""
    names = ["1", "3a", "3b", "3c", "4c"]
    parts = [prompts(CLAIM[n], effect, 0.5, 1, i) for i, (n, effect) in enumerate(zip(names, range(5), strict=True))]
    return pd.concat([*parts, draws(lambda _: 0.75, 1)]).astype(dict.fromkeys(TEXTS, "category"))


def test_q_is_p_corrected_over_all_verdicts(several: pd.DataFrame) -> None:
    found = judge(pd.concat([several, frame({(p, "null_share", "", "", 0): np.ones(1) for p in ("benign",)})]))
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
    assert {v.claim[:2] for v in judge(scores)} == {"4a", "4b", "4c"}
    for protocol in ("pretraining", "benign", "ssft"):
        assert judge(scores[scores["protocol"] != protocol]) == []
    assert judge(scores[:0]) == []


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
    assert data["verdicts"] == [asdict(v) for v in found]
    assert [c["name"] for c in data["claims"]] == [c.name for c in CLAIMS]
    assert [v for _, mine in by_claim(found[::-1], CLAIMS) for v in mine] == found
