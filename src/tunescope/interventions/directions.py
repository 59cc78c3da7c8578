"""Taking a direction out of the residual stream (Arditi et al. 2024)."""

from contextlib import AbstractContextManager

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.models.hooks import edit
from tunescope.models.sites import Site, layer_count


def without_direction(model: PreTrainedModel, direction: Float[Tensor, " width"]) -> AbstractContextManager[None]:
    """Inside the block the residual stream has no part along a unit direction, at any place in any layer."""
    layers = range(layer_count(model))
    sites = [Site(layer, name) for layer in layers for name in ("resid_pre", "resid_mid")]
    return edit(model, dict.fromkeys([*sites, Site(layers[-1], "resid_post")], lambda a: ablate(a, direction)))


def ablate(activations: Float[Tensor, "*b width"], direction: Float[Tensor, " width"]) -> Float[Tensor, "*b width"]:
    """The activations without their part along a unit direction (Arditi et al. 2024, eq. 4)."""
    d = direction.to(activations)
    return activations - (activations @ d)[..., None] * d
