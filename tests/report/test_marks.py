"""What a page can be asked of its curves: whose they are, and the numbers behind their marks."""

import re
from math import nan
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
from matplotlib.figure import Figure

from tunescope.report.draw import curves, dots
from tunescope.report.figures import save_figures
from tunescope.report.html import drawing
from tunescope.report.marks import named, tell
from tunescope.report.style import drawn_as

NAMES = {"one": r"one & all \d", "two": 'the "other"'}


def drawn() -> Figure:
    """Two curves of three points in one panel, the first without an interval; one of many, and one too long for any."""
    rows = [
        {"model": model, "layer": layer, "value": sign * (layer + 0.5), "low": low, "high": sign * layer + 2.0}
        for model, sign, low in (("one", 1.0, float("nan")), ("two", -1.0, -4.0))
        for layer in range(3)
    ]
    for name, n in (("many", 30), ("long", 50)):
        rows += [{"model": name, "layer": at, "value": 0.0, "low": 0.0, "high": 0.0} for at in range(n)]
    models = [drawn_as("one", "red", "o", NAMES["one"]), drawn_as("two", "blue", "s", NAMES["two"])]
    figure = Figure()
    panel = figure.subplots()
    curves(
        panel,
        pd.DataFrame(rows),
        "layer",
        [*models, drawn_as("many", "#008000", "^"), drawn_as("long", "#008000", "^")],
    )
    panel.set_xlabel("layer")
    return figure


def test_every_mark_says_its_series_and_its_numbers(tmp_path: Path) -> None:
    figure = drawn()
    marks = named(figure)
    save_figures({"lines": figure}, tmp_path / "figures")
    svg = drawing(tmp_path, "lines", "Lines", marks)["svg"]
    page = ElementTree.fromstring(re.sub(r"\sxlink:href", " href", svg))
    of = {}
    for group in page.iter("{http://www.w3.org/2000/svg}g"):
        if series := group.get("data-series"):
            of.setdefault(series, []).extend(each.text for each in group.iter("{http://www.w3.org/2000/svg}title"))
    assert of[NAMES["one"]] == [rf"{NAMES['one']}, layer {at}: {at + 0.5}" for at in range(3)]
    assert of[NAMES["two"]] == [
        'the "other", layer 0: -0.5 [-4, 2]',
        'the "other", layer 1: -1.5 [-4, 1]',
        'the "other", layer 2: -2.5 [-4, 0]',
    ]
    assert of["many"] == [f"many, layer {at}: 0" for at in range(30)]
    assert "fill: #008000; fill-opacity: 0; " in svg  # none of them is seen
    assert of["long"] == []
    assert "<script" not in svg


def test_points_with_bars_say_where_they_stand(tmp_path: Path) -> None:
    rows = [("m", "a", 1.0, 0.5, 2.0), ("n", "a", 2.0, nan, nan), ("m", "b", 3.0, 2.5, 3.0)]
    figure = Figure()
    table = pd.DataFrame(rows, columns=["model", "kind", "value", "low", "high"])
    looks = {"a": ("an a", "red", "o"), "b": ("a b", "blue", "s")}
    dots(figure.subplots(), table, "model", {"m": "the\nfirst", "n": "other"}, "kind", looks)
    marks = named(figure).values()
    assert sorted(mark.series for mark in marks) == ["a b", "a b", "an a", "an a"]  # points, and their bars
    assert {mark.series: mark.texts for mark in marks if mark.texts} == {
        "an a": ("an a, the first: 1 [0.5, 2]", "an a, other: 2"),
        "a b": ("a b, the first: 3 [2.5, 3]",),
    }


def test_marks_say_their_panel_and_bars_what_they_are_told(tmp_path: Path) -> None:
    figure = Figure()
    panels = figure.subplots(2, 2)
    for panel, title in zip(panels[0], ("left", "right"), strict=True):
        panel.set_title(title)
    for panel, label in zip(panels[:, 0], ("upper\n(%)", "lower"), strict=True):
        panel.set_ylabel(label)
    panels[1, 1].plot([0, 1], [2, 3], marker="o", label="curve")
    panels[0, 1].set_xticks([0, 1], ["48", "96"])
    panels[0, 1].plot([1.1], [5], marker="o", label="swept")
    tell(panels[0, 0].barh(0, 7)[0], "bar", ": 7 %")
    area = panels[1, 0].fill_between([0, 1], [1, 2], label="area")
    tell(area, "area", " <&> 1")
    marks = named(figure)
    assert {mark.series: mark.texts for mark in marks.values()} == {
        "bar": ("left · upper (%) · bar: 7 %",),
        "swept": ("right · upper (%) · swept, 96: 5",),
        "area": ("left · lower · area <&> 1",),
        "curve": ("right · lower · curve, 0: 2", "right · lower · curve, 1: 3"),
    }
    save_figures({"bars": figure}, tmp_path / "figures")
    page = ElementTree.fromstring(re.sub(r"\sxlink:href", " href", drawing(tmp_path, "bars", "Bars", marks)["svg"]))
    titles = [each.text for each in page.iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(titles) == sorted(text for mark in marks.values() for text in mark.texts)


def test_a_figure_that_nothing_is_asked_of_is_as_it_was(tmp_path: Path) -> None:
    save_figures({"lines": drawn()}, tmp_path / "figures")
    svg = drawing(tmp_path, "lines", "Lines")["svg"]
    assert "data-series" not in svg
    assert "<title" not in svg
