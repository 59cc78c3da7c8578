"""Figures of what models do when dW, or what they compute, is changed."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from tunescope.records.names import (
    BENIGN,
    COMPLIANCE,
    CONTROLS,
    EVERYWHERE,
    EXTRAPOLATED,
    LOST,
    REFUSAL,
    RETUNED,
    SAFE,
    SEEN,
    UNSAFE,
    wanted,
)
from tunescope.report.draw import Look, cells, facet, figure, grid, model_legend
from tunescope.report.select import unchanged
from tunescope.report.style import NEUTRAL, Model, first_rates, kinds_of, models_of, protocol_label, rate_labels, spaced

SCALED, ON_TOP, UNCHANGED = "scaled", "with_", "unchanged"
LABELS = {  # in the order of the figure; of the number of directions or of singular values the dial says how many
    UNCHANGED: "as it is",
    SCALED: "without dW of {scope}",
    EXTRAPOLATED: "more of dW",
    "truncated": "dW cut to rank {dial:g}",
    "in_null_space": "W_in: dW in N(W\u1d40) alone",
    "in_column_space": "W_in: dW in C(W) alone",
    "in_random_space": "W_in: dW in a random space alone",
    "matrices": "base + dW of its matrices",
    "rotated": "base + dW in random directions",
    "off_unsafe_inputs": "dW without {dial:g} unsafe directions",
    "off_safe_inputs": "dW without {dial:g} safe directions",
    "off_random_inputs": "dW without {dial:g} random directions",
    "on_unsafe_inputs": "base + dW on {dial:g} unsafe directions",
    "on_safe_inputs": "base + dW on {dial:g} safe directions",
    "direction_ablated": "without the direction",
    "random_direction_ablated": "without a random one",
    "direction_added": "with the direction added",
    "random_direction_added": "with a random one added",
}
PATCHED = "patched_"
SITES = {"attn_out": "attention adds", "mlp_out": "MLP adds", "resid_post": "residual stream"}
JAILBREAKS = "jailbreaks"
CHANGES = ((UNSAFE, REFUSAL), (SAFE, COMPLIANCE), (JAILBREAKS, COMPLIANCE))  # panels of kind and outcome
SAID = {REFUSAL: "refused", COMPLIANCE: "answered"}


def changed_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Outcomes of changed models on plain prompts, but for those of the control protocol."""
    changed = (records["intervention"].fillna("") != "") & (records["attack"] == "")
    changed &= ~records["intervention"].fillna("").str.startswith(PATCHED)
    outcomes = records["metric"].isin([COMPLIANCE, REFUSAL]) & (records["control"] == "")
    return records[changed & outcomes & (~records["protocol"].isin([BENIGN, SEEN]))]


def alpha_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Refusal of unsafe prompts, and answers to all others, by how much there is of the whole dW."""
    rows = changed_rows(records)
    shown = rows["metric"] == rows["kind"].map({UNSAFE: REFUSAL}).fillna(COMPLIANCE)
    return rows[shown & (rows["intervention"] == SCALED) & (rows["scope"] == EVERYWHERE)]


@figure("alpha", "How much of dW", alpha_rows)
def alpha_curves(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Models with W + α dW in every parameter: 0 is the base, 1 the fine-tuned model (line), beyond 1 is extrapolation.
    Safe prompts answered and unsafe ones refused should stay high; the jailbreaks answered are attack success, at their
    greatest strength.
    """
    labels = {kind.name: kind.label.removeprefix("jailbreak:\n") for kind in kinds_of(rows)}
    titles = {kind: f"{label}:\n{SAID[REFUSAL if kind == UNSAFE else COMPLIANCE]}" for kind, label in labels.items()}
    look: Look = {"height": 1.35, "margin": 0.9, "xlabel": "\u03b1", "legend": model_legend(models)}
    ticks = sorted({0.0, 0.5, *rows["dial"].unique()}) if rows["dial"].nunique() < 6 else None

    def mark(panel: Axes, _: str) -> None:
        panel.axvline(1, color=NEUTRAL, lw=0.5)
        if ticks:
            panel.set_xticks(ticks, [f"{at:g}" for at in ticks])

    look["extra"] = mark
    return grid(rows, models, "dial", "kind", titles, rate_labels(models, "prompts (%)"), scale=100, **look)


