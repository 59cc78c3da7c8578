"""Figures: records in, `matplotlib.figure.Figure` out, for every entry of `FIGURES`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from tunescope.errors import InputError
from tunescope.files import atomic_path, remove
from tunescope.report import attacks, behaviour, interventions, ladder, mechanism, training
from tunescope.report.draw import FIGURES, Drawing, facet, figure
from tunescope.report.style import Model, models_of, style

__all__ = ["FIGURES", "Drawing", "facet", "figure", "figures", "in_order", "save_figures"]

_MODULES = [part.__name__ for part in (ladder, behaviour, mechanism, attacks, interventions, training)]
FORMATS: Mapping[str, Mapping[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # with metadata


def in_order() -> list[Drawing]:
    """The registered figures in the order of the report: those of other modules last."""
    places = {name: place for place, name in enumerate(_MODULES)}
    return sorted(FIGURES.values(), key=lambda entry: places.get(entry.draw.__module__, len(places)))


def figures(records: pd.DataFrame) -> dict[str, Figure]:
    """Every figure that the records hold something for, by name, in the order of the report.

    Args:
        records: as they are, or with rows of scores and verdicts below them (`html.to_draw`).
    """
    models = models_of(records)
    drawn = {entry.name: _drawn(entry, records, models) for entry in in_order()}
    return {name: figure for name, figure in drawn.items() if figure}


def draw(name: str, records: pd.DataFrame) -> Figure:
    """One figure of them.

    Raises:
        InputError: there is no such figure, or the records hold nothing for it.
    """
    if found := _drawn(FIGURES[name], records, models_of(records)):
        return found
    raise InputError(f"figure {name}: nothing of what it shows was measured, or judged (verdicts need three runs)")


def _drawn(entry: Drawing, records: pd.DataFrame, models: Sequence[Model]) -> Figure | None:
    """None where the records hold nothing for it."""
    if (rows := entry.rows(records)).empty:
        return None
    seen = set(rows["model"])
    with style():
        return entry.draw(rows, [model for model in models if model.name in seen])


def save_figures(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write every figure as `<name>.svg` and `<name>.pdf`, and remove those of registered figures that are not there.

    The same figures give the same bytes. Other files in the folder are left alone.
    """
    with style():
        for ending, metadata in FORMATS.items():
            for name, made in figures.items():
                with atomic_path(folder / f"{name}.{ending}") as temporary:
                    made.savefig(temporary, format=ending, metadata=metadata)
                made.set_layout_engine("none")  # it has been laid out: the next format takes half as long
            for name in set(FIGURES) - set(figures):
                remove(folder / f"{name}.{ending}")
