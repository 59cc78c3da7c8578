"""The series of each curve in a figure, and the numbers behind its points, as attributes of the SVG in a page."""

import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from markupsafe import escape
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryFormatter
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, FuncFormatter


class Mark(NamedTuple):
    """A curve or its band: the label of its series, and a text for each of the points that are marked."""

    series: str
    texts: tuple[str, ...] = ()


def named(figure: Figure) -> Mapping[str, Mark]:
    """Gives each curve and band with a label an id, by which it is found in the SVG; returns them by id."""
    found = {}
    for number, panel in enumerate(figure.axes):
        for place, artist in enumerate(_labelled(panel)):
            artist.set_gid(f"mark-{number}-{place}")
            found[f"mark-{number}-{place}"] = Mark(str(artist.get_label()), tuple(_texts(panel, artist)))
    return found


def marked(svg: str, prefix: str, marks: Mapping[str, Mark]) -> str:
    """An SVG whose ids begin with `prefix-`, in which each mark says its series (`data-series`) and its numbers."""
    parts = re.split(r'(?=<g id=")', svg)
    for at, part in enumerate(parts):
        told = re.match(rf'<g id="{re.escape(prefix)}-(mark-\d+-\d+)"', part)
        if not told or told[1] not in marks:
            continue
        mark = marks[told[1]]
        part = part.replace("<g id=", f'<g data-series="{escape(mark.series)}" id=', 1)
        before, *points = re.split(r"(?=<use\b)", part)
        titled = (_titled(*each) for each in zip_longest(points, mark.texts[: len(points)], fillvalue=""))
        parts[at] = before + "".join(titled)
    return "".join(parts)


def _titled(point: str, text: str) -> str:
    return point.replace("/>", f"><title>{escape(text)}</title></use>", 1) if text else point


def _labelled(panel: Axes) -> Iterator[Artist]:
    for artist in (*panel.lines, *panel.collections):
        if str(artist.get_label())[:1] not in ("", "_"):  # matplotlib's own labels begin so
            yield artist


def _texts(panel: Axes, artist: Artist) -> Iterator[str]:
    """Of a curve with markers: its series, where, the value, and the interval if there is a band."""
    if not isinstance(artist, Line2D) or not _pointed(artist):
        return
    x, y = (np.asarray(each(orig=False), float) for each in (artist.get_xdata, artist.get_ydata))  # names are places
    places = panel.xaxis.get_major_formatter()
    ends = _ends(panel, artist, len(x))
    axis = next((f"{name} " for each in _columns(panel) if (name := each.get_xlabel())), "")
    for at in np.flatnonzero(np.isfinite(y)):
        interval = f" [{ends[0][at]:.3g}, {ends[1][at]:.3g}]" if ends and ends[0][at] < ends[1][at] else ""
        yield f"{artist.get_label()}, {_place(places, x[at], axis)}: {y[at]:.3g}{interval}"


def _place(places: Formatter, x: float, axis: str) -> str:
    """Where a point is on the horizontal axis: the name that it stands at or beside, or what the axis is of."""
    if isinstance(places, StrCategoryFormatter):
        return axis + places.format_data(x)
    name = " ".join(places(round(x)).split()) if isinstance(places, FuncFormatter) else ""
    return name if any(letter.isalpha() for letter in name) else f"{axis}{x:g}"


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
