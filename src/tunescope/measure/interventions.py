"""Everything that is done to a pair of models: dW scaled, cut, projected, rotated or joined by another, and a direction
taken out or put in. Each thing that has a chance of doing nothing in particular stands beside random draws of its kind.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import InterveneConfig
from tunescope.interventions import weights
from tunescope.interventions.directions import with_vector, without_direction
from tunescope.measure.findings import SAFE, UNSAFE
from tunescope.models.inputs import Inputs
from tunescope.models.sites import Site, input_site, layer_count, weight_names
from tunescope.probes.collect import last_activations, moments
from tunescope.probes.controls import haar
from tunescope.probes.directions import difference_of_means, standing_out
from tunescope.rng import Stream

WITHOUT, TWICE = 0.0, 2.0  # values of alpha for a part of the weights
EVERYWHERE = "all"

Make = Callable[[], AbstractContextManager[PreTrainedModel]]
Refused = Callable[[PreTrainedModel, Inputs], Bool[Tensor, " n"]]
Spaces = Mapping[Site, Float[Tensor, "width k"]]


@dataclass(frozen=True)
class Intervention:
    """One change, as a model that has it.

    Attributes:
        name: of the intervention. dial: alpha, rank or number of directions; None where there is none.
        scope: what it touches.
        makes: each gives the model, when it is its turn, since it takes memory; several where something is drawn.
    """

    name: str
    dial: float | None
    scope: str
    makes: tuple[Make, ...]


def scalings(base: PreTrainedModel, tuned: PreTrainedModel, config: InterveneConfig) -> Iterator[Intervention]:
    """W + alpha dW: in every parameter, in parts of the MLPs, in one MLP alone."""
    for alpha in config.alphas:
        yield _changed(base, tuned, "scaled", alpha, EVERYWHERE, partial(weights.scaled, alpha=alpha))
    scopes: dict[str, tuple[tuple[str, ...], list[int] | None]]
    scopes = {"mlp": (weights.MLP, None), "W_in": (("W_in",), None)}
    scopes |= {f"mlp.{layer}": (weights.MLP, [layer]) for layer in range(layer_count(base))}
    for scope, (names, layers) in scopes.items():
        for alpha in WITHOUT, TWICE:
            make = partial(weights.scaled_in, alpha=alpha, names=names, layers=layers)
            yield _changed(base, tuned, "scaled", alpha, scope, make)


def weight_changes(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    others: Mapping[str, PreTrainedModel],
    spaces: Spaces,
    config: InterveneConfig,
    stream: Stream,
) -> Iterator[Intervention]:
    """Whatever else is done to dW.

    Args:
        others: further fine-tunes of the same base, whose dW is put on top, by protocol.
        spaces: directions in which unsafe inputs stand out, as `unsafe_spaces` finds them.
    """
    changed = partial(_changed, base, tuned)

    def drawn(name: str, scope: str, make: Callable[..., PreTrainedModel]) -> Intervention:
        return changed(name, None, scope, *(partial(make, stream=stream(name, i)) for i in range(config.draws)))

    for rank in config.ranks:
        yield changed("truncated", rank, "blocks", partial(weights.truncated, rank=rank))
    yield changed("in_null_space", None, "W_in", weights.in_null_space)
    yield changed("in_column_space", None, "W_in", weights.in_column_space)
    yield drawn("in_random_space", "W_in", weights.in_random_space)
    yield changed("matrices", None, "blocks", weights.matrices)
    yield drawn("rotated", "blocks", weights.rotated)
    for k in config.reads:
        first = {site: basis[:, :k] for site, basis in spaces.items()}
        yield changed("off_unsafe_inputs", k, "blocks", partial(weights.not_reading, spaces=first))
        yield changed("on_unsafe_inputs", k, "blocks", partial(weights.reading, spaces=first))
    random = [_random_spaces(spaces, stream("inputs", i)) for i in range(config.draws)]
    for name, cut in (("off_random_inputs", weights.not_reading), ("on_random_inputs", weights.reading)):
        yield changed(name, max(config.reads), "blocks", *(partial(cut, spaces=drawn) for drawn in random))
    for protocol, other in others.items():
        yield changed(f"with_{protocol}", None, EVERYWHERE, partial(weights.transferred, other=other))


def direction_changes(
    tuned: PreTrainedModel,
    fit: Mapping[str, Inputs],
    refused: Refused,
    config: InterveneConfig,
    rows: int,
    stream: Stream,
) -> Iterator[Intervention]:
    """The difference of means taken out of the residual stream everywhere, or added to it after one layer.

    Of which layer is chosen on `fit`, safe and unsafe prompts that nothing else is measured on: where fewest unsafe
    prompts stay refused without it, and where most safe ones are with it.
    """
    sites = [Site(layer, "resid_post") for layer in range(layer_count(tuned))]
    means = {kind: moments(tuned, fit[kind], sites, rows) for kind in (SAFE, UNSAFE)}
    both = {site: (means[SAFE][site].mean, means[UNSAFE][site].mean) for site in sites}
    directions = {site: difference_of_means(*both[site]) for site in sites}

    def take(direction: Tensor) -> Make:
        return lambda: without_direction(tuned, direction)

    def put(direction: Tensor, site: Site) -> Make:
        size = (both[site][1] - both[site][0]).norm()
        return lambda: with_vector(tuned, size * direction, site.layer or 0)

    def count(make: Make, kind: str) -> int:
        with make() as model:
            return int(refused(model, fit[kind]).sum())

    out = min(sites, key=lambda site: count(take(directions[site]), UNSAFE))
    into = max(sites, key=lambda site: count(put(directions[site], site), SAFE))
    width, device = len(directions[out]), directions[out].device
    random = [haar(width, 1, stream("direction", i), device)[:, 0] for i in range(config.draws)]
    yield Intervention("direction_ablated", None, str(out), (take(directions[out]),))
    yield Intervention("random_direction_ablated", None, str(out), tuple(map(take, random)))
    yield Intervention("direction_added", None, str(into), (put(directions[into], into),))
    yield Intervention("random_direction_added", None, str(into), tuple(put(drawn, into) for drawn in random))


def unsafe_spaces(model: PreTrainedModel, fit: Mapping[str, Inputs], k: int, rows: int) -> Spaces:
    """For every input of a matrix, the k directions in which unsafe prompts stand out from safe ones."""
    sites = list({input_site(model, i, name): None for i in range(layer_count(model)) for name in weight_names(model)})
    safe = moments(model, fit[SAFE], sites, rows)
    unsafe = list(last_activations(model, fit[UNSAFE], sites, rows))
    return {site: standing_out(torch.cat([part[site] for part in unsafe]), safe[site].mean, k) for site in sites}


def _random_spaces(like: Spaces, stream: Stream) -> Spaces:
    sizes = {site: tuple(basis.shape) for site, basis in like.items()}
    return {site: haar(size, k, stream(str(site)), like[site].device) for site, (size, k) in sizes.items()}


def _changed(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    name: str,
    dial: float | None,
    scope: str,
    *makes: Callable[..., PreTrainedModel],
) -> Intervention:
    def ready(make: Callable[..., PreTrainedModel]) -> Make:
        return lambda: nullcontext(make(base, tuned))

    return Intervention(name, dial, scope, tuple(map(ready, makes)))
