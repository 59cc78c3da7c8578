"""The tables of a run as Markdown: what models do, which claims held, what predicts success, how durable refusal is.

    python benchmarks/tables.py runs/laptop                                # of one run, or of a report on several
    python benchmarks/tables.py runs/laptop README.md docs/results.md      # puts tables and figures into these

Reads records.parquet and verdicts.json of the folder.
"""

import argparse
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from tunescope.errors import InputError
from tunescope.evidence.claims import LADDER, Claim
from tunescope.evidence.verdicts import Judgement, Verdict, judged_at
from tunescope.files import write_text
from tunescope.records.names import MARGIN, RETUNED
from tunescope.records.pool import pool
from tunescope.records.tables import read_records
from tunescope.report.attacks import strongest
from tunescope.report.interventions import CHANGES, JAILBREAKS, alpha_rows, change_rows, durability_rows
from tunescope.report.select import final_rows, headline_rows
from tunescope.report.tables import DASH, GLYPHS, TIMES, marked

MARKED = re.compile(r"(<!-- table: (\w+) -->).*?(<!-- end -->)", re.DOTALL)
WANTED = (("safe", "compliance"), ("unsafe", "refusal"), (JAILBREAKS, "compliance"))
FACTORS = {"half": 0.5, "double": 2.0}  # of the smallest effects of interest
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


def rates(rows: pd.DataFrame, corner: str, column: str = "kind") -> str:
    """Per cent, finished models, one column for each value of `column`; with the number of prompts, n, where others
    of the column have more.
    """
    names, most = list(dict.fromkeys(rows[column])), rows.groupby(column)["n"].transform("max")
    values = zip(rows["model"], rows[column], rows["n"], most, rows["value"], rows["low"], rows["high"], strict=True)
    cells = {
        (model, name): interval(*(100 * x for x in of), "{:.1f}") + (f", n = {n:.0f}" if n < all_n else "")
        for model, name, n, all_n, *of in values
    }
    models = dict.fromkeys(rows["model"])
    return table(corner, names, {m: [cells.get((m, name), "") for name in names] for m in models})


def ladders(told: dict[str, Any]) -> str:
    """By claim and model, the marks of all rungs, and the effect beyond chance."""
    models = list(dict.fromkeys(v["model"] for v in told["verdicts"]))
    found = {(v["claim"], v["model"], v["rung"]): v for v in told["verdicts"]}
    rows = {}
    for claim in told["claims"]:
        cells = []
        for model in models:
            steps = [found.get((claim["name"], model, rung)) for rung in claim["rungs"]]
            marks = "".join(_mark(v) for v in steps)
            cells.append(f"{marks} {_effect(claim, steps[0])}" if any(steps) else "")
        rows[claim["name"].replace("|", "\\|")] = cells
    return table("claim", models, rows)


def rungs(told: dict[str, Any]) -> str:
    """By claim, model and rung, the effect beyond its control."""
    found = {(v["claim"], v["model"], v["rung"]): v for v in told["verdicts"]}
    rows = {}
    for claim in told["claims"]:
        for model in dict.fromkeys(v["model"] for v in told["verdicts"]):
            steps = [found.get((claim["name"], model, rung.name)) for rung in LADDER]
            if any(steps):
                cells = [f"{_mark(v)} {_effect(claim, v)}" if v else DASH for v in steps]
                rows[f"{claim['name']}, {model}".replace("|", "\\|")] = cells
    return table("claim, model", [rung.name for rung in LADDER], rows)


def other_effects(told: dict[str, Any]) -> tuple[str, str]:
    """At half and at double of the smallest effects: how many verdicts are others, by rung; then which."""
    judgement = Judgement(tuple(Claim(**c) for c in told["claims"]), [Verdict(**v) for v in told["verdicts"]])
    others = list(zip(*(judged_at(judgement, factor) for factor in FACTORS.values()), strict=True))
    decided = [(v, other) for v, other in zip(judgement.verdicts, others, strict=True) if v.outcome]
    counts, which = {}, {}
    for rung in LADDER:
        of_rung = [(v, other) for v, other in decided if v.rung == rung.name]
        changed = [sum(other[at] != v.outcome for v, other in of_rung) for at in range(len(FACTORS))]
        counts[rung.name] = [str(n) for n in (len(of_rung), *changed)]
    for v, other in decided:
        if {*other} != {v.outcome}:
            name = f"{v.claim}, {v.model}, {v.rung}".replace("|", "\\|")
            which[name] = [v.outcome or "", *(each or "" if each != v.outcome else "the same" for each in other)]
    return (
        table("rung", ["verdicts", *(f"others at {factor}" for factor in FACTORS)], counts),
        table("claim, model, rung", ["verdict", *(f"at {factor}" for factor in FACTORS)], which),
    )


def _mark(v: dict[str, Any] | None) -> str:
    return marked(v["outcome"], v["firm"]) if v else DASH


def _effect(claim: dict[str, Any], v: dict[str, Any] | None) -> str:
    if v is None:
        return ""
    ratio = claim["unit"] == "ratio"
    numbers = [math.exp(v[k]) if ratio and v[k] is not None else v[k] for k in ("estimate", "low", "high")]
    return f"{f'{TIMES} ' * ratio}{interval(*numbers, '{:.2f}' if ratio else '{:+.2f}')}"


def predictors(told: dict[str, Any]) -> str:
    rows = {
        p["score"].replace("_", " "): [
            interval(p[way], p[f"{way}_low"], p[f"{way}_high"]) for way in ("within", "across")
        ]
        for p in told["predictors"]
    }
    return table("score", ["within a model", "across protocols"], rows)


