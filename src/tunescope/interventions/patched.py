"""Activations of another pass in the place of a model's own: activation patching, or interchange interventions.

What a model computes at a site, at some positions of the prompt, is replaced by what it computes on a twin of the
prompt, or by what the base does on the same prompt (Vig et al. 2020, Geiger et al. 2021, Meng et al. 2022). At one
layer, all that follows is computed anew. At all layers at once, what the other of attention and MLPs adds is kept as it
was: otherwise MLPs would follow what attention hands them, and everything would be attention's.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import NoSettings
from tunescope.interventions.base import Bench, Intervention, intervention
from tunescope.interventions.weights import with_parameters
from tunescope.models.hooks import capture, patch
from tunescope.models.sites import Site, layer_count
from tunescope.probes.view import Batches
from tunescope.records.names import EVERYWHERE, SAFE, UNSAFE
from tunescope.tasks.base import Batch, Twins

ADDED = ("attn_out", "mlp_out")
SITES = (*ADDED, "resid_post")
Activations = Mapping[str, dict[Site, Float[Tensor, "n p width"]]]  # by group of positions


@intervention("patched", weights=False)
def patched(bench: Bench, settings: NoSettings) -> Iterator[Intervention]:
    """Of the safe twin, and as the control of the other one, into the unsafe prompt; of this into the safe twin."""
    if not (twins := bench.twins):
        return
    unsafe, safe, other = (_read(bench, batch) for batch in (twins.unsafe, twins.safe, twins.other))
    of_unsafe, of_safe = {UNSAFE: twins.unsafe}, {SAFE: twins.safe}
    make = partial(patch, bench.model)
    yield from _patches("patched_from_twin", of_unsafe, twins, unsafe, safe, make)
    yield from _patches("patched_from_other", of_unsafe, twins, unsafe, other, make)
    yield from _patches("patched_into_twin", of_safe, twins, safe, unsafe, make)


@intervention("patched_base")
def patched_base(bench: Bench, settings: NoSettings) -> Iterator[Intervention]:
    """Of the base into the fine-tune, and the other way round, on the same unsafe prompts."""
    if not (twins := bench.twins):
        return
    prompts = {UNSAFE: twins.unsafe}
    tuned = _read(bench, twins.unsafe)
    with _base(bench):
        base = _read(bench, twins.unsafe)
    yield from _patches("patched_from_base", prompts, twins, tuned, base, partial(patch, bench.model))
    yield from _patches("patched_into_base", prompts, twins, base, tuned, partial(_patched_base, bench))


def _read(bench: Bench, batch: Batch) -> Activations:
    """What the model computes, by group of positions."""
    assert bench.twins
    sites = [Site(layer, name) for layer in range(layer_count(bench.model)) for name in SITES]
    found = {}
    for name, positions in bench.twins.positions.items():
        with torch.no_grad(), capture(bench.model, sites, take=partial(_part, positions)) as found[name]:
            bench.model(**batch.prompts.arguments(), use_cache=False, logits_to_keep=1)
    return found


def _part(positions: slice, activation: Tensor) -> Tensor:
    return activation[:, positions].clone()


def _patches(
    name: str,
    prompts: Batches,
    twins: Twins,
    own: Activations,
    others: Activations,
    make: Callable[[dict[Site, Tensor], slice], AbstractContextManager[PreTrainedModel]],
) -> Iterator[Intervention]:
    """One per position and site; then at all layers at once, what the other of the two sites adds kept as its own."""
    for position, where in twins.positions.items():
        other = others[position]
        for site, activation in other.items():
            change = partial(make, {site: activation}, where)
            yield Intervention(name, None, f"{site} {position}", (change,), site.layer, prompts)
        for which in ADDED:
            both = {s: (other if s.name == which else own[position])[s] for s in other if s.name in ADDED}
            scope = f"{which}.{EVERYWHERE} {position}"
            yield Intervention(name, None, scope, (partial(make, both, where),), prompts=prompts)


def _base(bench: Bench) -> AbstractContextManager[PreTrainedModel]:
    return with_parameters(bench.model, bench.pair, lambda name, before, after: before)


@contextmanager
def _patched_base(bench: Bench, activations: dict[Site, Tensor], positions: slice) -> Iterator[PreTrainedModel]:
    with _base(bench) as model, patch(model, activations, positions):
        yield model
