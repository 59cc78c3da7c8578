"""The losses of safety fine-tuning against numbers worked out by hand and the published formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tunescope.config import TuneConfig
from tunescope.protocols.losses import dpo, nll, unlearning
from tunescope.protocols.protocols import PROTOCOLS, AnswerLogps

CHOSEN, REJECTED = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-3.0, -4.0]])
REFERENCE_CHOSEN, REFERENCE_REJECTED = torch.tensor([[-2.0, -2.0]]), torch.tensor([[-2.5, -3.5]])


@st.composite
def logps(draw: st.DrawFn, tensors: int) -> tuple[Tensor, ...]:
    """Log-probabilities of some answers of one length under several models, float64."""
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    values = st.lists(st.floats(-4, 0), min_size=rows * length, max_size=rows * length)
    return tuple(torch.tensor(draw(values), dtype=torch.float64).view(rows, length) for _ in range(tensors))


def published_dpo(chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float):
    """Rafailov et al. 2023, eq. 7, word for word: probabilities of whole answers, their ratios, sigmoid, minus log."""
    pi_w, pi_l, ref_w, ref_l = (
        np.exp(answer.numpy()).prod(axis=1) for answer in (chosen, rejected, reference_chosen, reference_rejected)
    )
    z = beta * np.log(pi_w / ref_w) - beta * np.log(pi_l / ref_l)
    return -np.log(1 / (1 + np.exp(-z)))


def test_nll_is_the_mean_over_tokens() -> None:
    got = nll(torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.5, -0.5]]))
    torch.testing.assert_close(got, torch.tensor([2.0, 0.5]))


def test_dpo_by_hand() -> None:
    # log-ratios of the sums: chosen -3 - -4 = 1, rejected -7 - -6 = -1; beta (1 - -1) = 1
    got = dpo(CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED, beta=0.5)
    torch.testing.assert_close(got, torch.tensor([math.log(1 + math.exp(-1))]))


@given(logps(4), st.floats(0.01, 2))
def test_dpo_is_the_published_formula(answers: tuple[Tensor, ...], beta: float) -> None:
    np.testing.assert_allclose(dpo(*answers, beta).numpy(), published_dpo(*answers, beta), rtol=1e-8, atol=1e-12)


@given(logps(2), st.floats(0.01, 5))
def test_dpo_starts_at_log_two(answers: tuple[Tensor, ...], beta: float) -> None:
    torch.testing.assert_close(dpo(*answers, *answers, beta), torch.full((len(answers[0]),), math.log(2)).double())


@given(logps(4), st.floats(0.01, 2))
def test_dpo_prefers_one_answer_as_surely_as_it_does_not_prefer_the_other(
    answers: tuple[Tensor, ...], beta: float
) -> None:
    chosen, rejected, reference_chosen, reference_rejected = answers
    swapped = dpo(rejected, chosen, reference_rejected, reference_chosen, beta)
    torch.testing.assert_close((-dpo(*answers, beta)).exp() + (-swapped).exp(), torch.ones_like(swapped))


def test_dpo_stays_finite_far_out() -> None:
    zero, far = torch.zeros(1, 1), torch.full((1, 1), -1e4)
    assert dpo(zero, far, zero, zero, beta=1.0).item() == 0.0
    assert dpo(far, zero, zero, zero, beta=1.0).item() == 1e4


@given(logps(4), st.floats(0.01, 2))
def test_dpo_raises_the_chosen_and_lowers_the_rejected_answer(answers: tuple[Tensor, ...], beta: float) -> None:
    """Gradients are those of Rafailov et al. 2023, sec. 4: beta times the probability of the wrong preference."""
    chosen, rejected = (answer.clone().requires_grad_() for answer in answers[:2])
    loss = dpo(chosen, rejected, *answers[2:], beta)
    loss.sum().backward()
    wrong = 1 - (-loss.detach()).exp()[:, None]
    torch.testing.assert_close(chosen.grad, (-beta * wrong).expand_as(chosen))
    torch.testing.assert_close(rejected.grad, (beta * wrong).expand_as(rejected))


def test_unlearning_by_hand() -> None:
    chosen = torch.tensor([[-1.0, -3.0], [-1.0, -3.0]])
    rejected = torch.tensor([[-2.0, -6.0], [-2.0, -6.0]])
    safe = torch.tensor([True, False])
    got = unlearning(chosen, rejected, safe, ascent_weight=0.1, ascent_floor=-9.0)
    torch.testing.assert_close(got, torch.tensor([2.0, 2.0 - 0.1 * 4]))
    got = unlearning(chosen, rejected, safe, ascent_weight=0.1, ascent_floor=-5.0)
    torch.testing.assert_close(got, torch.tensor([2.0, 2.0 - 0.1 * 3.5]))


@given(logps(2), st.floats(0, 3), st.floats(-5, -0.1), st.data())
def test_unlearning_ascends_on_unsafe_rows_alone_and_down_to_the_floor(
    answers: tuple[Tensor, ...], weight: float, floor: float, data: st.DataObject
) -> None:
    chosen, rejected = (answer.clone().requires_grad_() for answer in answers)
    rows, length = chosen.shape
    safe = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    unlearning(chosen, rejected, safe, weight, floor).sum().backward()
    ascends = ~safe[:, None] & (rejected >= floor)
    torch.testing.assert_close(rejected.grad, torch.where(ascends, weight / length, 0.0).double())
    torch.testing.assert_close(chosen.grad, torch.full_like(chosen, -1 / length))


@given(logps(4), st.sampled_from(sorted(PROTOCOLS)), st.randoms())
def test_no_prompt_changes_the_loss_of_another(answers: tuple[Tensor, ...], name: str, random) -> None:
    protocol, config = PROTOCOLS[name], TuneConfig()
    safe = torch.arange(len(answers[0])) % 2 == 0
    order = list(range(len(safe)))
    random.shuffle(order)
    together = protocol.loss(AnswerLogps(safe, *answers), config)
    alone = [protocol.loss(AnswerLogps(safe[[i]], *(answer[[i]] for answer in answers)), config) for i in order]
    torch.testing.assert_close(torch.cat(alone), together[order])


def test_protocols_weigh_as_configured() -> None:
    config = TuneConfig(beta=0.5, chosen_weight=0.7, ascent_weight=0.3, ascent_floor=-3.5)
    safe = torch.tensor([False])
    both = AnswerLogps(safe, CHOSEN, REJECTED)
    all_four = AnswerLogps(safe, CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)
    preference = math.log(1 + math.exp(-1))
    assert PROTOCOLS["dpo"].loss(all_four, config).item() == pytest.approx(preference + 0.7 * 1.5)
    assert PROTOCOLS["unlearning"].loss(both, config).item() == pytest.approx(1.5 - 0.3 * (3 + 3.5) / 2)


@pytest.mark.parametrize("name", ["ssft", "benign"])
def test_plain_fine_tuning_reads_the_chosen_answer_alone(name: str) -> None:
    assert not PROTOCOLS[name].rejected
    assert not PROTOCOLS[name].reference
    assert PROTOCOLS[name].loss(AnswerLogps(torch.tensor([False]), CHOSEN), TuneConfig()).item() == 1.5
