"""Runs studies: the stages of their graphs, each skipped where it is done; then the reports."""

import json
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

from tunescope.config import Built, Study
from tunescope.errors import InputError
from tunescope.files import write_text
from tunescope.models.compute import deterministic, device_of, fastest_dtype, resolve
from tunescope.report.html import render
from tunescope.report.together import check_joint, gather
from tunescope.settings import read_study
from tunescope.study.environment import environment
from tunescope.study.executors import Work, executor, fitting_jobs, threads
from tunescope.study.folders import CONFIG, ENVIRONMENT, check, claimed, note_environment
from tunescope.study.graph import graph_of, with_names
from tunescope.study.stages import Done, is_done, run_stage, say, tell, times


def run(study: Study, folder: Path, *, update: bool = False, skip: Collection[str] = (), jobs: int | None = 1) -> Path:
    """Run a study in a folder, or go on with it; returns the path of its report.

    Args:
        update: let a folder that holds a run of other settings be brought up to these, running again what they change.
        skip: groups of stages, of `config.GROUPS`, that are not run. What is there of them already, of these settings,
            stays in the report; a run without them can be made whole later.
        jobs: stages at a time, each in a process of its own with one thread; 1: in this process, with torch's threads;
            None: one per core.

    Raises:
        InputError: the settings do not fit together, a model does not, the folder holds something else, or a file in it
            is damaged.
    """
    (report,) = _run([_Run(study, folder, update, skip)], update, jobs)
    return report


def run_seeds(
    studies: Sequence[Study], folder: Path, *, update: bool = False, skip: Collection[str] = (), jobs: int | None = 1
) -> Path:
    """Run a study of each seed N in a folder of its own, `folder`-seedN, and report on all of them in `folder`; returns
    the path of that report.

    Raises:
        InputError: as `run`; or the folder holds something else.
    """
    check_joint(folder)
    folders = [folder.with_name(f"{folder.name}-seed{study.seed}") for study in studies]
    dtype = settled(studies[0], folders[0]).compute.dtype  # one for all, or they could not be joined
    studies = [study.changed(compute={"dtype": dtype}) for study in studies]
    # All of them are checked before the first one takes its time.
    runs = [_Run(each, place, update, skip, f"seed {each.seed} ") for each, place in zip(studies, folders, strict=True)]
    _run(runs, update, jobs)
    gather(folders, folder)
    return render(folder)


class _Run:
    """A study and its folder, checked and laid out.

    Args:
        of: what its lines begin with, where there are several runs.
    """

    def __init__(self, study: Study, folder: Path, update: bool, skip: Collection[str], of: str = "") -> None:
        self.study, self.folder, self.of = settled(with_names(study), folder), folder, of
        check(folder, self.study, update)  # before models are looked at, which may have to be fetched
        self.graph = graph_of(self.study, folder, skip)
        self.stages = self.graph.measured(skip)
        self.work = [Work(stage, folder, tuple(skip)) for stage in self.stages]
        self.done = 0

    def begin(self) -> None:
        write_text(self.folder / CONFIG, self.study.to_yaml())
        self.here = environment(self.study, resolve(self.study.compute))
        say(f"{self.of}[0/{len(self.stages) + 1}] training is in {self.study.compute.dtype} (compute.dtype)")

    def note(self, done: Done) -> None:
        self.done += 1
        if not done.skipped:
            note_environment(self.folder / ENVIRONMENT, self.here, afresh=self.done == 1)
        tell(self.done, len(self.stages) + 1, done, self.of)

    def report(self) -> Path:
        left_out = [stage for stage in self.graph.stages if stage not in self.stages]
        there = [stage for stage in left_out if is_done(stage, self.folder)]
        if there:
            say(f"not run, but there already and so in the report: {', '.join(stage.name for stage in there)}")
        kept = [stage for stage in self.graph.stages if stage in self.stages or stage in there]
        tables = self.graph.tables(kept)
        self.note(run_stage(tables, self.folder))
        every = times([*self.graph.stages, tables], self.folder)
        write_text(self.folder / "stages.json", json.dumps(every, indent=1))
        return render(self.folder)


def _run(runs: Sequence[_Run], update: bool, jobs: int | None) -> list[Path]:
    """All stages of all runs, the earlier runs first; a run's report as soon as its stages are done."""
    jobs = fitting_jobs() if jobs is None else jobs
    execute, of, reports = executor(jobs), {each.folder: each for each in runs}, []
    with ExitStack() as held:
        held.enter_context(threads(jobs))
        for each in runs:
            held.enter_context(claimed(each.folder, each.study, update=update))
            held.enter_context(deterministic(device_of(each.study.compute)))
            each.begin()
        for work, done in execute([work for each in runs for work in each.work]):
            finished = of[work.folder]
            finished.note(done)
            if finished.done == len(finished.stages):
                reports.append(finished.report())
                if len(runs) > 1:
                    say(f"{finished.of}{reports[-1]}: estimates of this run")
    return reports


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
