"""Spectra through Gram matrices are those of a decomposition, and say where a planted change lies."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tunescope.probes.controls import haar
from tunescope.probes.spectra import BLOCK, PART, gaussian_effective_rank, gram, product, spectrum
from tunescope.probes.subspaces import RANK_THRESHOLD, Svd, column_space, null_lengths
from tunescope.rng import Stream

CPU = torch.device("cpu")


def draw(*shape: int, scope: object = 0) -> Tensor:
    return Stream.named(0, "spectra", scope).normal(shape, CPU)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (7, 7), (BLOCK + 3, 4), (1, 6), (6, 1)])
def test_the_two_ways_agree(shape: tuple[int, int]) -> None:
    w, delta = draw(*shape).float(), draw(*shape, scope=1).float()
    quick, exact = spectrum(w, delta), spectrum(w, delta, exact=True)
    torch.testing.assert_close(quick.values, exact.values, rtol=1e-7, atol=0)
    assert quick.effective_rank == pytest.approx(exact.effective_rank)
    if shape[0] <= shape[1]:
        assert quick.null_shares == exact.null_shares == {}
        assert quick.null_share == 0
        return
    ((quick_share, rank),) = quick.null_shares.values()
    assert rank == shape[1]
    svd = Svd.of(delta)
    share = (svd.energy @ null_lengths(svd.u, column_space(w)).square()).item()
    assert quick_share == pytest.approx(share, abs=1e-9) == exact.null_shares[RANK_THRESHOLD][0]
    assert quick.null_share == quick_share


@given(st.integers(0, 50), st.floats(-7, 0))
def test_small_singular_values_are_right_to_the_stated_floor(scope: int, exponent: float) -> None:
    """One of size 1, one far below it: right to 1e-8 of the largest, or taken for zero."""
    small = 10**exponent
    u, v = haar(9, 2, Stream.named(scope, "u"), CPU), haar(6, 2, Stream.named(scope, "v"), CPU)
    delta = u @ torch.diag(torch.tensor([1.0, small], dtype=torch.float64)) @ v.mT
    found = spectrum(draw(9, 6), delta).values
    assert found[0].item() == pytest.approx(1)
    assert found[1].item() == pytest.approx(small, abs=2e-8) or (found[1] == 0 and small < 1.2e-7)
    assert not found[2:].any()


@given(st.floats(0, 1), st.integers(1, 4))
def test_the_planted_share_in_the_null_space_is_found(share: float, rank: int) -> None:
    w = draw(12, 4, scope=(share, rank))
    columns = column_space(w)
    inside, outside = columns[:, :rank], torch.linalg.svd(w.double()).U[:, 4 : 4 + rank]
    right = haar(4, rank, Stream.named(rank, "right"), CPU)
    delta = (share**0.5 * outside + (1 - share) ** 0.5 * inside) @ right.mT
    found = spectrum(w, delta)
    assert found.null_shares[RANK_THRESHOLD][0] == pytest.approx(share, abs=1e-9)
    assert found.effective_rank == pytest.approx(rank)
    assert found.stable_rank == pytest.approx(rank)


def test_a_decomposition_has_no_floor() -> None:
    delta = torch.diag(torch.tensor([1.0, 1e-10, 0.0], dtype=torch.float64))
    assert spectrum(draw(3, 3), delta, exact=True).values[1].item() == pytest.approx(1e-10)
    assert spectrum(draw(3, 3), delta).values.tolist() == [1.0, 0.0, 0.0]


def test_a_base_of_lower_rank_leaves_more_room() -> None:
    w = draw(12, 2) @ draw(2, 4, scope=1)
    assert spectrum(w, draw(12, 4, scope=2)).null_shares[RANK_THRESHOLD][1] == 2


def test_no_change_has_a_spectrum_of_zeros() -> None:
    found = spectrum(draw(8, 3), torch.zeros(8, 3))
    assert found.values.tolist() == [0.0] * 3
    assert (found.effective_rank, found.stable_rank, found.null_shares[RANK_THRESHOLD][0]) == (0.0, 0.0, 0.0)


def test_products_by_hand() -> None:
    a, b = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert product(a, b).tolist() == [[4.0, 3.0], [2.0, 1.0]]
    assert gram(a).tolist() == gram(a.mT).tolist() == [[10.0, 2.0], [2.0, 5.0]]


@pytest.mark.parametrize("shape", [(3, 2 * PART + 1), (BLOCK + 3, 5), (2 * PART + 1, 2 * PART)])
def test_products_in_parts_are_those_of_the_whole(shape: tuple[int, int]) -> None:
    a, b = draw(*shape).float(), draw(*shape, scope=1).float()
    short = a if shape[0] >= shape[1] else a.mT
    torch.testing.assert_close(gram(a), short.double().mT @ short.double(), rtol=1e-12, atol=1e-12 * max(shape))
    torch.testing.assert_close(product(a, b), a.double().mT @ b.double(), rtol=1e-12, atol=1e-12 * max(shape))


@pytest.mark.parametrize("shape", [(400, 100), (300, 300), (100, 400)])
def test_the_effective_rank_of_noise_is_foretold(shape: tuple[int, int]) -> None:
    assert gaussian_effective_rank(*shape) == pytest.approx(
        spectrum(draw(*shape), draw(*shape)).effective_rank, rel=0.01
    )
