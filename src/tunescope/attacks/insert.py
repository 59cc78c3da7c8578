"""Where extra tokens or embeddings go: behind the text of a prompt, before its last token."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.models.inputs import Inputs


def inserted(prompts: Inputs, extra: Float[Tensor, "n k width"] | Int[Tensor, "n k"], model: PreTrainedModel) -> Inputs:
    """The prompts with k more places before the last token, which is the one after which the answer begins.

    The extra ones share the position of the token before them, so that the last token and the answer are where the
    model has learnt to find them, and what is read at the last token can be set beside what it was without them.

    Args:
        extra: embeddings, or token ids.
    """
    plain, extra = prompts.embedded(model), Inputs(extra).embedded(model).sequence
    n, t, _ = plain.sequence.shape
    sequence = torch.cat([plain.sequence[:, :-1], extra, plain.sequence[:, -1:]], dim=1)
    place = torch.arange(t, device=extra.device).expand(n, t) if plain.positions is None else plain.positions
    shared = place[:, -2:-1].expand(n, extra.shape[1])
    positions = torch.cat([place[:, :-1], shared, place[:, -1:]], dim=1)
    mask = plain.mask
    if mask is not None:
        mask = torch.cat([mask, mask.new_ones(n, extra.shape[1])], dim=1)
    return Inputs(sequence, positions, mask)
