"""Clusters of activations, and what dW does with them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import ProbeConfig
from tunescope.measure.findings import SAFE, UNSAFE, Findings, PerPrompt, Sample, logarithm
from tunescope.measure.weights import Change
from tunescope.models.sites import Site, layer_count
from tunescope.probes import clusters, controls, directions, projections
from tunescope.probes.collect import Stored, stored
from tunescope.probes.subspaces import Svd
from tunescope.rng import Stream

# Sites of a layer that are read of the prompts that give class means, and of those that are scored.
_FIT, _SCORE = ("mlp_pre", "mlp_post", "resid_post"), ("mlp_in", "mlp_post")


@dataclass(frozen=True)
class Classes:
    """Activations of the fit prompts of both classes, and the labels that chance might have dealt out to them.

    Attributes:
        orders: random orders of all fit prompts, [draws, n]; those below the number of safe ones count as safe.
    """

    of: Mapping[str, Stored]
    orders: Tensor

    def means(self, site: Site) -> tuple[Tensor, Tensor]:
        """Means of the safe and of the unsafe class, in float64."""
        device = self.orders.device
        return self.of[SAFE][site].to(device).double().mean(0), self.of[UNSAFE][site].to(device).double().mean(0)

    def dealt(self, site: Site) -> tuple[Float[Tensor, "draws width"], Float[Tensor, "draws width"]]:
        """The same of classes of which chance dealt out the labels, once per draw."""
        both = torch.cat([self.of[SAFE][site], self.of[UNSAFE][site]]).to(self.orders.device).double()
        safe = len(self.of[SAFE][site])
        labels = (self.orders < safe).double()
        return labels @ both / safe, (1 - labels) @ both / (len(both) - safe)


def fit_classes(model: PreTrainedModel, sample: Sample, config: ProbeConfig, stream: Stream) -> Classes:
    of = {kind: stored(model, sample.fit[kind], _sites(model, *_FIT), config.rows) for kind in (SAFE, UNSAFE)}
    n, device, labels = sum(len(sample.fit[kind]) for kind in of), sample.device, stream("labels")
    orders = [controls.shuffled(n, labels(draw), device) for draw in range(config.draws)]
    return Classes(of, torch.stack(orders))


def read_scored(model: PreTrainedModel, sample: Sample, rows: int) -> dict[str, Stored]:
    """What `measure_layer` needs of every kind of prompt that is scored."""
    return {kind: stored(model, prompts, _sites(model, *_SCORE), rows) for kind, prompts in sample.score.items()}


def read_inputs(model: PreTrainedModel, sample: Sample, rows: int) -> dict[str, Stored]:
    """The inputs of W_in alone: what a fine-tune is told of its base."""
    return {kind: stored(model, prompts, _sites(model, "mlp_in"), rows) for kind, prompts in sample.score.items()}


def measure_clusters(
    found: Findings, classes: Classes, scored: Mapping[str, Stored], layer: int, few: int, *, last: bool
) -> None:
    """Observation 1 in one layer: tau of every kind, against class means; shape of the clusters."""
    site, device = Site(layer, "mlp_post"), classes.orders.device
    points = {kind: of[site].to(device).double() for kind, of in scored.items()}
    tau = {kind: clusters.tau(a, *classes.means(site)) for kind, a in points.items()}
    for kind, values in tau.items():
        found.mean("tau", values, kind=kind, layer=layer)
    found.separation("tau", tau[UNSAFE], tau[SAFE], layer=layer)
    dealt = classes.dealt(site)
    drawn = zip(*(clusters.tau_of_draws(points[kind], *dealt) for kind in (UNSAFE, SAFE)), strict=True)
    found.draws("tau_auc", [clusters.auc(*pair)[0] for pair in drawn], control="shuffled", layer=layer)
    where = {"layer": layer, "site": site.name}
    pair = [points[kind][:few] for kind in (SAFE, UNSAFE)]
    found.value("silhouette", clusters.silhouette(*pair), n=sum(map(len, pair)), **where)
    for kind in (SAFE, UNSAFE):
        cluster = classes.of[kind][site].to(device)
        found.value("top_singular_share", clusters.top_share(cluster), kind=kind, n=len(cluster), **where)
    if last:
        spread = clusters.within_class_sd(tau[SAFE], tau[UNSAFE])
        for kind, values in tau.items():
            # In units of the spread within a class, so that larger activations do not seem to separate more.
            found.score("scaled_tau", clusters.in_units_of(values, spread), kind=kind, layer=layer)


def measure_change(
    found: Findings,
    change: Change,
    classes: Classes,
    inputs: Mapping[str, Mapping[str, Stored]],
    layer: int,
    scoring: Stream | None,
    draws: int,
) -> None:
    """Observation 3 in one layer: what dW does with its inputs; and whether it writes along the difference of means.

    Args:
        inputs: by what is added to the name of a metric, activations by kind: under "" the model's own, others beside.
        scoring: where random directions come from, if prompts are to have scores: in the last layer.
    """
    device = classes.orders.device
    for suffix, of_kinds in inputs.items():
        scores: dict[tuple[str, str], dict[str, PerPrompt]] = {}
        for kind, of in of_kinds.items():
            a = of[Site(layer, "mlp_in")].to(device).double()
            for control, matrix in change.stand_ins.items():
                scores.setdefault((f"gain{suffix}", control), {})[kind] = projections.gain(matrix, a)
            share = projections.row_projection(change.delta, a)
            scores.setdefault((f"row_projection{suffix}", ""), {})[kind] = share
            share = projections.row_projection(change.turned, a)
            scores.setdefault((f"row_projection{suffix}", "rotated"), {})[kind] = share
        for (metric, control), by_kind in scores.items():
            where = {"layer": layer, "control": control}
            for kind, values in by_kind.items():
                found.mean(metric, values, kind=kind, **where)
                if scoring and not control:
                    found.score(f"log_{metric}", logarithm(values), kind=kind, layer=layer)
            found.separation(metric, by_kind[SAFE], by_kind[UNSAFE], **where)
            found.ratio(metric, by_kind[SAFE], by_kind[UNSAFE], **where)
        if scoring:
            _score_draws(found, change, suffix, of_kinds, layer, scoring, draws)
    site = Site(layer, "mlp_pre")
    about = {"layer": layer, "site": site.name}

    def written(safe: Tensor, unsafe: Tensor) -> float:
        return directions.written_share(directions.difference_of_means(safe, unsafe), change.delta, directions.TOP)

    found.value("direction_in_delta", written(*classes.means(site)), **about)
    drawn = [written(*pair) for pair in zip(*classes.dealt(site), strict=True)]
    found.draws("direction_in_delta", drawn, control="shuffled", **about)
    found.value("direction_in_delta", directions.TOP / len(change.delta.u), control="haar", **about)


def _score_draws(
    found: Findings, change: Change, suffix: str, of_kinds: Mapping[str, Stored], layer: int, stream: Stream, draws: int
) -> None:
    """By kind, the mean score of its prompts under dW in random directions, once per draw."""
    device, size = change.delta.s.device, len(change.delta.v)
    means: dict[tuple[str, str], list[Tensor]] = {}
    for draw in range(draws):
        v = controls.haar(size, len(change.delta.s), stream("rotated", layer, "draw", draw), device)
        turned = Svd(change.delta.u, change.delta.s, v)
        reads = turned.s[:, None] * v.mT
        for kind, of in of_kinds.items():
            a = of[Site(layer, "mlp_in")].to(device).double()
            scores = {"gain": projections.gain(reads, a), "row_projection": projections.row_projection(turned, a)}
            for metric, values in scores.items():
                means.setdefault((f"log_{metric}{suffix}", kind), []).append(logarithm(values).mean())
    for (metric, kind), drawn in means.items():
        found.score(metric, torch.stack(drawn), kind=kind, layer=layer, control="rotated")


def _sites(model: PreTrainedModel, *names: str) -> list[Site]:
    return [Site(layer, name) for layer in range(layer_count(model)) for name in names]
