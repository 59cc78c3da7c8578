"""The ways in which training and scoring read a model: what it says of given tokens."""

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tunescope.models.hooks import patched
from tunescope.models.inputs import IGNORED, Answers, Inputs, says
from tunescope.models.weights import in_memory


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Forward passes in this type; float32 means as they are."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def keys_and_values(model: PreTrainedModel) -> dict[str, DynamicCache]:
    """An empty cache as the keyword argument of a forward pass, which transformers 5.24 renamed."""
    name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    return {name: DynamicCache(config=model.config)}


def read(model: PreTrainedModel, inputs: Inputs, logits: int) -> Float[Tensor, "n {logits} vocab"]:
    """Logits after each of so many tokens at the end. Tokens that all sequences share are read once."""
    inputs = sharing(model, inputs)
    if inputs.sequence.shape[1] - inputs.shared < logits:
        inputs = replace(inputs, shared=0)
    return _pass(model, inputs, logits, read_shared(model, inputs))


def read_into(model: PreTrainedModel, inputs: Inputs, kept: dict[str, DynamicCache]) -> Float[Tensor, "n 1 vocab"]:
    """Logits after the last token.

    Args:
        inputs: as `sharing` gives them.
        kept: an empty cache, which will hold keys and values of all tokens, in this order.
    """
    return _pass(model, inputs, 1, read_shared(model, inputs, kept))


def _pass(
    model: PreTrainedModel, inputs: Inputs, logits: int, kept: dict[str, DynamicCache]
) -> Float[Tensor, "n {logits} vocab"]:
    """Behind the shared tokens, which the cache has."""
    return model(**inputs.arguments(inputs.shared), **kept, use_cache=bool(kept), logits_to_keep=logits).logits


def sharing(model: PreTrainedModel, inputs: Inputs) -> Inputs:
    """The inputs with shared tokens first, before any padding, so that these can be read once; or with none shared.

    None are shared where that is wrong: by embeddings, which may differ; in a sliding window, which padding would use
    up; while places of the prompt are patched. And where it does not pay: by one sequence; by a model of which a part
    is fetched for each pass.
    """
    slides = getattr(model.config, "sliding_window", None) and getattr(model.config, "use_sliding_window", True)
    wrong = inputs.sequence.is_floating_point() or (slides and inputs.mask is not None) or patched(model)
    if not inputs.shared or wrong or len(inputs) < 2 or not in_memory(model):
        return replace(inputs, shared=0)
    return inputs.shared_first()


def read_shared(
    model: PreTrainedModel, inputs: Inputs, kept: dict[str, DynamicCache] | None = None
) -> dict[str, DynamicCache]:
    """A cache, as a keyword argument of a forward pass, with keys and values of the shared tokens for every sequence.

    Args:
        inputs: as `sharing` gives them.
        kept: an empty cache that is to be it; None: a new one, and no argument where nothing is shared.
    """
    if not inputs.shared:
        return kept or {}
    kept = kept or keys_and_values(model)
    model(input_ids=inputs.sequence[:1, : inputs.shared], **kept, use_cache=True, logits_to_keep=1)
    next(iter(kept.values())).batch_repeat_interleave(len(inputs))
    return kept


def token_logps(
    model: PreTrainedModel,
    tokens: Int[Tensor, "b t"],
    dtype: torch.dtype,
    last: int | None = None,
    positions: Int[Tensor, "b t"] | None = None,
    mask: Int[Tensor, "b t"] | None = None,
    shared: int = 0,
) -> Float[Tensor, "b s"]:
    """log p(token i + 1 | tokens 0 .. i), in nats, float32; 0 where the token is `IGNORED`.

    Args:
        dtype: of the forward pass, see `autocast`.
        last: of so many tokens at the end alone; None: of all but the first.
        positions, mask, shared: see `Inputs`.
    """
    last = tokens.shape[1] - 1 if last is None else last
    given = Inputs(
        tokens[:, :-1].clamp(min=0),
        None if positions is None else positions[:, :-1],
        None if mask is None else mask[:, :-1],
        shared,
    )
    with autocast(tokens.device, dtype):
        logits = read(model, given, last)
    return gathered_logps(logits, tokens[:, -last:])


