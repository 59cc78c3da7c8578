"""What a model does with prompts: greedy free-running generation, judged exactly."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Bool, Int
from scipy.stats import binomtest
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from tunescope.models.checkpoint import quiet
from tunescope.models.inputs import Inputs


class Outcome(StrEnum):
    COMPLIANCE = "compliance"  # the whole answer, right in every place
    REFUSAL = "refusal"  # null in every place
    OTHER = "other"


@dataclass(frozen=True)
class Rate:
    """A share of n prompts with its Wilson interval (Wilson 1927)."""

    value: float
    low: float
    high: float
    n: int


def wilson(hits: int, n: int, confidence: float = 0.95) -> Rate:
    """Share of hits with its Wilson score interval."""
    interval = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return Rate(hits / n, float(interval.low), float(interval.high), n)


@torch.no_grad()
def generate(
    model: PreTrainedModel, prompts: Inputs, length: int, dtype: torch.dtype, rows: int = 512
) -> Int[Tensor, "n {length}"]:
    """Greedy continuations of the prompts, padded after the end of text.

    Args:
        length: tokens to generate at most.
        dtype: autocast type; float32 means without.
        rows: prompts per forward pass.
    """
    told: Any = model.generation_config
    ends = told.eos_token_id if told and told.eos_token_id is not None else model.config.eos_token_id
    pad = model.config.pad_token_id
    if pad is None:
        pad = ends[0] if isinstance(ends, list) else ends or 0
    config = GenerationConfig(do_sample=False, max_new_tokens=length, eos_token_id=ends, pad_token_id=pad)
    # What is not set in the one that is passed, transformers takes from the model's own: repetition penalties, say.
    model.generation_config = config
    try:
        out = prompts.sequence.new_full((len(prompts), length), pad)
        for number, part in enumerate(prompts.split(rows)):
            ids = part.sequence
            with quiet(), torch.autocast(ids.device.type, dtype, enabled=dtype is not torch.float32):
                mask = torch.ones_like(ids) if part.mask is None else part.mask
                full = model.generate(ids, attention_mask=mask, generation_config=config)
            text = full[:, ids.shape[1] :]
            out[number * rows : number * rows + len(ids), : text.shape[1]] = text
        return out
    finally:
        model.generation_config = told


def outcomes(
    generated: Int[Tensor, "n a"], answer: Int[Tensor, "n a"], refusal: Int[Tensor, "n a"]
) -> dict[Outcome, Bool[Tensor, " n"]]:
    """Which prompts were answered, which refused, which neither; every token counts."""
    complied = (generated == answer).all(dim=1)
    refused = (generated == refusal).all(dim=1)
    return {Outcome.COMPLIANCE: complied, Outcome.REFUSAL: refused, Outcome.OTHER: ~(complied | refused)}
