"""Clusters of activations, and what dW does with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import ProbeConfig
from tunescope.measure.findings import SAFE, UNSAFE, Findings, PerPrompt, Sample, logarithm
from tunescope.measure.weights import Change
from tunescope.models.sites import Site, layer_count
from tunescope.probes import clusters, controls, directions, projections
from tunescope.probes.clusters import Moments
from tunescope.probes.collect import Prompts, last_activations, moments
from tunescope.rng import Stream


class Key(NamedTuple):
    """Which score of a prompt."""

    metric: str
    control: str
    layer: int


@dataclass(frozen=True)
class Classes:
    """Sums over the fit prompts of each class, and of two classes of which chance dealt out the labels."""

    true: Mapping[str, Mapping[Site, Moments]]
    shuffled: Mapping[str, Mapping[Site, Moments]]

    def means(self, site: Site, control: str = "") -> tuple[Tensor, Tensor]:
        """Means of the safe and of the unsafe class."""
        of = self.shuffled if control else self.true
        return of[SAFE][site].mean, of[UNSAFE][site].mean


def fit_classes(model: PreTrainedModel, sample: Sample, config: ProbeConfig, stream: Stream) -> Classes:
    sites = [site for name in ("mlp_pre", "mlp_post", "resid_post") for site in _sites(model, name)]
    together = torch.cat([sample.fit[SAFE], sample.fit[UNSAFE]])
    mixed = together[controls.shuffled(len(together), stream("labels"), together.device)]
    dealt = dict(zip((SAFE, UNSAFE), mixed.split([len(sample.fit[kind]) for kind in (SAFE, UNSAFE)]), strict=True))
    true, shuffled = (
        {kind: moments(model, of[kind], sites, config.rows) for kind in (SAFE, UNSAFE)} for of in (sample.fit, dealt)
    )
    return Classes(true, shuffled)


def measure_activations(
    found: Findings,
    model: PreTrainedModel,
    base: PreTrainedModel | None,
    classes: Classes,
    changes: Sequence[Change],
    sample: Sample,
    config: ProbeConfig,
) -> None:
    """Observations 1 and 3: tau, and |dW a| of the model's own activations and of the base's."""
    scored: dict[str, dict[Key, PerPrompt]] = {}
    for kind, prompts in sample.score.items():
        scored[kind] = _clusters(model, classes, prompts, config) | _projections("", model, changes, prompts, config)
        if base:
            scored[kind] |= _projections("_of_base_input", base, changes, prompts, config)
    last = layer_count(model) - 1
    for kind, scores in scored.items():
        for key, values in scores.items():
            found.mean(key.metric, values, kind=kind, layer=key.layer, control=key.control)
            if key.layer == last and not key.control and key.metric != "tau":
                found.score(f"log_{key.metric}", logarithm(values), kind=kind, layer=last)
    for key in scored[SAFE]:
        safe, unsafe, where = scored[SAFE][key], scored[UNSAFE][key], {"layer": key.layer, "control": key.control}
        if key.metric == "tau":
            found.separation("tau", unsafe, safe, **where)
        else:
            found.separation(key.metric, safe, unsafe, **where)
            found.ratio(key.metric, safe, unsafe, **where)
    tau = {kind: scores[Key("tau", "", last)] for kind, scores in scored.items()}
    spread = ((tau[SAFE].var() + tau[UNSAFE].var()) / 2).sqrt()
    for kind, values in tau.items():
        # In units of the spread within a class, so that a model with larger activations does not seem to separate more.
        found.score("scaled_tau", values / spread if spread > 0 else torch.zeros_like(values), kind=kind, layer=last)


def measure_classes(
    found: Findings, model: PreTrainedModel, classes: Classes, changes: Sequence[Change], sample: Sample, few: int
) -> None:
    """Shape of the clusters, and whether dW writes along the difference of their means."""
    sites = _sites(model, "mlp_post")
    safe, unsafe = (next(last_activations(model, sample.score[kind][:few], sites, few)) for kind in (SAFE, UNSAFE))
    for site in sites:
        where = {"layer": site.layer, "site": site.name}
        pair = safe[site], unsafe[site]
        found.value("silhouette", clusters.silhouette(*pair), n=len(pair[0]) + len(pair[1]), **where)
        for kind in (SAFE, UNSAFE):
            sums = classes.true[kind][site]
            found.value("top_singular_share", sums.top_share(), kind=kind, n=sums.n, **where)
    for site, change in zip(_sites(model, "mlp_pre"), changes, strict=False):
        where = {"layer": site.layer, "site": site.name}
        for control in ("", "shuffled"):
            direction = directions.difference_of_means(*classes.means(site, control))
            share = directions.written_share(direction, change.delta, directions.TOP)
            found.value("direction_in_delta", share, control=control, **where)
        found.value("direction_in_delta", directions.TOP / len(direction), control="haar", **where)


def _sites(model: PreTrainedModel, name: str) -> list[Site]:
    return [Site(layer, name) for layer in range(layer_count(model))]


def _clusters(model: PreTrainedModel, classes: Classes, prompts: Prompts, config: ProbeConfig) -> dict[Key, PerPrompt]:
    parts: dict[Key, list[Tensor]] = {}
    for batch in last_activations(model, prompts, _sites(model, "mlp_post"), config.rows):
        for site, activation in batch.items():
            for control in ("", "shuffled"):
                tau = clusters.tau(activation, *classes.means(site, control))
                parts.setdefault(Key("tau", control, site.layer or 0), []).append(tau)
    return {key: torch.cat(values) for key, values in parts.items()}


def _projections(
    suffix: str, model: PreTrainedModel, changes: Sequence[Change], prompts: Prompts, config: ProbeConfig
) -> dict[Key, PerPrompt]:
    """What each change does with this model's inputs of the matrix that it changes."""
    if not changes:
        return {}
    parts: dict[Key, list[Tensor]] = {}
    for batch in last_activations(model, prompts, _sites(model, "mlp_in"), config.rows):
        for (site, activation), change in zip(batch.items(), changes, strict=True):
            layer = site.layer or 0
            for control, matrix in change.stand_ins.items():
                gain = projections.gain(matrix, activation)
                parts.setdefault(Key(f"gain{suffix}", control, layer), []).append(gain)
            share = projections.row_projection(change.delta, activation)
            parts.setdefault(Key(f"row_projection{suffix}", "", layer), []).append(share)
    return {key: torch.cat(values) for key, values in parts.items()}
