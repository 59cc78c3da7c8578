"""Every probe of one model."""

import torch
from transformers import PreTrainedModel

from tunescope.config import ProbeConfig
from tunescope.evidence.records import Subject
from tunescope.measure.ablation import measure_ablation
from tunescope.measure.activations import fit_classes, measure_activations, measure_classes
from tunescope.measure.findings import SAFE, UNSAFE, Findings, PerPrompt, Sample, logarithm
from tunescope.measure.interventions import Refused
from tunescope.measure.weights import changes_of, measure_weights, require_comparable
from tunescope.models.inputs import Inputs
from tunescope.models.sites import layer_count
from tunescope.probes import sensitivity
from tunescope.probes.collect import block_output, first_logits
from tunescope.rng import Stream


def look_inside(
    subject: Subject,
    model: PreTrainedModel,
    base: PreTrainedModel | None,
    sample: Sample,
    config: ProbeConfig,
    refused: Refused,
    stream: Stream,
) -> Findings:
    """All that the probes say of a model; its parameters are frozen.

    Args:
        base: the model that it was fine-tuned from; None if it is the base itself, which has no change to look at.
        refused: tells which prompts a model refuses.
        stream: of the controls and of whatever else is random.

    Raises:
        ValueError: a weight is not finite, or the two models differ in shape.
    """
    require_comparable(model, base)
    found = Findings(subject)
    model.requires_grad_(False)
    classes = fit_classes(model, sample, config, stream)
    changes = changes_of(base, model, stream) if base else []
    measure_activations(found, model, base, classes, changes, sample, config)
    measure_classes(found, model, classes, changes, sample, config.few_prompts)
    measure_sensitivity(found, model, sample, config, stream)
    measure_ablation(found, model, classes, sample, refused, config.few_prompts, stream)
    if base:
        measure_weights(found, base, model, changes, config, stream)
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
        for layer in range(layer_count(model)):
            norms = sensitivity.jacobian_norm(
                block_output(model, prompts, layer), prompts.sequence, start, config.jacobian_steps
            )
            found.mean("jacobian_norm", norms, kind=kind, layer=layer, site="resid_post")


def gradient_norms(model: PreTrainedModel, prompts: Inputs, rows: int) -> PerPrompt:
    """Sensitivity of each prompt: the paper's, of the first answer token."""
    parts = (part.embedded(model) for part in prompts.split(rows))
    return torch.cat([sensitivity.top_logit_gradient(first_logits(model, part), part.sequence) for part in parts])
