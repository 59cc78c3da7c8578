"""The ways in which training and scoring read a model: what it says of given tokens."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.models.inputs import Inputs


def token_logps(model: PreTrainedModel, tokens: Int[Tensor, "b t"], dtype: torch.dtype) -> Float[Tensor, "b t-1"]:
    """log p(token i + 1 | tokens 0 .. i), in nats, float32.

    Args:
        dtype: the forward pass runs under autocast to this type; float32 means without autocast.
    """
    with torch.autocast(tokens.device.type, dtype, enabled=dtype is not torch.float32):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return gathered_logps(logits, tokens[:, 1:])


def gathered_logps(logits: Float[Tensor, "*b vocab"], tokens: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Log-probability of each token under the logits before it, in nats, float32."""
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def answer_logits(
    model: PreTrainedModel, prompts: Inputs, answer: Int[Tensor, "n a"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n a vocab"]:
    """What the model expects in each place of an answer, given the prompt and the answer up to there."""
    length = answer.shape[1]
    given = answer[:, :-1]
    more = Inputs(given).embedded(model).sequence if prompts.sequence.is_floating_point() else given
    both = prompts.followed_by(more).arguments()
    with torch.autocast(answer.device.type, dtype, enabled=dtype is not torch.float32):
        return model(**both, use_cache=False, logits_to_keep=length).logits


def answer_logps(model: PreTrainedModel, prompts: Inputs, answer: Int[Tensor, "n a"]) -> Float[Tensor, "n a"]:
    """Log-probability of each token of an answer, in nats."""
    return gathered_logps(answer_logits(model, prompts, answer), answer)


@torch.no_grad()
def follows(
    model: PreTrainedModel,
    prompts: Inputs,
    answer: Int[Tensor, "n a"],
    rows: int = 512,
    dtype: torch.dtype = torch.float32,
) -> Bool[Tensor, " n"]:
    """Whether greedy generation gives exactly this answer.

    It does if and only if, in every place, the answer's token is the most likely one after the answer so far: one
    forward pass tells.
    """
    parts = zip(prompts.split(rows), answer.split(rows), strict=True)
    return torch.cat([(answer_logits(model, p, a, dtype).argmax(-1) == a).all(dim=1) for p, a in parts])
