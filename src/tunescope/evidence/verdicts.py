"""Verdicts: every claim, for every safety-tuned model, on every rung of the ladder of controls; decided over runs."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import false_discovery_control

from tunescope.errors import shown
from tunescope.evidence.claims import ROTATED, RUNGS, SHARE, Claim, Rung, claims_for
from tunescope.evidence.contrasts import FEWEST_RUNS, Contrast, over_prompts, over_runs, weighted
from tunescope.records.intervals import Groups
from tunescope.records.names import (
    BASE,
    EVERYWHERE,
    EXTRAPOLATED,
    GIVEN,
    LORA,
    LOST,
    OTHER_LABELS,
    OWN_LABELS,
    REMOVED,
    SAFE,
    aside,
)

LEVEL = 0.05  # false discovery rate over all that is judged
EDGE = 2.0  # standard errors by which the end of an interval may move from machine to machine

_WHY = ": it was left out (--skip, say), or does not apply to these models, which the run then said"


class Outcome(StrEnum):
    """What the interval over runs says of an effect, beside the smallest one of interest, s."""

    SUPPORTED = "SUPPORTED"  # all of it at s or above, and q at most 0.05
    SMALLER = "SMALLER"  # above zero, and below s
    ABSENT = "ABSENT"  # within -s and s, and not above zero
    REVERSED = "REVERSED"  # at -s or below
    OPEN = "OPEN"  # none of these


@dataclass(frozen=True)
class Verdict:
    """One claim, judged for one model on one rung.

    Attributes:
        rung: what the effect is to be beyond, of `LADDER`. control: what stands for it: a model, `rotated`, another
            intervention, or `zero`.
        outcome: None of fewer than three runs, from which there are estimates alone.
        own: the model's own number, which a paper without controls would report.
        estimate, error, low, high: mean over runs of the effect beyond the control; its standard error and its 95 %
            interval, of one run over what varies within it. p: one-sided, of no effect. q: p, corrected over all
            verdicts (Benjamini & Hochberg 1995).
        over: what the interval speaks of: `runs`, or of one run `prompts`, `groups` of them, `values` of something else
            (each of these three also with ` and draws`), or `draws`. n: how many of the first of these.
        runs: how many. per_run: the estimate of each.
        by_layer: the outcome at each layer, from 0 on, if it was measured at several; p is corrected over all
            verdicts with this layer in the place of the last. None: not judged there. Empty of fewer than three runs.
        firm: whether the outcome stays what it is if each end of the interval is moved by `EDGE` standard errors,
            either way: whether it will when the same runs are made on another machine. None where there is no outcome.
    """

    claim: str
    model: str
    protocol: str
    learning_rate: str
    rung: str
    control: str
    outcome: Outcome | None
    own: float
    estimate: float
    error: float | None
    low: float | None
    high: float | None
    p: float | None
    q: float | None
    over: str
    n: int
    runs: int
    per_run: tuple[float, ...]
    by_layer: tuple[Outcome | None, ...] = ()
    firm: bool | None = None


@dataclass(frozen=True)
class NotJudged:
    """A claim that could not be judged on a rung for these models, and the reason."""

    claim: str
    rung: str
    reason: str
    models: tuple[str, ...]


class Judgement(NamedTuple):
    """The claims as they were judged, and one verdict, or one reason for none, per claim, model and rung."""

    claims: tuple[Claim, ...] = ()
    verdicts: Sequence[Verdict] = ()
    not_judged: Sequence[NotJudged] = ()

    @property
    def runs(self) -> int:
        """Of the verdict with the most of them."""
        return max((verdict.runs for verdict in self.verdicts), default=1)


def judge(scores: pd.DataFrame, claims: Sequence[Claim] | None = None) -> Judgement:
    """Judge claims, one after the other, for every model that is no control, rung by rung.

    Args:
        scores: as `read_scores` gives them, of one run or of several, which their seeds tell apart.
        claims: those of `claims_for` if None.

    Raises:
        ValueError: a score is not finite, or a model and its control were not scored on the same prompts.
    """
    if not np.isfinite(scores["value"]).all():
        bad = scores[~np.isfinite(scores["value"])].iloc[0]
        raise ValueError(
            f"scores: {bad['metric']} of {bad['model']}, {bad['kind']} prompt {bad['index']} is not finite"
        )
    asked = claims_for(scores) if claims is None else tuple(claims)
    about = scores[["model", "protocol", "learning_rate"]].drop_duplicates()
    models = [_Model(*map(str, row)) for row in about.itertuples(index=False)]
    seeds = sorted(map(int, scores["seed"].unique()))
    scores = scores[scores["metric"].isin([each.metric for claim in asked for each in (claim, _ungated(claim))])]
    layer, last = _layers(scores)
    drafts, reasons = _drafts(_Table(scores[last], models, seeds), asked)
    verdicts = _decided(drafts, asked)
    if len(seeds) >= FEWEST_RUNS and layer.any():
        layers = range(1 + int(layer.max()))
        verdicts = _with_layers(verdicts, (_Table(scores[layer == at], models, seeds) for at in layers), asked)
    return Judgement(asked, verdicts, [NotJudged(*key, tuple(names)) for key, names in reasons.items()])


def _layers(scores: pd.DataFrame) -> tuple["pd.Series[float]", "pd.Series[bool]"]:
    """Of each score the layer at which it was measured, and whether verdicts are read off it.

    That is at the last layer, or where there is a score of the model as a whole, off this.
    """
    plain = (scores["attack"] == "") & (scores["intervention"] == "")
    layer = scores["layer"].astype(float).where(plain)  # of an intervention it is where that was made
    whole = scores["metric"].isin(scores.loc[plain & layer.isna(), "metric"].unique())
    latest = layer.groupby(scores["metric"], observed=True).transform("max")
    return layer, layer.isna() | ((layer == latest) & ~whole)


def _drafts(table: "_Table", claims: Sequence[Claim]) -> tuple[list[Verdict], dict[tuple[str, str, str], list[str]]]:
    """Verdicts before anything is decided; by claim, rung and reason the models of which there is none."""
    drafts: list[Verdict] = []
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for claim in claims:
        for model in [m for m in table.models if not aside(m.protocol)]:
            for rung in claim.ladder:
                try:
                    drafts.append(_verdict(table, claim, model, rung))
                except _NotMeasuredError as reason:
                    reasons.setdefault((claim.name, rung.name, str(reason)), []).append(model.name)
    return drafts, reasons


def _decided(drafts: Sequence[Verdict], claims: Sequence[Claim]) -> list[Verdict]:
    """The drafts with p corrected over them all; of enough runs with their outcomes."""
    tested = [draft.p for draft in drafts if draft.p is not None]
    corrected = iter(false_discovery_control(tested) if tested else ())
    judged = [draft if draft.p is None else replace(draft, q=float(next(corrected))) for draft in drafts]
    smallest = {claim.name: claim.smallest for claim in claims}
    return [v if v.runs < FEWEST_RUNS else _with_outcome(v, smallest[v.claim]) for v in judged]


def _with_outcome(v: Verdict, smallest: float) -> Verdict:
    outcome = decide(v.low, v.high, v.q, smallest)
    if v.low is None or v.high is None or v.error is None:
        return replace(v, outcome=outcome, firm=True)
    return replace(v, outcome=outcome, firm=is_firm(v.low, v.high, v.error, v.q, smallest))


def _with_layers(verdicts: list[Verdict], layers: Iterable["_Table"], claims: Sequence[Claim]) -> list[Verdict]:
    """The verdicts, with the outcome at each layer: judged with what was measured there in the place of the last."""

    def which(v: Verdict) -> tuple[str, str, str]:
        return v.claim, v.model, v.rung

    found: list[dict[tuple[str, str, str], Outcome | None]] = []
    for table in layers:
        here = {which(v): v for v in _drafts(table, [each for each in claims if each.metric in table.metrics])[0]}
        judged = _decided([here.get(which(v), v) for v in verdicts], claims)
        found.append({which(v): v.outcome for v in judged if which(v) in here})
    times = Counter(key for outcomes in found for key in outcomes)
    return [replace(v, by_layer=tuple(o.get(which(v)) for o in found)) if times[which(v)] > 1 else v for v in verdicts]


def decide(low: float | None, high: float | None, q: float | None, smallest: float) -> Outcome:
    """See `Outcome`."""
    if low is None or high is None:
        return Outcome.OPEN
    if low >= smallest and q is not None and q <= LEVEL:
        return Outcome.SUPPORTED
    if high <= -smallest:
        return Outcome.REVERSED
    if -smallest < low and high < smallest:
        return Outcome.SMALLER if low > 0 else Outcome.ABSENT
    return Outcome.OPEN


def is_firm(low: float, high: float, error: float, q: float | None, smallest: float) -> bool:
    """Whether the outcome stays what it is; see `Verdict`."""
    by = EDGE * error
    moved = {decide(low + a, high + b, q, smallest) for a, b in product((-by, by), repeat=2)}
    return moved == {decide(low, high, q, smallest)}


def judged_at(judgement: Judgement, factor: float) -> list[Outcome | None]:
    """The outcome of each verdict, had all smallest effects of interest been this many times as large.

    Intervals and corrected p-values know nothing of the smallest effect, and stay what they are.
    """
    smallest = {claim.name: claim.smallest for claim in judgement.claims}
    return [
        None if v.outcome is None else decide(v.low, v.high, v.q, factor * smallest[v.claim])
        for v in judgement.verdicts
    ]


def costs(scores: pd.DataFrame, claims: Sequence[Claim]) -> Sequence[Verdict]:
    """Of claims about a change that was chosen, the share of safe prompts that it costs, as estimates beyond zero."""
    chosen = [claim for claim in claims if claim.intervention == EXTRAPOLATED]
    return judge(scores, [replace(claim, weights={SAFE: 1.0}, rungs=RUNGS[:1]) for claim in chosen]).verdicts


def standing(verdicts: Sequence[Verdict], claim: Claim) -> str:
    """The highest rung up to which a claim is supported for one model; empty where it is on none.

    Args:
        verdicts: those of this claim and model.
    """
    found = {v.rung: v.outcome for v in verdicts}
    highest = ""
    for rung in claim.rungs:
        if found.get(rung) is not Outcome.SUPPORTED:
            break
        highest = rung
    return highest


def at_layer(verdicts: Sequence[Verdict], layer: int) -> list[Verdict]:
    """Those that have layers, with the outcome at one of them for their own."""
    return [replace(v, outcome=v.by_layer[layer]) for v in verdicts if v.by_layer]


def as_data(judgement: Judgement) -> dict[str, list[dict[str, object]]]:
    """A judgement as plain data, for JSON."""
    return {name: [asdict(entry) for entry in entries] for name, entries in judgement._asdict().items()}


def displayed(claim: Claim, value: float) -> float:
    """A number in the units that a reader sees: ratios rather than logarithms."""
    return math.exp(min(value, 700.0)) if claim.unit == "ratio" else value


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
    """The scores that claims speak of, by seed, model, metric, control and intervention: of one layer at most."""

    def __init__(self, rows: pd.DataFrame, models: Sequence[_Model], seeds: Sequence[int]) -> None:
        self.models, self.seeds = models, seeds
        self._blocks: dict[tuple[int, str, str, str, str], dict[_Change, _ByKind]] = {}
        which = ["seed", "model", "metric", "control", "intervention"]
        where = ["dial", "scope", "attack", "kind", "strength"]  # in this order, the greatest strength is what stays
        number = rows.groupby([*which, *where], observed=True, dropna=False).ngroup().to_numpy()
        order = np.lexsort((rows["index"], number))
        starts = np.flatnonzero(np.diff(number[order], prepend=-1))
        firsts = rows[[*which, *where]].iloc[order[starts]].itertuples(index=False, name=None)
        columns = {name: rows[name].to_numpy() for name in ("index", "group", "value")}
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
        self.metrics = {key[2] for key in self._blocks}
        self._measured = {seed: {key[1] for key in self._blocks if key[0] == seed} for seed in seeds}

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
            raise _NotMeasuredError(f"Metric {metric}{under} was measured of no model{_WHY if change else ''}.")
        if model is None:
            raise _NotMeasuredError("The base was not measured.")
        if not (found := self._blocks.get((seed, model.name, claim.metric, control, change))):
            draws = " under random draws of its control" if control else ""
            beside = f" of {model.name}" if aside(model.protocol) else ""
            why = _WHY if change else ""
            raise _NotMeasuredError(f"Metric {metric}{under} was not measured{beside}{draws}{why}.")
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
        seen = self._measured[seed]
        models = [model for model in self.models if model.protocol == protocol and model.name in seen]
        # Adapters beside adapters; then by name, not by the order of the rows.
        models.sort(key=lambda model: (model.name.endswith(LORA) != like.name.endswith(LORA), model.name))
        same = [model for model in models if model.rate == like.rate or protocol.startswith(BASE)]
        return next(iter(same or (models if like.protocol == GIVEN else [])), None)

    def base(self, seed: int, model: _Model) -> _Model | None:
        """The base, measured with the labels of this model."""
        return self.of(BASE + (f"{OTHER_LABELS}{model.protocol}" if _labels(model) else ""), seed, model)


def _labels(model: _Model) -> bool:
    """Whether its prompts are labelled by another thing than their safety: they are not those of other models then."""
    return model.protocol in OWN_LABELS


def _attacked(attack: str, kind: str, dial: float) -> str:
    """What claims call prompts under attack; see `Claim.weights`."""
    if pd.isna(dial):
        return f"{attack}:{kind}"
    return f"{kind if kind == attack else f'{attack}:{kind}'}@{dial:g}"


def _sample(block: Mapping[str, np.ndarray], about: str) -> _Sample:
    """The values of one block in the order of their index."""
    index, groups, values = (block[name] for name in ("index", "group", "value"))
    if not np.array_equal(index, np.arange(len(index))):
        raise ValueError(f"scores: {about} missing or there twice")
    return _Sample(values.astype(float), None if np.isnan(groups.astype(float)).any() else groups.astype(int))


class _Effect(NamedTuple):
    """What a claim says of one model in one run, beyond chance.

    Attributes:
        own: the weighted mean of the model's own scores.
        values: by kind, what each prompt adds: its score, less the same of base or of the other intervention.
        drawn: mean of the random draws that are chance; spread: their standard deviation, draws: how many.
    """

    own: float
    values: _ByKind
    drawn: float = 0.0
    spread: float = 0.0
    draws: int = 0

    @property
    def error_of_draws(self) -> float:
        """Of their mean: what a control is set against is how far both are from chance on average."""
        return self.spread / math.sqrt(max(1, self.draws))


def _verdict(table: _Table, claim: Claim, model: _Model, rung: Rung) -> Verdict:
    rows: list[tuple[Contrast, float, str]] = []
    missing: dict[int, _NotMeasuredError] = {}
    for seed in table.seeds:
        try:
            rows.append(_of_run(table, claim, seed, model, rung))
        except _NotMeasuredError as error:
            missing[seed] = error
    if missing:
        if not rows:
            raise next(iter(missing.values()))
        seeds: dict[str, list[str]] = {}
        for seed, reason in missing.items():
            seeds.setdefault(str(reason), []).append(str(seed))
        runs = len(table.seeds)
        told = (f"In {len(of)} of {runs} runs (seed {', '.join(of)}): {why}" for why, of in seeds.items())
        raise _NotMeasuredError(" ".join(told))
    contrasts = [contrast for contrast, _, _ in rows]
    bound = (2.0 if rung.protocols else 1.0) if claim.unit == SHARE else None
    found = over_runs(contrasts, bound)
    n, first = len(rows), contrasts[0]
    return Verdict(
        claim.name,
        *model,
        rung.name,
        rows[0][2],
        None,
        float(np.mean([own for _, own, _ in rows])),
        found.estimate,
        found.error,
        found.low,
        found.high,
        found.p,
        q=None,
        over="runs" if n > 1 else first.over,
        n=n if n > 1 else first.n,
        runs=n,
        per_run=tuple(contrast.estimate for contrast in contrasts),
    )


def _of_run(table: _Table, claim: Claim, seed: int, model: _Model, rung: Rung) -> tuple[Contrast, float, str]:
    """The contrast within one run, the model's own number, and the name of the control."""
    mine = _effect(table, claim, seed, model)
    if not rung.protocols:
        return _contrast(claim, mine), mine.own, claim.against or claim.chance or "zero"
    control = next((m for p in rung.protocols if (m := table.of(p, seed, model))), None)
    if control is None:
        rate = f" of learning rate {shown(model.rate)}" if model.rate else ""
        names = " or ".join(map(repr, rung.protocols))
        raise _NotMeasuredError(f"No control: no model of protocol {names}{rate} was measured.")
    theirs = _effect(table, _ungated(claim), seed, control)
    if claim.weights and _labels(control) != _labels(model):  # other prompts
        one, other = (_contrast(claim, each._replace(spread=each.error_of_draws)) for each in (mine, theirs))
        error = None if one.error is None or other.error is None else math.hypot(one.error, other.error)
        return replace(one, estimate=one.estimate - other.estimate, error=error), mine.own, control.name
    beyond = _Effect(
        mine.own,
        _less(mine.values, theirs.values, f"{claim.metric} of {model.name}, seed {seed}"),
        mine.drawn - theirs.drawn,
        math.hypot(mine.error_of_draws, theirs.error_of_draws),
        mine.draws,
    )
    return _contrast(claim, beyond), mine.own, control.name


