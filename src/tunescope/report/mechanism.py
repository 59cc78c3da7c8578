"""Figures of what changed inside: one for each observation, the control in the same axes in grey."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from tunescope.records.names import BASE, BENIGN, OTHER_LABELS, REFUSAL, SEEN, UNSAFE, W_IN
from tunescope.report.draw import (
    CHANCE,
    Legend,
    Look,
    Looks,
    cells,
    dots,
    facet,
    figure,
    from_base,
    grid,
    look_legend,
    model_axis,
    model_legend,
    series_legend,
)
from tunescope.report.marks import tell
from tunescope.report.select import HISTOGRAM, behaviour_rows, final_rows, inside_rows, of_course, unchanged
from tunescope.report.style import CLASSES, NEUTRAL, Model, drawn_as, first_rates, protocol_label, rate_labels, rates_of

FAINT = "#aaaaaa"
SPECIALISATION = {
    "gain_ratio": "|dW a| / |a|",
    "row_projection_ratio": "projection on R(dW)",
    "gain_of_base_input_ratio": "|dW a| / |a|, a of the base model",
}
HISTOGRAMS = {"log_gain": "|dW a| / |a|", "log_sensitivity": "sensitivity (norm of the gradient)"}  # scores
COURSE = {
    "tau_auc": "clusters: AUC of τ,\nlast layer",
    "null_share": "share of dW in N(Wᵀ),\nmean over layers",
    "gain_ratio": "|dW a|: unsafe to safe,\nlast layer",
    "sensitivity_ratio": "sensitivity:\nsafe to unsafe",
}
OVERLAPS = {"write_overlap": "directions written", "read_overlap": "directions read"}
ABLATED = {  # by intervention
    "": ("intact", "#000000", "s"),
    "direction_ablated": ("without the difference of means", "#D55E00", "o"),
    "random_direction_ablated": ("without a random direction", FAINT, "D"),
}


def cluster_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Mean of tau, by layer and kind, less and plus its standard deviation over prompts."""
    rows = final_rows(inside_rows(records, "tau", "tau_sd"))
    rows = rows[(rows["control"] == "") & rows["kind"].isin([*CLASSES])]
    keys = ["model", "protocol", "learning_rate", "layer", "kind", "control"]
    wide = rows.pivot_table(index=keys, columns="metric", values="value", sort=False)
    wide = wide.reindex(columns=["tau", "tau_sd"]).join(rows.groupby(keys, sort=False)["n"].max()).reset_index()
    return wide.assign(value=wide["tau"], low=wide["tau"] - wide["tau_sd"], high=wide["tau"] + wide["tau_sd"])


