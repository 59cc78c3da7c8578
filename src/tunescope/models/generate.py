"""Greedy free-running generation."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from tunescope.models.checkpoint import quiet
from tunescope.models.hooks import patched
from tunescope.models.inputs import IGNORED, Answers, Inputs, left_padded
from tunescope.models.logps import autocast, read_shared, sharing
from tunescope.progress import progress


@torch.no_grad()
def generate(
    model: PreTrainedModel, prompts: Inputs, length: int, dtype: torch.dtype = torch.float32, rows: int = 512
) -> Int[Tensor, "n {length}"]:
    """Greedy continuations of the prompts, padded after the end of text.

    Args:
        length: tokens to generate at most.
        dtype: of the forward passes, see `autocast`.
        rows: prompts per forward pass; all are in one where their activations are patched.
    """
    told, ends, pad = model.generation_config, _ends(model), model.config.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    config = GenerationConfig(do_sample=False, max_new_tokens=length, eos_token_id=ends or None, pad_token_id=pad)
    # What is not set in the one that is passed, transformers takes from the model's own: repetition penalties, say.
    model.generation_config = config
    try:
        out = torch.full((len(prompts), length), pad, dtype=torch.long, device=prompts.sequence.device)
        if patched(model):  # each row with activations of its own
            order = [torch.arange(len(prompts), device=out.device)]
        else:  # alike ones need less padding
            order = [batch for batch in prompts.lengths.argsort(stable=True).split(rows) if len(batch)]
        for which in progress(order, desc="greedy answers", unit="batch"):
            part = sharing(model, prompts[which].trimmed())
            given: dict[str, Any] = part.arguments()
            if "input_ids" in given:
                given.pop("position_ids", None)  # generation counts them from the mask; embeddings may share theirs
            given.setdefault("attention_mask", torch.ones(part.sequence.shape[:2], dtype=torch.long, device=out.device))
            with quiet(), autocast(out.device, dtype):
                given |= read_shared(model, part)
                full = model.generate(**given, generation_config=config)
            # Of embeddings, only what is new comes back.
            text = full if "inputs_embeds" in given else full[:, part.sequence.shape[1] :]
            out[which, : text.shape[1]] = text
        return out
    finally:
        model.generation_config = told


class Greedy:
    """Greedy answers of one model, which is not changed meanwhile: to the same tokens only one is generated.

    Attributes:
        rows: prompts per forward pass.
    """

    def __init__(self, model: PreTrainedModel, rows: int = 512) -> None:
        self.model, self.rows = model, rows
        self._said: dict[tuple[int, tuple[int, ...]], Int[Tensor, " a"]] = {}

    def __call__(self, prompts: Inputs, length: int) -> Int[Tensor, "n {length}"]:
        """As `generate`."""
        if prompts.sequence.is_floating_point() or patched(self.model):
            return generate(self.model, prompts, length, rows=self.rows)
        self.ahead([prompts], length)
        return torch.stack([self._said[length, ids] for ids in prompts.ids])

    def ahead(self, several: Sequence[Inputs], length: int) -> None:
        """Have the answers to several batches at hand, which takes less time than one batch after the other.

        Of embeddings, and while activations are patched, nothing is kept.
        """
        several = [prompts for prompts in several if not prompts.sequence.is_floating_point()]
        if not several or patched(self.model):
            return
        asked = dict.fromkeys(ids for prompts in several for ids in prompts.ids)
        if new := [ids for ids in asked if (length, ids) not in self._said]:
            answers = generate(self.model, left_padded(new, several[0].sequence.device), length, rows=self.rows)
            self._said |= {(length, ids): answer for ids, answer in zip(new, answers, strict=True)}


def until_end(model: PreTrainedModel, generated: Int[Tensor, "n a"]) -> Answers:
    """What a model has generated, up to the first end of text of each answer."""
    end = torch.isin(generated, torch.tensor(_ends(model), dtype=torch.long, device=generated.device)).long()
    return generated.masked_fill(end.cumsum(1) - end > 0, IGNORED)


def _ends(model: PreTrainedModel) -> list[int]:
    """Tokens that end a text, as the model says."""
    told: Any = model.generation_config
    ends = told.eos_token_id if told and told.eos_token_id is not None else model.config.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]
