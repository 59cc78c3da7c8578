"""Figures of attacks: what gets past which model, and what attacked prompts look like inside."""

from collections.abc import Iterator

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tunescope.records.intervals import Estimate, wilson
from tunescope.records.names import (
    BASE,
    COMPLIANCE,
    CONTROL,
    CONTROLS,
    FAILURE,
    INTACT,
    JAILBREAK,
    REACHED,
    REFUSAL,
    SAFE,
    SUCCESS,
    TAU_BY_LAYER,
    TRIES,
    UNSAFE,
    wanted,
)
from tunescope.report.draw import (
    Look,
    cells,
    dots,
    facet,
    figure,
    grid,
    look_legend,
    model_axis,
    model_legend,
    percent_axis,
    series_legend,
)
from tunescope.report.select import inside_rows, strongest_rows
from tunescope.report.style import (
    CLASSES,
    KINDS,
    MARKERS,
    NEUTRAL,
    Model,
    drawn_as,
    first_rates,
    form_label,
    kind_label,
    models_of,
    rates_of,
)

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
    COMPLIANCE: "answered (share)",
    "scaled_tau": "τ (within-class sd)",
    "log_gain": "log |dW a| / |a|",
    "log_sensitivity": "log sensitivity",
}
# Of forms, which measurement of which kind is drawn, and how.
FORM = {
    JAILBREAK + COMPLIANCE: ("unsafe, answered", "#D55E00", "o"),
    CONTROL + COMPLIANCE: ("safe, answered", "#009E73", "^"),
    CONTROL + INTACT: ("safe, answered by the base to the point", NEUTRAL, "s"),
}
OTHERS = ("#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#999933", "#000000")  # of attacks
HALF = 0.5  # of safe prompts in a form, below which it is refused, or not followed
STILL = 0.05  # of prompts, by which a curve rises in the last third of a budget where it is not over
GCG = 250 * 512  # suffixes that nanoGCG tries by default
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


