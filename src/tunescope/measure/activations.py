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
from tunescope.models.inputs import Inputs
from tunescope.models.sites import Site, layer_count
from tunescope.probes import clusters, controls, directions, projections
from tunescope.probes.clusters import Moments
from tunescope.probes.collect import last_activations, moments
from tunescope.probes.subspaces import Svd
from tunescope.rng import Stream


class Key(NamedTuple):
    """Which score of a prompt."""

    metric: str
    control: str
    layer: int


@dataclass(frozen=True)
class Classes:
    """Sums over the fit prompts of each class, and means of pairs of classes of which chance dealt out the labels.

    Attributes:
        dealt: for each site the means of such safe and unsafe classes, each [draws, width].
    """

    true: Mapping[str, Mapping[Site, Moments]]
    dealt: Mapping[Site, tuple[Tensor, Tensor]]

    def means(self, site: Site) -> tuple[Tensor, Tensor]:
        """Means of the safe and of the unsafe class."""
        return self.true[SAFE][site].mean, self.true[UNSAFE][site].mean


def fit_classes(model: PreTrainedModel, sample: Sample, config: ProbeConfig, stream: Stream) -> Classes:
    sites = [site for name in ("mlp_pre", "mlp_post", "resid_post") for site in _sites(model, name)]
    true = {kind: moments(model, sample.fit[kind], sites, config.rows) for kind in (SAFE, UNSAFE)}
    return Classes(true, _dealt_means(model, sample, sites, config, stream("labels")))


def _dealt_means(
    model: PreTrainedModel, sample: Sample, sites: Sequence[Site], config: ProbeConfig, stream: Stream
) -> dict[Site, tuple[Tensor, Tensor]]:
    together, safe = Inputs.joined([sample.fit[SAFE], sample.fit[UNSAFE]]), len(sample.fit[SAFE])
    n, device = len(together), together.sequence.device
    orders = torch.stack([controls.shuffled(n, stream(draw), device) for draw in range(config.draws)])
    counted_safe = (orders < safe).double()
    sums: dict[Site, list[Tensor]] = {}
    for batch, chosen in zip(
        last_activations(model, together, sites, config.rows), counted_safe.split(config.rows, 1), strict=True
    ):
        for site, a in batch.items():
            new = [labels @ a.double() for labels in (chosen, 1 - chosen)]
            sums[site] = [old + more for old, more in zip(sums[site], new, strict=True)] if site in sums else new
    return {site: (of_safe / safe, of_unsafe / (n - safe)) for site, (of_safe, of_unsafe) in sums.items()}


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
        scored[kind] = _own_scores(model, classes, changes, prompts, config.rows)
        if base:
            scored[kind] |= _scores_of_base_input(base, changes, prompts, config.rows)
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
    _measure_dealt(found, model, classes, sample, config.rows)
    tau = {kind: scores[Key("tau", "", last)] for kind, scores in scored.items()}
    spread = clusters.within_class_sd(tau[SAFE], tau[UNSAFE])
    for kind, values in tau.items():
        # In units of the spread within a class, so that a model with larger activations does not seem to separate more.
        found.score("scaled_tau", clusters.in_units_of(values, spread), kind=kind, layer=last)


def _measure_dealt(found: Findings, model: PreTrainedModel, classes: Classes, sample: Sample, rows: int) -> None:
    """The control of tau's AUC: class means of labels dealt out at random, and the middle 95 % of what they give."""
    sites = _sites(model, "mlp_post")
    parts: dict[Site, dict[str, list[Tensor]]] = {site: {SAFE: [], UNSAFE: []} for site in sites}
    for kind in (SAFE, UNSAFE):
        for batch in last_activations(model, sample.score[kind], sites, rows):
            for site, a in batch.items():
                parts[site][kind].append(clusters.tau_of_draws(a, *classes.dealt[site]))
    for site, of in parts.items():
        safe, unsafe = (torch.cat(of[kind], dim=1) for kind in (SAFE, UNSAFE))
        drawn = [clusters.auc(*pair)[0] for pair in zip(unsafe, safe, strict=True)]
        found.draws("tau_auc", drawn, control="shuffled", layer=site.layer)


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

        def written(safe: Tensor, unsafe: Tensor, delta: Svd = change.delta) -> float:
            return directions.written_share(directions.difference_of_means(safe, unsafe), delta, directions.TOP)

        found.value("direction_in_delta", written(*classes.means(site)), **where)
        drawn = [written(*pair) for pair in zip(*classes.dealt[site], strict=True)]
        found.draws("direction_in_delta", drawn, control="shuffled", **where)
        found.value("direction_in_delta", directions.TOP / len(change.delta.u), control="haar", **where)


def _sites(model: PreTrainedModel, name: str) -> list[Site]:
    return [Site(layer, name) for layer in range(layer_count(model))]


def _own_scores(
    model: PreTrainedModel, classes: Classes, changes: Sequence[Change], prompts: Inputs, rows: int
) -> dict[Key, PerPrompt]:
    """tau, and what each change does with the model's own inputs of the matrix that it changes."""
    parts: dict[Key, list[Tensor]] = {}
    for batch in last_activations(model, prompts, [*_sites(model, "mlp_post"), *_sites(model, "mlp_in")], rows):
        for site in _sites(model, "mlp_post"):
            tau = clusters.tau(batch[site], *classes.means(site))
            parts.setdefault(Key("tau", "", site.layer or 0), []).append(tau)
        _add_projections(parts, "", [batch[site] for site in _sites(model, "mlp_in")], changes)
    return {key: torch.cat(values) for key, values in parts.items()}


def _scores_of_base_input(
    base: PreTrainedModel, changes: Sequence[Change], prompts: Inputs, rows: int
) -> dict[Key, PerPrompt]:
    """What each change would do with the inputs that the model had before fine-tuning."""
    parts: dict[Key, list[Tensor]] = {}
    for batch in last_activations(base, prompts, _sites(base, "mlp_in"), rows):
        _add_projections(parts, "_of_base_input", list(batch.values()), changes)
    return {key: torch.cat(values) for key, values in parts.items()}


def _add_projections(
    parts: dict[Key, list[Tensor]], suffix: str, inputs: Sequence[Tensor], changes: Sequence[Change]
) -> None:
    for layer, (a, change) in enumerate(zip(inputs, changes, strict=False)):
        for control, matrix in change.stand_ins.items():
            parts.setdefault(Key(f"gain{suffix}", control, layer), []).append(projections.gain(matrix, a))
        share = projections.row_projection(change.delta, a)
        parts.setdefault(Key(f"row_projection{suffix}", "", layer), []).append(share)
