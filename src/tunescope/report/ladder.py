"""Figures of verdicts: how high on the ladder of controls each claim stands, for each model and at each layer, and the
effect of every run.
"""

import math
import re
from collections.abc import Iterable
from textwrap import fill

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator

from tunescope.evidence.claims import LADDER
from tunescope.evidence.verdicts import Judgement, Outcome, at_layer, by_claim, displayed
from tunescope.report.draw import Legend, Look, dots, facet, figure, look_legend, model_axis, shifts
from tunescope.report.style import NEUTRAL, Model
from tunescope.report.tables import DASH, EDGE, GLYPHS, height, marked

STANDING, AT_LAYER, EFFECT = "standing", "standing_at_layer", "effect"  # metrics of the rows
COLUMNS = ["model", "protocol", "learning_rate", "control", "metric", "kind", "value", "outcome", "layer"]
EFFECT_COLUMNS = [*COLUMNS[:-2], "scope", "low", "high", "index", "smallest", "unit"]
FONT, PALE = "DejaVu Sans", 0.6  # of the marks; how strong those at the edge are
SHADES = ("#F2F2F2", "#CFE1F2", "#93C4DE", "#4A97C9", "#1764AB")  # of 0 rungs and more
REVERSED = "#FBD9BF"  # where the effect is the opposite of the claim's beyond chance
RUNGS = dict(zip((rung.name for rung in LADDER), (("#888888", "o"), *zip(SHADES[2:], "s^D", strict=True)), strict=True))


def standing_rows(judgement: Judgement) -> pd.DataFrame:
    """By claim and model that were decided, on how many rungs the claim is supported, and the marks of all of them.

    Then on how many it is at each layer, where it has layers.
    """
    rows: list[tuple[object, ...]] = []
    for claim, verdicts in by_claim(judgement):
        for model in dict.fromkeys(v.model for v in verdicts):
            its = [v for v in verdicts if v.model == model]
            if not any(v.outcome for v in its):
                continue
            found = {v.rung: marked(v.outcome, v.firm) for v in its}
            marks = "".join(found.get(rung.name, DASH) for rung in claim.ladder)
            about = (model, its[0].protocol, its[0].learning_rate, "")
            rows.append((*about, STANDING, claim.name, height(claim, its), marks, math.nan))
            for layer in range(max(len(v.by_layer) for v in its)):
                rows.append((*about, AT_LAYER, claim.name, height(claim, at_layer(its, layer)), "", layer))
    return pd.DataFrame(rows, columns=COLUMNS)


def effect_rows(judgement: Judgement) -> pd.DataFrame:
    """By claim, model and rung (`scope`), the effect as it is displayed: its mean with its interval, then of each run,
    whose number is the `index`.
    """
    rows: list[tuple[object, ...]] = []
    for claim, verdicts in by_claim(judgement):
        for v in verdicts:
            about = (v.model, v.protocol, v.learning_rate, "", EFFECT, claim.name)
            unit = (displayed(claim, claim.smallest), claim.unit)
            ends = (math.nan if end is None else displayed(claim, end) for end in (v.low, v.high))
            rows.append((*about, displayed(claim, v.estimate), v.rung, *ends, math.nan, *unit))
            for run, effect in enumerate(v.per_run):
                rows.append((*about, displayed(claim, effect), v.rung, math.nan, math.nan, run, *unit))
    return pd.DataFrame(rows, columns=EFFECT_COLUMNS)


