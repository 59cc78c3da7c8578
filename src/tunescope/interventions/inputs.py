"""dW kept off the directions in which unsafe inputs stand out, or left alone with them; and with others beside."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tunescope.config import Base, Built, Config, Once, Positive
from tunescope.errors import InputError
from tunescope.interventions.base import Bench, Intervention, intervention
from tunescope.interventions.weights import Changed, Delta, Matrix, with_delta
from tunescope.models.sites import Site, input_site, layer_count, weight_names
from tunescope.probes.collect import activations
from tunescope.probes.controls import haar
from tunescope.probes.directions import standing_out
from tunescope.records.names import SAFE, UNSAFE
from tunescope.rng import Stream
from tunescope.tasks.base import Task

Spaces = dict[Site, Float[Tensor, "width k"]]


class InputDirections(Config):
    directions: Annotated[tuple[Positive, ...], Once] = Field(
        (1, 2, 4, 8), min_length=1, description="how many directions dW is kept off, or left alone with"
    )


def _check(settings: InputDirections, task: Task, base: Base) -> None:
    """Raises InputError where there are not so many directions."""
    if isinstance(base, Built) and (most := max(settings.directions)) >= base.width:
        raise InputError(f"intervene.settings.inputs.directions: {most} must be below base.width ({base.width})")


@intervention("inputs", settings=InputDirections, check=_check)
def inputs(bench: Bench, settings: InputDirections) -> Iterator[Intervention]:
    most = max(settings.directions)
    spaces = standing_spaces(bench, most)
    off, on = partial(_changed, bench, False), partial(_changed, bench, True)
    for k in settings.directions:
        first = {site: basis[:, :k] for site, basis in spaces[UNSAFE].items()}
        yield Intervention("off_unsafe_inputs", k, "blocks", (partial(off, first),))
        yield Intervention("on_unsafe_inputs", k, "blocks", (partial(on, first),))
    yield Intervention("off_safe_inputs", most, "blocks", (partial(off, spaces[SAFE]),))
    yield Intervention("on_safe_inputs", most, "blocks", (partial(on, spaces[SAFE]),))
    random = [_random_spaces(spaces[UNSAFE], bench.stream("inputs", i)) for i in range(bench.draws)]
    yield Intervention("off_random_inputs", most, "blocks", tuple(partial(off, each) for each in random))


def standing_spaces(bench: Bench, k: int) -> Mapping[str, Spaces]:
    """By kind and site that a matrix acts on: k directions that hold most of what inputs are beyond the safe mean.

    Means are by place, over all places: queries alone are read at the last. Of safe prompts it is how they differ among
    themselves: what there is of prompts that is no matter of safety.
    """
    model = bench.model
    sites = list({input_site(model, i, name): None for i in range(layer_count(model)) for name in weight_names(model)})
    # No place of which some prompt has only padding.
    masks = [batch.prompts.mask for batch in bench.fit.values()]
    length = min(batch.prompts.sequence.shape[1] for batch in bench.fit.values())
    length = min([length, *(int(mask.sum(1).min()) for mask in masks if mask is not None)])

    def of(kind: str) -> dict[Site, Tensor]:
        """Places count from the end, where prompts of other lengths and kinds meet."""
        parts = [
            {site: a[:, -length:] for site, a in part.items()}
            for part in activations(model, bench.fit[kind].prompts, sites, bench.rows)
        ]
        return {site: torch.cat([part[site] for part in parts]) for site in sites}

    safe, unsafe = of(SAFE), of(UNSAFE)
    means = {site: activation.double().mean(0) for site, activation in safe.items()}
    return {
        kind: {site: standing_out(values[site], means[site], k) for site in sites}
        for kind, values in ((SAFE, safe), (UNSAFE, unsafe))
    }


def _changed(bench: Bench, on_base: bool, spaces: Spaces) -> Changed:
    def change(delta: Delta) -> Matrix:
        basis = spaces[input_site(bench.model, delta.layer, delta.name)].to(delta.matrix)
        read = (delta.matrix @ basis) @ basis.mT
        return read if on_base else delta.matrix - read

    return with_delta(bench.model, bench.pair, change, on_base=on_base)


def _random_spaces(like: Spaces, stream: Stream) -> Spaces:
    sizes = {site: tuple(basis.shape) for site, basis in like.items()}
    return {site: haar(size, k, stream(str(site)), like[site].device) for site, (size, k) in sizes.items()}
