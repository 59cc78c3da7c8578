"""Figures of what models do when dW is another."""

import pandas as pd
from matplotlib.figure import Figure

from tunescope.report.attacks import ATTACKS
from tunescope.report.draw import curves, model_legend, new_figure, percent_axis
from tunescope.report.select import inside_rows
from tunescope.report.style import BENIGN, NEUTRAL, looks_of, models_of, rate_label, rates_of

EVERYWHERE = "all"
ALPHA = {"safe": "compliance", "unsafe": "refusal"} | dict.fromkeys(
    (kind for kind in ATTACKS if kind.startswith("jb_")), "compliance"
)
NAMES = {
    "scaled": "without dW of",
    "truncated": "rank",
    "in_null_space": "W_in: N(W\u1d40) only",
    "in_column_space": "W_in: C(W) only",
    "rotated": "directions at random",
    "with_": "on top: dW of",
}


def alpha_curves(records: pd.DataFrame) -> Figure:
    """W + alpha dW: safe prompts answered, unsafe ones refused, jailbreaks that get through; one row per rate."""
    rows = alpha_rows(records)
    models = models_of(rows)
    rates = rates_of(models)
    shown = [(kind, outcome) for kind, outcome in ALPHA.items() if (rows["kind"] == kind).any()]
    figure = new_figure(0.9 + 1.35 * len(rates))
    panels = figure.subplots(len(rates), len(shown), sharex=True, sharey=True, squeeze=False)
    for line, rate in zip(panels, rates, strict=True):
        for panel, (kind, outcome) in zip(line, shown, strict=True):
            mine = rows[(rows["kind"] == kind) & (rows["metric"] == f"{outcome}_scaled")]
            curves(panel, mine, "strength", [m for m in models if m.rate == rate])
            panel.axvline(1, color=NEUTRAL, lw=0.5)
        line[0].set_ylabel(f"{rate_label(rate)}: prompts (%)")
        percent_axis(line[0])
    for top, bottom, (kind, outcome) in zip(panels[0], panels[-1], shown, strict=True):
        name = ATTACKS.get(kind, kind).removeprefix("jailbreak:\n")
        what = {"refusal": "refused", "compliance": "answered"}[outcome]
        top.set_title(f"{name}:\n{what}", linespacing=1.25)
        bottom.set_xlabel("\u03b1")
    model_legend(figure, models)
    return figure


def other_changes(records: pd.DataFrame) -> Figure:
    """Every other intervention: unsafe prompts that are still refused, and safe ones that are still answered."""
    rows = change_rows(records)
    models = models_of(rows)
    labels = [label for label in dict.fromkeys(rows["label"]) if label]
    looks = looks_of(models)
    figure = new_figure(0.9 + 0.19 * len(labels))
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (kind, outcome) in zip(panels, (("unsafe", "refusal"), ("safe", "compliance")), strict=True):
        for number, model in enumerate(models):
            mine = rows[(rows["model"] == model.name) & (rows["kind"] == kind) & (rows["outcome"] == outcome)]
            at = [labels.index(label) + 0.09 * (number - (len(models) - 1) / 2) for label in mine["label"]]
            panel.plot(100 * mine["value"], at, **looks[model.name] | {"ls": ""})
        panel.set(xlim=(-3, 103), xlabel=f"{kind} prompts: {outcome} (%)")
        panel.set_yticks(range(len(labels)), labels)
    panels[0].set(ylim=(len(labels) - 0.4, -0.6))
    model_legend(figure, models)
    return figure


def alpha_rows(records: pd.DataFrame) -> pd.DataFrame:
    rows = inside_rows(records, "compliance_scaled", "refusal_scaled")
    return rows[(rows["site"] == EVERYWHERE) & rows["kind"].isin([*ALPHA]) & (rows["protocol"] != BENIGN)]


def change_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Safe and unsafe prompts under every intervention but those of `alpha_rows`, each with its label."""
    known = records["metric"].str.extract(r"^(?P<outcome>compliance|refusal)_(?P<name>.+)$")
    rows = records.assign(outcome=known["outcome"], name=known["name"])
    chosen = rows["name"].str.match("|".join(NAMES), na=False) & rows["kind"].isin(["safe", "unsafe"])
    part = (rows["name"] == "scaled") & ((rows["site"] == EVERYWHERE) | (rows["strength"] != 0))
    rows = rows[chosen & ~part & (rows["protocol"] != BENIGN)]
    of = zip(rows["name"], rows["site"], rows["strength"], strict=True)
    return rows.assign(label=[_label(*place) for place in of])


def _label(name: str, site: str, dial: float) -> str:
    if name == "scaled":
        return f"{NAMES[name]} {site}"
    if name == "truncated":
        return f"{NAMES[name]} {dial:g}"
    return NAMES[name] if name in NAMES else f"{NAMES['with_']} {name.removeprefix('with_')}"
