"""Figures of attacks: what gets past which model, and what attacked prompts look like inside."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tunescope.report.draw import curves, model_legend, new_figure, points
from tunescope.report.select import inside_rows, strongest_rows
from tunescope.report.style import BASE, BENIGN, KINDS, NEUTRAL, models_of, rates_of

SEARCHED = {
    "prefill": "prefilled answer",
    "suffix": "suffix",
    "soft_prompt": "soft prompt",
    "universal_soft_prompt": "universal\nsoft prompt",
}
ATTACKS = {**{k: v.label for k, v in KINDS.items() if k.startswith("jb_")}, **SEARCHED}
FEATURES = {
    "attack_success": "attack success",
    "attacked_scaled_tau": "τ (within-class sd)",
    "attacked_log_gain": "log |dW a| / |a|",
    "attacked_log_sensitivity": "log sensitivity",
}
SPLIT = {"success": ("#D55E00", "o"), "failure": ("#0072B2", "s")}


def success_map(records: pd.DataFrame) -> Figure:
    """Attacks by models: the share of prompts that get through, at each attack's greatest strength."""
    rows = strongest(records)
    models, kinds = models_of(rows), [kind for kind in ATTACKS if (rows["kind"] == kind).any()]
    values = rows.pivot_table(index="kind", columns="model", values="value").reindex(kinds)[[m.name for m in models]]
    figure = new_figure(0.8 + 0.3 * len(kinds))
    panel = figure.subplots()
    panel.imshow(values, cmap="Oranges", vmin=0, vmax=1, aspect="auto")
    for (line, column), value in np.ndenumerate(values.to_numpy(float)):
        if np.isfinite(value):
            ink = "white" if value > 0.6 else "black"
            panel.text(column, line, f"{100 * value:.0f}", ha="center", va="center", color=ink)
    panel.set_xticks(range(len(models)), [m.label.replace(" ", "\n") for m in models])
    panel.set_yticks(range(len(kinds)), [ATTACKS[kind].replace("\n", " ") for kind in kinds])
    panel.tick_params(length=0)
    panel.set(xlabel="model", ylabel="attack")
    panel.grid(visible=False)
    return figure


def features(records: pd.DataFrame) -> Figure:
    """Columns: kinds of attack. Rows: success, and below it what the attacked prompts look like, against strength."""
    rows = ladder_rows(records)
    kinds = list(dict.fromkeys(kind for kind in (*ATTACKS, *KINDS) if (rows["kind"] == kind).any()))
    metrics = [metric for metric in FEATURES if (rows["metric"] == metric).any()]
    models = models_of(rows)
    models = [m for m in models if m.rate in ("", rates_of(models)[0])]
    figure = new_figure(0.8 + 1.15 * len(metrics))
    panels = figure.subplots(len(metrics), len(kinds), sharex="col", sharey="row", squeeze=False)
    for line, metric in zip(panels, metrics, strict=True):
        for panel, kind in zip(line, kinds, strict=True):
            shown = models if metric != "attacked_log_gain" else [m for m in models if m.protocol != BASE]
            curves(panel, rows[(rows["kind"] == kind) & (rows["metric"] == metric)], "strength", shown, scale=1.0)
            panel.axhline(0, color=NEUTRAL, lw=0.5)
        line[0].set_ylabel(FEATURES[metric])
    for top, bottom, kind in zip(panels[0], panels[-1], kinds, strict=True):
        top.set_title(ATTACKS.get(kind) or KINDS[kind].label, linespacing=1.25)
        bottom.set_xlabel("embeddings" if kind == "soft_prompt" else "strength")
    model_legend(figure, models)
    return figure


def selection(records: pd.DataFrame) -> Figure:
    """tau of attacked prompts that got through beside those that did not, per attack and model."""
    rows = split_rows(records)
    kinds = [kind for kind in ATTACKS if (rows["kind"] == kind).any()]
    models = models_of(rows)
    models = [m for m in models if m.rate == rates_of(models)[0]]
    figure = new_figure(2.8)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        for number, (outcome, (colour, marker)) in enumerate(SPLIT.items()):
            of = rows[(rows["model"] == model.name) & rows["metric"].str.endswith(outcome)]
            points(panel, of.set_index("kind"), kinds, 0.2 * (number - 0.5), color=colour, marker=marker)
        panel.axhline(0, color=NEUTRAL, lw=0.5)
        panel.set(title=model.label, xlabel="attack", xlim=(-0.5, len(kinds) - 0.5))
        panel.set_xticks(range(len(kinds)), [ATTACKS[kind].removeprefix("jailbreak:\n") for kind in kinds], rotation=60)
        panel.grid(axis="x", visible=False)
    panels[0].set_ylabel("τ (within-class sd)")
    handles = [Line2D([], [], color=c, marker=m, ls="", label=f"attack {o}") for o, (c, m) in SPLIT.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def strongest(records: pd.DataFrame) -> pd.DataFrame:
    """Attack success at the greatest strength of every attack."""
    rows = inside_rows(records, "attack_success")
    return strongest_rows(rows[rows["kind"].isin(ATTACKS)])


def ladder_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Success and features of attacks that come in several strengths, and of their control."""
    rows = inside_rows(records, *FEATURES)
    rows = rows[rows["kind"].isin([*KINDS, "soft_prompt"])]
    return rows[rows.groupby("kind")["strength"].transform("nunique") > 1]


def split_rows(records: pd.DataFrame) -> pd.DataFrame:
    """tau of successes and failures, at each attack's greatest strength."""
    rows = inside_rows(records, *(f"attacked_scaled_tau_on_{outcome}" for outcome in SPLIT))
    return strongest_rows(rows[rows["kind"].isin(ATTACKS) & ~rows["protocol"].isin([BASE, BENIGN])])
