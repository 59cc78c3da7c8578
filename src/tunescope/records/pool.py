"""Several seeds as one: means over seeds, with intervals that say how far another seed may be."""

import numpy as np
import pandas as pd
from scipy import stats

from tunescope.records.names import BASE, CORRECTED, INTACT, OUTCOMES, REACHED
from tunescope.records.tables import KEYS, ORDER

CURVES = ("loss", "held_out_compliance")  # measured along training, at steps of their own
SHARES = (
    *OUTCOMES,
    CORRECTED,
    INTACT,
    "refusal_by_odds",
    REACHED,
)  # metrics that are shares of prompts, as are those of this ending:
AUC = "_auc"
RATIO = "_ratio"  # metrics of this ending, and norms of gradients, are averaged as logarithms:
NORM = "sensitivity"
DRAWN = ("rotated", "shuffled")  # controls whose interval is the spread of random draws


def pool(records: pd.DataFrame) -> pd.DataFrame:
    """One row per measurement: the mean over seeds, its 95 % Student interval over them, and all prompts together.

    Of ratios and norms it is the geometric mean, whose interval never reaches zero. Where seeds agree better than their
    own intervals allow, the mean's is made of these (as in `contrasts.over_runs`). Records of one seed are returned as
    they are. The base models, which seeds train for different numbers of steps, are put at the step of the longest.
    What is corrected for a judge keeps the mean of its seeds' intervals: the judge errs alike in all of them. `seed` is
    the first of them. Where each seed has an intervention at one layer or at one dial, which it may have chosen, that
    is no difference: the layer is left out, the dial is the mean of theirs.
    """
    if records["seed"].nunique() < 2:
        return records
    at_end = (records["protocol"] == BASE) & ~records["metric"].isin(CURVES)
    dials = records.groupby(_but("dial", "seed"), dropna=False, sort=False)["dial"]
    chosen = _alone(records, "dial") & (dials.transform("nunique") > 1)
    rows = records.assign(
        step=records["step"].mask(at_end, records.loc[at_end, "step"].max()),
        layer=records["layer"].mask(_alone(records, "layer")),
        dial=records["dial"].mask(chosen, dials.transform("mean")),
    )
    values = rows[["value", "low", "high"]].astype(float)
    geometric = (rows["metric"] == NORM) | rows["metric"].str.endswith(RATIO)
    geometric &= (values["value"] > 0).groupby([rows[name] for name in _but("seed")], dropna=False).transform("all")
    # An end at or below zero, as a normal interval may have, is no end of a ratio.
    values = values.where(~geometric, values.where(values > 0).transform("log"))
    rows = rows.assign(
        value=values["value"],
        low=values["low"],
        high=values["high"],
        geometric=geometric,
        below=(values["value"] - values["low"]) ** 2,
        above=(values["high"] - values["value"]) ** 2,
    )
    groups = rows.groupby(_but("seed"), dropna=False, sort=False)
    mean = {name: (name, "mean") for name in ("value", "low", "high")}
    out = groups.agg(seed=("seed", "min"), n=("n", "sum"), geometric=("geometric", "all"), **mean)
    error, seeds = groups["value"].sem(), groups["value"].size()
    half = pd.Series(stats.t.ppf(0.975, (seeds - 1).clip(lower=1)) * error, index=out.index)
    within = (groups[side].sum(min_count=1) ** 0.5 / seeds for side in ("below", "above"))
    below, above = (half.clip(lower=of.fillna(0)).fillna(of) for of in within)  # of one seed it is all there is
    at = out.index.get_level_values
    drawn = at("control").isin(DRAWN) | (at("metric") == CORRECTED)  # their spread stays what it is
    out["low"] = out["low"].where(drawn & out["low"].notna(), out["value"] - below)
    out["high"] = out["high"].where(drawn & out["high"].notna(), out["value"] + above)
    out = out.reset_index()
    out.loc[out["geometric"], [*mean]] = np.exp(out.loc[out["geometric"], [*mean]])
    shares = out["metric"].isin(SHARES) | out["metric"].str.endswith(AUC)
    out.loc[shares, ["low", "high"]] = out.loc[shares, ["low", "high"]].clip(0, 1)
    return out[ORDER]


def _but(*names: str) -> list[str]:
    return [name for name in KEYS if name not in names]


def _alone(records: pd.DataFrame, name: str) -> pd.Series:
    """Which records are of an intervention that its seed has at one layer alone, or at one dial."""
    return ~records.duplicated(_but(name), keep=False) & (records["intervention"] != "")
