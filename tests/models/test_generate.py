"""Greedy answers that are kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tunescope.models.generate as generating
from tunescope.attacks.insert import inserted
from tunescope.models.generate import Greedy, generate, until_end
from tunescope.models.hooks import capture, patch
from tunescope.models.inputs import Inputs, left_padded
from tunescope.models.logps import follows
from tunescope.models.sites import Site

CPU = torch.device("cpu")


def test_to_the_same_prompt_one_answer_is_generated(
    build: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("gpt2", 20, 48).requires_grad_(False)
    rows = [list(range(1, 4 + n)) for n in (5, 2, 7, 3, 2)]
    prompts = left_padded([*rows, rows[1]], CPU)
    plain = generate(model, prompts, 4)
    asked: list[int] = []

    def counted(model: PreTrainedModel, prompts: Inputs, *more: int, **how: int) -> Tensor:
        asked.append(len(prompts))
        return generate(model, prompts, *more, **how)

    monkeypatch.setattr(generating, "generate", counted)
    greedy = Greedy(model, rows=2)
    greedy.ahead([prompts[:2], prompts[3:]], 4)
    assert asked == [3]  # of five, three differ
    torch.testing.assert_close(greedy(prompts, 4), plain, rtol=0, atol=0)
    assert asked == [3, 1]
    torch.testing.assert_close(greedy(prompts[2:3], 3), plain[2:3, :3], rtol=0, atol=0)  # another length differs
    assert asked == [3, 1, 1]
    soft = greedy(prompts[2:3].embedded(model), 4)
    assert soft.shape == (1, 4)
    assert len(asked) == 4


def test_what_is_patched_goes_into_its_own_row_and_is_not_kept(build: Callable[..., PreTrainedModel]) -> None:
    """By length, the rows would be read in another order, and one by one. What follows the prompt is left alone."""
    model, site, last = build("gpt2", 20, 48).requires_grad_(False), Site(1, "resid_post"), slice(-1, None)
    prompts = left_padded([[1, 2, 3, 4, 5, 6], [7, 8], [9, 3, 4]], CPU)
    others = left_padded([[11, 2, 3, 14, 5, 16], [17, 13], [19, 13, 14]], CPU)
    with capture(model, [site]) as inside:
        model(**others.arguments())
    greedy = Greedy(model, rows=1)
    own, first = greedy(prompts, 2), generate(model, others, 1)
    assert (own[:, :1] != first).all()
    second = generate(model, prompts.followed_by_tokens(first, model), 1)
    with patch(model, {site: inside[site][:, last].clone()}, last):
        torch.testing.assert_close(greedy(prompts, 2), torch.cat([first, second], 1), rtol=0, atol=0)
    torch.testing.assert_close(greedy(prompts, 2), own, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_what_is_inserted_keeps_its_positions(architecture: str, build: Callable[..., PreTrainedModel]) -> None:
    """Extra embeddings share a position, so that the answer is where the search has read it."""
    model = build(architecture, 20, 48).requires_grad_(False)
    rows = torch.arange(60).reshape(20, 3) % 17 + 1
    prompts = left_padded([row[: 2 + i % 2].tolist() for i, row in enumerate(rows)], CPU)
    width = model.get_input_embeddings().weight.shape[1]
    read = inserted(prompts, torch.randn(20, 6, width, generator=torch.Generator().manual_seed(0)), model)
    said = generate(model, read, 3, rows=7)
    assert torch.equal(said[:, 0], model(**read.arguments()).logits[:, -1].argmax(-1))
    assert follows(model, read, until_end(model, said)).all()
