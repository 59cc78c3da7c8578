"""Runs a study: the stages of its graph, one after another, each skipped where it is done; then the report."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from tunescope.config import Built, Study
from tunescope.errors import InputError
from tunescope.files import write_text
from tunescope.models.compute import deterministic, device_of, fastest_dtype, resolve
from tunescope.report.html import render
from tunescope.report.together import check_joint, gather
from tunescope.settings import read_study
from tunescope.study.environment import environment
from tunescope.study.folders import CONFIG, ENVIRONMENT, check, claimed, note_environment
from tunescope.study.graph import graph_of, with_names
from tunescope.study.stages import Stage, is_done, run_stage, say, tell, times


def run(study: Study, folder: Path, *, update: bool = False, skip: Collection[str] = ()) -> Path:
    """Run a study in a folder, or go on with it; returns the path of its report.

    Args:
        update: let a folder that holds a run of other settings be brought up to these, running again what they change.
        skip: groups of stages, of `config.GROUPS`, that are not run. What is there of them already, of these settings,
            stays in the report; a run without them can be made whole later.

    Raises:
        InputError: the settings do not fit together, a model does not, the folder holds something else, or a file in it
            is damaged.
    """
    study = settled(with_names(study), folder)
    check(folder, study, update)  # before models are looked at, which may have to be fetched
    graph = graph_of(study, folder, skip)
    compute = resolve(study.compute)
    with claimed(folder, study, update=update), deterministic(compute.device):
        write_text(folder / CONFIG, study.to_yaml())
        here = environment(study, compute)
        stages = graph.measured(skip)
        total = len(stages) + 1
        say(f"[0/{total}] training is in {study.compute.dtype} (compute.dtype)")

        def do(number: int, stage: Stage) -> None:
            done = run_stage(stage, folder)
            if not done.skipped:
                note_environment(folder / ENVIRONMENT, here, afresh=number == 1)
            tell(number, total, done)

        for number, stage in enumerate(stages, 1):
            do(number, stage)
        left_out = [stage for stage in graph.stages if stage not in stages]
        there = [stage for stage in left_out if is_done(stage, folder)]
        if there:
            say(f"not run, but there already and so in the report: {', '.join(stage.name for stage in there)}")
        kept = [stage for stage in graph.stages if stage in stages or stage in there]
        tables = graph.tables(kept)
        do(total, tables)
        write_text(folder / "stages.json", json.dumps(times([*graph.stages, tables], folder), indent=1))
        return render(folder)


def settled(study: Study, folder: Path) -> Study:
    """The same with the type that `auto` stands for: that of the run in this folder, or the faster one if none."""
    if study.compute.dtype != "auto":
        return study
    try:
        chosen = read_study(folder / CONFIG).compute.dtype
    except InputError:  # no run yet, or none that can be read, which `check` says
        chosen = "auto"
    if chosen == "auto":
        width = study.base.width if isinstance(study.base, Built) else 1024
        chosen = fastest_dtype(device_of(study.compute), width=width)
    return study.changed(compute={"dtype": chosen})


def run_seeds(studies: Sequence[Study], folder: Path, *, update: bool = False, skip: Collection[str] = ()) -> Path:
    """Run a study of each seed N in a folder of its own, `folder`-seedN, and report on all of them in `folder`; returns
    the path of that report.

    Raises:
        InputError: as `run`; or the folder holds something else.
    """
    check_joint(folder)
    folders = [folder.with_name(f"{folder.name}-seed{study.seed}") for study in studies]
    dtype = settled(studies[0], folders[0]).compute.dtype  # one for all, or they could not be joined
    studies = [study.changed(compute={"dtype": dtype}) for study in studies]
    for study, place in zip(studies, folders, strict=True):
        check(place, with_names(study), update)  # all of them, before the first one takes its time
    for study, place in zip(studies, folders, strict=True):
        say(f"seed {study.seed}: {place}")
        say(f"{run(study, place, update=update, skip=skip)}: estimates of this run")
    gather(folders, folder)
    return render(folder)
