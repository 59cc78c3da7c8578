"""The map of names holds for every architecture that it lists: sites add up, and matrices do what they say."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from tunescope.errors import InputError
from tunescope.models.families import FAMILIES
from tunescope.models.hooks import capture, edit
from tunescope.models.sites import (
    LAYER_SITES,
    Site,
    input_site,
    layer_count,
    stored_name,
    weight,
    weight_names,
    within_stored,
)
from tunescope.registry import load_plugins

TEXT = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
OTHER = torch.tensor([[2, 7, 1, 8, 2], [8, 1, 8, 2, 8]])
LAYERS = 2
SIZES = {  # heads share keys and values, and are wider than the model has room for where an architecture has it so
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Of random weights, in float64. Shared by all tests: not to be changed."""
    torch.manual_seed(0)
    sizes = {"n_layer": LAYERS, "n_head": 4, "n_embd": 16, "vocab_size": 30, "n_positions": 32}
    config = CONFIG_MAPPING[request.param](**(sizes if request.param == "gpt2" else SIZES))
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)  # as initialised, attention does next to nothing
    return model


def logits(model: PreTrainedModel, text: Tensor = TEXT) -> Tensor:
    return model(text, use_cache=False).logits


def sites_of(model: PreTrainedModel) -> list[Site]:
    return [Site(None, "embed"), *(Site(layer, name) for layer in range(layer_count(model)) for name in LAYER_SITES)]


@pytest.fixture(scope="module")
def at(model: PreTrainedModel) -> dict[str, Tensor]:
    with capture(model, sites_of(model)) as captured:
        logits(model)
    return {str(site): activation for site, activation in captured.items()}


def test_the_layers_are_those_of_an_untouched_pass(model: PreTrainedModel, at: dict[str, Tensor]) -> None:
    states = model(TEXT, output_hidden_states=True).hidden_states
    assert torch.equal(at["resid_pre.0"], states[0])
    assert torch.equal(at["resid_post.0"], states[1])
    assert torch.equal(at["resid_pre.1"], at["resid_post.0"])


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_residual_stream_adds_up(at: dict[str, Tensor], layer: int) -> None:
    torch.testing.assert_close(at[f"resid_pre.{layer}"] + at[f"attn_out.{layer}"], at[f"resid_mid.{layer}"])
    torch.testing.assert_close(at[f"resid_mid.{layer}"] + at[f"mlp_out.{layer}"], at[f"resid_post.{layer}"])


def test_the_mlp_s_first_matrix_is_w_in(model: PreTrainedModel, at: dict[str, Tensor]) -> None:
    bias = model.transformer.h[0].mlp.c_fc.bias if model.config.model_type == "gpt2" else 0
    torch.testing.assert_close(at["mlp_pre.0"], at["mlp_in.0"] @ weight(model, 0, "W_in").T + bias)


def test_every_matrix_acts_on_its_input_site(model: PreTrainedModel) -> None:
    """Changed in what none of its inputs has any part of, it changes nothing; in what they have, it does."""
    model, text = deepcopy(model), TEXT[:1, :4]
    for name in weight_names(model):
        matrix, site = weight(model, 1, name).clone(), input_site(model, 1, name)
        with capture(model, [site]) as captured:
            before = logits(model, text)
        _, _, directions = torch.linalg.svd(captured[site][0], full_matrices=True)
        for direction, changes in ((directions[-1], False), (directions[0], True)):
            weight(model, 1, name).add_(torch.outer(matrix.sum(1), direction))
            after = logits(model, text)
            weight(model, 1, name).copy_(matrix)
            assert ((after - before).abs().max() > 1e-9) == changes, name
    with pytest.raises(ValueError, match="unknown weight 'W_up'"):
        input_site(model, 0, "W_up")


def test_the_matrices_of_a_layer_are_all_that_it_has(model: PreTrainedModel) -> None:
    parameters = list(model.get_submodule(FAMILIES[model.config.model_type].blocks)[0].parameters())
    assert sum(weight(model, 0, n).numel() for n in weight_names(model)) == sum(
        p.numel() for p in parameters if p.ndim == 2
    )


def test_checkpoints_hold_them_under_their_names(model: PreTrainedModel) -> None:
    stored = model.state_dict()
    for name in weight_names(model):
        found = within_stored(model.config, name, stored[stored_name(model.config, 1, name)])
        assert torch.equal(found, weight(model, 1, name))


def test_edits_at_every_site_are_seen_and_leave_no_trace(model: PreTrainedModel) -> None:
    before = logits(model)
    for site in sites_of(model):
        with edit(model, {site: lambda a: a}):
            torch.testing.assert_close(logits(model), before)
        with edit(model, {site: torch.zeros_like}), capture(model, [site]) as found:
            assert not torch.allclose(logits(model), before), site
        assert not found[site].any()
    assert torch.equal(logits(model), before)


def test_gradients_reach_every_site(model: PreTrainedModel) -> None:
    trained = deepcopy(model).requires_grad_(True)
    sites = sites_of(trained)
    with capture(trained, sites, keep_graph=True) as found:
        loss = logits(trained).square().sum()
    gradients = torch.autograd.grad(loss, [found[site] for site in sites])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", ["resid_pre", "resid_mid", "resid_post"])
def test_a_patched_stream_gives_the_other_run(model: PreTrainedModel, name: str) -> None:
    site = Site(1, name)
    with capture(model, [site]) as found:
        other = logits(model, OTHER)
    patch = found[site].clone()
    with edit(model, {site: lambda _: patch}):
        torch.testing.assert_close(logits(model), other)


def test_a_plug_in_adds_an_architecture(tmp_path: Path) -> None:
    text = """from tunescope.errors import InputError
from tunescope.models.families import FAMILIES, family

def register(name):
    family(name, FAMILIES["llama"])

register({!r})
"""
    (tmp_path / "mine.py").write_text(text.format("toy"))
    (tmp_path / "other.py").write_text(text.format("llama"))
    try:
        load_plugins([tmp_path / "mine.py"])
        assert FAMILIES["toy"] is FAMILIES["llama"]
        assert FAMILIES.code("toy")
        assert not FAMILIES.code("llama")
        with pytest.raises(
            InputError, match=r"Two architectures are called 'llama': one of tunescope\.models\.families"
        ):
            load_plugins([tmp_path / "other.py"])
    finally:
        FAMILIES._entries.pop("toy", None)
