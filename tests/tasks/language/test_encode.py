"""Texts to tokens: padding, chat templates, and templates that would make numbers wrong."""

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tunescope.errors import InputError
from tunescope.models.tokenizer import build_tokenizer
from tunescope.tasks.language.encode import TODAY, encode

CPU = torch.device("cpu")
WORDS = ["<eos>", "<pad>", "<user>", "<assistant>", "make", "a", "lamp", "please"]
TEMPLATE = (
    "{% for m in messages %}<user> {{ m.content }}{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
)


@pytest.fixture
def small() -> PreTrainedTokenizerBase:
    return build_tokenizer(WORDS)


def test_prompts_are_padded_on_the_left_and_templates_applied(small: PreTrainedTokenizerBase) -> None:
    plain = encode(small, ["make a lamp", "make"], CPU, template=None)
    assert plain.mask is not None
    assert plain.positions is not None
    assert plain.sequence[plain.mask == 1].tolist() == [4, 5, 6, 4]
    assert plain.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert plain.positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    chat = encode(small, ["make a lamp"], CPU, template=TEMPLATE)
    assert (chat.sequence.tolist(), chat.mask) == ([[2, 4, 5, 6, 3]], None)


def test_a_prompt_that_cannot_be_read_is_named(small: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="cannot read 'make unknown"):
        encode(small, ["make unknown"], CPU, template=None)
    with pytest.raises(InputError, match="gives no tokens for"):
        encode(small, [" "], CPU, template=None)
    with pytest.raises(InputError, match="the chat template cannot take 'make'"):
        encode(small, ["make"], CPU, template="{{ raise_exception('no') }}")


@pytest.mark.parametrize(
    "template", ["<user> lamp <assistant>", "<user> {{ messages[0].content.split()[0] }} <assistant>"]
)
def test_a_template_that_drops_the_prompt_is_refused(small: PreTrainedTokenizerBase, template: str) -> None:
    with pytest.raises(InputError, match=r"'make a lamp' and 'make a' are the same tokens; the chat template"):
        encode(small, ["make a lamp", "make a"], CPU, template=template)
    with pytest.raises(InputError, match=r"'make a' and 'make  a' are the same tokens; the tokenizer"):
        encode(small, ["make a", "make  a"], CPU, template=None)


def test_templates_do_not_tell_the_day() -> None:
    """Both ways in which templates come by a date."""
    template = (
        "{{ strftime_now('%d-%m-%Y') }} {{ date_string }} "
        "{% if strftime_now is defined %}{% set day = strftime_now('%-d %B') %}{{ day }}{% endif %} "
        "{{ messages[0].content }}"
    )
    words = ["<eos>", "<pad>", "26-07-2024", "26", "Jul", "2024", "July", "make"]
    found = encode(build_tokenizer(words), ["make"], CPU, template=template)
    assert found.sequence.tolist() == [[2, 3, 4, 5, 3, 6, 7]]


def test_every_code_of_a_date_is_fixed() -> None:
    codes = [code for letter in "aAbBcdfHIjmMpSUwWxXyYZ%" for code in (f"%{letter}", f"%-{letter}")]
    template = "{{ messages[0].content }} {{ strftime_now('" + " | ".join(codes) + "') }}"
    tokenizer = build_tokenizer(["<eos>", "<pad>", "make", *{*TODAY.strftime(" | ".join(codes)).split()}])
    ids = encode(tokenizer, ["make"], CPU, template=template).sequence[0]
    assert tokenizer.decode(ids[1:]) == " ".join(TODAY.strftime(" | ".join(codes)).split())
