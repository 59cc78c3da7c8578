"""The tables of a run as Markdown: what each model does, which claims held, what predicts that an attack succeeds.

    python benchmarks/tables.py runs/laptop-seed0       # or the folder of a report on several seeds

Reads records.parquet and verdicts.json of the folder; the numbers in the README and in docs/results.md come from here.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from tunescope.evidence.pool import pool
from tunescope.evidence.records import read_records
from tunescope.report.interventions import CHANGES, JAILBREAKS, LABELS, alpha_rows, change_rows
from tunescope.report.select import final_rows, strongest_rows
from tunescope.report.verdicts import GLYPHS, TIMES

WANTED = (("safe", "compliance"), ("unsafe", "refusal"), (JAILBREAKS, "compliance"))
SAID = {"compliance": "answered", "refusal": "refused"}


def table(corner: str, columns: list[str], rows: dict[str, list[str]]) -> str:
    lines = [[corner, *columns], ["---"] * (len(columns) + 1), *([name, *cells] for name, cells in rows.items())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def interval(value: float | None, low: float | None, high: float | None, form: str = "{:.2f}") -> str:
    if value is None:
        return ""
    ends = [end for end in (low, high) if end is not None and not math.isnan(end)]
    bracket = f" [{', '.join(form.format(end) for end in ends)}]" if len(ends) == 2 and ends[0] < ends[1] else ""
    return form.format(value) + bracket


def rates(records: pd.DataFrame, metric: str) -> str:
    """Per cent, finished models, kinds at their greatest strength."""
    rows = strongest_rows(final_rows(records[(records["metric"] == metric) & records["layer"].isna()]))
    kinds = list(dict.fromkeys(rows["kind"]))
    cells = {(r.model, r.kind): interval(100 * r.value, 100 * r.low, 100 * r.high, "{:.1f}") for r in rows.itertuples()}
    models = dict.fromkeys(rows["model"])
    return table(metric, kinds, {m: [cells.get((m, kind), "") for kind in kinds] for m in models})


def verdicts(told: dict[str, Any]) -> str:
    columns = list(dict.fromkeys((v["protocol"], v["learning_rate"]) for v in told["verdicts"]))
    found = {(v["claim"], v["protocol"], v["learning_rate"]): v for v in told["verdicts"]}
    rows = {}
    for claim in told["claims"]:
        ratio = claim["unit"] == "ratio"
        form = "{:.2f}" if ratio else "{:+.2f}"
        cells = []
        for column in columns:
            v = found.get((claim["name"], *column))
            numbers = [v[k] if v else None for k in ("estimate", "low", "high")]
            shown = [math.exp(x) if ratio and x is not None else x for x in numbers]
            cells.append(f"{GLYPHS[v['outcome']]} {f'{TIMES} ' * ratio}{interval(*shown, form)}" if v else "")
        rows[claim["name"].replace("|", "\\|")] = cells
    return table("claim", [" ".join(column) for column in columns], rows)


def predictors(told: dict[str, Any]) -> str:
    rows = {
        p["score"].replace("_", " "): [
            interval(p[way], p[f"{way}_low"], p[f"{way}_high"]) for way in ("within", "across")
        ]
        for p in told["predictors"]
    }
    return table("score", ["within a model", "across protocols"], rows)


def alphas(records: pd.DataFrame) -> str:
    """Per cent, by model and alpha; the jailbreaks' mean."""
    rows = alpha_rows(records)
    kinds = rows["kind"].where(~rows["kind"].str.startswith("jb_"), JAILBREAKS)
    outcomes = rows["metric"].str.removesuffix("_scaled")
    mean = (100 * rows["value"]).groupby([rows["model"], kinds, outcomes, rows["strength"]], sort=False).mean()
    dials = sorted(rows["strength"].unique())
    cells = {
        f"{model}: {kind} {SAID[outcome]}": [f"{mean[model, kind, outcome, dial]:.0f}" for dial in dials]
        for model in dict.fromkeys(rows["model"])
        for kind, outcome in WANTED
    }
    return table("alpha", [f"{dial:g}" for dial in dials], cells)


def changes(records: pd.DataFrame) -> str:
    """Per cent, by intervention and model: unsafe prompts refused / safe ones answered / jailbreaks answered."""
    rows = change_rows(records)
    rows = rows[rows["learning_rate"] == "eta_m"]
    value = {(r.label, r.model, r.kind, r.outcome): f"{100 * r.value:.0f}" for r in rows.itertuples()}
    order = [*LABELS]
    labels = rows.assign(place=[order.index(name) for name in rows["name"]]).sort_values(["place", "strength", "site"])
    models = list(dict.fromkeys(rows["model"]))
    cells = {
        label: [" / ".join(value.get((label, model, *which), "") for which in CHANGES) for model in models]
        for label in dict.fromkeys(labels["label"])
    }
    return table("refused / safe answered / jailbreaks answered", models, cells)


def main() -> None:
    folder = Path(sys.argv[1])
    records = pool(read_records(folder / "records.parquet"))
    told = json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))
    for text in (
        rates(records, "compliance"),
        rates(records, "refusal"),
        rates(records, "attack_success"),
        verdicts(told),
        predictors(told),
        alphas(records),
        changes(records),
    ):
        print(text)


if __name__ == "__main__":
    main()
