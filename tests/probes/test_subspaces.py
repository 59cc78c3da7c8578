"""Subspaces: a change planted in the null space to a chosen share is found there; random ones lie as chance has it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.linalg import subspace_angles
from torch import Tensor

from tunescope.probes.spectra import spectrum
from tunescope.probes.subspaces import (
    EXACT,
    LARGE,
    MOST_EXACT,
    Svd,
    arithmetic_for,
    column_space,
    haar_overlap,
    haar_share,
    null_lengths,
    overlap,
    principal_angles,
    random_null_lengths,
    rotated_null_shares,
)
from tunescope.rng import Stream

CPU = torch.device("cpu")
OUT, IN, RANK = 14, 8, 5
SHARES = st.floats(0, 1)


def draw(*shape: int, scope: object = 0) -> Tensor:
    return Stream.named(0, "subspaces", scope).normal(shape, CPU)


def basis(size: int, k: int, scope: object = 0) -> Tensor:
    return torch.linalg.qr(draw(size, k, scope=scope)).Q


@pytest.fixture(scope="module")
def frame() -> tuple[Tensor, Tensor]:
    """Bases of the column space of `w` and of its left null space, side by side in one orthonormal basis."""
    whole = basis(OUT, OUT, "frame")
    return whole[:, :RANK], whole[:, RANK:]


@pytest.fixture(scope="module")
def w(frame: tuple[Tensor, Tensor]) -> Tensor:
    return frame[0] @ draw(RANK, IN, scope="w")


@given(SHARES, st.integers(1, IN), st.integers(0, 99))
def test_the_planted_share_is_found(
    frame: tuple[Tensor, Tensor], w: Tensor, share: float, rank: int, scope: int
) -> None:
    inside, outside = (
        side @ draw(side.shape[1], rank, scope=(scope, i)) @ draw(rank, IN, scope=(scope, i, "right"))
        for i, side in enumerate(frame)
    )
    delta = math.sqrt(1 - share) * inside / inside.norm() + math.sqrt(share) * outside / outside.norm()
    # The two parts are orthogonal, so that their energies add up, whatever their singular vectors.
    assert spectrum(w, 0.01 * delta).null_share == pytest.approx(share, abs=1e-9)
    assert by_columns(0.01 * delta, w) == pytest.approx(share, abs=1e-9)


def by_columns(delta: Tensor, w: Tensor) -> float:
    """The same share from the singular vectors of dW: energy times the squared length in the null space."""
    svd = Svd.of(delta)
    return (svd.energy @ null_lengths(svd.u, column_space(w)).square()).item()


@given(st.lists(SHARES, min_size=1, max_size=RANK))
def test_the_planted_share_of_every_column_is_found(
    frame: tuple[Tensor, Tensor], w: Tensor, shares: list[float]
) -> None:
    k, q = len(shares), torch.tensor(shares).double()
    u = frame[0][:, :k] * (1 - q).sqrt() + frame[1][:, :k] * q.sqrt()
    s = torch.arange(k, 0, -1).double()
    delta = (u * s) @ basis(IN, k, "v").mT
    torch.testing.assert_close(null_lengths(Svd.of(delta).u, column_space(w)), q.sqrt(), atol=1e-6, rtol=0)
    assert spectrum(w, delta).null_share == pytest.approx((s**2 @ q / (s**2).sum()).item(), abs=1e-9)


def test_no_null_space_when_rank_is_out() -> None:
    w, delta = draw(6, 9), draw(6, 9, scope="delta")
    columns = column_space(w)
    assert columns.shape == (6, 6)
    assert spectrum(w, delta).null_share == 0
    assert by_columns(delta, w) < 1e-12
    assert haar_share(*columns.shape) == 0
    assert random_null_lengths(draw(3, 6, 6), 6).tolist() == torch.zeros(3, 6).tolist()


def test_all_is_null_space_of_a_zero_matrix() -> None:
    assert column_space(torch.zeros(6, 4)).shape == (6, 0)
    assert spectrum(torch.zeros(6, 4), draw(6, 4)).null_share == pytest.approx(1)
    torch.testing.assert_close(random_null_lengths(draw(3, 6, 4), 0), torch.ones(3, 4).double())


def test_svd_is_the_matrix_again() -> None:
    matrix = draw(9, 5).float()
    found = Svd.of(matrix)
    assert found.s.dtype == torch.float64
    torch.testing.assert_close((found.u * found.s) @ found.v.mT, matrix.double())
    for side in (found.u, found.v):
        torch.testing.assert_close(side.mT @ side, torch.eye(5).double())
    assert torch.equal(found.s, found.s.sort(descending=True).values)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_svd_drops_what_is_rounding(k: int) -> None:
    found = Svd.of(draw(9, k) @ draw(k, 6, scope="right"))
    assert [tuple(t.shape) for t in (found.u, found.s, found.v)] == [(9, k), (k,), (6, k)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_svd_refuses_a_matrix_that_is_not_finite(bad: float) -> None:
    matrix = draw(4, 3)
    matrix[2, 1] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        Svd.of(matrix)
    with pytest.raises(ValueError, match="NaN or inf"):
        column_space(matrix)


@given(st.integers(1, 6), st.floats(1e-6, 1e6))
def test_effective_rank_of_equal_singular_values_is_their_number(k: int, scale: float) -> None:
    found = Svd.of(scale * basis(9, k) @ basis(6, k, "right").mT)
    assert found.effective_rank() == pytest.approx(k)
    torch.testing.assert_close(found.energy, torch.full((k,), 1 / k).double())


def test_effective_rank_and_energy_by_hand() -> None:
    found = Svd.of(torch.diag(torch.tensor([1.0, 3.0, 0.0])))
    assert found.s.tolist() == [3, 1]
    assert found.energy.tolist() == pytest.approx([0.9, 0.1])
    assert found.effective_rank() == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_a_zero_change_is_nowhere_and_has_no_rank() -> None:
    zero = Svd.of(torch.zeros(6, 4))
    assert [tuple(t.shape) for t in (zero.u, zero.s, zero.v, zero.energy)] == [(6, 0), (0,), (4, 0), (0,)]
    assert (zero.effective_rank(), spectrum(draw(6, 4), torch.zeros(6, 4)).null_share) == (0.0, 0.0)
    assert rotated_null_shares(zero, random_null_lengths(draw(3, 6, 4), 2)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("threshold", "rank"), [(1e-3, 2), (0.1, 1), (1e-5, 3)])
def test_column_space_counts_singular_values_above_the_threshold(threshold: float, rank: int) -> None:
    s = torch.tensor([5.0, 5e-2, 5e-4]).double()
    u = basis(7, 3)
    columns = column_space((u * s) @ basis(4, 3, "right").mT, threshold)
    torch.testing.assert_close(columns @ columns.mT, u[:, :rank] @ u[:, :rank].mT)
    assert column_space((u * s) @ basis(4, 3, "right").mT).shape == (7, 2)


def test_overlap_by_hand() -> None:
    """One direction shared, one turned by 60 degrees."""
    one = torch.eye(4).double()[:, :2]
    other = torch.tensor([[1, 0], [0, 0.5], [0, 0.75**0.5], [0, 0]]).double()
    assert overlap(one, other) == pytest.approx((1 + 0.25) / 2)
    assert (overlap(one, one), overlap(one, torch.eye(4).double()[:, 2:])) == (1, 0)
    turned = other @ basis(2, 2, "another basis of the same space")
    assert overlap(one, turned) == pytest.approx(0.625)


@given(st.integers(1, 7), st.integers(0, 99))
def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles(k: int, scope: int) -> None:
    one, other = basis(9, k, (scope, "one")), basis(9, k, (scope, "other"))
    assert overlap(one, other) == pytest.approx(np.mean(np.cos(subspace_angles(one.numpy(), other.numpy())) ** 2))


def test_overlap_of_random_bases_is_as_chance_has_it() -> None:
    fixed = torch.eye(12).double()[:, :3]
    drawn = [overlap(fixed, basis(12, 3, ("haar", i))) for i in range(400)]
    assert haar_overlap(12, 3) == 0.25
    assert np.mean(drawn) == pytest.approx(0.25, abs=4 * np.std(drawn) / 20)


@pytest.mark.parametrize("k", [1, 6, 12])
@pytest.mark.parametrize("rank", [0, 1, 5, 11, 12])
def test_random_null_lengths_are_those_of_the_bases_that_qr_gives(k: int, rank: int) -> None:
    normal = draw(20, 12, k, scope=(k, rank))
    first = torch.eye(12).double()[:, :rank]
    explicit = torch.stack([null_lengths(q, first) for q in torch.linalg.qr(normal).Q])
    torch.testing.assert_close(random_null_lengths(normal, rank), explicit, atol=1e-6, rtol=0)


def test_random_null_lengths_square_to_the_haar_share() -> None:
    columns, normal = column_space(draw(20, 7)), draw(2000, 20, 4, scope="bases")
    expected = haar_share(*columns.shape)
    assert expected == 13 / 20
    fast = random_null_lengths(normal, 7).square()
    slow = torch.stack([null_lengths(q, columns).square() for q in torch.linalg.qr(normal).Q])
    # One such share is Beta((out - rank) / 2, rank / 2), of this variance.
    error = (expected * (1 - expected) / (20 / 2 + 1) / 2000) ** 0.5
    for shares in (fast, slow):
        assert (shares.mean(0) - expected).abs().max().item() < 4 * error
        assert (shares.std(0) / (error * 2000**0.5) - 1).abs().max().item() < 0.1


def test_rotated_null_shares_by_hand() -> None:
    delta = Svd.of(torch.diag(torch.tensor([3.0, 1.0])))
    lengths = torch.tensor([[1.0, 0.0, 0.5], [0.6, 0.8, 0.5]]).double()  # more draws than dW has rank
    assert rotated_null_shares(delta, lengths).tolist() == pytest.approx([0.9, 0.9 * 0.36 + 0.1 * 0.64])


@pytest.mark.parametrize(("k", "m"), [(1, 1), (2, 5), (5, 2), (4, 4)])
def test_principal_angles_are_those_of_scipy(k: int, m: int) -> None:
    first, second = basis(9, k), basis(9, m, "second")
    expected = np.sort(subspace_angles(first.numpy(), second.numpy()))
    np.testing.assert_allclose(principal_angles(first, second).numpy(), expected, atol=1e-7)


@given(st.lists(st.floats(0.001, math.pi / 2), min_size=1, max_size=3))
def test_planted_principal_angles_are_found(angles: list[float]) -> None:
    k, whole, t = len(angles), basis(9, 6), torch.tensor(angles).double()
    turned = whole[:, :k] * t.cos() + whole[:, 3 : 3 + k] * t.sin()
    spun = turned @ basis(k, k, "spin")  # another basis of the same subspace
    found = principal_angles(whole[:, :k], spun)
    torch.testing.assert_close(found, t.sort().values, atol=1e-9, rtol=1e-6)


def test_principal_angles_of_equal_orthogonal_and_empty_subspaces() -> None:
    whole = basis(8, 5)
    assert principal_angles(whole[:, :3], whole[:, :3]).max().item() < 1e-7
    torch.testing.assert_close(principal_angles(whole[:, :2], whole[:, 2:]), torch.full((2,), math.pi / 2).double())
    assert principal_angles(whole[:, :0], whole).shape == (0,)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6), (9, 1)])
def test_the_decomposition_through_a_gram_matrix_is_that_of_svd(shape: tuple[int, int]) -> None:
    matrix = draw(*shape)
    exact, quick = Svd.of(matrix), Svd.through_gram(matrix)
    torch.testing.assert_close(quick.s, exact.s)
    torch.testing.assert_close(quick.matrix, matrix.double())
    for side in (quick.u, quick.v):
        torch.testing.assert_close(side.mT @ side, torch.eye(len(quick.s)).double())


def test_a_gram_matrix_leaves_out_what_it_cannot_tell_from_nothing() -> None:
    low = draw(9, 2) @ draw(2, 6)
    assert len(Svd.through_gram(low).s) == 2
    assert Svd.through_gram(torch.zeros(4, 3)).matrix.tolist() == [[0, 0, 0]] * 4
    with pytest.raises(ValueError, match="NaN or inf"):
        Svd.through_gram(torch.full((4, 3), math.nan))


@pytest.mark.parametrize("rank", [3, 12])
def test_null_lengths_for_large_matrices_have_the_law_of_the_exact_ones(rank: int) -> None:
    lengths = [a.random_null_lengths(Stream.named(0, "law"), 900, 12, 4, rank, CPU) for a in (EXACT, LARGE)]
    for column in range(4):
        assert stats.ks_2samp(*(each[:, column].numpy() for each in lengths)).pvalue > 1e-3


@pytest.mark.parametrize(("shape", "arithmetic"), [((MOST_EXACT, 3), EXACT), ((3, MOST_EXACT + 1), LARGE)])
def test_matrices_are_decomposed_in_full_where_that_is_cheap(shape: tuple[int, int], arithmetic: object) -> None:
    assert arithmetic_for(torch.zeros(shape)) is arithmetic
    assert arithmetic_for(torch.zeros(shape).mT) is arithmetic
