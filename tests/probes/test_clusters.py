"""Clusters: planted distances, overlaps and shapes come back, and the scores are those of their definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tunescope.probes.clusters import (
    auc_of_draws,
    in_units_of,
    silhouette,
    tau,
    tau_of_draws,
    top_share,
    within_class_sd,
)
from tunescope.rng import Stream

CPU = torch.device("cpu")


def draw(*shape: int, scope: object = 0) -> Tensor:
    return Stream.named(0, "clusters", scope).normal(shape, CPU)


def test_top_share_by_hand() -> None:
    """Centred singular values in the proportion 3 to 1, anywhere in space."""
    points = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    for offset in (0.0, 7.0):
        assert top_share(points + offset) == pytest.approx(0.75)


def test_top_share_is_that_of_the_singular_values_of_the_centred_cluster() -> None:
    a = draw(30, 5) * torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5]) + 4
    s = torch.linalg.svdvals(a - a.mean(0))
    assert top_share(a) == pytest.approx((s[0] / s.sum()).item())


def test_top_share_of_a_line_is_one_and_of_a_point_zero() -> None:
    line = torch.linspace(-1, 1, 9)[:, None] * torch.tensor([1.0, 2.0, -1.0]) + 1
    assert top_share(line) == pytest.approx(1.0, abs=1e-6)
    for point in (torch.zeros(3), torch.tensor([1e4, 0.1, -3.3])):
        assert top_share(point.repeat(50, 1)) == 0.0
    assert top_share(draw(1, 3)) == 0.0


def test_tau_by_hand() -> None:
    safe, unsafe = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])
    a = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0], [1.5, 2.0], [5.5, -1.0]])
    torch.testing.assert_close(tau(a, safe, unsafe), torch.tensor([5.0, -5.0, 1.0, 0.0, 31.25**0.5 - 31.25**0.5]))


@given(st.floats(0.01, 100), st.integers(0, 99))
def test_tau_of_the_means_is_the_distance_between_the_clusters(distance: float, scope: int) -> None:
    noise, direction = draw(2, 20, 6, scope=scope), draw(6, scope=(scope, "direction"))
    safe, unsafe = noise - noise.mean(1, keepdim=True)
    unsafe = unsafe + distance * direction / direction.norm()
    means = [part.double().mean(0) for part in (safe, unsafe)]
    found = tau(torch.stack(means), *means)
    torch.testing.assert_close(found, torch.tensor([distance, -distance], dtype=torch.float64))


def test_tau_of_draws_is_tau_of_each_pair_of_means() -> None:
    a, safe, unsafe = draw(5, 3), draw(4, 3, scope="safe"), draw(4, 3, scope="unsafe")
    expected = torch.stack([tau(a, *pair) for pair in zip(safe, unsafe, strict=True)])
    torch.testing.assert_close(tau_of_draws(a, safe, unsafe), expected)


def test_tau_takes_single_precision_to_double_means() -> None:
    means = draw(2, 3)
    assert tau(draw(4, 3).float(), *means).dtype == torch.float64


def test_auc_of_draws_is_that_of_scikit_learn_for_each() -> None:
    low, high = draw(5, 9), draw(5, 7, scope="high") + 0.5
    low[0, :3], high[0, :2] = 1.0, 1.0  # ties
    labels = [0] * 9 + [1] * 7
    expected = [roc_auc_score(labels, [*a.tolist(), *b.tolist()]) for a, b in zip(low, high, strict=True)]
    assert auc_of_draws(low, high) == pytest.approx(expected)


def test_tau_is_in_units_of_the_spread_within_a_class() -> None:
    safe, unsafe = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 4.0])  # variances 2 and 8
    spread = within_class_sd(safe, unsafe)
    assert spread.item() == pytest.approx(5**0.5)
    torch.testing.assert_close(in_units_of(safe, spread), safe / 5**0.5)
    assert in_units_of(safe, torch.tensor(0.0)).tolist() == [0, 0]


def test_silhouette_by_hand() -> None:
    first, second = torch.tensor([[0.0], [1.0]]), torch.tensor([[10.0], [11.0]])
    assert silhouette(first, second) == pytest.approx((9.5 / 10.5 + 8.5 / 9.5) / 2)
    assert silhouette(torch.tensor([[0.0]]), second) == pytest.approx((0 + 9 / 10 + 10 / 11) / 3)


@pytest.mark.parametrize("distance", [0.0, 3.0, 30.0])
def test_silhouette_is_that_of_its_definition(distance: float) -> None:
    first, second = draw(12, 3), draw(15, 3, scope="second") + distance
    scores = []
    for own, other in ((first, second), (second, first)):
        within = torch.cdist(own, own).sum(1) / (len(own) - 1)
        between = torch.cdist(own, other).mean(1)
        scores.append((between - within) / torch.maximum(between, within))
    assert silhouette(first, second) == pytest.approx(torch.cat(scores).mean().item())


def test_silhouette_finds_clusters_and_none_in_noise() -> None:
    first, second = draw(100, 5), draw(100, 5, scope="second")
    assert abs(silhouette(first, second)) < 0.03
    assert silhouette(first, second + 100) > 0.97
    assert silhouette(torch.cat([first, second + 100]), torch.cat([second, first + 100])) < 0.03


def test_silhouette_of_constant_activations_is_zero() -> None:
    assert silhouette(torch.ones(3, 2), torch.ones(4, 2)) == 0.0


def test_silhouette_of_two_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="labels"):
        silhouette(torch.zeros(1, 2), torch.ones(1, 2))
