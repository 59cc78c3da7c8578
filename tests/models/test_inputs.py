"""Inputs go through a model as its own arguments do, as tokens or as embeddings, with padding or without."""

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from tunescope.models.generate import until_end
from tunescope.models.inputs import IGNORED, Inputs
from tunescope.models.logps import (
    answer_logits,
    divergence,
    follows,
    gathered_logps,
    mean_kl,
    mean_nll,
    next_logps,
    token_logps,
    which_follows,
)
from tunescope.rng import Stream

CPU = torch.device("cpu")
IDS = Stream.named(0, "ids").integers(20, (5, 6), CPU)
ANSWER = Stream.named(0, "answer").integers(20, (5, 4), CPU)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, build: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    made = build(request.param, 20, 16).requires_grad_(False)
    for parameter in made.parameters():  # as initialised, the blocks change next to nothing
        parameter.mul_(10)
    return made


def padded(ids: torch.Tensor, by: int) -> Inputs:
    """The same prompts with padding on the left."""
    n, t = ids.shape
    sequence = torch.cat([torch.zeros(n, by, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(n, by, dtype=torch.long), torch.ones(n, t, dtype=torch.long)], dim=1)
    return Inputs(sequence, (mask.cumsum(1) - 1).clamp(min=0), mask)


def test_answer_logits_are_those_of_one_sequence(model: PreTrainedModel) -> None:
    whole = model(torch.cat([IDS, ANSWER], dim=1)).logits[:, 5:-1]
    for prompts in (Inputs(IDS), Inputs(IDS).embedded(model), padded(IDS, 3), padded(IDS, 3).embedded(model)):
        torch.testing.assert_close(answer_logits(model, prompts, ANSWER), whole, rtol=1e-4, atol=1e-4)
    logps = token_logps(model, torch.cat([IDS, ANSWER], dim=1), torch.float32)[:, 5:]
    torch.testing.assert_close(gathered_logps(whole, ANSWER), logps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [2, 100])
def test_what_comes_next_in_each_place_of_an_answer(model: PreTrainedModel, rows: int) -> None:
    want = answer_logits(model, Inputs(IDS), ANSWER).log_softmax(-1)
    torch.testing.assert_close(next_logps(model, padded(IDS, 2), rows, ANSWER), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(next_logps(model, Inputs(IDS), rows), want[:, :1], rtol=1e-4, atol=1e-4)


def test_divergence_by_hand() -> None:
    before, after = torch.tensor([[0.5, 0.5], [0.8, 0.2]]), torch.tensor([[0.25, 0.75], [0.8, 0.2]])
    want = torch.tensor([0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.0])
    torch.testing.assert_close(divergence(before.log(), after.log()), want)


def test_follows_is_greedy_generation(model: PreTrainedModel) -> None:
    text = IDS
    for _ in range(4):
        text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], dim=1)
    said = text[:, 6:]
    spoilt = said.clone()
    spoilt[torch.arange(4), torch.arange(4)] = (said[torch.arange(4), torch.arange(4)] + 1) % 20
    for rows in (1, 2, 100):
        assert follows(model, Inputs(IDS), said, rows).all()
        assert follows(model, Inputs(IDS).embedded(model), spoilt, rows).tolist() == [False] * 4 + [True]


def test_which_of_several_answers_is_the_greedy_one(model: PreTrainedModel) -> None:
    """Whatever the prompts are made of: ids, embeddings, padded, or with a place used twice."""
    twice = torch.tensor([[0, 1, 2, 3, 4, 4]]).expand(5, -1)
    for prompts in (Inputs(IDS), Inputs(IDS).embedded(model), padded(IDS, 3), Inputs(IDS, twice)):
        said = torch.zeros(5, 0, dtype=torch.long)
        for _ in range(4):
            longer = prompts.followed_by(Inputs(said).embedded(model).sequence if prompts.sequence.ndim == 3 else said)
            said = torch.cat([said, model(**longer.arguments()).logits[:, -1:].argmax(-1)], dim=1)
        spoilt, other = said.clone(), said.clone()
        spoilt[:, 3] = (said[:, 3] + 1) % 20  # begins as the right one does
        other[:2], spoilt[:2] = spoilt[:2], said[:2]
        for rows in (2, 100):
            first, second, one = which_follows(model, prompts, [spoilt, other, said], rows)
            assert first.tolist() == [True, True, False, False, False]
            assert second.tolist() == [False, False, True, True, True]
            assert one.all()
            assert which_follows(model, prompts, [said[:, :1]], rows)[0].all()
            assert not which_follows(model, prompts, [(said + 1) % 20], rows)[0].any()


def test_parts_and_rows_are_those_of_the_whole() -> None:
    inputs = padded(IDS, 2)
    for name in ("sequence", "positions", "mask"):
        parts = [getattr(part, name) for part in inputs.split(2)]
        assert torch.equal(torch.cat(parts), getattr(inputs, name))
    assert [len(part) for part in inputs.split(2)] == [2, 2, 1]
    assert torch.equal(inputs[torch.tensor([3, 0])].sequence, inputs.sequence[[3, 0]])
    assert list(Inputs(IDS).arguments()) == ["input_ids"]
    assert list(inputs.arguments()) == ["input_ids", "position_ids", "attention_mask"]


def test_positions_go_on_behind_a_place_used_twice() -> None:
    """What extra embeddings rest on: a place may be used twice, and the answer is where it would have been."""
    places = torch.tensor([[0, 1, 2, 3, 3, 4]]).expand(5, -1)
    longer = Inputs(IDS, places).followed_by(ANSWER)
    assert longer.positions is not None
    assert longer.positions[0].tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 7, 8]


def test_kl_is_that_of_the_two_distributions_over_the_answer(model: PreTrainedModel) -> None:
    other = deepcopy(model)
    for parameter in other.parameters():
        parameter.mul_(1.1)
    answer = ANSWER.clone()
    answer[0, 2:] = IGNORED
    p, q = (of(torch.cat([IDS, ANSWER], dim=1)).logits[:, 5:-1].double().softmax(-1) for of in (model, other))
    each = (p * (p / q).log()).sum(-1)
    wanted = torch.tensor([each[i, : 2 if i == 0 else 4].mean() for i in range(5)], dtype=torch.float64)
    for rows in (2, 9):
        found = mean_kl((model, Inputs(IDS)), (other, padded(IDS, 3)), answer, rows)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
        assert mean_kl((model, Inputs(IDS)), (model, Inputs(IDS)), answer, rows).abs().max() < 1e-6


def test_likelihood_of_text_is_asked_of_all_but_first_tokens_whatever_the_padding(model: PreTrainedModel) -> None:
    wanted = -token_logps(model, IDS, torch.float32).double().mean(1)
    for texts, rows in ((Inputs(IDS), 2), (padded(IDS, 3), 3)):
        torch.testing.assert_close(mean_nll(model, texts, rows), wanted, rtol=1e-4, atol=1e-5)


def test_an_answer_goes_up_to_its_first_end(model: PreTrainedModel) -> None:
    said = torch.tensor([[4, 7, 7, 3], [5, 5, 9, 5], [9, 4, 4, 4]])
    assert until_end(model, said).tolist() == said.tolist()  # nothing ends a text
    told, model.generation_config = model.generation_config, GenerationConfig(eos_token_id=[7, 9])
    try:
        found = until_end(model, said)
    finally:
        model.generation_config = told
    assert found.tolist() == [[4, 7, IGNORED, IGNORED], [5, 5, 9, IGNORED], [9, IGNORED, IGNORED, IGNORED]]
