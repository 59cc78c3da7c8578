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
EDGES = "#dddddd"  # of cells
FONT, PALE = "DejaVu Sans", 0.6  # of the marks; how strong those at the edge are
SHADES = ("#F2F2F2", "#DDEAF6", "#B9D6EC", "#8ABCE0", "#5B9FD3")  # of 0 rungs and more
REVERSED, OPEN = "#FBD9BF", "white"  # where beyond chance the effect is the opposite of the claim's; where it is open
POINTS = (("#888888", "o"), ("#93C4DE", "s"), ("#4A97C9", "^"), ("#1764AB", "D"))  # of effects on each rung
RUNGS = dict(zip((rung.name for rung in LADDER), POINTS, strict=True))


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
                here = at_layer(its, layer)
                first = "".join(GLYPHS[v.outcome] for v in here if v.rung == claim.rungs[0])
                rows.append((*about, AT_LAYER, claim.name, height(claim, here), first, layer))
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
    shade is the highest rung up to which all are supported, or what became of chance. ◐ there, but smaller than the
    smallest effect of interest. Claims with two marks have the first two controls alone. Pale marks are at the edge:
    made on another machine, the same runs may say otherwise.
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
    legend = Legend([*_shades(), *_glyphs()], 4)
    return facet(draw, {"": ""}, height=0.9 + 0.24 * len(claims), xlabel=order, legend=legend)


def layer_rows(records: pd.DataFrame) -> pd.DataFrame:
    """None where no claim holds, or is reversed, at any layer."""
    rows = records[records["metric"] == AT_LAYER]
    return rows if (rows["value"].gt(0) | rows["outcome"].eq(GLYPHS[Outcome.REVERSED])).any() else rows.iloc[:0]


@figure("layers", "At which layers", layer_rows, point="cell", bars="none")
def layers(rows: pd.DataFrame, models: list[Model]) -> Figure:
    """How many controls each claim is beyond at each layer, over runs, of the claims whose metric has layers. A shade
    stands for the control that is named and all before it.
    """
    claims, labels = list(dict.fromkeys(rows["kind"])), {model.name: model.label for model in models}
    last = int(rows["layer"].max())

    def draw(panel: Axes, name: str) -> None:
        for row in rows[rows["model"] == name].to_dict("records"):
            _rectangle(panel, claims.index(row["kind"]), int(row["layer"]), _shade(int(row["value"]), row["outcome"]))
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
    Grey band: smaller than the smallest effect of interest, either way. Over runs, long intervals are cut off.
    """
    claims, across = list(dict.fromkeys(rows["kind"])), 3
    there, single = set(rows["scope"]), int(rows["index"].max() < 1)
    looks = {rung.name: (f"beyond {rung.beyond}", *RUNGS[rung.name]) for rung in LADDER if rung.name in there}

    def draw(panel: Axes, claim: str) -> None:
        its = rows[rows["kind"] == claim]
        smallest, ratio = float(its["smallest"].iloc[0]), its["unit"].iloc[0] == "ratio"
        none, least = (1.0, 1 / smallest) if ratio else (0.0, -smallest)
        panel.axhspan(least, smallest, color="#ececec", lw=0)
        panel.axhline(none, color=NEUTRAL, lw=0.5)
        places = {model.name: place for place, model in enumerate(models)}
        if single:
            panel.update_datalim([(0, y) for y in its[["low", "high"]].to_numpy(float).ravel() if math.isfinite(y)])
        for (rung, (label, colour, _)), shift in zip(looks.items(), shifts(len(looks)), strict=True):
            runs = its[(its["index"] >= single) & (its["scope"] == rung)]  # a single one is the large point
            if runs.empty:
                continue
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
        model_axis(panel, models, across)

    titles = dict(zip(claims, _short(claims, 36), strict=True))
    share: Look = {
        "across": across,
        "share": (True, False),
        "legend": look_legend(looks)._replace(columns=2, above=False),
    }
    return facet(draw, titles, height=1.1, margin=1.0, xlabel="model", **share)


def _shades() -> list[Artist]:
    """What the shades of cells stand for."""
    said = ("absent, or smaller than of interest", *(f"beyond {rung.beyond}" for rung in LADDER), "the reverse", "open")
    of = zip((*SHADES, REVERSED, OPEN), said, strict=True)
    return [Patch(facecolor=shade, label=label, edgecolor=EDGES, lw=0.5) for shade, label in of]


def _glyphs() -> list[Artist]:
    """What the marks stand for."""
    said = {glyph: str(outcome).lower() for outcome, glyph in GLYPHS.items() if outcome} | {DASH: "not judged"}
    return [Line2D([], [], ls="", label=f"{glyph} {label}") for glyph, label in said.items()]


def _cell(panel: Axes, line: int, column: int, height: int, glyphs: str) -> None:
    _rectangle(panel, line, column, _shade(height, glyphs))
    each = re.findall(f".{EDGE}?", glyphs)
    for at, glyph in enumerate(each):
        x, pale = column + 0.2 * (at - (len(LADDER) - 1) / 2), glyph.endswith(EDGE)
        panel.text(x, line, glyph[0], ha="center", va="center", alpha=PALE if pale else 1, fontfamily=FONT)


def _shade(height: int, glyphs: str) -> str:
    """Of a claim that holds on so many rungs, and whose marks begin with that of chance."""
    return {GLYPHS[Outcome.REVERSED]: REVERSED, GLYPHS[Outcome.OPEN]: OPEN}.get(glyphs[:1], SHADES[height])


def _rectangle(panel: Axes, line: int, column: int, shade: str) -> None:
    panel.add_patch(Rectangle((column - 0.48, line - 0.46), 0.96, 0.92, facecolor=shade, edgecolor=EDGES, lw=0.5))


def _short(claims: Iterable[str], most: int = 44) -> list[str]:
    return [claim if len(claim) <= most else f"{claim[: most - 1]}…" for claim in claims]
