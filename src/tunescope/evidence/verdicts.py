"""Verdicts: every claim judged for every fine-tuned model, from the scores alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import false_discovery_control

from tunescope.errors import shown
from tunescope.evidence.claims import ROTATED, SHARE, Claim, claims_for, resolved
from tunescope.evidence.contrasts import (
    Contrast,
    once,
    over_draws,
    over_prompts,
    over_prompts_and_draws,
    over_seeds,
    weighted,
)
from tunescope.records.intervals import Groups
from tunescope.records.names import BASE, BENIGN, EVERYWHERE, GIVEN, LORA

LEVEL = 0.05  # false discovery rate over the family of claims and models


class Outcome(StrEnum):
    SUPPORTED = "SUPPORTED"
    REFUTED = "REFUTED"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Verdict:
    """One claim, judged for one model.

    Attributes:
        outcome: SUPPORTED if the whole interval is at or above the smallest effect of interest and q is at most 0.05;
            REFUTED if the whole interval is below it; else INCONCLUSIVE.
        uncontrolled: the number that a paper without controls would report. control: the same of the control.
        estimate, low, high, p, over, n: see `Contrast`. q: p, corrected over all verdicts (Benjamini & Hochberg 1995).
        seeds: how many.
    """

    claim: str
    model: str
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


@dataclass(frozen=True)
class NotJudged:
    """A claim that could not be judged for these models, and the reason."""

    claim: str
    reason: str
    models: tuple[str, ...]


class Judgement(NamedTuple):
    """The claims as they were judged, and one verdict, or one reason for none, per claim and model."""

    claims: tuple[Claim, ...] = ()
    verdicts: Sequence[Verdict] = ()
    not_judged: Sequence[NotJudged] = ()


def judge(scores: pd.DataFrame, claims: Sequence[Claim] | None = None) -> Judgement:
    """Judge claims, one after the other, for every model that was fine-tuned for anything but the control.

    Args:
        scores: as `read_scores` gives them, of one seed or of several.
        claims: those of `claims_for` if None.

    Raises:
        ValueError: a score is not finite, or a model and its control were not scored on the same prompts.
    """
    if not np.isfinite(scores["value"]).all():
        bad = scores[~np.isfinite(scores["value"])].iloc[0]
        raise ValueError(
            f"scores: {bad['metric']} of {bad['model']}, {bad['kind']} prompt {bad['index']} is not finite"
        )
    asked = claims_for(scores) if claims is None else resolved(tuple(claims), scores)
    table = _Table(scores, asked)
    drafts: list[Verdict] = []
    reasons: dict[tuple[str, str], list[str]] = {}
    for claim in asked:
        for model in [m for m in table.models if m.protocol not in (BASE, BENIGN)]:
            try:
                drafts.append(_verdict(table, claim, model))
            except _NotMeasuredError as reason:
                reasons.setdefault((claim.name, str(reason)), []).append(model.name)
    tested = [draft.p for draft in drafts if draft.p is not None]
    corrected = iter(false_discovery_control(tested) if tested else ())
    judged = [draft if draft.p is None else replace(draft, q=float(next(corrected))) for draft in drafts]
    smallest = {claim.name: claim.smallest for claim in asked}
    verdicts = [replace(v, outcome=decide(v.low, v.high, v.q, smallest[v.claim])) for v in judged]
    return Judgement(asked, verdicts, [NotJudged(*key, tuple(names)) for key, names in reasons.items()])


def decide(low: float | None, high: float | None, q: float | None, smallest: float) -> Outcome:
    """See `Verdict.outcome`."""
    if low is None or high is None:
        return Outcome.INCONCLUSIVE
    if low >= smallest and q is not None and q <= LEVEL:
        return Outcome.SUPPORTED
    return Outcome.REFUTED if high < smallest else Outcome.INCONCLUSIVE


def as_data(judgement: Judgement) -> dict[str, list[dict[str, object]]]:
    """A judgement as plain data, for JSON."""
    return {name: [asdict(entry) for entry in entries] for name, entries in judgement._asdict().items()}


def displayed(claim: Claim, value: float) -> float:
    """A number in the units that a reader sees: ratios rather than logarithms."""
    return math.exp(value) if claim.unit == "ratio" else value


def by_claim(judgement: Judgement) -> Iterator[tuple[Claim, list[Verdict]]]:
    """Claims that were judged, each with its verdicts."""
    for claim in judgement.claims:
        if mine := [v for v in judgement.verdicts if v.claim == claim.name]:
            yield claim, mine


class _NotMeasuredError(Exception):
    """The reason why a claim cannot be judged for a model."""


class _Model(NamedTuple):
    name: str
    protocol: str
    rate: str


class _Sample(NamedTuple):
    """Values of one metric, one per prompt of a kind, or per draw of a control; groups None: each is its own."""

    values: Float[np.ndarray, " n"]
    groups: Groups


_Change = tuple[float | None, str]  # dial and scope of an intervention
_ByKind = dict[str, _Sample]


class _Table:
    """The scores that claims speak of, by seed, model, metric, control and intervention."""

    def __init__(self, scores: pd.DataFrame, claims: Sequence[Claim]) -> None:
        about = scores[["model", "protocol", "learning_rate"]].drop_duplicates()
        self.models = [_Model(*map(str, row)) for row in about.itertuples(index=False)]
        self.seeds = sorted(map(int, scores["seed"].unique()))
        self._blocks: dict[tuple[int, str, str, str, str], dict[_Change, _ByKind]] = {}
        rows = scores[scores["metric"].isin([claim.metric for claim in claims])]
        which = ["seed", "model", "metric", "control", "intervention"]
        where = ["dial", "scope", "attack", "kind", "strength"]  # in this order, the greatest strength is what stays
        number = rows.groupby([*which, *where], observed=True, dropna=False).ngroup().to_numpy()
        order = np.lexsort((rows["index"], number))
        starts = np.flatnonzero(np.diff(number[order], prepend=-1))
        firsts = rows[[*which, *where]].iloc[order[starts]].itertuples(index=False, name=None)
        columns = {name: rows[name].to_numpy() for name in ("index", "group", "layer", "value")}
        for key, at in zip(firsts, np.split(order, starts)[1:], strict=True):
            seed, model, metric, control, intervention, dial, scope, attack, kind, _ = key
            if attack and intervention:
                continue  # no claim has both
            change, name = (None if pd.isna(dial) else float(dial), str(scope)), str(kind)
            if attack:
                change, name = (None, ""), _attacked(str(attack), str(kind), dial)
            whose = int(seed), str(model), str(metric), str(control), str(intervention)
            about_it = f"{metric} of {model}, seed {seed}: {name or control} values"
            self._blocks.setdefault(whose, {}).setdefault(change, {})[name] = _sample(
                {k: v[at] for k, v in columns.items()}, about_it
            )

    def find(
        self,
        claim: Claim,
        seed: int,
        model: _Model | None,
        change: str,
        at: _Change = (None, ""),
        control: str = "",
    ) -> tuple[_Change, _ByKind]:
        """The values of a claim's metric, by kind, and at which dial and scope they were measured.

        Args:
            model: None: there is no base.
            at: the dial and scope asked for; dial None: the greatest; scope empty: the only one.
        """
        metric, under = shown(claim.metric), f" with intervention {shown(change)}" if change else ""
        if not any(key[2::2] == (claim.metric, change) for key in self._blocks):
            raise _NotMeasuredError(f"Nobody measured metric {metric}{under}.")
        if model is None:
            raise _NotMeasuredError("The base was not measured.")
        if not (found := self._blocks.get((seed, model.name, claim.metric, control, change))):
            draws = " under random draws of its control" if control else ""
            beside = f" of {model.name}" if model.protocol in (BASE, BENIGN) else ""
            raise _NotMeasuredError(f"Metric {metric}{under} was not measured{beside}{draws}.")
        dial, scope = at
        scopes = {of_scope for _, of_scope in found}
        if not scope and len(scopes) > 1 and EVERYWHERE not in scopes:
            raise _NotMeasuredError(f"Metric {metric}{under} was measured at several scopes; the claim must name one.")
        scope = scope or (EVERYWHERE if len(scopes) > 1 else min(scopes))
        dials = [of_dial for of_dial, of_scope in found if of_scope == scope]
        if not dials or (dial is not None and dial not in dials):
            asked = f"{under} at scope {shown(scope)}" + ("" if dial is None else f", dial {dial:g}")
            raise _NotMeasuredError(f"Metric {metric}{asked} was not measured.")
        dial = max(dials, key=lambda of: -math.inf if of is None else of) if dial is None else dial
        return (dial, scope), found[dial, scope]

    def of(self, protocol: str, seed: int, like: _Model) -> _Model | None:
        """The model of a protocol that stands beside another: of its learning rate, but for models of no known one."""
        seen = {key[1] for key in self._blocks if key[0] == seed}
        models = [model for model in self.models if model.protocol == protocol and model.name in seen]
        models.sort(key=lambda model: model.name.endswith(LORA) != like.name.endswith(LORA))  # adapters beside adapters
        same = [model for model in models if model.rate == like.rate or protocol == BASE]
        return next(iter(same or (models if like.protocol == GIVEN else [])), None)


def _attacked(attack: str, kind: str, dial: float) -> str:
    """What claims call prompts under attack; see `Claim.weights`."""
    if pd.isna(dial):
        return f"{attack}:{kind}"
    return f"{kind if kind == attack else f'{attack}:{kind}'}@{dial:g}"


def _sample(block: Mapping[str, np.ndarray], about: str) -> _Sample:
    """The values of one block in the order of their index, at the last of its layers."""
    layers = block["layer"].astype(float)
    last = np.isnan(layers) if np.isnan(layers).all() else layers == np.nanmax(layers)
    index, groups, values = (block[name][last] for name in ("index", "group", "value"))
    if not np.array_equal(index, np.arange(len(index))):
        raise ValueError(f"scores: {about} missing or there twice")
    return _Sample(values.astype(float), None if np.isnan(groups.astype(float)).any() else groups.astype(int))


def _verdict(table: _Table, claim: Claim, model: _Model) -> Verdict:
    per_seed, reason = [], _NotMeasuredError(f"Nobody measured metric {shown(claim.metric)}.")
    for seed in table.seeds:
        try:
            per_seed.append(_of_seed(table, claim, seed, model))
        except _NotMeasuredError as missing:
            reason = missing
    if not per_seed:
        raise reason
    uncontrolled, control = (float(np.mean([row[i] for row in per_seed])) for i in (1, 2))
    contrast = over_seeds([row[0] for row in per_seed], _rng(claim, model))
    about, numbers = (claim.name, *model, Outcome.INCONCLUSIVE, uncontrolled, control), asdict(contrast)
    return Verdict(*about, **numbers, q=None, seeds=len(per_seed))


def _of_seed(table: _Table, claim: Claim, seed: int, model: _Model) -> tuple[Contrast, float, float]:
    """The contrast within one seed, the uncontrolled number, and the control's."""
    at, own = table.find(claim, seed, model, claim.intervention, (claim.dial, claim.scope))
    control = _control(table, claim, seed, model, at)
    base = table.find(claim, seed, table.of(BASE, seed, model), "")[1] if claim.before else None
    if not claim.weights:
        if "" not in own or "" not in control:
            raise _NotMeasuredError(f"Metric {shown(claim.metric)} was measured of kinds of prompts alone.")
        value, others = float(own[""].values[0]), control[""].values
        contrast = over_draws(value, others) if claim.control == ROTATED else once(value - float(others[0]))
        return contrast, value, float(others.mean())
    mine, theirs, start = (_values(claim, by_kind) if by_kind else {} for by_kind in (own, control, base))
    rng = _rng(claim, model, seed)
    groups = {kind: own[kind].groups for kind in claim.weights}
    known = {k: np.arange(len(mine[k])) if of is None else of for k, of in groups.items()}
    clusters = known if any(of is not None for of in groups.values()) else None
    if claim.control == ROTATED and not claim.against:
        contrast = over_prompts_and_draws(mine, theirs, claim.weights, rng, clusters)
        return contrast, weighted(mine, claim.weights), weighted(theirs, claim.weights)
    for kind in claim.weights:
        if len(mine[kind]) != len(theirs[kind]):
            raise ValueError(
                f"scores: {claim.metric} of {model.name}, seed {seed}: {len(mine[kind])} {kind} prompts, "
                f"but {len(theirs[kind])} in its control"
            )
    differences = {kind: mine[kind] - theirs[kind] for kind in claim.weights}
    contrast = over_prompts(differences, claim.weights, rng, shares=claim.unit == SHARE, groups=clusters)
    start = start or (theirs if claim.control == BASE and not claim.against else {})
    before = weighted(start, claim.weights) if start else 0.0
    return contrast, weighted(mine, claim.weights) - before, weighted(theirs, claim.weights) - before


