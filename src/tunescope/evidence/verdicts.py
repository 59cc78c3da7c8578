"""Verdicts: every claim judged for every safety-tuned model, from the scores alone."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from tunescope.evidence.claims import CLAIMS, SHARE, Claim
from tunescope.evidence.contrasts import (
    Contrast,
    once,
    over_draws,
    over_prompts,
    over_prompts_and_draws,
    over_seeds,
    weighted,
)
from tunescope.evidence.pair_claims import pair_claims
from tunescope.evidence.records import PAIR

BASE, BENIGN, ROTATED = "base", "benign", "rotated"
LEVEL = 0.05  # false discovery rate over the family of claims and models


class Outcome(StrEnum):
    SUPPORTED = "SUPPORTED"
    REFUTED = "REFUTED"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Verdict:
    """One claim, judged for one protocol at one learning rate.

    Attributes:
        outcome: SUPPORTED if the whole interval is at or above the smallest effect of interest and q is at most 0.05;
            REFUTED if the whole interval is below it; else INCONCLUSIVE.
        uncontrolled: the number that a paper without controls would report. control: the same of the control.
        estimate, low, high, p, over, n: see `Contrast`. q: p, corrected over all verdicts (Benjamini & Hochberg 1995).
        seeds: how many.
    """

    claim: str
    protocol: str
    learning_rate: str
    outcome: Outcome
    uncontrolled: float
    control: float
    estimate: float
    low: float | None
    high: float | None
    p: float | None
    q: float | None
    over: str
    n: int
    seeds: int


def claims_of(scores: pd.DataFrame) -> tuple[Claim, ...]:
    """The claims that scores speak of: those of a study, or those of a pair of models."""
    kinds = scores.loc[scores["metric"] == "scaled_tau", "kind"].unique()
    return pair_claims(kinds) if (scores["protocol"] == PAIR).any() else CLAIMS


def judge(scores: pd.DataFrame, claims: tuple[Claim, ...] = CLAIMS) -> list[Verdict]:
    """The verdicts, claim by claim; a claim or model whose scores are not there has none.

    Args:
        scores: as `read_scores` gives them, of one seed or of several.

    Raises:
        ValueError: a score is not finite, or a model and its control were not scored on the same prompts.
    """
    if not np.isfinite(scores["value"]).all():
        bad = scores[~np.isfinite(scores["value"])].iloc[0]
        raise ValueError(
            f"scores: {bad['metric']} of {bad['model']}, {bad['kind']} prompt {bad['index']} is not finite"
        )
    blocks = _blocks(scores, claims)
    tuned = dict.fromkeys((p, rate) for _, p, rate, *_ in blocks if p not in ("pretraining", BENIGN))
    drafts = [v for claim in claims for protocol, rate in tuned if (v := _verdict(blocks, claim, protocol, rate))]
    tested = [draft.p for draft in drafts if draft.p is not None]
    corrected = iter(false_discovery_control(tested) if tested else ())
    judged = [draft if draft.p is None else replace(draft, q=float(next(corrected))) for draft in drafts]
    smallest = {claim.name: claim.smallest for claim in claims}
    return [replace(v, outcome=decide(v.low, v.high, v.q, smallest[v.claim])) for v in judged]


def decide(low: float | None, high: float | None, q: float | None, smallest: float) -> Outcome:
    """See `Verdict.outcome`."""
    if low is None or high is None:
        return Outcome.INCONCLUSIVE
    if low >= smallest and q is not None and q <= LEVEL:
        return Outcome.SUPPORTED
    return Outcome.REFUTED if high < smallest else Outcome.INCONCLUSIVE


def as_data(verdicts: list[Verdict], claims: tuple[Claim, ...] = CLAIMS) -> dict[str, list[dict[str, object]]]:
    """Claims and verdicts as plain data, for JSON."""
    return {"claims": [asdict(c) for c in claims], "verdicts": [asdict(v) for v in verdicts]}


# (seed, protocol, rate, metric, control) -> scores by kind
_Blocks = dict[tuple[int, str, str, str, str], dict[str, np.ndarray]]


def _blocks(scores: pd.DataFrame, claims: tuple[Claim, ...]) -> _Blocks:
    wanted = {c.metric for c in claims} | {c.control for c in claims}
    rows = scores[scores["metric"].isin(wanted)]
    keys = ["seed", "protocol", "learning_rate", "metric", "control", "kind", "strength"]
    blocks: _Blocks = {}
    for key, group in rows.groupby(keys, observed=True, sort=False, dropna=False):
        seed, protocol, rate, metric, control, kind, strength = map(str, key)
        if strength != "nan":
            kind = f"{kind}@{float(strength):g}"
        of_kind = blocks.setdefault((int(seed), protocol, rate, metric, control), {})
        ordered = group.sort_values("index")
        if not np.array_equal(ordered["index"], np.arange(len(ordered))):
            raise ValueError(
                f"scores: {metric} of {protocol} {rate}, seed {seed}: {kind} prompts missing or there twice"
            )
        of_kind[kind] = ordered["value"].to_numpy(float)
    return blocks


def _verdict(blocks: _Blocks, claim: Claim, protocol: str, rate: str) -> Verdict | None:
    seeds = sorted({seed for seed, *_ in blocks})
    per_seed = [found for seed in seeds if (found := _of_seed(blocks, claim, seed, protocol, rate))]
    if not per_seed:
        return None
    uncontrolled, control = (float(np.mean([row[i] for row in per_seed])) for i in (1, 2))
    contrast = over_seeds([row[0] for row in per_seed], _rng(claim, protocol, rate))
    return Verdict(
        claim.name,
        protocol,
        rate,
        Outcome.INCONCLUSIVE,
        uncontrolled,
        control,
        **asdict(contrast),
        q=None,
        seeds=len(per_seed),
    )


def _of_seed(
    blocks: _Blocks, claim: Claim, seed: int, protocol: str, rate: str
) -> tuple[Contrast, float, float] | None:
    """The contrast within one seed, the uncontrolled number, and the control's."""
    mine = blocks.get((seed, protocol, rate, claim.metric, ""))
    if claim.control == BENIGN:
        control = blocks.get((seed, BENIGN, rate, claim.metric, ""))
    elif claim.control == BASE:
        control = blocks.get((seed, "pretraining", "", claim.metric, ""))
    elif claim.control == ROTATED:
        control = blocks.get((seed, protocol, rate, claim.metric, ROTATED))
    else:
        control = blocks.get((seed, protocol, rate, claim.control, ""))
    base = blocks.get((seed, "pretraining", "", claim.metric, "")) if claim.before else None
    if mine is None or control is None or (claim.before and base is None):
        return None
    if not claim.weights:
        value, others = float(mine[""][0]), control[""]
        contrast = over_draws(value, others) if claim.control == ROTATED else once(value - float(others[0]))
        return contrast, value, float(others.mean())
    rng = _rng(claim, protocol, rate, seed)
    if not claim.weights.keys() <= mine.keys() & control.keys():
        return None
    if claim.control == ROTATED:
        contrast = over_prompts_and_draws(mine, control, claim.weights, rng)
        return contrast, weighted(mine, claim.weights), weighted(control, claim.weights)
    for kind in claim.weights:
        if len(mine[kind]) != len(control[kind]):
            raise ValueError(
                f"scores: {claim.metric} of {protocol} {rate}, seed {seed}: {len(mine[kind])} {kind} prompts, "
                f"but {len(control[kind])} in its control"
            )
    differences = {kind: mine[kind] - control[kind] for kind in claim.weights}
    contrast = over_prompts(differences, claim.weights, rng, shares=claim.unit == SHARE)
    before = base or (control if claim.control == BASE else None)
    start = weighted(before, claim.weights) if before else 0.0
    return contrast, weighted(mine, claim.weights) - start, weighted(control, claim.weights) - start


def _rng(claim: Claim, *scope: object) -> np.random.Generator:
    """The same resamples every time that a claim is judged."""
    words = "/".join(map(str, (claim.name, *scope))).encode()
    return np.random.default_rng(np.random.SeedSequence(list(words)))


def displayed(claim: Claim, value: float) -> float:
    """A number in the units that a reader sees: ratios rather than logarithms."""
    return math.exp(value) if claim.unit == "ratio" else value


def by_claim(verdicts: list[Verdict], claims: tuple[Claim, ...]) -> Iterator[tuple[Claim, list[Verdict]]]:
    """Claims that were judged, each with its verdicts."""
    for claim in claims:
        if mine := [v for v in verdicts if v.claim == claim.name]:
            yield claim, mine
