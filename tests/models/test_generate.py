"""Greedy answers that are kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tunescope.models.generate as generating
from tunescope.models.generate import Greedy, generate
from tunescope.models.inputs import Inputs, left_padded

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
