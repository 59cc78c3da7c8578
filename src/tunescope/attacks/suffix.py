"""Adversarial suffixes of real tokens, by greedy coordinate gradient (Zou et al. 2023, algorithm 1), batched."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.attacks.base import Attacked, Target, attack, on_both
from tunescope.attacks.insert import inserted
from tunescope.config import Config, Once, Positive
from tunescope.errors import InputError
from tunescope.models.inputs import IGNORED, Answers, Inputs, says
from tunescope.models.logps import answer_logits, gathered_logps
from tunescope.rng import Stream
from tunescope.training.losses import nll


class Suffix(Config):
    """Default of nanoGCG: tokens 20, steps 250, candidates 512, top 256; here a budget for a CPU."""

    tokens: Annotated[tuple[Positive, ...], Once] = Field(
        (4,), min_length=1, description="tokens of a suffix: the dial"
    )
    steps: Positive = Field(10, description="gradient steps")
    candidates: Positive = Field(16, description="suffixes scored exactly per step and prompt")
    top: Positive = Field(8, description="substitutes per place that the gradient proposes")
    target: Positive | None = Field(None, description="tokens of the answer that are sought, its first; all, if null")


@attack("suffix", settings=Suffix)
def suffix(target: Target, settings: Suffix) -> Iterator[Attacked]:
    answer = target.unsafe.known()[0][:, : settings.target]
    for k in settings.tokens:
        given = (k, settings.steps, settings.candidates, settings.top, target.task.suffix_tokens, target.rows)
        found = suffixes(target.model, target.unsafe.prompts, answer, *given, target.stream("suffix", k))
        cost = (settings.steps, settings.candidates)
        yield from on_both("suffix", k, found.tokens, target, found.steps, *cost)


@dataclass(frozen=True)
class Suffixes:
    """What the search found.

    Attributes:
        tokens: [n, k], for `inserted`. nll: mean negative log-probability per token of the answer with them, nats, [n].
        steps: gradient steps until greedy generation first gave the whole answer, [n]; -1 where it never did.
    """

    tokens: Int[Tensor, "n k"]
    nll: Float[Tensor, " n"]
    steps: Int[Tensor, " n"]


def suffixes(
    model: PreTrainedModel,
    prompts: Inputs,
    answer: Answers,
    k: int,
    steps: int,
    candidates: int,
    top: int,
    allowed: Int[Tensor, " v"],
    rows: int,
    stream: Stream,
) -> Suffixes:
    """k tokens for each prompt that make its answer likely.

    Each step: the gradient at the one-hot tokens proposes the `top` best substitutes of every place; `candidates`
    random ones of these are scored exactly, and the best replaces the suffix if it is better. No search ends early.

    Args:
        allowed: ids that a suffix may be made of. rows: prompts per pass.

    Raises:
        InputError: k, steps, candidates or top below 1, or no token is allowed.
    """
    if min(k, steps, candidates, top, len(allowed)) < 1:
        raise InputError(
            f"suffix: k {k}, steps {steps}, candidates {candidates}, top {top} and the allowed tokens ({len(allowed)}) "
            "must be at least 1"
        )
    n, table = len(prompts), model.get_input_embeddings().weight.detach()
    tokens = stream("start").choose(allowed, (n, k))
    prompts = prompts.embedded(model)  # once, and not at every step
    each = torch.arange(n, device=tokens.device)
    best, done = _scored(model, prompts, each, tokens, answer, rows)
    took = torch.where(done, 0, -1)
    for step in range(steps):
        gradient = torch.cat(
            [_gradient(model, prompts[some], table[tokens[some]], answer[some]) for some in each.split(rows)]
        )
        proposed = (gradient @ table[allowed].T).topk(min(top, len(allowed)), dim=2, largest=False).indices
        draw = stream("step", step)
        where = draw("place").integers(k, (n, candidates), tokens.device)
        which = draw("which").integers(proposed.shape[2], (n, candidates), tokens.device)
        tried = tokens[:, None].repeat(1, candidates, 1)
        tried.scatter_(2, where[..., None], allowed[proposed[each[:, None], where, which]][..., None])
        repeated = each.repeat_interleave(candidates)
        tried_nll, done = _scored(model, prompts, repeated, tried.flatten(0, 1), answer, rows)
        lowest, at = tried_nll.view(n, candidates).min(dim=1)
        better = lowest < best
        tokens = torch.where(better[:, None], tried[each, at], tokens)
        best = torch.where(better, lowest, best)
        took[(took < 0) & better & done.view(n, candidates)[each, at]] = step + 1
    return Suffixes(tokens, best, took)


def _gradient(
    model: PreTrainedModel, prompts: Inputs, embedded: Float[Tensor, "n k width"], answer: Answers
) -> Float[Tensor, "n k width"]:
    embedded.requires_grad_()
    (gradient,) = torch.autograd.grad(_nll(model, inserted(prompts, embedded, model), answer)[0].sum(), embedded)
    return gradient


@torch.no_grad()
def _scored(
    model: PreTrainedModel,
    prompts: Inputs,
    which: Int[Tensor, " m"],
    tokens: Int[Tensor, "m k"],
    answer: Answers,
    rows: int,
) -> tuple[Float[Tensor, " m"], Bool[Tensor, " m"]]:
    """Of the prompts with these numbers, each with a suffix."""
    parts = zip(which.split(rows), tokens.split(rows), strict=True)
    nlls, done = zip(*(_nll(model, inserted(prompts[i], t, model), answer[i]) for i, t in parts), strict=True)
    return torch.cat(nlls), torch.cat(done)


def _nll(model: PreTrainedModel, prompts: Inputs, answer: Answers) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Of each answer, and whether greedy generation gives it."""
    logits = answer_logits(model, prompts, answer)
    return nll(gathered_logps(logits, answer), (answer != IGNORED).sum(1)), says(logits.argmax(-1), answer)
