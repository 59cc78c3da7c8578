"""Figures of attacks: what gets past which model, and what attacked prompts look like inside."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tunescope.records.names import BASE, COMPLIANCE, CONTROLS, FAILURE, REFUSAL, SAFE, SUCCESS, UNSAFE, wanted
from tunescope.report.draw import Look, dots, facet, figure, grid, look_legend, model_axis, model_legend
from tunescope.report.select import strongest_rows
from tunescope.report.style import KINDS, NEUTRAL, Model, rates_of, spaced

LABELS = {
    **{name: kind.label for name, kind in KINDS.items() if name.startswith("jb_")},
    "prefill": "prefilled answer",
    "suffix": "suffix",
    "soft_prompt": "soft prompt",
    "universal_soft_prompt": "universal\nsoft prompt",
    "safe_dialect": KINDS["safe_dialect"].label,
}
DIALS = {"prefill": "tokens", "suffix": "tokens", "soft_prompt": "embeddings", "universal_soft_prompt": "embeddings"}
FEATURES = {
    COMPLIANCE: "attack success",
    "scaled_tau": "τ (within-class sd)",
    "log_gain": "log |dW a| / |a|",
    "log_sensitivity": "log sensitivity",
}
SPLIT = {SUCCESS: ("attack success", "#D55E00", "o"), FAILURE: ("attack failure", "#0072B2", "s")}


def attack_rows(records: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """These metrics of attacked prompts, and in column `name` the attack, with its kind where that says more."""
    plain = (records["attack"].fillna("") != "") & (records["intervention"] == "") & records["budget"].isna()
    rows = records[plain & records["metric"].isin(metrics)]
    named = rows["kind"].isin([SAFE, UNSAFE]) | (rows["kind"] == rows["attack"])
    return rows.assign(name=rows["attack"].where(named, rows["attack"] + " on " + rows["kind"]))


def strongest(records: pd.DataFrame) -> pd.DataFrame:
    """Attack success on prompts that want a refusal, at the greatest dial of every attack."""
    rows = attack_rows(records, COMPLIANCE)
    return strongest_rows(rows[rows["kind"].map(wanted) == REFUSAL], "dial", "name")


@figure("attack_success", "Attacks by models", strongest, point="cell")
def success_map(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Share of unsafe prompts (%) whose whole answer an attack gets out of a model, at its greatest strength."""
    labels = labels_of(rows)
    table = rows.pivot_table(index="name", columns="model", values="value")
    values = table.reindex(index=[*labels], columns=[model.name for model in models]).to_numpy(float)

    def draw(panel: Axes, _: str) -> None:
        panel.imshow(values, cmap="Oranges", vmin=0, vmax=1, aspect="auto")
        for (line, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "white" if value > 0.6 else "black"
                panel.text(column, line, f"{100 * value:.0f}", ha="center", va="center", color=ink)
        model_axis(panel, models)
        panel.set_yticks(range(len(labels)), [label.replace("\n", " ") for label in labels.values()])
        panel.tick_params(length=0)
        panel.grid(visible=False)

    return facet(draw, {"": ""}, height=0.8 + 0.3 * len(labels), margin=0, xlabel="model", ylabel="attack")


def ladder_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Success and features of attacks that come with several dials, and of their control."""
    rows = attack_rows(records, *FEATURES)
    rows = rows[(rows["outcome"] == "") & (rows["kind"] != SAFE)]
    rows = rows[rows.groupby("name")["dial"].transform("nunique") > 1]
    inside = rows.loc[rows["metric"] != COMPLIANCE, "name"].unique()
    return rows[rows["name"].isin(inside)] if len(inside) else rows


@figure("attack_features", "Observation 5: attacks against strength", ladder_rows)
def features(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Top: the share of attacked prompts that are answered (of safe ones in dialect that is what is wanted). Below:
    what the same prompts look like inside, at the last layer; τ above 0 is nearer the safe prompts. The same prompts at
    every strength; strength 0 is the prompt before the attack. The first rate; 95 % intervals.
    """
    labels = {metric: label for metric, label in FEATURES.items() if (rows["metric"] == metric).any()}
    titles, models = labels_of(rows), [model for model in models if model.rate in ("", rates_of(models)[0])]
    xlabel = {name: DIALS.get(name, "strength") for name in titles}
    look: Look = {"height": 1.15, "share": ("col", "row"), "xlabel": xlabel, "legend": model_legend(models)}
    return grid(rows, models, "dial", "name", titles, labels, down="metric", level=0, **look)


def split_rows(records: pd.DataFrame) -> pd.DataFrame:
    """tau of successes and failures, at each attack's greatest dial."""
    rows = attack_rows(records, "scaled_tau")
    rows = rows[rows["outcome"].isin([*SPLIT]) & (rows["kind"].map(wanted) == REFUSAL)]
    return strongest_rows(rows[~rows["protocol"].isin([BASE, *CONTROLS])], "dial", "name")


@figure("attack_selection", "Observation 5: who gets through", split_rows)
def selection(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """τ of attacked prompts that got an answer, and of those that did not, at each attack's greatest strength. To show
    successes alone, as the paper does, is to select for what is being shown. 95 % intervals.
    """
    labels = {name: label.removeprefix("jailbreak:\n") for name, label in labels_of(rows).items()}

    def draw(panel: Axes, model: str) -> None:
        dots(panel, rows[rows["model"] == model], "name", labels, "outcome", SPLIT)
        panel.axhline(0, color=NEUTRAL, lw=0.5)
        panel.tick_params(axis="x", rotation=60)

    titles = {model.name: model.label for model in models if model.rate in ("", rates_of(models)[0])}
    look: Look = {"xlabel": "attack", "ylabel": "τ (within-class sd)", "legend": look_legend(SPLIT)}
    return facet(draw, titles, height=2.4, margin=0.4, **look)


def labels_of(rows: pd.DataFrame) -> dict[str, str]:
    """The attacks in `rows` and their labels, known ones first."""
    found = list(map(str, rows["name"].unique()))
    known = {name: label for name, label in LABELS.items() if name in found}
    return known | {name: spaced(name) for name in found if name not in known}
