"""Sweeps: one study at the points of a grid, several runs at each; every claim against every swept setting."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from tunescope.config import Changes, Study, Sweep, checked
from tunescope.errors import InputError, shown
from tunescope.evidence.verdicts import displayed, judge
from tunescope.files import atomic_path, write_text
from tunescope.progress import say
from tunescope.recipes import RECIPES
from tunescope.records.tables import read_records, read_scores
from tunescope.report.reading import read_file
from tunescope.report.sweep import COLUMNS, answered, render_sweep
from tunescope.report.together import gather
from tunescope.settings import override, read_study, read_yaml
from tunescope.study.executors import Where
from tunescope.study.folders import locked
from tunescope.study.pipeline import HERE, OneRun, run_all, settled
from tunescope.study.work import Failed, Work

SPEC, POINTS, FAILURES = "sweep.yaml", "points", "failures.json"


class Point(NamedTuple):
    """One study of a sweep: what is changed in it, and the name of its folders."""

    name: str
    changes: Changes
    study: Study

    def setting(self, key: str) -> Any:
        """What a setting is at this point, whether it is changed here or at others alone; None where there is none."""
        if key in self.changes:
            return self.changes[key]
        found: Any = self.study.model_dump(mode="json")
        for part in key.split("."):
            found = dict(enumerate(found)) if isinstance(found, list) else found
            found = found.get(int(part) if part.isdigit() else part) if isinstance(found, dict) else None
        return found


class Swept(NamedTuple):
    """What a sweep left in its folder."""

    folder: Path

    @property
    def failures(self) -> dict[str, str]:
        """By run that has no tables, why."""
        return read_file(self.folder / FAILURES, dict[str, str])

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def effects(self) -> pd.DataFrame:
        """One row per point, claim, model and rung; see `tunescope.report.sweep.COLUMNS`, and the swept settings."""
        return pd.read_parquet(self.folder / "effects.parquet")

    @property
    def records(self) -> pd.DataFrame:
        """The records of all runs, with `point` and the swept settings."""
        return pd.read_parquet(self.folder / "records.parquet")


def read_spec(path: Path) -> Sweep:
    """A sweep from a YAML file.

    Raises:
        InputError: no such file, an unknown key, or nothing to sweep.
    """
    return checked(Sweep, read_yaml(path), f"{path}: ")


def points_of(spec: Sweep, beside: Path = Path()) -> list[Point]:
    """The studies of a sweep.

    Args:
        beside: the folder that a study's file is looked for in.

    Raises:
        InputError: an unknown recipe or setting, or two points that are the same study.
    """
    of_file = spec.recipe.endswith((".yaml", ".yml"))
    base = read_study(beside / spec.recipe) if of_file else RECIPES[spec.recipe]()
    found: list[Point] = []
    for changes in spec.combinations():
        settings = [f"{key}={json.dumps(value)}" for key, value in {**spec.changes, **changes}.items()]
        study = override(base, settings)
        if same := next((point for point in found if point.study.decides() == study.decides()), None):
            raise InputError(
                f"grid: {shown(_said(changes))} is the same study as {shown(_said(same.changes))}; leave one out"
            )
        found.append(Point(_slug(changes), changes, study))
    return found


def run_sweep(spec: Sweep, folder: Path, *, update: bool = False, where: Where = HERE, beside: Path = Path()) -> Swept:
    """Run a sweep in a folder, or go on with it: the runs of every point, tables of all of them, and a report.

    Stages that two runs share, as a base that is swept over ways of fine-tuning it, are done once. A run that fails
    stops no other, but for those that need what failed.

    Args:
        update: bring a folder of another spec up to this one.

    Raises:
        InputError: the spec or the folder is not what it must be.
    """
    points = points_of(spec, beside)
    _check(folder, spec, update)
    places = [(point, seed, folder / POINTS / f"{point.name}-seed{seed}") for seed in spec.seeds for point in points]
    dtype = settled(points[0].study, places[0][2]).compute.dtype
    failures: dict[str, str] = {}
    lost: dict[str, str] = {}  # by stage, the run in which it failed
    done: set[Path] = set()

    def failed(work: Work, failure: Failed) -> None:
        failures.setdefault(work.folder.name, f"{work.stage.name}: {failure.why}")
        lost.setdefault(work.stage.name, work.folder.name)
        say(f"{work.folder.name}: {work.stage.name} failed: {failure.why}")

    runs = [
        OneRun(point.study.changed(seed=seed, compute={"dtype": dtype}), place, update, spec.skip, f"{place.name} ")
        for point, seed, place in places
    ]
    with locked(folder):
        write_text(folder / SPEC, yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))
        run_all(runs, where, lambda run: done.add(run.folder), failed)
        for run in runs:
            if run.folder not in done:
                where_ = next(
                    (f"{name}: failed in {lost[name]}" for name in (s.name for s in run.stages) if name in lost), ""
                )
                failures.setdefault(run.folder.name, where_)
        of = {point.name: [place for its, _, place in places if its is point and place in done] for point in points}
        _join(folder, spec, points, of, failures)
    return Swept(folder)


def load_sweep(folder: str | Path) -> Swept:
    """A sweep that was run before.

    Raises:
        InputError: the folder holds none.
    """
    if not (Path(folder) / "effects.parquet").is_file():
        raise InputError(f"{folder}: no finished sweep: there is no effects.parquet in it")
    return Swept(Path(folder))


def _join(
    folder: Path, spec: Sweep, points: Sequence[Point], done: Mapping[str, list[Path]], failures: Mapping[str, str]
) -> None:
    """Tables of all points, and the report on them."""
    effects, records, behaviour = [], [], []
    swept = list(dict.fromkeys(key for point in points for key in point.changes))
    for point in points:
        if not done[point.name]:
            continue
        joint = folder / POINTS / point.name
        gather(done[point.name], joint)
        about = {"point": point.name, **{key: _cell(point.setting(key)) for key in swept}}
        judgement = judge(read_scores(joint / "scores.parquet"))
        claims = {claim.name: claim for claim in judgement.claims}
        for v in judgement.verdicts:
            numbers = {
                name: None if value is None else displayed(claims[v.claim], value)
                for name, value in (("estimate", v.estimate), ("low", v.low), ("high", v.high))
            }
            row = {"outcome": str(v.outcome) if v.outcome else "", "firm": bool(v.firm), "unit": claims[v.claim].unit}
            per_run = [displayed(claims[v.claim], each) for each in v.per_run]
            effects.append(
                {**about, **{name: getattr(v, name) for name in COLUMNS}, **numbers, **row, "per_run": per_run}
            )
        measured = read_records(joint / "records.parquet")
        records.append(measured.assign(**about))
        behaviour.append(answered(measured).assign(**about))
    tables = {"effects": pd.DataFrame(effects), "records": pd.concat(records) if records else pd.DataFrame()}
    for name, table in tables.items():
        with atomic_path(folder / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)
    write_text(folder / FAILURES, json.dumps(failures))
    answers = pd.concat(behaviour) if behaviour else pd.DataFrame()
    render_sweep(folder, spec.name, tables["effects"], answers, swept, [point.name for point in points], failures)


def _check(folder: Path, spec: Sweep, update: bool) -> None:
    """Raises InputError: the folder holds something else, or, where it is not to be updated, another sweep."""
    kept = folder / SPEC
    if not kept.exists():
        if folder.exists() and (not folder.is_dir() or [*os.listdir(folder)] not in ([], [".lock"])):
            raise InputError(f"{folder}: there already, and not a folder of a sweep; choose another --out")
        return
    if not update and read_spec(kept) != spec:
        raise InputError(
            f"{folder}: holds another sweep; choose another --out, or pass --update to run what is new in it"
        )


def _cell(value: Any) -> Any:
    """A value of a setting in a table, whose columns have one type each."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _said(changes: Changes) -> str:
    return ", ".join(f"{key}={_cell(value)}" for key, value in changes.items()) or "no change"


def _slug(changes: Changes) -> str:
    """A name for a folder that tells the changes, as far as there is room, and is no other's."""
    text = re.sub(r"[^\w.=,-]+", "_", _said(changes).replace(", ", ","))
    digest = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:6]
    return text if len(text) <= 60 and text == _said(changes).replace(", ", ",") else f"{text[:50]}-{digest}"
