"""Texts to what a model reads."""

from collections.abc import Sequence
from datetime import datetime

import torch
from transformers import PreTrainedTokenizerBase

from tunescope.errors import InputError, shown
from tunescope.models.inputs import Inputs, left_padded

# Some chat templates name today's date. Here it is always this day, so that results depend on no calendar.
TODAY = datetime(2024, 7, 26)
_CODES = [code for letter in "aAbBcdfHIjmMpSUwWxXyYZ%" for code in (f"%-{letter}", f"%{letter}")]


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], device: torch.device, *, template: str | None
) -> Inputs:
    """Token ids of prompts, padded on the left to the longest; positions count from a prompt's own first token.

    Args:
        template: a chat template, in which each text is what the user says, up to where the answer begins; None takes
            texts as they are and a line break, with what the tokenizer puts before any text.

    Raises:
        InputError: the tokenizer cannot do it, or two texts that differ are the same tokens.
    """
    return left_padded(token_rows(tokenizer, texts, template), device)


def token_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], template: str | None) -> list[list[int]]:
    """See `encode`: a row of token ids for each text."""
    if template is None:
        rows = [ids_of(tokenizer, f"{text}\n", special=True) for text in texts]
        rows = [ids[:-1] if ids[-1] == tokenizer.eos_token_id and len(ids) > 1 else ids for ids in rows]
    else:
        rows = [ids_of(tokenizer, _within(tokenizer, text, template)) for text in texts]
    seen: dict[tuple[int, ...], str] = {}
    for text, ids in zip(texts, rows, strict=True):
        if (other := seen.setdefault(tuple(ids), text)) != text:
            raise InputError(
                f"prompts: {shown(other)} and {shown(text)} are the same tokens; the "
                f"{'tokenizer' if template is None else 'chat template or the tokenizer'} drops what tells them apart: "
                "choose another format, or remove one"
            )
    return rows


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
        raise InputError(f"the tokenizer cannot read {shown(text)}: {shown(error)}") from error
    if not ids:
        raise InputError(f"the tokenizer gives no tokens for {shown(text)}")
    return ids


def _within(tokenizer: PreTrainedTokenizerBase, text: str, template: str) -> str:
    if "strftime_now" in template:
        # A macro of the template itself: transformers lets nobody pass a function.
        same = "".join(f" | replace('{code}', '{TODAY.strftime(code)}')" for code in _CODES)
        template = f"{{%- macro strftime_now(form) %}}{{{{ form{same} }}}}{{%- endmacro %}}{{{{ '' }}}}{template}"
    try:
        whole = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            chat_template=template,
            add_generation_prompt=True,
            tokenize=False,
            date_string=TODAY.strftime("%d %b %Y"),
        )
    except Exception as error:  # templates raise what they like
        raise InputError(f"the chat template cannot take {shown(text)}: {shown(error)}") from error
    return str(whole)
