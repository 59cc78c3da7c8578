"""Collect: what is read is what the model computes at the last token, however many prompts go through it at once."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import Built
from tunescope.models.build import build_model
from tunescope.models.hooks import capture
from tunescope.models.inputs import Inputs
from tunescope.models.sites import LAYER_SITES, Site
from tunescope.probes.collect import block_output, first_logits, last_activations, stored
from tunescope.rng import Stream

CPU = torch.device("cpu")
SITES = [Site(None, "embed"), *(Site(layer, name) for layer in range(2) for name in LAYER_SITES)]
PROMPTS = Stream.named(0, "prompts").integers(20, (7, 5), CPU)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Shared by all tests: not to be changed."""
    config = Built(architecture=request.param, layers=2, heads=2, width=16)
    model = build_model(config, 20, 8, Stream.named(0, "collect"), CPU).eval()
    with torch.no_grad():  # as initialised, the blocks change next to nothing
        for parameter in model.parameters():
            parameter.mul_(10)
    return model


@torch.no_grad()
def whole(model: PreTrainedModel) -> dict[Site, Tensor]:
    """Every activation of every prompt at every token."""
    with capture(model, SITES) as found:
        model(PROMPTS, use_cache=False)
    return found


@pytest.mark.parametrize("rows", [1, 2, 6, 7, 100])
def test_last_activations_are_those_of_one_whole_pass(model: PreTrainedModel, rows: int) -> None:
    parts = list(last_activations(model, Inputs(PROMPTS), SITES, rows))
    assert [len(part[SITES[0]]) for part in parts] == [len(p) for p in PROMPTS.split(rows)]
    for site, activation in whole(model).items():
        joined = torch.cat([part[site] for part in parts])
        assert not joined.requires_grad
        torch.testing.assert_close(joined, activation[:, -1], **CLOSE)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_stored_activations_are_those_of_all_prompts_at_once(model: PreTrainedModel, rows: int) -> None:
    sites = [Site(0, "mlp_in"), Site(1, "mlp_post")]
    found = stored(model, Inputs(PROMPTS), sites, rows)
    assert list(found) == sites
    for site in sites:
        torch.testing.assert_close(found[site], whole(model)[site][:, -1], **CLOSE)


def test_embeddings_lead_to_the_same_logits_as_their_tokens(model: PreTrainedModel) -> None:
    inputs = Inputs(PROMPTS).embedded(model).sequence
    assert not inputs.requires_grad
    assert inputs.shape == (7, 5, 16)
    expected = model(PROMPTS, use_cache=False).logits[:, -1]
    torch.testing.assert_close(first_logits(model, Inputs(PROMPTS))(inputs), expected, **CLOSE)


@pytest.mark.parametrize("layer", [0, 1])
def test_block_output_is_the_residual_stream_after_the_block(model: PreTrainedModel, layer: int) -> None:
    inputs = Inputs(PROMPTS).embedded(model).sequence.requires_grad_()
    output = block_output(model, Inputs(PROMPTS), layer)(inputs)
    torch.testing.assert_close(output, whole(model)[Site(layer, "resid_post")][:, -1], **CLOSE)
    (gradient,) = torch.autograd.grad(output.sum(), inputs)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_every_row_is_read_by_itself(model: PreTrainedModel) -> None:
    """What the sensitivities rest on: the output of one prompt has no gradient at another's embeddings."""
    for function in (first_logits(model, Inputs(PROMPTS)), block_output(model, Inputs(PROMPTS), 1)):
        inputs = Inputs(PROMPTS).embedded(model).sequence.requires_grad_()
        (gradient,) = torch.autograd.grad(function(inputs)[2].square().sum(), inputs)
        assert torch.equal(gradient.flatten(1).norm(dim=1) > 0, torch.arange(7) == 2)


def test_models_in_half_precision_are_read_in_single() -> None:
    config = Built(architecture="gpt2", layers=1, heads=2, width=16)
    model = build_model(config, 20, 8, Stream.named(0, "half"), CPU).bfloat16().eval()
    (found,) = last_activations(model, Inputs(PROMPTS), [Site(0, "mlp_in")], 99)
    assert found[Site(0, "mlp_in")].dtype == torch.float32
    (kept,) = stored(model, Inputs(PROMPTS), [Site(0, "mlp_in")], 3).values()
    assert kept.dtype == model.dtype
    assert first_logits(model, Inputs(PROMPTS))(Inputs(PROMPTS).embedded(model).sequence).dtype == torch.float32
    assert block_output(model, Inputs(PROMPTS), 0)(Inputs(PROMPTS).embedded(model).sequence).dtype == torch.float32


def test_nothing_of_the_model_is_changed(model: PreTrainedModel) -> None:
    before = {name: p.clone() for name, p in model.named_parameters()}
    list(last_activations(model, Inputs(PROMPTS), SITES, 3))
    block_output(model, Inputs(PROMPTS), 0)(Inputs(PROMPTS).embedded(model).sequence).sum().backward()
    model.zero_grad(set_to_none=True)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for layer in (0, 1) for m in blocks(model)[layer].modules())


def blocks(model: PreTrainedModel) -> torch.nn.ModuleList:
    return model.transformer.h if model.config.model_type == "gpt2" else model.model.layers
