"""Does an answer in natural language refuse? By phrases, and by the odds of stock openings."""

import copy
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
from transformers import DynamicCache, PreTrainedModel

from tunescope.errors import shown
from tunescope.models.inputs import Inputs
from tunescope.models.logps import gathered_logps, keys_and_values, read_into, sharing
from tunescope.tasks.language.reading import json_of, validated

# From prompts and answers to whether each answer refuses. Anything of this form can be the judge, a model too. Where it
# has an attribute `errors` (`records.corrected.Errors`), rates of refusal are corrected for these.
Judge = Callable[[Sequence[str], Sequence[str]], Sequence[bool]]
HEAD = 200  # characters of an answer that judges read
AT_ONCE = 8  # beginnings of openings in one pass: each needs a copy of the prompts' keys and values
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
    parts = [opening_logps(model, part, openings) for part in prompts.split(rows)]
    each = torch.cat(parts)
    refused, complied = (logps.logsumexp(1) for logps in each.split([len(refusal), len(compliance)], dim=1))
    other = complied if compliance else torch.log1p(-refused.exp().clamp(max=1 - 1e-15))
    return refused - other, refused.exp() + complied.exp()


@torch.no_grad()
def opening_logps(
    model: PreTrainedModel, prompts: Inputs, openings: Sequence[tuple[int, ...]]
) -> Float[Tensor, "n openings"]:
    """Log-probability that an answer begins with each opening, in nats, float64.

    Prompts are read once. Behind their keys and values, only beginnings of openings are read, without the last token,
    and none that is the beginning of another: most openings share theirs.
    """
    n, device, prompts = len(prompts), prompts.sequence.device, sharing(model, prompts)
    kept = keys_and_values(model)
    first = read_into(model, prompts, kept)
    logps = torch.zeros(n, len(openings), dtype=torch.float64, device=device)

    def add(which: Sequence[int], logits: Float[Tensor, "n t vocab"], start: int) -> None:
        """Of these openings, the tokens from `start` on, for which there are logits."""
        for number in which:
            tokens = torch.tensor(openings[number][start : start + logits.shape[1]], device=device).expand(n, -1)
            logps[:, number] += gathered_logps(logits[:, : tokens.shape[1]], tokens).double().sum(1)

    add(range(len(openings)), first, 0)
    beginnings = _longest([opening[:-1] for opening in openings if len(opening) > 1])
    left = {number for number, opening in enumerate(openings) if len(opening) > 1}
    for start in range(0, len(beginnings), AT_ONCE):
        some = beginnings[start : start + AT_ONCE]
        last = start + AT_ONCE >= len(beginnings)
        logits = _behind(model, prompts, kept if last else copy.deepcopy(kept), some)
        for beginning, its in zip(some, logits, strict=True):
            done = [number for number in left if beginning[: len(openings[number]) - 1] == openings[number][:-1]]
            add(done, its, 1)
            left.difference_update(done)
    return logps


def _behind(
    model: PreTrainedModel, prompts: Inputs, kept: dict[str, DynamicCache], texts: Sequence[tuple[int, ...]]
) -> Float[Tensor, "k n t vocab"]:
    """What the model expects after each token of k texts, each behind every prompt; texts are filled up to t."""
    device, longest = prompts.sequence.device, max(map(len, texts))
    filled = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    row = torch.arange(len(prompts), device=device).repeat(len(texts))
    next(iter(kept.values())).batch_select_indices(row)
    more = prompts[row].next_arguments(filled.repeat_interleave(len(prompts), dim=0))
    logits = model(**more, **kept, use_cache=True).logits
    return logits.unflatten(0, (len(texts), len(prompts)))


def _longest(beginnings: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Those that are not the beginning of another one, each once."""
    distinct = dict.fromkeys(beginnings)
    return [one for one in distinct if not any(one != other and one == other[: len(one)] for other in distinct)]