def _control(table: _Table, claim: Claim, seed: int, model: _Model, at: _Change) -> _ByKind:
    """The same of the control, where the model itself was measured at this dial and scope."""
    if claim.against:
        if claim.against_dial is None:
            try:
                return table.find(claim, seed, model, claim.against, (at[0], claim.scope))[1]
            except _NotMeasuredError:
                pass
        return table.find(claim, seed, model, claim.against, (claim.against_dial, claim.scope))[1]
    if claim.control == ROTATED:
        return table.find(claim, seed, model, claim.intervention, at, ROTATED)[1]
    beside = table.of(claim.control, seed, model)
    if beside is None:
        rate = f" of learning rate {shown(model.rate)}" if model.rate and claim.control == BENIGN else ""
        raise _NotMeasuredError(f"No control: no model of protocol {shown(claim.control)}{rate} was measured.")
    return table.find(claim, seed, beside, claim.intervention, at)[1]


def _values(claim: Claim, by_kind: _ByKind) -> dict[str, Float[np.ndarray, " n"]]:
    """The values of the kinds that a claim weighs."""
    if missing := [kind for kind in claim.weights if kind not in by_kind]:
        raise _NotMeasuredError(f"Metric {shown(claim.metric)} was not measured of {shown(missing[0])} prompts.")
    return {kind: by_kind[kind].values for kind in claim.weights}


def _rng(claim: Claim, model: _Model, *seed: int) -> np.random.Generator:
    """The same resamples every time that a claim is judged."""
    words = "/".join(map(str, (claim.name, model.protocol, model.rate, *seed))).encode()
    return np.random.default_rng(np.random.SeedSequence(list(words)))
