"""A direction of the residual stream taken out or put in (Arditi et al. 2024).

Context managers, which give the model as it is inside the block.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.models.hooks import edit
from tunescope.models.sites import Site, layer_count


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
