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
LABELS = {  # in the order of the figure; of the number of directions or of singular values the dial says how many
    "scaled": "without dW of {site}",
    "truncated": "dW cut to rank {dial:g}",
    "in_null_space": "dW of W_in: N(W\u1d40) only",
    "in_column_space": "dW of W_in: C(W) only",
    "in_random_space": "dW of W_in: random space only",
    "matrices": "base + dW of its matrices",
    "rotated": "base + dW in random directions",
    "off_unsafe_inputs": "dW off unsafe inputs, {dial:g}",
    "off_safe_inputs": "dW off safe inputs, {dial:g}",
    "off_random_inputs": "dW off random inputs, {dial:g}",
    "on_unsafe_inputs": "base + dW on unsafe inputs, {dial:g}",
    "on_safe_inputs": "base + dW on safe inputs, {dial:g}",
    "direction_ablated": "without the direction",
    "random_direction_ablated": "without a random one",
    "direction_added": "with the direction added",
    "random_direction_added": "with a random one added",
    "with_ssft": "on top: dW of SSFT",
    "with_dpo": "on top: dW of DPO",
    "with_unlearning": "on top: dW of unlearning",
    "with_benign": "on top: dW of benign",
}
JAILBREAKS = "jailbreaks"
CHANGES = (("unsafe", "refusal"), ("safe", "compliance"), (JAILBREAKS, "compliance"))  # panels of kind and outcome


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
    """Every other intervention: unsafe prompts still refused, safe ones still answered, jailbreaks that get through."""
    rows = change_rows(records)
    models = models_of(rows)
    order = rows.assign(place=rows["name"].map({name: place for place, name in enumerate(LABELS)}))
    labels = list(dict.fromkeys(order.sort_values(["place", "strength", "site"])["label"]))
    looks = looks_of(models)
    figure = new_figure(0.9 + 0.17 * len(labels))
    panels = figure.subplots(1, len(CHANGES), sharey=True)
    for panel, (kind, outcome) in zip(panels, CHANGES, strict=True):
        for number, model in enumerate(models):
            mine = rows[(rows["model"] == model.name) & (rows["kind"] == kind) & (rows["outcome"] == outcome)]
            at = [labels.index(label) + 0.09 * (number - (len(models) - 1) / 2) for label in mine["label"]]
            panel.plot(100 * mine["value"], at, **looks[model.name] | {"ls": ""})
        what = {"refusal": "refused", "compliance": "answered"}[outcome]
        panel.set(xlim=(-3, 103), xlabel=f"{kind}: {what} (%)")
        panel.set_yticks(range(len(labels)), labels)
        panel.grid(axis="y", lw=0.3)
    panels[0].set(ylim=(len(labels) - 0.4, -0.6))
    model_legend(figure, models)
    return figure


def alpha_rows(records: pd.DataFrame) -> pd.DataFrame:
    rows = inside_rows(records, "compliance_scaled", "refusal_scaled")
    return rows[(rows["site"] == EVERYWHERE) & rows["kind"].isin([*ALPHA]) & (rows["protocol"] != BENIGN)]


def change_rows(records: pd.DataFrame) -> pd.DataFrame:
    """What every intervention but those of `alpha_rows` does, each with its label; the jailbreaks' mean as one kind."""
    known = records["metric"].str.extract(r"^(?P<outcome>compliance|refusal)_(?P<name>.+)$")
    rows = records.assign(outcome=known["outcome"], name=known["name"])
    part = (rows["name"] == "scaled") & ((rows["site"] == EVERYWHERE) | (rows["strength"] != 0))
    rows = rows[rows["name"].isin([*LABELS]) & rows["site"].notna() & ~part & (rows["protocol"] != BENIGN)]
    of = zip(rows["name"], rows["site"], rows["strength"], strict=True)
    rows = rows.assign(
        label=[LABELS[name].format(site=site, dial=dial) for name, site, dial in of],
        kind=rows["kind"].astype(str).where(~rows["kind"].isin([*ALPHA.keys() - {"safe", "unsafe"}]), JAILBREAKS),
    )
    same = [*rows.columns.difference(["value", "low", "high", "n"])]
    return rows.groupby(same, as_index=False, sort=False, dropna=False, observed=True).agg(
        value=("value", "mean"), n=("n", "max")
    )
