"""Sensitivity: maps of known Jacobians give its norm, and models that of the Jacobian written out in full."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jacrev
from transformers import PreTrainedModel

from tunescope.config import Built
from tunescope.models.build import build_model
from tunescope.models.inputs import Inputs
from tunescope.probes.collect import block_output, first_logits
from tunescope.probes.sensitivity import Map, jacobian_norm, top_logit_gradient
from tunescope.rng import Stream

CPU = torch.device("cpu")
N, T, WIDTH, OUT = 4, 3, 5, 7


def draw(*shape: int, scope: object = 0) -> Tensor:
    return Stream.named(0, "sensitivity", scope).normal(shape, CPU)


def linear(jacobians: Tensor, offset: Tensor) -> Map:
    """A map whose Jacobian is another matrix for every row."""
    return lambda x: torch.einsum("noi,ni->no", jacobians, x.flatten(1)) + offset


def planted(largest: Tensor, ratio: float) -> Tensor:
    """Jacobians of these largest singular values, the second smaller by a ratio."""
    u = torch.linalg.qr(draw(len(largest), OUT, 3, scope="u")).Q
    v = torch.linalg.qr(draw(len(largest), T * WIDTH, 3, scope="v")).Q
    return (u * largest[:, None, None] * torch.tensor([1.0, ratio, ratio**2]).double()) @ v.mT


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4), st.integers(0, 99))
def test_jacobian_norm_is_the_planted_singular_value(largest: list[float], scope: int) -> None:
    s = torch.tensor(largest).double()
    function, x, start = linear(planted(s, 0.1), draw(len(s), OUT)), *draw(2, len(s), T, WIDTH, scope=scope)
    torch.testing.assert_close(jacobian_norm(function, x, start, 12), s)


def test_jacobian_norm_comes_from_below_and_closer_with_every_step() -> None:
    s = torch.tensor([3.0, 1.0, 0.5, 20.0]).double()
    function, x, start = linear(planted(s, 0.8), draw(N, OUT)), *draw(2, N, T, WIDTH)
    found = torch.stack([jacobian_norm(function, x, start, steps) for steps in (1, 2, 4, 8, 16, 64)])
    assert (found[:-1] < found[1:]).all()
    assert (found < s * (1 + 1e-9)).all()
    torch.testing.assert_close(found[-1], s)


def test_jacobian_norm_is_neither_moved_by_the_length_of_its_start_nor_by_the_other_rows() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ draw(T * WIDTH, OUT, scope="w"))

    x, start = draw(2, N, T, WIDTH)
    together = jacobian_norm(function, x, start)
    torch.testing.assert_close(jacobian_norm(function, x, 1e-3 * start), together)
    torch.testing.assert_close(torch.cat([jacobian_norm(function, x[[i]], start[[i]]) for i in range(N)]), together)


def test_a_map_that_is_flat_has_norm_zero() -> None:
    function, x, start = linear(torch.zeros(N, OUT, T * WIDTH).double(), draw(N, OUT)), *draw(2, N, T, WIDTH)
    assert jacobian_norm(function, x, start).tolist() == [0.0] * N
    assert top_logit_gradient(function, x).tolist() == [0.0] * N


def test_jacobian_norm_does_not_overflow_in_half_precision() -> None:
    """The square of the norm is beyond float16's largest number."""
    x, start = draw(2, 1, 3).half(), draw(2, 1, 3, scope="start")
    found = jacobian_norm(lambda inputs: 700 * inputs.flatten(1), x, start, 4)
    torch.testing.assert_close(found, torch.full((2,), 700.0).double(), rtol=2e-3, atol=0)


def test_top_logit_gradient_is_the_norm_of_the_winning_row() -> None:
    jacobians, x, winner = draw(N, OUT, T * WIDTH), draw(N, T, WIDTH), torch.tensor([0, 6, 3, 3])
    offset = 1e4 * torch.nn.functional.one_hot(winner, OUT).double()
    expected = jacobians[torch.arange(N), winner].norm(dim=1)
    torch.testing.assert_close(top_logit_gradient(linear(jacobians, offset), x), expected)


def test_neither_changes_its_input_or_leaves_a_gradient() -> None:
    w, x = draw(T * WIDTH, OUT).requires_grad_(), draw(N, T, WIDTH)
    before = x.clone()
    for found in (
        top_logit_gradient(lambda x: x.flatten(1) @ w, x),
        jacobian_norm(lambda x: x.flatten(1) @ w, x, before),
    ):
        assert not found.requires_grad
    assert torch.equal(x, before)
    assert w.grad is x.grad is None


PROMPTS = torch.tensor([[3, 1, 4, 1], [9, 2, 6, 5]])


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    config = Built(architecture=request.param, layers=2, heads=2, width=8)
    model = build_model(config, 12, 8, Stream.named(0, "sensitivity"), CPU).eval().requires_grad_(False)
    model.set_attn_implementation("eager")  # the fused kernels have no second derivative
    with torch.no_grad():  # as initialised, the blocks change next to nothing
        for parameter in model.parameters():
            parameter.mul_(10)
    return model


def explicit(function: Map, x: Tensor) -> Tensor:
    """The Jacobian of one prompt, written out."""
    return jacrev(lambda one: function(one[None])[0], chunk_size=1)(x).flatten(1)


def maps(model: PreTrainedModel) -> dict[str, Callable]:
    return {
        "logits": first_logits(model, Inputs(PROMPTS)),
        "first": block_output(model, Inputs(PROMPTS), 0),
        "last": block_output(model, Inputs(PROMPTS), 1),
    }


@pytest.mark.parametrize("name", ["logits", "first", "last"])
def test_jacobian_norm_of_a_model_is_that_of_its_jacobian_in_full(model: PreTrainedModel, name: str) -> None:
    function, x = maps(model)[name], Inputs(PROMPTS).embedded(model).sequence
    expected = torch.stack([torch.linalg.svdvals(explicit(function, one))[0] for one in x]).double()
    found = jacobian_norm(function, x, draw(*x.shape), 150)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    assert (jacobian_norm(function, x, draw(*x.shape), 1) < expected).all()


def test_top_logit_gradient_of_a_model_is_a_row_of_its_jacobian(model: PreTrainedModel) -> None:
    logits, x = first_logits(model, Inputs(PROMPTS)), Inputs(PROMPTS).embedded(model).sequence
    tops = model(PROMPTS).logits[:, -1].argmax(1).tolist()
    rows = [explicit(logits, one)[top].norm() for one, top in zip(x, tops, strict=True)]
    torch.testing.assert_close(top_logit_gradient(logits, x), torch.stack(rows).double(), rtol=1e-4, atol=0)
