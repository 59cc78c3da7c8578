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
from tunescope.probes.collect import activations, means_of
from tunescope.probes.controls import haar
from tunescope.probes.directions import difference_of_means, standing_out
from tunescope.rng import Stream

WITHOUT, TWICE = 0.0, 2.0  # values of alpha for a part of the weights
EVERYWHERE = "all"

Make = Callable[[], AbstractContextManager[PreTrainedModel]]
Refused = Callable[[PreTrainedModel, Inputs], Bool[Tensor, " n"]]
Spaces = dict[Site, Float[Tensor, "width k"]]


@dataclass(frozen=True)
class Intervention:
    """One change, as a model that has it.

    Attributes:
        name: of the intervention. dial: alpha, rank or number of directions; None where there is none.
        scope: what it touches. layer: where it was told by other prompts to.
        makes: each gives the model, when it is its turn, since it takes memory; several where something is drawn.
    """

    name: str
    dial: float | None
    scope: str
    makes: tuple[Make, ...]
    layer: int | None = None


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
    fit: Mapping[str, Inputs],
    config: InterveneConfig,
    rows: int,
    stream: Stream,
) -> Iterator[Intervention]:
    """Whatever else is done to dW.

    Args:
        others: further fine-tunes of the same base, whose dW is put on top, by protocol.
        fit: safe and unsafe prompts that nothing else is measured on, which tell in what their inputs stand out.
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
    most = max(config.reads)
    spaces = standing_spaces(tuned, fit, most, rows)
    random = [_random_spaces(spaces[UNSAFE], stream("inputs", i)) for i in range(config.draws)]
    for k in config.reads:
        first = {site: basis[:, :k] for site, basis in spaces[UNSAFE].items()}
        yield changed("off_unsafe_inputs", k, "blocks", partial(weights.not_reading, spaces=first))
        yield changed("on_unsafe_inputs", k, "blocks", partial(weights.reading, spaces=first))
    yield changed("off_safe_inputs", most, "blocks", partial(weights.not_reading, spaces=spaces[SAFE]))
    yield changed("on_safe_inputs", most, "blocks", partial(weights.reading, spaces=spaces[SAFE]))
    yield changed("off_random_inputs", most, "blocks", *(partial(weights.not_reading, spaces=each) for each in random))
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
    prompts stay refused without it, and where most safe ones are with it. Not the last, which is what is said already.
    """
    sites = [Site(layer, "resid_post") for layer in inner_layers(tuned)]
    means = {kind: means_of(tuned, fit[kind], sites, rows) for kind in (SAFE, UNSAFE)}
    both = {site: (means[SAFE][site], means[UNSAFE][site]) for site in sites}
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
    for name, makes, site in (
        ("direction_ablated", (take(directions[out]),), out),
        ("random_direction_ablated", tuple(map(take, random)), out),
        ("direction_added", (put(directions[into], into),), into),
        ("random_direction_added", tuple(put(drawn, into) for drawn in random), into),
    ):
        yield Intervention(name, None, site.name, makes, site.layer)


def inner_layers(model: PreTrainedModel) -> range:
    """The layers after which more layers come: a direction behind the last writes the answer itself."""
    return range(max(1, layer_count(model) - 1))


def standing_spaces(model: PreTrainedModel, fit: Mapping[str, Inputs], k: int, rows: int) -> dict[str, Spaces]:
    """For every input of a matrix, the k directions in which prompts of a kind stand out from the mean safe one.

    At each place of the prompt from the mean of that place, and over all places: queries alone are read at the last.
    Of safe prompts it is how they differ among themselves: what there is of prompts that is no matter of safety.
    """
    sites = list({input_site(model, i, name): None for i in range(layer_count(model)) for name in weight_names(model)})

    def of(kind: str) -> dict[Site, Tensor]:
        parts = [dict(part) for part in activations(model, fit[kind], sites, rows)]
        return {site: torch.cat([part[site] for part in parts]) for site in sites}

    safe, unsafe = of(SAFE), of(UNSAFE)
    means = {site: activation.double().mean(0) for site, activation in safe.items()}
    return {
        kind: {site: standing_out(values[site], means[site], k) for site in sites}
        for kind, values in ((SAFE, safe), (UNSAFE, unsafe))
    }


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
