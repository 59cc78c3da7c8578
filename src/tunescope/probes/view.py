"""One look at a model: its activations on prompts, its class means, its change from the base; each computed once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import ProbeConfig
from tunescope.errors import InputError, choices, shown
from tunescope.models.pair import Pair
from tunescope.models.sites import LAYER_SITES, Site, layer_count
from tunescope.models.weights import in_memory
from tunescope.probes import controls, sensitivity
from tunescope.probes.collect import Stored, first_logits, stored
from tunescope.probes.subspaces import Svd, arithmetic_for
from tunescope.progress import progress
from tunescope.records.findings import Findings
from tunescope.records.intervals import Groups, PerPrompt
from tunescope.records.names import SAFE, UNSAFE, W_IN
from tunescope.records.tables import Subject
from tunescope.registry import Registry
from tunescope.rng import Stream
from tunescope.tasks.base import Batch

Batches = Mapping[str, Batch]  # by kind
INPUT = "mlp_in"  # the input of W_in: what a fine-tune is told of its base


@dataclass(frozen=True)
class Change:
    """The change of one W_in, and what stands in its place as a control.

    Attributes:
        before: W.
        turned: dW with its directions drawn at random.
        stand_ins: what acts on inputs, by control: dW itself under the empty name, then `gaussian` and `rotated`, of
            which the latter lacks the outputs' directions, as no norm depends on them.
    """

    before: Float[Tensor, "out in"]
    delta: Svd
    turned: Svd
    stand_ins: Mapping[str, Float[Tensor, "_ in"]]


class View:
    """What probes see.

    Attributes:
        fit: safe and unsafe prompts that give class means. score: prompts that are scored against them.
        stream: of controls, and of whatever else is random.
        pair: matrices of base and model; None where the model is a base itself.
        base_inputs: by kind, activations of the base at the inputs of W_in, of the scored prompts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        fit: Batches,
        score: Batches,
        config: ProbeConfig,
        stream: Stream,
        *,
        pair: Pair | None = None,
        base_inputs: Mapping[str, Stored] | None = None,
    ) -> None:
        model.requires_grad_(False)
        self.model, self.fit, self.score, self.config, self.stream = model, fit, score, config, stream
        self.pair, self.base_inputs = pair, base_inputs or {}
        self.layers, self.last = layer_count(model), layer_count(model) - 1
        self.device = fit[SAFE].prompts.sequence.device
        self._kept: dict[tuple[str, str], dict[Site, Tensor]] = {}
        self._changes: dict[int, Change | None] = {}

    def read(self, split: str, names: Sequence[str]) -> None:
        """Read these sites of every layer of all prompts of a split, `fit` or `score`, in one pass."""
        sites = [Site(layer, name) for layer in range(self.layers) for name in dict.fromkeys(names)]
        for kind, batch in (self.fit if split == "fit" else self.score).items():
            kept = self._kept.setdefault((split, kind), {})
            if missing := [site for site in sites if site not in kept]:
                kept.update(stored(self.model, batch.prompts, missing, self.config.rows))

    def activations(self, split: str, kind: str, site: Site) -> Float[Tensor, "n width"]:
        """At the last token of each prompt, in float64."""
        if site not in self._kept.get((split, kind), {}):
            self.read(split, [site.name])
        return self._kept[split, kind][site].to(self.device).double()

    def scored(self, site: Site) -> dict[str, Float[Tensor, "n width"]]:
        """Activations of the scored prompts, by kind."""
        return {kind: self.activations("score", kind, site) for kind in self.score}

    def means(self, site: Site) -> tuple[Float[Tensor, " width"], Float[Tensor, " width"]]:
        """Means of the safe and of the unsafe class, in float64."""
        return self.activations("fit", SAFE, site).mean(0), self.activations("fit", UNSAFE, site).mean(0)

    def dealt(self, site: Site) -> tuple[Float[Tensor, "draws width"], Float[Tensor, "draws width"]]:
        """The same of classes of which chance dealt out the labels, once per draw."""
        safe = self.activations("fit", SAFE, site)
        both = torch.cat([safe, self.activations("fit", UNSAFE, site)])
        labels = (self._orders < len(safe)).double()
        return labels @ both / len(safe), (1 - labels) @ both / (len(both) - len(safe))

    def change(self, layer: int) -> Change | None:
        """Of W_in in a layer; None where it is as it was."""
        if layer not in self._changes:
            self._changes[layer] = self._change(layer)
        return self._changes[layer]

    def gradients(self, kind: str) -> PerPrompt:
        """Sensitivity of each scored prompt: the paper's, of the first answer token."""
        return gradient_norms(self.model, self.score[kind], self.config.rows)

    @property
    def few(self) -> Batches:
        """Some of the fit prompts, where each costs much."""
        return {kind: batch.first(self.config.few_prompts) for kind, batch in self.fit.items()}

    @property
    def whole(self) -> bool:
        """Whether all weights are in memory."""
        return in_memory(self.model)

    @cached_property
    def _orders(self) -> Tensor:
        """Random orders of all fit prompts, [draws, n]; those below the number of safe ones count as safe."""
        n, labels = len(self.fit[SAFE]) + len(self.fit[UNSAFE]), self.stream("labels")
        return torch.stack([controls.shuffled(n, labels(i), self.device) for i in range(self.config.draws)])

    def _change(self, layer: int) -> Change | None:
        if self.pair is None:
            return None
        before, matrix = (each.to(self.device) for each in self.pair.matrices(layer, W_IN))
        if not matrix.any():
            return None
        delta = arithmetic_for(matrix).decompose(matrix)
        turned = controls.rotated(delta, self.stream("rotated", layer))
        rotated = turned.s[:, None] * turned.v.mT
        gaussian = controls.gaussian(matrix, self.stream("gaussian", layer))
        return Change(before, delta, turned, {"": matrix, "gaussian": gaussian, "rotated": rotated})


