"""The direction of refusal, and how a direction of the residual stream is taken out or put in (Arditi et al. 2024)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.models.hooks import edit
from tunescope.models.sites import Site, layer_count
from tunescope.probes.collect import inner_means
from tunescope.probes.directions import difference_of_means
from tunescope.probes.view import Batches
from tunescope.records.names import SAFE, UNSAFE
from tunescope.tasks.base import Task


class RefusalDirections(NamedTuple):
    """Unit vectors from the safe to the unsafe mean, after each inner layer.

    Attributes:
        units, sizes: by site; sizes are the distances of the means.
        best: the site without whose direction fewest unsafe prompts are refused.
    """

    units: dict[Site, Float[Tensor, " width"]]
    sizes: dict[Site, Float[Tensor, ""]]
    best: Site


def refusal_directions(model: PreTrainedModel, task: Task, fit: Batches, rows: int) -> RefusalDirections:
    """Directions of class means, chosen on the prompts that give the means: on these nothing else is measured."""
    means = inner_means(model, fit[SAFE].prompts, fit[UNSAFE].prompts, rows)
    units = {site: difference_of_means(*both) for site, both in means.items()}

    def left(site: Site) -> int:
        with without_direction(model, units[site]):
            return int(task.outcomes(model, fit[UNSAFE], rows).refusal.sum())

    sizes = {site: (unsafe - safe).norm() for site, (safe, unsafe) in means.items()}
    return RefusalDirections(units, sizes, min(units, key=left))


@contextmanager
def without_direction(model: PreTrainedModel, direction: Float[Tensor, " width"]) -> Iterator[PreTrainedModel]:
    """Inside the block the residual stream has no part along a unit direction, at any place in any layer."""
    layers = range(layer_count(model))
    sites = [Site(layer, name) for layer in layers for name in ("resid_pre", "resid_mid")]
    with edit(model, dict.fromkeys([*sites, Site(layers[-1], "resid_post")], lambda a: ablate(a, direction))):
        yield model


@contextmanager
def with_vector(model: PreTrainedModel, vector: Float[Tensor, " width"], layer: int) -> Iterator[PreTrainedModel]:
    """Inside the block a vector is added to the residual stream after a layer, at every place (eq. 3)."""
    with edit(model, {Site(layer, "resid_post"): lambda a: a + vector.to(a)}):
        yield model


def ablate(activations: Float[Tensor, "*b width"], direction: Float[Tensor, " width"]) -> Float[Tensor, "*b width"]:
    """The activations without their part along a unit direction (Arditi et al. 2024, eq. 4)."""
    d = direction.to(activations)
    return activations - (activations @ d)[..., None] * d
