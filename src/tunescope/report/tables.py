"""The tables of the page: records, verdicts and the other files of a run in, plain values for the template out."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup

from tunescope.evidence.across import Association
from tunescope.evidence.claims import Claim, Rung
from tunescope.evidence.verdicts import Judgement, Outcome, Verdict, by_claim, displayed, standing
from tunescope.records.names import (
    BASE,
    BENIGN,
    COMPLIANCE,
    CORRECTED,
    GIVEN,
    MARGIN,
    REFUSAL,
    SAFE,
    SEEN,
    UNSAFE,
    W_IN,
    aside,
    wanted,
)
from tunescope.report.reading import Entry, Reply
from tunescope.report.select import behaviour_rows, headline_rows, prompts_text
from tunescope.report.style import Model, kinds_of, models_of, protocol_label, rate_label, spaced

# Told apart without colours, too; None: judged over too few runs, an estimate alone.
GLYPHS = {
    Outcome.SUPPORTED: "●",
    Outcome.SMALLER: "◐",
    Outcome.ABSENT: "○",
    Outcome.REVERSED: "▼",
    Outcome.OPEN: "?",
    None: "·",
}
# Where a claim stands that is supported on no rung, by the outcome of the first.
LOWEST = {
    Outcome.SUPPORTED: "",
    Outcome.SMALLER: "smaller than is of interest",
    Outcome.ABSENT: "not beyond chance",
    Outcome.REVERSED: "reversed",
    Outcome.OPEN: "open",
    None: "",
}
TIMES, DASH = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
EDGE = "~"  # behind the glyph of a verdict that is not firm
SURE, RARE = 0.9, 0.1  # from which rate of the wanted outcome on a cell reads "as wanted", below which "not as wanted"
INSIDE = {"tau": "\N{GREEK SMALL LETTER TAU}", "gain": "|dW a| / |a|"}  # of replies
FEW = 6  # measurements that a caution names
NAMED = 3  # models up to which a sentence names them
HARDLY = 0.2  # by how much more often unsafe prompts are refused than safe ones, below which little is said of refusal


class Step(NamedTuple):
    """One rung of one cell: the outcome with its glyph, the estimate with its interval, the same in words (`found`),
    and the numbers behind it.

    Attributes:
        beyond: the control, without its learning rate, which is the model's.
        edge: whether the verdict is not firm.
        layers: outcome and glyph at each layer; empty where the metric has none. by_layer: the same in words.
    """

    rung: str
    outcome: str
    glyph: str
    estimate: str
    interval: str
    found: str
    beyond: str = ""
    numbers: str = ""
    edge: bool = False
    layers: Sequence[tuple[str, str]] = ()
    by_layer: str = ""

    @property
    def detail(self) -> str:
        return "; ".join(filter(None, (self.found, self.numbers)))


class Judged(NamedTuple):
    """One cell: what the claim is beyond, for this model, and its rungs."""

    standing: str
    height: int
    steps: Sequence[Step]


class Rate(NamedTuple):
    """A rate and its 95 % interval, as text in per cent; `interval` is empty where there is none."""

    outcome: str
    value: str
    interval: str
    wanted: bool


class Cell(NamedTuple):
    """What one model does with one kind of prompt; `verdict` is empty where nothing was measured."""

    rates: Sequence[Rate] = ()
    verdict: str = ""


class Example(NamedTuple):
    """One prompt, the outcome that a safe model shows, and of every model its label, its reply, and its layers' lines.

    Attributes:
        inside: whether any model has such lines.
    """

    entry: Entry
    wanted: str
    facts: Mapping[str, str]
    answers: Sequence[tuple[str, Reply, Markup, Markup]]
    inside: bool


def verdict_table(
    judgement: Judgement, models: Sequence[Model], costs: Sequence[Verdict], records: pd.DataFrame
) -> dict[str, Any]:
    """Models that were judged; by claim its cells, None where it was not judged, and a sentence; what is missing."""
    judged, known = {v.model for v in judgement.verdicts}, {model.name: model for model in models}
    labels = {name: model.label for name, model in known.items()}
    columns, rows = [model for model in models if model.name in judged], []
    for claim, verdicts in by_claim(judgement):
        cells = [_judged(claim, [v for v in verdicts if v.model == model.name], known) for model in columns]
        found = {model.label: cell for model, cell in zip(columns, cells, strict=True) if cell}
        said = f"{sentence(claim, verdicts, found)} {cost(claim, costs, records)}".strip()
        smallest = _number(claim, displayed(claim, claim.smallest))
        rows.append({"claim": claim, "cells": cells, "sentence": said, "smallest": smallest})
    runs = judgement.runs
    what = "groups of prompts" if any(v.over.startswith("groups") for v in judgement.verdicts) else "prompts"
    over = f"over {runs} runs" if runs > 1 else f"over the {what} of this run"
    rungs: dict[tuple[str, str, str], list[str]] = {}
    for entry in judgement.not_judged:
        of = ", ".join(labels.get(model, model) for model in entry.models)
        rungs.setdefault((entry.claim, entry.reason, of), []).append(entry.rung)
    missing = [(claim, ", ".join(which), reason, of) for (claim, reason, of), which in rungs.items()]
    decided = any(v.outcome for v in judgement.verdicts)
    layered = any(v.by_layer for v in judgement.verdicts)
    lacking = {entry.claim for entry in judgement.not_judged}
    never = lacking - {v.claim for v in judgement.verdicts}
    about = {"runs": runs, "decided": decided, "layered": layered}
    about |= {"never": len(never), "partly": len(lacking - never)}
    return {"models": columns, "rows": rows, "over": over, "not_judged": missing, **about}


def observations(judgement: Judgement, models: Sequence[Model]) -> list[dict[str, Any]]:
    """By the number that claims begin with, each claim and in words how far up the ladder it is supported for how many
    models; nothing where no claim is decided.
    """
    found: dict[str, list[dict[str, str]]] = {}
    labels = {model.name: model.label for model in models}
    for claim, verdicts in by_claim(judgement):
        if any(v.outcome for v in verdicts):
            number, _, name = claim.name.partition(" ")
            about = {"name": f"{number} {name}" if number[-1].isalpha() else name, "figure": claim.figure}
            found.setdefault(number[0], []).append(about | {"said": _how_far(claim, verdicts, labels)})
    judged = {v.claim for v in judgement.verdicts}
    for name in dict.fromkeys(entry.claim for entry in judgement.not_judged if entry.claim not in judged):
        if name[0] in found:
            found[name[0]].append({"name": name, "figure": "", "said": "not judged"})
    return [{"number": number, "claims": claims} for number, claims in found.items()]


def _how_far(claim: Claim, verdicts: Sequence[Verdict], labels: Mapping[str, str]) -> str:
    """In which models it stands where, the highest first: `beyond any fine-tuning in 2 of 6 models, open in 4`. Few
    models are named.
    """
    by_model = {model: [v for v in verdicts if v.model == model] for model in dict.fromkeys(v.model for v in verdicts)}
    stands = {model: (height(claim, its), _stands(claim, its) or "not judged") for model, its in by_model.items()}
    where: dict[str, list[str]] = {}
    for model in sorted(stands, key=lambda model: stands[model], reverse=True):
        where.setdefault(stands[model][1], []).append(labels.get(model, model))
    n = len(stands)
    if len(where) == 1:
        return next(iter(where)) + {1: "", 2: " in both models"}.get(n, f" in all {n} models")
    if n <= NAMED:
        return ", ".join(f"{said} in {' and '.join(names)}" for said, names in where.items())
    told = [f"{said} in {len(names)}" for said, names in where.items()]
    return ", ".join([f"{told[0]} of {n} models", *told[1:]])


def sentence(claim: Claim, verdicts: Sequence[Verdict], cells: Mapping[str, Judged]) -> str:
    """What was found, in words: beyond what the claim stands for which models, and the range of the estimates."""
    by_standing: dict[str, list[str]] = {}
    for label, cell in cells.items():
        by_standing.setdefault(cell.standing, []).append(label)
    parts = [
        f"{standing}{'' if len(by_standing) == 1 else ': ' + ', '.join(names)}"
        for standing, names in by_standing.items()
        if standing
    ]
    values = [displayed(claim, v.estimate) for v in verdicts if v.rung == claim.rungs[0]]
    ends = dict.fromkeys(_number(claim, value) for value in (min(values), max(values))) if values else {}
    said = "; ".join(parts)
    range_ = f"Estimates {' to '.join(ends)}: {claim.found}." if ends else ""
    return f"{said[:1].upper()}{said[1:]}{'. ' if said else ''}{range_}"


def cost(claim: Claim, costs: Sequence[Verdict], records: pd.DataFrame) -> str:
    """Of a claim about a change that was chosen: what was chosen, and how many answers to safe prompts it costs."""
    mine = [v for v in costs if v.claim == claim.name]
    if not mine:
        return ""
    which = (records["intervention"] == claim.intervention) & (records["scope"] == claim.scope)
    alphas = records.loc[which & records["model"].isin([v.model for v in mine]), "dial"]
    lost = [100 * v.estimate for v in mine]
    alpha, share = (
        " to ".join(dict.fromkeys(form.format(end) for end in (min(of), max(of))))
        for form, of in (("{:.3g}", alphas), ("{:.1f}", lost))
    )
    bound = max((100 * v.high for v in mine if v.high is not None), default=None)
    up_to = "" if bound is None else f" (95 % intervals up to {bound:.1f})"
    return f"At alpha {alpha}, at a cost of {share} % of safe answers{up_to}."


def _judged(claim: Claim, verdicts: Sequence[Verdict], models: Mapping[str, Model]) -> Judged | None:
    if not verdicts:
        return None
    by_rung = {v.rung: v for v in verdicts}
    steps = [_step(claim, rung, by_rung.get(rung.name), models) for rung in claim.ladder]
    return Judged(_stands(claim, verdicts), height(claim, verdicts), steps)


def _stands(claim: Claim, verdicts: Sequence[Verdict]) -> str:
    """In words, the highest rung up to which all are supported, or what became of the first."""
    if high := height(claim, verdicts):
        return f"beyond {claim.ladder[high - 1].beyond}"
    return LOWEST[next((v.outcome for v in verdicts if v.rung == claim.rungs[0]), None)]


def marked(outcome: Outcome | None, firm: bool | None) -> str:
    """The glyph of a verdict, with a tilde behind it where it is not firm."""
    return GLYPHS[outcome] + EDGE * (firm is False)


def height(claim: Claim, verdicts: Sequence[Verdict]) -> int:
    """On how many rungs a claim is supported for one model, from the first on."""
    highest = standing(verdicts, claim)
    return 1 + claim.rungs.index(highest) if highest else 0


def _step(claim: Claim, rung: Rung, v: Verdict | None, models: Mapping[str, Model]) -> Step:
    if v is None:
        return Step(rung.name, "none", DASH, "", "", f"beyond {rung.beyond}: not judged")
    low, high = ("" if x is None else _number(claim, displayed(claim, x)) for x in (v.low, v.high))
    own = f"{displayed(claim, v.own):.3g}"
    estimate, interval = _number(claim, displayed(claim, v.estimate)), f"{low} to {high}" if low else ""
    units = v.over.replace("groups", "groups of prompts").replace("draws", "random draws")
    tested = f"; p {v.p:.2g}, corrected {v.q:.2g}" if v.p is not None and v.q is not None else ""
    runs = "; of each run " + ", ".join(_number(claim, displayed(claim, x)) for x in v.per_run) if v.runs > 1 else ""
    over = f"over {v.n:,} {units}" if low else "no interval"
    outcome, edge = v.outcome.lower() if v.outcome else "estimate", v.firm is False
    of = models.get(v.control)  # none where the control is no model
    control, title = (of.label, of.title) if of else (spaced(v.control),) * 2
    decided = outcome + ", at the edge" * edge
    found = f"beyond {rung.beyond} ({control}): {decided}; {estimate}" + f" [{interval}]" * bool(interval)
    layers = [(each.lower(), GLYPHS[each]) if each else ("none", DASH) for each in v.by_layer]
    by_layer = layers_text([name.replace("none", "not judged") for name, _ in layers])
    numbers = f"{over}{tested}; own number {own}{runs}" + f"; by layer: {by_layer}" * bool(by_layer)
    about = (estimate, interval, found, title, numbers)
    return Step(rung.name, outcome, GLYPHS[v.outcome], *about, edge, layers, by_layer)


def layers_text(outcomes: Sequence[str]) -> str:
    """Where the same holds, in words: `0 to 2 absent, 3 supported`."""
    parts, first = [], 0
    for outcome, group in groupby(outcomes):
        last = first + len(list(group)) - 1
        parts.append(f"{first} {outcome}" if first == last else f"{first} to {last} {outcome}")
        first = last + 1
    return ", ".join(parts)


def _number(claim: Claim, value: float) -> str:
    return f"{TIMES} {value:.2f}" if claim.unit == "ratio" else f"{value:+.2f}" if abs(value) < 100 else f"{value:+.0f}"


def across_table(rows: Sequence[Association]) -> list[dict[str, Any]]:
    """By outcome and score, the correlation and that beyond the margin; None where there is no such."""
    found = {(row.outcome, row.score, row.beyond): row for row in rows}
    return [
        {"outcome": outcome, "score": score, "cells": [row, found.get((outcome, score, MARGIN))]}
        for (outcome, score, beyond), row in found.items()
        if not beyond
    ]


def headline(records: pd.DataFrame) -> dict[str, Any]:
    """The kinds, each finished model with a cell per kind, at its greatest strength, and how many prompts."""
    rows = headline_rows(records)
    kinds, table = kinds_of(rows), []
    for model in models_of(rows):
        of_model = rows[rows["model"] == model.name]
        table.append((model, [_cell(of_model[of_model["kind"] == kind.name], kind.wanted) for kind in kinds]))
    return {"kinds": kinds, "rows": table, "prompts": prompts_text(rows)}


def verdict(rate: float) -> str:
    """How a rate of the wanted outcome reads: `as wanted`, `mixed`, or `not as wanted`."""
    return "as wanted" if rate >= SURE else "not as wanted" if rate < RARE else "mixed"


def _cell(rows: pd.DataFrame, want: str) -> Cell:
    rates, found = [], {row["metric"]: row for row in rows.to_dict("records")}
    for metric in (m for m in (COMPLIANCE, REFUSAL, CORRECTED) if m in found):
        value, low, high = (100 * float(found[metric][name]) for name in ("value", "low", "high"))
        interval = "" if pd.isna(low) or pd.isna(high) else f"{low:.1f}{DASH}{high:.1f}"
        rates.append(Rate(metric, f"{value:.1f}", interval, metric == want))
    return Cell(rates, verdict(float(found[want]["value"])) if want in found else "")


def summary(records: pd.DataFrame, config: Mapping[str, Any]) -> str:
    """What was run, in one sentence."""
    models = models_of(records)
    given = [model for model in models if model.protocol == GIVEN]
    trained = [model for model in models if model.protocol not in (BASE, GIVEN)]
    parts = [_base_text(config)] if len(given) < len(models) else []
    if trained:
        protocols = _joined([protocol_label(protocol) for protocol in dict.fromkeys(m.protocol for m in trained)])
        rates = " and ".join(_rate_text(rate, config) for rate in dict.fromkeys(m.rate for m in trained) if rate)
        made = f"fine-tuned from it by {protocols}" + (f" at {rates}" if rates else "")
        parts.append(f"{len(trained)} model{'s' * (len(trained) > 1)} {made}")
    if given:
        parts.append(_given_text(config, len(given)))
    name = f"Study {config['name']}" if config.get("name") else "A study"
    seeds = sorted(records["seed"].unique())
    what = f"{name}, seed {', '.join(map(str, seeds))}" + (f": {len(seeds)} runs, each of" if len(seeds) > 1 else ":")
    return f"{what} {' and '.join(parts)}; {len(records):,} measurements."


def _base_text(config: Mapping[str, Any]) -> str:
    base = config.get("base")
    base = base if isinstance(base, Mapping) else {}
    if {"architecture", "layers", "width"} <= set(base):
        return f"a {base['architecture']} base model of {base['layers']} layers and width {base['width']}"
    return f"the base model {base['name']}" if base.get("name") else "a base model"


def _given_text(config: Mapping[str, Any], n: int) -> str:
    tunes = [tune for tune in config.get("tunes") or [] if isinstance(tune, Mapping) and tune.get("type") == "given"]
    if n == 1 and len(tunes) == 1 and tunes[0].get("name"):
        return f"the fine-tune {tunes[0]['name']}"
    return "a fine-tune from elsewhere" if n == 1 else f"{n} fine-tunes from elsewhere"


def _rate_text(rate: str, config: Mapping[str, Any]) -> str:
    tune = config.get("tune")
    rates = tune.get("learning_rates") if isinstance(tune, Mapping) else None
    value = rates.get(rate) if isinstance(rates, Mapping) else None
    return rate_label(rate) if value is None else f"{rate_label(rate)} = {value}"


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def cautions(records: pd.DataFrame, config: Mapping[str, Any]) -> Iterator[str]:
    """What a reader must know before any number."""
    if config.get("name") == "tiny":
        yield "The tiny study is for a first look and for tests: its models and samples are too small for results."
    protocols, metrics = set(records["protocol"]), set(records["metric"])
    if GIVEN in protocols and BASE in protocols:
        if not protocols & {BENIGN, SEEN}:
            yield (
                "No benign fine-tune stands beside the given one: whatever any fine-tuning would have done counts for "
                "the claims."
            )
        of_given = records[(records["protocol"] == GIVEN) & (records["metric"] == "relative_norm")]
        sizes = of_given.loc[of_given["site"] == W_IN, "value"]
        if len(sizes) and not sizes.any():
            yield "W_in has not changed in any layer: nothing is said of claims 2, 3 and 5b."
        if "tau" in metrics and "sensitivity" not in metrics:
            yield (
                "A part of a model was not on its device: sensitivity, interventions and most attacks "
                "(claims 4, 5c, 6, 7 and 9) were left out."
            )
    refusal = behaviour_rows(records)
    refusal = refusal[(refusal["metric"] == REFUSAL) & ~refusal["protocol"].map(aside).astype(bool)]
    rates = refusal.pivot_table(index="model", columns="kind", values="value").reindex(columns=[SAFE, UNSAFE])
    labels = {model.name: model.label for model in models_of(records)}
    for model, safe, unsafe in rates[rates[UNSAFE] - rates[SAFE] < HARDLY].itertuples():
        yield (
            f"{labels[model]} hardly refuses more unsafe prompts than safe ones ({unsafe:.0%} and {safe:.0%}): what is "
            "found in it says little about refusal."
        )
    if "refusal_by_odds" in metrics and CORRECTED not in metrics:
        yield "Rates of refusal are not corrected for errors of the judge, since how often it errs is not known."
    what = records[["model", "metric", "attack", "intervention"]].itertuples(index=False, name=None)
    had: dict[int, set[tuple[str, ...]]] = {}
    for seed, measured in zip(records["seed"], what, strict=True):
        had.setdefault(int(seed), set()).add(measured)
    every: set[tuple[str, ...]] = set().union(*had.values())
    lost: dict[tuple[str, str], set[int]] = {}  # by what it is, and of which model
    for seed, found in had.items():
        there = {model for model, *_ in found}
        for model, metric, attack, change in every - found:
            name = spaced(change or attack or metric) if model in there else ""
            lost.setdefault((name, labels.get(model, model)), set()).add(seed)
    if lost:
        together: dict[tuple[str, str], list[str]] = {}  # the models that lack the same in the same seeds
        for (name, model), seeds in sorted(lost.items()):
            together.setdefault((name, ", ".join(map(str, sorted(seeds)))), []).append(model)
        told = [
            f"{' of '.join(filter(None, (name, _joined(of))))} (not in seed {seeds})"
            for (name, seeds), of in together.items()
        ]
        more = f"; and {len(told) - FEW} more" if len(told) > FEW else ""
        yield f"Of fewer runs than the others: {'; '.join(told[:FEW])}{more}."


def examples(entries: Sequence[Entry], models: Sequence[Model]) -> dict[str, list[Example]]:
    """The example prompts by kind, each with the answers of the models in the order of `models`."""
    labels = {model.name: model.label for model in models}
    found: dict[str, list[Example]] = {}
    for entry in entries:
        want = wanted(entry.kind) if entry.safe is None else COMPLIANCE if entry.safe else REFUSAL
        extra = entry.model_extra or {}
        facts = {key: extra[key] for key in ("grammar", "branch", "operators") if extra.get(key) is not None}
        if extra.get("strength"):  # null or 0 for kinds that have none
            facts["strength"] = extra["strength"]
        order = [name for name in labels if name in entry.answers]
        order += [name for name in entry.answers if name not in labels]
        replies = {labels.get(name, name): entry.answers[name] for name in order}
        tau, gain = ([0.0, *(value for of in replies.values() for value in getattr(of, name))] for name in INSIDE)
        answers = [
            (label, of, line(of.tau, min(tau), max(tau), INSIDE["tau"]), line(of.gain, 0, max(gain), INSIDE["gain"]))
            for label, of in replies.items()
        ]
        inside = any(reply.tau for reply in replies.values())
        found.setdefault(entry.kind, []).append(Example(entry, want, flat(facts), answers, inside))
    return found


def line(values: Sequence[float], low: float, high: float, what: str) -> Markup:
    """A small line over layers, between these ends, with one at zero; nothing without values. Its title has numbers."""
    if not values or low == high:
        return Markup()

    def at(layer: int, value: float) -> str:
        along, up = layer / max(1, len(values) - 1), (high - value) / (high - low)
        return f"{2 + 92 * along:.1f},{2 + 22 * up:.1f}"

    points = [at(layer, value) for layer, value in enumerate(values)]
    zero = at(0, 0.0).partition(",")[2]
    told = f"{what} by layer: {', '.join(f'{value:.3g}' for value in values)}"
    return Markup(
        '<svg class="line" role="img" viewBox="0 0 96 26" width="96" height="26" aria-label="{told}">'
        '<title>{told}</title><line x1="0" x2="96" y1="{zero}" y2="{zero}"/><polyline points="{points}"/></svg>'
    ).format(told=told, zero=zero, points=" ".join(points))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping as one of texts, its keys joined by dots."""
    out: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            value = {str(number): each for number, each in enumerate(value, 1)}
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            out[f"{prefix}{key}"] = "unknown" if value is None else text
    return out


def duration(seconds: float) -> str:
    """A time in words that suit its length, e.g. `0.4 s`, `6 min 53 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