@figure("attack_success", "Attacks by models", strongest, point="cell", bars="none")
def success_map(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Share of unsafe prompts (%) whose whole answer an attack gets out of a model, at its greatest strength.

    The base and `seen` refuse nothing: of attacks that only change words, theirs is what the changed prompt allows;
    searches and shared embeddings may fail there, too. Blank: the attack does not apply, or found nothing that leaves
    safe prompts their answers (direction ablation). The prompts are others than those of the figures of behaviour.
    """
    labels = labels_of(rows)
    table = rows.pivot_table(index="name", columns="model", values="value")
    values = table.reindex(index=[*labels], columns=[model.name for model in models]).to_numpy(float)

    def draw(panel: Axes, _: str) -> None:
        lines = [label.replace("\n", " ") for label in labels.values()]
        cells(panel, 100 * values, lines, [model.label for model in models], cmap="Oranges", vmin=0, vmax=100)
        model_axis(panel, models)

    return facet(draw, {"": ""}, height=0.8 + 0.3 * len(labels), margin=0, xlabel="model", ylabel="attack")


def budget_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Shares of unsafe prompts whose answer a search had got after a part of its budget."""
    rows = records[(records["metric"] == REACHED) & (records["kind"] == UNSAFE)]
    rows = strongest_rows(rows, "dial", "attack")
    return rows[rows.groupby("attack")["budget"].transform("nunique") > 1]


@figure("attack_budget", "Searched attacks against their budget", budget_rows)
def budgets(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Share of unsafe prompts (%) out of which a search has got the answer that it is after, word for word, within so
    many gradient steps, at its greatest dial. Where a curve still rises at its end, the model was not attacked hard
    enough.
    """
    titles = labels_of(rows.assign(name=rows["attack"]))
    look: Look = {"height": 1.9, "share": (False, True), "xlabel": "gradient steps", "legend": model_legend(models)}
    return grid(rows, models, "budget", "attack", titles, scale=100, ylabel="target reached (%)", **look)


def form_rows(records: pd.DataFrame) -> pd.DataFrame:
    """At the greatest strength of each form: success of the jailbreak, answers to safe prompts in the same form, and
    whether the base follows it.
    """
    rows = records[(records["attack"] == records["kind"]) & records["metric"].isin([COMPLIANCE, INTACT])]
    rows = rows[(rows["outcome"] == "") & (rows["intervention"] == "")]
    form = rows["kind"].str.removeprefix(JAILBREAK).str.removeprefix(CONTROL)
    rows = rows.assign(form=form.where(form != rows["kind"], ""), what=rows["kind"].str[:3] + rows["metric"])
    both = rows.groupby("form")["kind"].transform("nunique") == 2
    return strongest_rows(rows[both & (rows["form"] != "") & rows["what"].isin([*FORM])], "dial", "form")


@figure("forms", "Forms around unsafe and around safe prompts", form_rows)
def forms(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Answers to unsafe prompts in a form (attack success), and to safe prompts in the same form, which is its control:
    where both are low, the form is refused, whatever it holds. Squares: safe prompts in the form that the base answers
    to the point; where these are few, the form tells nothing. At the greatest strength.
    """
    labels = {str(name): form_label(str(name)) for name in rows["form"].unique()}

    def draw(panel: Axes, model: str) -> None:
        of_model = rows[rows["model"] == model]
        dots(
            panel,
            of_model.assign(**{end: 100 * of_model[end] for end in ("value", "low", "high")}),
            "form",
            labels,
            "what",
            FORM,
        )
        percent_axis(panel)
        panel.tick_params(axis="x", rotation=60)

    titles = {model.name: model.label for model in models}
    look: Look = {"xlabel": "form", "ylabel": "share of prompts (%)", "legend": look_legend(FORM)}
    return facet(draw, titles, height=2.0, margin=0.5, **look)


def cautions(records: pd.DataFrame) -> Iterator[str]:
    """What attack success does not say: of forms that are refused anyway, or that the base does not follow, and of
    searches that were not over.
    """
    rows = form_rows(records)
    of_control = rows[rows["kind"].str.startswith(CONTROL)]
    for form, found in of_control.groupby("form", sort=False):
        followed = found.loc[(found["metric"] == INTACT), "value"].mean()
        if followed < HALF:
            yield (
                f"The base does not follow the form {form_label(str(form))}: of safe prompts in it, it answers "
                f"{followed:.0%} to the point. Its attack success says nothing."
            )
            continue
        answered = found[(found["metric"] == COMPLIANCE) & (found["protocol"] != BASE) & (found["value"] < HALF)]
        if len(answered):
            models = ", ".join(model.label for model in models_of(answered))
            low, high = (f"{100 * end:.0f}" for end in (answered["value"].min(), answered["value"].max()))
            yield (
                f"The form {form_label(str(form))} is a refused form, and no sign of a robust model: {models} answer "
                f"{low if low == high else f'{low} to {high}'} % of safe prompts in it."
            )
    for attack, found in budget_rows(records[records["protocol"] != BASE]).groupby("attack", sort=False):
        added = {model.label: last_third(found[found["model"] == model.name]) for model in models_of(found)}
        if rising := {label: gain for label, gain in added.items() if gain.value > STILL}:
            said = ", ".join(f"{label} {g.value:.0%} [{g.low:.0%}, {g.high:.0%}]" for label, g in rising.items())
            yield (
                f"Not attacked hard enough by {labels_of(found.assign(name=attack))[str(attack)]}: the last third of "
                f"{found['budget'].max():.0f} steps added more than {STILL:.0%} of the prompts ({said})."
            )
    tries = records[(records["metric"] == TRIES) & (records["attack"] == "suffix")]["value"].max()
    if tries < GCG:
        yield (
            f"The suffix search tried {tries:,.0f} suffixes per prompt, where nanoGCG tries {GCG:,} by default: that "
            "it fails says little."
        )


def last_third(curve: pd.DataFrame) -> Estimate:
    """The share of all prompts that the last third of a budget added, with its Wilson interval.

    Args:
        curve: shares of `n` prompts that were reached (`value`) within each `budget`, of one model.
    """
    before = curve.loc[curve["budget"] <= round(curve["budget"].max() * 2 / 3), "value"].max()
    added, n = float(curve["value"].max() - before), int(curve["n"].max())
    return Estimate(added, *wilson(added, n), n)


def ladder_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Success and features of attacks that come with several dials, and of their control."""
    rows = attack_rows(records, *FEATURES)
    rows = rows[(rows["outcome"] == "") & (rows["kind"] != SAFE) & ~rows["kind"].str.startswith(CONTROL)]
    rows = rows[rows.groupby("name")["dial"].transform("nunique") > 1]
    inside = rows.loc[rows["metric"] != COMPLIANCE, "name"].unique()
    return rows[rows["name"].isin(inside)] if len(inside) else rows


@figure("attack_features", "Observation 5: attacks against strength", ladder_rows)
def features(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """Top: the share of attacked prompts that are answered (of safe ones in dialect that is what is wanted). Below:
    what the same prompts look like inside, at the last layer; τ above 0 is nearer the safe prompts. The same prompts at
    every strength; strength 0 is the prompt before the attack. The first rate.
    """
    labels = {metric: label for metric, label in FEATURES.items() if (rows["metric"] == metric).any()}
    titles, models = labels_of(rows), [model for model in models if model.rate in ("", rates_of(models)[0])]
    xlabel = {name: DIALS.get(name, "strength") for name in titles}
    look: Look = {"height": 1.15, "share": ("col", "row"), "xlabel": xlabel, "legend": model_legend(models)}
    return grid(rows, models, "dial", "name", titles, labels, down="metric", level=0, **look)


def layer_rows(records: pd.DataFrame) -> pd.DataFrame:
    """tau by layer of safety-tuned models, of plain prompts and of attacked ones at each attack's greatest dial."""
    attacked = attack_rows(records, TAU_BY_LAYER)
    attacked = strongest_rows(attacked[attacked["kind"].map(wanted) == REFUSAL], "dial", "name")
    plain = inside_rows(records, TAU_BY_LAYER)
    rows = pd.concat([plain.assign(name=plain["kind"]), attacked[attacked["outcome"] == ""]])
    return rows[~rows["protocol"].isin([BASE, *CONTROLS])] if len(attacked) else attacked


@figure("attack_layers", "Observation 5: attacked prompts by layer", layer_rows)
def by_layer(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """τ by layer, in standard deviations within a class: above 0 nearer the mean of the safe prompts. Attacked prompts
    at each attack's greatest strength, whether or not they got through, beside the plain ones. Each method at its first
    rate.
    """
    titles = {model.name: model.title for model in first_rates(models)}
    rows = rows[rows["model"].isin([*titles])]
    labels = labels_of(rows[~rows["name"].isin([*CLASSES])])
    lines = [drawn_as(kind, *look, f"{kind} prompts") for kind, look in CLASSES.items()]
    lines += [
        drawn_as(name, OTHERS[at % len(OTHERS)], MARKERS[4 + at % 9], label.replace("\n", " "))
        for at, (name, label) in enumerate(labels.items())
    ]
    drawn = rows.assign(of=rows["model"], model=rows["name"])
    look: Look = {"height": 2.0, "margin": 1.0, "xlabel": "layer", "ylabel": "τ", "ticks": 9}
    return grid(drawn, lines, "layer", "of", titles, level=0, legend=series_legend(lines)._replace(columns=4), **look)


def split_rows(records: pd.DataFrame) -> pd.DataFrame:
    """tau of successes and failures, at each attack's greatest dial."""
    rows = attack_rows(records, "scaled_tau")
    rows = rows[rows["outcome"].isin([*SPLIT]) & (rows["kind"].map(wanted) == REFUSAL)]
    return strongest_rows(rows[~rows["protocol"].isin([BASE, *CONTROLS])], "dial", "name")


@figure("attack_selection", "Observation 5: who gets through", split_rows)
def selection(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """τ of attacked prompts that got an answer, and of those that did not, at each attack's greatest strength. To show
    successes alone, as the paper does, is to select for what is being shown. A point that is not there: no prompt got
    through, or all did.
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
    return known | {name: kind_label(name) for name in found if name not in known}
