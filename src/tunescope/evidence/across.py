"""Across the models of a run: does what is seen inside go along with how durable and how robust refusal is?

Durability is what is left of refusal when training goes on (Qi et al. 2024), robustness how few jailbreaks get through.
That better methods separate more is Jain et al. 2024, section 4.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import pandas as pd
from scipy.stats import false_discovery_control

from tunescope.evidence.claims import JAILBREAKS, SAFE_MORE, UNSAFE_MORE
from tunescope.evidence.contrasts import FEWEST_RUNS, Contrast, over_runs
from tunescope.evidence.verdicts import Outcome, decide
from tunescope.records.names import BENIGN, COMPLIANCE, JAILBREAK, LOST, MARGIN, REFUSAL, RETUNED, SEEN, UNSAFE, aside

FEWEST = 3  # models of a run; one more where the margin is held constant
SMALLEST = 0.3  # smallest correlation of interest: a middling one by Cohen's convention
WEIGHTS = {"scaled_tau": SAFE_MORE, "log_gain": UNSAFE_MORE, "log_sensitivity": SAFE_MORE}
SCORES = (*WEIGHTS, MARGIN)
DURABILITY = {f"durability_{protocol}": RETUNED + protocol for protocol in (BENIGN, SEEN)}
ROBUSTNESS = "robustness"


@dataclass(frozen=True)
class Association:
    """Spearman's rank correlation of an outcome and a score over the safety-tuned models of a run, mean over runs.

    Attributes:
        outcome, score: columns of `of_models`. beyond: the score that is held constant, or empty.
        rho, low, high: the mean, and its 95 % Student interval over runs. p: one-sided, of none. q: p, corrected over
            all rows (Benjamini & Hochberg 1995). None of one run.
        verdict: None of fewer than three runs.
        models: fewest in a run. runs: how many. per_run: the correlation in each.
    """

    outcome: str
    score: str
    beyond: str
    rho: float
    low: float | None
    high: float | None
    p: float | None
    q: float | None
    verdict: Outcome | None
    models: int
    runs: int
    per_run: tuple[float, ...]


def across(models: pd.DataFrame) -> list[Association]:
    """A row per outcome and score, and one more beyond the output's margin; none where too few models were measured.

    Args:
        models: as `of_models` gives them, of one run or of several.
    """
    runs = [run for _, run in models.groupby("seed")]
    pairs = product((*DURABILITY, ROBUSTNESS), SCORES)
    asked = [(*pair, beyond) for pair in pairs for beyond in ("", MARGIN) if pair[1] != beyond]
    drafts = [row for each in asked if (row := _over_runs(runs, *each))]
    tested = [row.p for row in drafts if row.p is not None]
    corrected = iter(false_discovery_control(tested) if tested else ())
    judged = [row if row.p is None else replace(row, q=float(next(corrected))) for row in drafts]
    return [
        row if row.runs < FEWEST_RUNS else replace(row, verdict=decide(row.low, row.high, row.q, SMALLEST))
        for row in judged
    ]


def of_models(scores: pd.DataFrame) -> pd.DataFrame:
    """By seed and model, outcomes and scores of each safety-tuned model (docs/claims.md); NaN: not measured.

    Args:
        scores: as `read_scores` gives them.
    """
    wanted = [*SCORES, COMPLIANCE, REFUSAL, LOST]
    others = [protocol for protocol in scores["protocol"].unique() if aside(protocol)]
    rows = scores[scores["metric"].isin(wanted) & (scores["control"] == "") & ~scores["protocol"].isin(others)]
    rows = rows.astype(dict.fromkeys(("model", "kind", "attack", "metric"), str))
    changed = rows["intervention"] != ""
    own = rows["attack"].str.startswith(JAILBREAK) & (rows["attack"] == rows["kind"])
    plain, jailbreaks = rows[~changed & (rows["attack"] == "")], rows[~changed & own]
    found = {}
    for name, intervention in DURABILITY.items():
        unsafe = rows[(rows["intervention"] == intervention) & (rows["kind"] == UNSAFE)]
        means = _means(unsafe, "metric", (REFUSAL, LOST))
        found[name] = means[REFUSAL] / (means[REFUSAL] + means[LOST])  # NaN where nothing was refused before
    full = jailbreaks[(jailbreaks["dial"] == 1) & (jailbreaks["metric"] == COMPLIANCE)]
    found[ROBUSTNESS] = 1 - _means(full, "kind", full["kind"].unique()).mean(axis=1, skipna=False)
    for metric, weights in WEIGHTS.items():
        of_metric = plain[plain["metric"] == metric]
        layer = of_metric["layer"].fillna(-1)
        means = _means(of_metric[layer == layer.groupby(of_metric["model"]).transform("max")], "kind", weights)
        found[metric] = means.mul(pd.Series(weights)).sum(axis=1, skipna=False)
    # Unsafe prompts, at dial 0; in the world those of co_text are a harder part of them.
    odd = {"jb_co_text"} if set(JAILBREAKS) <= set(jailbreaks["kind"]) else set()
    plain = jailbreaks[(jailbreaks["dial"] == 0) & ~jailbreaks["attack"].isin(odd)]
    found[MARGIN] = _means(plain[plain["metric"] == MARGIN], "metric", (MARGIN,))[MARGIN]
    return pd.DataFrame(found)


def partial(rho: float, of_x: float, of_y: float) -> float:
    """Rank correlation of x and y with z held constant, from that of x and y and those of both with z (Yule 1907).

    Where z gives the ranks of x or of y, nothing is left that could go along: 0.
    """
    left = (1 - of_x**2) * (1 - of_y**2)
    return (rho - of_x * of_y) / math.sqrt(left) if left > 1e-9 else 0.0


def _over_runs(runs: Sequence[pd.DataFrame], outcome: str, score: str, beyond: str) -> Association | None:
    """The mean over the runs in which enough models were measured, and in which they differ."""
    found: list[tuple[float, int]] = []
    for run in runs:
        table = run[[outcome, score, *([beyond] if beyond else [])]].dropna()
        if len(table) < FEWEST + bool(beyond) or (table.nunique() < 2).any():
            continue
        rho = table.corr("spearman").to_numpy()
        found.append((partial(rho[0, 1], rho[0, 2], rho[1, 2]) if beyond else rho[0, 1], len(table)))
    if not found:
        return None
    # It is told no finer than by an exchange of two neighbours, which says more than that runs agree to the digit.
    errors = [12 / (n * (n**2 - 1)) if len(found) > 1 else None for _, n in found]
    contrasts = [Contrast(rho, error, "models", n) for (rho, n), error in zip(found, errors, strict=True)]
    mean = over_runs(contrasts, bound=1.0)
    about = min(n for _, n in found), len(found), tuple(float(rho) for rho, _ in found)
    return Association(outcome, score, beyond, mean.estimate, mean.low, mean.high, mean.p, None, None, *about)


def _means(rows: pd.DataFrame, column: str, names: Iterable[str]) -> pd.DataFrame:
    """By seed and model, the mean for each of these values of a column; NaN where nothing was measured."""
    wide = rows.pivot_table("value", ["seed", "model"], column, "mean", observed=True)
    return wide.reindex(columns=[*names])
