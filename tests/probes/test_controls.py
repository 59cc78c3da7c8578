"""Controls: each keeps what it says that it keeps, and is random in everything else."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor

from tunescope.probes.controls import gaussian, haar, rotated, shuffled
from tunescope.probes.spectra import spectrum
from tunescope.probes.subspaces import Svd, random_null_lengths, rotated_null_shares
from tunescope.rng import Stream

CPU = torch.device("cpu")
ROOT = Stream.named(0, "controls")
SQUARED_COSINE = beta(0.5, 1.5)  # of two random directions in four dimensions


def draw(*shape: int, scope: object = 0) -> Tensor:
    return ROOT(scope).normal(shape, CPU)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6), (4, 1), (1, 4)])
def test_rotated_keeps_the_singular_values(shape: tuple[int, int]) -> None:
    delta = Svd.of(draw(*shape))
    found = rotated(delta, ROOT("rotated")).matrix
    assert found.shape == shape
    torch.testing.assert_close(torch.linalg.svdvals(found), delta.s)
    assert not torch.allclose(found, rotated(delta, ROOT("other")).matrix)


def test_rotated_keeps_the_rank() -> None:
    delta = Svd.of(draw(9, 2) @ draw(2, 6, scope="right"))
    assert len(Svd.of(rotated(delta, ROOT("rotated")).matrix).s) == 2
    assert rotated(Svd.of(torch.zeros(3, 2)), ROOT("rotated")).matrix.tolist() == [[0, 0]] * 3


def test_rotated_writes_and_reads_in_directions_that_have_nothing_to_do_with_each_other() -> None:
    delta = Svd.of(draw(4, 1) @ draw(1, 4, scope="right"))
    cosines = []
    for i in range(800):
        found = Svd.of(rotated(delta, ROOT("apart", i)).matrix)
        cosines.append((found.u[:, 0] @ found.v[:, 0]).item() ** 2)
    assert kstest(cosines, SQUARED_COSINE.cdf).pvalue > 1e-3


def test_rotated_changes_have_the_null_shares_that_are_drawn_without_them() -> None:
    delta, w = Svd.of(draw(10, 4)), draw(10, 3, scope="w") @ draw(3, 4, scope="w, right")
    explicit = [spectrum(w, rotated(delta, ROOT("null", i)).matrix).null_share for i in range(600)]
    drawn = rotated_null_shares(delta, random_null_lengths(draw(600, 10, 4, scope="bases"), 3))
    assert kstest(explicit, drawn.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_gaussian_keeps_the_frobenius_norm(scale: float) -> None:
    delta = scale * torch.diag(torch.arange(1.0, 6.0))
    found = gaussian(delta, ROOT("gaussian"))
    assert found.norm().item() == pytest.approx(delta.double().norm().item())
    assert gaussian(torch.zeros(3, 2), ROOT("gaussian")).tolist() == [[0, 0]] * 3


def test_gaussian_entries_are_normal_whatever_the_change() -> None:
    delta = torch.zeros(60, 50)
    delta[0, 0] = 3000**0.5
    assert kstest(gaussian(delta, ROOT("gaussian")).flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(("size", "k"), [(7, 3), (7, 7), (7, 1), (1, 1), (7, 0)])
def test_haar_columns_are_orthonormal(size: int, k: int) -> None:
    q = haar(size, k, ROOT("haar"), CPU)
    torch.testing.assert_close(q.mT @ q, torch.eye(k).double())


@pytest.mark.parametrize("k", [1, 2, 4])
def test_haar_columns_favour_no_direction(k: int) -> None:
    """Every entry is as often positive as negative and has mean square 1 / size; QR alone has signs of its own."""
    size, n = 4, 2000
    drawn = torch.stack([haar(size, k, ROOT("haar", k, i), CPU) for i in range(n)])
    assert drawn.mean(0).abs().max().item() < 4 * (1 / size / n) ** 0.5
    assert (drawn.square().mean(0) - 1 / size).abs().max().item() < 4 * SQUARED_COSINE.std() / n**0.5
    for row in range(size):
        assert kstest(drawn[:, row, 0].square().numpy(), SQUARED_COSINE.cdf).pvalue > 1e-4


def test_haar_of_full_size_turns_as_often_as_it_mirrors() -> None:
    mirrored = sum(torch.linalg.det(haar(3, 3, ROOT("det", i), CPU)).item() < 0 for i in range(600))
    assert 250 < mirrored < 350


def test_shuffled_is_every_order_equally_often(fit: Callable[..., float]) -> None:
    orders = Counter(tuple(shuffled(3, ROOT("labels", i), CPU).tolist()) for i in range(1800))
    assert len(orders) == 6
    assert fit(orders, dict.fromkeys(orders, 1 / 6)) > 1e-3
    assert sorted(shuffled(500, ROOT("labels"), CPU).tolist()) == list(range(500))


def test_the_same_stream_gives_the_same_control() -> None:
    matrix = draw(5, 4)
    for make in (
        lambda s: gaussian(matrix, s),
        lambda s: rotated(Svd.of(matrix), s).matrix,
        lambda s: shuffled(9, s, CPU),
    ):
        assert torch.equal(make(ROOT("x")), make(ROOT("x")))
