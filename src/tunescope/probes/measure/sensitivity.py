"""Observation 4: how much does the model's output change with its input? (Jain et al. 2024)"""

import torch

from tunescope.models.sites import spaced_layers
from tunescope.probes import sensitivity
from tunescope.probes.collect import block_output
from tunescope.probes.view import View, probe
from tunescope.records.findings import Findings, logarithm
from tunescope.records.names import SAFE, UNSAFE


@probe("sensitivity", needs_whole=True, measures=("log_sensitivity",))
def measure(view: View, found: Findings) -> None:
    """Gradient norms of every kind, and norms of the Jacobians of the blocks on safe and unsafe prompts."""
    config = view.config
    for kind in view.score:
        gradients = view.gradients(kind)
        found.mean("sensitivity", gradients, kind=kind)
        found.score("log_sensitivity", logarithm(gradients), kind=kind)
    for kind in (SAFE, UNSAFE):
        prompts = view.score[kind].prompts[: config.jacobian_prompts].embedded(view.model)
        start = view.stream("power iteration").normal(tuple(prompts.sequence.shape), prompts.sequence.device)
        parts = list(zip(prompts.split(config.rows), start.split(config.rows), strict=True))
        for layer in spaced_layers(view.model, config.jacobian_layers):
            norms = [
                sensitivity.jacobian_norm(block_output(view.model, p, layer), p.sequence, at, config.jacobian_steps)
                for p, at in parts
            ]
            found.mean("jacobian_norm", torch.cat(norms), kind=kind, layer=layer, site="resid_post")
