"""Directions: the difference of means is found where it was planted, and in dW as far as dW writes it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tunescope.probes.directions import difference_of_means, standing_out, written_share
from tunescope.probes.subspaces import Svd
from tunescope.rng import Stream

CPU = torch.device("cpu")


def draw(*shape: int, scope: object = 0) -> Tensor:
    return Stream.named(0, "directions", scope).normal(shape, CPU)


def basis(size: int, k: int, scope: object = 0) -> Tensor:
    return torch.linalg.qr(draw(size, k, scope=scope)).Q


def test_difference_of_means_by_hand() -> None:
    safe, unsafe = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 4.0, -4.0])
    torch.testing.assert_close(difference_of_means(safe, unsafe), torch.tensor([0.0, 0.6, -0.8]))
    torch.testing.assert_close(difference_of_means(unsafe, safe), torch.tensor([0.0, -0.6, 0.8]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_means_have_no_direction(dtype: torch.dtype) -> None:
    mean = draw(5).to(dtype)
    assert difference_of_means(mean, mean.clone()).tolist() == [0.0] * 5


def test_what_stands_out_is_the_planted_plane() -> None:
    """Whatever the means of the places are: three of them, forty prompts."""
    plane, means = basis(6, 2), 20 * draw(3, 6, scope="means")
    beyond = draw(40, 3, 2, scope="in") @ (10 * plane.mT) + 0.1 * draw(40, 3, 6, scope="noise")
    found = standing_out(means + beyond, means, 2)
    torch.testing.assert_close(found.mT @ found, torch.eye(2, dtype=torch.float64))
    assert (plane.mT @ found).square().sum().item() == pytest.approx(2, abs=1e-3)
    shift = standing_out(means + 5 * plane[:, 0] + 0.1 * draw(40, 3, 6), means, 1)
    assert abs((shift[:, 0] @ plane[:, 0]).item()) > 0.99  # a mere difference of means is the first direction


def test_no_more_directions_than_there_are() -> None:
    assert standing_out(draw(3, 1, 6), draw(1, 6, scope=1), 5).shape == (6, 3)
    assert standing_out(draw(30, 1, 6), draw(1, 6, scope=1), 9).shape == (6, 6)
    same = draw(2, 6)
    assert standing_out(same.expand(5, 2, 6), same, 3).shape == (6, 0)


@given(st.floats(0.5, 1e6), st.integers(0, 99))
def test_the_planted_direction_is_found(distance: float, scope: int) -> None:
    noise, direction = draw(2, 30, 6, scope=scope), basis(6, 1, (scope, "direction"))[:, 0]
    safe, unsafe = noise - noise.mean(1, keepdim=True)
    found = difference_of_means(safe.double().mean(0), (unsafe + distance * direction).double().mean(0))
    torch.testing.assert_close(found, direction)


@given(st.floats(0, 1), st.integers(1, 4))
def test_the_planted_written_share_is_found(share: float, k: int) -> None:
    whole = basis(10, 10)
    direction = share**0.5 * whole[:, k - 1] + (1 - share) ** 0.5 * whole[:, 7]
    delta = Svd.of((whole[:, :4] * torch.tensor([4.0, 3.0, 2.0, 1.0])) @ basis(6, 4, "right").mT)
    assert written_share(direction, delta, k) == pytest.approx(share)
    assert written_share(direction, delta, k - 1) == pytest.approx(0, abs=1e-12)


def test_written_share_of_random_directions_is_k_over_out() -> None:
    delta, k = Svd.of(draw(12, 9)), 5
    shares = torch.tensor([written_share(d / d.norm(), delta, k) for d in draw(3000, 12, scope="d")]).double()
    assert abs(shares.mean().item() - k / 12) < 4 * shares.std().item() / 3000**0.5


def test_more_vectors_than_the_change_has_are_all_that_it_has() -> None:
    direction, delta = basis(8, 1)[:, 0].float(), Svd.of(draw(8, 2, scope="left") @ draw(2, 5, scope="right"))
    assert 0 < written_share(direction, delta, 2) < 1
    assert written_share(direction, delta, 8) == written_share(direction, delta, 2)
    assert written_share(direction, Svd.of(torch.zeros(8, 5)), 8) == 0
