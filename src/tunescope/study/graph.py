"""The graph of a study: which stages there are, what each is given, and which it reads.

pretrain        a model that follows every instruction                 -> models/base
answers         what the base says, where the task knows no answers    -> answers.json
tune-MODEL      the base, fine-tuned by a protocol at a learning rate  -> models/MODEL, checkpoints/MODEL
check-MODEL     matrices of a given fine-tune, read once               -> parts/notes-MODEL.json
behave-MODEL    what each model does with each kind of prompt          -> parts/behave-MODEL.parquet
probe-MODEL     what changed inside each model, and the controls       -> parts/probe-MODEL.parquet
attack-MODEL    what gets past each model, and how it looks inside     -> parts/attack-MODEL.parquet
intervene-MODEL what each does with something changed inside           -> parts/intervene-MODEL.parquet
overlap         which directions dW has in common with other models'   -> parts/overlap.parquet
examples        a few prompts with every model's answer                -> examples.json
records         all measurements in two tables                         -> records.parquet, scores.parquet
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope.attacks.base import ATTACKS
from tunescope.config import (
    GROUPS,
    Built,
    Config,
    Given,
    Names,
    Overrides,
    ProbeConfig,
    Study,
    Trained,
    settings_of,
)
from tunescope.errors import InputError, choices
from tunescope.evidence.claims import CLAIMS
from tunescope.interventions.base import INTERVENTIONS
from tunescope.models.compute import device_of, limits
from tunescope.models.families import FAMILIES
from tunescope.probes.view import PROBES
from tunescope.records.names import (
    ATTRIBUTE,
    BASE,
    CONTROLS,
    GIVEN,
    LORA,
    OTHER_LABELS,
    OWN_LABELS,
    SEEN,
    STAGES_MEASURE,
    STYLED,
)
from tunescope.registry import Registry, import_all
from tunescope.study import steps
from tunescope.study.context import ANSWERS, FOLLOWED, ModelRef, build_task
from tunescope.study.sources import Sources
from tunescope.study.stages import Stage
from tunescope.tasks.base import TASKS, Capable, Task
from tunescope.training.protocol import PROTOCOLS

for package in ("training.protocols", "probes.measure", "attacks", "interventions", "tasks.world", "tasks.language"):
    import_all(f"tunescope.{package}")


@dataclass(frozen=True)
class Graph:
    """All stages in an order in which they can run.

    Attributes:
        said: cautions that a reader must know before any number.
        idle: stages that no stage to be run needs.
    """

    stages: tuple[Stage, ...]
    said: tuple[str, ...]
    idle: tuple[str, ...] = ()

    def measured(self, skip: Collection[str]) -> list[Stage]:
        """Those that are to run."""
        left_out = {*skip, *self.idle}
        return [stage for stage in self.stages if stage.group not in left_out]

    def tables(self, measured: Sequence[Stage]) -> Stage:
        """The stage that joins what these have measured."""
        parts = tuple(out for stage in measured for out in stage.outputs if out.startswith("parts/"))
        tables = tuple(part for part in parts if part.endswith(".parquet") and not _aside(part))
        notes = tuple(part for part in parts if part.endswith(".json"))
        outputs = ("records.parquet", "scores.parquet", "notes.json")
        inputs = steps.Join(parts=tables, notes=notes, said=self.said)
        return Stage("records", steps.join, inputs, tuple(measured), outputs)


def graph_of(study: Study, folder: Path, skip: Collection[str] = ()) -> Graph:
    """Checks all that can be checked before any long work, and lays out the stages.

    Raises:
        InputError: an unknown name, settings that do not fit, or a model that is not there or does not match.
    """
    check_names(study, skip)
    return _Layout(with_names(study), folder, skip).graph()


def check_names(study: Study, skip: Collection[str] = ()) -> None:
    """Raises InputError: an unknown protocol, probe, attack or intervention, or settings that it does not have."""
    if unknown := sorted(set(skip) - {*GROUPS}):
        raise InputError(f"Stages {', '.join(unknown)} cannot be left out. {choices(unknown[0], GROUPS)}")
    for tune in study.tunes:
        if isinstance(tune, Trained):
            PROTOCOLS[tune.protocol]
    overridden: tuple[tuple[str, Registry[Any], Overrides], ...] = (
        ("tune", PROTOCOLS, study.tune.settings),
        ("attack", ATTACKS, study.attack.settings),
        ("intervene", INTERVENTIONS, study.intervene.settings),
    )
    for where, registry, overrides in overridden:
        for name in overrides:
            settings_of(registry[name].settings, overrides, name, where)
    named: tuple[tuple[Registry[Any], tuple[str, ...] | None], ...] = (
        (ATTACKS, study.attack.attacks),
        (INTERVENTIONS, study.intervene.interventions),
        (PROBES, study.probe.probes),
    )
    for registry, names in named:
        for name in names or ():
            registry[name]
    TASKS[study.task.type]
    measured = {*STAGES_MEASURE, *(metric for probe in PROBES.values() for metric in probe.measures)}
    for claim in CLAIMS.values():
        if claim.metric not in measured:
            raise InputError(
                f"Claim {claim.name!r}: nobody measures {claim.metric!r}. {choices(claim.metric, sorted(measured))}"
            )


def with_names(study: Study) -> Study:
    """The same, with what it leaves open: the world's seed; and where it asks for all attacks, probes or interventions,
    the names of those that there are now, so that a run does not change with the plug-ins at hand.
    """
    seed = {"seed": study.seed} if getattr(study.task, "seed", 0) is None else {}
    attacks, probes, interventions = study.attack.attacks, study.probe.probes, study.intervene.interventions
    return study.changed(
        task=seed,
        attack={"attacks": sorted(ATTACKS) if attacks is None else attacks},
        probe={"probes": sorted(PROBES) if probes is None else probes},
        intervene={"interventions": sorted(INTERVENTIONS) if interventions is None else interventions},
    )


def base_of(study: Study) -> ModelRef:
    """The base of a study, as it reads the task.

    Raises:
        InputError: it is not there, or cannot read the task.
    """
    return _Layout(study, Path(), (*GROUPS, "tune")).base


class _Layout:
    def __init__(self, study: Study, folder: Path, skip: Collection[str]) -> None:
        self.study, self.folder, self.skip = study, folder, skip
        self.device = device_of(study.compute)
        self.trained = [tune for tune in study.tunes if isinstance(tune, Trained)]
        given = [tune for tune in study.tunes if isinstance(tune, Given)]
        if isinstance(study.base, Built):
            self.base = ModelRef(label=BASE, protocol=BASE, folder="models/base", text="models/base")
            self.given, self.said = dict[str, ModelRef](), tuple[str, ...]()
            self.dtype, self.memory = "float32", tuple[str, ...]()
        else:
            limits(study.base.memory)
            if self.trained and study.base.memory:
                raise InputError("base.memory: a model that is spread over devices cannot be fine-tuned; leave it out")
            if self.trained and study.base.dtype in ("bfloat16", "float16"):
                raise InputError(
                    f"base.dtype: {study.base.dtype}: fine-tuning changes less than its rounding; use auto or float32"
                )
            found = Sources.of(study.task, study.base, given, self.device)
            self.base, self.given, self.said = found.base, found.given, found.cautions
            # Fine-tuning changes less than the rounding of half precision.
            self.dtype = "float32" if self.trained and study.base.dtype == "auto" else study.base.dtype
            self.memory = study.base.memory
        task = self._check_task()
        self.knows_answers, self.capable = task.knows_answers, isinstance(task, Capable)
        self.exact = task.exact
        self.trains = any(INTERVENTIONS[name].trains for name in study.intervene.interventions or ())

    def graph(self) -> Graph:
        study = self.study
        stages: list[Stage] = []

        def add(name: str, function: Any, inputs: Config, after: Sequence[Stage], *outputs: str) -> Stage:
            stages.append(Stage(name, function, inputs, tuple(after), outputs))
            return stages[-1]

        made: dict[str, list[Stage]] = {BASE: []}
        if isinstance(study.base, Built):
            made[BASE].append(
                add(
                    "pretrain",
                    steps.pretrain_base,
                    steps.Pretrain(**self.common(self.base) | {"task": study.task.without_lessons()}, built=study.base),
                    (),
                    *("models/base", "parts/pretrain.parquet"),
                )
            )
        answers = []
        if not self.knows_answers:
            kept = (ANSWERS, "parts/notes-answers.json")
            asked = steps.Answer(**self.common(self.base) | {"seed": 0})  # all prompts: runs of one base share them
            answers = [add("answers", steps.answer_prompts, asked, made[BASE], *kept)]
        refs = {BASE: self.base, **self.given}
        for label, ref in self.given.items():
            check = steps.Check(**self.common(ref))
            made[label] = [add(f"check-{label}", steps.check_pair, check, (), f"parts/notes-{label}.json")]
        references: dict[str, Stage] = {}
        for tune in self.trained:
            label, rate = tune.label, tune.learning_rate
            refs[label] = self.base.model_copy(
                update={
                    "label": label,
                    "protocol": tune.protocol,
                    "learning_rate": rate,
                    "step": study.tune.steps,
                    "lesson": PROTOCOLS[tune.protocol].lesson,
                    "source": {},
                    "folder": f"models/{label}",
                    "base": "",
                }
            )
            tuning = steps.TuneModel(
                **self.common(refs[label], PROTOCOLS, (tune.protocol,)),
                protocol=tune.protocol,
                lr=study.tune.learning_rates[rate],
                lora=tune.lora,
                tune=study.tune.model_copy(update={"learning_rates": {}, "settings": {}}),
                settings=study.tune.settings.get(tune.protocol, {}),
            )
            first = (*made[BASE], *answers)
            before = (*first, *self._reference(add, references, tuning, first))
            outputs = (f"models/{label}", f"checkpoints/{label}", f"parts/tune-{label}.parquet")
            made[label] = [add(f"tune-{label}", steps.tune_model, tuning, before, *outputs)]
        self._measure(add, refs, made, answers)
        given = steps.Examples(**self.common(self.base), number=study.evaluate.examples, models=tuple(refs.values()))
        add("examples", steps.examples, given, [stage for of in made.values() for stage in of], "examples.json")
        reads = self.trained or "attack" not in self.skip or ("intervene" not in self.skip and self.trains)
        idle = () if reads else ("answers",)
        return Graph(tuple(stages), self.said, idle)

    def _reference(
        self, add: Any, made: dict[str, Stage], tuning: steps.TuneModel, after: Sequence[Stage]
    ) -> list[Stage]:
        """The stage in which the base reads what a protocol sets a model against: one for all its learning rates."""
        name, budget = tuning.protocol, tuning.tune
        if PROTOCOLS[name].reference != "logps":
            return []
        if name not in made:
            model = tuning.model.model_copy(update={"label": f"reference-{name}", "learning_rate": "", "folder": ""})
            common = self.common(model, PROTOCOLS, (name,))
            unsafe = PROTOCOLS[name].unsafe_of(budget.batch, budget.unsafe_share)
            given = steps.Reference(**common, protocol=name, steps=budget.steps, batch=budget.batch, unsafe=unsafe)
            made[name] = add(f"reference-{name}", steps.keep_reference, given, after, steps.reference_file(name))
        return [made[name]]

    def _measure(
        self, add: Any, refs: Mapping[str, ModelRef], made: Mapping[str, list[Stage]], answers: list[Stage]
    ) -> None:
        study = self.study
        before = {label: [*made[BASE], *([] if label == BASE else stages)] for label, stages in made.items()}
        probes: dict[str, Stage] = {}

        def parts(group: str, label: str, *more: str) -> tuple[str, ...]:
            return (f"parts/{group}-{label}.parquet", f"parts/scores-{group}-{label}.parquet", *more)

        # Scores of the base with other labels are what a control with such labels is set against.
        bases = {base.label: base for base in map(self._base_of, refs.values())}
        labelled = {label: base for label, base in bases.items() if label != BASE}
        before |= dict.fromkeys(labelled, made[BASE])
        behaves: dict[str, Stage] = {}
        for label, ref in {**bases, **refs}.items():
            evaluate = {name: getattr(study.evaluate, name) for name in ("prompts", "prompts_per_point", "strengths")}
            given = steps.Behave(**self.common(ref), **evaluate)
            base = given.base.label
            after = [*before[label], *([behaves[base]] if self.capable and label != base else [])]
            more = (f"parts/said-{base}.safetensors",) if self.capable and label == base else ()
            behaves[label] = add(f"behave-{label}", steps.behave, given, after, *parts("behave", label, *more))
        for label, ref in {**bases, **refs}.items():
            own = ProbeConfig(**study.probe.model_dump(exclude={"overlap_directions"}))
            inputs = steps.Probing(**self.common(ref, PROBES, study.probe.probes), probe=own)
            base = inputs.base.label
            after = [*before[label], *([probes[base]] if label != base else [])]
            more = (f"parts/inputs-{base}.safetensors",) if label == base else ()
            probes[label] = add(f"probe-{label}", steps.probe_model, inputs, after, *parts("probe", label, *more))
        strengths, followed = study.evaluate.strengths, list[Stage]()
        for label, ref in refs.items():
            few = _only(study.probe, "prompts", "few_prompts")
            attack = steps.Attacking(
                **self.common(ref, ATTACKS, study.attack.attacks), attack=study.attack, probe=few, strengths=strengths
            )
            after = [*before[label], *answers, *(followed if ref.judged_as(refs[BASE]) else ())]
            tells = label == BASE and not self.exact
            outputs = parts("attack", label, *([FOLLOWED] if tells else []))
            made_by = add(f"attack-{label}", steps.attack_model, attack, after, *outputs)
            followed += [made_by] if tells else []
        for label, ref in refs.items():
            if label == BASE:
                continue
            others = _beside(refs, label, (GIVEN, SEEN, STYLED, ATTRIBUTE))
            intervene = steps.Intervening(
                **self.common(ref, INTERVENTIONS, study.intervene.interventions),
                intervene=study.intervene,
                probe=_only(study.probe, "few_prompts"),
                strongest=max(strengths),
                others=others,
            )
            after = [*before[label], *(stage for name in others.values() for stage in made[name.label])]
            after += answers if self.trains else []
            add(f"intervene-{label}", steps.intervene, intervene, after, *parts("intervene", label))
        tuned = {label: ref for label, ref in refs.items() if label != BASE}
        if len(tuned) > 1:
            methods = {label: _beside(refs, label, (GIVEN, *CONTROLS)).values() for label in tuned}
            overlapping = steps.Overlapping(
                **self.common(self.base),
                models=tuned,
                methods={
                    label: tuple(of.label for of in others if of.label.endswith(LORA) == label.endswith(LORA))
                    for label, others in methods.items()
                },
                directions=study.probe.overlap_directions,
            )
            after = [stage for of in made.values() for stage in of]
            outputs = ("parts/overlap.parquet", "parts/scores-overlap.parquet")
            add("overlap", steps.overlap, overlapping, after, *outputs)

    def _base_of(self, ref: ModelRef) -> ModelRef:
        """The base, measured with the labels that the model is measured with."""
        if ref.lesson not in OWN_LABELS:
            return self.base
        label = f"{BASE}{OTHER_LABELS}{ref.lesson}"
        return self.base.model_copy(update={"label": label, "protocol": label, "lesson": ref.lesson})

    def common(self, ref: ModelRef, registry: Registry[Any] | None = None, names: Names | None = ()) -> dict[str, Any]:
        code = tuple(digest for each in names or () if registry is not None and (digest := registry.code(each)))
        code += tuple(digest for family in FAMILIES if (digest := FAMILIES.code(family)))
        task = TASKS.code(self.study.task.type)
        return {
            "seed": self.study.seed,
            "task": self.study.task.taught(ref.lesson),
            "model": ref,
            "base": self._base_of(ref),
            "compute": self.study.compute,
            "dtype": self.dtype,
            "memory": self.memory,
            "code": (*code, *([task] if task else [])),
        }

    def _check_task(self) -> Task:
        """The task as the base reads it; of models that are built, it must be one that they can be pretrained on."""
        study = self.study
        if isinstance(study.base, Built):
            task: Task = TASKS[study.task.type](study.task, self.device, None)
            if not hasattr(task, "pretraining"):
                raise InputError(
                    f"base.type: task {study.task.type} has nothing to pretrain on; name a model, "
                    "as in base.type=checkpoint base.name=FOLDER"
                )
        else:
            task = build_task(study.task, self.base, self.folder, self.device)
            for lesson in {PROTOCOLS[tune.protocol].lesson for tune in self.trained} - {"refusal"}:
                build_task(study.task.taught(lesson), self.base, self.folder, self.device)
        if unknown := [name for name in study.intervene.kinds or () if name not in task.kinds]:
            raise InputError(f"intervene.kinds: unknown kind {unknown[0]!r}. {choices(unknown[0], task.kinds)}")
        checks: tuple[tuple[str, Registry[Any], Names | None, Overrides], ...] = (
            ("tune", PROTOCOLS, tuple(dict.fromkeys(tune.protocol for tune in self.trained)), study.tune.settings),
            ("attack", ATTACKS, study.attack.attacks, study.attack.settings),
            ("intervene", INTERVENTIONS, study.intervene.interventions, study.intervene.settings),
        )
        for group, registry, names, overrides in checks:
            for name in () if group in self.skip else names or ():
                if registry[name].check:
                    registry[name].check(settings_of(registry[name].settings, overrides, name, group), task, study.base)
        return task


def _aside(part: str) -> bool:
    """Records of the base with other labels: their scores alone are read, as what a control is set against."""
    return f"-{BASE}{OTHER_LABELS}" in part and "/scores-" not in part


def _beside(refs: Mapping[str, ModelRef], label: str, unlike: Collection[str]) -> dict[str, ModelRef]:
    """The other fine-tunes at the learning rate of one, by protocol, but for those of some protocols."""
    return {
        other.protocol + (LORA if name.endswith(LORA) else ""): other
        for name, other in refs.items()
        if name not in (BASE, label) and other.learning_rate == refs[label].learning_rate
        if other.protocol not in unlike
    }


def _only(probe: ProbeConfig, *names: str) -> ProbeConfig:
    """Of the probes' settings those that another stage reads; the rest has its default, and decides nothing there."""
    return ProbeConfig(**{name: getattr(probe, name) for name in (*names, "fit_prompts", "rows")})
