"""The direction of refusal, and how a direction of the residual stream is taken out or put in (Arditi et al. 2024)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import Config, Positive, Rate, Share
from tunescope.errors import InapplicableError
from tunescope.models.generate import Greedy
from tunescope.models.hooks import edit
from tunescope.models.inputs import IGNORED
from tunescope.models.logps import divergence, next_logps
from tunescope.models.sites import Site, layer_count
from tunescope.probes.collect import stored
from tunescope.probes.directions import difference_of_means, inner_layers
from tunescope.probes.view import Batches
from tunescope.records.names import SAFE, UNSAFE
from tunescope.tasks.base import Batch, Outcomes, Task, answered

ALONG = 8  # tokens of a known answer, the first one included, along which an answer must stay what it was


class DirectionConfig(Config):
    """By what a direction is chosen."""

    layers: Positive = Field(8, description="evenly spaced layers whose directions are tried; none of the last fifth")
    prompts: Positive = Field(200, description="at most so many prompts of each kind choose among them")
    least_kept: Share = Field(0.9, description="of right answers to safe prompts, where the task knows what is right")
    most_kl: Rate = Field(0.1, description="change of answers to safe prompts, elsewhere: mean nats per token")
    least_size: Share = Field(0.01, description="in mean lengths of an activation; half precision rounds by half of it")


class Direction(NamedTuple):
    """From the safe to the unsafe mean of a site.

    Attributes:
        unit: of length 1. size: distance of the means; share: the same in mean lengths of an activation there.
    """

    unit: Float[Tensor, " width"]
    size: Float[Tensor, ""]
    share: float


def refusal_directions(
    model: PreTrainedModel, fit: Batches, rows: int, config: DirectionConfig
) -> dict[Site, Direction]:
    """Of the class means, by layer; those of negligible length are left out.

    Raises:
        InapplicableError: none is left.
    """
    sites = [Site(layer, "resid_post") for layer in inner_layers(model, config.layers)]
    device = fit[SAFE].prompts.sequence.device
    safe, unsafe = (stored(model, fit[kind].prompts, sites, rows) for kind in (SAFE, UNSAFE))
    found: dict[Site, Direction] = {}
    for site in sites:
        each = [of[site].to(device).double() for of in (safe, unsafe)]
        means = [a.mean(0) for a in each]
        size = (means[1] - means[0]).norm()
        share = (size / torch.cat(each).norm(dim=1).mean()).item()
        if share >= config.least_size:
            found[site] = Direction(difference_of_means(*means), size, share)
    if not found:
        raise InapplicableError(
            f"means of safe and of unsafe prompts are nearer than {config.least_size:.2g} of an activation everywhere"
        )
    return found


def mediating(
    model: PreTrainedModel,
    task: Task,
    fit: Batches,
    directions: Mapping[Site, Direction],
    rows: int,
    config: DirectionConfig,
) -> Site:
    """Where the direction is without which fewest unsafe prompts are refused; of equals the one that changes least.

    Only directions count without which safe prompts are still answered. Where the task tells right answers exactly, by
    these. Elsewhere answers must stay what they were (Arditi et al. 2024, appendix C), at the last token of the prompt
    and along the answer if it is known. Prompts that the intact model does not answer are left out.

    Raises:
        InapplicableError: there is no such direction.
    """

    def outcomes(batch: Batch) -> Outcomes:
        return answered(task, Greedy(model, rows), batch)  # of the model as it is now

    safe, unsafe = (fit[kind].first(config.prompts) for kind in (SAFE, UNSAFE))
    safe = safe[outcomes(safe).compliance.nonzero().squeeze(1)]
    if not len(safe):
        raise InapplicableError("left out: safe prompts are not answered to begin with")
    answer = None if safe.answer is None else safe.answer[:, :ALONG]
    there = torch.ones(len(safe), 1) if answer is None else answer != IGNORED
    before = next_logps(model, safe.prompts, rows, answer)
    changed: dict[Site, float] = {}
    kept: dict[Site, float] = {}
    left: dict[Site, int] = {}
    for site, direction in directions.items():
        with without_direction(model, direction.unit):
            after = next_logps(model, safe.prompts, rows, answer)
            changed[site] = divergence(before, after)[there.bool()].mean().item()
            if task.exact:
                kept[site] = outcomes(safe).compliance.double().mean().item()
            if kept[site] >= config.least_kept if task.exact else changed[site] <= config.most_kl:
                left[site] = int(outcomes(unsafe).refusal.sum())
    if not left:
        least, most = min(changed.values()), max(kept.values(), default=0.0)
        bound = (
            f"at most {most:.1%} of safe prompts are still answered (least_kept: {config.least_kept:g})"
            if task.exact
            else f"answers to safe prompts change by {least:.2g} nats per token or more (most_kl: {config.most_kl:g})"
        )
        of = (
            f"whichever of {len(changed)} directions is removed"
            if len(changed) > 1
            else "if the only direction is removed"
        )
        raise InapplicableError(f"left out: {of}, {bound}")
    return min(left, key=lambda site: (left[site], changed[site]))


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