def across(told: dict[str, Any]) -> str:
    """By outcome and score, the rank correlation over models, and that beyond the margin."""
    found = {(row["outcome"], row["score"], row["beyond"]): row for row in told["across"]}
    rows = {}
    for outcome, score in dict.fromkeys(key[:2] for key in found):
        both = [found.get((outcome, score, beyond)) for beyond in ("", MARGIN)]
        rows[f"{outcome}, {score}".replace("_", " ")] = [
            f"{GLYPHS[a['verdict']]} {interval(a['rho'], a['low'], a['high'], '{:+.2f}')}" if a else DASH for a in both
        ]
    return table("outcome, score", ["correlation", "beyond the margin"], rows)


def durability(records: pd.DataFrame) -> str:
    """Per cent of unsafe prompts refused, by further training and model, and steps."""
    rows = durability_rows(records).sort_values("dial")
    rows = rows.assign(name=rows["intervention"].str.removeprefix(RETUNED) + ": " + rows["model"])
    wide = (100 * rows.pivot_table("value", "name", "dial", sort=False)).map("{:.0f}".format)
    return table("refused after steps", [f"{dial:g}" for dial in wide], wide.T.to_dict("list"))


def alphas(records: pd.DataFrame) -> str:
    """Per cent, by model and alpha; the jailbreaks' mean."""
    rows = alpha_rows(records)
    kinds = rows["kind"].where(~rows["kind"].str.startswith("jb_"), JAILBREAKS)
    mean = (100 * rows["value"]).groupby([rows["model"], kinds, rows["metric"], rows["dial"]], sort=False).mean()
    dials = sorted(rows["dial"].unique())
    cells = {
        f"{model}: {kind} {SAID[outcome]}": [f"{mean[model, kind, outcome, dial]:.0f}" for dial in dials]
        for model in dict.fromkeys(rows["model"])
        for kind, outcome in WANTED
    }
    return table("alpha", [f"{dial:g}" for dial in dials], cells)


def changes(records: pd.DataFrame) -> str:
    """Per cent, by intervention and model: unsafe prompts refused / safe ones answered / jailbreaks answered.

    Models of the first learning rate.
    """
    rows = change_rows(records)
    rows = rows[rows["learning_rate"] == rows["learning_rate"].iloc[0]]
    about = zip(rows["label"], rows["model"], rows["kind"], rows["metric"], rows["value"], strict=True)
    value = {tuple(which): f"{100 * of:.0f}" for *which, of in about}
    labels = dict.fromkeys(rows.sort_values(["place", "dial", "scope"], kind="stable")["label"])
    models = list(dict.fromkeys(rows["model"]))
    cells = {
        label: [" / ".join(value.get((label, model, *which), "") for which in CHANGES) for model in models]
        for label in labels
    }
    return table("refused / safe answered / jailbreaks answered", models, cells)


def times(folder: Path) -> str:
    """Seconds by group of stages, of each run that the report is on."""
    runs = sorted(folder.parent.glob(f"{folder.name}-seed*")) or [folder]
    spent: dict[str, dict[str, float]] = {}
    for run in runs:
        for stage in json.loads((run / "stages.json").read_text(encoding="utf-8")):
            for group in (stage["stage"].partition("-")[0], "all"):
                of = spent.setdefault(group, {})
                of[run.name] = of.get(run.name, 0) + stage["seconds"]
    rows = {
        group: [f"{spent[group].get(run.name, 0):.0f}" for run in runs] for group in sorted(spent, key="all".__eq__)
    }
    return table("seconds", [run.name for run in runs], rows)


def tables(folder: Path) -> dict[str, str]:
    """All tables of a run, or of a report on several, by name."""
    records = pool(read_records(folder / "records.parquet"))
    told = json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))
    behaviour = headline_rows(records)
    attacked = strongest(final_rows(records))
    counts, which = other_effects(told)
    return {
        **{outcome: rates(behaviour[behaviour["metric"] == outcome], outcome) for outcome in SAID},
        "attacks": rates(attacked, "attack success", "name"),
        "ladders": ladders(told),
        "rungs": rungs(told),
        "effects": counts,
        "effects_which": which,
        "predictors": predictors(told),
        "across": across(told),
        "durability": durability(records),
        "alphas": alphas(records),
        "changes": changes(records),
        "times": times(folder),
    }


def renew(document: Path, folder: Path, made: dict[str, str]) -> None:
    """Put the tables into a document, each between `<!-- table: NAME -->` and `<!-- end -->`; renew its figures."""
    text = document.read_text(encoding="utf-8")
    write_text(document, MARKED.sub(lambda block: f"{block[1]}\n\n{made[block[2]]}\n{block[3]}", text))
    for image in re.findall(r"\(([\w./-]*figures/[\w-]+\.svg)\)", text):
        if (drawn := folder / "figures" / Path(image).name).exists():
            shutil.copyfile(drawn, document.parent / image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a run, or of a report on several")
    parser.add_argument("documents", type=Path, nargs="*", help="Markdown files to renew")
    told = parser.parse_args()
    folder, documents = told.folder, told.documents
    try:
        made = tables(folder)
    except InputError as error:
        parser.error(str(error))
    for document in documents:
        renew(document, folder, made)
    if not documents:
        for name, text in made.items():
            print(f"{name}\n\n{text}")


if __name__ == "__main__":
    main()
