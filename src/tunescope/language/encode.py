"""Texts to what a model reads."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from tunescope.errors import InputError
from tunescope.models.checkpoint import first_line
from tunescope.models.inputs import Inputs


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], device: torch.device, *, template: str | None
) -> Inputs:
    """Token ids of prompts, padded on the left to the longest; positions count from a prompt's own first token.

    Args:
        template: a chat template, in which each text is what the user says, up to where the answer begins; None takes
            texts as they are and a line break, with what the tokenizer puts before any text.

    Raises:
        InputError: the tokenizer cannot do it.
    """
    if template is None:
        rows = [ids_of(tokenizer, f"{text}\n", special=True) for text in texts]
        rows = [ids[:-1] if ids[-1] == tokenizer.eos_token_id and len(ids) > 1 else ids for ids in rows]
    else:
        rows = [ids_of(tokenizer, _within(tokenizer, text, template)) for text in texts]
    longest = max(map(len, rows))
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows])
    sequence = torch.tensor([[0] * (longest - len(ids)) + ids for ids in rows])
    if mask.all():
        return Inputs(sequence.to(device))
    return Inputs(sequence.to(device), (mask.cumsum(1) - 1).clamp(min=0).to(device), mask.to(device))


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    """Token ids of a text.

    Args:
        special: with what the tokenizer puts before any text.

    Raises:
        InputError: the tokenizer cannot read it.
    """
    try:
        ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    except Exception as error:  # the tokenizers library raises plain Exception
        raise InputError(f"the tokenizer cannot read {text!r}: {first_line(error)}") from error
    if not ids:
        raise InputError(f"the tokenizer makes nothing of {text!r}")
    return ids


def _within(tokenizer: PreTrainedTokenizerBase, text: str, template: str) -> str:
    said = [{"role": "user", "content": text}]
    try:
        whole = tokenizer.apply_chat_template(said, chat_template=template, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # templates raise what they like
        raise InputError(f"the chat template cannot take {text!r}: {first_line(error)}") from error
    return str(whole)
