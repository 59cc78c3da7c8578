"""What single prompts look like inside a model, layer by layer."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.models.inputs import Inputs
from tunescope.models.pair import Pair
from tunescope.models.sites import Site, layer_count
from tunescope.probes import projections
from tunescope.probes.clusters import Classes
from tunescope.probes.collect import stored
from tunescope.probes.view import INPUT, Batches
from tunescope.records.names import SAFE, UNSAFE, W_IN


class Inside(NamedTuple):
    """Of n prompts, at their last token, by layer.

    Attributes:
        tau: in standard deviations within a class (Jain et al. 2024, eq. 1). gain: |dW a| / |a| of W_in; None without a
            change.
    """

    tau: Float[Tensor, "layers n"]
    gain: Float[Tensor, "layers n"] | None


def classes_of(model: PreTrainedModel, fit: Batches, rows: int) -> list[Classes]:
    """Of mlp_post, by layer; means and deviations from the same prompts."""
    sites = [Site(layer, "mlp_post") for layer in range(layer_count(model))]
    each = [stored(model, fit[kind].prompts, sites, rows) for kind in (SAFE, UNSAFE)]
    both = [[of[site].double() for of in each] for site in sites]
    return [Classes.of(here, here) for here in both]


def look(
    model: PreTrainedModel, prompts: Mapping[str, Inputs], classes: Sequence[Classes], pair: Pair | None, rows: int
) -> dict[str, Inside]:
    """How near each prompt is to either class, and how strongly dW acts on it, for several sets of prompts.

    Args:
        classes: as `classes_of` gives them. pair: of the model with its base, whose matrices are read once.
    """
    posts, inputs = ([Site(layer, name) for layer in range(len(classes))] for name in ("mlp_post", INPUT))
    read = {name: stored(model, each, [*posts, *inputs], rows) for name, each in prompts.items()}
    gains: dict[str, list[Tensor]] = {name: [] for name in prompts}
    for layer, site in enumerate(inputs):
        if pair is None:
            break
        change = pair.matrices(layer, W_IN)[1].cpu()
        for name, of in read.items():
            gains[name].append(projections.gain(change, of[site]))
    return {
        name: Inside(
            torch.stack([here.tau(of[site].double()) for here, site in zip(classes, posts, strict=True)]),
            torch.stack(gains[name]) if gains[name] else None,
        )
        for name, of in read.items()
    }
