"""The report: reads a run folder, judges the claims, draws the figures, and writes one page that needs nothing else."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tunescope.errors import InputError, shown
from tunescope.evidence.across import SMALLEST, Association, across, of_models
from tunescope.evidence.claims import CLAIMS, LADDER
from tunescope.evidence.contrasts import FEWEST_RUNS
from tunescope.evidence.predictors import Predictor, predictors
from tunescope.evidence.verdicts import Judgement, Verdict, as_data, costs, judge
from tunescope.files import remove, write_text
from tunescope.progress import say
from tunescope.records.pool import pool
from tunescope.records.tables import read_records, read_scores
from tunescope.registry import plugins_blamed
from tunescope.report import attacks, tables
from tunescope.report.figures import figures, in_order, save_figures
from tunescope.report.ladder import effect_rows, standing_rows
from tunescope.report.marks import Mark, marked, named
from tunescope.report.mechanism import HISTOGRAMS
from tunescope.report.reading import Entry, Stage, read_file
from tunescope.report.select import histogram_rows, vector_rows
from tunescope.report.style import OWN, Model, kind_label, models_of, spaced


@plugins_blamed("report")
def render(folder: Path) -> Path:
    """Write `verdicts.json`, `figures/` and `report.html` of a run folder, and return the path of the page.

    Only records.parquet must be there; what other files would have told is left out with them. Records of several
    seeds are pooled: figures and tables then show means over seeds with intervals over them.

    Raises:
        InputError: records.parquet is missing, lacks columns or holds nothing, or another file cannot be read; the
            message names the file.
    """
    records = load_records(folder / "records.parquet")
    measured = folder / "scores.parquet"
    scores = read_scores(measured) if measured.is_file() else None
    judgement, spent, predicted, associated = _of_scores(measured, scores)
    for entry in judgement.not_judged:
        if entry.claim in CLAIMS and CLAIMS.code(entry.claim) and entry.rung == CLAIMS[entry.claim].rungs[0]:
            say(f"claim {entry.claim}: not judged for {', '.join(entry.models) or 'any model'}: {entry.reason}")
    pooled = pool(records)
    page = _told(folder, records, pooled, judgement, spent) | {"predictors": predicted}
    page["across"] = tables.across_table(associated)  # before anything is written
    if judgement.verdicts or judgement.not_judged:
        beside: dict[str, Sequence[Any]] = {"costs": spent, "predictors": predicted, "across": associated}
        outcome = as_data(judgement) | {name: [asdict(row) for row in rows] for name, rows in beside.items()}
        write_text(folder / "verdicts.json", json.dumps(outcome, indent=1))
    else:
        remove(folder / "verdicts.json")  # of an earlier report, perhaps
    drawn = to_draw(pooled, scores, judgement)
    made = figures(drawn)
    marks = {name: named(each) for name, each in made.items()}
    save_figures(made, folder / "figures")
    runs = records["seed"].nunique()
    drawings = [
        drawing(folder, entry.name, entry.title, marks[entry.name])
        | {"caption": emphasised(entry.describe(drawn, runs))}
        for entry in in_order()
        if entry.name in made
    ]
    page["first"] = next((each for each in drawings if each["name"] == "ladder"), None)
    page["series"] = series_of(marks, models_of(records))
    page["figures"] = [each for each in drawings if each is not page["first"]]
    page["drawn"] = [each["name"] for each in drawings]
    path = write_page(folder, "report.html.j2", page)
    if judgement.verdicts and judgement.runs < FEWEST_RUNS:
        say(
            f"{path}: estimates of {judgement.runs} run{'s' if judgement.runs > 1 else ''}; verdicts need {FEWEST_RUNS}"
        )
    return path


def to_draw(pooled: pd.DataFrame, scores: pd.DataFrame | None, judgement: Judgement) -> pd.DataFrame:
    """Rows for all figures: measurements, of several runs as `pool` gives them, and below them what figures show of
    single vectors and prompts, and of verdicts.
    """
    single = [] if scores is None else [vector_rows(scores), histogram_rows(scores, *HISTOGRAMS)]
    frames = [pooled, *single, standing_rows(judgement), effect_rows(judgement)]
    return pd.concat([frame for frame in frames if len(frame)])  # an empty one has no types, and would take those away


def write_page(folder: Path, template: str, page: Mapping[str, Any]) -> Path:
    """Fill a template with what a page says, and write it as the report of a folder; returns its path."""
    environment = Environment(
        loader=PackageLoader("tunescope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"spaced": spaced, "duration": tables.duration, "kind_label": kind_label}
    write_text(folder / "report.html", environment.get_template(template).render(page))
    return folder / "report.html"


def series_of(marks: Mapping[str, Mapping[str, Mark]], models: Sequence[Model]) -> dict[str, list[str]]:
    """What can be hidden in figures: labels of `models`, and of all other `points`."""
    series = dict.fromkeys(mark.series for of in marks.values() for mark in of.values())
    of_models = [model.label for model in models if model.label in series]
    return {"models": of_models, "points": [each for each in series if each not in of_models]}


def drawing(folder: Path, name: str, title: str, marks: Mapping[str, Mark] = {}) -> dict[str, str]:
    """A saved figure of a folder, as a page shows it.

    Args:
        marks: of its curves, by id.
    """
    svg = inline_svg((folder / f"figures/{name}.svg").read_text("utf-8"), name, title)
    return {"name": name, "title": title, "svg": Markup(marked(svg, name, marks))}


def load_records(path: Path) -> pd.DataFrame:
    """The records of a run.

    Raises:
        InputError: no such file, no table of records, or no rows.
    """
    records = read_records(path)
    if records.empty:
        raise InputError(f"{path}: it holds no records")
    return records


def emphasised(text: str) -> Markup:
    """A docstring's text as one of a page: `*words*` stand out, and `names` are code."""
    code = re.split(r"`([^`]+)`", str(escape(text)))  # every other part is between backticks
    parts = (
        f"<code>{part}</code>" if at % 2 else re.sub(r"\*(\w[^*]*)\*", r"<em>\1</em>", part)
        for at, part in enumerate(code)
    )
    return Markup("".join(parts))


