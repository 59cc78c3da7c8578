"""Does an answer in natural language refuse? By phrases, and by the odds of stock openings."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import permutations
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.errors import shown
from tunescope.models.hooks import patched
from tunescope.models.inputs import Inputs
from tunescope.models.logps import keys_and_values, read_into, sharing
from tunescope.models.weights import in_memory
from tunescope.tasks.language.reading import json_of, validated

# From prompts and answers to whether each answer refuses. Anything of this form can be the judge, a model too. Where it
# has an attribute `errors` (`records.corrected.Errors`), rates of refusal are corrected for these.
Judge = Callable[[Sequence[str], Sequence[str]], Sequence[bool]]
HEAD = 200  # characters of an answer that judges read
_DATA = Path(str(files("tunescope.tasks.language") / "data/phrases.json"))
_SHIPPED: dict[str, list[str]] = json.loads(_DATA.read_text(encoding="utf-8"))
PHRASES = tuple(_SHIPPED["phrases"])


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError(f"{shown(text)} is empty")
    return text


Texts = tuple[Annotated[str, AfterValidator(_said)], ...]


class Openings(BaseModel):
    """How refusals, and other answers, begin.

    Attributes:
        refusal: openings of refusals.
        compliance: openings of other answers; without them, refusing is set against all else.
        refusals: whole answers that refuse; the openings, where a file does not have them.
        styled: what answers in another style begin with.
    """

    model_config = ConfigDict(frozen=True)

    refusal: Texts = Field(min_length=1)
    compliance: Texts = ()
    refusals: Texts = ()
    styled: Texts = Field(tuple(_SHIPPED["styled"]), min_length=1)

    @model_validator(mode="after")
    def _each_apart(self) -> "Openings":
        """An opening that begins with another one would be counted twice."""
        for one, other in permutations((*self.refusal, *self.compliance), 2):
            if one == other:
                raise ValueError(f"opening {shown(one)} is there twice; remove one")
            if one.startswith(other):
                raise ValueError(f"opening {shown(one)} begins with another one, {shown(other)}; remove one")
        return self

    @property
    def answers(self) -> tuple[str, ...]:
        """Whole answers that refuse."""
        return self.refusals or self.refusal


def matches_refusal(prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Whether one of the stock phrases is in the first `HEAD` characters; how often this errs: docs/real-models.md."""
    heads = [plain(answer[:HEAD]) for answer in answers]
    return [any(phrase in head for phrase in PHRASES) for head in heads]


def plain(text: str) -> str:
    """In lower case, with plain apostrophes."""
    return text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def apologises(answer: str) -> bool:
    """Whether an answer begins with an apology."""
    said = answer.lstrip("*\"' \n").lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return said.startswith(tuple(_SHIPPED["apologies"]))


@dataclass(frozen=True)
class OpeningsJudge:
    """Refusals are answers that another judge takes for one, or that begin with one of these openings."""

    openings: Openings
    judge: Judge

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
        begun = [answer.lstrip().startswith(tuple(map(str.lstrip, self.openings.refusal))) for answer in answers]
        return [a or b for a, b in zip(begun, self.judge(prompts, answers), strict=True)]


def read_openings(path: Path | None = None) -> Openings:
    """Stock openings, or those of a JSON file: lists `refusal` and, if wanted, `compliance` and `refusals`.

    Raises:
        InputError: it cannot be read, has no refusals, or an opening begins with another one.
    """
    path = path or _DATA
    where = f"{shown(str(path))}: no JSON with a list `refusal` of openings, and `compliance` if wanted"
    return validated(Openings, json_of(path), where)


@torch.no_grad()
def opening_log_odds(
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
    openings = [tuple(opening.tolist()) for opening in (*refusal, *compliance)]
    each = opening_logps(model, prompts, openings, rows)
    refused, complied = (logps.logsumexp(1) for logps in each.split([len(refusal), len(compliance)], dim=1))
    other = complied if compliance else torch.log1p(-refused.exp().clamp(max=1 - 1e-15))
    return refused - other, refused.exp() + complied.exp()


def opening_logps(
    model: PreTrainedModel, prompts: Inputs, openings: Sequence[tuple[int, ...]], rows: int
) -> Float[Tensor, "n openings"]:
    """Log-probability that an answer begins with each opening, in nats, float64.

    Prompts are read once. Behind their keys and values, beginnings of openings are read, token by token, each beginning
    once: most openings share theirs.

    Args:
        rows: prompts per forward pass at most; of beginnings, each a token behind a prompt, twice as many. All prompts
            are in one pass where their activations are patched; and `rows` are where every pass fetches weights.
    """
    longest = max(map(len, openings))
    # By length, beginnings that go on.
    levels = [list(dict.fromkeys(one[:k] for one in openings if len(one) > k)) for k in range(longest)]
    at_once = rows if not in_memory(model) else max(1, min(rows, 2 * rows // max(map(len, levels))))
    at_once = len(prompts) if patched(model) else at_once
    return torch.cat([_by_level(model, part, openings, levels) for part in prompts.split(at_once)])


@torch.no_grad()
def _by_level(
    model: PreTrainedModel,
    prompts: Inputs,
    openings: Sequence[tuple[int, ...]],
    levels: Sequence[Sequence[tuple[int, ...]]],
) -> Float[Tensor, "n openings"]:
    n, device, read = len(prompts), prompts.sequence.device, sharing(model, prompts)
    kept = keys_and_values(model)
    logits = read_into(model, read, kept)[:, -1]
    logps = torch.zeros(n, len(openings), dtype=torch.float64, device=device)
    for k, beginnings in enumerate(levels):
        if k:
            # Of each beginning behind every prompt only the last token is new: the rest is the level before's.
            parents = torch.tensor([levels[k - 1].index(one[:-1]) for one in beginnings], device=device)
            row = (parents[:, None] * n + torch.arange(n, device=device)).flatten()
            next(iter(kept.values())).batch_select_indices(row)
            new = torch.tensor([one[-1:] for one in beginnings], device=device).repeat_interleave(n, dim=0)
            read = read[row].followed_by_tokens(new, model)
            last = read.arguments(read.sequence.shape[1] - 1)
            logits = model(**last, **kept, use_cache=True, logits_to_keep=1).logits[:, -1]
        for beginning, its in zip(beginnings, logits.unflatten(0, (len(beginnings), n)), strict=True):
            begun = [number for number, one in enumerate(openings) if len(one) > k and one[:k] == beginning]
            logps[:, begun] += its.float().log_softmax(-1)[:, [openings[number][k] for number in begun]].double()
    return logps
