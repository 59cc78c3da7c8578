"""Observation 3: does dW act more on unsafe prompts than on safe ones? (Jain et al. 2024)"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tunescope.models.sites import Site
from tunescope.probes import controls, directions, projections
from tunescope.probes.subspaces import Svd
from tunescope.probes.view import INPUT, Change, View, probe
from tunescope.records.findings import Findings, logarithm
from tunescope.records.intervals import PerPrompt
from tunescope.records.names import SAFE, UNSAFE

ByKind = Mapping[str, Float[Tensor, "n width"]]


MEASURES = tuple(f"log_{what}{whose}" for what in ("gain", "row_projection") for whose in ("", "_of_base_input"))


@probe("specialisation", score=(INPUT,), needs_change=True, measures=MEASURES)
def measure(view: View, found: Findings) -> None:
    """By layer: what dW does with its inputs, the model's own and those that the base has in their place."""
    for layer in range(view.layers):
        if change := view.change(layer):
            site = Site(layer, INPUT)
            own = view.scored(site)
            before = {
                kind: of[site][: len(own[kind])].to(view.device).double() for kind, of in view.base_inputs.items()
            }
            for suffix, inputs in (("", own), ("_of_base_input", before)):
                if inputs:
                    _acts_on(found, change, suffix, inputs, layer)
                    _score_draws(found, change, suffix, inputs, layer, view)


@probe("direction", fit=("mlp_pre",), needs_change=True)
def measure_direction(view: View, found: Findings) -> None:
    """By layer: how much of the difference of class means dW writes along, beside labels dealt out at random."""
    for layer in range(view.layers):
        if change := view.change(layer):
            site = Site(layer, "mlp_pre")
            about = {"layer": layer, "site": site.name}

            def written(safe: Tensor, unsafe: Tensor, delta: Svd = change.delta) -> float:
                return directions.written_share(directions.difference_of_means(safe, unsafe), delta, directions.TOP)

            found.value("direction_in_delta", written(*view.means(site)), **about)
            drawn = [written(*pair) for pair in zip(*view.dealt(site), strict=True)]
            found.draws("direction_in_delta", drawn, control="shuffled", **about)
            found.value("direction_in_delta", directions.TOP / len(change.delta.u), control="haar", **about)


def _acts_on(found: Findings, change: Change, suffix: str, inputs: ByKind, layer: int) -> None:
    scores: dict[tuple[str, str], dict[str, PerPrompt]] = {}
    for kind, a in inputs.items():
        for control, matrix in change.stand_ins.items():
            scores.setdefault((f"gain{suffix}", control), {})[kind] = projections.gain(matrix, a)
        for control, delta in (("", change.delta), ("rotated", change.turned)):
            scores.setdefault((f"row_projection{suffix}", control), {})[kind] = projections.row_projection(delta, a)
    for (metric, control), by_kind in scores.items():
        where = {"layer": layer, "control": control}
        for kind, values in by_kind.items():
            found.mean(metric, values, kind=kind, **where)
            if not control:
                found.score(f"log_{metric}", logarithm(values), kind=kind, layer=layer)
        found.separation(metric, by_kind[SAFE], by_kind[UNSAFE], (SAFE, UNSAFE), **where)
        if control != "rotated":  # of which there are many draws
            found.ratio(metric, by_kind[SAFE], by_kind[UNSAFE], **where)


def _score_draws(found: Findings, change: Change, suffix: str, inputs: ByKind, layer: int, view: View) -> None:
    """By kind, the mean score of its prompts under dW in random directions, once per draw; and their ratios.

    All is seen from an orthonormal basis of the inputs: of random directions only their part in it counts, and what a
    Haar-random frame has there is again part of one, which is small where there are few prompts.
    """
    basis = torch.linalg.qr(torch.cat([*inputs.values()]).mT).Q
    size, rank = basis.shape
    within = {kind: a @ basis for kind, a in inputs.items()}
    means: dict[tuple[str, str], list[Tensor]] = {}
    for draw in range(view.config.draws):
        stream = view.stream("rotated", layer, "draw", draw)
        reads = controls.haar(size, rank, stream, view.device)[: len(change.delta.s)]
        turned = Svd(change.delta.u, change.delta.s, reads.mT)
        for kind, a in within.items():
            gains = projections.gain(turned.s[:, None] * reads, a)
            scores = {"gain": gains, "row_projection": projections.row_projection(turned, a)}
            for metric, values in scores.items():
                means.setdefault((f"log_{metric}{suffix}", kind), []).append(logarithm(values).mean())
    for (metric, kind), drawn in means.items():
        found.score(metric, torch.stack(drawn), kind=kind, layer=layer, control="rotated")
        if kind == UNSAFE:
            ratios = (torch.stack(drawn) - torch.stack(means[metric, SAFE])).exp().tolist()
            found.draws(f"{metric.removeprefix('log_')}_ratio", ratios, layer=layer, control="rotated")