def inline_svg(text: str, prefix: str, label: str) -> Markup:
    """An SVG that matplotlib wrote, as an element of a page: every id of its own, and a name for those who hear it.

    Nothing of it is text from data: names were drawn as glyphs, and comments are dropped.
    """
    body = text[re.search(r"<svg\b", text).start() :]  # type: ignore[union-attr]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style\b.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", body)
    for size in ("width", "height"):
        body = re.sub(rf'(<svg\b[^>]*?) {size}="[^"]*"', r"\1", body, count=1)
    return Markup(body.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip())


def _of_scores(
    path: Path, scores: pd.DataFrame | None
) -> tuple[Judgement, Sequence[Verdict], list[Predictor], list[Association]]:
    """Verdicts on claims, what changes cost, what predicts attack success, and what goes along across models; nothing
    where there are no scores.
    """
    if scores is None:
        return Judgement(), [], [], []
    try:
        judgement = judge(scores)
        spent = costs(scores, judgement.claims)
        return judgement, spent, predictors(scores), across(of_models(scores))
    except ValueError as error:
        raise InputError(f"{path}: {shown(error, 400)}") from error


def _told(
    folder: Path, records: pd.DataFrame, pooled: pd.DataFrame, judgement: Judgement, spent: Sequence[Verdict]
) -> dict[str, Any]:
    """All that the page says of the records, the verdicts and the small files."""
    models = models_of(records)
    config = read_file(folder / "config.yaml", dict[str, Any], {})
    stages = read_file(folder / "stages.json", list[Stage], [])
    notes = read_file(folder / "notes.json", list[str], [])
    task = config.get("task")
    return {
        "title": f"tunescope: {config.get('name', folder.resolve().name)}",
        "summary": tables.summary(records, config),
        "cautions": [*notes, *tables.cautions(records, config), *attacks.cautions(pooled)],
        "verdicts": tables.verdict_table(judgement, models, spent, pooled),
        "observations": tables.observations(judgement, models),
        "glyphs": {outcome.lower(): glyph for outcome, glyph in tables.GLYPHS.items() if outcome},
        "ladder": LADDER,
        "smallest": SMALLEST,
        "own": OWN if any(OWN in model.label for model in models) else "",
        "headline": tables.headline(pooled),
        "exact": task.get("type") == "world" if isinstance(task, dict) else "other" in set(records["metric"]),
        "pooled": records["seed"].nunique() > 1,
        "sure": tables.SURE,
        "rare": tables.RARE,
        "examples": tables.examples(read_file(folder / "examples.json", list[Entry], []), models),
        "environment": tables.flat(read_file(folder / "environment.json", dict[str, Any], {})),
        "stages": stages,
        "total": sum(stage.seconds for stage in stages),
        "config": (folder / "config.yaml").read_text("utf-8") if config else "",
    }
