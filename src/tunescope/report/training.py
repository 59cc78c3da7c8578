"""Figures of what training did: to every weight matrix of a given fine-tune, and to the loss."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tunescope.records.names import BASE, GIVEN
from tunescope.report.draw import Legend, Look, figure, grid, percent_axis, series_legend
from tunescope.report.select import inside_rows
from tunescope.report.style import LINES, NEUTRAL, Model, drawn_as, protocol_label, rate_label

METRICS = {"relative_norm": "|dW| / |W|", "effective_rank": "effective rank of dW", "null_share": "share in N(W\u1d40)"}
COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "#000000")
MARKERS = "osD^vPX"
LEARNING = {"loss": "loss (nats)", "held_out_compliance": "compliance (%)"}


def matrix_rows(records: pd.DataFrame) -> pd.DataFrame:
    rows = inside_rows(records, *METRICS)
    return rows[rows["protocol"] == GIVEN]


@figure("matrices", "The change of every matrix", matrix_rows)
def changes(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Size of the change beside the matrix itself (Frobenius norms); its effective rank, dotted that of independent
    normal entries; and, where the matrix is taller than wide, the share of the change that lies in the left null space
    of the base model's matrix, dotted that of a random direction.
    """
    names = enumerate(rows["site"].unique())
    sites = [drawn_as(name, COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]) for at, name in names]
    titles = {metric: title for metric, title in METRICS.items() if (rows["metric"] == metric).any()}
    labels = {model.name: model.label if len(models) > 1 else "" for model in models}
    chance = rows["control"].where(rows["control"] == "", "chance")
    rows = rows.assign(whose=rows["model"], model=rows["site"], control=chance)
    look: Look = {"height": 2.0, "margin": 0.7, "share": (True, "col"), "xlabel": "layer", "ticks": 6}
    look |= {"extra": lambda panel, _: panel.set(ylim=(0, None)), "legend": series_legend(sites, "chance")}
    return grid(rows, sites, "layer", "metric", titles, labels, down="whose", chance="chance", **look)


@figure("learning", "Learning curves", lambda records: records[records["metric"].isin(LEARNING)], bars="told")
def learning_curves(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Loss of the training batches, in nats (faint: every step logged, and of several runs its 95 % interval over them;
    line: a running mean), and the base model's compliance with held-out prompts during pretraining. The losses of two
    protocols are different quantities: compare the learning rates within a panel, not one panel with another.
    """
    scale = np.where(rows["metric"] == "loss", 1, 100)
    scaled = {end: rows[end] * scale for end in ("value", "low", "high")}
    rows = rows.assign(**scaled, panel=rows["protocol"] + " " + rows["metric"])
    pairs = {f"{m.protocol} {metric}": (m.protocol, metric) for m in models for metric in LEARNING}
    shown = {panel: pair for panel, pair in pairs.items() if (rows["panel"] == panel).any()}
    rates = {f"learning rate {rate_label(model.rate)}": LINES[model.line] for model in models if model.rate}
    handles = [Line2D([], [], color=NEUTRAL, label=label, ls=line) for label, line in rates.items()]
    look: Look = {"height": 1.75, "margin": 0.3, "across": 3, "share": (False, False), "ticks": 4}
    look["ylabel"] = {panel: LEARNING[metric] for panel, (_, metric) in shown.items()}
    look["extra"] = lambda panel, name: None if name.endswith("loss") else percent_axis(panel)
    look |= {"xlabel": "training step", "legend": Legend(handles, min(4, len(handles))) if handles else None}
    return grid(rows, models, "step", "panel", {panel: _title(*pair) for panel, pair in shown.items()}, **look)


def _title(protocol: str, metric: str) -> str:
    if protocol != BASE:
        return f"fine-tuning: {protocol_label(protocol)}"
    return "pretraining" if metric == "loss" else "pretraining: held-out prompts"
