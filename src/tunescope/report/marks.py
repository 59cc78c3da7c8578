"""The series of each curve, band and bar in a figure, and the numbers behind it, as attributes of the SVG in a page."""

import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from markupsafe import escape
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryFormatter
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

_TOLD: WeakKeyDictionary[Artist, str] = WeakKeyDictionary()


class Mark(NamedTuple):
    """A curve, band or bar: the label of its series, and a text for each of its points, or of a bar for the whole."""

    series: str
    texts: tuple[str, ...] = ()


def tell(artist: Artist, series: str, text: str = "") -> None:
    """Says what a bar or an area is of, and its numbers, which cannot be read off it."""
    artist.set_label(series)
    if text:
        _TOLD[artist] = text


def name_points(drawn: ErrorbarContainer, series: str) -> None:
    """Says of what series points and their bars are."""
    for part in (drawn.lines[0], *drawn.lines[2]):
        part.set_label(series)


def named(figure: Figure) -> Mapping[str, Mark]:
    """Gives each curve, band and bar with a label an id, by which it is found in the SVG; returns them by id."""
    found = {}
    for number, panel in enumerate(figure.axes):
        where = _where(figure, panel)
        for place, artist in enumerate(_labelled(panel)):
            series, told = str(artist.get_label()), _TOLD.get(artist)
            texts = (f"{series}{told}",) if told else (series + text for text in _texts(panel, artist))
            artist.set_gid(f"mark-{number}-{place}")
            found[f"mark-{number}-{place}"] = Mark(series, tuple(where + text for text in texts))
    return found


def _where(figure: Figure, panel: Axes) -> str:
    """What a panel is of: the title of its column, and the label of its vertical axis, or of its line of panels."""
    place = panel.get_subplotspec()
    if place is None:
        return ""
    beside = [
        each for each in figure.axes if (at := each.get_subplotspec()) and at.get_gridspec() is place.get_gridspec()
    ]
    columns = (each.get_title() for each in beside if _place_of(each).colspan == place.colspan)
    lines = (each.get_ylabel() for each in beside if _place_of(each).rowspan == place.rowspan)
    said = (panel.get_title() or next(filter(None, columns), ""), panel.get_ylabel() or next(filter(None, lines), ""))
    return "".join(f"{' '.join(each.split())} · " for each in said if each)


def _place_of(panel: Axes) -> SubplotSpec:
    place = panel.get_subplotspec()
    assert place is not None
    return place


def marked(svg: str, prefix: str, marks: Mapping[str, Mark]) -> str:
    """An SVG whose ids begin with `prefix-`, in which each mark says its series (`data-series`) and its numbers."""
    parts = re.split(r'(?=<g id=")', svg)
    for at, part in enumerate(parts):
        told = re.match(rf'<g id="{re.escape(prefix)}-(mark-\d+-\d+)"', part)
        if not told or told[1] not in marks:
            continue
        mark = marks[told[1]]
        part = part.replace("<g id=", f'<g data-series="{escape(mark.series)}" id=', 1)
        drawn = "use" if "<use" in part else "path"
        before, *points = re.split(rf"(?=<{drawn}\b)", part)
        titled = (_titled(*each, drawn) for each in zip_longest(points, mark.texts[: len(points)], fillvalue=""))
        parts[at] = before + "".join(titled)
    return "".join(parts)


def _titled(point: str, text: str, drawn: str) -> str:
    return point.replace("/>", f"><title>{escape(text)}</title></{drawn}>", 1) if text else point


def _labelled(panel: Axes) -> Iterator[Artist]:
    for artist in (*panel.lines, *panel.collections, *panel.patches):
        if str(artist.get_label())[:1] not in ("", "_"):  # matplotlib's own labels begin so
            yield artist


def _texts(panel: Axes, artist: Artist) -> Iterator[str]:
    """Of a curve with markers: where each is, the value, and the interval if there is a band."""
    if not isinstance(artist, Line2D) or not _pointed(artist):
        return
    x, y = (np.asarray(each(orig=False), float) for each in (artist.get_xdata, artist.get_ydata))  # names are places
    ends = _ends(panel, artist, len(x))
    axis = next((f"{name} " for each in _columns(panel) if (name := each.get_xlabel())), "")
    for at in np.flatnonzero(np.isfinite(y)):
        interval = f" [{ends[0][at]:.3g}, {ends[1][at]:.3g}]" if ends and ends[0][at] < ends[1][at] else ""
        yield f", {_place(panel, x[at], axis)}: {y[at]:.3g}{interval}"


def _place(panel: Axes, x: float, axis: str) -> str:
    """Where a point is on the horizontal axis: the name that it stands at or beside, or what the axis is of."""
    places, ticks = panel.xaxis.get_major_formatter(), panel.get_xticks()
    if isinstance(places, StrCategoryFormatter):
        return axis + places.format_data(x)
    if not isinstance(places, FuncFormatter) or list(ticks) != [*range(len(ticks))]:
        return f"{axis}{x:g}"
    name = " ".join(places(round(x)).split())
    return name if any(letter.isalpha() for letter in name) else f"{axis}{name or format(x, 'g')}"


def _pointed(curve: Line2D) -> bool:
    return curve.get_marker() not in ("", "None", None)


def _columns(panel: Axes) -> list[Axes]:
    """The panel, and those with which it has its horizontal axis in common."""
    return [panel, *panel.get_shared_x_axes().get_siblings(panel)]


def _ends(panel: Axes, curve: Line2D, n: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Lower and upper ends of a curve's band, which was drawn in the same turn, or of the bars of points; None if there
    is none, or with gaps.
    """
    if bars := [each for each in panel.containers if isinstance(each, ErrorbarContainer) and each.lines[0] is curve]:
        whole = [each for each in bars[0].lines[2][0].get_segments() if np.shape(each) == (2, 2)]
        corners = np.reshape(whole, (-1, 2, 2))
        return (corners[:, 0, 1], corners[:, 1, 1]) if len(corners) == n else None
    label = curve.get_label()
    curves = [each for each in panel.lines if each.get_label() == label and _pointed(each)]
    bands = [each for each in panel.collections if each.get_label() == label]
    if len(bands) != len(curves) or not (paths := bands[curves.index(curve)].get_paths()):
        return None
    corners = np.asarray(paths[0].vertices)
    return (corners[1 : n + 1, 1], corners[n + 2 : 2 * n + 2, 1][::-1]) if len(corners) == 2 * n + 3 else None
