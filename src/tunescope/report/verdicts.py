"""The verdict table: what was found of every claim, for every safety-tuned model."""

from collections.abc import Sequence
from dataclasses import dataclass

from tunescope.evidence.claims import Claim
from tunescope.evidence.records import PAIR
from tunescope.evidence.verdicts import Outcome, Verdict, by_claim, displayed
from tunescope.report.style import Model

GLYPHS = {Outcome.SUPPORTED: "✔", Outcome.REFUTED: "✘", Outcome.INCONCLUSIVE: "?"}

VERBS = {Outcome.SUPPORTED: "holds", Outcome.REFUTED: "does not hold", Outcome.INCONCLUSIVE: "is open"}
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Judged:
    """One cell: the outcome with its glyph, the estimate with its interval, and all the numbers in a sentence."""

    outcome: str
    glyph: str
    estimate: str
    interval: str
    detail: str


@dataclass(frozen=True)
class Row:
    """One claim and its cells, in the order of the models; None where a claim could not be judged."""

    claim: Claim
    cells: Sequence[Judged | None]
    sentence: str


@dataclass(frozen=True)
class VerdictTable:
    models: Sequence[Model]
    rows: Sequence[Row]
    over: str


def verdict_table(verdicts: list[Verdict], claims: tuple[Claim, ...], models: Sequence[Model]) -> VerdictTable:
    """Claims by models that have a verdict."""
    judged = {(v.protocol, v.learning_rate) for v in verdicts}
    columns = [m for m in models if (m.protocol, m.rate) in judged]
    rows = []
    for claim, mine in by_claim(verdicts, claims):
        found = {(v.protocol, v.learning_rate): v for v in mine}
        cells = [_cell(claim, v) if (v := found.get((m.protocol, m.rate))) else None for m in columns]
        rows.append(Row(claim, cells, sentence(claim, mine, columns)))
    seeds = max((v.seeds for v in verdicts), default=1)
    pair = any(v.protocol == PAIR for v in verdicts)
    prompts = "over the scored prompts" if pair else "over the prompts of one seed"
    return VerdictTable(columns, rows, f"over {seeds} seeds" if seeds > 1 else prompts)


def sentence(claim: Claim, verdicts: Sequence[Verdict], models: Sequence[Model]) -> str:
    """What was found, in words: which models support the claim and which do not, and the range of the estimates."""
    labels = {(m.protocol, m.rate): m.label for m in models}
    parts = []
    for outcome, verb in VERBS.items():
        names = [labels[v.protocol, v.learning_rate] for v in verdicts if v.outcome is outcome]
        if names:
            whom = "all" if len(names) == len(verdicts) else ", ".join(names)
            parts.append(f"{verb} for {whom}" if len(verdicts) > 1 else verb)
    values = [displayed(claim, v.estimate) for v in verdicts]
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}. {_range(claim, values)}: {claim.found}."


def _range(claim: Claim, values: Sequence[float]) -> str:
    low, high = (_number(claim, value) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _cell(claim: Claim, v: Verdict) -> Judged:
    low, high = (None if end is None else _number(claim, displayed(claim, end)) for end in (v.low, v.high))
    interval = f"{low} to {high}" if low is not None else ""
    what = {"prompts": "prompts", "seeds": "seeds" if v.n > 1 else "seed", "draws": "random draws"}[v.over]
    numbers = [
        f"uncontrolled {_number(claim, displayed(claim, v.uncontrolled))}",
        f"control {_number(claim, displayed(claim, v.control))}",
        f"p {v.p:.2g}, corrected {v.q:.2g}" if v.p is not None and v.q is not None else "no p-value",
        f"interval over {v.n:,} {what}",
    ]
    estimate = _number(claim, displayed(claim, v.estimate))
    return Judged(v.outcome.lower(), GLYPHS[v.outcome], estimate, interval, "; ".join(numbers))


def _number(claim: Claim, value: float) -> str:
    return f"{TIMES} {value:.2f}" if claim.unit == "ratio" else f"{value:+.2f}" if abs(value) < 100 else f"{value:+.0f}"
