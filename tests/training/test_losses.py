"""The losses of safety fine-tuning against numbers worked out by hand and the published formulas."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tunescope.training.losses import circuit_breakers, dpo, nll, npo, rmu, simpo, unlearning

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


def lengths(answers: Tensor, *of: int) -> Tensor:
    """As long as the tensor, if nothing else is said."""
    return torch.tensor(of or [answers.shape[1]] * len(answers))


def test_nll_is_the_mean_over_tokens() -> None:
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.5, -0.5]])
    torch.testing.assert_close(nll(logps, lengths(logps)), torch.tensor([2.0, 0.5]))
    shorter = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, 0.0, 0.0]])
    torch.testing.assert_close(nll(shorter, lengths(shorter, 2, 1)), torch.tensor([1.5, 0.5]))


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


def test_simpo_by_hand() -> None:
    # means per token -1.5 and -3.5; 2 * (-1.5 - -3.5) - 1 = 3
    got = simpo(CHOSEN, REJECTED, lengths(CHOSEN), lengths(REJECTED), beta=2.0, gamma=1.0)
    torch.testing.assert_close(got, torch.tensor([math.log(1 + math.exp(-3))]))
    # a rejected answer of one token: mean -7; 2 * (-1.5 - -7) - 1 = 10
    shorter = torch.tensor([[-7.0, 0.0]])
    got = simpo(CHOSEN, shorter, lengths(CHOSEN), lengths(shorter, 1), beta=2.0, gamma=1.0)
    torch.testing.assert_close(got, torch.tensor([math.log(1 + math.exp(-10))]))


@given(logps(2), st.floats(0.01, 3), st.floats(0, 2))
def test_simpo_is_the_published_formula(answers: tuple[Tensor, ...], beta: float, gamma: float) -> None:
    """Meng et al. 2024, eq. 6, word for word."""
    chosen, rejected = (answer.numpy().sum(axis=1) / answer.shape[1] for answer in answers)
    want = -np.log(1 / (1 + np.exp(-(beta * chosen - beta * rejected - gamma))))
    got = simpo(*answers, *map(lengths, answers), beta, gamma)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-8, atol=1e-12)


@given(logps(2), st.floats(0.01, 3), st.floats(0, 2))
def test_simpo_raises_the_chosen_and_lowers_the_rejected_answer(
    answers: tuple[Tensor, ...], beta: float, gamma: float
) -> None:
    chosen, rejected = (answer.clone().requires_grad_() for answer in answers)
    loss = simpo(chosen, rejected, lengths(chosen), lengths(rejected), beta, gamma)
    loss.sum().backward()
    slope = beta * (1 - (-loss.detach()).exp())[:, None] / chosen.shape[1]
    torch.testing.assert_close(chosen.grad, (-slope).expand_as(chosen))
    torch.testing.assert_close(rejected.grad, slope.expand_as(rejected))


def test_rmu_by_hand() -> None:
    """Two prompts of three places, of which the first is no answer's, and in the second prompt the last neither."""
    policy = torch.tensor([[[9.0, 9.0], [1.0, 2.0], [3.0, 0.0]], [[9.0, 9.0], [1.0, 2.0], [9.0, 9.0]]])
    reference = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [5.0, 5.0], [0.0, 0.0]]])
    control = torch.tensor([[7.0, 7.0], [0.0, 1.0]])
    learnt = torch.tensor([[False, True, True], [False, True, False]])
    # safe: squares (0 + 4) / 2 = 2 and (9 + 16) / 2 = 12.5, their mean 7.25, thrice; unsafe: (1 + 1) / 2 = 1
    got = rmu(policy, reference, control, learnt, torch.tensor([True, False]), retain_weight=3.0)
    torch.testing.assert_close(got, torch.tensor([3 * 7.25, 1.0]))
    # the other way round: (36 + 25) / 2 = 30.5 and (16 + 49) / 2 = 32.5, their mean 31.5; (16 + 9) / 2 = 12.5, thrice
    got = rmu(policy, reference, control, learnt, torch.tensor([False, True]), retain_weight=3.0)
    torch.testing.assert_close(got, torch.tensor([31.5, 3 * 12.5]))


def test_npo_by_hand() -> None:
    # log-ratio of the sums: -7 - -6 = -1
    got = npo(REJECTED, REFERENCE_REJECTED, beta=0.5)
    torch.testing.assert_close(got, torch.tensor([4 * math.log(1 + math.exp(-0.5))]))
    assert npo(torch.full((1, 1), -1e4), torch.zeros(1, 1), beta=1.0).item() == 0.0  # unlikely enough


