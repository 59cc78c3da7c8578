"""What attacked prompts do to a model, and what they look like inside it (Jain et al. 2024, observation 5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from scipy.stats import spearmanr
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.attacks.attacks import Attacked
from tunescope.config import ProbeConfig
from tunescope.evidence import predictors
from tunescope.measure.findings import SAFE, UNSAFE, Findings, PerPrompt, Sample, logarithm
from tunescope.measure.inside import gradient_norms
from tunescope.measure.weights import CHANGED
from tunescope.models.logps import answer_logits, follows, gathered_logps, which_follows
from tunescope.models.pair import LivePair
from tunescope.models.sites import Site, layer_count
from tunescope.probes import clusters, projections
from tunescope.probes.collect import last_activations, means_of
from tunescope.probes.directions import difference_of_means
from tunescope.probes.subspaces import Svd

WITHIN = (0, 5, 20)  # gradient steps after which the success of a soft prompt is noted
# What is read off every attacked prompt; all but the last are mechanistic.
SCORES = (*predictors.SCORES, predictors.BASELINE)


@dataclass(frozen=True)
class Instruments:
    """What the scores of attacked prompts are measured against, all at the last layer, from plain prompts.

    Attributes:
        safe, unsafe: class means of mlp_post. spread: standard deviation of tau within a class.
        direction: unit vector from the safe to the unsafe mean of resid_post.
        change: of W_in, as a matrix and decomposed; None for the base model.
    """

    layer: int
    safe: Float[Tensor, " hidden"]
    unsafe: Float[Tensor, " hidden"]
    spread: Float[Tensor, ""]
    direction: Float[Tensor, " width"]
    change: tuple[Float[Tensor, "hidden width"], Svd] | None


def fit_instruments(
    model: PreTrainedModel, base: PreTrainedModel | None, sample: Sample, config: ProbeConfig
) -> Instruments:
    last = layer_count(model) - 1
    post, stream = Site(last, "mlp_post"), Site(last, "resid_post")
    means = {kind: means_of(model, sample.fit[kind], [post, stream], config.rows) for kind in (SAFE, UNSAFE)}
    safe, unsafe = (means[kind][post] for kind in (SAFE, UNSAFE))
    tau = {}
    for kind in (SAFE, UNSAFE):
        parts = last_activations(model, sample.score[kind], [post], config.rows)
        tau[kind] = torch.cat([clusters.tau(part[post], safe, unsafe) for part in parts])
    direction = difference_of_means(*(means[kind][stream] for kind in (SAFE, UNSAFE)))
    matrix = LivePair(base, model).matrices(last, CHANGED)[1] if base else None
    change = None if matrix is None else (matrix, Svd.of(matrix))
    return Instruments(last, safe, unsafe, clusters.within_class_sd(tau[SAFE], tau[UNSAFE]), direction, change)


def measure_attacks(
    found: Findings,
    model: PreTrainedModel,
    base: PreTrainedModel,
    attacks: Sequence[Attacked],
    tools: Instruments,
    rows: int,
) -> None:
    """Success, refusal and features of every attacked prompt; then how the features go along with strength.

    `attack_intact` tells which prompts the base model answers: where it does not, an attack is only noise.
    """
    ladders: dict[str, list[tuple[float, dict[str, PerPrompt]]]] = {}
    for attack in attacks:
        where: dict[str, Any] = {"kind": attack.kind, "strength": attack.strength}
        inputs = attack.inputs(model)
        succeeded, refused = which_follows(model, inputs, [attack.answer, attack.refusal], rows)
        outcomes = {
            "attack_success": succeeded,
            "attack_refusal": refused,
            "attack_intact": follows(base, attack.inputs(base), attack.answer, rows),
        }
        for metric, hits in outcomes.items():
            found.rate(metric, hits, **where)
            found.score(metric, hits.double(), **where)
        if attack.steps is not None:
            for within in WITHIN:
                hits = (attack.steps >= 0) & (attack.steps <= within)
                found.rate(f"attack_success_within_{within}", hits, **where)
        if attack.comparable:
            scores = attack_scores(model, attack, tools, rows)
            ladders.setdefault(attack.kind, []).append((attack.strength, scores))
            for metric, values in scores.items():
                _by_success(found, metric, values, succeeded, **where)
                found.score(metric, values, **where)
    for kind, steps in ladders.items():
        _along_strength(found, kind, steps)


def attack_scores(model: PreTrainedModel, attack: Attacked, tools: Instruments, rows: int) -> dict[str, PerPrompt]:
    """`SCORES` of each prompt; those of dW are left out for the base model, which has none.

    refusal_margin: log-probability of the first token of the refusal less that of the answer, in nats. It is no
    mechanism, but what the mechanisms have to beat.
    """
    sites = [Site(tools.layer, name) for name in ("mlp_in", "mlp_post", "resid_post")]
    inputs = attack.inputs(model)
    parts: dict[str, list[Tensor]] = {}
    for batch in last_activations(model, inputs, sites, rows):
        a, post, stream = (batch[site] for site in sites)
        tau = clusters.tau(post, tools.safe, tools.unsafe)
        new = {"scaled_tau": clusters.in_units_of(tau, tools.spread)}
        if tools.change:
            matrix, delta = tools.change
            new["log_gain"] = logarithm(projections.gain(matrix, a))
            new["log_row_projection"] = logarithm(projections.row_projection(delta, a))
        new["along_direction"] = stream.to(tools.direction) @ tools.direction
        for metric, values in new.items():
            parts.setdefault(metric, []).append(values)
    scores = {metric: torch.cat(values) for metric, values in parts.items()}
    scores["log_sensitivity"] = logarithm(gradient_norms(model, inputs, rows))
    first, other = attack.answer[:, :1], attack.refusal[:, :1]
    with torch.no_grad():
        parts_of = zip(inputs.split(rows), first.split(rows), strict=True)
        logits = torch.cat([answer_logits(model, p, a) for p, a in parts_of])
    scores["refusal_margin"] = (gathered_logps(logits, other) - gathered_logps(logits, first)).squeeze(1).double()
    return scores


def _by_success(found: Findings, metric: str, values: PerPrompt, succeeded: Bool[Tensor, " n"], **where: Any) -> None:
    """Means of all prompts, and of those that got through and those that did not."""
    found.mean(f"attacked_{metric}", values, **where)
    for name, chosen in (("success", succeeded), ("failure", ~succeeded)):
        if chosen.any():
            found.mean(f"attacked_{metric}_on_{name}", values[chosen], **where)


def _along_strength(found: Findings, kind: str, steps: Sequence[tuple[float, dict[str, PerPrompt]]]) -> None:
    """Spearman's rank correlation of strength with each score, over all prompts at all strengths."""
    if len(steps) < 2:
        return
    strength = torch.cat([torch.full((len(next(iter(scores.values()))),), s) for s, scores in steps]).numpy()
    for metric in steps[0][1]:
        values = torch.cat([scores[metric] for _, scores in steps]).cpu().numpy()
        if values.std() > 0:
            rank = float(spearmanr(strength, values).statistic)
            found.value(f"attacked_{metric}_rank_correlation", rank, kind=kind, n=len(values))
