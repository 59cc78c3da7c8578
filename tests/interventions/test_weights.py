"""Interventions on dW do what they say to every matrix, in place, and give the model back to the bit."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import Built
from tunescope.errors import InputError
from tunescope.interventions.base import INTERVENTIONS, Bench
from tunescope.interventions.inputs import InputDirections, standing_spaces
from tunescope.interventions.scaled import Scaled
from tunescope.interventions.truncated import Truncated
from tunescope.interventions.weights import with_delta, with_parameters
from tunescope.models.sites import input_site, weight, weight_names
from tunescope.probes.subspaces import column_space
from tunescope.tasks.base import Batch
from tunescope.tasks.world.task import WorldTask
from tunescope.tasks.world.world import World

NAMES = ("scaled", "truncated", "spaces", "matrices", "inputs", "transferred", "direction")
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, build) -> PreTrainedModel:
    """Shared by all tests: not to be changed."""
    return build(request.param, "base")


@pytest.fixture(scope="module")
def of(base: PreTrainedModel, build, bench) -> Bench:
    """Shared by all tests: its model is to be as it was after each."""
    other = build(base.config.model_type, "other")
    return bench(base, build(base.config.model_type, "tuned"), {"dpo": other})


@pytest.fixture
def tuned(of: Bench) -> Iterator[PreTrainedModel]:
    """A copy of the bench's model, which is as before when a test is over."""
    copy, before = deepcopy(of.model), state(of.model)
    yield copy
    assert state(of.model) == before


def state(model: PreTrainedModel) -> dict[str, bytes]:
    """Every parameter, byte for byte."""
    return {name: p.detach().contiguous().view(torch.uint8).numpy().tobytes() for name, p in model.named_parameters()}


@contextmanager
def changed(of: Bench, changes: Callable, name: str, key: tuple, draw: int = 0, **settings: object):
    with changes(of, name, **settings)[key].makes[draw]() as model:
        assert model is of.model
        yield model


def delta(base: PreTrainedModel, model: PreTrainedModel, layer: int = 1, name: str = "W_in") -> Tensor:
    return weight(model, layer, name).double() - weight(base, layer, name).double()


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(TOKENS, use_cache=False).logits


