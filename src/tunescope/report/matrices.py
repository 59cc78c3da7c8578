"""Figure of the change of every weight matrix, of a pair of models of which there is nothing but weights."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tunescope.evidence.records import PAIR
from tunescope.report.draw import new_figure
from tunescope.report.select import inside_rows
from tunescope.report.style import NEUTRAL

METRICS = {"relative_norm": "|dW| / |W|", "effective_rank": "effective rank of dW", "null_share": "share in N(W\u1d40)"}
COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "#000000")
MARKERS = "osD^vPX"


def changes(records: pd.DataFrame) -> Figure:
    """One panel per metric, one line per kind of matrix, against the layer; in grey what chance would give."""
    rows = matrix_rows(records)
    names = list(dict.fromkeys(rows["site"]))
    shown = [metric for metric in METRICS if (rows["metric"] == metric).any()]
    figure = new_figure(2.7)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    looks: dict[str, dict[str, Any]] = {
        name: {"color": COLOURS[i % 7], "marker": MARKERS[i % 7]} for i, name in enumerate(names)
    }
    for panel, metric in zip(panels, shown, strict=True):
        for name in names:
            mine = rows[(rows["metric"] == metric) & (rows["site"] == name)].sort_values("layer")
            own, chance = mine[mine["control"] == ""], mine[mine["control"] != ""]
            if own.empty:
                continue
            few = len(own) <= 12
            panel.plot(own["layer"], own["value"], **looks[name] | ({} if few else {"marker": ""}), clip_on=False)
            panel.plot(chance["layer"], chance["value"], color=NEUTRAL, ls=":", lw=0.8)
        panel.set(title=METRICS[metric], xlabel="layer", ylim=(0, None))
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    handles = [Line2D([], [], label=name, **looks[name]) for name in names]
    handles.append(Line2D([], [], label="chance", color=NEUTRAL, ls=":"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=1.8)
    return figure


def matrix_rows(records: pd.DataFrame) -> pd.DataFrame:
    rows = inside_rows(records, *METRICS)
    return rows[rows["protocol"] == PAIR]
