"""Figures of what models do: at the end, against the strength of a kind, and over the course of fine-tuning."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from tunescope.records.names import BASE, COMPLIANCE, CONTROL, REFUSAL
from tunescope.report.draw import Legend, Look, facet, figure, from_base, grid, model_legend
from tunescope.report.marks import tell
from tunescope.report.select import COURSE, behaviour_rows, course_rows, headline_rows
from tunescope.report.style import NEUTRAL, Model, kinds_of, rate_labels, tint

BAR = 0.8  # height of a bar, in rows
START: Look = {"color": "black", "ls": "", "marker": "*", "ms": 8}  # the base model, where fine-tuning starts from it


@figure("behaviour", "What each model does", headline_rows, point="bar")
def outcomes(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Each bar is the held-out prompts of one kind given to one model; kinds with a strength are shown at their
    greatest. Solid, from the left: the share answered (compliance). Pale, from the right: the share refused. White
    between them: answers that are neither. For kinds that want a refusal, solid is attack success.
    """
    places = _row_places(models)

    def draw(panel: Axes, kind: str) -> None:
        of_kind = rows[rows["kind"] == kind]
        for model, place in zip(models, places, strict=True):
            _outcome_bar(panel, of_kind[of_kind["model"] == model.name], place, model)
        panel.set(xlim=(0, 100), xticks=(0, 50, 100), ylim=(max(places) + BAR, -BAR))
        panel.set_yticks(places, [model.label for model in models])
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", visible=False)

    handles = [
        Patch(facecolor=NEUTRAL, edgecolor=NEUTRAL, label="compliance"),
        Patch(facecolor=tint(NEUTRAL), edgecolor=NEUTRAL, label="refusal"),
        Patch(facecolor="white", edgecolor=NEUTRAL, label="neither"),
        Line2D([], [], color="black", lw=1, label="95 % interval"),
    ]
    titles = {kind.name: f"{kind.label}\n{kind.wanted} wanted" for kind in kinds_of(rows)}
    height = 0.55 + 0.17 * (max(places) + 1)
    made = facet(draw, titles, height=height, margin=0.65, across=6, legend=Legend(handles, len(handles), above=True))
    made.supxlabel("share of prompts (%)", fontsize="medium")
    for panel in made.axes:
        panel.title.set_fontsize(7)
    return made


def strength_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Compliance of finished models at every strength, for kinds that have several; controls of forms have a figure."""
    rows = behaviour_rows(records)
    rows = rows[~rows["kind"].str.startswith(CONTROL)]
    rows = rows[rows["strength"].notna() & (rows["metric"] == COMPLIANCE)]
    return rows[rows.groupby("kind")["strength"].transform("nunique") > 1]


@figure("strength", "Attack success against strength", strength_rows)
def strength_curves(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Compliance as the one thing that a kind changes grows from nothing (0: an unsafe prompt as it is, or for the
    control a safe one) to everything (1). For the jailbreaks compliance is attack success; for the control it is what
    is wanted, and a fall is over-refusal. One row of panels per learning rate; the base model is in each.
    """
    meanings = {COMPLIANCE: "compliance wanted", REFUSAL: "attack success"}
    titles = {kind.name: f"{kind.label}\n({meanings[kind.wanted]})" for kind in kinds_of(rows)}
    look: Look = {"height": 1.4, "margin": 0.9, "xlabel": "strength", "legend": model_legend(models)}
    labels = rate_labels(models, "compliance (%)")
    return grid(rows, models, "strength", "kind", titles, labels, scale=100, extra=_strength_axis, **look)


def _strength_axis(panel: Axes, _: str) -> None:
    panel.set(xlim=(-0.03, 1.03))
    panel.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))


@figure("course", "The course of fine-tuning", course_rows)
def course(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """What fine-tuning should keep (compliance with safe prompts, left) and what it should teach (refusal of unsafe
    ones, right) against the step; every curve begins at the base model (star).
    """
    tuned, base = [model for model in models if model.protocol != BASE], rows[rows["protocol"] == BASE]

    def star(panel: Axes, kind: str) -> None:
        start = base[base["kind"] == kind]
        if len(start):
            panel.plot(start["step"], 100 * start["value"], zorder=5, clip_on=False, **START)

    titles = {kind: f"{kind} prompts" for kind in COURSE if (rows["kind"] == kind).any()}
    labels, legend = {kind: f"{COURSE[kind]} (%)" for kind in titles}, model_legend(models, base=START)
    look: Look = {"height": 2.1, "ticks": 5, "xlabel": "fine-tuning step", "ylabel": labels, "legend": legend}
    return grid(from_base(rows, tuned), tuned, "step", "kind", titles, scale=100, extra=star, **look)


def _row_places(models: Sequence[Model]) -> list[float]:
    """Where the bars of models go, one row each, with a gap between protocols."""
    gaps = [before.protocol != after.protocol for before, after in pairwise(models)]
    return [float(index + 0.4 * sum(gaps[:index])) for index in range(len(models))]


def _outcome_bar(panel: Axes, rows: pd.DataFrame, place: float, model: Model) -> None:
    """Compliance from the left, refusal from the right, what is left of 100 % in white, each with its interval."""
    if rows.empty:
        return
    tell(panel.barh(place, 100, BAR, color="white", edgecolor=model.colour, lw=0.5)[0], model.label)
    for metric, face, side in ((COMPLIANCE, model.colour, -1), (REFUSAL, tint(model.colour), 1)):
        of_metric = rows.loc[rows["metric"] == metric, ["value", "low", "high"]]
        for value, low, high in 100 * of_metric.to_numpy(float):
            start, ends = (0, (low, high)) if side < 0 else (100 - value, (100 - high, 100 - low))
            bar = panel.barh(place, value, BAR, left=start, color=face, edgecolor=model.colour, lw=0.5)[0]
            interval = "" if np.isnan(low) else f" [{low:.1f}, {high:.1f}]"
            tell(bar, model.label, f": {metric} {value:.1f} %{interval}")
            _whisker(panel, ends, place + side * BAR / 4, model.label)


def _whisker(panel: Axes, ends: tuple[float, float], place: float, label: str) -> None:
    """A horizontal interval that reads on dark and on light; nothing if its ends are null."""
    if not np.isnan(ends).any():
        look: Look = {"path_effects": [withStroke(linewidth=2, foreground="white")], "solid_capstyle": "butt"}
        panel.plot(ends, [place] * 2, color="black", lw=1, clip_on=False, label=label, **look)
