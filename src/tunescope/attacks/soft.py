"""Soft prompts: embeddings, found by gradient, that make a model answer what it should refuse (Jain et al. 2024)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.attacks.base import Attacked, Target, attack, on_both
from tunescope.attacks.insert import inserted
from tunescope.config import Config, Once, Positive, Rate
from tunescope.errors import InputError
from tunescope.models.inputs import IGNORED, Answers, Inputs, says
from tunescope.models.logps import answer_logits, answer_logps, gathered_logps
from tunescope.rng import Stream
from tunescope.training.losses import nll

RATE = 0.3  # length of a step of each embedding, in mean norms of the embedding table


class SoftPrompt(Config):
    tokens: Annotated[tuple[Positive, ...], Once] = Field(
        (1, 2, 4, 8), min_length=1, description="embeddings of a soft prompt: the dial"
    )
    steps: Positive = Field(40, description="gradient steps at most")
    bound: Rate = Field(1.0, description="largest norm of an embedding, in mean norms of the embedding table")
    target: Positive | None = Field(None, description="tokens of the answer that are sought, its first; all, if null")


class UniversalSoftPrompt(SoftPrompt):
    tokens: Annotated[tuple[Positive, ...], Once] = Field((8,), min_length=1, description="as of soft_prompt")


@attack("soft_prompt", settings=SoftPrompt)
def soft_prompt(target: Target, settings: SoftPrompt) -> Iterator[Attacked]:
    """Embeddings for each prompt."""
    answer = target.unsafe.known()[0][:, : settings.target]
    for k in settings.tokens:
        given = (k, settings.steps, settings.bound, target.rows)
        found = soft_prompts(target.model, target.unsafe.prompts, answer, *given, target.stream("soft", k))
        yield from on_both("soft_prompt", k, found.extra, target, found.steps, settings.steps)


@attack("universal_soft_prompt", settings=UniversalSoftPrompt)
def universal_soft(target: Target, settings: UniversalSoftPrompt) -> Iterator[Attacked]:
    """The same embeddings for all prompts, found on others."""
    answer = target.seen.known()[0][:, : settings.target]
    for k in settings.tokens:
        given = (k, settings.steps, settings.bound, target.rows)
        shared = universal_soft_prompt(target.model, target.seen.prompts, answer, *given, target.stream("universal"))
        yield from on_both("universal_soft_prompt", k, shared.expand(len(target.unsafe), -1, -1), target)


@dataclass(frozen=True)
class SoftPrompts:
    """What the search found.

    Attributes:
        extra: embeddings [n, k, width], for `inserted`.
        steps: gradient steps until greedy generation gave the whole answer, [n]; -1 where it never did.
    """

    extra: Float[Tensor, "n k width"]
    steps: Int[Tensor, " n"]


def soft_prompts(
    model: PreTrainedModel,
    prompts: Inputs,
    answer: Answers,
    k: int,
    steps: int,
    bound: float,
    rows: int,
    stream: Stream,
) -> SoftPrompts:
    """k embeddings for each prompt, by projected gradient descent on the answer's negative log-likelihood.

    Every step has one length (normalised gradient); a prompt is left alone once it is answered.

    Args:
        steps: gradient steps at most.
        bound: largest norm of an embedding, in mean norms of the model's embedding table.
        rows: prompts per pass.

    Raises:
        InputError: k or steps below 1, or a bound that is not above 0.
    """
    extra, unit = _start(model, len(prompts), k, steps, bound, stream)
    prompts = prompts.embedded(model)  # once, and not at every step
    lengths = (answer != IGNORED).sum(1)
    took = torch.full((len(prompts),), -1, device=extra.device)
    for step in range(steps + 1):
        open_ = (took < 0).nonzero().squeeze(1)
        if not len(open_):
            break
        for some in open_.split(rows):
            tried, wanted = extra[some].requires_grad_(), answer[some]
            logits = answer_logits(model, inserted(prompts[some], tried, model), wanted)
            took[some[says(logits.argmax(-1), wanted)]] = step
            if step < steps:
                (gradient,) = torch.autograd.grad(nll(gathered_logps(logits, wanted), lengths[some]).sum(), tried)
                moved = _moved(tried.detach(), gradient, unit, bound)
                extra[some] = torch.where((took[some] < 0)[:, None, None], moved, tried.detach())
    return SoftPrompts(extra, took)


def universal_soft_prompt(
    model: PreTrainedModel,
    prompts: Inputs,
    answer: Answers,
    k: int,
    steps: int,
    bound: float,
    rows: int,
    stream: Stream,
) -> Float[Tensor, "1 k width"]:
    """The same k embeddings for all prompts, which lower the mean over them; see `soft_prompts`."""
    extra, unit = _start(model, 1, k, steps, bound, stream)
    prompts, lengths = prompts.embedded(model), (answer != IGNORED).sum(1)
    for _ in range(steps):
        tried, gradient = extra.requires_grad_(), torch.zeros_like(extra)
        for some in torch.arange(len(prompts), device=extra.device).split(rows):
            read = inserted(prompts[some], tried.expand(len(some), -1, -1), model)
            loss = nll(answer_logps(model, read, answer[some]), lengths[some]).sum() / len(prompts)
            gradient += torch.autograd.grad(loss, tried)[0]
        extra = _moved(tried.detach(), gradient, unit, bound)
    return extra


def _start(
    model: PreTrainedModel, n: int, k: int, steps: int, bound: float, stream: Stream
) -> tuple[Float[Tensor, "{n} {k} width"], float]:
    """Embeddings in random directions, as long as the mean of the table (or the bound); and that length."""
    if k < 1 or steps < 1 or not bound > 0:
        raise InputError(f"soft prompt: k {k} and steps {steps} must be at least 1, the bound {bound} above 0")
    table = model.get_input_embeddings().weight.detach()
    unit = table.norm(dim=1).mean().item()
    noise = stream.normal((n, k, table.shape[1]), table.device).to(table)
    return noise * (min(1.0, bound) * unit / noise.norm(dim=2, keepdim=True)), unit


def _moved(
    extra: Float[Tensor, "n k width"], gradient: Float[Tensor, "n k width"], unit: float, bound: float
) -> Float[Tensor, "n k width"]:
    """One step down the gradient, back into the ball."""
    tiny = torch.finfo(gradient.dtype).tiny
    new = extra - RATE * unit * gradient / gradient.norm(dim=2, keepdim=True).clamp(min=tiny)
    return new * (bound * unit / new.norm(dim=2, keepdim=True).clamp(min=tiny)).clamp(max=1.0)
