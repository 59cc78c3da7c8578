"""A base and its fine-tune as the weights of both, wherever these are kept."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tunescope.models.shards import ADAPTER, CheckpointError, plain
from tunescope.models.sites import matrix_names, matrix_shape, stored_name
from tunescope.models.weights import AdapterWeights, Parameter, StoredWeights, Weights, places


@dataclass(frozen=True)
class Pair:
    """Weights before, and after.

    Raises:
        CheckpointError: the two are no base and fine-tune of one architecture, matrix by matrix.
    """

    before: Weights
    after: Weights

    def __post_init__(self) -> None:
        require_match(self.before, self.after)

    @property
    def layers(self) -> int:
        return int(self.before.config.num_hidden_layers)

    @property
    def names(self) -> tuple[str, ...]:
        """Kinds of weight matrix that every layer has."""
        return matrix_names(self.before.config)

    def matrices(self, layer: int, name: str) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out in"]]:
        """W of the base, and dW, the fine-tune's W less it; of an adapter of this base exactly its own.

        Raises:
            CheckpointError: one cannot be read, or is not finite.
        """
        w = self.before.matrix(layer, name)
        if isinstance(self.after, AdapterWeights) and self.after.base is self.before:
            return w, self.after.delta(layer, name, w)
        return w, self.after.matrix(layer, name).to(w.device) - w

    def parameters(self, name: str) -> tuple[Parameter, Parameter]:
        """A parameter before and after, as they are stored.

        Raises:
            CheckpointError: one cannot be read, or their shapes differ.
        """
        _require_same(self.before, self.after, name, self.before.shape(name), self.after.shape(name))
        return self.before.stored(name), self.after.stored(name)


def open_pair(base: Path, tuned: Path) -> Pair:
    """The weights of two folders; the second may be that of a LoRA adapter.

    Raises:
        CheckpointError: one cannot be read, or the two do not match.
    """
    before = StoredWeights(base)
    adapter = os.path.exists(tuned / ADAPTER)
    return Pair(before, AdapterWeights(before, tuned) if adapter else StoredWeights(tuned))


def require_match(before: Weights, after: Weights, *, every: bool = False) -> None:
    """Refuse two that are no base and fine-tune of one architecture, size by size.

    Args:
        every: all parameters must match, not only the weight matrices of the layers. Fine-tunes may have more tokens.

    Raises:
        CheckpointError: architecture, layers or a shape differ; the first that does is named.
    """
    one, other = before.config, after.config
    where = f"{plain(before.label, 160)} and {plain(after.label, 160)}"
    if one.model_type != other.model_type:
        raise CheckpointError(f"{where}: {one.model_type} and {other.model_type}, two architectures")
    if one.num_hidden_layers != other.num_hidden_layers:
        raise CheckpointError(f"{where}: {one.num_hidden_layers} and {other.num_hidden_layers} layers")
    for layer, name in places(before):
        shapes = [
            matrix_shape(each.config, name, each.shape(stored_name(each.config, layer, name)))
            for each in (before, after)
        ]
        _require_same(before, after, f"{name} of layer {layer}", *shapes)
    if every:
        if odd := sorted(set(before.names()) ^ set(after.names())):
            raise CheckpointError(f"{where}: only one has parameter {plain(odd[0])}")
        for name in before.names():
            _require_same(before, after, name, before.shape(name), after.shape(name))


def _require_same(before: Weights, after: Weights, what: str, one: tuple[int, ...], other: tuple[int, ...]) -> None:
    if one != other:
        raise CheckpointError(
            f"{plain(before.label, 160)} and {plain(after.label, 160)}: "
            f"{plain(what)} is {list(one)} in one and {list(other)} in the other"
        )


def matches(pair: Pair) -> bool:
    """Whether all parameters of the two have the same names and shapes, embeddings included."""
    try:
        require_match(pair.before, pair.after, every=True)
    except CheckpointError:
        return False
    return True


def changed_elsewhere(before: Weights, after: Weights) -> list[str]:
    """Parameters that differ and are no weight matrix of a layer: embeddings, norms, biases, the head.

    Where types differ, both are rounded to the coarser one first.

    Raises:
        CheckpointError: one cannot be read.
    """
    if isinstance(after, AdapterWeights) and after.base is before:
        return []
    matrices = {stored_name(before.config, *place) for place in places(before)}
    shared = set(after.names())
    rest = [name for name in before.names() if name not in matrices]
    lone = [name for name in after.names() if name not in matrices and name not in set(before.names())]
    return [name for name in rest if name not in shared or not _equal(before.stored(name), after.stored(name))] + lone


def rounding(before: Weights, after: Weights) -> str | None:
    """A caution where the types of the two differ, so that dW has rounding errors in it, or nothing else.

    Raises:
        CheckpointError: one cannot be read.
    """
    if isinstance(after, AdapterWeights) and after.base is before:
        return None
    names = dict.fromkeys(stored_name(before.config, *place) for place in places(before))
    unlike = [name for name in names if before.dtype(name) != after.dtype(name)]
    if not unlike:
        return None
    one, other = (str(each.dtype(unlike[0])).removeprefix("torch.") for each in (before, after))
    if all(_equal(before.stored(name), after.stored(name)) for name in names):
        return (
            f"The base is stored in {one} and the fine-tune in {other}, and apart from rounding they are equal: "
            "all of dW is rounding error. Compare models that are stored in one type."
        )
    return (
        f"The base is stored in {one} and the fine-tune in {other}: dW has the rounding errors of the coarser type "
        "in it, which are of full rank. Compare models that are stored in one type."
    )


def _equal(one: Parameter, other: Parameter) -> bool:
    """Whether two tensors are equal in the coarser of their types."""
    if one.dtype != other.dtype and one.is_floating_point() and other.is_floating_point():
        coarser = max(one.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        one, other = one.to(coarser), other.to(coarser)
    return torch.equal(one, other.to(one.device))
