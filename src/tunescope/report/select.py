"""Which records a figure or table shows: records in, some of their rows out."""

import numpy as np
import pandas as pd
from scipy import stats

from tunescope.records.names import BASE, COMPLIANCE, CORRECTED, EVERYWHERE, OUTCOMES, REFUSAL, SAFE, UNSAFE
from tunescope.report.style import first_rates, models_of

HISTOGRAM, BINS = "_histogram", 30  # what is behind the name of a metric
COURSE = {SAFE: COMPLIANCE, UNSAFE: REFUSAL}  # what fine-tuning should keep, and what it should teach


def behaviour_rows(records: pd.DataFrame) -> pd.DataFrame:
    """How finished models behave: the outcomes at the last step measured of each model."""
    return final_rows(_outcomes(records))


def headline_rows(records: pd.DataFrame) -> pd.DataFrame:
    """`behaviour_rows`, of each kind only the greatest strength (and all of a kind that has none)."""
    return strongest_rows(behaviour_rows(records))


def strongest_rows(rows: pd.DataFrame, what: str = "strength", of: str = "kind") -> pd.DataFrame:
    """Of each kind the rows at its greatest strength, and all of a kind that has none; or of another column."""
    strength = rows[what].astype(float).fillna(0)
    return rows[strength == strength.groupby(rows[of]).transform("max")]


def inside_rows(records: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """What was found of these metrics with the models and prompts as they are."""
    plain = ~(records["attack"].fillna("") + records["intervention"].fillna("")).astype(bool)
    return records[plain & records["metric"].isin(metrics)]


def unchanged(records: pd.DataFrame) -> pd.Series:
    """Which records of interventions are of the model as it is: of all of dW."""
    return (records["intervention"] == "scaled") & (records["scope"] == EVERYWHERE) & (records["dial"] == 1)


def final_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each model the rows at its last step."""
    return rows[rows["step"] == rows.groupby("model", observed=True)["step"].transform("max")]


def finished(rows: pd.DataFrame) -> pd.DataFrame:
    """Before runs are pooled: of each model of each run the rows at its last step, which may be another in each."""
    return rows[rows["step"] == rows.groupby(["seed", "model"], observed=True)["step"].transform("max")]


def of_course(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, that of the finished base at step 0; none if no fine-tune was measured before its last step."""
    is_base = rows["protocol"] == BASE
    tuned = rows[~is_base]
    if not (tuned["step"] < tuned.groupby("model")["step"].transform("max")).any():
        return rows.iloc[:0]
    return pd.concat([final_rows(rows[is_base]).assign(step=0), tuned])


def vector_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """The null lengths of dW's singular vectors in the last layer, as rows that figures can have beside the records.

    Each is the mean over seeds with its 95 % Student interval. `index`, which no record has, says which vector it is: 0
    has the largest singular value.
    """
    rows = final_rows(scores[scores["metric"] == "null_length"])
    rows = rows[rows["layer"] == rows["layer"].max()]
    keys = ["model", "protocol", "learning_rate", "step", "layer", "metric", "control", "index"]
    lengths = rows.groupby(keys, observed=True)["value"]
    mean, half = lengths.mean(), stats.t.ppf(0.975, lengths.size() - 1) * lengths.sem()
    columns = {"value": mean, "low": (mean - half).clip(0), "high": (mean + half).clip(upper=1)}
    return pd.DataFrame(columns).reset_index()


def histogram_rows(scores: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """Histograms of what single plain prompts score, by kind, at the last layer where the metric has layers; as rows
    that figures can have beside the records.

    `value` is the share of a run's prompts in a bin, mean over runs; `index` the middle of the bin. All models of a
    metric have the same bins, which hold all but the outermost tenth of a per cent, on either side, of the models at
    the first learning rate of their method; the last bins have what is beyond.
    """
    plain = (scores["attack"] == "") & (scores["intervention"] == "") & (scores["control"] == "")
    rows = finished(scores[plain & scores["metric"].isin(metrics) & scores["kind"].isin([*COURSE])])
    layer = rows["layer"].fillna(-1)
    rows = rows[layer == layer.groupby(rows["metric"], observed=True).transform("max")]
    found = []
    for metric, of_metric in rows.groupby("metric", observed=True):
        first = {model.name for model in first_rates(models_of(of_metric))}
        ranging = of_metric.loc[of_metric["model"].isin(first), "value"]
        low, high = ranging.quantile([0.001, 0.999]).tolist()
        edges = np.linspace(low, high, BINS + 1)
        for _, its in of_metric.groupby(["model", "kind"], observed=True):
            runs = (run.clip(low, high) for _, run in its.groupby("seed")["value"])
            shares = [np.histogram(run, edges)[0] / len(run) for run in runs]
            share = pd.DataFrame({"value": np.mean(shares, axis=0), "index": (edges[1:] + edges[:-1]) / 2})
            about = its.iloc[0]
            for name in ("model", "protocol", "learning_rate", "kind"):
                share[name] = about[name]
            found.append(share.assign(metric=f"{metric}{HISTOGRAM}", control="", n=len(its)))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def prompts_text(rows: pd.DataFrame, runs: int = 1) -> str:
    """How many prompts of all runs are behind each row, as text; empty if no row tells (n is 1 in each run where it
    does not apply).
    """
    n = rows["n"][rows["n"] > runs]
    if n.empty:
        return ""
    low, high = (f"{int(bound):,}" for bound in (n.min(), n.max()))
    return f"{low} prompts" if low == high else f"{low} to {high} prompts"


def _outcomes(records: pd.DataFrame) -> pd.DataFrame:
    """Rates of the outcomes of whole models, corrected ones too: nothing that was measured at one layer or site."""
    whole = records["layer"].isna() & (records["site"] == "") & (records["control"] == "")
    return inside_rows(records[whole], *OUTCOMES, CORRECTED)


def course_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Safe compliance and unsafe refusal of fine-tuned models at every step measured; the finished base at step 0."""
    rows = _outcomes(records)
    return of_course(rows[rows["kind"].map(COURSE) == rows["metric"]])
