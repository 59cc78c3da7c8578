"""Where each architecture keeps its activations and weights: one map of names, the same for every model.

A site is a place in the forward pass, b x t x width. Within a layer, in order of computation:

    resid_pre   the residual stream as the layer finds it
    attn_in     what queries, keys and values are made of: resid_pre after the first norm
    z           the input of W_O: every head's mixture of values, side by side
    attn_out    what attention adds to it
    resid_mid   = resid_pre + attn_out
    mlp_in      a, the input of the MLP's first matrix: resid_mid after the second norm
    mlp_pre     W_in a (plus the bias, where there is one)
    mlp_post    the input of W_out: act(mlp_pre); in a gated MLP act(W_gate a) * mlp_pre
    mlp_out     what the MLP adds to the residual stream
    resid_post  = resid_mid + mlp_out

and before the first layer `embed`, the output of the token embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

LAYER_SITES = (
    "resid_pre",
    "attn_in",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_pre",
    "mlp_post",
    "mlp_out",
    "resid_post",
)
MODEL_SITES = ("embed",)

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Site:
    """One activation of a model, written `mlp_in.3` or `embed`.

    Attributes:
        layer: counts from 0; None for the sites that belong to no layer.

    Raises:
        ValueError: unknown name, or a layer where there must be none or the other way round.
    """

    layer: int | None
    name: str

    def __post_init__(self) -> None:
        if self.name not in LAYER_SITES + MODEL_SITES:
            raise ValueError(f"unknown site {self.name!r}; there are {', '.join(LAYER_SITES + MODEL_SITES)}")
        if self.name in MODEL_SITES and self.layer is not None:
            raise ValueError(f"site {self.name!r} belongs to no layer, got layer {self.layer}")
        if self.name in LAYER_SITES and (self.layer is None or self.layer < 0):
            raise ValueError(f"site {self.name!r} needs a layer, counted from 0, as in {self.name}.0; got {self.layer}")

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """The site that `str` wrote."""
        name, dot, layer = text.partition(".")
        if dot and not (layer.isascii() and layer.isdecimal()):
            raise ValueError(f"site {text!r}: what follows the dot must be the number of a layer, as in {name}.0")
        return cls(int(layer) if dot else None, name)


class Place(NamedTuple):
    """Where a site is to be read: the first input, or the (first) output, of a module."""

    module: nn.Module
    side: Side


class _Matrix(NamedTuple):
    """A weight matrix: one of the equal parts, along the outputs, of a module's weight; it acts on the site `reads`."""

    reads: str
    module: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class _Family:
    """One architecture. Modules of `sites` and `weights` are named from the block on; "" is the block itself."""

    embed: str
    blocks: str
    sites: Mapping[str, tuple[str, Side]]
    weights: Mapping[str, _Matrix]


_FAMILIES: Mapping[str, _Family] = {
    "gpt2": _Family(
        embed="transformer.wte",
        blocks="transformer.h",
        sites={
            "resid_pre": ("", "input"),
            "attn_in": ("ln_1", "output"),
            "z": ("attn.c_proj", "input"),
            "attn_out": ("attn", "output"),
            "resid_mid": ("ln_2", "input"),
            "mlp_in": ("mlp", "input"),
            "mlp_pre": ("mlp.c_fc", "output"),
            "mlp_post": ("mlp.c_proj", "input"),
            "mlp_out": ("mlp", "output"),
            "resid_post": ("", "output"),
        },
        weights={
            "W_Q": _Matrix("attn_in", "attn.c_attn", 0, 3),
            "W_K": _Matrix("attn_in", "attn.c_attn", 1, 3),
            "W_V": _Matrix("attn_in", "attn.c_attn", 2, 3),
            "W_O": _Matrix("z", "attn.c_proj"),
            "W_in": _Matrix("mlp_in", "mlp.c_fc"),
            "W_out": _Matrix("mlp_post", "mlp.c_proj"),
        },
    ),
    "llama": _Family(
        embed="model.embed_tokens",
        blocks="model.layers",
        sites={
            "resid_pre": ("", "input"),
            "attn_in": ("input_layernorm", "output"),
            "z": ("self_attn.o_proj", "input"),
            "attn_out": ("self_attn", "output"),
            "resid_mid": ("post_attention_layernorm", "input"),
            "mlp_in": ("mlp", "input"),
            "mlp_pre": ("mlp.up_proj", "output"),
            "mlp_post": ("mlp.down_proj", "input"),
            "mlp_out": ("mlp", "output"),
            "resid_post": ("", "output"),
        },
        weights={
            "W_Q": _Matrix("attn_in", "self_attn.q_proj"),
            "W_K": _Matrix("attn_in", "self_attn.k_proj"),
            "W_V": _Matrix("attn_in", "self_attn.v_proj"),
            "W_O": _Matrix("z", "self_attn.o_proj"),
            "W_gate": _Matrix("mlp_in", "mlp.gate_proj"),
            "W_in": _Matrix("mlp_in", "mlp.up_proj"),
            "W_out": _Matrix("mlp_post", "mlp.down_proj"),
        },
    ),
}


def layer_count(model: PreTrainedModel) -> int:
    """How many layers the model has."""
    return sum(1 for _ in model.get_submodule(_family(model).blocks).children())


def weight_names(model: PreTrainedModel) -> tuple[str, ...]:
    """The weight matrices of every layer, as `weight` takes them."""
    return tuple(_family(model).weights)


def locate(model: PreTrainedModel, site: Site) -> Place:
    """Where this model computes the site.

    Raises:
        ValueError: the model has no such layer, or there is no map of its architecture.
    """
    family = _family(model)
    if site.layer is None:
        return Place(model.get_submodule(family.embed), "output")
    path, side = family.sites[site.name]
    return Place(_submodule(model, site.layer, path), side)


def weight(model: PreTrainedModel, layer: int, name: str) -> Float[Tensor, "out in"]:
    """The matrix W of y = W a, however the module stores it.

    It shares memory with the parameter, so that writing to it changes the model, and is outside the autograd graph.

    Raises:
        ValueError: the model has no such layer or matrix, or there is no map of its architecture.
    """
    _, path, part, parts = _matrix(model, name)
    module = _submodule(model, layer, path)
    stored = module.get_parameter("weight").detach()
    # Conv1D, in GPT-2, computes a @ weight.
    matrix = stored.T if isinstance(module, Conv1D) else stored
    return matrix.chunk(parts)[part]


def input_site(model: PreTrainedModel, layer: int, name: str) -> Site:
    """The site of a in y = W a.

    Raises:
        ValueError: as `weight`, but for the layer.
    """
    return Site(layer, _matrix(model, name).reads)


def _matrix(model: PreTrainedModel, name: str) -> _Matrix:
    weights = _family(model).weights
    if name not in weights:
        architecture = model.config.model_type
        raise ValueError(f"unknown weight {name!r}; a layer of {architecture} has {', '.join(weights)}")
    return weights[name]


def _family(model: PreTrainedModel) -> _Family:
    architecture = model.config.model_type
    if architecture not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise ValueError(f"no map of sites for architecture {architecture!r}; there is one for {known}")
    return _FAMILIES[architecture]


def _submodule(model: PreTrainedModel, layer: int, path: str) -> nn.Module:
    layers = layer_count(model)
    if not 0 <= layer < layers:
        raise ValueError(f"no layer {layer}; this model's layers are 0 .. {layers - 1}")
    return model.get_submodule(f"{_family(model).blocks}.{layer}").get_submodule(path)
