"""Every probe of one model."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from tunescope.config import ProbeConfig
from tunescope.evidence.records import PAIR, Subject
from tunescope.measure.ablation import measure_ablation
from tunescope.measure.activations import (
    fit_classes,
    measure_change,
    measure_clusters,
    read_scored,
)
from tunescope.measure.findings import SAFE, UNSAFE, Findings, PerPrompt, Sample, logarithm
from tunescope.measure.interventions import Refused
from tunescope.measure.weights import change_of, measure_matrix, measure_subspaces
from tunescope.models.inputs import Inputs
from tunescope.models.pair import Pair
from tunescope.models.sites import layer_count
from tunescope.probes import sensitivity
from tunescope.probes.collect import Stored, block_output, first_logits
from tunescope.probes.subspaces import EXACT, Arithmetic
from tunescope.rng import Stream


@dataclass(frozen=True)
class Origin:
    """What a fine-tuned model is looked at beside.

    Attributes:
        pair: the matrices of base and fine-tune.
        inputs: of the base's W_in, by kind of prompt (`read_inputs`).
    """

    pair: Pair
    inputs: Mapping[str, Stored]


def look_inside(
    subject: Subject,
    model: PreTrainedModel,
    origin: Origin | None,
    sample: Sample,
    config: ProbeConfig,
    refused: Refused,
    stream: Stream,
    arithmetic: Arithmetic = EXACT,
) -> Findings:
    """All that the probes say of a model; its parameters are frozen. Matrices are looked at layer by layer.

    Args:
        origin: None if the model is a base itself, which has no change to look at.
        refused: tells which prompts a model refuses.
        stream: of the controls and of whatever else is random.
    """
    found = Findings(subject)
    model.requires_grad_(False)
    classes, scored = fit_classes(model, sample, config, stream), read_scored(model, sample, config.rows)
    layers, shares, drawn = layer_count(model), [], []
    for layer in tqdm(range(layers), desc="layers", leave=False, disable=None):
        last = layer == layers - 1
        measure_clusters(found, classes, scored, layer, config.few_prompts, last=last)
        if origin:
            for name in origin.pair.names:
                measure_matrix(found, origin.pair, layer, name, sample.device)
            change = change_of(origin.pair, layer, stream, arithmetic, sample.device)
            if not len(change.delta.s):
                continue  # W_in of this layer is as it was: there is nothing that could act, or lie anywhere
            inputs = {"": scored, "_of_base_input": origin.inputs}
            # A study has a benign fine-tune as control; a pair of models has random directions, which cost more.
            draws = config.draws if subject.protocol == PAIR else 0
            measure_change(found, change, classes, inputs, layer, stream if last else None, draws)
            share, of_draws = measure_subspaces(found, change, layer, config.draws, stream, arithmetic)
            shares.append(share)
            drawn.append(of_draws)
    if shares:
        found.score("null_share", torch.tensor(shares).mean(0, keepdim=True))
        found.score("null_share", torch.stack(drawn).mean(0), control="rotated")
    # Of weights that come and go, a gradient would keep all, and ablation read each of them thousands of times.
    if not any(parameter.is_meta for parameter in model.parameters()):
        measure_sensitivity(found, model, sample, config, stream)
        measure_ablation(found, model, classes, sample, refused, config.few_prompts, stream)
    return found


def measure_sensitivity(
    found: Findings, model: PreTrainedModel, sample: Sample, config: ProbeConfig, stream: Stream
) -> None:
    """Observation 4."""
    for kind, prompts in sample.score.items():
        gradients = gradient_norms(model, prompts, config.rows)
        found.mean("sensitivity", gradients, kind=kind)
        found.score("log_sensitivity", logarithm(gradients), kind=kind)
    for kind in (SAFE, UNSAFE):
        prompts = sample.score[kind][: config.jacobian_prompts].embedded(model)
        start = stream("power iteration").normal(tuple(prompts.sequence.shape), prompts.sequence.device)
        parts = list(zip(prompts.split(config.rows), start.split(config.rows), strict=True))
        for layer in range(layer_count(model)):
            norms = [
                sensitivity.jacobian_norm(block_output(model, p, layer), p.sequence, at, config.jacobian_steps)
                for p, at in parts
            ]
            found.mean("jacobian_norm", torch.cat(norms), kind=kind, layer=layer, site="resid_post")


def gradient_norms(model: PreTrainedModel, prompts: Inputs, rows: int) -> PerPrompt:
    """Sensitivity of each prompt: the paper's, of the first answer token."""
    parts = (part.embedded(model) for part in prompts.split(rows))
    return torch.cat([sensitivity.top_logit_gradient(first_logits(model, part), part.sequence) for part in parts])
