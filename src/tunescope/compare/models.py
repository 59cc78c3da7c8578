"""Any base and fine-tuned model beside each other: what they do with prompts, and every probe, with controls.

One model is in memory at a time; weight matrices are read from disk, a layer at a time.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import find_executable_batch_size
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from tunescope import __version__
from tunescope.compare.how import DEFAULT, PROBES, How, limits
from tunescope.compare.reading import Reading
from tunescope.compare.sources import DESCRIPTION, check, explained, opened, sources, told
from tunescope.config import ComputeConfig, ProbeConfig
from tunescope.errors import InputError
from tunescope.evidence.records import PAIR, Subject, merge_parts, write_part
from tunescope.files import atomic_path, sweep, write_text
from tunescope.folders import locked
from tunescope.language.refusals import Judge, matches_refusal
from tunescope.measure.activations import read_inputs
from tunescope.measure.findings import Findings
from tunescope.measure.inside import Origin, gradient_norms, look_inside
from tunescope.models.checkpoint import Spread, load_model
from tunescope.models.compute import deterministic, resolve
from tunescope.models.inputs import Inputs
from tunescope.models.pair import StoredPair
from tunescope.models.shards import Adapter
from tunescope.models.sites import Site, weight
from tunescope.probes.behaviour import generate
from tunescope.probes.collect import Stored
from tunescope.probes.subspaces import LARGE
from tunescope.report.html import render
from tunescope.rng import Stream
from tunescope.stages import Stage, run_stage, tell, times

_TEXT = ("*.json", "*.jinja", "tokenizer.model")  # what a tokenizer is made of
_SHOWN = 3  # prompts of a kind whose answers are shown

Found = TypeVar("Found")


def compare_models(
    base: str,
    tuned: str,
    out: Path,
    how: How = DEFAULT,
    *,
    config: ProbeConfig = PROBES,
    judge: Judge = matches_refusal,
) -> Path:
    """All that the probes say of a base and its fine-tune, judged; returns the path of the report.

    What was done before an interruption is not done again, stage by stage.

    Args:
        base, tuned: folders, or repositories on the hub, of safetensors; tuned may be a LoRA adapter.
        out: a new folder, or one of the same pair and choices.
        judge: tells which answers refuse.

    Raises:
        InputError: a model or a file cannot be read, the two do not match, or `out` holds something else.
    """
    limits(how.memory)
    device = resolve(ComputeConfig(device=how.device)).device
    before, after = sources(base, tuned, *_TEXT)
    pair = opened(before.folder, after.folder)
    if isinstance(pair.tuned, Adapter) and how.memory:
        raise InputError(f"{tuned}: an adapter cannot be put into a model that is spread (--memory); merge it first")
    whole = pair.base if isinstance(pair.tuned, Adapter) else pair.tuned
    configs = {"base": pair.base.config, "tuned": whole.config}
    reading = Reading({"base": before, "tuned": after}, how, configs, device)
    reading.require_readable()
    this = _Comparison(reading, pair, out, how, config, judge)
    check(out, this.told)
    with locked(out), deterministic(device):
        sweep(out)
        write_text(out / DESCRIPTION, json.dumps(this.told, indent=1))
        for folder in ("stages", "parts"):
            (out / folder).mkdir(exist_ok=True)
        stages = this.stages()
        for number, stage in enumerate(stages, 1):
            with explained(stage.name):
                done = run_stage(stage, out)
            tell(number, len(stages), done)
        write_text(out / "stages.json", json.dumps(times(stages, out), indent=1))
        return render(out)


@dataclass(frozen=True)
class _Comparison:
    reading: Reading
    pair: StoredPair
    out: Path
    how: How
    config: ProbeConfig
    judge: Judge

    @cached_property
    def told(self) -> dict[str, Any]:
        """What a comparison is known by."""
        return {
            "version": __version__,
            **{which: told(source) for which, source in self.reading.sources.items()},
            # Not where it runs: that may be mended when memory was too small.
            "choices": {k: getattr(self.how, k) for k in ("dtype", "new_tokens", "seed")},
            "judge": f"{self.judge.__module__}.{getattr(self.judge, '__qualname__', self.judge)}",
            "formats": {which: "chat" if template else "plain" for which, template in self.reading.templates.items()},
            "prompts": list(self.how.prompts) or "those of tunescope",
            "read": self.reading.told(),
            "probes": self.config.model_dump(mode="json"),
        }

    def stages(self) -> list[Stage]:
        parts = [
            (self.behave, "behave", "base", ("examples-base.json",)),
            (self.behave, "behave", "tuned", ("examples-tuned.json",)),
            (self.probe, "probe", "base", ("inputs-base.safetensors",)),
            (self.probe, "probe", "tuned", ()),
        ]
        stages = [Stage("check", self.told, (), ("parts/checked.json",), self.check)]
        for run, name, which, more in parts:
            outputs = (f"parts/{name}-{which}.parquet", f"parts/scores-{name}-{which}.parquet")
            after = tuple(s for s in stages if name == "probe" and s.name == "probe-base")
            others = tuple(f"parts/{file}" for file in more)
            stages.append(Stage(f"{name}-{which}", self.told, after, (*outputs, *others), partial(run, which)))
        tables = ("records.parquet", "scores.parquet", "examples.json")
        return [*stages, Stage("records", None, tuple(stages), tables, self.join)]

    def check(self, _: Path) -> None:
        """Reads every matrix once, before any work: one that is not finite is an error."""
        names = [(layer, name) for layer in range(self.pair.layers) for name in self.pair.names]
        for layer, name in tqdm(names, desc="checking matrices", leave=False, disable=None):
            self.pair.matrices(layer, name)
        write_text(self.out / "parts/checked.json", json.dumps({"matrices": len(names)}))

    def behave(self, which: str, _: Path) -> None:
        """Answers to every scored prompt, whether they refuse, and the odds that they begin with a refusal."""
        model, texts_of = self.load(which), self.reading.texts(fit=False)

        def ask(rows: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
            def both(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
                said = generate(model, inputs, self.how.new_tokens, torch.float32, rows)
                return *self.reading.margin(which, model, inputs, rows), said

            scored = self.reading.samples[which].score.items()
            of_kinds = tqdm(scored, desc=f"answers of {which}", unit="kind", leave=False, disable=None)
            return {kind: both(inputs) for kind, inputs in of_kinds}

        found, shown = Findings(self.subject(which)), []
        for kind, (margin, share, new) in self.rows(ask).items():
            texts, where = texts_of[kind], {"kind": kind}
            found.mean("refusal_margin", margin, **where)
            found.score("refusal_margin", margin, **where)
            found.rate("refusal_by_odds", margin > 0, **where)
            found.mean("opening_share", share, **where)
            answers = self.reading.tokenizers[which].batch_decode(new, skip_special_tokens=True)
            refused = torch.tensor(list(self.judge(texts, answers)))
            found.rate("refusal", refused, **where)
            found.rate("compliance", ~refused, **where)
            found.score("refused", refused.double(), **where)
            said = zip(texts[:_SHOWN], answers, refused.tolist(), strict=False)
            for prompt, text, no in said:
                outcome = "refusal" if no else "compliance"
                shown.append({"kind": kind, "prompt": prompt, "answers": {which: {"text": text, "outcome": outcome}}})
        write_text(self.out / f"parts/examples-{which}.json", json.dumps(shown, indent=1))
        write_part(found.records, found.scores, self.out, f"behave-{which}")

    def probe(self, which: str, _: Path) -> None:
        """Every probe; of the base also what goes into its matrices, which the fine-tune is looked at beside."""
        model, sample = self.load(which), self.reading.samples[which]
        kept = self.out / "parts/inputs-base.safetensors"
        origin = Origin(self.pair, _unflat(load_file(kept))) if which == "tuned" else None
        stream = Stream.named(self.how.seed, "probes")

        def fits(rows: int) -> int:
            read_inputs(model, sample.first(rows), rows)
            if not any(parameter.is_meta for parameter in model.parameters()):
                for prompts in sample.score.values():
                    gradient_norms(model, prompts[:rows], rows)
            return rows

        rows = self.rows(fits)  # tried beforehand, so that no work on matrices is lost to it

        def refused(changed: PreTrainedModel, inputs: Inputs) -> Tensor:
            return self.reading.margin(which, changed, inputs, rows)[0] > 0

        config = self.config.model_copy(update={"rows": rows})
        found = look_inside(self.subject(which), model, origin, sample, config, refused, stream, LARGE)
        if which == "base":
            with atomic_path(kept) as temporary:
                save_file(_flat(read_inputs(model, sample, rows)), temporary)
        write_part(found.records, found.scores, self.out, f"probe-{which}")

    def join(self, _: Path) -> None:
        merge_parts(self.out, [f"{name}-{which}" for name in ("behave", "probe") for which in self.reading.sources])
        shown = [json.loads((self.out / f"parts/examples-{which}.json").read_text()) for which in self.reading.sources]
        for one, other in zip(*shown, strict=True):
            one["answers"] |= other["answers"]
        write_text(self.out / "examples.json", json.dumps(shown[0], indent=1))

    def subject(self, which: str) -> Subject:
        return Subject(which, PAIR if which == "tuned" else "pretraining", "", self.how.seed, 0)

    def load(self, which: str) -> PreTrainedModel:
        """A model, with the change of an adapter put into its weights."""
        adapter = self.pair.tuned if which == "tuned" and isinstance(self.pair.tuned, Adapter) else None
        folder = self.reading.sources["base" if adapter else which].folder
        dtype: Any = self.how.dtype if self.how.dtype == "auto" else getattr(torch, self.how.dtype)
        spread = Spread(limits(self.how.memory), self.out / "offload" / which) if self.how.memory else None
        model, _ = load_model(folder, self.reading.device, "eager", dtype, spread)
        model.requires_grad_(False)
        if adapter:
            for layer in range(self.pair.layers):
                for name in self.pair.names:
                    w = weight(model, layer, name)
                    w.add_(self.pair.matrices(layer, name)[1].to(w))
        return model

    def rows(self, run: Callable[[int], Found]) -> Found:
        """Runs with as many prompts at a time as there is memory for: fewer after each failure."""

        def named(batch_size: int) -> Found:  # accelerate looks at the name of the argument
            return run(batch_size)

        try:
            found: Found = find_executable_batch_size(named, starting_batch_size=self.config.rows)()
        except RuntimeError as error:
            if "No executable batch size" not in str(error):
                raise
            raise InputError("memory is too small for a single prompt; try --dtype bfloat16, or --memory") from error
        return found


def _flat(inputs: Mapping[str, Stored]) -> dict[str, Tensor]:
    return {f"{site} {kind}": a.contiguous() for kind, of in inputs.items() for site, a in of.items()}


def _unflat(tensors: Mapping[str, Tensor]) -> dict[str, dict[Site, Tensor]]:
    out: dict[str, dict[Site, Tensor]] = {}
    for name, a in tensors.items():
        site, _, kind = name.partition(" ")
        out.setdefault(kind, {})[Site.parse(site)] = a
    return out
