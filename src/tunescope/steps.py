"""What each stage of a study does: reads models and prompts, runs one part of the science, writes its files."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from tunescope.attacks.attacks import Attacked, prefilled, searched
from tunescope.config import Study
from tunescope.errors import InputError
from tunescope.evidence.records import (
    SCORES_SCHEMA,
    Record,
    Subject,
    merge_tables,
    write_part,
    write_records,
    write_scores,
)
from tunescope.evidence.verdicts import BENIGN
from tunescope.files import remove, write_text
from tunescope.measure.activations import read_inputs
from tunescope.measure.attacked import fit_instruments, measure_attacks
from tunescope.measure.findings import SAFE, UNSAFE, Findings, Sample
from tunescope.measure.inside import Origin, look_inside
from tunescope.measure.intervened import measure_interventions
from tunescope.measure.interventions import direction_changes, scalings, weight_changes
from tunescope.models.build import build_model
from tunescope.models.checkpoint import load_model, save_model
from tunescope.models.compute import Compute, resolve
from tunescope.models.inputs import Inputs
from tunescope.models.logps import follows
from tunescope.models.pair import LivePair, require_finite
from tunescope.models.tokenizer import build_tokenizer
from tunescope.probes.behaviour import generate, outcomes, wilson
from tunescope.protocols.protocols import PROTOCOLS
from tunescope.protocols.tuning import tune
from tunescope.rng import Stream
from tunescope.stages import Stage, say
from tunescope.training.fit import Row
from tunescope.training.pretraining import HELD_OUT, HELD_OUT_KINDS, HELD_OUT_PROMPTS, pretrain
from tunescope.world.describe import describe
from tunescope.world.kinds import Kind
from tunescope.world.prompts import Prompts, refusals, sample_prompts
from tunescope.world.world import World, build_world

RATES = ("eta_m", "eta_s")
STEP = "step-"  # begins the names of checkpoints


@dataclass(frozen=True)
class Tuned:
    """One fine-tune of a study."""

    protocol: str
    rate: str

    @property
    def name(self) -> str:
        return f"{self.protocol}-{self.rate}"


class Run:
    """A study being run in a folder: knows where everything lies, and what each stage does.

    Raises:
        InputError: the device is not there.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.compute: Compute = resolve(study.compute)
        self.world: World = build_world(study.world, self.compute.device)
        self.tokenizer = build_tokenizer(self.world.vocab.words)
        self.tuned = [Tuned(protocol, rate) for protocol in study.tune.protocols for rate in RATES]

    def check_attacks(self) -> None:
        """Raises InputError where the attacks' settings do not fit the world."""
        if (given := max(self.study.attack.prefill, default=0)) >= self.world.answer_length:
            raise InputError(
                f"attack.prefill: {given} tokens of an answer of {self.world.answer_length} leave nothing to say; "
                f"at most {self.world.answer_length - 1}"
            )

    def pretrain(self, unfinished: Path) -> None:
        study, stream = self.study, Stream.named(self.study.seed, "pretraining")
        model = build_model(
            study.model,
            len(self.world.vocab),
            self.world.sequence_length,
            stream("init"),
            self.compute.device,
            eos=self.tokenizer.eos_token_id,
            pad=self.tokenizer.pad_token_id,
        )
        model.set_attn_implementation(self.compute.attention)
        curve = pretrain(model, self.world, study.pretrain, self.compute, stream, unfinished)
        if (reached := curve[-1][HELD_OUT]) < study.pretrain.target:
            say(
                f"warning: pretraining ended at {reached:.2%} held-out compliance, below pretrain.target "
                f"({study.pretrain.target:.2%}); raise pretrain.steps or pretrain.cooldown"
            )
        self._save(model, "models/base")
        write_records(self._curve(curve, "base", "pretraining", ""), self.folder / "parts/pretrain.parquet")

    def tune(self, tuned: Tuned, unfinished: Path) -> None:
        study, name = self.study, tuned.name
        reference, policy = self.load("models/base"), self.load("models/base")
        checkpoints = f"checkpoints/{name}"
        if not unfinished.exists():
            remove(self.folder / checkpoints)  # of other settings, perhaps at other steps
        curve = tune(
            policy,
            reference,
            PROTOCOLS[tuned.protocol],
            getattr(study.tune, tuned.rate),
            self.world,
            study.tune,
            self.compute,
            # The same batches at both rates: the rate is all that differs.
            Stream.named(study.seed, "tuning", tuned.protocol),
            label=f"tuning {name}",
            save=lambda step: self._save(policy, f"{checkpoints}/{STEP}{step:06d}"),
            resume=unfinished,
        )
        self._save(policy, f"models/{name}")
        rows = self._curve(curve, name, tuned.protocol, tuned.rate)
        write_records(rows, self.folder / f"parts/tune-{name}.parquet")

    def behave(self, name: str, tuned: Tuned | None, _: Path) -> None:
        """Behaviour of a finished model on every kind and strength, and of its checkpoints on the plain kinds."""
        evaluate = self.study.evaluate
        plain = [(Kind.SAFE, 0.0), (Kind.UNSAFE, 0.0)]
        others = [(kind, strength) for kind in Kind if kind.has_strength for strength in evaluate.strengths]
        step = self._final_step(name, tuned)
        sets = [(f"models/{name}", step, point, evaluate.prompts) for point in plain]
        sets += [(f"models/{name}", step, point, evaluate.prompts_per_point) for point in others]
        if tuned:
            sets += [(*at, point, evaluate.prompts_per_point) for at in self._saved(name) for point in plain]
        records: list[Record] = []
        for folder, step, (kind, strength), n in tqdm(
            sets, desc=f"behaviour of {name}", unit="set", disable=None, leave=False
        ):
            model = self.load(folder)
            records += self._behaviour(model, self.subject(name, tuned, step), self._held_out(kind, strength, n))
        write_records(records, self.folder / f"parts/behave-{name}.parquet")

    def probe(self, name: str, tuned: Tuned | None, _: Path) -> None:
        """All probes of a finished model, and of the models saved on the way to it, which have records alone."""
        config, base = self.study.probe, self.load("models/base")
        sample = self.sample()
        saved = self._saved(name) if tuned else []
        final = f"models/{name}", self._final_step(name, tuned)
        plans = [(saved, sample.first(config.course_prompts), config.for_course()), ([final], sample, config)]
        stream, found = Stream.named(self.study.seed, "probes"), list[Findings]()
        with tqdm(desc=f"probes of {name}", total=len(saved) + 1, unit="model", disable=None, leave=False) as bar:
            for models, prompts, how in plans:
                inputs = read_inputs(base, prompts, config.rows) if tuned and models else {}
                for at, step in models:
                    model, origin = self.load(at), None
                    if tuned:
                        origin = Origin(LivePair(base, model), inputs)
                    else:
                        require_finite(model)  # as a pair does
                    subject = self.subject(name, tuned, step)
                    found.append(look_inside(subject, model, origin, prompts, how, self.refused, stream))
                    bar.update()
        write_records((r for f in found for r in f.records), self.folder / f"parts/probe-{name}.parquet")
        write_scores(found[-1].scores, self.folder / f"parts/scores-{name}.parquet")

    def attack(self, name: str, tuned: Tuned | None, _: Path) -> None:
        """Every attack on a finished model."""
        config, probe = self.study.attack, self.study.probe
        base, model = self.load("models/base"), self.load(f"models/{name}")
        model.requires_grad_(False)
        tools = fit_instruments(model, base if tuned else None, self.sample(), probe)
        found = Findings(self.subject(name, tuned, self._final_step(name, tuned)))
        plain = {kind: self._attacked(kind, 0.0, config.searched, "plain") for kind in (Kind.SAFE, Kind.UNSAFE)}
        seen = self._attacked(Kind.UNSAFE, 0.0, config.searched, "seen")
        stream = Stream.named(self.study.seed, "attacks")
        vocab = self.world.vocab
        symbols = torch.arange(vocab.first_symbol, len(vocab), device=self.compute.device)
        ladders = [
            self._attacked(kind, strength, config.prompts, "jailbreaks")
            for kind in Kind
            if kind.has_strength
            for strength in self.study.evaluate.strengths
        ]
        searches = searched(model, plain[Kind.UNSAFE], plain[Kind.SAFE], seen, config, symbols, stream)
        attacks = [*ladders, *(prefilled(plain[Kind.UNSAFE], m) for m in config.prefill), *searches]
        measure_attacks(found, model, base, attacks, tools, probe.rows)
        self._write(f"attack-{name}", found)

    def intervene(self, tuned: Tuned, _: Path) -> None:
        """Changes of dW, of the stream, and what the models then do."""
        config, base, model = self.study.intervene, self.load("models/base"), self.load(f"models/{tuned.name}")
        others = {
            other.protocol: self.load(f"models/{other.name}")
            for other in self.tuned
            if other.rate == tuned.rate and other != tuned
        }
        worst = max(self.study.evaluate.strengths)
        prompts = {
            str(kind): self._attacked(kind, worst if kind.has_strength else 0.0, config.prompts, "interventions")
            for kind in Kind
            if kind is not Kind.SAFE_DIALECT
        }
        stream, rows = Stream.named(self.study.seed, "interventions"), self.study.probe.rows
        fit = self.sample().first(self.study.probe.few_prompts).fit
        changed = list(scalings(base, model, config))
        if tuned.protocol != BENIGN:  # which has no refusal to take away: it is the control of alpha
            changed += weight_changes(base, model, others, fit, config, rows, stream)
            changed += direction_changes(model, fit, self.refused, config, rows, stream)
        found = Findings(self.subject(tuned.name, tuned, self.study.tune.steps))
        measure_interventions(found, model, changed, prompts, rows)
        self._write(f"intervene-{tuned.name}", found)

    def _write(self, part: str, found: Findings) -> None:
        write_part(found.records, found.scores, self.folder, part)

    def _attacked(self, kind: Kind, strength: float, n: int, use: str) -> Attacked:
        """Prompts of a kind; those of one use are the same at every strength, but for what the strength changes."""
        prompts = sample_prompts(
            self.world, kind, n, Stream.named(self.study.seed, "attacked", use, str(kind)), strength
        )
        return Attacked(str(kind), strength, Inputs(prompts.prompt), prompts.answer, prompts.refusal)

    def join(self, measured: list[Stage], _: Path) -> None:
        parts = [self.folder / out for stage in measured for out in stage.outputs if out.startswith("parts/")]
        scores = [part for part in parts if part.name.startswith("scores-")]
        merge_tables([part for part in parts if part not in scores], self.folder / "records.parquet")
        merge_tables(scores, self.folder / "scores.parquet", SCORES_SCHEMA)

    def examples(self, _: Path) -> None:
        n = self.study.evaluate.examples
        stream = Stream.named(self.study.seed, "examples")
        shown = [sample_prompts(self.world, kind, n, stream(kind), 1.0 if kind.has_strength else 0.0) for kind in Kind]
        rows = [{**describe(self.world, prompts, i), "answers": {}} for prompts in shown for i in range(n)]
        for name in ["base", *(tuned.name for tuned in self.tuned)]:
            model = self.load(f"models/{name}")
            for k, prompts in enumerate(shown):
                generated = self._generate(model, prompts)
                judged = outcomes(generated, prompts.answer, prompts.refusal)
                for i in range(n):
                    rows[k * n + i]["answers"][name] = {
                        "text": self.world.vocab.text(generated[i].tolist()),
                        "outcome": next(str(outcome) for outcome, hit in judged.items() if hit[i]),
                    }
        write_text(self.folder / "examples.json", json.dumps(rows, indent=1))

    def _saved(self, name: str) -> list[tuple[str, int]]:
        """Folder and step of the models saved on the way to a finished one, which is not among them."""
        saved = sorted((self.folder / "checkpoints" / name).glob(f"{STEP}*"))[:-1]
        return [(f"checkpoints/{name}/{at.name}", int(at.name.removeprefix(STEP))) for at in saved]

    def sample(self) -> Sample:
        """Plain prompts for the probes, which nothing else reads."""
        config, stream = self.study.probe, Stream.named(self.study.seed, "probe prompts")

        def draw(use: str, n: int) -> dict[str, Inputs]:
            of_kind = ((kind, sample_prompts(self.world, Kind(kind), n, stream(use, kind))) for kind in (SAFE, UNSAFE))
            return {kind: Inputs(prompts.prompt) for kind, prompts in of_kind}

        return Sample(draw("fit", config.fit_prompts), draw("score", config.prompts))

    def _held_out(self, kind: Kind, strength: float, n: int) -> Prompts:
        """Prompts from a stream that no training reads; the same ones for every model."""
        stream = Stream.named(self.study.seed, "evaluation", str(kind), strength)
        return sample_prompts(self.world, kind, n, stream, strength)

    def _generate(self, model: PreTrainedModel, prompts: Prompts) -> torch.Tensor:
        return generate(model, Inputs(prompts.prompt), self.world.answer_length, self.compute.dtype)

    def refused(self, model: PreTrainedModel, prompts: Inputs) -> torch.Tensor:
        return follows(model, prompts, refusals(self.world, len(prompts)))

    def _behaviour(self, model: PreTrainedModel, subject: Subject, prompts: Prompts) -> Iterator[Record]:
        judged = outcomes(self._generate(model, prompts), prompts.answer, prompts.refusal)
        strength = prompts.strength if prompts.kind.has_strength else None
        for outcome, hits in judged.items():
            rate = wilson(int(hits.sum()), len(prompts))
            yield subject.record(str(outcome), kind=str(prompts.kind), strength=strength, **asdict(rate))

    def subject(self, name: str, tuned: Tuned | None, step: int) -> Subject:
        protocol, rate = (tuned.protocol, tuned.rate) if tuned else ("pretraining", "")
        return Subject(name, protocol, rate, self.study.seed, step)

    def _curve(self, rows: list[Row], model: str, protocol: str, rate: str) -> Iterator[Record]:
        for row in rows:
            for metric, n in (("loss", 1), (HELD_OUT, len(HELD_OUT_KINDS) * HELD_OUT_PROMPTS)):
                if metric in row:
                    yield Record(model, protocol, rate, self.study.seed, int(row["step"]), metric, row[metric], n=n)

    def _final_step(self, name: str, tuned: Tuned | None) -> int:
        if tuned:
            return self.study.tune.steps
        return int(max(pq.read_table(self.folder / "parts/pretrain.parquet")["step"].to_pylist()))

    def _save(self, model: PreTrainedModel, where: str) -> None:
        save_model(model, self.tokenizer, self.folder / where, self.world.answer_length)

    def load(self, where: str) -> PreTrainedModel:
        return load_model(self.folder / where, self.compute.device, self.compute.attention)[0]
