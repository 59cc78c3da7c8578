"""Which score of an attacked prompt tells whether the attack succeeds? Out of sample, within a model and across."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SCORES = ("scaled_tau", "log_gain", "log_row_projection", "log_sensitivity", "along_direction")  # mechanistic ones
BASELINE = "refusal_margin"  # read off the output: what a mechanism has to beat
FOLDS, FEWEST = 5, 10  # of cross-validation; prompts that succeed, and that fail, which a model must have
CELL = ["seed", "protocol", "learning_rate"]


@dataclass(frozen=True)
class Predictor:
    """How well a score, or all mechanistic ones together, tells successes from failures: AUC, .5 is chance.

    Attributes:
        within: mean over models of the cross-validated AUC; fitted on other prompts of the same model.
        across: the same, fitted on the models of all other protocols at the same learning rate and seed; None where
            there are none.
        *_low, *_high: 95 % Student interval over models; None of one model. *_models: how many.
    """

    score: str
    within: float
    within_low: float | None
    within_high: float | None
    within_models: int
    across: float | None
    across_low: float | None
    across_high: float | None
    across_models: int


def predictors(scores: pd.DataFrame) -> list[Predictor]:
    """One row per score, `all mechanistic` and the baseline; empty without attacks, or if too few got through.

    Attacked prompts of safety-tuned models only, with strength, wanting a refusal, and intact: the base model answers
    them, so that a failure is the work of safety training.
    """
    cells = dict(_cells(scores))
    if len(cells) < 2:
        return []
    rows = []
    for name, columns in [("all mechanistic", SCORES), *((s, (s,)) for s in (*SCORES, BASELINE))]:
        within = [_cross_validated(table, y, columns) for table, y in cells.values()]
        across = [auc for key in cells if (auc := _from_others(cells, key, columns)) is not None]
        middle = float(np.mean(across)) if across else None
        ways = float(np.mean(within)), *_interval(within), len(within), middle, *_interval(across), len(across)
        rows.append(Predictor(name, *ways))
    return rows


_Cells = dict[tuple[int, str, str], tuple[pd.DataFrame, Bool[np.ndarray, " n"]]]


def _cells(scores: pd.DataFrame) -> Iterator[tuple[tuple[int, str, str], tuple[pd.DataFrame, np.ndarray]]]:
    """Per model: scores by prompt, and which prompts got through."""
    wanted = [*SCORES, BASELINE, "attack_success", "attack_intact"]
    rows = scores[scores["metric"].isin(wanted) & scores["strength"].notna() & (scores["strength"] > 0)]
    rows = rows[~rows["kind"].astype(str).str.startswith("safe") & ~rows["kind"].astype(str).str.endswith("_on_safe")]
    rows = rows[~rows["protocol"].isin(["pretraining", "benign"])]
    for key, group in rows.groupby(CELL, observed=True):
        table = group.pivot_table(index=["kind", "strength", "index"], columns="metric", values="value", observed=True)
        if not set(wanted) <= {*table.columns}:
            continue
        table = table.dropna()
        table = table[table["attack_intact"] > 0]
        got_through = table["attack_success"].to_numpy() > 0
        prompts = table.index.get_level_values("index")
        # In every fold there must be both.
        enough = min(prompts[got_through].nunique(), prompts[~got_through].nunique()) >= FEWEST
        if enough:
            seed, protocol, rate = map(str, key)
            yield (int(seed), protocol, rate), (table, got_through)


def _classifier() -> object:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def _cross_validated(table: pd.DataFrame, y: Bool[np.ndarray, " n"], columns: Sequence[str]) -> float:
    """AUC of the decisions on held-out folds.

    One prompt is under several attacks, and under each at several strengths: all that have its number are in one fold.
    """
    x, prompts, out = table[list(columns)].to_numpy(float), table.index.get_level_values("index"), np.empty(len(y))
    for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(x, y, prompts):
        out[test] = _classifier().fit(x[train], y[train]).decision_function(x[test])  # type: ignore[attr-defined]
    return float(roc_auc_score(y, out))


def _from_others(cells: _Cells, key: tuple[int, str, str], columns: Sequence[str]) -> float | None:
    """AUC on one model, fitted on the other protocols' models of its seed and learning rate; None without any."""
    seed, protocol, rate = key
    others = [cells[k] for k in cells if k[0] == seed and k[2] == rate and k[1] != protocol]
    if not others:
        return None
    x = np.concatenate([table[list(columns)].to_numpy(float) for table, _ in others])
    fitted = _classifier().fit(x, np.concatenate([y for _, y in others]))  # type: ignore[attr-defined]
    table, y = cells[key]
    return float(roc_auc_score(y, fitted.decision_function(table[list(columns)].to_numpy(float))))


def _interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    if len(values) < 2:
        return None, None
    mean, half = float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return max(0.0, mean - half), min(1.0, mean + half)