def _effect(table: _Table, claim: Claim, seed: int, model: _Model) -> _Effect:
    at, by_kind = table.find(claim, seed, model, claim.intervention, (claim.dial, claim.scope))
    if not claim.weights and "" not in by_kind:
        raise _NotMeasuredError(f"Metric {shown(claim.metric)} was measured of kinds of prompts alone.")
    weights, about = claim.weights or {"": 1.0}, f"{claim.metric} of {model.name}, seed {seed}"
    own = _of_kinds(claim, weights, by_kind)
    value = weighted({kind: sample.values for kind, sample in own.items()}, weights)
    if claim.against:
        other = _against(table, _ungated(claim), seed, model, at)
        return _Effect(value, _less(own, _of_kinds(claim, weights, other), about))
    if claim.chance == BASE:
        before = table.find(claim, seed, table.base(seed, model), "")[1]
        return _Effect(value, _less(own, _of_kinds(claim, weights, before), about))
    if claim.chance == ROTATED:
        drawn = _of_kinds(claim, weights, table.find(claim, seed, model, claim.intervention, at, ROTATED)[1])
        draws = np.asarray(sum(weight * drawn[kind].values for kind, weight in weights.items()))
        return _Effect(value, own, float(draws.mean()), float(draws.std(ddof=1)), len(draws))
    return _Effect(value, own)