def durability_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Refusal of unsafe prompts after further training; where it was measured on the same prompts, before it, too."""
    rows = changed_rows(records)
    rows = rows[(rows["kind"] == UNSAFE) & (rows["metric"] == REFUSAL)]
    after = rows[rows["intervention"].str.startswith(RETUNED)]
    intact = rows[unchanged(rows)]
    before = [intact.assign(dial=0.0, intervention=name) for name in after["intervention"].unique()]
    return pd.concat([*before, after])


@figure("durability", "How durable refusal is", durability_rows)
def durability_curves(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Unsafe prompts that are still refused after so many steps of further training, on safe prompts alone (left), or
    with a fifth of unsafe prompts, which are answered (right); 0 is the fine-tuned model as it is. The same batches and
    learning rate for all. Of the controls it is what they do in the place of refusing. Steps are logarithmic from 1 on.
    """
    titles = {RETUNED + BENIGN: "trained on: safe prompts", RETUNED + SEEN: "trained on: a fifth unsafe, answered"}
    steps = sorted({0, *map(int, rows["dial"])})

    def axis(panel: Axes, _: str) -> None:
        panel.set_xscale("symlog", base=2, linthresh=1)
        panel.set_xticks(steps, map(str, steps))
        panel.minorticks_off()

    look: Look = {"height": 1.6, "margin": 0.9, "xlabel": "steps of further training", "legend": model_legend(models)}
    lines = rate_labels(models, "refused (%)")
    return grid(rows, models, "dial", "intervention", titles, lines, scale=100, extra=axis, **look)


def change_rows(records: pd.DataFrame) -> pd.DataFrame:
    """What every other intervention does, each with its label; the jailbreaks' mean as one kind. First, of none."""
    rows = changed_rows(records)
    rows = rows.assign(intervention=rows["intervention"].mask(unchanged(rows), UNCHANGED))
    part = (rows["intervention"] == SCALED) & ((rows["scope"] == EVERYWHERE) | (rows["dial"] != 0))
    jailbreak = ~rows["kind"].isin([SAFE, UNSAFE])
    rows = rows[
        ~part & ~rows["intervention"].str.startswith(RETUNED) & ~(jailbreak & (rows["kind"].map(wanted) == COMPLIANCE))
    ]
    places = {name: place for place, name in enumerate(dict.fromkeys([*LABELS, *rows["intervention"]]))}
    several = rows.groupby("intervention")["scope"].transform("nunique") > 1
    about = zip(rows["intervention"], rows["scope"], rows["dial"], several, strict=True)
    rows = rows.assign(
        label=[_label(str(name), str(scope), dial, more) for name, scope, dial, more in about],
        kind=rows["kind"].where(rows["kind"].isin([SAFE, UNSAFE]), JAILBREAKS),
        place=rows["intervention"].map(places),
    )
    who, which = ["model", "protocol", "learning_rate"], ["place", "intervention", "dial", "scope", "label"]
    found = rows.groupby([*who, *which, "kind", "metric", "control"], as_index=False, sort=False, dropna=False)
    return found.agg(value=("value", "mean"), low=("low", "mean"), high=("high", "mean"), n=("n", "max"))


def _label(name: str, scope: str, dial: float, several: bool) -> str:
    """The name of an intervention, with its dial, and its scope where it was measured at several."""
    if name.startswith(ON_TOP):
        label = f"on top: dW of {protocol_label(name.removeprefix(ON_TOP))}"
    elif name in LABELS and not (pd.isna(dial) and "{dial" in LABELS[name]):
        label = LABELS[name].format(scope=scope, dial=dial)
    else:
        label = spaced(name) + ("" if pd.isna(dial) else f", {dial:g}")
    return f"{label} ({scope})" if several and name != SCALED else label


