"""Without a direction no part of the model sees or writes it; a vector put in is seen by all that comes after."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import Built
from tunescope.interventions.directions import ablate, with_vector, without_direction
from tunescope.models.build import build_model
from tunescope.models.hooks import capture
from tunescope.models.sites import Site, weight
from tunescope.rng import Stream

CPU = torch.device("cpu")
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
READ = [*(Site(layer, name) for layer in range(2) for name in ("resid_pre", "resid_mid")), Site(1, "resid_post")]


def draw(*shape: int, scope: object = 0) -> Tensor:
    return Stream.named(0, "ablation", scope).normal(shape, CPU)


@pytest.fixture(scope="module")
def direction() -> Tensor:
    d = draw(16)
    return d / d.norm()


def build(architecture: str) -> PreTrainedModel:
    config = Built(architecture=architecture, layers=2, heads=2, width=16)
    model = build_model(config, 30, 32, Stream.named(0, "ablation"), CPU).eval()
    with torch.no_grad():  # as initialised, the blocks change next to nothing, and GPT-2 has no biases
        for i, (name, parameter) in enumerate(model.named_parameters()):
            parameter.mul_(10)
            if name.endswith("bias"):
                parameter.copy_(draw(*parameter.shape, scope=i))
    return model


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Shared by all tests: not to be changed."""
    return build(request.param)


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(TOKENS, use_cache=False).logits


def test_ablate_by_hand() -> None:
    a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [3.0, -4.0]]])
    assert ablate(a, torch.tensor([0.0, 1.0])).tolist() == [[[1, 0], [3, 0]], [[0, 0], [3, 0]]]
    torch.testing.assert_close(ablate(a[0, 1], torch.tensor([0.6, 0.8])), torch.tensor([3 - 5 * 0.6, 4 - 5 * 0.8]))


@given(st.integers(0, 99))
def test_ablating_is_a_projection(scope: int) -> None:
    a, d = draw(3, 2, 6, scope=scope), draw(6, scope=(scope, "d"))
    d = d / d.norm()
    once = ablate(a, d)
    assert (once @ d).abs().max().item() < 1e-12
    torch.testing.assert_close(ablate(once, d), once)
    torch.testing.assert_close(once + (a @ d)[..., None] * d, a)


def test_the_activations_keep_their_type() -> None:
    assert ablate(draw(2, 3).float(), draw(3)).dtype == torch.float32


def test_the_direction_is_nowhere_in_what_the_blocks_and_the_head_read(
    model: PreTrainedModel, direction: Tensor
) -> None:
    with capture(model, READ) as untouched:
        before = logits(model)
    with without_direction(model, direction), capture(model, READ) as found:
        after = logits(model)
    for site in READ:
        before_it, without = (a[site].double() @ direction / a[site].norm(dim=2) for a in (untouched, found))
        assert before_it.abs().max().item() > 0.05
        assert without.abs().max().item() < 1e-5
    assert (after - before).abs().max().item() > 0.1
    assert torch.equal(logits(model), before)


@torch.no_grad()
def test_it_is_as_if_no_weight_could_write_the_direction(model: PreTrainedModel, direction: Tensor) -> None:
    """Arditi et al. 2024, eq. 5: the same edit, made in the weights."""
    other = build(model.config.model_type)
    d = direction.float()
    gpt2 = other.config.model_type == "gpt2"
    written = [other.get_input_embeddings().weight.T.clone()]
    table = other.get_input_embeddings()
    table.weight = torch.nn.Parameter((written[0] - torch.outer(d, d @ written[0])).T)  # apart from a tied head
    if gpt2:
        places = other.transformer.wpe.weight
        places.sub_(torch.outer(places @ d, d))
    for layer in range(2):
        for name in ("W_O", "W_out"):
            matrix = weight(other, layer, name)
            matrix.sub_(torch.outer(d, d @ matrix))
        if gpt2:
            block = other.transformer.h[layer]
            for bias in (block.attn.c_proj.bias, block.mlp.c_proj.bias):
                bias.sub_((bias @ d) * d)
    with without_direction(model, direction):
        torch.testing.assert_close(logits(model), logits(other), rtol=1e-3, atol=1e-3)


def test_without_no_direction_nothing_changes(model: PreTrainedModel) -> None:
    before = logits(model)
    with without_direction(model, torch.zeros(16)):
        torch.testing.assert_close(logits(model), before)


def test_the_model_is_left_as_it_was_when_the_block_fails(model: PreTrainedModel, direction: Tensor) -> None:
    before = logits(model)
    with pytest.raises(ZeroDivisionError), without_direction(model, direction):
        raise ZeroDivisionError
    assert torch.equal(logits(model), before)


def test_a_vector_is_added_after_one_layer_at_every_place(model: PreTrainedModel, direction: Tensor) -> None:
    sites = [Site(0, "resid_pre"), Site(0, "resid_post"), Site(1, "resid_pre")]
    before = logits(model)
    with capture(model, sites) as untouched:
        logits(model)
    with with_vector(model, 3 * direction, 0) as changed, capture(changed, sites) as found:
        assert (logits(changed) - before).abs().max().item() > 0.1
    assert torch.equal(found[sites[0]], untouched[sites[0]])
    for site in sites[1:]:
        torch.testing.assert_close(found[site], untouched[site] + 3 * direction.float())
    assert torch.equal(logits(model), before)
