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

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from tunescope.models.families import FAMILIES, Family, Fused, Matrix, Side

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
    """Where a site is to be read: the first input, or the (first) output, of a module, or a part of its width."""

    module: nn.Module
    side: Side
    part: slice | None = None


def layer_count(model: PreTrainedModel) -> int:
    """How many layers the model has."""
    return sum(1 for _ in model.get_submodule(_family(model.config).blocks).children())


def spaced_layers(model: PreTrainedModel, most: int) -> list[int]:
    """All layers, or so many of them, evenly spaced from the first to the last."""
    layers = layer_count(model)
    found: list[int] = torch.linspace(0, layers - 1, min(layers, most)).round().int().tolist()
    return found


def weight_names(model: PreTrainedModel) -> tuple[str, ...]:
    """The weight matrices of every layer, as `weight` takes them."""
    return matrix_names(model.config)


def matrix_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """The same, of a model of which there is no more than a config."""
    return tuple(_family(config).weights)


def locate(model: PreTrainedModel, site: Site) -> Place:
    """Where this model computes the site.

    Raises:
        ValueError: the model has no such layer, or there is no map of its architecture.
    """
    family = _family(model.config)
    if site.layer is None:
        return Place(model.get_submodule(family.embed), "output")
    path, side, *fused = family.sites[site.name]
    return Place(_submodule(model, site.layer, path), side, *(_part(model.config, each) for each in fused))


def weight(model: PreTrainedModel, layer: int, name: str) -> Float[Tensor, "out in"]:
    """The matrix W of y = W a, however the module stores it.

    It shares memory with the parameter, so that writing to it changes the model, and is outside the autograd graph.

    Raises:
        ValueError: the model has no such layer or matrix, or there is no map of its architecture.
    """
    module = _submodule(model, layer, _matrix(model.config, name).module)
    return within_stored(model.config, name, module.get_parameter("weight").detach())


def stored_name(config: PreTrainedConfig, layer: int, name: str) -> str:
    """The parameter that holds a matrix, as checkpoints call it.

    Raises:
        ValueError: as `weight`, but for the layer.
    """
    return f"{_family(config).blocks}.{layer}.{_matrix(config, name).module}.weight"


def within_stored(
    config: PreTrainedConfig, name: str, stored: Float[Tensor, "rows columns"]
) -> Float[Tensor, "out in"]:
    """A matrix as a view of the parameter that holds it, by itself or with others, or as a @ weight takes it."""
    matrix = stored.T if _family(config).transposed else stored
    return matrix[own_outputs(config, name)]


def matrix_shape(config: PreTrainedConfig, name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
    """Outputs and inputs of a matrix, from the shape of the parameter that holds it."""
    rows, columns = stored[::-1] if _family(config).transposed else stored
    return len(range(*own_outputs(config, name).indices(rows))), columns


def input_site(model: PreTrainedModel, layer: int, name: str) -> Site:
    """The site of a in y = W a.

    Raises:
        ValueError: as `weight`, but for the layer.
    """
    return Site(layer, _matrix(model.config, name).reads)


def _matrix(config: PreTrainedConfig, name: str) -> Matrix:
    weights = _family(config).weights
    if name not in weights:
        architecture = config.model_type
        raise ValueError(f"unknown weight {name!r}; a layer of {architecture} has {', '.join(weights)}")
    return weights[name]


def own_outputs(config: PreTrainedConfig, name: str) -> slice:
    """Which outputs are this matrix's, of those of all that are kept as one with it."""
    fused = _matrix(config, name).fused
    return _part(config, fused) if fused else slice(None)


def fused_sizes(config: PreTrainedConfig, name: str) -> tuple[int, ...]:
    """Outputs of the matrices that are kept as one with this one, itself among them; empty if it is by itself."""
    fused = _matrix(config, name).fused
    return tuple(fused.sizes(config)) if fused else ()


def _part(config: PreTrainedConfig, fused: Fused) -> slice:
    sizes = fused.sizes(config)
    start = sum(sizes[: fused.which])
    return slice(start, start + sizes[fused.which])


def _family(config: PreTrainedConfig) -> Family:
    return FAMILIES[config.model_type]


def _submodule(model: PreTrainedModel, layer: int, path: str) -> nn.Module:
    layers = layer_count(model)
    if not 0 <= layer < layers:
        raise ValueError(f"no layer {layer}; this model's layers are 0 .. {layers - 1}")
    return model.get_submodule(f"{_family(model.config).blocks}.{layer}").get_submodule(path)
