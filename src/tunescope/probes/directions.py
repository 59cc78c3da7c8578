"""Directions: in which safe and unsafe activations differ (Arditi et al. 2024), and dW along them."""

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.models.sites import layer_count
from tunescope.probes.subspaces import Svd

TOP = 8  # singular vectors of dW that a direction is compared with


def difference_of_means(
    safe_mean: Float[Tensor, " width"], unsafe_mean: Float[Tensor, " width"]
) -> Float[Tensor, " width"]:
    """Unit vector from the safe to the unsafe mean; zero where they are one."""
    difference = unsafe_mean - safe_mean
    return difference / difference.norm().clamp(min=torch.finfo(difference.dtype).tiny)


def inner_layers(model: PreTrainedModel, most: int) -> list[int]:
    """So many layers, or as many as there are, evenly spaced, none of the last fifth: a direction that is found there
    writes the answer itself (Arditi et al. 2024, appendix C).
    """
    inner = max(1, int(0.8 * layer_count(model)))
    n = min(most, inner)
    return [(i + 1) * inner // n - 1 for i in range(n)]


def standing_out(
    activations: Float[Tensor, "n t width"], mean: Float[Tensor, "t width"], k: int
) -> Float[Tensor, "width _"]:
    """The k orthonormal directions that hold most of what activations are beyond a mean of their place, in float64.

    Fewer where the activations differ from the means in fewer.
    """
    beyond = (activations - mean).double().flatten(0, 1)
    return Svd.of(beyond).v[:, :k]


def written_share(direction: Float[Tensor, " out"], delta: Svd, k: int) -> float:
    """Squared length of a unit direction within the span of the top k left singular vectors of dW, in [0, 1].

    For a random direction k / out in expectation.
    """
    return (delta.u[:, :k].mT @ direction.to(delta.u)).square().sum().item()