@figure(
    "ladder",
    "What each claim is beyond",
    lambda records: records[records["metric"] == STANDING],
    point="cell",
    bars="none",
)
def ladder(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """How far up the ladder of controls each claim stands, by model, over runs. The marks are the four rungs: beyond
    chance, any fine-tuning (`seen`), any conditional behaviour (`styled`), refusing anything at all (`attribute`). The
    shade is the highest rung up to which all are supported. ◐ there, but smaller than the smallest effect of interest.
    Claims with two marks have the first two controls alone. Pale marks are at the edge: made on another machine, the
    same runs may say otherwise.
    """
    claims, names = list(dict.fromkeys(rows["kind"])), [model.name for model in models]
    cells = {(row["kind"], row["model"]): row for row in rows.to_dict("records")}

    def draw(panel: Axes, _: str) -> None:
        for line, claim in enumerate(claims):
            for column, name in enumerate(names):
                if cell := cells.get((claim, name)):
                    _cell(panel, line, column, int(cell["value"]), cell["outcome"])
        panel.set_xlim(-0.5, len(names) - 0.5)
        panel.set_ylim(len(claims) - 0.5, -0.5)
        model_axis(panel, models)
        panel.set_yticks(range(len(claims)), _short(claims))
        panel.tick_params(length=0, labeltop=len(claims) > 8)
        panel.grid(False)

    order = fill("marks of a cell, from the left: beyond " + "; ".join(rung.beyond for rung in LADDER), 64)
    legend = Legend([*_shades(), Patch(facecolor=REVERSED, label="the reverse"), *_glyphs()], 4)
    return facet(draw, {"": ""}, height=0.9 + 0.24 * len(claims), xlabel=order, legend=legend)


@figure("layers", "At which layers", lambda records: records[records["metric"] == AT_LAYER], point="cell", bars="none")
def layers(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """How many controls each claim is beyond at each layer, over runs, of the claims whose metric has layers. A shade
    stands for the control that is named and all before it.
    """
    claims, labels = list(dict.fromkeys(rows["kind"])), {model.name: model.label for model in models}
    last = int(rows["layer"].max())

    def draw(panel: Axes, name: str) -> None:
        for row in rows[rows["model"] == name].to_dict("records"):
            _rectangle(panel, claims.index(row["kind"]), int(row["layer"]), SHADES[int(row["value"])])
        panel.set(xlim=(-0.5, last + 0.5), ylim=(len(claims) - 0.5, -0.5))
        panel.set_yticks(range(len(claims)), _short(claims))
        panel.tick_params(length=0)
        panel.grid(False)

    height = 0.45 + 0.16 * len(claims)
    return facet(draw, labels, height=height, across=3, xlabel="layer", ticks=9, legend=Legend(_shades(), 3))


@figure("effects", "Effects, run by run", lambda records: records[records["metric"] == EFFECT], bars="told")
def effects(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """The effect of every claim beyond each control, in the claim's own units (ratios on a logarithmic axis). Small
    points: the runs. Large ones: their mean with its 95 % interval over runs, or of one run over what varies within it.
    Grey: smaller than the smallest effect of interest, either way. Intervals that leave the panel are cut off.
    """
    claims = list(dict.fromkeys(rows["kind"]))
    looks = {rung.name: (f"beyond {rung.beyond}", *RUNGS[rung.name]) for rung in LADDER}

    def draw(panel: Axes, claim: str) -> None:
        its = rows[rows["kind"] == claim]
        smallest, ratio = float(its["smallest"].iloc[0]), its["unit"].iloc[0] == "ratio"
        none, least = (1.0, 1 / smallest) if ratio else (0.0, -smallest)
        panel.axhspan(least, smallest, color="#ececec", lw=0)
        panel.axhline(none, color=NEUTRAL, lw=0.5)
        places = {model.name: place for place, model in enumerate(models)}
        for (rung, (label, colour, _)), shift in zip(looks.items(), shifts(len(looks)), strict=True):
            runs = its[its["index"].notna() & (its["scope"] == rung)]
            at = runs["model"].map(places).astype(float) + shift + 0.07
            panel.plot(at, runs["value"], ls="", marker=".", ms=2, color=colour, alpha=0.7, label=f"{label}, one run")
        panel.margins(y=0.15)
        if ratio:
            panel.set_yscale("log")
            low, high = panel.get_ylim()
            panel.yaxis.set_major_locator(
                LogLocator(subs=(1, 3)) if high > 5 * low else MaxNLocator(4, steps=[1, 2, 5, 10])
            )
            panel.yaxis.set_major_formatter("{x:.3g}")
            panel.minorticks_off()
        panel.set_ylim(*panel.get_ylim())  # of the runs
        dots(panel, its[its["index"].isna()], "model", dict.fromkeys(places, ""), "scope", looks)
        model_axis(panel, models)

    titles = dict(zip(claims, _short(claims, 36), strict=True))
    share: Look = {"across": 3, "share": (True, False), "legend": look_legend(looks)._replace(columns=2, above=False)}
    return facet(draw, titles, height=1.1, margin=1.0, xlabel="fine-tune", **share)


def _shades() -> list[Artist]:
    """What the shades of cells stand for."""
    beyond = ("not beyond chance", *(f"beyond {rung.beyond}" for rung in LADDER))
    return [Patch(facecolor=shade, label=label) for shade, label in zip(SHADES, beyond, strict=True)]


def _glyphs() -> list[Artist]:
    """What the marks stand for."""
    said = {glyph: str(outcome).lower() for outcome, glyph in GLYPHS.items() if outcome} | {DASH: "not judged"}
    return [Line2D([], [], ls="", label=f"{glyph} {label}") for glyph, label in said.items()]


def _cell(panel: Axes, line: int, column: int, height: int, glyphs: str) -> None:
    reversed_ = glyphs.startswith(GLYPHS[Outcome.REVERSED])
    _rectangle(panel, line, column, REVERSED if reversed_ else SHADES[height])
    ink = "white" if height > 3 else "black"
    each = re.findall(f".{EDGE}?", glyphs)
    for at, glyph in enumerate(each):
        x, pale = column + 0.2 * (at - (len(each) - 1) / 2), glyph.endswith(EDGE)
        panel.text(x, line, glyph[0], ha="center", va="center", color=ink, alpha=PALE if pale else 1, fontfamily=FONT)


def _rectangle(panel: Axes, line: int, column: int, shade: str) -> None:
    panel.add_patch(Rectangle((column - 0.48, line - 0.46), 0.96, 0.92, facecolor=shade, edgecolor="none"))


def _short(claims: Iterable[str], most: int = 44) -> list[str]:
    return [claim if len(claim) <= most else f"{claim[: most - 1]}…" for claim in claims]
