"""Adversarial suffixes of real tokens, by greedy coordinate gradient (Zou et al. 2023, algorithm 1), batched."""

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
from tunescope.config import Config, Once, Positive
from tunescope.errors import InputError
from tunescope.models.inputs import IGNORED, Answers, Inputs
from tunescope.models.logps import answer_logps
from tunescope.rng import Stream
from tunescope.training.losses import nll

TOP = 8  # substitutes per place that the gradient proposes


class Suffix(Config):
    tokens: Annotated[tuple[Positive, ...], Once] = Field(
        (4,), min_length=1, description="tokens of a suffix: the dial"
    )
    steps: Positive = 10
    candidates: Positive = Field(16, description="suffixes scored exactly per step and prompt")


@attack("suffix", settings=Suffix)
def suffix(target: Target, settings: Suffix) -> Iterator[Attacked]:
    answer, _ = target.unsafe.known()
    for k in settings.tokens:
        given = (k, settings.steps, settings.candidates, target.task.suffix_tokens, target.rows)
        found = suffixes(target.model, target.unsafe.prompts, answer, *given, target.stream("suffix", k))
        yield from on_both("suffix", k, found.tokens, target)


@dataclass(frozen=True)
class Suffixes:
    """What the search found.

    Attributes:
        tokens: [n, k], for `inserted`. nll: mean negative log-probability per token of the answer with them, nats, [n].
    """

    tokens: Int[Tensor, "n k"]
    nll: Float[Tensor, " n"]


def suffixes(
    model: PreTrainedModel,
    prompts: Inputs,
    answer: Answers,
    k: int,
    steps: int,
    candidates: int,
    allowed: Int[Tensor, " v"],
    rows: int,
    stream: Stream,
) -> Suffixes:
    """k tokens for each prompt that make its answer likely.

    Each step: the gradient at the one-hot tokens proposes the `TOP` best substitutes of every place; `candidates`
    random ones of these are scored exactly, and the best replaces the suffix if it is better.

    Args:
        allowed: ids that a suffix may be made of. rows: prompts per pass.

    Raises:
        InputError: k, steps or candidates below 1, or no token is allowed.
    """
    if min(k, steps, candidates, len(allowed)) < 1:
        raise InputError(
            f"suffix: k {k}, steps {steps}, candidates {candidates} and the allowed tokens ({len(allowed)}) "
            "must be at least 1"
        )
    n, table = len(prompts), model.get_input_embeddings().weight.detach()
    tokens = stream("start").choose(allowed, (n, k))
    prompts = prompts.embedded(model)  # once, and not at every step
    best = _scored(model, prompts, tokens, answer, rows)
    each = torch.arange(n, device=tokens.device)
    for step in range(steps):
        gradient = torch.cat(
            [_gradient(model, prompts[some], table[tokens[some]], answer[some]) for some in each.split(rows)]
        )
        proposed = (gradient @ table[allowed].T).topk(min(TOP, len(allowed)), dim=2, largest=False).indices
        draw = stream("step", step)
        where = draw("place").integers(k, (n, candidates), tokens.device)
        which = draw("which").integers(proposed.shape[2], (n, candidates), tokens.device)
        tried = tokens[:, None].repeat(1, candidates, 1)
        tried.scatter_(2, where[..., None], allowed[proposed[each[:, None], where, which]][..., None])
        repeated = each.repeat_interleave(candidates)
        tried_nll = _scored(model, prompts[repeated], tried.flatten(0, 1), answer[repeated], rows)
        tried_nll = tried_nll.view(n, candidates)
        lowest, at = tried_nll.min(dim=1)
        better = lowest < best
        tokens = torch.where(better[:, None], tried[each, at], tokens)
        best = torch.where(better, lowest, best)
    return Suffixes(tokens, best)


def _gradient(
    model: PreTrainedModel, prompts: Inputs, embedded: Float[Tensor, "n k width"], answer: Answers
) -> Float[Tensor, "n k width"]:
    embedded.requires_grad_()
    (gradient,) = torch.autograd.grad(_nll(model, inserted(prompts, embedded, model), answer).sum(), embedded)
    return gradient


@torch.no_grad()
def _scored(
    model: PreTrainedModel, prompts: Inputs, tokens: Int[Tensor, "n k"], answer: Answers, rows: int
) -> Float[Tensor, " n"]:
    parts = zip(prompts.split(rows), tokens.split(rows), answer.split(rows), strict=True)
    return torch.cat([_nll(model, inserted(p, t, model), a) for p, t, a in parts])


def _nll(model: PreTrainedModel, prompts: Inputs, answer: Answers) -> Float[Tensor, " n"]:
    return nll(answer_logps(model, prompts, answer), (answer != IGNORED).sum(1))
