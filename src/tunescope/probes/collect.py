"""Runs a model on prompts and hands on what the other probes read: the one probe module that knows models.

All but `activations` is read at the last token of the prompt, which is where the first token of the answer is decided
and where no answer, neither its own nor a given one, has been seen yet. In float32, whatever the model's own type.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.models.hooks import capture
from tunescope.models.inputs import Inputs
from tunescope.models.logps import read
from tunescope.models.sites import Site
from tunescope.probes.sensitivity import Map

Stored = Mapping[Site, Float[Tensor, "n width"]]


def last_activations(
    model: PreTrainedModel, prompts: Inputs, sites: Sequence[Site], rows: int
) -> Iterator[Mapping[Site, Float[Tensor, "b width"]]]:
    """Activations of the sites at the last token, `rows` prompts at a time."""
    return _captured(model, prompts, sites, rows, lambda activation: activation[:, -1].to(torch.float32, copy=True))


def activations(
    model: PreTrainedModel, prompts: Inputs, sites: Sequence[Site], rows: int
) -> Iterator[Mapping[Site, Float[Tensor, "b t width"]]]:
    """The same at every token, in the model's own type."""
    return _captured(model, replace(prompts, shared=0), sites, rows, None)


@torch.no_grad()
def _captured(
    model: PreTrainedModel,
    prompts: Inputs,
    sites: Sequence[Site],
    rows: int,
    take: Callable[[Tensor], Tensor] | None,
) -> Iterator[Mapping[Site, Tensor]]:
    for part in prompts.split(rows):
        with capture(model, sites, take=take) as captured:
            read(model, part, 1)
        yield captured


def stored(model: PreTrainedModel, prompts: Inputs, sites: Sequence[Site], rows: int) -> Stored:
    """`last_activations` of all prompts, in the model's own type and in main memory, where even those of many layers
    of a large model have room.

    Raises:
        ValueError: one is not finite.
    """
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for captured in _captured(model, prompts, sites, rows, lambda activation: activation[:, -1].clone().cpu()):
        for site, activation in captured.items():
            if not activation.isfinite().all():
                raise ValueError(f"{site}: activations are not finite in {activation.dtype}; try another dtype")
            parts[site].append(activation)
    return {site: torch.cat(several) for site, several in parts.items()}


def first_logits(model: PreTrainedModel, prompts: Inputs) -> Map:
    """From the embeddings of these prompts, or others like them, to the logits of the first token of the answer."""

    def run(embeddings: Float[Tensor, "n t width"]) -> Float[Tensor, "n out"]:
        inputs = replace(prompts, sequence=embeddings).arguments()
        return model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()

    return run


def block_output(model: PreTrainedModel, prompts: Inputs, layer: int) -> Map:
    """From the embeddings of these prompts, or others like them, to the residual stream after a block, at the end."""
    site = Site(layer, "resid_post")

    def run(embeddings: Float[Tensor, "n t width"]) -> Float[Tensor, "n out"]:
        inputs = replace(prompts, sequence=embeddings).arguments()
        with capture(model, [site], keep_graph=True) as captured:
            model(**inputs, use_cache=False, logits_to_keep=1)
        return captured[site][:, -1].float()

    return run