def test_these_are_the_interventions() -> None:
    others = {"extrapolated", "patched", "patched_base", "retuned"}
    assert {name for name in INTERVENTIONS if not INTERVENTIONS.code(name)} == {*NAMES, *others}
    assert {name for name in INTERVENTIONS if INTERVENTIONS[name].control} == {"scaled", "extrapolated"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_itself_again_to_the_bit(
    name: str, fails: bool, base: PreTrainedModel, of: Bench, changes
) -> None:
    before, of_base, said = state(of.model), state(base), logits(of.model)
    tied = of.model.get_output_embeddings().weight is of.model.get_input_embeddings().weight
    assert tied == (of.model.config.model_type == "gpt2")
    seen = 0
    for change in changes(of, name).values():
        for make in change.makes:
            with suppress(ZeroDivisionError), make() as model:
                seen += not torch.equal(logits(model), said)
                if fails:
                    raise ZeroDivisionError
            assert state(of.model) == before
            assert torch.equal(logits(of.model), said)
    assert seen  # something had changed meanwhile
    assert state(base) == of_base
    assert tied == (of.model.get_output_embeddings().weight is of.model.get_input_embeddings().weight)


def test_a_change_that_fails_halfway_leaves_nothing(of: Bench, tuned: PreTrainedModel) -> None:
    count = 0

    def change(*_: object) -> Tensor:
        nonlocal count
        if (count := count + 1) > 3:
            raise ZeroDivisionError
        return torch.zeros_like(_[-1] if len(_) > 1 else _[0].matrix)

    for make in (with_parameters, with_delta):
        count = 0
        with pytest.raises(ZeroDivisionError), make(of.model, of.pair, change):
            raise AssertionError
        assert state(of.model) == state(tuned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alpha_0_and_1_are_base_and_tuned_bit_for_bit(
    dtype: torch.dtype, base: PreTrainedModel, of: Bench, bench, changes
) -> None:
    before, after = deepcopy(base).to(dtype), deepcopy(of.model).to(dtype)
    here = bench(before, deepcopy(after))
    for alpha, expected in ((0.0, before), (1.0, after)):
        with changed(here, changes, "scaled", ("scaled", alpha, "all"), alphas=(alpha,)) as model:
            assert state(model) == state(expected)
            assert torch.equal(logits(model), logits(expected))
    with changed(here, changes, "truncated", ("truncated", 99, "blocks"), ranks=(99,)) as model:
        assert state(model) == state(after)
    with with_delta(here.model, here.pair, lambda delta: 0 * delta.matrix) as model:
        for name in weight_names(base):
            for layer in (0, 1):
                assert torch.equal(weight(model, layer, name), weight(before, layer, name))
    with with_delta(here.model, here.pair, lambda delta: None) as model:
        assert state(model) == state(after)
    assert state(here.model) == state(after)


@given(alpha=st.floats(-0.5, 2.0))
def test_the_change_is_in_proportion_to_alpha(alpha: float, base: PreTrainedModel, of: Bench, changes) -> None:
    tuned = deepcopy(of.model)
    with changed(of, changes, "scaled", ("scaled", alpha, "all"), alphas=(alpha,)) as model:
        for p, q, r in zip(base.parameters(), tuned.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(r, p + alpha * (q - p), rtol=1e-5, atol=1e-6)


def test_mlps_are_scaled_alone_at_evenly_spaced_layers(build, bench, changes) -> None:
    deep = build("llama", "base", layers=7)
    for layers, found in ((0, []), (1, [0]), (3, [0, 3, 6]), (8, list(range(7)))):
        made = changes(bench(deep, deepcopy(deep)), "scaled", layers=layers)
        assert [scope for _, alpha, scope in made if scope[:4] == "mlp." and alpha == 0] == [f"mlp.{i}" for i in found]


def test_only_what_was_named_is_scaled(base: PreTrainedModel, of: Bench, tuned: PreTrainedModel, changes) -> None:
    mlp = {"gpt2": {"W_in", "W_out"}, "llama": {"W_gate", "W_in", "W_out"}}[base.config.model_type]
    scopes = {"mlp": (mlp, {0, 1}), "W_in": ({"W_in"}, {0, 1}), "mlp.0": (mlp, {0}), "mlp.1": (mlp, {1})}
    found = changes(of, "scaled", alphas=(0.5,))
    assert set(found) == {
        ("scaled", 0.5, "all"),
        *(("scaled", alpha, scope) for scope in scopes for alpha in (0.0, 2.0)),
    }
    for scope, (names, layers) in scopes.items():
        for alpha in (0.0, 2.0):
            with found["scaled", alpha, scope].makes[0]() as model:
                for name in weight_names(base):
                    for layer in (0, 1):
                        times = alpha if name in names and layer in layers else 1
                        want = times * delta(base, tuned, layer, name)
                        torch.testing.assert_close(delta(base, model, layer, name), want, rtol=0, atol=1e-6)
                        if times == 1:
                            assert torch.equal(weight(model, layer, name), weight(tuned, layer, name))
                assert torch.equal(model.get_input_embeddings().weight, tuned.get_input_embeddings().weight)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_truncated_change_is_the_best_of_its_rank(
    rank: int, base: PreTrainedModel, of: Bench, tuned: PreTrainedModel, changes
) -> None:
    with changed(of, changes, "truncated", ("truncated", rank, "blocks"), ranks=(rank,)) as model:
        for name in weight_names(base):
            found, whole = (torch.linalg.svdvals(delta(base, each, 1, name)) for each in (model, tuned))
            torch.testing.assert_close(found[:rank], whole[:rank], rtol=1e-4, atol=1e-6)
            assert (found[rank:] < 1e-5).all()
        assert torch.equal(model.get_input_embeddings().weight, tuned.get_input_embeddings().weight)


def test_the_parts_in_both_spaces_are_orthogonal_and_add_up(
    base: PreTrainedModel, of: Bench, tuned: PreTrainedModel, changes
) -> None:
    parts = {}
    for name in ("in_null_space", "in_column_space"):
        with changed(of, changes, "spaces", (name, None, "W_in")) as model:
            parts[name] = delta(base, model)
            assert torch.equal(weight(model, 1, "W_out"), weight(tuned, 1, "W_out"))
    basis = column_space(weight(base, 1, "W_in").double())
    assert (basis.mT @ parts["in_null_space"]).abs().max() < 1e-6
    torch.testing.assert_close(sum(parts.values()), delta(base, tuned), rtol=0, atol=1e-6)


def test_a_random_space_is_as_large_as_the_null_space_and_another_one(
    base: PreTrainedModel, of: Bench, tuned: PreTrainedModel, changes
) -> None:
    with changed(of, changes, "spaces", ("in_null_space", None, "W_in")) as model:
        null = delta(base, model)
    drawn = []
    for draw in (0, 1, 0):
        with changed(of, changes, "spaces", ("in_random_space", None, "W_in"), draw) as model:
            drawn.append(delta(base, model))
            assert torch.equal(weight(model, 1, "W_out"), weight(tuned, 1, "W_out"))
    kept, whole = drawn[0], delta(base, tuned)
    size, rank = column_space(weight(base, 1, "W_in").double()).shape
    assert torch.linalg.matrix_rank(kept, rtol=1e-4) == min(size - rank, *whole.shape)
    assert kept.norm().item() == pytest.approx(null.norm().item(), rel=1e-5)
    assert not torch.allclose(kept, null, atol=1e-3)
    left = torch.linalg.svd(kept, full_matrices=False).U
    part = left @ (left.mT @ whole)  # but for its size it is a projection of dW
    torch.testing.assert_close(part * (kept.norm() / part.norm()), kept, rtol=0, atol=1e-5)
    assert torch.equal(kept, drawn[2])
    assert not torch.allclose(kept, drawn[1], atol=1e-3)


def test_what_reads_some_directions_and_the_rest_add_up(
    base: PreTrainedModel, of: Bench, tuned: PreTrainedModel, changes
) -> None:
    spaces = standing_spaces(of, 3)
    for kind, key in (("unsafe", 2), ("safe", 3)):
        made = {}
        for side in ("on", "off"):
            with changed(of, changes, "inputs", (f"{side}_{kind}_inputs", key, "blocks"), directions=(2, 3)) as model:
                made[side] = deepcopy(model)
        for name in weight_names(base):
            basis = spaces[kind][input_site(base, 1, name)][:, :key]
            inside, outside, whole = (delta(base, model, 1, name) for model in (made["on"], made["off"], tuned))
            assert basis.shape[1] == key
            assert (outside @ basis).abs().max() < 1e-6
            torch.testing.assert_close(inside @ basis, whole @ basis, rtol=0, atol=1e-6)
            torch.testing.assert_close(inside + outside, whole, rtol=0, atol=1e-6)
        assert torch.equal(made["on"].get_input_embeddings().weight, base.get_input_embeddings().weight)
        assert torch.equal(made["off"].get_input_embeddings().weight, tuned.get_input_embeddings().weight)


def test_random_inputs_are_as_many_and_others_in_every_draw(
    base: PreTrainedModel, of: Bench, tuned: PreTrainedModel, changes
) -> None:
    parts = []
    for draw in (0, 1, 0):
        key = ("off_random_inputs", 3, "blocks")
        with changed(of, changes, "inputs", key, draw, directions=(1, 3)) as model:
            parts.append(delta(base, tuned) - delta(base, model))
    assert [int(torch.linalg.matrix_rank(part, rtol=1e-4)) for part in parts] == [3, 3, 3]
    assert torch.equal(parts[0], parts[2])
    assert not torch.allclose(parts[0], parts[1], atol=1e-3)


def test_matrices_are_those_of_the_tuned_model_and_all_else_the_base_s(
    base: PreTrainedModel, of: Bench, tuned: PreTrainedModel, changes
) -> None:
    of_blocks = 0
    with changed(of, changes, "matrices", ("matrices", None, "blocks")) as model:
        for got, before, after in zip(model.parameters(), base.parameters(), tuned.parameters(), strict=True):
            new = torch.equal(got, after) and not torch.equal(got, before)
            assert new or torch.equal(got, before)
            of_blocks += new * got.numel()
    assert of_blocks == sum(weight(base, layer, n).numel() for layer in (0, 1) for n in weight_names(base))


def test_a_rotated_change_keeps_its_singular_values_and_nothing_else(
    base: PreTrainedModel, of: Bench, tuned: PreTrainedModel, changes
) -> None:
    drawn = []
    for draw in (0, 1, 0):
        with changed(of, changes, "matrices", ("rotated", None, "blocks"), draw) as model:
            drawn.append(deepcopy(model))
    for name in weight_names(base):
        new, old = delta(base, drawn[0], 0, name), delta(base, tuned, 0, name)
        torch.testing.assert_close(torch.linalg.svdvals(new), torch.linalg.svdvals(old), rtol=1e-4, atol=1e-5)
        assert (new * old).sum().abs() < 0.5 * old.square().sum()
    assert torch.equal(drawn[0].get_input_embeddings().weight, base.get_input_embeddings().weight)
    assert state(drawn[0]) == state(drawn[2])
    assert state(drawn[0]) != state(drawn[1])


def test_transferred_changes_add_up(
    base: PreTrainedModel, of: Bench, tuned: PreTrainedModel, bench, build, changes
) -> None:
    other = build(base.config.model_type, "other")
    with changed(of, changes, "transferred", ("with_dpo", None, "all")) as model:
        for parts in zip(*(each.parameters() for each in (model, tuned, base, other)), strict=True):
            got, after, before, added = (each.double() for each in parts)
            torch.testing.assert_close(got, after + added - before, rtol=0, atol=1e-6)
    of_itself = bench(base, deepcopy(tuned), {"base": base})
    with changed(of_itself, changes, "transferred", ("with_base", None, "all")) as model:
        assert state(model) == state(tuned)
    assert changes(bench(base, deepcopy(tuned)), "transferred") == {}


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (Scaled, {"alphas": (math.inf,)}),
        (Scaled, {"alphas": (math.nan,)}),
        (Scaled, {"alphas": (0.5, 0.5)}),
        (Scaled, {"alphas": ()}),
        (Truncated, {"ranks": (0,)}),
        (Truncated, {"ranks": (-1,)}),
        (InputDirections, {"directions": (0,)}),
        (InputDirections, {"directions": (2, 2)}),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: type, values: dict[str, tuple]) -> None:
    with pytest.raises(ValidationError):
        settings(**values)


@pytest.mark.parametrize(("most", "good"), [(15, True), (16, False), (99, False)])
def test_no_more_directions_than_there_are(most: int, good: bool, easy: World) -> None:
    check = INTERVENTIONS["inputs"].check
    assert check is not None
    told = InputDirections(directions=(1, most)), WorldTask(easy), Built(width=16)
    if good:
        check(*told)
        return
    with pytest.raises(InputError, match=rf"inputs\.directions: {most} must be below base\.width \(16\)"):
        check(*told)


def test_prompts_of_two_lengths_are_set_beside_each_other_from_the_end(of: Bench, bench, prompts) -> None:
    """What is before the first place of the shorter ones is not looked at."""
    short, long = (prompts("safe").prompts.sequence, prompts("unsafe").prompts.sequence)
    longer = torch.cat([torch.randint(0, 20, (4, 2), generator=torch.Generator().manual_seed(0)), long], dim=1)
    fit: dict[str, Batch] = {"safe": prompts("safe", short), "unsafe": prompts("unsafe", longer)}
    spaces = standing_spaces(bench(of.model, deepcopy(of.model), fit=fit), 2)
    for kind in ("safe", "unsafe"):
        for basis in spaces[kind].values():
            torch.testing.assert_close(basis.mT @ basis, torch.eye(2).double())