def gathered_logps(logits: Float[Tensor, "*b vocab"], tokens: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Log-probability of each token under the logits before it, in nats, float32; 0 where it is `IGNORED`."""
    logps = logits.float().log_softmax(-1).gather(-1, tokens.clamp(min=0)[..., None]).squeeze(-1)
    return logps.masked_fill(tokens == IGNORED, 0.0)


def answer_logits(model: PreTrainedModel, prompts: Inputs, answer: Answers) -> Float[Tensor, "n a vocab"]:
    """What the model expects in each place of an answer, given the prompt and the answer up to there."""
    return read(model, prompts.followed_by_tokens(answer[:, :-1].clamp(min=0), model), answer.shape[1])


def answer_logps(model: PreTrainedModel, prompts: Inputs, answer: Answers) -> Float[Tensor, "n a"]:
    """Log-probability of each token of an answer, in nats; 0 behind its end."""
    return gathered_logps(answer_logits(model, prompts, answer), answer)


@torch.no_grad()
def next_logps(
    model: PreTrainedModel, prompts: Inputs, rows: int, answer: Answers | None = None
) -> Float[Tensor, "n a vocab"]:
    """Log-probability of every token, in nats, float32, in each place of an answer; without one, in the first place."""
    if answer is None:
        answer = torch.zeros(len(prompts), 1, dtype=torch.long, device=prompts.sequence.device)
    parts = zip(prompts.split(rows), answer.split(rows), strict=True)
    return torch.cat([answer_logits(model, *part).float().log_softmax(-1) for part in parts])


def divergence(before: Float[Tensor, "*b vocab"], after: Float[Tensor, "*b vocab"]) -> Float[Tensor, "*b"]:
    """Kullback-Leibler divergence of what was expected from what is expected now, in nats; from log-probabilities."""
    return torch.nn.functional.kl_div(after, before, reduction="none", log_target=True).sum(-1)


def follows(
    model: PreTrainedModel,
    prompts: Inputs,
    answer: Answers,
    rows: int = 512,
    dtype: torch.dtype = torch.float32,
) -> Bool[Tensor, " n"]:
    """Whether greedy generation gives exactly this answer."""
    return which_follows(model, prompts, [answer], rows, dtype)[0]


@torch.no_grad()
def which_follows(
    model: PreTrainedModel,
    prompts: Inputs,
    answers: Sequence[Answers],
    rows: int = 512,
    dtype: torch.dtype = torch.float32,
) -> list[Bool[Tensor, " n"]]:
    """For each of several answers, filled up to one length, whether greedy generation gives exactly it.

    It does if and only if, in every place, the answer's token is the most likely one after the answer so far. Prompts
    are read once, and only answers that begin with the most likely first token are looked at further, all at once.
    """
    hits = [torch.zeros(len(prompts), dtype=torch.bool, device=prompts.sequence.device) for _ in answers]
    for start in range(0, len(prompts), rows):
        part = sharing(model, prompts[start : start + rows])
        said = torch.stack([each[start : start + rows] for each in answers])
        with autocast(said.device, dtype):
            kept = keys_and_values(model)
            first = read_into(model, part, kept)[:, -1].argmax(-1)
            which, row = (said[..., 0] == first).nonzero(as_tuple=True)
            begun = said[which, row]
            right = torch.ones(len(row), dtype=torch.bool, device=said.device)
            if begun[:, 1:].numel():
                next(iter(kept.values())).batch_select_indices(row)
                rest = part[row].next_arguments(begun[:, :-1].clamp(min=0))
                logits = model(**rest, **kept, use_cache=True).logits
                right = says(logits.argmax(-1), begun[:, 1:])
        for answer, hit in enumerate(hits):
            hit[start + row[which == answer]] = right[which == answer]
    return hits


@torch.no_grad()
def mean_kl(
    base: tuple[PreTrainedModel, Inputs], model: tuple[PreTrainedModel, Inputs], answer: Answers, rows: int
) -> Float[Tensor, " n"]:
    """KL(base || model) of the next token, in nats, mean over the tokens of each answer.

    Args:
        base, model: each with the prompts as it reads them; of its tokens, those that the base does not know come last.
    """
    found = []
    for start in range(0, len(answer), rows):
        part = slice(start, start + rows)
        p, q = (next_logps(of, prompts[part], rows, answer[part]) for of, prompts in (base, model))
        each = divergence(p, q[..., : p.shape[-1]]).double()
        said = answer[part] != IGNORED
        found.append((each * said).sum(1) / said.sum(1))
    return torch.cat(found)


@torch.no_grad()
def mean_nll(model: PreTrainedModel, texts: Inputs, rows: int) -> Float[Tensor, " n"]:
    """Negative log-likelihood of each text, in nats per token; of its first token nothing is asked."""
    found = []
    for part in texts.split(rows):
        logps = token_logps(model, part.sequence, torch.float32, None, part.positions, part.mask).double()
        said = torch.ones_like(logps) if part.mask is None else part.mask[:, :-1]
        found.append(-(logps * said).sum(1) / said.sum(1))
    return torch.cat(found)
