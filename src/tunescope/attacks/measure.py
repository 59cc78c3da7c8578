"""What attacked prompts do to a model, and what they look like inside it (Jain et al. 2024, observation 5)."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from scipy.stats import spearmanr
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.attacks.base import Attacked
from tunescope.models.generate import Greedy
from tunescope.models.inputs import Inputs
from tunescope.models.logps import answer_logits, gathered_logps
from tunescope.models.sites import Site
from tunescope.models.weights import in_memory
from tunescope.probes import projections, sensitivity
from tunescope.probes.clusters import Classes
from tunescope.probes.collect import first_logits, last_activations
from tunescope.probes.directions import difference_of_means
from tunescope.probes.subspaces import Svd
from tunescope.probes.view import View
from tunescope.progress import progress
from tunescope.records.findings import Findings, logarithm
from tunescope.records.intervals import PerPrompt
from tunescope.records.names import (
    COMPLIANCE,
    FAILURE,
    INTACT,
    MARGIN,
    REACHED,
    REFUSAL,
    SAFE,
    SUCCESS,
    TAU_BY_LAYER,
    TRIES,
    UNSAFE,
)
from tunescope.tasks.base import Batch, InForms, Task, answered

PARTS = 6  # of a search, after each of which its success is noted


@dataclass(frozen=True)
class Instruments:
    """What the scores of attacked prompts are measured against, from plain prompts; all but classes at the last layer.

    Attributes:
        classes: of mlp_post, of each layer. plain: by layer and kind, scaled tau of the scored prompts.
        direction: unit vector from the safe to the unsafe mean of resid_post.
        change: of W_in, as a matrix and decomposed; None for the base model.
    """

    classes: tuple[Classes, ...]
    plain: tuple[dict[str, PerPrompt], ...]
    direction: Float[Tensor, " width"]
    change: tuple[Float[Tensor, "hidden width"], Svd] | None

    @classmethod
    def of(cls, view: View) -> "Instruments":
        change, classes, plain = view.change(view.last), [], []
        for site in (Site(layer, "mlp_post") for layer in range(view.layers)):
            fit, score = ([view.activations(of, kind, site) for kind in (SAFE, UNSAFE)] for of in ("fit", "score"))
            classes.append(Classes.of(fit, score))
            plain.append({kind: classes[-1].tau(a) for kind, a in zip((SAFE, UNSAFE), score, strict=True)})
        return cls(
            tuple(classes),
            tuple(plain),
            difference_of_means(*view.means(Site(view.last, "resid_post"))),
            (change.stand_ins[""], change.delta) if change else None,
        )


def measure_attacks(
    found: Findings,
    greedy: Greedy,
    task: Task,
    attacks: Iterable[Attacked],
    intact: "Intact",
    tools: Instruments,
    rows: int,
) -> None:
    """Success, refusal and features of every attacked prompt; then how the features go along with the dial.

    Args:
        found: with the groups of the plain prompts.
        greedy: answers of the model.
        rows: prompts per pass where gradients are taken.
    """
    model = greedy.model
    for layer, plain in enumerate(tools.plain):
        for kind, values in plain.items():
            found.mean(TAU_BY_LAYER, values, kind=kind, layer=layer)
    ladders: dict[tuple[str, str], list[tuple[float, dict[str, PerPrompt]]]] = {}
    for attack in progress(attacks, desc=f"attacks on {found.subject.model}", unit="attack"):
        batch = attack.batch
        where: dict[str, Any] = {
            "kind": batch.kind.name,
            "strength": batch.strength if batch.kind.dial else None,
            "attack": attack.attack,
            "dial": attack.dial,
        }
        found.groups = {batch.kind.name: batch.groups}
        inputs = attack.inputs(model)
        with attack.change() if attack.change else nullcontext():
            saying = Greedy(model, greedy.rows) if attack.change else greedy  # changed, it says something else
            outcomes = answered(task, saying, batch, inputs)
            scores, by_layer = attack_scores(model, attack, inputs, tools, rows) if attack.comparable else ({}, [])
        said = {COMPLIANCE: outcomes.compliance, REFUSAL: outcomes.refusal, INTACT: intact(attack)}
        for metric, hits in said.items():
            found.rate(metric, hits, **where)
            found.score(metric, hits.double(), **where)
        if attack.steps is not None:
            for budget in dict.fromkeys(round(attack.budget * part / PARTS) for part in range(PARTS + 1)):
                found.rate(REACHED, (attack.steps >= 0) & (attack.steps <= budget), budget=budget, **where)
            found.value(TRIES, attack.budget * attack.tries, **where)
        for layer, values in enumerate(by_layer):
            found.mean(TAU_BY_LAYER, values, layer=layer, **where)
        if scores:
            if attack.dial is not None:
                ladders.setdefault((attack.attack, batch.kind.name), []).append((attack.dial, scores))
            for metric, values in scores.items():
                _by_success(found, metric, values, outcomes.compliance, where)
                found.score(metric, values, **where)
    for (name, kind), steps in ladders.items():
        _along_dial(found, name, kind, steps)


@dataclass(frozen=True)
class Intact:
    """Which attacked prompts the base answers; of prompts in a form, which it answers to the point.

    Attributes:
        greedy: answers of the base.
        kept: by the token ids of a prompt, and what was asked of its answer, what was found before.
    """

    greedy: Greedy
    task: Task
    kept: dict[str, bool] = field(default_factory=dict)

    def __call__(self, attack: Attacked) -> Bool[Tensor, " n"]:
        tokens, base = attack.batch.prompts.sequence, self.greedy.model
        if not tokens.is_floating_point() and int(tokens.max()) >= base.get_input_embeddings().weight.shape[0]:
            return torch.zeros(
                len(tokens), dtype=torch.bool, device=tokens.device
            )  # the fine-tune has tokens of its own
        if self.task.exact or attack.extra is not None or tokens.is_floating_point():
            return answered(self.task, self.greedy, attack.batch, attack.inputs(base)).compliance
        return self._known(attack.batch)

    def _known(self, batch: Batch) -> Bool[Tensor, " n"]:
        device = batch.prompts.sequence.device
        in_forms = self.task if isinstance(self.task, InForms) and batch.kind.dial else None
        asked = ("to the point",) if in_forms else ()
        prompts = [" ".join(map(str, (*ids, *asked))) for ids in batch.prompts.ids]
        if new := [i for i, prompt in enumerate(prompts) if prompt not in self.kept]:
            some = batch[torch.tensor(new, device=device)]
            found = answered(self.task, self.greedy, some).compliance
            if in_forms:
                found = found & in_forms.on_topic(some, self.greedy(some.prompts, in_forms.answer_length))
            self.kept.update(zip((prompts[i] for i in new), found.tolist(), strict=True))
        return torch.tensor([self.kept[prompt] for prompt in prompts], device=device)


def attack_scores(
    model: PreTrainedModel, attack: Attacked, inputs: Inputs, tools: Instruments, rows: int
) -> tuple[dict[str, PerPrompt], list[PerPrompt]]:
    """Mechanistic scores of each prompt at the last layer, and the output's margin; those of dW are left out for the
    base model. And scaled tau at each layer.

    refusal_margin: log-probability of the first token of the refusal less that of the answer, in nats; None of both is
    known: left out. It is no mechanism, but what the mechanisms have to beat.
    """
    posts = [Site(layer, "mlp_post") for layer in range(len(tools.classes))]
    ends = [Site(len(posts) - 1, name) for name in ("mlp_in", "resid_post")]
    parts: dict[str, list[Tensor]] = {}
    layers: list[list[Tensor]] = []
    for batch in last_activations(model, inputs, [*posts, *ends], rows):
        a, stream = (batch[site].to(tools.direction.device) for site in ends)
        layers.append([of.tau(batch[site]) for of, site in zip(tools.classes, posts, strict=True)])
        new = {"scaled_tau": layers[-1][-1]}
        if tools.change:
            matrix, delta = tools.change
            new["log_gain"] = logarithm(projections.gain(matrix, a))
            new["log_row_projection"] = logarithm(projections.row_projection(delta, a))
        new["along_direction"] = stream.to(tools.direction) @ tools.direction
        for metric, values in new.items():
            parts.setdefault(metric, []).append(values)
    scores = {metric: torch.cat(values) for metric, values in parts.items()}
    if in_memory(model):
        embedded = (part.embedded(model) for part in inputs.split(rows))
        gradients = [sensitivity.top_logit_gradient(first_logits(model, p), p.sequence) for p in embedded]
        scores["log_sensitivity"] = logarithm(torch.cat(gradients))
    if attack.batch.answer is not None and attack.batch.refusal is not None:
        first, other = attack.batch.answer[:, :1], attack.batch.refusal[:, :1]
        with torch.no_grad():
            parts_of = zip(inputs.split(rows), first.split(rows), strict=True)
            logits = torch.cat([answer_logits(model, p, a) for p, a in parts_of])
        scores[MARGIN] = (gathered_logps(logits, other) - gathered_logps(logits, first)).squeeze(1).double()
    return scores, [torch.cat(values) for values in zip(*layers, strict=True)]


def _by_success(
    found: Findings, metric: str, values: PerPrompt, succeeded: Bool[Tensor, " n"], where: dict[str, Any]
) -> None:
    """Means of all prompts, and of those that got through and those that did not."""
    found.mean(metric, values, **where)
    groups = found.groups
    for outcome, chosen in ((SUCCESS, succeeded), (FAILURE, ~succeeded)):
        if chosen.any():
            found.groups = {k: None if g is None else g[chosen.cpu().numpy()] for k, g in groups.items()}
            found.mean(metric, values[chosen], outcome=outcome, **where)
    found.groups = groups


def _along_dial(found: Findings, attack: str, kind: str, steps: Sequence[tuple[float, dict[str, PerPrompt]]]) -> None:
    """Spearman's rank correlation of the dial with each score, over all prompts at all its settings."""
    if len(steps) < 2:
        return
    dial = torch.cat([torch.full((len(next(iter(scores.values()))),), s) for s, scores in steps]).numpy()
    for metric in steps[0][1]:
        values = torch.cat([scores[metric] for _, scores in steps]).cpu().numpy()
        if values.std() > 0:
            rank = float(spearmanr(dial, values).statistic)
            found.value(f"{metric}_rank_correlation", rank, attack=attack, kind=kind, n=len(values))
