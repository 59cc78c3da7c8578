"""Figures of what changed inside: one for each observation, the control in the same axes in grey."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tunescope.report.draw import curves, model_legend, new_figure, points
from tunescope.report.select import final_rows, inside_rows
from tunescope.report.style import (
    BASE,
    BENIGN,
    CLASSES,
    NEUTRAL,
    Model,
    looks_of,
    models_of,
    protocol_label,
    rate_label,
    rates_of,
)

CHANCE: dict[str, Any] = {"color": NEUTRAL, "ls": ":", "lw": 1.0}  # how what chance would give is drawn
COURSE = {
    "tau_auc": "clusters: AUC of τ,\nlast layer",
    "null_share": "share of dW in N(Wᵀ),\nmean over layers",
    "gain_ratio": "|dW a|: unsafe to safe,\nlast layer",
    "sensitivity_ratio": "sensitivity:\nsafe to unsafe",
}


def clusters(records: pd.DataFrame) -> Figure:
    """tau by layer, mean and standard deviation of safe and unsafe prompts; the control, or the base, behind it."""
    rows = final_rows(inside_rows(records, "tau", "tau_sd"))
    models = models_of(rows)
    tested, rates = _tested(models), rates_of(models)
    behind = BENIGN if BENIGN in {model.protocol for model in models} else BASE
    figure = new_figure(0.75 + 1.45 * len(rates))
    panels = figure.subplots(len(rates), len(tested), sharex=True, squeeze=False)
    for line, rate in zip(panels, rates, strict=True):
        for panel, protocol in zip(line, tested, strict=True):
            for shown, faint in ((behind, True), (protocol, False)):
                mine = rows[(rows["protocol"] == shown) & (rows["learning_rate"] == rate)]
                for kind, (colour, marker) in CLASSES.items():
                    _mean_and_sd(panel, mine[mine["kind"] == kind], "#aaaaaa" if faint else colour, marker)
            panel.axhline(0, color=NEUTRAL, lw=0.5)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        line[0].set_ylabel(": ".join(filter(None, (rate_label(rate), "τ"))))
    for panel, protocol in zip(panels[0], tested, strict=True):
        panel.set_title(protocol_label(protocol))
    for panel in panels[-1]:
        panel.set_xlabel("layer")
    handles = [Line2D([], [], color=c, marker=m, label=f"{kind} prompts") for kind, (c, m) in CLASSES.items()]
    name = "benign fine-tuning" if behind == BENIGN else "the base"
    handles.append(Line2D([], [], color="#aaaaaa", label=f"the same, {name}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def separation(records: pd.DataFrame) -> Figure:
    """By layer: AUC of tau, and its value with shuffled labels."""
    rows = final_rows(inside_rows(records, "tau_auc"))
    models = models_of(rows)
    figure, panels = _panel_per_rate(models, "AUC of τ, safe against unsafe")
    for rate, panel in panels.items():
        curves(panel, rows[rows["control"] == ""], "layer", [m for m in models if m.rate in ("", rate)], scale=1.0)
        _draw_chance(panel, rows[rows["learning_rate"].isin(["", rate]) & (rows["control"] == "shuffled")])
        panel.axhline(0.5, color=NEUTRAL, lw=0.5)
    _legend(figure, models, "labels shuffled")
    return figure


def _draw_chance(panel: Axes, drawn: pd.DataFrame) -> None:
    """By layer: mean and middle 95 % of the draws of a control, averaged over models."""
    chance = drawn.groupby("layer")[["value", "low", "high"]].mean()
    panel.plot(chance.index, chance["value"], **CHANCE)
    panel.fill_between(chance.index, chance["low"], chance["high"], color=NEUTRAL, alpha=0.25, lw=0)


def null_space(records: pd.DataFrame) -> Figure:
    """By layer: the share of dW in the left null space of W_in, with its random controls."""
    rows = final_rows(inside_rows(records, "null_share"))
    rows = rows[rows["site"] == "W_in"]
    models = models_of(rows)
    figure, panels = _panel_per_rate(models, "share of |dW|² in N(Wᵀ)")
    for rate, panel in panels.items():
        of_rate = rows[rows["learning_rate"] == rate]
        curves(panel, of_rate[of_rate["control"] == ""], "layer", [m for m in models if m.rate == rate], scale=1.0)
        _draw_chance(panel, of_rate[of_rate["control"] == "rotated"])
    _legend(figure, models, "dW in random directions")
    return figure


def null_lengths(records: pd.DataFrame) -> Figure:
    """By singular vector of dW: its length in the left null space of W_in; dotted, that of a random direction."""
    rows = inside_rows(records, "null_length")
    shares = inside_rows(records, "null_share").query("control == 'haar' and site == 'W_in'")
    chance = shares.loc[shares["layer"] == rows["layer"].max(), "value"].mean() ** 0.5
    models = models_of(rows)
    figure, panels = _panel_per_rate(models, "length in N(Wᵀ)", xlabel="left singular vector, by singular value")
    for rate, panel in panels.items():
        curves(panel, rows, "index", [m for m in models if m.rate == rate], scale=1.0)
        panel.axhline(chance, **CHANCE)
        panel.set(ylim=(0, 1))
    _legend(figure, models, "a random direction")
    return figure


def specialisation(records: pd.DataFrame) -> Figure:
    """By layer: how much more dW does with unsafe prompts than with safe ones, with its random control."""
    panels_of = {
        "gain_ratio": "|dW a| / |a|",
        "row_projection_ratio": "projection on R(dW)",
        "gain_of_base_input_ratio": "|dW a| / |a|, a of the base model",
    }
    rows = final_rows(inside_rows(records, *panels_of))
    models = models_of(rows)
    rates = rates_of(models)
    figure = new_figure(0.8 + 1.6 * len(rates))
    panels = figure.subplots(len(rates), len(panels_of), sharex=True, sharey=True, squeeze=False)
    for line, rate in zip(panels, rates, strict=True):
        for panel, metric in zip(line, panels_of, strict=True):
            mine = rows[(rows["metric"] == metric) & (rows["learning_rate"] == rate)]
            curves(panel, mine[mine["control"] == ""], "layer", [m for m in models if m.rate == rate], scale=1.0)
            chance = mine[mine["control"] == "rotated"]
            for _, of_model in chance.groupby("model"):
                panel.plot(of_model["layer"], of_model["value"], **CHANCE)
            panel.axhline(1, color=NEUTRAL, lw=0.5)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        line[0].set_ylabel(f"{rate_label(rate)}: unsafe to safe")
    for top, bottom, title in zip(panels[0], panels[-1], panels_of.values(), strict=True):
        top.set_title(title)
        bottom.set_xlabel("layer")
    _legend(figure, models, "dW in random directions")
    return figure


def sensitivity(records: pd.DataFrame) -> Figure:
    """Gradient norm of the top logit, safe and unsafe prompts, every model."""
    rows = final_rows(inside_rows(records, "sensitivity"))
    return _points_by_model(rows, "sensitivity (norm of the gradient)", CLASSES)


def direction(records: pd.DataFrame) -> Figure:
    """Refusal of unsafe prompts: intact, without the difference of means, without a random direction."""
    intact = final_rows(inside_rows(records, "refusal_intact"))
    without = final_rows(inside_rows(records, "refusal_without_direction"))
    rows = pd.concat([intact.assign(kind="intact"), without.assign(kind=without["control"].replace("", "direction"))])
    looks = {"intact": ("#000000", "s"), "direction": ("#D55E00", "o"), "haar": ("#aaaaaa", "D")}
    names = {"intact": "intact", "direction": "without the difference of means", "haar": "without a random direction"}
    rows = rows[rows["protocol"] != BASE]
    return _points_by_model(rows, "unsafe prompts refused", looks, names)


def course(records: pd.DataFrame) -> Figure:
    """The course of fine-tuning: one panel per observation, from the base model on where it has a value."""
    rows = course_of_mechanism(records)
    base, tuned = rows[rows["protocol"] == BASE], rows[rows["protocol"] != BASE]
    models = models_of(tuned)
    figure = new_figure(2.6)
    shown = [metric for metric in COURSE if (tuned["metric"] == metric).any()]
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, metric in zip(panels, shown, strict=True):
        start = base[base["metric"] == metric]
        joined = pd.concat([*(start.assign(model=m.name) for m in models), tuned[tuned["metric"] == metric]])
        curves(panel, joined, "step", models, scale=1.0)
        panel.set_title(COURSE[metric], linespacing=1.25)
        panel.set_xlabel("fine-tuning step")
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    model_legend(figure, models)
    return figure


def course_of_mechanism(records: pd.DataFrame) -> pd.DataFrame:
    """One value per model, step and metric of `COURSE`, the base at step 0; empty if only final ones were measured."""
    rows = inside_rows(records, "tau_auc", "gain_ratio", "null_share", "sensitivity")
    rows = rows[rows["control"] == ""]
    tuned = rows[rows["protocol"] != BASE]
    if not (tuned["step"] < tuned.groupby("model")["step"].transform("max")).any():
        return rows.iloc[:0]
    rows = rows.assign(step=rows["step"].where(rows["protocol"] != BASE, 0))
    keys = ["model", "protocol", "learning_rate", "step"]
    last = rows[rows["metric"].isin(["tau_auc", "gain_ratio"]) & (rows["layer"] == rows["layer"].max())]
    null = rows[(rows["metric"] == "null_share") & (rows["site"] == "W_in")]
    null = null.groupby(keys, as_index=False)["value"].mean().assign(metric="null_share")
    both = rows[rows["metric"] == "sensitivity"].pivot_table(index=keys, columns="kind", values="value")
    ratio = (both["safe"] / both["unsafe"]).rename("value").reset_index().assign(metric="sensitivity_ratio")
    return pd.concat([last, null, ratio]).astype({"low": float, "high": float})


def _tested(models: Sequence[Model]) -> list[str]:
    """Safety protocols, in order; the control alone if there is none."""
    return list(dict.fromkeys(m.protocol for m in models if m.protocol not in (BASE, BENIGN))) or [BENIGN]


def _panel_per_rate(models: Sequence[Model], ylabel: str, xlabel: str = "layer") -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel for each learning rate, against whole numbers."""
    rates = rates_of(models)
    figure = new_figure(2.7)
    panels = dict(zip(rates, figure.subplots(1, len(rates), sharey=True, squeeze=False)[0], strict=True))
    for rate, panel in panels.items():
        panel.set(title=rate_label(rate), xlabel=xlabel)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[rates[0]].set_ylabel(ylabel)
    return figure, panels