@figure("clusters", "Observation 1: clusters", cluster_rows, bars="told")
def clusters(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """τ of the activations after the MLP's non-linearity, at the last token of the prompt: positive nearer the mean of
    the safe prompts, negative nearer that of the unsafe ones. Bands: standard deviation over prompts. In grey, circles
    safe and triangles unsafe: seen, or benign fine-tuning, at the same rate or, where there is neither, the base. Each
    panel has its own scale; claim 1 is of τ in units of its standard deviation within a class.
    """
    behind = next((p for p in (SEEN, BENIGN) if p in {model.protocol for model in models}), BASE)
    tested = {m.series: m.title for m in models if m.protocol not in (BASE, behind)}
    titles = tested or {m.series: m.title for m in models}
    faint = rows[rows["protocol"] == behind].assign(series="", model="behind " + rows["kind"])
    own = rows.assign(series=rows["model"].map({m.name: m.series for m in models}), model=rows["kind"])
    name = f"the same, {'the base' if behind == BASE else protocol_label(behind)}"
    lines = [drawn_as(f"behind {kind}", FAINT, marker, name) for kind, (_, marker) in CLASSES.items()]
    lines += [drawn_as(kind, *look, f"{kind} prompts") for kind, look in CLASSES.items()]
    look: Look = {
        "height": 1.45,
        "share": (True, False),
        "xlabel": "layer",
        "ticks": 9,
        "legend": series_legend([*lines[2:], lines[0]]),
    }
    joined, labels = pd.concat([faint, own]), rate_labels(models, "τ")
    return grid(joined, lines, "layer", "series", titles, labels, level=0, **look)


@figure("separation", "Observation 1, without units", lambda records: final_rows(inside_rows(records, "tau_auc")))
def separation(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """How often a safe prompt has a greater τ than an unsafe one (0.5: chance), by layer.
    Dotted, with the middle 95 %: class means of labels dealt out at random, averaged over models.
    """
    return _by_rate(rows, models, "AUC of τ, safe against unsafe", "shuffled", "labels shuffled", level=0.5)


def null_space_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Shares of dW in the left null space of W_in, and those of random directions, without which they say nothing."""
    rows = final_rows(inside_rows(records, "null_share"))
    rows = rows[(rows["site"] == W_IN) & rows["control"].isin(["", "rotated"])].assign(n=1)
    return rows if "rotated" in set(rows["control"]) else rows.iloc[:0]


@figure("null_space", "Observation 2: null space", null_space_rows)
def null_space(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Share of the squared norm of dW that lies in the left null space of the base model's W_in, by layer. The space is
    most of all directions: dW with its singular values kept and its directions drawn at random (dotted, with the
    central 95 % of draws) has the share that its dimension alone gives.
    """

    return _by_rate(rows, models, "share of |dW|² in N(Wᵀ)", "rotated", "dW in random directions")


def null_length_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Null lengths of single vectors, and that of a random direction, the root of its share, beside each."""
    lengths, shares = inside_rows(records, "null_length"), inside_rows(records, "null_share")
    shares = shares[(shares["control"] == "haar") & (shares["site"] == W_IN)]
    of_layer = shares.loc[shares["layer"] == lengths["layer"].max(), "value"]
    return pd.concat([lengths, lengths.assign(control="haar", value=of_layer.mean() ** 0.5, low=np.nan, high=np.nan)])


@figure("null_lengths", "Observation 2, vector by vector", null_length_rows)
def null_lengths(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """As the paper plots it: the length of every left singular vector of dW (W_in, last layer) projected on the left
    null space of the base model's W_in. Vector 0 has the largest singular value; lines through 50 vectors or more are
    running means. Dotted: a random direction, √((out - rank) / out).
    """
    look: Look = {"xlabel": "left singular vector, by singular value"}
    made = _by_rate(rows, models, "length in N(Wᵀ)", "haar", "a random direction", "index", **look)
    made.axes[0].set_ylim(top=1)  # of all panels, when all are drawn
    return made


@figure(
    "specialisation", "Observation 3: specialisation", lambda records: final_rows(inside_rows(records, *SPECIALISATION))
)
def specialisation(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """How much more dW does with unsafe prompts than with safe ones (1: the same), by layer, with 95 % intervals;
    right: with the activations of the model before fine-tuning. Dotted: dW in random directions, mean of the draws, per
    model.
    """

    titles = {metric: title for metric, title in SPECIALISATION.items() if (rows["metric"] == metric).any()}
    labels, legend = rate_labels(models, "unsafe to safe"), series_legend(models, "dW in random directions")
    look: Look = {"height": 1.6, "xlabel": "layer", "ticks": 9, "legend": legend}
    return grid(rows, models, "layer", "metric", titles, labels, level=1, chance="rotated", **look)


@figure("sensitivity", "Observation 4: sensitivity", lambda records: final_rows(inside_rows(records, "sensitivity")))
def sensitivity(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Norm of the gradient of the first answer token's largest logit with respect to all input embeddings: mean over
    prompts, of several runs the geometric mean. Claims 4 take the mean of the logarithms of prompts.
    """
    looks = {kind: (f"{kind} prompts", *look) for kind, look in CLASSES.items()}
    return _dots_by_model(rows, "kind", models, "sensitivity (norm of the gradient)", looks, "log")


def distribution_rows(records: pd.DataFrame) -> pd.DataFrame:
    rows = records[records["metric"].isin([name + HISTOGRAM for name in HISTOGRAMS])]
    return rows[~rows["protocol"].str.contains(OTHER_LABELS, regex=False)]


@figure("distributions", "Observations 3 and 4: single prompts", distribution_rows, point="histogram", bars="none")
def distributions(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """How strongly dW acts on the inputs of single prompts in the last layer, and how sensitive the output is to them:
    histograms over safe and over unsafe prompts, in shares of the prompts of a kind; the outermost bins hold what is
    beyond. Empty where W_in of that layer is as it was. Each method and control at its first rate.
    """
    shown = first_rates(models)
    titles = {name: label for name, label in HISTOGRAMS.items() if (rows["metric"] == name + HISTOGRAM).any()}

    def draw(panel: Axes, metric: str, name: str) -> None:
        here = rows[(rows["metric"] == metric + HISTOGRAM) & (rows["model"] == name)]
        if here.empty:
            panel.text(0.5, 0.5, "no dW", transform=panel.transAxes, ha="center", color=NEUTRAL)
            panel.set_yticks([])
        for kind, (colour, _) in CLASSES.items():
            of_kind = here[here["kind"] == kind].sort_values("index")
            at, share = np.exp(of_kind["index"].to_numpy(float)), 100 * of_kind["value"].to_numpy(float)
            area = panel.fill_between(at, share, step="mid", color=colour, alpha=0.35, lw=0)
            panel.step(at, share, where="mid", color=colour, lw=0.9, label=f"{kind} prompts")
            tell(
                area, f"{kind} prompts", f": median of {HISTOGRAMS[metric]} {_median(at, share):.3g}" if len(at) else ""
            )
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.set_ylim(bottom=0)

    handles = [Patch(facecolor=colour, alpha=0.5, label=f"{kind} prompts") for kind, (colour, _) in CLASSES.items()]
    labels = {model.name: f"{model.title} (%)" for model in shown}
    look: Look = {"share": ("col", False), "xlabel": titles, "legend": Legend(handles, 2)}
    return facet(draw, dict.fromkeys(titles, ""), labels, height=0.85, margin=0.8, **look)


def _median(at: Float[np.ndarray, " bins"], share: Float[np.ndarray, " bins"]) -> float:
    """The bin of a histogram in which the median is."""
    return float(at[np.searchsorted(np.cumsum(share), np.sum(share) / 2)])


def direction_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Refusal of unsafe prompts without the direction and without a random one, and, first, with the model intact."""
    rows = records[(records["metric"] == REFUSAL) & (records["kind"] == UNSAFE) & (records["protocol"] != BASE)]
    ablated = rows[rows["intervention"].isin([*ABLATED][1:])]
    intact = pd.concat([rows[unchanged(rows)], behaviour_rows(rows)]).assign(
        intervention=""
    )  # of the same prompts, where they are
    found = pd.concat([intact[intact["model"].isin(ablated["model"])], ablated])
    return found.drop_duplicates(["model", "intervention"])


@figure("direction", "One direction", direction_rows)
def direction(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Unsafe prompts that are refused by the intact model, by the model whose residual stream has lost the difference
    of the safe and unsafe means, and by one that has lost a random direction. Models without a direction that leaves
    safe prompts their answers are not there; where some runs have none, the last two points are of the others alone,
    and of a single one if it is the only one, with an interval over its prompts. Claim 6a counts a run only where nine
    tenths of the right answers to safe prompts are left.
    """
    return _dots_by_model(rows, "intervention", models, "unsafe prompts refused", ABLATED, "linear")


def course_of_mechanism(records: pd.DataFrame) -> pd.DataFrame:
    """One value per model, step and metric of `COURSE`, the base at step 0; empty if only final ones were measured."""
    rows = inside_rows(records, "tau_auc", "gain_ratio", "null_share", "sensitivity")
    rows = of_course(rows[rows["control"] == ""])
    keys = ["model", "protocol", "learning_rate", "step"]
    last = rows[rows["metric"].isin(["tau_auc", "gain_ratio"]) & (rows["layer"] == rows["layer"].max())]
    null = rows[(rows["metric"] == "null_share") & (rows["site"] == W_IN)]
    null = null.groupby(keys, as_index=False)["value"].mean().assign(metric="null_share")
    both = rows[rows["metric"] == "sensitivity"].pivot_table(index=keys, columns="kind", values="value")
    both = both.reindex(columns=["safe", "unsafe"]).dropna()
    ratio = (both["safe"] / both["unsafe"]).rename("value").reset_index().assign(metric="sensitivity_ratio")
    return pd.concat([last, null, ratio]).astype({"low": float, "high": float}).fillna({"control": ""})


@figure("mechanism_course", "Inside, over the course of fine-tuning", course_of_mechanism)
def course(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """The four observations at every model saved during fine-tuning. Thin lines: chance, of clusters, and equal effects
    on safe and unsafe prompts; what chance is for the null space is in its own figure. Null-space shares, means
    over layers, and ratios of sensitivity have no intervals. Each panel has its own scale.
    """
    tuned = [model for model in models if model.protocol != BASE]
    found = set(rows.loc[rows["protocol"] != BASE, "metric"])
    titles = {metric: title for metric, title in COURSE.items() if metric in found}
    look: Look = {"height": 1.8, "share": (True, False), "xlabel": "fine-tuning step", "ticks": 4}
    level = {"tau_auc": 0.5, "gain_ratio": 1.0, "sensitivity_ratio": 1.0}

    def chance(panel: Axes, metric: str) -> None:
        if metric in level:
            panel.axhline(level[metric], color=NEUTRAL, lw=0.5)

    look |= {"extra": chance, "legend": model_legend(tuned)}
    return grid(from_base(rows, tuned), tuned, "step", "metric", titles, **look)


def overlap_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Overlaps of every two fine-tunes, as multiples of those of random directions."""
    rows = inside_rows(records, *OVERLAPS).set_index(["model", "protocol", "learning_rate", "metric", "scope"])
    own, chance = (rows[rows["control"] == control] for control in ("", "haar"))
    return own.assign(value=own["value"] / chance["value"]).reset_index()


@figure("overlap", "Is there one safety subspace?", overlap_rows, point="cell", bars="none")
def overlap(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """How far the directions that dW writes most, and reads most, are the same in two fine-tunes: the mean squared
    cosine of the principal angles between the leading singular subspaces, mean over all weight matrices, as a multiple
    of what random directions have (1). Claims 8a and 8b take the mean of a method's logarithms, run by run.
    """
    rates = rates_of(models)
    models = sorted(models, key=lambda model: rates.index(model.rate) if model.rate else -1)
    names, labels = [model.name for model in models], [model.label for model in models]
    norm = LogNorm(min(1, rows["value"].min()), max(2, rows["value"].max()))
    look: Look = {"norm": norm, "cmap": "cividis", "fontsize": 7 if len(names) < 8 else 5}

    def draw(panel: Axes, metric: str) -> None:
        table = rows[rows["metric"] == metric].pivot_table(index="model", columns="scope", values="value")
        values = table.reindex(index=names, columns=names).to_numpy(float)
        cells(panel, values, labels, labels, text=lambda value: f"{value:.{int(value < 9.95)}f}", **look)
        panel.tick_params(axis="x", rotation=90)

    made = facet(draw, OVERLAPS, height=3.2, margin=0, xlabel="fine-tune")
    scale: Look = {"ticks": LogLocator(subs=(1, 2, 5)), "format": "%g", "label": "multiple of chance"}
    made.colorbar(ScalarMappable(norm, "cividis"), ax=made.axes, pad=0.01, **scale).minorticks_off()
    return made


def _by_rate(
    rows: pd.DataFrame, models: list[Model], ylabel: str, chance: str, name: str, x: str = "layer", **look: Any
) -> Figure:
    """A panel for each learning rate; dotted, mean and middle 95 % of a control's draws, averaged over models."""
    extra, draws = look.pop("extra", lambda panel, rate: None), rows[rows["control"] == chance]

    def draw(panel: Axes, rate: str) -> None:
        drawn = draws[draws["learning_rate"].isin(["", rate])].groupby(x)[["value", "low", "high"]].mean()
        panel.plot(drawn.index, drawn["value"], **CHANCE)
        if drawn["low"].notna().any():
            panel.fill_between(drawn.index, drawn["low"], drawn["high"], color=NEUTRAL, alpha=0.25, lw=0)
        extra(panel, rate)

    full: Look = {"height": 2.0, "margin": 0.7, "xlabel": "layer", "ylabel": ylabel, "ticks": 9, "extra": draw} | look
    return grid(rows, models, x, "learning_rate", rate_labels(models), legend=series_legend(models, name), **full)


def _dots_by_model(rows: pd.DataFrame, by: str, models: list[Model], ylabel: str, looks: Looks, scale: str) -> Figure:
    """One column per model, one point with its interval per value of the column `by`."""

    def draw(panel: Axes, _: str) -> None:
        dots(panel, rows, "model", {model.name: model.label for model in models}, by, looks)
        model_axis(panel, models)
        panel.set_yscale(scale)
        if scale == "linear":
            panel.set_ylim(bottom=min(0, panel.get_ylim()[0]))
        else:
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.minorticks_off()

    return facet(draw, {"": ""}, height=2.6, margin=0, xlabel="model", ylabel=ylabel, legend=look_legend(looks))
