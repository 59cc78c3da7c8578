"""Several seeds as one: means over seeds, with intervals that say how far another seed may be."""

import pandas as pd
from scipy import stats

from tunescope.evidence.records import ORDER

CURVES = ("loss", "held_out_compliance")  # measured along training, at steps of their own
RATES = r"(compliance|refusal|other|attack_success|attack_refusal|attack_intact)(_|$)|.*_auc$"  # shares of prompts
VALUES = ("seed", "value", "low", "high", "n")


def pool(records: pd.DataFrame) -> pd.DataFrame:
    """One row per measurement: the mean over seeds, its 95 % Student interval over them, and all prompts together.

    Where seeds agree better than their own intervals allow, the mean's is made of these (as in `contrasts.over_seeds`).
    Records of one seed are returned as they are. The base models, which seeds train for different numbers of steps,
    are put at the step of the longest. `seed` is the first of them.
    """
    if records["seed"].nunique() < 2:
        return records
    at_end = (records["protocol"] == "pretraining") & ~records["metric"].isin(CURVES)
    rows = records.assign(
        step=records["step"].mask(at_end, records.loc[at_end, "step"].max()),
        layer=records["layer"].mask(records["metric"].str.contains("_direction")),  # each seed chooses its own
        below=(records["value"] - records["low"]) ** 2,
        above=(records["high"] - records["value"]) ** 2,
    )
    keys = [name for name in ORDER if name not in VALUES]
    groups = rows.groupby(keys, dropna=False, sort=False)
    out = groups.agg(
        seed=("seed", "min"), value=("value", "mean"), n=("n", "sum"), low=("low", "mean"), high=("high", "mean")
    )
    error, seeds = groups["value"].sem(), groups["value"].size()
    half = pd.Series(stats.t.ppf(0.975, (seeds - 1).clip(lower=1)) * error, index=out.index)
    below, above = (half.clip(lower=groups[side].sum() ** 0.5 / seeds) for side in ("below", "above"))
    draws = out.index.get_level_values("control").isin(
        ["rotated", "shuffled"]
    )  # the spread of random draws stays what it is
    out["low"] = out["low"].where(draws & out["low"].notna(), out["value"] - below)
    out["high"] = out["high"].where(draws & out["high"].notna(), out["value"] + above)
    out = out.reset_index()
    rates = out["metric"].str.match(RATES)
    out.loc[rates, ["low", "high"]] = out.loc[rates, ["low", "high"]].clip(0, 1)
    return out[ORDER]
