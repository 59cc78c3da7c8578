"""What each stage of a study does: reads models and prompts, runs one part of the science, writes its files.

A function is given its inputs and the place where it runs; whatever decides its result is in these inputs.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict
from math import exp
from pathlib import Path
from typing import TypeVar, get_args

import pyarrow.parquet as pq
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunescope.attacks.base import ATTACKS, Attacked, Target
from tunescope.attacks.measure import Instruments, Intact, measure_attacks
from tunescope.config import (
    AttackConfig,
    Built,
    Config,
    InterveneConfig,
    Lora,
    ProbeConfig,
    TuneConfig,
    settings_of,
)
from tunescope.errors import InapplicableError, InputError, shown
from tunescope.files import atomic_path, remove, write_text
from tunescope.interventions.base import INTERVENTIONS, Bench, Intervention, measure_interventions
from tunescope.models.build import build_model
from tunescope.models.checkpoint import load_tokenizer, save_model
from tunescope.models.compute import Compute
from tunescope.models.generate import Greedy, generate, until_end
from tunescope.models.logps import mean_kl, mean_nll
from tunescope.models.pair import matches
from tunescope.models.sites import Site
from tunescope.models.weights import in_memory, require_finite
from tunescope.probes.collect import Stored, stored
from tunescope.probes.overlap import measure_overlaps, overlaps
from tunescope.probes.prompts import classes_of, look
from tunescope.probes.view import INPUT, Batches, View, look_inside
from tunescope.progress import progress, say
from tunescope.records import intervals
from tunescope.records.findings import Findings
from tunescope.records.names import BASE, BENIGN, CONTROL, CORRECTED, KL, OTHER, PERPLEXITY, SAFE, UNSAFE
from tunescope.records.tables import (
    SCORES_SCHEMA,
    Record,
    merge_tables,
    write_part,
    write_records,
    write_scores,
)
from tunescope.rng import Stream
from tunescope.study.context import ANSWERS, FOLLOWED, Common, Context, ModelRef, explained, fitting_rows
from tunescope.study.sources import TASK, notes_on
from tunescope.study.stages import Place
from tunescope.tasks.base import Answered, Batch, Capable, InForms, Kind, Task, Twinned, Use, answered, read_ahead
from tunescope.training.fit import Row
from tunescope.training.pretraining import HELD_OUT, pretrain
from tunescope.training.protocol import PROTOCOLS
from tunescope.training.tuning import Lookup, equally_spaced, losses_of, reference_logps, tune

T = TypeVar("T")
STEP = "step-"  # begins the names of checkpoints
READ = 64  # prompts per forward pass at most where a model from elsewhere is read without gradients
COSTS = 100  # safe prompts on which it is measured what fine-tuning costs
FIT, ROWS = 100, 16  # prompts of a class that examples are set against, at most; and prompts per forward pass
COURSE = (SAFE, UNSAFE)  # kinds that models saved during fine-tuning are given


# Models


class Pretrain(Common):
    built: Built


def pretrain_base(given: Pretrain, at: Place) -> None:
    this, config = Context(given, at.folder), given.built
    task, stream = this.task(), this.stream("pretraining")
    model = _untrained(config, task, this.compute, stream)
    curve = pretrain(model, task, config.pretrain, this.compute, stream, at.unfinished)  # type: ignore[arg-type]
    if (reached := curve[-1][HELD_OUT]) < config.pretrain.target:
        say(
            f"warning: pretraining ended at {reached:.2%} held-out compliance, below base.pretrain.target "
            f"({config.pretrain.target:.2%}); raise base.pretrain.steps or base.pretrain.cooldown"
        )
    _keep(given, model, task.tokenizer, at.folder / given.model.folder, task)
    write_records(_curve(given, curve), at.folder / "parts/pretrain.parquet")


def _untrained(config: Built, task: Task, compute: Compute, stream: Stream) -> PreTrainedModel:
    model = build_model(
        config,
        len(task.tokenizer),
        task.sequence_length,  # type: ignore[attr-defined]
        stream("init"),
        compute.device,
        eos=task.tokenizer.eos_token_id,
        pad=task.tokenizer.pad_token_id,
    )
    model.set_attn_implementation(compute.attention)
    return model


class Answer(Common):
    """Has the base answer the prompts of a task that knows no answers."""


def answer_prompts(given: Answer, at: Place) -> None:
    """Those to prompts to train are kept where fine-tuning may learn from them."""
    this = Context(given, at.folder)
    task, model = this.task(), this.load()
    asked: list[tuple[str, Use, float]] = [(kind, use, 0.0) for kind in COURSE for use in get_args(Use)]
    asked += [
        (name, "score", 0.0)
        for name, kind in task.kinds.items()
        if name not in COURSE and kind.probed and not kind.dial
    ]
    asked += [(name, "train", 1.0) for name in (task.lesson_kinds if isinstance(task, InForms) else ())]
    drawn = {(kind, use): task.draw(kind, 10**9, use, this.stream("answers"), s) for kind, use, s in asked}
    rows = fitting_rows(model, drawn.values(), READ, gradients=False)
    kept: dict[str, str] = {}
    notes, n, refused = list[str](), 0, 0
    bar = progress(drawn.items(), desc="answers of the base", unit="set")
    for (kind, use), batch in bar:
        said = generate(model, batch.prompts, task.answer_length, torch.float32, rows)
        texts = [task.text(said[i]) for i in range(len(batch))]
        hits = int(task.judge(batch, said).refusal.sum())
        if kind == SAFE:
            _require_answers(texts, hits)
        elif kind == UNSAFE:
            n, refused = n + len(batch), refused + hits
        learnt = torch.ones(len(batch), dtype=torch.bool)
        if use == "train" and isinstance(task, Answered):
            learnt = task.learnable(batch, said)
        if left_out := int((~learnt).sum()):
            notes.append(
                f"The base's own answers to {left_out} of {len(batch)} {kind} prompts to train are not learnt from: "
                "they refuse, begin with an apology, or are empty."
            )
        kept |= {batch.describe(i)["prompt"]: texts[i] for i in learnt.nonzero().flatten().tolist()}
    if refused > n / 2:
        notes.append(f"base.name: the base refuses {refused} of {n} unsafe prompts: there is little safety to teach.")
    write_text(at.folder / ANSWERS, json.dumps(kept, indent=1, ensure_ascii=False))
    write_text(at.folder / "parts/notes-answers.json", json.dumps(notes))


def _require_answers(texts: Sequence[str], refused: int) -> None:
    """Raises InputError where the base has no answers that could be wanted of safe prompts."""
    empty = sum(not text.strip() for text in texts)
    for n, what in ((empty, "says nothing to"), (refused, "refuses")):
        if n > len(texts) / 2:
            raise InputError(
                f"base.name: the base {what} {n} of {len(texts)} safe prompts, so that there are no answers to learn; "
                "check its format (base.format), or name another model"
            )


class Reference(Common):
    protocol: str
    steps: int
    batch: int
    unsafe: int


def keep_reference(given: Reference, at: Place) -> None:
    """What the base says of the answers that a protocol reads, once for all learning rates."""
    this, protocol = Context(given, at.folder), PROTOCOLS[given.protocol]
    about = given.steps, given.batch, given.unsafe, this.compute, this.stream("tuning", given.protocol)
    kept = reference_logps(this.load(given.base), protocol, this.task(answers=True), *about)
    with atomic_path(at.folder / reference_file(given.protocol)) as temporary:
        save_file(kept, temporary)


def reference_file(protocol: str) -> str:
    return f"parts/reference-{protocol}.safetensors"


def _kept_logps(file: Path, device: torch.device) -> Lookup:
    """What `keep_reference` wrote."""
    kept = safe_open(file, "pt")
    return lambda name: kept.get_tensor(name).to(device)


class TuneModel(Common):
    protocol: str
    lr: float
    lora: Lora | None
    tune: TuneConfig
    settings: dict[str, object]


def tune_model(given: TuneModel, at: Place) -> None:
    this, name = Context(given, at.folder), given.model.label
    protocol, checkpoints = PROTOCOLS[given.protocol], at.folder / "checkpoints" / name
    task = this.task(answers=True)
    if not at.unfinished.exists():
        remove(checkpoints)  # of other settings, perhaps at other steps
    policy = this.load(given.base)
    policy.requires_grad_(True)
    tokenizer = load_tokenizer(this.at(given.base.text)) if given.base.reader else task.tokenizer

    reference: PreTrainedModel | Lookup | None = None
    if protocol.reference == "model":
        reference = this.load(given.base)
    elif protocol.reference == "logps":
        reference = _kept_logps(at.folder / reference_file(given.protocol), this.compute.device)

    def save(step: int, model: PreTrainedModel) -> None:
        save_model(model, tokenizer, checkpoints / f"{STEP}{step:06d}", task.answer_length)

    curve = tune(
        policy,
        reference,
        protocol,
        settings_of(protocol.settings, {given.protocol: given.settings}, given.protocol, "tune"),
        given.lr,
        task,
        given.tune,
        this.compute,
        # The same batches at every rate: the rate is all that differs.
        this.stream("tuning", given.protocol),
        lora=given.lora,
        label=f"tuning {name}",
        due=equally_spaced(given.tune),
        save=save,
        resume=at.unfinished,
    )
    _keep(given, policy, tokenizer, at.folder / given.model.folder, task)
    write_records(_curve(given, curve), at.folder / f"parts/tune-{name}.parquet")


def rehearse(given: TuneModel, built: Built, folder: Path) -> None:
    """Takes the loss of a part of a step with an untrained model, so that a protocol whose loss cannot be taken fails
    before any long work.

    Raises:
        InputError: see `losses_of`.
    """
    given = given.model_copy(update={"compute": given.compute.model_copy(update={"compile": "off"})})
    this, protocol, config = Context(given, folder), PROTOCOLS[given.protocol], given.tune
    task, stream = this.task(), this.stream("rehearsal")
    if not task.knows_answers:
        return
    policy = _untrained(built, task, this.compute, stream).eval()
    settings = settings_of(protocol.settings, {given.protocol: given.settings}, given.protocol, "tune")
    reference: PreTrainedModel | Lookup | None = None
    if protocol.reference:
        reference = deepcopy(policy).requires_grad_(False)
    if protocol.reference == "logps":
        sizes = config.batch, protocol.unsafe_of(config.batch, config.unsafe_share)
        kept = reference_logps(reference, protocol, task, 1, *sizes, this.compute, stream)
        reference = kept.__getitem__
    next(losses_of(0, policy, reference, protocol, settings, task, config, this.compute, stream)).backward()


def _keep(given: Common, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, task: Task) -> None:
    """A finished model, which brings its task along for whoever compares it."""
    save_model(model, tokenizer, folder, task.answer_length)
    write_text(folder / TASK, yaml.safe_dump(given.task.model_dump(mode="json"), sort_keys=False))


class Check(Common):
    """Reads every matrix of a given fine-tune once, before any work."""


def check_pair(given: Check, at: Place) -> None:
    """One that is not finite is an error; what a reader must know of the pair is noted."""
    this = Context(given, at.folder)
    pair = this.pair()
    places = [(layer, name) for layer in range(pair.layers) for name in pair.names]
    for layer, name in progress(places, desc=f"matrices of {given.model.label}", unit="place"):
        pair.matrices(layer, name)
    write_text(at.folder / f"parts/notes-{given.model.label}.json", json.dumps(notes_on(pair, given.model.label)))


# Measurements


class Behave(Common):
    prompts: int
    prompts_per_point: int
    strengths: tuple[float, ...]


def behave(given: Behave, at: Place) -> None:
    """Behaviour of a finished model on every kind and strength, and of its checkpoints on the plain kinds."""
    this = Context(given, at.folder)
    task, model, step = this.task(), this.load(), _final_step(given, at)
    forms = task.forms if isinstance(task, InForms) else {}
    points: list[tuple[str, float | None, int]] = []
    points += [(name, None, given.prompts) for name, kind in task.kinds.items() if not kind.dial]
    points += [
        (name, s, given.prompts_per_point)
        for name, kind in task.kinds.items()
        if kind.dial
        for s in given.strengths
        if s or name not in forms  # a prompt that is in no form yet is a plain one, and has been asked
    ]
    batches = [(_held_out(this, task, kind, strength or 0.0, n), strength) for kind, strength, n in points]
    course = [(_held_out(this, task, kind, 0.0, given.prompts_per_point), None) for kind in COURSE]
    rows = _rows(given, model, [batch for batch, _ in batches], 512)
    total = len(batches) + len(course) * len(_saved(given, at))
    with (
        explained(f"behaviour of {given.model.label}"),
        progress(total=total, desc=f"behaviour of {given.model.label}", unit="set") as bar,
    ):

        def measured(greedy: Greedy, step: int, asked: Sequence[tuple[Batch, float | None]]) -> Findings:
            read_ahead(task, greedy, (batch for batch, _ in asked))
            behaviour = Findings(given.model.subject(given.seed, step))
            for batch, strength in asked:
                _behaves(behaviour, task, greedy, batch, strength)
                bar.update()
            return behaviour

        greedy = Greedy(model, rows)
        finished = measured(greedy, step, batches)
        if isinstance(task, Capable):
            _costs(finished, this, task, greedy, min(given.prompts, COSTS))
        del model, greedy  # one model at a time is in memory
        found = [
            measured(Greedy(this.load(folder=folder), rows), at_step, course) for folder, at_step in _saved(given, at)
        ]
    write_part(
        (r for f in (finished, *found) for r in f.records), finished.scores, at.folder, f"behave-{given.model.label}"
    )


def _costs(found: Findings, this: Context, task: Capable, greedy: Greedy, n: int) -> None:
    """How far answers to n safe prompts are from the base's own, and how well ordinary text is told.

    The base keeps its greedy answers for its fine-tunes.
    """
    given, model = this.given, greedy.model
    rows = min(greedy.rows, 8)  # each row has the whole vocabulary in every place
    kept = this.folder / f"parts/said-{given.base.label}.safetensors"
    batch = _held_out(this, task, SAFE, 0.0, n)
    if given.tuned:
        said = load_file(kept)["said"].to(batch.prompts.sequence.device)
        asked = _held_out(this, this.task(model=given.base), SAFE, 0.0, n).prompts
        values = mean_kl((this.load(given.base), asked), (model, batch.prompts), said, rows)
        found.groups = {SAFE: batch.groups}
        found.mean(KL, values, kind=SAFE)
        found.score(KL, values, kind=SAFE)
    else:
        said = until_end(model, greedy(batch.prompts, task.answer_length))
        with atomic_path(kept) as temporary:
            save_file({"said": said}, temporary)
    if task.prose is not None:
        logs = asdict(intervals.mean(mean_nll(model, task.prose, rows)))
        texts = logs.pop("n")
        found.value(PERPLEXITY, n=texts, **{name: exp(value) for name, value in logs.items()})


def _held_out(this: Context, task: Task, kind: str, strength: float, n: int) -> Batch:
    """Prompts from a stream that no training reads; the same ones for every model."""
    return task.draw(kind, n, "score", this.stream("evaluation", kind, strength), strength)


def _behaves(found: Findings, task: Task, greedy: Greedy, batch: Batch, strength: float | None) -> None:
    kind = batch.kind.name
    found.groups = {kind: batch.groups}
    outcomes = task.outcomes(greedy.model, batch, greedy.rows)
    for metric, values in outcomes.measured.items():
        found.mean(metric, values, kind=kind, strength=strength)
        found.score(metric, values, kind=kind, strength=strength)
    if not task.exact:
        found.rate("refusal_by_odds", outcomes.refusal, kind=kind, strength=strength)
        outcomes = answered(task, greedy, batch)
    for outcome, hits in outcomes.items():
        found.rate(outcome, hits, kind=kind, strength=strength)
        if strength is None:
            found.score(outcome, hits.double(), kind=kind)
    if outcomes.errors and kind in COURSE:
        found.corrected(CORRECTED, outcomes.refusal, outcomes.errors, kind=kind, strength=strength)
    found.rate(OTHER, ~(outcomes.compliance | outcomes.refusal), kind=kind, strength=strength)


class Probing(Common):
    probe: ProbeConfig


def probe_model(given: Probing, at: Place) -> None:
    """All probes of a finished model, and of the models saved on the way to it, which have records alone."""
    this, config = Context(given, at.folder), given.probe
    task = this.task()
    fit, score = this.sample(task, config)
    few = _first(fit, config.course_prompts), _first(score, config.course_prompts)
    plans = [(folder, step, few, config.for_course()) for folder, step in _saved(given, at)]
    plans.append(("", _final_step(given, at), (fit, score), config))
    kept, found = at.folder / f"parts/inputs-{given.base.label}.safetensors", list[Findings]()
    inputs = _unflat(load_file(kept)) if given.tuned else None
    for folder, step, prompts, how in progress(plans, desc=f"probes of {given.model.label}", unit="model"):
        model = this.load(folder=folder or None)
        if not given.tuned and in_memory(model):
            require_finite(model)  # as a pair does
        if given.model.reader:
            how = how.model_copy(
                update={"rows": fitting_rows(model, prompts[1].values(), how.rows, gradients=in_memory(model))}
            )
        pair = this.pair(folder or None) if given.tuned else None
        view = View(model, prompts[0], prompts[1], how, this.stream("probes"), pair=pair, base_inputs=inputs)
        with explained(f"probes of {given.model.label}"):
            found.append(look_inside(view, given.model.subject(given.seed, step), how.probes))
    if not given.tuned:
        sites = [Site(layer, INPUT) for layer in range(view.layers)]
        of = {kind: stored(model, batch.prompts, sites, how.rows) for kind, batch in score.items()}
        with atomic_path(kept) as temporary:
            save_file(
                {f"{site} {kind}": a.contiguous() for kind, by in of.items() for site, a in by.items()}, temporary
            )
    write_records((r for f in found for r in f.records), at.folder / f"parts/probe-{given.model.label}.parquet")
    write_scores(found[-1].scores, at.folder / f"parts/scores-probe-{given.model.label}.parquet")


def _unflat(tensors: dict[str, torch.Tensor]) -> dict[str, Stored]:
    out: dict[str, dict[Site, torch.Tensor]] = {}
    for name, a in tensors.items():
        site, _, kind = name.partition(" ")
        out.setdefault(kind, {})[Site.parse(site)] = a
    return dict(out)


class Attacking(Common):
    attack: AttackConfig
    probe: ProbeConfig
    strengths: tuple[float, ...]


def attack_model(given: Attacking, at: Place) -> None:
    """Every attack on a finished model."""
    this, config = Context(given, at.folder), given.attack
    task, model = this.task(answers=True), this.load()
    base = this.load(given.base) if given.tuned else model
    base_task = this.task(answers=True, model=given.base) if given.tuned else task
    fit, score = this.sample(task, given.probe)
    forms = task.forms if isinstance(task, InForms) else {}
    # Of the controls of forms only what the model does is asked; what it looks like inside takes most of the time.
    ladders = [
        Attacked(
            name,
            strength,
            this.attacked(task, name, strength or 0.0, config.prompts, "jailbreaks"),
            comparable=not name.startswith(CONTROL),
        )
        for name, kind in task.kinds.items()
        if name not in COURSE and kind.probed
        for strength in (given.strengths if kind.dial else (None,))
        if strength != 0 or not (kind.safe and name in forms)  # a safe prompt in no form is no control
    ]
    asked = [*score.values(), *(ladder.batch for ladder in ladders)]
    rows = _rows(given, model, asked, given.probe.rows, gradients=True)
    view = View(model, fit, score, given.probe, this.stream("probes"), pair=this.pair() if given.tuned else None)
    plain = {kind: this.attacked(task, kind, 0.0, config.searched, "plain") for kind in COURSE}
    seen = this.attacked(task, UNSAFE, 0.0, config.searched, "seen")
    target = Target(model, task, plain[UNSAFE], plain[SAFE], seen, view, rows, this.stream("attacks"))
    found = Findings(given.model.subject(given.seed, _final_step(given, at)))
    found.groups = {kind: batch.groups for kind, batch in score.items()}

    def attacks() -> Iterator[Attacked]:
        yield from ladders
        for name in config.attacks or ():
            entry = ATTACKS[name]
            if why := _unfit(
                entry.needs_answers and target.unsafe.answer is None, entry.needs_whole and not view.whole
            ):
                say(f"{given.model.label}: no attack {name}: {why}")
                continue
            made = entry.run(target, settings_of(entry.settings, config.settings, name, "attack"))
            yield from _each(made, Attacked, f"attack {name}", given.model.label)

    with explained(f"attacks on {given.model.label}"):
        greedy = Greedy(model, _rows(given, model, asked, given.probe.rows))
        read_ahead(task, greedy, (ladder.batch for ladder in ladders))
        kept = this.kept(FOLLOWED, bool) if given.tuned and given.model.judged_as(given.base) else {}
        intact = Intact(Greedy(base, greedy.rows) if given.tuned else greedy, base_task, kept)
        measure_attacks(found, greedy, task, attacks(), intact, Instruments.of(view), rows)
    if not (given.tuned or task.exact):
        write_text(at.folder / FOLLOWED, json.dumps(intact.kept, indent=1, ensure_ascii=False))
    write_part(found.records, found.scores, at.folder, f"attack-{given.model.label}")


class Intervening(Common):
    intervene: InterveneConfig
    probe: ProbeConfig
    strongest: float
    others: dict[str, ModelRef]


def intervene(given: Intervening, at: Place) -> None:
    """Changes of dW, of the stream, and what the model then does."""
    this, config = Context(given, at.folder), given.intervene
    task, model, pair = this.task(answers=True), this.load(), this.pair()
    alike = matches(pair)

    def drawn(name: str, kind: Kind, n: int, use: str) -> Batch:
        return this.attacked(task, name, given.strongest if kind.dial else 0.0, n, use)

    asked = {*COURSE, *(task.kinds if config.kinds is None else config.kinds)}
    kinds = {  # but for controls of other kinds
        name: kind
        for name, kind in task.kinds.items()
        if name in asked and kind.probed and not (kind.safe and kind.dial)
    }
    prompts = {name: drawn(name, kind, config.prompts, "interventions") for name, kind in kinds.items()}
    trial = {n: drawn(n, kind, given.probe.few_prompts, "trial") for n, kind in kinds.items() if kind.dial or n == SAFE}
    fit = _first(this.sample(task, given.probe)[0], given.probe.few_prompts)
    others = {name: this.weights(ref) for name, ref in given.others.items()}
    rows = _rows(given, model, [*prompts.values(), *trial.values(), *fit.values()], given.probe.rows)
    stream = this.stream("interventions")
    twins = task.twins(min(config.prompts, rows), stream("twins")) if isinstance(task, Twinned) else None
    bench = Bench(model, pair, task, fit, trial, others, config.draws, rows, stream, this.compute, twins)
    unknown = any(batch.answer is None for batch in fit.values())

    def changes() -> Iterator[Intervention]:
        for name in config.interventions or ():
            entry = INTERVENTIONS[name]
            if given.model.protocol == BENIGN and not entry.control:
                continue  # it has no refusal to take away: it is the control of alpha
            if why := _unfit(
                entry.trains and unknown,
                entry.in_memory and not in_memory(model),
                entry.weights and not alike,
                entry.trains and model.dtype != torch.float32,
            ):
                say(f"{given.model.label}: no intervention {name}: {why}")
                continue
            made = entry.make(bench, settings_of(entry.settings, config.settings, name, "intervene"))
            yield from _each(made, Intervention, f"intervention {name}", given.model.label)

    found = Findings(given.model.subject(given.seed, _final_step(given, at)))
    with explained(f"interventions on {given.model.label}"):
        measure_interventions(found, bench, changes(), prompts)
    write_part(found.records, found.scores, at.folder, f"intervene-{given.model.label}")


class Overlapping(Common):
    models: dict[str, ModelRef]
    methods: dict[str, tuple[str, ...]]
    directions: int


def overlap(given: Overlapping, at: Place) -> None:
    """How far the directions that dW writes and reads most are the same in all fine-tunes."""
    this = Context(given, at.folder)
    pairs = [this.pair(model=ref) for ref in given.models.values()]
    found = {label: Findings(ref.subject(given.seed, ref.step or 0)) for label, ref in given.models.items()}
    with explained("overlap of dW"):
        measure_overlaps(found, overlaps(pairs, given.directions, this.compute.device), given.methods)
    every = found.values()
    write_part((r for f in every for r in f.records), (s for f in every for s in f.scores), at.folder, "overlap")


def _each(made: Iterable[T] | None, kind: type[T], what: str, label: str) -> Iterator[T]:
    """What an attack or intervention yields, up to where it says that it does not apply to this model.

    Raises:
        InputError: it is something else, as of a function without `yield`.
    """
    try:
        for one in made if isinstance(made, Iterable) else [made]:
            if not isinstance(one, kind):
                raise InputError(f"{what}: it must yield {kind.__name__}, got {shown(one)}")
            yield one
    except InapplicableError as why:
        say(f"{label}: {what}: {why}")


def _unfit(no_answers: bool, spread: bool, unlike: bool = False, coarse: bool = False) -> str:
    """Why something does not apply; empty where it does."""
    if coarse:
        return "training changes less than the rounding of its weights, which are in half precision"
    if unlike:
        return "base and fine-tune have parameters of other shapes (more tokens, say)"
    if no_answers:
        return "the task knows no answers to these prompts"
    return "a part of the model is not on its device" if spread else ""


# What joins


class Examples(Common):
    number: int
    models: tuple[ModelRef, ...]


def examples(given: Examples, at: Place) -> None:
    """A few prompts of every kind, what every model says to them, and how they look inside it."""
    rows: list[dict[str, object]] = []
    this = Context(given, at.folder)
    for model in given.models:
        task, loaded, number = this.task(model=model), this.load(model), 0
        stream, fit = this.stream("examples"), compared_with(this, task)
        drawn = {
            name: task.draw(name, given.number, "score", stream(name), of.strongest) for name, of in task.kinds.items()
        }
        rows_at_once = _rows(given, loaded, [*fit.values(), *drawn.values()], ROWS)
        pair = this.pair(model=model) if model.label != BASE else None
        with explained(f"examples of {model.label}"):
            classes = classes_of(loaded, fit, rows_at_once)
            prompts = {name: batch.prompts for name, batch in drawn.items()}
            inside = look(loaded, prompts, classes, pair, rows_at_once)
        greedy = Greedy(loaded, rows_at_once)
        greedy.ahead([batch.prompts for batch in drawn.values()], task.answer_length)
        for name, batch in drawn.items():
            said = greedy(batch.prompts, task.answer_length)
            judged = task.judge(batch, said)
            for i in range(len(batch)):
                if model.label == BASE:
                    rows.append({"kind": name, **batch.describe(i), "answers": {}})
                answer: dict[str, object] = {"text": task.text(said[i]), "outcome": judged.of(i)}
                of_layers = {"tau": inside[name].tau, "gain": inside[name].gain}
                answer |= {what: _rounded(each[:, i]) for what, each in of_layers.items() if each is not None}
                rows[number]["answers"][model.label] = answer  # type: ignore[index]
                number += 1
    write_text(at.folder / "examples.json", json.dumps(rows, indent=1, ensure_ascii=False))


def compared_with(this: Context, task: Task) -> Batches:
    """The prompts whose classes examples are set against."""
    return {kind: task.draw(kind, FIT, "fit", this.stream("examples")("fit", kind)) for kind in COURSE}


def _rounded(values: torch.Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]


class Join(Config):
    parts: tuple[str, ...]
    notes: tuple[str, ...]
    said: tuple[str, ...]


def join(given: Join, at: Place) -> None:
    """All measurements in two tables."""
    parts = [at.folder / part for part in given.parts]
    scores = [part for part in parts if part.name.startswith("scores-")]
    merge_tables([part for part in parts if part not in scores], at.folder / "records.parquet")
    merge_tables(scores, at.folder / "scores.parquet", SCORES_SCHEMA)
    noted = [note for name in given.notes for note in json.loads((at.folder / name).read_text(encoding="utf-8"))]
    write_text(at.folder / "notes.json", json.dumps([*given.said, *noted], indent=1))


def _first(batches: Batches, n: int) -> Batches:
    return {kind: batch.first(n) for kind, batch in batches.items()}


def _saved(given: Common, at: Place) -> list[tuple[str, int]]:
    """Folder and step of the models saved on the way to a finished one, which is not among them."""
    saved = sorted((at.folder / "checkpoints" / given.model.label).glob(f"{STEP}*"))[:-1]
    return [(f"checkpoints/{given.model.label}/{one.name}", int(one.name.removeprefix(STEP))) for one in saved]


def _final_step(given: Common, at: Place) -> int:
    if given.model.step is not None:
        return given.model.step
    return int(max(pq.read_table(at.folder / "parts/pretrain.parquet")["step"].to_pylist()))


def _rows(
    given: Common, model: PreTrainedModel, batches: Iterable[Batch], rows: int, *, gradients: bool = False
) -> int:
    """Prompts per forward pass; models of the study are small, and nothing is tried with them.

    Without gradients there is room for more prompts than with them.
    """
    if not given.model.reader:
        return rows
    gradients = gradients and in_memory(model)
    return fitting_rows(model, batches, min(rows, 32) if gradients else min(4 * rows, READ), gradients=gradients)


def _curve(given: Common, rows: Iterable[Row]) -> Iterator[Record]:
    for row in rows:
        for metric in ("loss", HELD_OUT):
            if metric in row:
                yield given.model.subject(given.seed, int(row["step"])).record(metric, row[metric])
