"""What figures are made of: their registry, the grid of panels, and bars, curves, points and legends."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tunescope.errors import InputError, shown
from tunescope.records.names import BASE
from tunescope.registry import Registry
from tunescope.report.marks import name_points
from tunescope.report.select import prompts_text
from tunescope.report.style import NEUTRAL, WIDTH, Model

Look = dict[str, Any]  # keyword arguments
CHANCE: Look = {"color": NEUTRAL, "ls": ":", "lw": 1.0}  # how what chance would give is drawn
LABEL = 0.22  # inches that a number of two digits takes on a horizontal axis, with what is between two of them
Looks = Mapping[str, tuple[str, str, str]]  # label, colour and marker, by value
Rows = Callable[[pd.DataFrame], pd.DataFrame]
Draw = Callable[[pd.DataFrame, list[Model]], Figure]
DrawT = TypeVar("DrawT", bound=Draw)
Bars = Literal["intervals", "none", "told"]


@dataclass(frozen=True)
class Drawing:
    """One figure of the report; left out where `rows` finds nothing.

    Attributes:
        rows: records -> those it shows. draw: these rows, and their models -> figure; its docstring is the caption.
        point: what the figure calls one row, e.g. `bar`.
        bars: what bars and bands are: `intervals` of the measurement; `none`; or what the caption says itself, `told`.
    """

    name: str
    title: str
    rows: Rows
    draw: Draw
    point: str = "point"
    bars: Bars = "intervals"

    def describe(self, records: pd.DataFrame, runs: int = 1) -> str:
        """The caption, with what bars are, and the number of runs and prompts behind each point.

        Args:
            records: of one run, or means over several.
        """
        rows, caption = self.rows(records), " ".join((self.draw.__doc__ or "").split())
        n = prompts_text(rows[rows["control"] == ""], runs)
        over = "prompts" if runs == 1 else "runs"
        parts = [caption]
        parts += [f"Over {runs} runs."] if runs > 1 else []
        banded = self.bars == "intervals" and _banded(rows[rows["control"] == ""])
        parts += [f"Bars and bands: 95 % intervals over {over}."] if banded else []
        parts += [f"n = {n} per {self.point}."] if n else []
        return " ".join(parts)


def _banded(rows: pd.DataFrame) -> bool:
    return "low" in rows and bool(rows["low"].notna().any())


FIGURES: Registry[Drawing] = Registry("figure", "rows", "models")


def figure(
    name: str, title: str, rows: Rows, point: str = "point", bars: Bars = "intervals"
) -> Callable[[DrawT], DrawT]:
    """Register the decorated function as a figure of the report; see `Drawing`.

    Raises:
        InputError: no name for a file, or another module has registered a figure of this name.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"Figure {shown(name)}: a name is made of letters, digits, _ and -.")

    def register(draw: DrawT) -> DrawT:
        FIGURES.define(name, Drawing(name, title, rows, draw, point, bars), draw)
        return draw

    return register


class Legend(NamedTuple):
    """A legend beside the panels, in so many columns."""

    handles: Sequence[Artist]
    columns: int
    above: bool = False