def _mean_and_sd(panel: Axes, rows: pd.DataFrame, colour: str, marker: str) -> None:
    by_metric = rows[rows["control"] == ""].pivot_table(index="layer", columns="metric", values="value")
    if by_metric.empty:
        return
    at, mean, sd = (np.asarray(x, float) for x in (by_metric.index, by_metric["tau"], by_metric["tau_sd"]))
    panel.fill_between(at, mean - sd, mean + sd, color=colour, alpha=0.2, lw=0)
    panel.plot(at, mean, color=colour, marker=marker)


def _points_by_model(
    rows: pd.DataFrame, ylabel: str, looks: dict[str, tuple[str, str]], names: dict[str, str] | None = None
) -> Figure:
    """One column per model, one point with its interval per `kind` of `looks`."""
    models = models_of(rows)
    figure = new_figure(2.6)
    panel = figure.subplots()
    for number, (kind, (colour, marker)) in enumerate(looks.items()):
        mine, label = rows[rows["kind"] == kind].set_index("model"), (names or {}).get(kind, f"{kind} prompts")
        shift = 0.16 * (number - (len(looks) - 1) / 2)
        points(panel, mine, [m.name for m in models], shift, color=colour, marker=marker, label=label)
    panel.set(xlabel="model", ylabel=ylabel, xlim=(-0.6, len(models) - 0.4))
    panel.set_ylim(bottom=min(0, panel.get_ylim()[0]))
    panel.set_xticks(range(len(models)), [m.label.replace(" ", "\n") for m in models])
    panel.grid(axis="x", visible=False)
    figure.legend(loc="outside upper center", ncols=len(looks))
    return figure


def _legend(figure: Figure, models: Sequence[Model], chance: str) -> None:
    """Models by protocol, and what the dotted lines are."""
    looks = looks_of(models)
    first = {model.protocol: model for model in reversed(models)}
    handles = [
        Line2D([], [], label=protocol_label(protocol), **looks[first[protocol].name] | {"ls": "-"})
        for protocol in dict.fromkeys(m.protocol for m in models)
    ]
    figure.legend(
        handles=[*handles, Line2D([], [], label=chance, **CHANCE)], loc="outside lower center", ncols=len(handles) + 1
    )