@given(logps(2), st.floats(0.01, 2))
def test_npo_is_the_published_formula(answers: tuple[Tensor, ...], beta: float) -> None:
    """Zhang et al. 2024, eq. 3 in its second form: of ratios of whole answers' probabilities."""
    policy, reference = (np.exp(answer.numpy()).prod(axis=1) for answer in answers)
    want = 2 / beta * np.log(1 + (policy / reference) ** beta)
    np.testing.assert_allclose(npo(*answers, beta).numpy(), want, rtol=1e-8, atol=1e-12)


@given(logps(1), st.floats(0.01, 2))
def test_npo_begins_as_ascent_and_ends_by_itself(answers: tuple[Tensor, ...], beta: float) -> None:
    (reference,) = answers
    for lower, slope in ((0.0, 1.0), (1.0, 2 / (1 + math.exp(beta * reference.shape[1])))):
        rejected = (reference - lower).requires_grad_()
        npo(rejected, reference, beta).sum().backward()
        torch.testing.assert_close(rejected.grad, torch.full_like(reference, slope))


def test_circuit_breakers_by_hand() -> None:
    """Two sites; two prompts of three places, of which the first is no answer's, and in the second the last neither."""
    learnt = torch.tensor([[False, True, True], [False, True, False]])
    reference = torch.tensor([3.0, 4.0]).expand(2, 2, 3, 2)
    policy = torch.full((2, 2, 3, 2), 9.0)
    # cosines 1 and 0 (of -1), then .6 and .8; lengths of what is moved 5 and 10, then 4 and 3, over 5
    policy[0, :, 1], policy[0, :, 2] = torch.tensor([6.0, 8.0]), torch.tensor([-3.0, -4.0])
    policy[1, :, 1], policy[1, :, 2] = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    about = policy, reference, learnt
    unsafe, safe = torch.tensor([False, False]), torch.tensor([True, True])
    rerouted, kept = torch.tensor([(0.5 + 0.7) / 2, (1 + 0.6) / 2]), torch.tensor([(1.5 + 0.7) / 2, (1 + 0.8) / 2])
    for progress, weight in ((0.0, 1.0), (0.5, 0.75), (1.0, 0.5)):
        got = circuit_breakers(*about, unsafe, retain_weight=3.0, progress=progress)
        torch.testing.assert_close(got, weight * rerouted)
        got = circuit_breakers(*about, safe, retain_weight=3.0, progress=progress)
        torch.testing.assert_close(got, 3 * (1 - weight) * kept)


def test_circuit_breakers_have_a_gradient_where_both_models_are_one() -> None:
    reference = torch.tensor([3.0, 4.0]).expand(1, 2, 1, 2)
    policy, learnt = reference.clone().requires_grad_(), torch.ones(2, 1, dtype=torch.bool)
    circuit_breakers(policy, reference, learnt, torch.tensor([True, False]), 1.0, 0.5).sum().backward()
    assert policy.grad is not None
    assert not policy.grad.any()  # the cosine is at its largest, the distance at its smallest


def test_unlearning_by_hand() -> None:
    chosen = torch.tensor([[-1.0, -3.0], [-1.0, -3.0]])
    rejected = torch.tensor([[-2.0, -6.0], [-2.0, -6.0]])
    safe, whole = torch.tensor([True, False]), lengths(chosen)
    got = unlearning(chosen, rejected, whole, whole, safe, ascent_weight=0.1, ascent_floor=-9.0)
    torch.testing.assert_close(got, torch.tensor([2.0, 2.0 - 0.1 * 4]))
    got = unlearning(chosen, rejected, whole, whole, safe, ascent_weight=0.1, ascent_floor=-5.0)
    torch.testing.assert_close(got, torch.tensor([2.0, 2.0 - 0.1 * 3.5]))
    # a rejected answer of one token
    shorter = torch.tensor([[-2.0, 0.0], [-2.0, 0.0]])
    got = unlearning(chosen, shorter, whole, lengths(shorter, 1, 1), safe, ascent_weight=0.1, ascent_floor=-5.0)
    torch.testing.assert_close(got, torch.tensor([2.0, 2.0 - 0.1 * 2]))


@given(logps(2), st.floats(0, 3), st.floats(-5, -0.1), st.data())
def test_unlearning_ascends_on_unsafe_rows_alone_and_down_to_the_floor(
    answers: tuple[Tensor, ...], weight: float, floor: float, data: st.DataObject
) -> None:
    chosen, rejected = (answer.clone().requires_grad_() for answer in answers)
    rows, length = chosen.shape
    safe = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    unlearning(chosen, rejected, lengths(chosen), lengths(rejected), safe, weight, floor).sum().backward()
    ascends = ~safe[:, None] & (rejected >= floor)
    torch.testing.assert_close(rejected.grad, torch.where(ascends, weight / length, 0.0).double())
    torch.testing.assert_close(chosen.grad, torch.full_like(chosen, -1 / length))
