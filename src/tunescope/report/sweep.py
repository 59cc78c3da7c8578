"""The report of a sweep: every claim's effect against every swept setting, and where a verdict turns."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tunescope.evidence.claims import LADDER
from tunescope.records.names import COMPLIANCE
from tunescope.records.pool import pool
from tunescope.report.draw import Look, facet, model_legend
from tunescope.report.figures import save_figures
from tunescope.report.html import drawing, series_of, write_page
from tunescope.report.marks import name_points, named
from tunescope.report.select import headline_rows
from tunescope.report.style import Model, models_of, style
from tunescope.report.tables import DASH, EDGE, GLYPHS, TIMES

# Of the table of effects, beside the point and the swept settings; as in `tunescope.evidence.verdicts.Verdict`, in the
# units that are shown: ratios, not their logarithms.
COLUMNS = ("claim", "model", "protocol", "learning_rate", "rung", "control", "runs", "estimate", "low", "high")
RUNGS = [rung.name for rung in LADDER]
MARKS = {"" if outcome is None else str(outcome): glyph for outcome, glyph in GLYPHS.items()}


def render_sweep(
    folder: Path,
    name: str,
    effects: pd.DataFrame,
    behaviour: pd.DataFrame,
    swept: Sequence[str],
    points: Sequence[str],
    failures: Mapping[str, str],
) -> Path:
    """Write the report of a sweep and its figures; returns the path of the page.

    Args:
        effects: one row per point, claim, model and rung. behaviour: one per point, model and kind, as of `answered`.
        swept: the settings that differ between points. points: their names. failures: by run that has no tables, why.
    """
    parts = {"behaviour": ("Prompts answered (%)", behaviour)}
    for rung in LADDER:
        of_rung = effects[effects["rung"] == rung.name] if len(effects) else effects
        parts[f"effects-{rung.name}"] = (f"Effects beyond {rung.beyond}", of_rung)
    drawn = {what: dose_responses(rows, swept, name, what) for name, (what, rows) in parts.items() if len(rows)}
    drawn = {what: figures for what, figures in drawn.items() if figures}
    there = [rows for rows in (behaviour, effects) if len(rows)]
    made = {name: figure for figures in drawn.values() for name, (_, figure) in figures.items()}
    marks = {name: named(figure) for name, figure in made.items()}
    save_figures(made, folder / "figures")
    page = {
        "title": f"tunescope: sweep {name}",
        "swept": swept,
        "points": points,
        "runs": int(effects["runs"].max()) if len(effects) else 0,
        "failures": failures,
        "figures": {
            what: [drawing(folder, name, title, marks[name]) for name, (title, _) in figures.items()]
            for what, figures in drawn.items()
        },
        "series": series_of(marks, models_of(pd.concat(there)) if there else []),
        "turns": turns(effects, swept) if len(effects) else [],
        "rows": table(effects, points) if len(effects) else [],
        "ladder": LADDER,
    }
    return write_page(folder, "sweep.html.j2", page)


def answered(records: pd.DataFrame) -> pd.DataFrame:
    """How often each finished model answers prompts of each kind, at its greatest strength, as rows that are drawn like
    effects: per cent, mean over the runs.

    Args:
        records: of all runs of one point.
    """
    pooled = headline_rows(pool(records))
    rows = pooled[pooled["metric"] == COMPLIANCE]
    single = headline_rows(records)
    single = single[single["metric"] == COMPLIANCE]
    each = [(100 * of["value"]).tolist() for of in _alike(single, rows)]
    numbers = {name: 100 * rows[of] for name, of in (("estimate", "value"), ("low", "low"), ("high", "high"))}
    return rows.assign(claim=rows["kind"], unit="", per_run=pd.Series(each, rows.index), **numbers)


def _alike(single: pd.DataFrame, rows: pd.DataFrame) -> list[pd.DataFrame]:
    """By row of the pooled table, the rows of single runs that it is the mean of."""
    pairs = zip(rows["model"], rows["kind"], strict=True)
    return [single[(single["model"] == model) & (single["kind"] == kind)] for model, kind in pairs]


def dose_responses(rows: pd.DataFrame, swept: Sequence[str], of: str, what: str) -> dict[str, tuple[str, Figure]]:
    """By name, a title and a figure: for each swept setting of several values, at each combination of the others."""
    models, found = models_of(rows), {}
    with style():
        for key in swept:
            others = [other for other in swept if other != key]
            groups = rows.groupby(others, sort=False) if others else [((), rows)]
            for number, (values, mine) in enumerate(groups):
                if mine[key].nunique() < 2:
                    continue
                fixed = ", ".join(f"{other} = {value}" for other, value in zip(others, values, strict=True))
                title = f"{what} against {key}" + (f", at {fixed}" if fixed else "")
                found[f"{of}-{key.replace('.', '-')}-{number}"] = (title, _dose_response(mine, key, models))
    return found


def _dose_response(rows: pd.DataFrame, key: str, models: Sequence[Model]) -> Figure:
    """A panel for each claim: the effect of each model, its interval over runs, and each run as a dot."""
    values = list(dict.fromkeys(rows[key]))
    places = {value: at for at, value in enumerate(values)}
    ratios = {claim: unit == "ratio" for claim, unit in zip(rows["claim"], rows["unit"], strict=True)}

    def draw(panel: Axes, claim: str) -> None:
        of_claim = rows[rows["claim"] == claim]
        panel.axhline(1 if ratios[claim] else 0, color="black", lw=0.5)
        for number, model in enumerate(models):
            mine = of_claim[of_claim["model"] == model.name]
            shift = 0.12 * (number - (len(models) - 1) / 2) / max(1, len(models) / 4)
            at = mine[key].map(places).astype(float) + shift
            ends = [
                (mine["estimate"] - mine["low"]).clip(0).fillna(0),
                (mine["high"] - mine["estimate"]).clip(0).fillna(0),
            ]
            drawn = panel.errorbar(at, mine["estimate"], ends, lw=1, elinewidth=1, ms=3, **_line(model))
            name_points(drawn, model.label)
            for x, each in zip(at, mine["per_run"], strict=True):
                look: Look = {"s": 7, "color": model.colour, "alpha": 0.6, "linewidths": 0, "label": model.label}
                panel.scatter([x - 0.05] * len(each), each, **look)
        panel.set(xlim=(-0.5, len(values) - 0.5))
        panel.set_xticks(range(len(values)), values)

    short = {claim: claim if len(claim) <= 40 else f"{claim[:39]}…" for claim in dict.fromkeys(rows["claim"])}
    titles = {claim: f"{name} ({TIMES})" if ratios[claim] else name for claim, name in short.items()}
    made = facet(draw, titles, height=1.35, across=3, share=(True, False), xlabel=key, legend=model_legend(models))
    for panel in made.axes:
        panel.title.set_fontsize(6.5)
    return made


def _line(model: Model) -> dict[str, Any]:
    return {key: value for key, value in model.look.items() if key != "lw"}


def turns(effects: pd.DataFrame, swept: Sequence[str]) -> list[dict[str, Any]]:
    """Where a verdict beyond chance is another at the next value of a setting, all others being the same."""
    first, found = effects[effects["rung"] == RUNGS[0]], []
    for key in swept:
        others = ["claim", "model", *(other for other in swept if other != key)]
        for values, rows in first.groupby(others, sort=False):
            about: dict[str, Any] = dict(zip(others, values, strict=True))
            for one, other in pairwise(rows.to_dict("records")):
                if one["outcome"] != other["outcome"]:
                    fixed = ", ".join(f"{name} = {about[name]}" for name in others[2:])
                    ends = [f"{each[key]}: {_mark(each)} {_effect(each)}" for each in (one, other)]
                    found.append({**about, "setting": key, "at": fixed, "before": ends[0], "after": ends[1]})
    return found


def table(effects: pd.DataFrame, points: Sequence[str]) -> list[dict[str, Any]]:
    """By claim and model, a cell for each point: the marks of all rungs, and the effect beyond chance; or nothing."""
    rows = []
    for (claim, model), mine in effects.groupby(["claim", "model"], sort=False):
        by_point = {str(point): cell for point, cell in mine.groupby("point")}
        rows.append({"claim": claim, "model": model, "cells": [_cell(by_point.get(point)) for point in points]})
    return rows


def _cell(rows: pd.DataFrame | None) -> str:
    if rows is None:
        return DASH
    of = {row["rung"]: row for row in rows.to_dict("records")}
    marks = "".join(_mark(of[rung]) if rung in of else DASH for rung in RUNGS)
    return f"{marks} {_effect(of[RUNGS[0]])}" if RUNGS[0] in of else marks


def _mark(row: Mapping[Any, Any]) -> str:
    return MARKS[row["outcome"]] + EDGE * bool(row["outcome"] and not row["firm"])


def _effect(row: Mapping[Any, Any]) -> str:
    form = f"{TIMES} {{:.2f}}" if row["unit"] == "ratio" else "{:+.2f}"
    return form.format(row["estimate"]) + (f" [{row['low']:.2f}, {row['high']:.2f}]" if pd.notna(row["low"]) else "")
