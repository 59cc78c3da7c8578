"""The report: reads a run folder, judges the claims, draws the figures, and writes one page that needs nothing else."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow.parquet as pq
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tunescope.errors import InputError
from tunescope.evidence.claims import Claim
from tunescope.evidence.pool import pool
from tunescope.evidence.predictors import Predictor, predictors
from tunescope.evidence.records import ORDER, PAIR, read_records, read_scores
from tunescope.evidence.verdicts import Verdict, as_data, claims_of, judge
from tunescope.files import remove, write_text
from tunescope.report.figures import FIGURES, figures, save_figures
from tunescope.report.select import vector_rows
from tunescope.report.style import KINDS, models_of
from tunescope.report.tables import RARE, SURE, cautions, duration, examples, flat, headline, summary
from tunescope.report.verdicts import GLYPHS, verdict_table


def render(folder: Path) -> Path:
    """Write `verdicts.json`, `figures/` and `report.html` of a run folder, and return the path of the page.

    Only records.parquet must be there; what other files would have told is left out with them. Records of several
    seeds are pooled: figures and tables then show means over seeds with intervals over them.

    Raises:
        InputError: records.parquet is missing, lacks columns or holds nothing, or another file cannot be read; the
            message names the file.
    """
    records = load_records(folder / "records.parquet")
    scored = _scored(folder / "scores.parquet")
    pooled = pool(records)
    shown = pd.concat([pooled, scored.vectors])
    told = _told(folder, records, pooled, scored)  # before anything is written
    if scored.verdicts:
        outcome = as_data(scored.verdicts, scored.claims) | {"predictors": [asdict(row) for row in scored.predictors]}
        write_text(folder / "verdicts.json", json.dumps(outcome, indent=1))
    else:
        remove(folder / "verdicts.json")  # of an earlier report, perhaps
    save_figures(figures(shown), folder / "figures")
    environment = Environment(
        loader=PackageLoader("tunescope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    page = template.render(told, figures=_drawn(folder / "figures", shown))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def load_records(path: Path) -> pd.DataFrame:
    """The records of a run.

    Raises:
        InputError: no such file, not parquet, columns that are absent, or no rows.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; a run writes it before its report")
    try:
        names = pq.read_schema(path).names
        missing = [name for name in ORDER if name not in names]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        records = read_records(path)
    except (ValueError, OSError) as error:  # what pyarrow raises is one of these
        raise InputError(f"{path}: {error}") from error
    if records.empty:
        raise InputError(f"{path}: it holds no records")
    return records


def inline_svg(text: str, prefix: str, label: str) -> Markup:
    """An SVG that matplotlib wrote, as an element of a page: every id of its own, and a name for those who hear it.

    Nothing of it is text from data: names were drawn as glyphs, and comments are dropped.
    """
    body = text[re.search(r"<svg\b", text).start() :]  # type: ignore[union-attr]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style\b.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", body)
    body = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", body, count=1)
    return Markup(body.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip())


class _Scored(NamedTuple):
    """What the scores tell: verdicts on claims, what predicts attack success, and rows for figures."""

    claims: tuple[Claim, ...]
    verdicts: list[Verdict]
    predictors: list[Predictor]
    vectors: pd.DataFrame | None


def _scored(path: Path) -> _Scored:
    if not path.is_file():
        return _Scored((), [], [], None)
    try:
        scores = read_scores(path)
        claims = claims_of(scores)
        return _Scored(claims, judge(scores, claims), predictors(scores), vector_rows(scores))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: {error}") from error


def _told(folder: Path, records: pd.DataFrame, pooled: pd.DataFrame, scored: _Scored) -> dict[str, Any]:
    """All that the page says except for its figures."""
    models = models_of(records)
    config = _load(folder / "config.yaml", _mapping(yaml.safe_load), {})
    stages = _load(folder / "stages.json", _stages, [])
    pair = _load(folder / "pair.json", _mapping(json.loads), {})
    name = _pair_name(pair) if pair else config.get("name", folder.resolve().name)
    return {
        "title": f"tunescope: {name}",
        "pair": (records["protocol"] == PAIR).any(),
        "summary": summary(records, config),
        "cautions": cautions(records, config, pair),
        "verdicts": verdict_table(scored.verdicts, scored.claims, models),
        "predictors": scored.predictors,
        "glyphs": {str(outcome).lower(): glyph for outcome, glyph in GLYPHS.items()},
        "headline": headline(pooled),
        "pooled": records["seed"].nunique() > 1,
        "sure": SURE,
        "rare": RARE,
        "kinds": KINDS,
        "examples": _load(folder / "examples.json", lambda text: examples(json.loads(text), models), {}),
        "environment": flat(pair) | _facts(folder / "environment.json"),
        "stages": stages,
        "total": duration(sum((seconds for _, seconds, _ in stages), 0.0)),
        "duration": duration,
        "config": _load(folder / "config.yaml", str, ""),
    }


def _drawn(folder: Path, records: pd.DataFrame) -> list[dict[str, Any]]:
    """What the page says about each figure in the folder, in the order of `FIGURES`."""
    found = [(entry, folder / f"{entry.name}.svg") for entry in FIGURES]
    return [
        {
            "name": entry.name,
            "title": entry.title,
            "caption": entry.describe(records),
            "svg": inline_svg(path.read_text(encoding="utf-8"), entry.name, entry.title),
        }
        for entry, path in found
        if path.is_file()
    ]


def _pair_name(pair: Mapping[str, Any]) -> str:
    told = flat({which: pair.get(which, {}) for which in ("tuned", "base")})
    return " beside ".join("/".join(Path(told.get(f"{which}.name", which)).parts[-2:]) for which in ("tuned", "base"))


def _facts(path: Path) -> dict[str, str]:
    return _load(path, lambda text: flat(_mapping(json.loads)(text)), {})


def _load(path: Path, read: Callable[[str], Any], default: Any) -> Any:
    """What `read` makes of the text of a file, `default` if there is none."""
    if not path.is_file():
        return default
    try:
        return read(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _mapping(parse: Callable[[str], Any]) -> Callable[[str], Mapping[str, Any]]:
    """`parse`, for texts that must hold a mapping."""

    def read(text: str) -> Mapping[str, Any]:
        value = parse(text)
        if not isinstance(value, Mapping):
            raise ValueError(f"a mapping is wanted, got {type(value).__name__}")
        return value

    return read


def _stages(text: str) -> list[tuple[str, float, bool]]:
    return [(str(row["stage"]), float(row["seconds"]), bool(row.get("skipped"))) for row in json.loads(text)]
