"""Figures of what models do, and of how they were trained."""

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from tunescope.report.draw import BAR, curves, model_legend, new_figure, outcome_bar, percent_axis, row_places
from tunescope.report.select import COURSE, LEARNING, course_rows, headline_rows, learning_rows, strength_rows
from tunescope.report.style import (
    BASE,
    NEUTRAL,
    colours,
    kinds_of,
    linestyle,
    models_of,
    protocol_label,
    rate_label,
    rates_of,
    tint,
)

START = {"color": "black", "ls": "", "marker": "*", "ms": 8}  # the base model, where fine-tuning starts from it


def outcomes(records: pd.DataFrame) -> Figure:
    """One panel per kind, one bar per model: compliance from the left, refusal from the right, with intervals."""
    rows = headline_rows(records)
    kinds, models = kinds_of(rows), models_of(rows)
    colour, places = colours(models), row_places(models)
    columns = min(len(kinds), 6)
    lines = -(-len(kinds) // columns)
    figure = new_figure(0.65 + lines * (0.55 + 0.17 * (max(places) + 1)))
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, kind in zip(panels, kinds, strict=False):
        panel.set_title(f"{kind.label}\n{kind.wanted} wanted", fontsize=7, linespacing=1.25)
        for model, place in zip(models, places, strict=True):
            mine = (rows["kind"] == kind.name) & (rows["model"] == model.name)
            outcome_bar(panel, rows[mine], place, colour[model.protocol])
        panel.set(xlim=(0, 100), xticks=(0, 50, 100), ylim=(max(places) + BAR, -BAR))
        panel.set_yticks(places, [model.label for model in models])
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", visible=False)
    for panel in panels[len(kinds) :]:
        panel.set_visible(False)
    figure.supxlabel("share of prompts (%)", fontsize="medium")
    handles: list[Any] = [
        Patch(facecolor=NEUTRAL, edgecolor=NEUTRAL, label="compliance"),
        Patch(facecolor=tint(NEUTRAL), edgecolor=NEUTRAL, label="refusal"),
        Patch(facecolor="white", edgecolor=NEUTRAL, label="neither"),
        Line2D([], [], color="black", lw=1, label="95 % interval"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def strength_curves(records: pd.DataFrame) -> Figure:
    """Compliance against strength: one column per kind, one row per learning rate, the base model in each."""
    rows = strength_rows(records)
    kinds, models = kinds_of(rows), models_of(rows)
    rates = rates_of(models)
    figure = new_figure(0.9 + 1.4 * len(rates))
    panels = figure.subplots(len(rates), len(kinds), sharex=True, sharey=True, squeeze=False)
    for line, rate in zip(panels, rates, strict=True):
        shown = [model for model in models if model.rate in ("", rate)]
        for panel, kind in zip(line, kinds, strict=True):
            curves(panel, rows[rows["kind"] == kind.name], "strength", shown)
            panel.set(xlim=(-0.03, 1.03))
            panel.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        line[0].set_ylabel(f"{rate_label(rate)}: compliance (%)".removeprefix(": "))
        percent_axis(line[0])
    for top, bottom, kind in zip(panels[0], panels[-1], kinds, strict=True):
        meaning = "compliance wanted" if kind.wanted == "compliance" else "attack success"
        top.set_title(f"{kind.label}\n({meaning})", linespacing=1.25)
        bottom.set_xlabel("strength")
    model_legend(figure, models)
    return figure


def course(records: pd.DataFrame) -> Figure:
    """Safe compliance (left) and unsafe refusal (right) against the step of fine-tuning, from the base model on."""
    rows = course_rows(records)
    base, tuned = rows[rows["protocol"] == BASE], rows[rows["protocol"] != BASE]
    models = models_of(tuned)
    shown = [(kind, outcome) for kind, outcome in COURSE.items() if (rows["kind"] == kind).any()]
    figure = new_figure(2.9)
    panels = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for panel, (kind, outcome) in zip(panels, shown, strict=True):
        start = base[base["kind"] == kind]
        from_base = [start.assign(model=model.name) for model in models]
        curves(panel, pd.concat([*from_base, tuned[tuned["kind"] == kind]]), "step", models)
        if len(start):
            panel.plot(start["step"], 100 * start["value"], zorder=5, clip_on=False, **START)
        panel.set(title=f"{kind} prompts", xlabel="fine-tuning step", ylabel=f"{outcome} (%)")
        panel.tick_params(labelleft=True)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    percent_axis(panels[0])
    model_legend(figure, [*models_of(base), *models], base=START)
    return figure


def learning_curves(records: pd.DataFrame) -> Figure:
    """Pretraining above (loss, held-out compliance), fine-tuning losses below, one panel per protocol."""
    rows = learning_rows(records)
    models = models_of(rows)
    measured = set(zip(rows["protocol"], rows["metric"], strict=True))
    pairs = [(m, metric) for m in dict.fromkeys(m.protocol for m in models) for metric in LEARNING]
    pairs = [pair for pair in pairs if pair in measured]
    lines = [[pair for pair in pairs if (pair[0] == BASE) is above] for above in (True, False)]
    lines = [line for line in lines if line]
    figure = new_figure(0.3 + 1.7 * len(lines))
    grid = figure.add_gridspec(len(lines), math.lcm(*map(len, lines)))
    for row, line in enumerate(lines):
        span = grid.ncols // len(line)
        for column, (protocol, metric) in enumerate(line):
            panel = figure.add_subplot(grid[row, column * span : (column + 1) * span])
            mine = (rows["protocol"] == protocol) & (rows["metric"] == metric)
            curves(panel, rows[mine], "step", models, scale=1.0 if metric == "loss" else 100.0)
            title = _learning_title(protocol, metric)
            panel.set(title=title, xlabel="training step", ylabel=LEARNING[metric])
            panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if metric != "loss":
                percent_axis(panel)
    rates = dict.fromkeys(model.rate for model in models if model.rate)
    labels = {rate: f"learning rate {rate_label(rate)}" for rate in rates}
    handles = [Line2D([], [], color=NEUTRAL, label=label, ls=linestyle(rate)) for rate, label in labels.items()]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _learning_title(protocol: str, metric: str) -> str:
    if protocol == BASE:
        return "pretraining" if metric == "loss" else "pretraining: held-out prompts"
    return f"fine-tuning: {protocol_label(protocol)}"