def _ungated(claim: Claim) -> Claim:
    """The same of what stands beside the model: that a control, or a random direction, makes it babble is no reason to
    count less of the refusal that is lost.
    """
    return replace(claim, metric=LOST) if claim.metric == REMOVED else claim


def _against(table: _Table, claim: Claim, seed: int, model: _Model, at: _Change) -> _ByKind:
    """The same under the other intervention: at the same dial, or the greatest where that was not measured."""
    if claim.against_dial is None:
        try:
            return table.find(claim, seed, model, claim.against, (at[0], claim.scope))[1]
        except _NotMeasuredError:
            pass
    return table.find(claim, seed, model, claim.against, (claim.against_dial, claim.scope))[1]


def _less(own: _ByKind, other: _ByKind, about: str) -> _ByKind:
    """Prompt by prompt, less the same of a control.

    Raises:
        ValueError: the two were not scored on as many prompts.
    """
    for kind, sample in own.items():
        if len(sample.values) != len(other[kind].values):
            numbers = f"{len(sample.values)} {kind} prompts, but {len(other[kind].values)} in the control"
            raise ValueError(f"scores: {about}: {numbers}")
    return {kind: _Sample(of.values - other[kind].values, of.groups) for kind, of in own.items()}


def _contrast(claim: Claim, effect: _Effect) -> Contrast:
    """Of an effect, over prompts and, where there are any, random draws."""
    values = {kind: sample.values for kind, sample in effect.values.items()}
    groups = {kind: sample.groups for kind, sample in effect.values.items()}
    found = over_prompts(values, claim.weights or {"": 1.0}, shares=claim.unit == SHARE, groups=groups)
    if not claim.weights:
        found = replace(found, over="values")
    if effect.draws and found.error is None:
        found = replace(found, error=0.0 if effect.spread else None, over="draws", n=effect.draws)
    elif effect.spread:
        found = replace(found, over=f"{found.over} and draws")
    error = None if found.error is None else math.hypot(found.error, effect.spread)
    return replace(found, estimate=found.estimate - effect.drawn, error=error)


def _of_kinds(claim: Claim, weights: Mapping[str, float], by_kind: _ByKind) -> _ByKind:
    """The samples of the kinds that a claim weighs."""
    if missing := [kind for kind in weights if kind not in by_kind]:
        raise _NotMeasuredError(f"Metric {shown(claim.metric)} was not measured of {shown(missing[0])} prompts.")
    return {kind: by_kind[kind] for kind in weights}
