"""What all prompts begin with is read once; nothing else changes, in any family."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.models.generate import generate
from tunescope.models.hooks import patch
from tunescope.models.inputs import Inputs, left_padded
from tunescope.models.logps import read, token_logps, which_follows
from tunescope.models.sites import Site
from tunescope.probes.collect import activations, last_activations
from tunescope.rng import Stream

CPU = torch.device("cpu")
BEGUN = 10  # more than is read again
SLIDING = ("mistral", "gemma2")  # by their config; in their windows padding would take up room
ANSWER = Stream.named(0, "answer").integers(20, (5, 4), CPU)


@pytest.fixture(scope="module", params=["gpt2", "llama", "mistral", "qwen3", "gemma2", "phi3"])
def model(request: pytest.FixtureRequest, build: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    made = build(request.param, 20, 48).requires_grad_(False)
    for parameter in made.parameters():  # as initialised, the blocks change next to nothing
        parameter.mul_(5)
    return made


@pytest.fixture(params=[(3, 3, 3, 3, 3), (3, 5, 2, 7, 4)], ids=["one length", "padded"])
def prompts(request: pytest.FixtureRequest) -> Inputs:
    ids = Stream.named(0, "ids").integers(20, (5, BEGUN + 7), CPU)
    ids[:, :BEGUN] = ids[0, :BEGUN]
    ids[:, BEGUN] = torch.arange(5)
    made = left_padded([row[: BEGUN + n].tolist() for row, n in zip(ids, request.param, strict=True)], CPU)
    assert made.shared == BEGUN
    return made


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def alone(prompts: Inputs, i: int) -> Tensor:
    """A prompt without padding."""
    row = prompts.sequence[i]
    return row[None] if prompts.mask is None else row[prompts.mask[i] == 1][None]


def test_what_is_expected_next_is_what_each_prompt_says_alone(model: PreTrainedModel, prompts: Inputs) -> None:
    found, whole = read(model, prompts, 1), read(model, replace(prompts, shared=0), 1)
    close(found, whole)
    close(found, torch.cat([model(alone(prompts, i)).logits[:, -1:] for i in range(5)]))
    close(read(model, prompts[1:2], 1), found[1:2])


def test_it_is_read_once(model: PreTrainedModel, prompts: Inputs) -> None:
    seen: list[list[int]] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: seen.append(list(given["input_ids"].shape)), with_kwargs=True
    )
    read(model, prompts, 1)
    read(model, prompts[:1], 1)
    read(model, replace(prompts, shared=0), 1)
    hook.remove()
    t = prompts.sequence.shape[1]
    first = (
        [[5, t]] if model.config.model_type in SLIDING and prompts.mask is not None else [[1, BEGUN], [5, t - BEGUN]]
    )
    assert seen == [*first, [1, t], [5, t]]


def test_gradients_are_the_same(model: PreTrainedModel, prompts: Inputs) -> None:
    found = []
    for shared in (prompts.shared, 0):
        model.requires_grad_(True)
        whole = prompts.followed_by(ANSWER)
        token_logps(model, whole.sequence, torch.float32, 4, whole.positions, whole.mask, shared).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        model.zero_grad()
        model.requires_grad_(False)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3 * found[1].abs().max().item())


def test_answers_are_the_same(model: PreTrainedModel, prompts: Inputs) -> None:
    said = generate(model, prompts, 4)
    assert torch.equal(said, generate(model, replace(prompts, shared=0), 4))
    assert which_follows(model, prompts, [said, ANSWER])[0].all()


def test_activations_are_the_same(model: PreTrainedModel, prompts: Inputs) -> None:
    sites = [Site(1, "mlp_post"), Site(0, "resid_post")]
    (last,), (every,) = (list(of(model, prompts, sites, 5)) for of in (last_activations, activations))
    for site in sites:
        assert every[site].shape[1] == prompts.sequence.shape[1]
        close(last[site], every[site][:, -1].float())


def test_what_is_shared_stays_so(prompts: Inputs) -> None:
    twice = prompts[torch.tensor([0, 1, 2, 3, 4, 0, 1])]
    assert [each.shared for each in (prompts[1:], prompts.followed_by(ANSWER), twice)] == [BEGUN] * 3


def test_few_tokens_are_read_again_and_the_ends_are_not_shared() -> None:
    begun = list(range(9))
    assert left_padded([[*begun[:7], 10, 11], [*begun[:7], 12, 13]], CPU).shared == 0
    assert left_padded([[*begun, 10, 11], [*begun, 12]], CPU).shared == 8
    assert left_padded([begun], CPU).shared == 0
    padded = left_padded([[*begun, 10, 11, 12], [*begun, 13, 14]], CPU)
    assert padded.sequence.tolist() == [[*begun, 10, 11, 12], [0, *begun, 13, 14]]
    first = padded.shared_first()
    assert first.sequence.tolist() == [[*begun, 10, 11, 12], [*begun, 0, 13, 14]]
    assert first.mask is not None
    assert first.positions is not None
    assert first.mask[1].tolist() == [1] * 9 + [0, 1, 1]
    assert first.positions[1].tolist() == [*range(9), 0, 9, 10]
    assert torch.equal(first.shared_first().sequence, first.sequence)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "qwen2"])
def test_padding_takes_no_room_in_a_sliding_window(name: str, build: Callable[..., PreTrainedModel]) -> None:
    model = build(name, 20, 64, sliding_window=12, use_sliding_window=True).requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(5)
    ids = Stream.named(0, "ids").integers(20, (2, 40), CPU)
    ids[1, :BEGUN] = ids[0, :BEGUN]
    rows = [ids[0, :14].tolist(), ids[1].tolist()]
    close(read(model, left_padded(rows, CPU), 1)[0], model(torch.tensor(rows[:1])).logits[0, -1:])
    said = generate(model, left_padded(rows, CPU), 4)[0]
    assert torch.equal(said, generate(model, Inputs(torch.tensor(rows[:1])), 4)[0])


def test_what_is_patched_is_read_whole(prompts: Inputs, build: Callable[..., PreTrainedModel]) -> None:
    """Also where one row would fit the shared tokens."""
    model, site = build("llama", 20, 48).requires_grad_(False), Site(1, "resid_post")
    plain, new = read(model, prompts, 1), torch.randn(5, 1, 16)
    with patch(model, {site: new}, slice(-1, None)):
        assert not torch.equal(read(model, prompts, 1), plain)
    with patch(model, {site: new[:1]}, slice(-1, None)), pytest.raises(ValueError, match="cannot take the place"):
        read(model, prompts, 1)
    assert torch.equal(read(model, prompts, 1), plain)
