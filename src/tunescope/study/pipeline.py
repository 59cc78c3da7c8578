"""Runs studies: the stages of their graphs, each skipped where it is done; then the reports."""

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

from tunescope.config import Built, Study
from tunescope.errors import InputError
from tunescope.files import write_text
from tunescope.models.compute import deterministic, device_of, fastest_dtype, resolve
from tunescope.progress import say
from tunescope.registry import plugins_blamed
from tunescope.report.html import render
from tunescope.report.together import check_joint, gather
from tunescope.settings import read_study
from tunescope.study import steps, trackers
from tunescope.study.environment import environment
from tunescope.study.executors import Where
from tunescope.study.folders import CONFIG, ENVIRONMENT, check, claimed, note_environment
from tunescope.study.graph import graph_of, with_names
from tunescope.study.stages import Done, is_done, run_stage, tell, times
from tunescope.study.work import Failed, Work, shared
from tunescope.training.protocol import PROTOCOLS

HERE = Where()


def run(study: Study, folder: Path, *, update: bool = False, skip: Collection[str] = (), where: Where = HERE) -> Path:
    """Run a study in a folder, or go on with it; returns the path of its report.

    Args:
        update: let a folder that holds a run of other settings be brought up to these, running again what they change.
        skip: groups of stages, of `config.GROUPS`, that are not run. What is there of them already, of these settings,
            stays in the report; a run without them can be made whole later.
        where: its stages run.

    Raises:
        InputError: the settings do not fit together, a model does not, the folder holds something else, or a file in it
            is damaged.
    """
    run_all([OneRun(study, folder, update, skip)], where)
    return folder / "report.html"


def run_seeds(
    studies: Sequence[Study], folder: Path, *, update: bool = False, skip: Collection[str] = (), where: Where = HERE
) -> Path:
    """Run a study of each seed N in a folder of its own, `folder`-seedN, and report on all of them in `folder`; returns
    the path of that report.

    Raises:
        InputError: as `run`; or the folder holds something else.
    """
    check_joint(folder)
    folders = [folder.with_name(f"{folder.name}-seed{study.seed}") for study in studies]
    dtype = settled(studies[0], folders[0]).compute.dtype  # one for all, so that they round alike
    studies = [study.changed(compute={"dtype": dtype}) for study in studies]
    # All of them are checked before the first one takes its time.
    pairs = zip(studies, folders, strict=True)
    run_all([OneRun(study, place, update, skip, f"seed {study.seed} ") for study, place in pairs], where)
    gather(folders, folder)
    return render(folder)


class OneRun:
    """A study and its folder, checked and laid out.

    Args:
        of: what its lines begin with, where there are several runs.
    """

    def __init__(self, study: Study, folder: Path, update: bool, skip: Collection[str], of: str = "") -> None:
        self.study, self.folder, self.update, self.of = settled(with_names(study), folder), folder, update, of
        check(folder, self.study, update)  # before models are looked at, which may have to be fetched
        self.graph = graph_of(self.study, folder, skip)
        self.stages = self.graph.measured(skip)
        for stage in self.stages:
            given, base = stage.inputs, self.study.base
            if not isinstance(given, steps.TuneModel) or not isinstance(base, Built):
                continue
            if PROTOCOLS.code(given.protocol) and not is_done(stage, folder):
                with plugins_blamed(f"stage {stage.name}"), deterministic(device_of(given.compute)):
                    steps.rehearse(given, base, folder)
        self.work = [Work(stage, folder, tuple(skip)) for stage in self.stages]
        self.done = 0

    def begin(self) -> None:
        write_text(self.folder / CONFIG, self.study.to_yaml())
        self.here = environment(self.study, resolve(self.study.compute))
        dtype = self.study.compute.dtype
        say(f"{self.of}[0/{len(self.stages) + 1}] training is in {dtype} (compute.dtype; `auto` times it for each run)")

    def note(self, done: Done) -> None:
        self.done += 1
        if not done.skipped:
            note_environment(self.folder / ENVIRONMENT, self.here, afresh=self.done == 1)
        tell(self.done, len(self.stages) + 1, done, self.of)

    def join(self) -> None:
        """All measurements in two tables, once its stages are done."""
        left_out = [stage for stage in self.graph.stages if stage not in self.stages]
        there = [stage for stage in left_out if is_done(stage, self.folder)]
        if there:
            say(f"not run, but there already and so in the report: {', '.join(stage.name for stage in there)}")
        kept = [stage for stage in self.graph.stages if stage in self.stages or stage in there]
        tables = self.graph.tables(kept)
        self.note(run_stage(tables, self.folder))
        every = times([*self.graph.stages, tables], self.folder)
        write_text(self.folder / "stages.json", json.dumps(every, indent=1))


def page(run: OneRun) -> None:
    """What a study does when a run of it is done."""
    render(run.folder)


def stop(work: Work, failed: Failed) -> None:
    """What a study does when a stage fails."""
    raise failed.error


def run_all(
    runs: Sequence[OneRun],
    where: Where,
    finished: Callable[[OneRun], None] = page,
    failed: Callable[[Work, Failed], None] = stop,
) -> None:
    """All stages of all runs, the earlier runs first, those that two runs have in common once.

    Args:
        finished: what is done with a run as soon as its tables are there.
        failed: what is done when a stage fails; the stages that need it are left out, and its run has no tables.
    """
    execute, of = where.executor(), {each.folder: each for each in runs}
    if where.log:
        trackers.require(where.log)
    with ExitStack() as held:
        held.enter_context(where.threads())
        for each in runs:
            held.enter_context(claimed(each.folder, each.study, update=each.update))
            held.enter_context(deterministic(device_of(each.study.compute)))
            each.begin()
        for work, done in execute(shared([work for each in runs for work in each.work])):
            if isinstance(done, Failed):
                failed(work, done)
                continue
            run = of[work.folder]
            run.note(done)
            if where.log:
                trackers.track(where.log, work.stage, run.folder, again=not done.skipped)
            if run.done == len(run.stages):
                run.join()
                finished(run)


def settled(study: Study, folder: Path) -> Study:
    """The same with the type that `auto` stands for: that of the run in this folder, or the faster one if none."""
    if study.compute.dtype != "auto":
        return study
    try:
        chosen = read_study(folder / CONFIG).compute.dtype
    except InputError:  # no run yet, or none that can be read, which `check` says
        chosen = "auto"
    if chosen == "auto":
        device = device_of(study.compute)
        elsewhere = 512 if device.type == "cpu" else 1024  # a width like those of models that are trained there
        chosen = fastest_dtype(device, width=study.base.width if isinstance(study.base, Built) else elsewhere)
    return study.changed(compute={"dtype": chosen})
