"""Names of sites and weights, and that each means what its name says on both architectures."""

from collections.abc import Callable

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedModel

from tunescope.models.hooks import capture
from tunescope.models.sites import LAYER_SITES, Site, layer_count, locate, weight, weight_names

ATTENTION, MLP = ("W_Q", "W_K", "W_V", "W_O"), ("W_in", "W_out")
SHAPES = {"W_in": (64, 16), "W_gate": (64, 16), "W_out": (16, 64)} | dict.fromkeys(ATTENTION, (16, 16))
BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers"}
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, build: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    model = build(request.param)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # initialised to zero, which would hide a forgotten one
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def at(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every activation of one forward pass, by the name of its site."""
    sites = [Site(None, "embed"), *(Site(layer, name) for layer in range(2) for name in LAYER_SITES)]
    with torch.no_grad(), capture(model, sites) as captured:
        model(TOKENS)
    return {str(site): activation for site, activation in captured.items()}


def bias(model: PreTrainedModel, site: str) -> torch.Tensor | float:
    found = getattr(locate(model, Site.parse(site)).module, "bias", None)
    return 0.0 if found is None else found.detach()


@pytest.mark.parametrize("text", ["embed", "resid_pre.0", "mlp_in.3", "mlp_out.11"])
def test_sites_are_written_and_read(text: str) -> None:
    assert str(Site.parse(text)) == text


def test_sites_are_values() -> None:
    assert Site.parse("mlp_in.3") == Site(3, "mlp_in")
    assert len({Site(3, "mlp_in"), Site.parse("mlp_in.3"), Site(4, "mlp_in")}) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlp.3", "unknown site 'mlp'; there are resid_pre, .*, embed"),
        ("", "unknown site ''"),
        ("mlp_in", r"'mlp_in' needs a layer.*mlp_in\.0"),
        ("mlp_in.-1", "must be the number of a layer"),
        ("mlp_in.", "must be the number of a layer"),
        ("mlp_in.1.2", "must be the number of a layer"),
        ("embed.0", "'embed' belongs to no layer"),
    ],
)
def test_what_is_no_site_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Site.parse(text)


def test_layers_count_from_zero() -> None:
    with pytest.raises(ValueError, match="counted from 0"):
        Site(-1, "mlp_in")


def test_a_layer_that_the_model_lacks_is_refused(model: PreTrainedModel) -> None:
    assert layer_count(model) == 2
    with pytest.raises(ValueError, match=r"no layer 2; this model's layers are 0 \.\. 1"):
        locate(model, Site(2, "mlp_in"))
    for layer in (2, -1):
        with pytest.raises(ValueError, match=rf"no layer {layer}; this model's layers are 0 \.\. 1"):
            weight(model, layer, "W_in")


def test_a_weight_that_the_model_lacks_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"unknown weight 'W_up'.*W_Q, W_K, W_V, W_O, .*W_in, W_out"):
        weight(model, 0, "W_up")


def test_an_architecture_without_a_map_is_refused() -> None:
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    for ask in (layer_count, weight_names, lambda m: locate(m, Site(0, "mlp_in")), lambda m: weight(m, 0, "W_in")):
        with pytest.raises(ValueError, match=r"Unknown architecture 'bert'\. Choose from: gpt2, llama"):
            ask(bert)


def test_the_layers_join(model: PreTrainedModel, at: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        states = model(TOKENS, output_hidden_states=True).hidden_states
    assert torch.equal(at["embed"], model.get_input_embeddings().weight.detach()[TOKENS])
    assert torch.equal(at["resid_pre.0"], states[0])
    assert torch.equal(at["resid_post.0"], states[1])
    assert torch.equal(at["resid_pre.1"], at["resid_post.0"])


@pytest.mark.parametrize("layer", [0, 1])
def test_the_residual_stream_adds_up(at: dict[str, torch.Tensor], layer: int) -> None:
    assert torch.equal(at[f"resid_pre.{layer}"] + at[f"attn_out.{layer}"], at[f"resid_mid.{layer}"])
    assert torch.equal(at[f"resid_mid.{layer}"] + at[f"mlp_out.{layer}"], at[f"resid_post.{layer}"])


@pytest.mark.parametrize("layer", [0, 1])
def test_mlp_sites_and_weights_are_what_they_say(
    model: PreTrainedModel, at: dict[str, torch.Tensor], layer: int
) -> None:
    a, pre, post, out = (at[f"{name}.{layer}"] for name in ("mlp_in", "mlp_pre", "mlp_post", "mlp_out"))
    torch.testing.assert_close(pre, a @ weight(model, layer, "W_in").T + bias(model, f"mlp_pre.{layer}"))
    torch.testing.assert_close(out, post @ weight(model, layer, "W_out").T + bias(model, f"mlp_post.{layer}"))
    if model.config.model_type == "llama":
        torch.testing.assert_close(post, torch.nn.functional.silu(a @ weight(model, layer, "W_gate").T) * pre)
    else:
        torch.testing.assert_close(post, torch.nn.functional.gelu(pre))


@pytest.mark.parametrize("layer", [0, 1])
def test_mlp_in_is_normalised_resid_mid(model: PreTrainedModel, at: dict[str, torch.Tensor], layer: int) -> None:
    mid = at[f"resid_mid.{layer}"]
    norm = locate(model, Site(layer, "resid_mid")).module
    mean = 0 if model.config.model_type == "llama" else mid.mean(-1, keepdim=True)
    scale = ((mid - mean).square().mean(-1, keepdim=True) + 1e-6).sqrt()
    want = (mid - mean) / scale * norm.weight.detach() + getattr(norm, "bias", torch.zeros(())).detach()
    torch.testing.assert_close(at[f"mlp_in.{layer}"], want, rtol=1e-2, atol=1e-2)


def test_attention_weights_are_what_they_say(model: PreTrainedModel, at: dict[str, torch.Tensor]) -> None:
    """Attention made anew from W_Q, W_K, W_V and W_O."""
    block, llama = model.get_submodule(BLOCKS[model.config.model_type])[0], model.config.model_type == "llama"
    norm, attention = (block.input_layernorm, block.self_attn) if llama else (block.ln_1, block.attn)
    with torch.no_grad():
        x = norm(at["resid_pre.0"])
    torch.testing.assert_close(at["attn_in.0"], x)
    b_q, b_k, b_v = [torch.zeros(16)] * 3 if llama else attention.c_attn.bias.detach().chunk(3)
    q, k = x @ weight(model, 0, "W_Q").T + b_q, x @ weight(model, 0, "W_K").T + b_k
    v = x @ weight(model, 0, "W_V").T + b_v
    b_o = 0.0 if llama else attention.c_proj.bias.detach()
    if llama:  # rotary embeddings come between, and leave the first token alone
        torch.testing.assert_close(q, attention.q_proj(x).detach())
        torch.testing.assert_close(k, attention.k_proj(x).detach())
        torch.testing.assert_close(at["z.0"][:, 0], v[:, 0])
        torch.testing.assert_close(at["attn_out.0"][:, 0], v[:, 0] @ weight(model, 0, "W_O").T + b_o)
    else:
        heads = [t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k, v)]
        mixed = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(-2)
        torch.testing.assert_close(at["z.0"], mixed)
        torch.testing.assert_close(at["attn_out.0"], mixed @ weight(model, 0, "W_O").T + b_o)


def test_every_weight_is_there_in_the_shape_out_by_in(model: PreTrainedModel) -> None:
    gate = ("W_gate",) if model.config.model_type == "llama" else ()
    assert weight_names(model) == (*ATTENTION, *gate, *MLP)
    for name in weight_names(model):
        assert weight(model, 1, name).shape == SHAPES[name]


def test_the_weights_of_a_layer_are_all_its_matrices(model: PreTrainedModel) -> None:
    matrices = [p for p in model.get_submodule(BLOCKS[model.config.model_type])[1].parameters() if p.ndim == 2]
    assert sum(weight(model, 1, name).numel() for name in weight_names(model)) == sum(p.numel() for p in matrices)


def test_weights_are_views_of_the_parameters(build: Callable[..., PreTrainedModel]) -> None:
    for architecture in ("gpt2", "llama"):
        model = build(architecture, layers=1)
        for name in weight_names(model):
            view = weight(model, 0, name)
            assert not view.requires_grad
            view.fill_(7.0)
        blocks = model.get_submodule(BLOCKS[architecture])
        assert all((p == 7).all() for p in blocks.parameters() if p.ndim == 2)
