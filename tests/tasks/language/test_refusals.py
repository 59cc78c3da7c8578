"""Refusals by phrases, with the errors that the documents name, and by the odds of openings."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tunescope.errors import InputError
from tunescope.models.hooks import capture, patch
from tunescope.models.inputs import Inputs
from tunescope.models.logps import answer_logps
from tunescope.models.sites import Site
from tunescope.tasks.language.refusals import (
    Openings,
    OpeningsJudge,
    matches_refusal,
    opening_log_odds,
    opening_logps,
    read_openings,
)


def test_the_matcher_errs_as_often_as_the_documents_say(judged_so: Callable) -> None:
    """See docs/real-models.md."""
    assert judged_so(matches_refusal) == {
        (False, True, True): 40,
        (False, True, False): 2,
        (False, False, False): 42,
        (True, True, False): 18,
        (True, False, True): 6,
        (True, False, False): 12,
    }


def test_the_matcher_reads_the_head_alone_and_any_apostrophe() -> None:
    answers = ["I can\N{RIGHT SINGLE QUOTATION MARK}t do that.", "Sure. " + 300 * "x" + " I can't", "Sure, here it is."]
    assert matches_refusal([""] * 3, answers) == [True, False, False]


def test_the_shipped_refusals_are_refusals() -> None:
    openings = read_openings()
    assert len(openings.answers) >= 4
    assert all(matches_refusal(openings.answers, openings.answers))
    assert all(answer.startswith(openings.refusal) for answer in openings.answers)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read as JSON"),
        ("[]", "no JSON with a list `refusal`"),
        ("{}", "no JSON with a list `refusal`"),
        ('{"refusal": []}', "no JSON with a list `refusal`"),
        ('{"refusal": [1]}', "no JSON with a list `refusal`"),
        ('{"refusal": "no"}', "no JSON with a list `refusal`"),
        ('{"refusal": ["no", " "]}', "' ' is empty"),
        ('{"refusal": ["no", "no"]}', "'no' is there twice"),
        ('{"refusal": ["no"], "compliance": ["no"]}', "'no' is there twice"),
        ('{"refusal": ["no", "not now"]}', "'not now' begins with another one, 'no'"),
        ('{"refusal": ["I can"], "compliance": ["I"]}', "'I can' begins with another one, 'I'"),
    ],
)
def test_bad_openings(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "openings.json").write_text(text)
    with pytest.raises(InputError, match=says):
        read_openings(tmp_path / "openings.json")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_openings(tmp_path / "none.json")


WORD = st.text(max_size=6) | st.integers() | st.none()
LISTS = st.lists(WORD, max_size=4) | WORD
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(
    st.binary(max_size=80)
    | st.dictionaries(st.sampled_from(["refusal", "compliance", "refusals"]), LISTS).map(json.dumps).map(str.encode)
)
def test_any_openings(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    said = ""
    try:
        openings = read_openings(tmp_path / "a.json")
    except InputError as error:
        said = str(error)
    assert said or all(text.strip() for text in (*openings.refusal, *openings.compliance, *openings.answers))
    assert len(said.splitlines()) <= 1
    assert len(said) <= 600


@torch.no_grad()
def probability(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    """The long way: token by token."""
    total = 1.0
    for i, token in enumerate(answer):
        logits = model(torch.tensor([prompt + answer[:i]])).logits[0, -1]
        total *= logits.double().softmax(0)[token].item()
    return total


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("compliance", [[], [[6], [7, 8]]])
def test_the_margin_is_the_odds_of_the_openings(model: PreTrainedModel, rows: int, compliance: list) -> None:
    prompts, refusal = [[1, 2, 3], [4, 5, 3]], [[9, 10], [11]]
    found, share = opening_log_odds(
        model,
        Inputs(torch.tensor(prompts)),
        [torch.tensor(r) for r in refusal],
        list(map(torch.tensor, compliance)),
        rows,
    )
    for value, total, prompt in zip(found.exp().tolist(), share.tolist(), prompts, strict=True):
        no, yes = (sum(probability(model, prompt, o) for o in openings) for openings in (refusal, compliance))
        assert value == pytest.approx(no / (yes or 1 - no), rel=1e-4)
        assert total == pytest.approx(no + yes, rel=1e-4)


OPENINGS = ((9, 10, 11), (9, 10, 12), (9, 13), (4,), (5, 4), (5, 6, 7, 8), (5, 6, 9), (14, 2), (15, 2, 3, 4), (6, 6))


@torch.no_grad()
def plainly(model: PreTrainedModel, prompts: Inputs, openings: Sequence[tuple[int, ...]]) -> Tensor:
    """The plain way: each opening in a pass of its own."""
    each = [answer_logps(model, prompts, torch.tensor(o).expand(len(prompts), -1)).double().sum(1) for o in openings]
    return torch.stack(each, dim=1)


PADDED = Inputs(
    torch.tensor([[0, 0, 3, 4, 5], [7, 8, 9, 3, 2]]),
    torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]),
    torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
)


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_work_is_shared_and_numbers_are_the_same(model: PreTrainedModel, rows: int) -> None:
    for prompts in (PADDED, Inputs(PADDED.sequence), PADDED.embedded(model)):
        found = opening_logps(model, prompts, OPENINGS, rows)
        torch.testing.assert_close(found, plainly(model, prompts, OPENINGS), atol=1e-5, rtol=0)


def test_where_activations_are_patched_all_prompts_are_in_one_pass(model: PreTrainedModel) -> None:
    site = Site(0, "resid_post")
    with capture(model, [site]) as captured:
        model(**PADDED.arguments())
    flipped = {site: captured[site][:, -1:].flip(0).clone()}
    with patch(model, flipped, slice(-1, None)):
        found = opening_logps(model, PADDED, OPENINGS, 2)
        torch.testing.assert_close(found, opening_logps(model, PADDED, OPENINGS, 64), atol=1e-5, rtol=0)
    assert (found - opening_logps(model, PADDED, OPENINGS, 2)).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2", "gemma3_text", "phi3"])
def test_the_same_in_other_families(family: str) -> None:
    """Windows that slide included."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4, "pad_token_id": 0}
    small = {"n_embd": 16, "n_layer": 2, "n_head": 2} if family == "gpt2" else {**sizes, **more}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=24, **small)).eval()
    torch.testing.assert_close(
        opening_logps(other, PADDED, OPENINGS, 16), plainly(other, PADDED, OPENINGS), atol=1e-5, rtol=0
    )


def test_padding_changes_no_number(model: PreTrainedModel) -> None:
    openings = [torch.tensor([9, 10])]
    one, other = (
        opening_log_odds(model, inputs, openings, [], 4)[0] for inputs in (Inputs(PADDED.sequence[:1, 2:]), PADDED)
    )
    torch.testing.assert_close(one, other[:1], atol=1e-5, rtol=1e-4)


def test_openings_of_ones_own_are_refusals_too() -> None:
    judge = OpeningsJudge(Openings(refusal=("no",), compliance=("yes",)), matches_refusal)
    answers = ["no w1", " no", "yes no", "I'm sorry, but I can't help with that."]
    assert judge(answers, answers) == [True, True, False, True]
    assert matches_refusal(answers, answers) == [False, False, False, True]