@dataclass(frozen=True)
class Probe:
    """What is measured of a view.

    Attributes:
        fit, score: names of the sites that it reads, of every layer, of the prompts of either split.
        needs_change: whether it looks at dW, which a base has not.
        needs_whole: whether it takes gradients.
        measures: names of the scores that claims may be about.
    """

    name: str
    measure: Callable[[View, Findings], None]
    fit: tuple[str, ...]
    score: tuple[str, ...]
    needs_change: bool
    needs_whole: bool
    measures: tuple[str, ...]


PROBES: Registry[Probe] = Registry("probe", "view", "findings")
Measure = Callable[[View, Findings], None]


def probe(
    name: str,
    *,
    fit: Sequence[str] = (),
    score: Sequence[str] = (),
    needs_change: bool = False,
    needs_whole: bool = False,
    measures: Sequence[str] = (),
) -> Callable[[Measure], Measure]:
    """Register a function that measures a view as a probe; see `Probe`.

    Raises:
        InputError: a site of this name does not exist, or another module has registered a probe of this name.
    """
    if unknown := [site for site in (*fit, *score) if site not in LAYER_SITES]:
        raise InputError(f"probe {shown(name)}: unknown site {shown(unknown[0])}. {choices(unknown[0], LAYER_SITES)}")

    def register(measure: Measure) -> Measure:
        entry = Probe(name, measure, tuple(fit), tuple(score), needs_change, needs_whole, tuple(measures))
        PROBES.define(name, entry, measure)
        return measure

    return register


def look_inside(view: View, subject: Subject, names: Sequence[str] | None = None) -> Findings:
    """What these probes, or all, say of a model."""
    chosen = [PROBES[name] for name in (PROBES if names is None else names)]
    chosen = [each for each in chosen if not (each.needs_change and view.pair is None)]
    chosen = [each for each in chosen if view.whole or not each.needs_whole]
    for split in ("fit", "score"):
        if sites := [site for each in chosen for site in getattr(each, split)]:
            view.read(split, sites)
    found = Findings(subject, groups_of(view.score))
    for each in progress(chosen, desc=f"probes of {subject.model}", unit="probe"):
        each.measure(view, found)
    return found


def groups_of(batches: Batches) -> dict[str, Groups]:
    return {kind: batch.groups for kind, batch in batches.items()}


def gradient_norms(model: PreTrainedModel, batch: Batch, rows: int) -> PerPrompt:
    """Norm of the gradient of each prompt's largest logit with respect to its input embeddings."""
    parts = (part.embedded(model) for part in batch.prompts.split(rows))
    return torch.cat([sensitivity.top_logit_gradient(first_logits(model, part), part.sequence) for part in parts])
