"""Activations of another pass in the place of a model's own: activation patching, or interchange interventions.

What a model computes at a site, at some positions of the prompt, is replaced by what it computes on a twin of the
prompt, or by what the base does on the same prompt (Vig et al. 2020, Geiger et al. 2021, Meng et al. 2022). At one
layer, all that follows is computed anew. At all layers at once, what the other of attention and MLPs adds is kept as it
was: otherwise MLPs would follow what attention hands them, and everything would be attention's.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from tunescope.config import NoSettings
from tunescope.interventions.base import Bench, Intervention, intervention
from tunescope.interventions.weights import with_parameters
from tunescope.models.hooks import capture, patch
from tunescope.models.sites import Site, layer_count
from tunescope.probes.view import Batches
from tunescope.records.names import EVERYWHERE, LAST, SAFE, UNSAFE
from tunescope.tasks.base import Batch

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
    for name, activations in (("patched_from_twin", safe), ("patched_from_other", other)):
        yield from _one_layer(bench, name, of_unsafe, activations)
        yield from _all_layers(bench, name, of_unsafe, unsafe, activations)
    yield from _all_layers(bench, "patched_into_twin", of_safe, safe, unsafe)


@intervention("patched_base")
def patched_base(bench: Bench, settings: NoSettings) -> Iterator[Intervention]:
    """Of the base into the fine-tune, on the same unsafe prompts."""
    if not (twins := bench.twins):
        return
    tuned = _read(bench, twins.unsafe)
    with with_parameters(bench.model, bench.pair, lambda name, before, after: before):
        base = _read(bench, twins.unsafe)
    of_unsafe = {UNSAFE: twins.unsafe}
    yield from _one_layer(bench, "patched_from_base", of_unsafe, base)
    yield from _all_layers(bench, "patched_from_base", of_unsafe, tuned, base)


def _read(bench: Bench, batch: Batch) -> Activations:
    """What the model computes, by group of positions."""
    assert bench.twins
    sites = [Site(layer, name) for layer in range(layer_count(bench.model)) for name in SITES]
    with torch.no_grad(), capture(bench.model, sites, take=torch.clone) as whole:
        bench.model(**batch.prompts.arguments(), use_cache=False, logits_to_keep=1)
    return {
        name: {site: activation[:, positions] for site, activation in whole.items()}
        for name, positions in bench.twins.positions.items()
    }


def _one_layer(bench: Bench, name: str, prompts: Batches, others: Activations) -> Iterator[Intervention]:
    """One per site and position."""
    assert bench.twins
    last = layer_count(bench.model) - 1
    for position, where in bench.twins.positions.items():
        for site, activation in others[position].items():
            if site.layer != last or position == LAST:  # nothing reads what the last layer writes elsewhere
                change = partial(patch, bench.model, {site: activation}, where)
                yield Intervention(name, None, f"{site} {position}", (change,), site.layer, prompts)


def _all_layers(
    bench: Bench, name: str, prompts: Batches, own: Activations, others: Activations
) -> Iterator[Intervention]:
    """One per position and what is added, with what the other of the two sites adds kept as the model's own."""
    assert bench.twins
    for position, where in bench.twins.positions.items():
        for which in ADDED:
            of = {ADDED[0]: own[position], ADDED[1]: own[position], which: others[position]}
            both = {site: of[site.name][site] for site in own[position] if site.name in ADDED}
            change = partial(patch, bench.model, both, where)
            yield Intervention(name, None, f"{which}.{EVERYWHERE} {position}", (change,), prompts=prompts)
