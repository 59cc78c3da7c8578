"""A study from world to report, as numbered, resumable stages.

1  pretrain        a model that follows every instruction               -> models/base
2  tune            the same model, made to refuse, per protocol and rate -> models/<protocol>-<rate>, checkpoints/
3  behave          what each model does with each kind of prompt         -> parts/behave-<model>.parquet
4  probe           what changed inside each model, and the controls      -> parts/probe-*, scores-<model>.parquet
5  attack          what gets past each model, and how it looks inside    -> parts/attack-*, scores-attack-*.parquet
6  intervene       what each does when dW is another                    -> parts/intervene-*, scores-intervene-*
7  examples        a few prompts with every model's answer               -> examples.json
8  records         all measurements in two tables                        -> records.parquet, scores.parquet
9  report          verdicts on the claims, figures and one page          -> verdicts.json, figures/, report.html
"""

import json
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from tunescope import __version__
from tunescope.config import Study
from tunescope.environment import environment
from tunescope.errors import InputError
from tunescope.files import write_text
from tunescope.folders import CONFIG, ENVIRONMENT, check, claimed, note_environment
from tunescope.models.compute import deterministic
from tunescope.report.html import render
from tunescope.report.together import check_joint, gather
from tunescope.stages import LOOKS, Stage, is_done, run_stage, say, tell, times
from tunescope.steps import Run, Tuned


def stages_of(this: Run) -> list[Stage]:
    """All that trains and measures, in order; what joins the measurements is `tables_of`."""
    study, settings = this.study, this.study.model_dump(mode="json")
    # The world is read by every stage: its breadths, say, by fine-tuning and not by pretraining.
    common = {"version": __version__, "seed": study.seed, "world": settings["world"]}
    # What attacks and interventions have of the probes' settings.
    fit = {key: settings["probe"][key] for key in ("fit_prompts", "rows")}
    scored, few = ({key: settings["probe"][key]} for key in ("prompts", "few_prompts"))
    base = Stage(
        "pretrain",
        {**common, **{key: settings[key] for key in ("model", "pretrain", "compute")}},
        (),
        ("models/base", "parts/pretrain.parquet"),
        this.pretrain,
    )
    tunes = {
        tuned: Stage(
            f"tune-{tuned.name}",
            {**common, "tune": {k: v for k, v in settings["tune"].items() if k != "protocols"}},
            (base,),
            (f"models/{tuned.name}", f"checkpoints/{tuned.name}", f"parts/tune-{tuned.name}.parquet"),
            partial(this.tune, tuned),
        )
        for tuned in this.tuned
    }
    # Name, fine-tune (None: the base) and stage of every model; the base's own comes before them all.
    models: list[tuple[str, Tuned | None, tuple[Stage, ...]]]
    models = [("base", None, ()), *((t.name, t, (s,)) for t, s in tunes.items())]
    behave = [
        Stage(
            f"behave-{name}",
            {**common, **{key: value for key, value in settings["evaluate"].items() if key != "examples"}},
            made or (base,),
            (f"parts/behave-{name}.parquet",),
            partial(this.behave, name, tuned),
        )
        for name, tuned, made in models
    ]
    probe = [
        Stage(
            f"probe-{name}",
            {**common, "probe": settings["probe"]},
            (base, *made),
            (f"parts/probe-{name}.parquet", f"parts/scores-{name}.parquet"),
            partial(this.probe, name, tuned),
        )
        for name, tuned, made in models
    ]
    attack = [
        Stage(
            f"attack-{name}",
            {**common, **fit, **scored, "attack": settings["attack"], "at": settings["evaluate"]["strengths"]},
            (base, *made),
            (f"parts/attack-{name}.parquet", f"parts/scores-attack-{name}.parquet"),
            partial(this.attack, name, tuned),
        )
        for name, tuned, made in models
    ]
    intervene = [
        Stage(
            f"intervene-{tuned.name}",
            {**common, **fit, **few, "intervene": settings["intervene"], "at": max(study.evaluate.strengths)},
            (base, *(made for other, made in tunes.items() if other.rate == tuned.rate)),
            (f"parts/intervene-{tuned.name}.parquet", f"parts/scores-intervene-{tuned.name}.parquet"),
            partial(this.intervene, tuned),
        )
        for tuned in this.tuned
    ]
    finished = (base, *tunes.values())
    examples = Stage("examples", common | settings["evaluate"], finished, ("examples.json",), this.examples)
    return [*finished, *behave, *probe, *attack, *intervene, examples]


def tables_of(this: Run, measured: Sequence[Stage]) -> Stage:
    """The stage that joins what these have measured."""
    outputs = ("records.parquet", "scores.parquet")
    return Stage("records", None, tuple(measured), outputs, partial(this.join, [*measured]))


def run(study: Study, folder: Path, *, update: bool = False, skip: Collection[str] = ()) -> Path:
    """Run a study in a folder, or go on with it; returns the path of its report.

    Args:
        update: let a folder that holds a run of other settings be brought up to these, running again what they change.
        skip: groups of stages, of `LOOKS`, that are not run. What is there of them already, of these settings, stays
            in the report; a run without them can be made whole later.

    Raises:
        InputError: the settings do not fit together, the folder holds something else, or a file in it is damaged.
    """
    if unknown := set(skip) - {*LOOKS}:
        raise InputError(f"stages: {', '.join(sorted(unknown))} cannot be left out; there are {', '.join(LOOKS)}")
    this = Run(study, folder)
    if "attack" not in skip:
        this.check_attacks()
    with claimed(folder, study, update=update), deterministic(this.compute.device):
        write_text(folder / CONFIG, study.to_yaml())
        here = environment(study, this.compute)
        stages = stages_of(this)
        left_out = {stage.name for stage in stages if stage.name.partition("-")[0] in skip}
        total = len(stages) - len(left_out) + 1

        def do(number: int, stage: Stage) -> None:
            done = run_stage(stage, folder)
            if not done.skipped:
                note_environment(folder / ENVIRONMENT, here, afresh=number == 1)
            tell(number, total, done)

        for number, stage in enumerate((stage for stage in stages if stage.name not in left_out), 1):
            do(number, stage)
        kept = [stage for stage in stages if stage.name not in left_out or is_done(stage, folder)]
        if there := [stage.name for stage in kept if stage.name in left_out]:
            say(f"not run, but there already and so in the report: {', '.join(there)}")
        tables = tables_of(this, kept)
        do(total, tables)
        write_text(folder / "stages.json", json.dumps(times([*stages, tables], folder), indent=1))
        return render(folder)


def run_seeds(studies: Sequence[Study], folder: Path, *, update: bool = False, skip: Collection[str] = ()) -> Path:
    """Run a study of each seed N in a folder of its own, `folder`-seedN, and report on all of them in `folder`; returns
    the path of that report.

    Raises:
        InputError: as `run`; or the folder holds something else.
    """
    check_joint(folder)
    folders = [folder.with_name(f"{folder.name}-seed{study.seed}") for study in studies]
    for study, place in zip(studies, folders, strict=True):
        check(place, study, update)  # all of them, before the first one takes its time
    for study, place in zip(studies, folders, strict=True):
        say(f"seed {study.seed}: {place}")
        run(study, place, update=update, skip=skip)
    gather(folders, folder)
    return render(folder)
