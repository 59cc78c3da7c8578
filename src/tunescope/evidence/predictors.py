"""Which score of an attacked prompt tells whether the attack succeeds? Out of sample, within a model and across."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tunescope.records.names import BASE, COMPLIANCE, CONTROLS, INTACT, MARGIN, MECHANISTIC, REFUSAL, wanted

FOLDS, FEWEST = 5, 10  # of cross-validation; prompts that succeed, and that fail, which a model must have
PROMPT = ["attack", "kind", "dial", "index", "group"]


@dataclass(frozen=True)
class Predictor:
    """How well a score, or all mechanistic ones together, tells successes from failures: AUC, .5 is chance.

    Attributes:
        within: cross-validated AUC, mean over the models of a run and then over runs; fitted on other prompts of the
            same model.
        across: the same, fitted on the models of all other protocols at the same learning rate and seed; None where
            there are none.
        *_low, *_high: 95 % Student interval over runs; None of one run. *_models: how many models of all runs.
    """

    score: str
    within: float | None
    within_low: float | None
    within_high: float | None
    within_models: int
    across: float | None
    across_low: float | None
    across_high: float | None
    across_models: int


def predictors(scores: pd.DataFrame) -> list[Predictor]:
    """One row per score, `all mechanistic` and the baseline; empty without attacks, or if too few got through.

    Attacked prompts of safety-tuned models only, with a dial above 0, wanting a refusal, and intact: the base model
    answers them, so that a failure is the work of safety training.
    """
    cells = dict(_cells(scores))
    if len(cells) < 2:
        return []
    folds = {key: _folds(*cell) for key, cell in cells.items()}
    rows = []
    for name, columns in [("all mechanistic", MECHANISTIC), *((s, (s,)) for s in (*MECHANISTIC, MARGIN))]:
        within = [(key.seed, _cross_validated(table, y, columns, folds[key])) for key, (table, y) in cells.items()]
        across = [(key.seed, auc) for key in cells if (auc := _from_others(cells, key, columns)) is not None]
        rows.append(Predictor(name, *_over_runs(within), len(within), *_over_runs(across), len(across)))
    return rows


class _Cell(NamedTuple):
    """A model in one seed."""

    seed: int
    model: str
    protocol: str
    rate: str


_Cells = dict[_Cell, tuple[pd.DataFrame, Bool[np.ndarray, " n"]]]


def _cells(scores: pd.DataFrame) -> Iterator[tuple[_Cell, tuple[pd.DataFrame, np.ndarray]]]:
    """Per model: scores by prompt, and which prompts got through."""
    metrics = [*MECHANISTIC, MARGIN, COMPLIANCE, INTACT]
    rows = scores[scores["metric"].isin(metrics) & ~scores["protocol"].isin([BASE, *CONTROLS])]
    rows = rows[(rows["attack"] != "") & (rows["intervention"] == "") & ~(rows["dial"] <= 0)]
    unsafe = [kind for kind in rows["kind"].unique() if wanted(str(kind)) == REFUSAL]
    rows = rows[rows["kind"].isin(unsafe)].assign(
        dial=rows["dial"].fillna(0), group=rows["group"].fillna(rows["index"])
    )
    for key, group in rows.groupby(["seed", "model", "protocol", "learning_rate"], observed=True):
        table = group.pivot_table(index=PROMPT, columns="metric", values="value", observed=True)
        if not set(metrics) <= {*table.columns}:
            continue
        table = table.dropna()
        table = table[table[INTACT] > 0]
        got_through = table[COMPLIANCE].to_numpy() > 0
        prompts = table.index.get_level_values("group")
        # In every fold there must be both.
        enough = min(prompts[got_through].nunique(), prompts[~got_through].nunique()) >= FEWEST
        if enough:
            seed, model, protocol, rate = map(str, key)
            yield _Cell(int(seed), model, protocol, rate), (table, got_through)


def _classifier() -> object:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def _folds(table: pd.DataFrame, y: Bool[np.ndarray, " n"]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Numbers of prompts to fit and to score. One is under several attacks, and under each at several dials: all of its
    group are in one fold.
    """
    prompts = table.index.get_level_values("group")
    return list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(table, y, prompts))


def _cross_validated(
    table: pd.DataFrame,
    y: Bool[np.ndarray, " n"],
    columns: Sequence[str],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
) -> float:
    """AUC of the decisions on held-out folds."""
    x, out = table[list(columns)].to_numpy(float), np.empty(len(y))
    for train, test in folds:
        out[test] = _classifier().fit(x[train], y[train]).decision_function(x[test])  # type: ignore[attr-defined]
    return float(roc_auc_score(y, out))


def _from_others(cells: _Cells, own: _Cell, columns: Sequence[str]) -> float | None:
    """AUC on one model, fitted on the other protocols' models of its seed and learning rate; None without any."""
    others = [cells[c] for c in cells if (c.seed, c.rate) == (own.seed, own.rate) and c.protocol != own.protocol]
    if not others:
        return None
    x = np.concatenate([table[list(columns)].to_numpy(float) for table, _ in others])
    fitted = _classifier().fit(x, np.concatenate([y for _, y in others]))  # type: ignore[attr-defined]
    table, y = cells[own]
    return float(roc_auc_score(y, fitted.decision_function(table[list(columns)].to_numpy(float))))


def _over_runs(found: Sequence[tuple[int, float]]) -> tuple[float | None, float | None, float | None]:
    """Mean over runs of the mean over the models of each, which share a base and prompts, and its interval.

    Args:
        found: seed of the run, and value, of each model.
    """
    if not found:
        return None, None, None
    runs = pd.DataFrame(found).groupby(0)[1].mean()
    mean = float(runs.mean())
    if len(runs) < 2:
        return mean, None, None
    half = float(stats.t.ppf(0.975, len(runs) - 1) * runs.sem())
    return mean, max(0.0, mean - half), min(1.0, mean + half)
