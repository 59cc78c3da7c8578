"""Does an answer in natural language refuse? By phrases, and by the odds of stock openings; no model is the judge."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.errors import InputError
from tunescope.models.inputs import Inputs
from tunescope.models.logps import answer_logps

# From prompts and answers to whether each answer refuses. Anything of this form can stand in for `matches_refusal`.
Judge = Callable[[Sequence[str], Sequence[str]], Sequence[bool]]
HEAD = 200  # characters of an answer that the matcher reads
_DATA = files("tunescope.language") / "data/phrases.json"
_PHRASES = tuple(json.loads(_DATA.read_text(encoding="utf-8"))["phrases"])


@dataclass(frozen=True)
class Openings:
    """How refusals, and other answers, begin. Without the latter, refusing is set against all else."""

    refusal: tuple[str, ...]
    compliance: tuple[str, ...]


def matches_refusal(prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Whether one of the stock phrases is in the first `HEAD` characters; how often this errs: docs/real-models.md."""
    heads = [answer[:HEAD].lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'") for answer in answers]
    return [any(phrase in head for phrase in _PHRASES) for head in heads]


def read_openings(path: Path | None = None) -> Openings:
    """Stock openings, or those of a JSON file with lists `refusal` and, if wanted, `compliance`.

    Raises:
        InputError: it cannot be read or has no refusals.
    """
    try:
        told: Any = json.loads((path or _DATA).read_text(encoding="utf-8"))
        lists = [told["refusal"], told.get("compliance", [])]
        if not lists[0] or not all(isinstance(each, list) and all(map(_said, each)) for each in lists):
            raise ValueError("both must be lists of texts")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: no JSON with a list `refusal` of openings, and `compliance` if wanted: {error}"
        ) from error
    return Openings(*map(tuple, lists))


def _said(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip())


@torch.no_grad()
def refusal_margin(
    model: PreTrainedModel,
    prompts: Inputs,
    refusal: Sequence[Int[Tensor, " _"]],
    compliance: Sequence[Int[Tensor, " _"]],
    rows: int,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Log-odds, in nats, that an answer begins with a refusal's opening rather than another's (or anything else).

    Also the probability that it begins with any of these: where that is next to nothing, odds say nothing.

    Args:
        refusal, compliance: token ids of the openings, of which none may begin with another.
    """
    margins, shares = [], []
    for part in prompts.split(rows):
        refused, complied = (_logp_of_any(model, part, openings) for openings in (refusal, compliance))
        other = complied if compliance else torch.log1p(-refused.exp().clamp(max=1 - 1e-15))
        margins.append(refused - other)
        shares.append(refused.exp() + complied.exp())
    return torch.cat(margins), torch.cat(shares)


def _logp_of_any(model: PreTrainedModel, prompts: Inputs, openings: Sequence[Int[Tensor, " _"]]) -> Float[Tensor, " n"]:
    if not openings:
        return torch.full((len(prompts),), -torch.inf, dtype=torch.float64, device=prompts.sequence.device)
    device = prompts.sequence.device
    each = [
        answer_logps(model, prompts, opening.to(device).expand(len(prompts), -1)).double().sum(1)
        for opening in openings
    ]
    return torch.stack(each).logsumexp(0)
