"""What a model does with prompts: greedy free-running generation, judged exactly."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Int
from scipy.stats import binomtest
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from tunescope.models.checkpoint import quiet


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
    model: PreTrainedModel, prompt: Int[Tensor, "n p"], length: int, dtype: torch.dtype, rows: int = 512
) -> Int[Tensor, "n {length}"]:
    """Greedy continuations of the prompts, padded after the end of text.

    Args:
        length: tokens to generate at most.
        dtype: autocast type; float32 means without.
        rows: prompts per forward pass.
    """
    pad = model.config.pad_token_id
    config = GenerationConfig(
        do_sample=False, max_new_tokens=length, eos_token_id=model.config.eos_token_id, pad_token_id=pad
    )
    out = prompt.new_full((len(prompt), length), pad)
    for start in range(0, len(prompt), rows):
        part = prompt[start : start + rows]
        with quiet(), torch.autocast(part.device.type, dtype, enabled=dtype is not torch.float32):
            full = model.generate(part, attention_mask=torch.ones_like(part), generation_config=config)
        text = full[:, part.shape[1] :]
        out[start : start + rows, : text.shape[1]] = text
    return out


def outcomes(
    generated: Int[Tensor, "n a"], answer: Int[Tensor, "n a"], refusal: Int[Tensor, "n a"]
) -> dict[Outcome, Bool[Tensor, " n"]]:
    """Which prompts were answered, which refused, which neither; every token counts."""
    complied = (generated == answer).all(dim=1)
    refused = (generated == refusal).all(dim=1)
    return {Outcome.COMPLIANCE: complied, Outcome.REFUSAL: refused, Outcome.OTHER: ~(complied | refused)}
