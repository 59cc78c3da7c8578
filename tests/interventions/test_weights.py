"""Interventions on dW do what they say to every matrix, and leave the two models as they were."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import ModelConfig
from tunescope.errors import InputError
from tunescope.interventions.weights import (
    in_column_space,
    in_null_space,
    in_random_space,
    matrices,
    not_reading,
    reading,
    rotated,
    scaled,
    scaled_in,
    transferred,
    truncated,
)
from tunescope.models.build import build_model
from tunescope.models.sites import Site, input_site, weight, weight_names
from tunescope.probes.controls import haar
from tunescope.probes.subspaces import column_space
from tunescope.rng import Stream

CPU = torch.device("cpu")
ROOT = Stream.named(0, "weights")


def build(architecture: str, scope: str, width: int = 16, layers: int = 2) -> PreTrainedModel:
    config = ModelConfig(architecture=architecture, layers=layers, heads=2, width=width)
    return build_model(config, 20, 16, ROOT(scope), CPU).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Shared by all tests: not to be changed."""
    return build(request.param, "base"), build(request.param, "tuned")


def same(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def delta(base: PreTrainedModel, model: PreTrainedModel, layer: int = 1, name: str = "W_in") -> Tensor:
    return weight(model, layer, name).double() - weight(base, layer, name).double()


def test_alpha_0_and_1_are_base_and_tuned_bit_for_bit(pair) -> None:
    base, tuned = pair
    assert same(scaled(base, tuned, 0.0), base)
    assert same(scaled(base, tuned, 1.0), tuned)
    assert same(scaled_in(base, tuned, 1.0), tuned)
    everywhere = scaled_in(base, tuned, 0.0, weight_names(base))
    assert all(
        torch.equal(weight(everywhere, layer, n), weight(base, layer, n))
        for layer in (0, 1)
        for n in weight_names(base)
    )
    assert same(truncated(base, tuned, 99), tuned)


@given(st.floats(-0.5, 2.0))
def test_the_change_is_in_proportion_to_alpha(alpha: float) -> None:
    base, tuned = build("gpt2", "base"), build("gpt2", "tuned")
    for p, q, r in zip(base.parameters(), tuned.parameters(), scaled(base, tuned, alpha).parameters(), strict=True):
        torch.testing.assert_close(r, p + alpha * (q - p), rtol=1e-5, atol=1e-7)


def test_only_what_was_named_is_scaled(pair) -> None:
    base, tuned = pair
    model = scaled_in(base, tuned, 0.0, ("W_in",), [1])
    for name in weight_names(base):
        for layer in (0, 1):
            expected = base if (name, layer) == ("W_in", 1) else tuned
            assert torch.equal(weight(model, layer, name), weight(expected, layer, name))
    assert torch.equal(model.get_input_embeddings().weight, tuned.get_input_embeddings().weight)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_truncated_change_is_the_best_of_its_rank(pair, rank: int) -> None:
    base, tuned = pair
    found, whole = (
        torch.linalg.svdvals(delta(base, truncated(base, tuned, rank))),
        torch.linalg.svdvals(delta(base, tuned)),
    )
    torch.testing.assert_close(found[:rank], whole[:rank], rtol=1e-4, atol=1e-6)
    assert (found[rank:] < 1e-5).all()


def test_the_parts_in_both_spaces_are_orthogonal_and_add_up(pair) -> None:
    base, tuned = pair
    null, column = (delta(base, make(base, tuned)) for make in (in_null_space, in_column_space))
    basis = column_space(weight(base, 1, "W_in").double())
    assert (basis.mT @ null).abs().max() < 1e-6
    torch.testing.assert_close(null + column, delta(base, tuned), rtol=0, atol=1e-6)
    assert torch.equal(delta(base, in_null_space(base, tuned), 1, "W_out"), delta(base, tuned, 1, "W_out"))


def test_a_random_space_is_as_large_as_the_null_space_and_another_one(pair) -> None:
    base, tuned = pair
    made = in_random_space(base, tuned, ROOT("space"))
    kept, whole = delta(base, made), delta(base, tuned)
    size, rank = column_space(weight(base, 1, "W_in").double()).shape
    assert torch.linalg.matrix_rank(kept, rtol=1e-4) == min(size - rank, *whole.shape)
    null = delta(base, in_null_space(base, tuned))
    assert kept.norm().item() == pytest.approx(null.norm().item(), rel=1e-5)
    assert not torch.allclose(kept, null, atol=1e-3)
    left = torch.linalg.svd(kept, full_matrices=False).U
    part = left @ (left.mT @ whole)  # but for its size it is a projection of dW
    torch.testing.assert_close(part * (kept.norm() / part.norm()), kept, rtol=0, atol=1e-5)
    assert same(made, in_random_space(base, tuned, ROOT("space")))
    assert not same(made, in_random_space(base, tuned, ROOT("another")))
    assert torch.equal(delta(base, made, 1, "W_out"), delta(base, tuned, 1, "W_out"))


def test_what_reads_some_directions_and_the_rest_add_up(pair) -> None:
    base, tuned = pair
    spaces: dict[Site, Tensor] = {}
    for layer in (0, 1):
        for name in weight_names(base):
            site = input_site(base, layer, name)
            spaces[site] = haar(weight(base, layer, name).shape[1], 3, ROOT(str(site)), CPU)
    of, off = reading(base, tuned, spaces), not_reading(base, tuned, spaces)
    for name in weight_names(base):
        basis = spaces[input_site(base, 1, name)]
        inside, outside, whole = (delta(base, model, 1, name) for model in (of, off, tuned))
        assert (outside @ basis).abs().max() < 1e-6
        torch.testing.assert_close(inside @ basis, whole @ basis, rtol=0, atol=1e-6)
        torch.testing.assert_close(inside + outside, whole, rtol=0, atol=1e-6)
    assert torch.equal(of.get_input_embeddings().weight, base.get_input_embeddings().weight)
    assert torch.equal(off.get_input_embeddings().weight, tuned.get_input_embeddings().weight)
    everything = {site: torch.eye(len(basis), dtype=torch.float64) for site, basis in spaces.items()}
    for name in weight_names(base):
        torch.testing.assert_close(weight(reading(base, tuned, everything), 0, name), weight(tuned, 0, name))
        torch.testing.assert_close(weight(not_reading(base, tuned, everything), 0, name), weight(base, 0, name))


def test_matrices_are_those_of_the_tuned_model_and_all_else_the_base_s(pair) -> None:
    base, tuned = pair
    model, of_blocks = matrices(base, tuned), 0
    parts = (dict(each.named_parameters()) for each in (model, base, tuned))
    for (_, got), before, after in zip(next(parts).items(), next(parts).values(), next(parts).values(), strict=True):
        changed = torch.equal(got, after) and not torch.equal(got, before)
        assert changed or torch.equal(got, before)
        of_blocks += changed * got.numel()
    assert of_blocks == sum(weight(base, layer, n).numel() for layer in (0, 1) for n in weight_names(base))


def test_a_rotated_change_keeps_its_singular_values_and_nothing_else(pair) -> None:
    base, tuned = pair
    model = rotated(base, tuned, ROOT("rotation"))
    for name in weight_names(base):
        new, old = delta(base, model, 0, name), delta(base, tuned, 0, name)
        torch.testing.assert_close(torch.linalg.svdvals(new), torch.linalg.svdvals(old), rtol=1e-4, atol=1e-5)
        assert (new * old).sum().abs() < 0.5 * old.square().sum()
    assert torch.equal(model.get_input_embeddings().weight, base.get_input_embeddings().weight)
    assert same(model, rotated(base, tuned, ROOT("rotation")))


def test_transferred_changes_add_up(pair) -> None:
    base, tuned = pair
    other = build(base.config.model_type, "other")
    model = transferred(base, tuned, other)
    torch.testing.assert_close(delta(base, model), delta(base, tuned) + delta(base, other), rtol=0, atol=1e-6)
    assert same(transferred(base, tuned, base), tuned)


def test_the_models_are_left_as_they_were(pair) -> None:
    base, tuned = pair
    before = deepcopy(base), deepcopy(tuned)
    for make in (scaled, scaled_in, truncated, rotated, in_null_space, in_column_space, transferred):
        extra = {scaled: (0.5,), scaled_in: (0.5,), truncated: (1,), rotated: (ROOT,), transferred: (base,)}.get(
            make, ()
        )
        make(base, tuned, *extra)
    assert same(base, before[0])
    assert same(tuned, before[1])


@pytest.mark.parametrize("alpha", [math.inf, -math.inf, math.nan])
def test_an_alpha_that_is_no_number_is_refused(pair, alpha: float) -> None:
    for make in (scaled, scaled_in):
        with pytest.raises(InputError, match="alpha"):
            make(*pair, alpha)


def test_models_that_do_not_match_are_refused() -> None:
    base = build("gpt2", "base")
    for other in (build("gpt2", "base", width=8), build("gpt2", "base", layers=1), build("llama", "base")):
        makers = [
            partial(scaled, alpha=0.5),
            partial(truncated, rank=1),
            in_null_space,
            partial(transferred, other=base),
        ]
        for make in makers:
            with pytest.raises(InputError, match="in the base"):
                make(base, other)


def test_unknown_matrices_layers_and_ranks_are_refused(pair) -> None:
    for arguments in ((("W_none",), None), (("W_in",), [2]), (("W_in",), [-1])):
        with pytest.raises(InputError, match="W_in"):
            scaled_in(*pair, 0.5, *arguments)
    with pytest.raises(InputError, match="rank: -1"):
        truncated(*pair, -1)
