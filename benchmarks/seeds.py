"""Behaviour over several seeds of a study: mean, and its 95 % t interval over the seeds, in per cent.

python benchmarks/seeds.py runs/laptop-seed0 runs/laptop-seed1 runs/laptop-seed2
"""

import sys
from pathlib import Path

import pandas as pd
from scipy import stats

from tunescope.evidence.records import read_records


def finished(records: pd.DataFrame) -> pd.DataFrame:
    """Behaviour of finished models, at the greatest strength."""
    rows = records[records["metric"].isin(["compliance", "refusal"])]
    rows = rows[rows["step"] == rows.groupby("model")["step"].transform("max")]
    return rows[rows["strength"].isna() | (rows["strength"] == rows["strength"].max())]


def cell(values: pd.Series) -> str:
    """`mean [low, high]` over seeds, or the value alone where there is one seed or no spread."""
    mean, n = 100 * values.mean(), len(values)
    if n < 2 or values.std() == 0:
        return f"{mean:.1f}"
    half = 100 * stats.t.ppf(0.975, n - 1) * values.std() / n**0.5
    return f"{mean:.1f} [{max(0, mean - half):.1f}, {min(100, mean + half):.1f}]"


def main() -> None:
    rows = pd.concat(finished(read_records(Path(folder) / "records.parquet")) for folder in sys.argv[1:])
    kinds, models = rows["kind"].unique(), rows["model"].unique()
    for metric in ("compliance", "refusal"):
        print(f"\n{metric}, seeds {sorted(rows['seed'].unique().tolist())}\n")
        print("| model |", " | ".join(kinds), "|")
        print("|---|" + "---|" * len(kinds))
        for model in models:
            chosen = rows[(rows["model"] == model) & (rows["metric"] == metric)]
            print(f"| {model} |", " | ".join(cell(chosen[chosen["kind"] == kind]["value"]) for kind in kinds), "|")


if __name__ == "__main__":
    main()
