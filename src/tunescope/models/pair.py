"""A base and its fine-tune as the matrices of both, wherever these are kept."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.models.shards import Adapter, Shards
from tunescope.models.sites import layer_count, weight, weight_names


@runtime_checkable
class Pair(Protocol):
    """Weight matrices before, and their changes."""

    @property
    def layers(self) -> int: ...

    @property
    def names(self) -> tuple[str, ...]:
        """Kinds of weight matrix that every layer has."""

    def matrices(self, layer: int, name: str) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out in"]]:
        """W of the base, and dW, the fine-tune's W less it."""


class LivePair:
    """Of two models in memory; matrices are in float64, as dW is a difference of nearly equal numbers.

    Raises:
        ValueError: a parameter is not finite, or the two differ in layers or in the shape of a matrix.
    """

    def __init__(self, base: PreTrainedModel, tuned: PreTrainedModel) -> None:
        self._base, self._tuned = base, tuned
        if layer_count(base) != layer_count(tuned):
            raise ValueError(f"layers: {layer_count(base)} in the base, {layer_count(tuned)} in the other")
        for model in (base, tuned):
            require_finite(model)
        for layer in range(self.layers):
            for name in self.names:
                shapes = [list(weight(model, layer, name).shape) for model in (base, tuned)]
                if shapes[0] != shapes[1]:
                    raise ValueError(f"{name} of layer {layer}: {shapes[0]} in the base, {shapes[1]} in the other")

    @property
    def layers(self) -> int:
        return layer_count(self._base)

    @property
    def names(self) -> tuple[str, ...]:
        return weight_names(self._base)

    def matrices(self, layer: int, name: str) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out in"]]:
        before, after = (weight(model, layer, name).double() for model in (self._base, self._tuned))
        return before, after - before


@dataclass(frozen=True)
class StoredPair:
    """Of two folders, read a matrix at a time; the fine-tune may be an adapter, which is not merged."""

    base: Shards
    tuned: Shards | Adapter

    @property
    def layers(self) -> int:
        return self.base.layers

    @property
    def names(self) -> tuple[str, ...]:
        return self.base.names

    def matrices(self, layer: int, name: str) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out in"]]:
        before = self.base.matrix(layer, name)
        return before, self.tuned.delta(layer, name, before)


def require_finite(model: PreTrainedModel) -> None:
    """Refuse a model from which no numbers can come.

    Raises:
        ValueError: a parameter is not finite; one of a weight matrix is named as that.
    """
    for layer in range(layer_count(model)):
        for name in weight_names(model):
            if not weight(model, layer, name).isfinite().all():
                raise ValueError(f"{name} of layer {layer}: has NaN or inf")
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"{name}: has NaN or inf")
