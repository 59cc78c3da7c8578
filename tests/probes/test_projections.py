"""Projections: a change that reads only unsafe activations acts on those alone, and as strongly as planted."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tunescope.probes.projections import gain, row_projection
from tunescope.probes.subspaces import Svd
from tunescope.rng import Stream

CPU = torch.device("cpu")


def draw(*shape: int, scope: object = 0) -> Tensor:
    return Stream.named(0, "projections", scope).normal(shape, CPU)


def basis(size: int, k: int, scope: object = 0) -> Tensor:
    return torch.linalg.qr(draw(size, k, scope=scope)).Q


def test_gain_by_hand() -> None:
    delta = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, -5.0], [0.0, 0.0]])
    assert gain(delta, a).tolist() == pytest.approx([math.sqrt(36 + 16) / 5, 2.0, 1.0, 0.0])


def test_row_projection_by_hand() -> None:
    delta = Svd.of(torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    a = torch.tensor([[1.0, 0.0, 0.0], [0.0, -2.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 4.0]])
    assert row_projection(delta, a).tolist() == pytest.approx([0.75, 0.25, 0.5, 0.375, 0.0])
    assert row_projection(delta, torch.zeros(2, 3)).tolist() == [0, 0]


@given(st.floats(1e-3, 1e3), st.integers(1, 4), st.integers(0, 99))
def test_a_change_that_reads_only_unsafe_activations(strength: float, rank: int, scope: int) -> None:
    """Safe activations span one subspace, the rows of dW another at right angles to it; unsafe ones lie in both."""
    whole = basis(12, 12, scope)
    read, spared = whole[:, :rank], whole[:, rank:]
    delta = strength * basis(20, rank, (scope, "left")) @ read.mT
    safe = draw(9, 12 - rank, scope=(scope, "safe")) @ spared.mT
    unsafe = draw(9, 12, scope=(scope, "unsafe"))
    assert gain(delta, safe).max().item() < 1e-12 * strength
    assert row_projection(Svd.of(delta), safe).max().item() < 1e-24
    along = (unsafe @ read).norm(dim=1) / unsafe.norm(dim=1)
    torch.testing.assert_close(gain(delta, unsafe), strength * along)
    torch.testing.assert_close(row_projection(Svd.of(delta), unsafe), along**2 / rank)


def test_gain_is_at_most_the_spectral_norm_and_reaches_it_on_the_first_singular_vector() -> None:
    delta = draw(10, 6)
    svd = Svd.of(delta)
    torch.testing.assert_close(gain(delta, 7 * svd.v.mT), svd.s)
    assert gain(delta, draw(200, 6, scope="a")).max().item() <= svd.s[0].item()


@given(st.integers(1, 6), st.floats(0.01, 100))
def test_neither_depends_on_the_length_of_the_input(rank: int, scale: float) -> None:
    delta, a = draw(8, rank) @ draw(rank, 6, scope="right"), draw(5, 6, scope="a")
    torch.testing.assert_close(gain(delta, scale * a), gain(delta, a))
    torch.testing.assert_close(row_projection(Svd.of(delta), scale * a), row_projection(Svd.of(delta), a))
    torch.testing.assert_close(row_projection(Svd.of(scale * delta), a), row_projection(Svd.of(delta), a))


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_row_projection_of_noise_is_one_over_its_width(rank: int) -> None:
    found = row_projection(Svd.of(draw(15, rank) @ draw(rank, 10, scope="right")), draw(4000, 10, scope="a"))
    assert 0 <= found.min().item() <= found.max().item() <= 1
    assert abs(found.mean().item() - 0.1) < 4 * found.std().item() / 4000**0.5 + 1e-9


def test_gain_of_noise_is_the_root_mean_square_singular_value() -> None:
    delta = draw(15, 10)
    squares = gain(delta, draw(4000, 10, scope="a")).square()
    assert abs(squares.mean().item() - delta.square().sum().item() / 10) < 4 * squares.std().item() / 4000**0.5


def test_a_zero_change_acts_on_nothing() -> None:
    a = draw(3, 4)
    assert gain(torch.zeros(6, 4), a).tolist() == [0, 0, 0]
    assert row_projection(Svd.of(torch.zeros(6, 4)), a).tolist() == [0, 0, 0]


def test_single_precision_inputs_are_read_in_double() -> None:
    delta, a = draw(6, 4), 1e-30 * draw(3, 4).float()  # whose squares are no single precision numbers
    assert gain(delta, a).dtype == row_projection(Svd.of(delta), a).dtype == torch.float64
    torch.testing.assert_close(gain(delta, a), gain(delta, 1e30 * a.double()))
    torch.testing.assert_close(row_projection(Svd.of(delta), a), row_projection(Svd.of(delta), 1e30 * a.double()))