@figure("interventions", "Which part of dW", change_rows, point="cell", bars="told")
def other_changes(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Safety-tuned models in which something is changed; in the first row nothing, where that was measured. *Without dW
    of*: of these matrices. *More of dW*: as much as safe prompts bear. *Cut to rank*: its largest singular values are
    left. *N(Wᵀ)*, *C(W)*: what dW writes into the left null space, or the column space, of the base's W; their control
    is a random space of the same size. *Base + dW*: dW alone on the base, as it is, or turned into random directions.
    *Without*, *on unsafe directions*: dW does not read, or reads alone, those in which the inputs of unsafe prompts
    stand out; safe and random ones are their controls. *The direction*: the difference of class means is taken out of
    the residual stream, or added to it, beside a random one. *On top*: dW of another protocol, too. Jailbreaks: mean
    over kinds at their greatest strength. In brackets 95 % intervals (of jailbreaks the mean of their kinds'). Blank:
    not applicable. Each method at its first rate.
    """
    models = [model for model in models if model.protocol not in CONTROLS] or models
    models = first_rates(models)
    names, titles_of = [model.name for model in models], [model.title for model in models]
    rows = rows[rows["model"].isin(names)].sort_values(["place", "dial", "scope"], kind="stable")
    labels = list(dict.fromkeys(rows["label"]))

    def draw(panel: Axes, change: tuple[str, str]) -> None:
        of_change = rows[(rows["kind"] == change[0]) & (rows["metric"] == change[1])]
        tables = (
            of_change.pivot_table(index="label", columns="model", values=what) for what in ("value", "low", "high")
        )
        value, low, high = (100 * of.reindex(labels, columns=names).to_numpy(float) for of in tables)
        look: Look = {"cmap": "Oranges", "vmin": 0, "vmax": 100, "fontsize": 5.5 if len(names) < 4 else 4}
        cells(panel, value, labels, titles_of, ends=(low, high), **look)

    titles = {(kind, outcome): f"{kind}:\n{SAID[outcome]} (%)" for kind, outcome in CHANGES}
    titles = {change: title for change, title in titles.items() if (rows["kind"] == change[0]).any()}
    return facet(draw, titles, height=0.9 + 0.17 * len(labels), margin=0, xlabel="fine-tune")


def patched_rows(records: pd.DataFrame, source: str, less: str = "") -> pd.DataFrame:
    """Refusal of unsafe prompts lost to activations of this source, less that lost to another's, by cell of the map."""
    lost = (records["metric"] == LOST) & (records["kind"] == UNSAFE) & (~records["protocol"].isin([BENIGN, SEEN]))
    rates = [model.rate for model in models_of(records[lost]) if model.rate][:1] or [""]
    rows = records[lost & (records["learning_rate"].isin(["", *rates]))]
    parts = rows["scope"].astype(str).str.extract(r"(?P<site>\w+)\.(?P<at>\w+) (?P<position>\w+)")
    rows = rows.assign(**parts)
    own, other = (rows[rows["intervention"] == PATCHED + name] for name in (source, less))
    if not less:
        return own
    keys = ["model", "scope"]
    return own.assign(value=own["value"] - own[keys].merge(other[[*keys, "value"]], how="left")["value"].to_numpy())


def patched_maps(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """A map of layers and positions for each site, in a line for each model."""
    positions = list(dict.fromkeys(rows["position"]))
    labels = ["last token" if each == "last" else each for each in positions]
    layers = [*sorted((at for at in rows["at"].unique() if at != EVERYWHERE), key=int), EVERYWHERE]
    images: list[AxesImage] = []

    def draw(panel: Axes, site: str, name: str) -> None:
        here = rows[(rows["site"] == site) & (rows["model"] == name)]
        values = here.pivot_table(index="position", columns="at", values="value")
        values = values.reindex(positions, columns=layers).astype(float)  # of nothing there are objects
        look: Look = {"cmap": "Oranges", "vmin": 0, "vmax": 100}
        if len(layers) > 9:
            look["text"] = lambda _: ""
        images.append(cells(panel, 100 * values.to_numpy(), labels, layers, **look))

    titles = {model.name: model.title for model in models}
    height = 0.3 + 0.17 * len(positions)
    made = facet(draw, SITES, titles, height=height, margin=0.5, xlabel="layer")
    made.colorbar(images[0], ax=made.axes, label="refusal lost (points)", shrink=0.6, extend="min", pad=0.01)
    return made


@figure(
    "patched",
    "Where refusal is carried",
    lambda records: patched_rows(records, "from_twin", "from_other"),
    "cell",
    "none",
)
def patched_from_twin(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Unsafe prompts that are no longer refused where activations of their safe twin take the place of their own, less
    those where activations of another unsafe prompt do (percentage points), by site, layer and tokens; at all layers at
    once with what the other of attention and MLPs adds kept. The residual stream of the last token at the last layer
    carries all there is. Blank: nothing reads it, or, of all layers of the stream, the last says it. The first rate.
    """
    return patched_maps(rows, models)


@figure(
    "patched_base", "Where fine-tuning put refusal", lambda records: patched_rows(records, "from_base"), "cell", "none"
)
def patched_from_base(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Unsafe prompts that the fine-tune no longer refuses where activations of the base, on the same prompt, take the
    place of its own, by site, layer and tokens; at all layers at once with what the other of attention and MLPs adds
    kept. No control: the base refuses nothing. Blank: nothing reads it, or, of all layers of the stream, the last says
    it. The first rate.
    """
    return patched_maps(rows, models)
