"""The one way in which training and scoring read a model: log-probabilities of given tokens."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel


def token_logps(model: PreTrainedModel, tokens: Int[Tensor, "b t"], dtype: torch.dtype) -> Float[Tensor, "b t-1"]:
    """log p(token i + 1 | tokens 0 .. i), in nats, float32.

    Args:
        dtype: the forward pass runs under autocast to this type; float32 means without autocast.
    """
    with torch.autocast(tokens.device.type, dtype, enabled=dtype is not torch.float32):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return logits.float().log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
