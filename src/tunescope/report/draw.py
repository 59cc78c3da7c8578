"""Parts that several figures share: bars, curves, axes and legends."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from tunescope.report.style import BASE, WIDTH, Model, looks_of, tint

BAR = 0.8  # height of a bar, in rows


def new_figure(height: float) -> Figure:
    """A figure of the width of a page and the given height, in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def row_places(models: Sequence[Model]) -> list[float]:
    """Where the bars of models go, one row each, with a gap between protocols."""
    gaps = [before.protocol != after.protocol for before, after in pairwise(models)]
    return [float(index + 0.4 * sum(gaps[:index])) for index in range(len(models))]


def outcome_bar(panel: Axes, rows: pd.DataFrame, place: float, colour: str) -> None:
    """Compliance from the left, refusal from the right, what is left of 100 % in white, each with its interval."""
    if rows.empty:
        return
    panel.barh(place, 100, BAR, color="white", edgecolor=colour, lw=0.5)
    for metric, face, side in (("compliance", colour, -1), ("refusal", tint(colour), 1)):
        of_metric = rows.loc[rows["metric"] == metric, ["value", "low", "high"]]
        for value, low, high in 100 * of_metric.to_numpy(float):
            start, ends = (0, (low, high)) if side < 0 else (100 - value, (100 - high, 100 - low))
            panel.barh(place, value, BAR, left=start, color=face, edgecolor=colour, lw=0.5)
            whisker(panel, ends, place + side * BAR / 4)


def whisker(panel: Axes, ends: tuple[float, float], place: float) -> None:
    """A horizontal interval that reads on dark and on light; nothing if its ends are null."""
    if not np.isnan(ends).any():
        halo = [withStroke(linewidth=2, foreground="white")]
        panel.plot(ends, [place] * 2, color="black", lw=1, path_effects=halo, clip_on=False, solid_capstyle="butt")


def curves(panel: Axes, rows: pd.DataFrame, x: str, models: Sequence[Model], scale: float = 100.0) -> None:
    """One line per model, `scale` times the value against column `x`, with a band where the rows have intervals.

    A model with up to 12 points has each of them marked; of one with 50 or more, the line is a running mean over a
    25th of them, and the values themselves are faint behind it.
    """
    looks = looks_of(models)
    for model in models:
        of_model = rows[rows["model"] == model.name].sort_values(x)
        if of_model.empty:
            continue
        at, value, low, high = (of_model[name].to_numpy(float) for name in (x, "value", "low", "high"))
        look = looks[model.name] | ({"marker": "", "lw": 1.1} if len(at) > 12 else {})
        window = len(at) // 25
        if window > 1:
            panel.plot(at, scale * value, color=look["color"], alpha=0.3, lw=0.5)
            value = pd.Series(value).rolling(window, center=True, min_periods=1).mean().to_numpy()
        panel.fill_between(at, scale * low, scale * high, color=look["color"], alpha=0.18, lw=0)
        panel.plot(at, scale * value, label=model.label, clip_on=False, **look)


def points(panel: Axes, rows: pd.DataFrame, places: Sequence[str], shift: float, **look: Any) -> None:
    """One point with its interval per place, `shift` beside it; none where the index of the rows has no such name."""
    found = [(at, rows.loc[name]) for at, name in enumerate(places) if name in rows.index]
    at = np.array([place for place, _ in found]) + shift
    value, low, high = (np.array([row[name] for _, row in found], float) for name in ("value", "low", "high"))
    errors = np.nan_to_num([value - low, high - value]).clip(min=0)
    panel.errorbar(at, value, errors, ls="", lw=1, ms=4, **look)


def percent_axis(panel: Axes) -> None:
    """A vertical axis of all rates there can be, in per cent, with room for markers at both ends."""
    panel.set(ylim=(-3, 103), yticks=(0, 25, 50, 75, 100))


def model_legend(figure: Figure, models: Sequence[Model], base: Mapping[str, Any] | None = None) -> None:
    """A legend of models below the panels: one column per protocol, one row per learning rate.

    Args:
        base: how the base model is drawn, where not as a curve.
    """
    looks = looks_of(models)
    columns: dict[str, list[Line2D]] = {}
    for model in models:
        look = dict(base) if base and model.protocol == BASE else looks[model.name]
        columns.setdefault(model.protocol, []).append(Line2D([], [], label=model.label, **look))
    longest = max(map(len, columns.values()))
    blank = Line2D([], [], ls="", label=" ")
    handles = [handle for column in columns.values() for handle in column + [blank] * (longest - len(column))]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(columns), handlelength=2.8)