def facet(
    draw: Callable[..., None],
    columns: Mapping[Any, str],
    rows: Mapping[Any, str] | None = None,
    *,
    height: float,
    margin: float = 0.8,
    across: int = 4,
    share: tuple[Any, Any] = (True, True),
    xlabel: str | Mapping[Any, str] = "",
    ylabel: str | Mapping[Any, str] = "",
    ticks: int | None = None,
    legend: Legend | None = None,
) -> Figure:
    """A figure of panels: a column for each of `columns`, a line for each of `rows`.

    Args:
        draw: called with each panel, the key of its column, and that of its row where there are rows.
        columns: keys and titles. rows: keys and labels of the vertical axes; None: `columns` in as many lines of at
            most `across` panels as they need.
        height: of a line, in inches. margin: what titles, labels and legend take.
        share: which horizontal and which vertical axes are one, as matplotlib's `sharex` and `sharey`.
        xlabel: of the lowest panels, or of each column. ylabel: of the first panels, or of each column.
        ticks: how many whole numbers the horizontal axes have at most.
    """
    keys = list(columns)
    wide = len(keys) if rows is not None else -(-len(keys) // -(-len(keys) // across))
    lines = [keys] * len(rows) if rows is not None else [keys[at : at + wide] for at in range(0, len(keys), wide)]
    made = Figure(figsize=(WIDTH, margin + height * len(lines)), layout="constrained")
    panels = made.subplots(len(lines), wide, sharex=share[0], sharey=share[1], squeeze=False)
    names = list(rows) if rows is not None else [None] * len(lines)
    for number, (line, row) in enumerate(zip(lines, names, strict=True)):
        for place, column in enumerate(line):
            panel = panels[number, place]
            draw(panel, column, *([] if rows is None else [row]))
            if rows is None or number == 0:
                panel.set_title(columns[column], linespacing=1.25)
            if number + 1 == len(lines) or place >= len(lines[number + 1]):
                panel.set_xlabel(xlabel if isinstance(xlabel, str) else xlabel[column])
                panel.tick_params(labelbottom=True)
            if not isinstance(ylabel, str):
                panel.set_ylabel(ylabel[column])
                panel.tick_params(labelleft=True)
            elif place == 0:
                panel.set_ylabel(rows[row] if rows is not None else ylabel)
            if ticks:
                fitting = int(0.75 * WIDTH / wide / LABEL)  # three quarters of a panel's width are its axis
                panel.xaxis.set_major_locator(MaxNLocator(min(ticks, fitting), integer=True, min_n_ticks=1))
        for panel in panels[number, len(line) :]:
            panel.set_visible(False)
    if legend:
        beside = f"outside {'upper' if legend.above else 'lower'} center"
        made.legend(handles=legend.handles, loc=beside, ncols=legend.columns, handlelength=2.8)
    return made


def grid(
    rows: pd.DataFrame,
    models: Sequence[Model],
    x: str,
    by: str,
    columns: Mapping[Any, str],
    lines: Mapping[Any, str] | None = None,
    *,
    down: str = "learning_rate",
    scale: float = 1.0,
    level: float | None = None,
    chance: str = "",
    extra: Callable[[Axes, Any], object] = lambda panel, column: None,
    **look: Any,
) -> Figure:
    """A curve of each model against the column `x`, in a panel for each value of the column `by`; see `facet`.

    Args:
        lines: values of the column `down`, and labels. Rows where it is empty are in every line.
        level: of a thin horizontal line. chance: the control that is drawn dotted.
        extra: called with each panel, and its value of `by`.
    """

    def draw(panel: Axes, column: Any, line: Any = None) -> None:
        here = rows[rows[by].isin(["", column])]
        here = here if line is None else here[here[down].isin(["", line])]
        curves(panel, here[here["control"] == ""], x, models, scale)
        if level is not None:
            panel.axhline(level, color=NEUTRAL, lw=0.5)
        for _, drawn in here[here["control"] == chance].groupby("model") if chance else ():
            panel.plot(drawn[x], drawn["value"], **CHANCE)
        if scale == 100:
            percent_axis(panel)
        extra(panel, column)

    return facet(draw, columns, lines, **look)


def from_base(rows: pd.DataFrame, models: Sequence[Model]) -> pd.DataFrame:
    """The rows, with those of the base as the beginning of each of these models."""
    start = rows[rows["protocol"] == BASE]
    return pd.concat([*(start.assign(model=model.name) for model in models), rows[rows["protocol"] != BASE]])


def curves(panel: Axes, rows: pd.DataFrame, x: str, models: Sequence[Model], scale: float = 1.0) -> None:
    """One line per model, `scale` times the value against column `x`, with a band where the rows have intervals.

    A model with up to 12 points has each of them marked; of one with 50 or more, the line is a running mean over a
    25th of them, and the values themselves are faint behind it.
    """
    for model in models:
        of_model = rows[rows["model"] == model.name].sort_values(x)
        if of_model.empty:
            continue
        at, value, low, high = (of_model[name].to_numpy(float) for name in (x, "value", "low", "high"))
        window = len(at) // 25
        look = model.look
        if len(at) > 12:  # none is seen; up to 49 all say their numbers in the page
            unseen = {"markerfacecolor": (*to_rgb(model.colour), 0.0), "markeredgecolor": (0, 0, 0, 0)}
            look = look | unseen | {"marker": "" if window > 1 else "o", "lw": 1.1}
        if window > 1:
            panel.plot(at, scale * value, color=model.colour, alpha=0.3, lw=0.5, label=model.label)
            value = pd.Series(value).rolling(window, center=True, min_periods=1).mean().to_numpy()
        panel.fill_between(at, scale * low, scale * high, color=model.colour, alpha=0.18, lw=0, label=model.label)
        panel.plot(at, scale * value, label=model.label, clip_on=False, **look)


def dots(panel: Axes, rows: pd.DataFrame, x: str, places: Mapping[str, str], by: str, looks: Looks) -> None:
    """Points with intervals: at each place, a value of the column `x`, side by side one for each value of `by`."""
    for (value, (label, colour, marker)), shift in zip(looks.items(), shifts(len(looks)), strict=True):
        found = rows[(rows[by] == value) & rows[x].isin([*places])].drop_duplicates(x)
        at = found[x].map({name: at for at, name in enumerate(places)}).astype(float) + shift
        ends = [found["value"] - found["low"], found["high"] - found["value"]]
        errors, middle = np.nan_to_num(np.array(ends, float)).clip(min=0), found["value"].to_numpy(float)
        drawn = panel.errorbar(at.to_numpy(float), middle, errors, ls="", lw=1, ms=4, color=colour, marker=marker)
        name_points(drawn, label)
    panel.set(xlim=(-0.6, len(places) - 0.4))
    panel.set_xticks(range(len(places)), places.values())
    panel.grid(axis="x", visible=False)


def shifts(n: int) -> list[float]:
    """How far from their place n points that stand side by side there are."""
    return [min(0.18, 0.8 / n) * (number - (n - 1) / 2) for number in range(n)]


def cells(
    panel: Axes,
    values: Float[np.ndarray, "lines columns"],
    lines: Sequence[str],
    columns: Sequence[str],
    *,
    ends: tuple[Float[np.ndarray, "lines columns"], Float[np.ndarray, "lines columns"]] | None = None,
    text: Callable[[float], str] = lambda value: f"{round(value)}",
    **look: Any,
) -> AxesImage:
    """A coloured cell with its number for every value that there is.

    Args:
        ends: of the intervals that are said behind the numbers.
        look: `cmap` and `norm`, or `vmin` and `vmax`; `fontsize` of the numbers.
    """
    font = {"fontsize": look.pop("fontsize")} if "fontsize" in look else {}
    image = panel.imshow(values, aspect="auto", **look)
    colours = image.to_rgba(values)
    for line, column in np.argwhere(np.isfinite(values)):
        value = float(values[line, column])
        red, green, blue, _ = colours[line, column]
        ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
        said = text(value)
        if ends and np.isfinite(low := float(ends[0][line, column])):
            said += f" [{text(low)}, {text(float(ends[1][line, column]))}]"
        panel.text(column, line, said, ha="center", va="center", color=ink, **font)
    panel.set_xticks(range(len(columns)), columns)
    panel.set_yticks(range(len(lines)), lines)
    panel.tick_params(length=0)
    panel.grid(visible=False)
    return image


def model_axis(panel: Axes, models: Sequence[Model], across: int = 1) -> None:
    """A horizontal axis with a place for each model, of so many panels beside each other; names of many are turned, or
    they would overlap.
    """
    many = across * len(models) > 10
    panel.set_xticks(range(len(models)), [model.label if many else model.label.replace(" ", "\n") for model in models])
    panel.tick_params(axis="x", rotation=60 if many else 0)


def look_legend(looks: Looks) -> Legend:
    """A legend of points, above the panels."""
    handles = [Line2D([], [], color=c, marker=m, ls="", label=label) for label, c, m in looks.values()]
    return Legend(handles, len(handles), above=True)


def percent_axis(panel: Axes) -> None:
    """A vertical axis of all rates there can be, in per cent, with room for markers at both ends."""
    panel.set(ylim=(-3, 103), yticks=(0, 25, 50, 75, 100))


def model_legend(models: Sequence[Model], base: Mapping[str, Any] | None = None) -> Legend:
    """A legend of models: one column per protocol, one row per learning rate.

    Args:
        base: how the base model is drawn, where not as a curve.
    """
    columns: dict[str, list[Artist]] = {}
    for model in models:
        look = dict(base) if base and model.protocol == BASE else model.look
        columns.setdefault(model.protocol, []).append(Line2D([], [], label=model.label, **look))
    longest = max(map(len, columns.values()))
    if len(columns) > 6 or longest > 6:
        return Legend([handle for column in columns.values() for handle in column], 5)
    blank = Line2D([], [], ls="", label=" ")
    handles = [handle for column in columns.values() for handle in column + [blank] * (longest - len(column))]
    return Legend(handles, len(columns))


def series_legend(models: Sequence[Model], chance: str = "") -> Legend:
    """A legend of series, and of the dotted line for chance."""
    first = {model.series: model for model in reversed(models)}
    order = dict.fromkeys(model.series for model in models)
    handles = [Line2D([], [], label=first[name].title, **first[name].look | {"ls": "-"}) for name in order]
    handles += [Line2D([], [], label=chance, **CHANCE)] if chance else []
    return Legend(handles, min(6, len(handles)))
