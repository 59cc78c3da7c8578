"""Models between, beyond and beside a base model and the one fine-tuned from it: what if dW were another?

Every function takes the two models and gives a new one, the tuned model's copy with other weights; the two are left as
they are. Matrices are those of the blocks, as `models.sites.weight` names them. What is computed is computed in float64
and rounded once, and a change of nothing, or of all, gives the base or the tuned model bit for bit.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.errors import InputError
from tunescope.models.sites import Site, input_site, layer_count, weight, weight_names
from tunescope.probes import controls
from tunescope.probes.subspaces import Svd, column_space
from tunescope.rng import Stream

MLP = ("W_gate", "W_in", "W_out")
Matrix = Float[Tensor, "out in"]
Basis = Float[Tensor, "size k"]


class _Delta(NamedTuple):
    """dW of one matrix, in float64, what it changes, and where."""

    matrix: Matrix
    w: Matrix
    layer: int
    name: str


def scaled(base: PreTrainedModel, tuned: PreTrainedModel, alpha: float) -> PreTrainedModel:
    """W + alpha dW in every parameter (Jain et al. 2024, sec. 6; Ilharco et al. 2023): 0 the base, 1 the tuned model.

    Raises:
        InputError: alpha is not finite, or the models do not match.
    """
    _require_finite(alpha)
    _require_match(base, tuned)
    model = deepcopy(tuned)
    if alpha == 1:
        return model
    before = dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            w = before[name].double()
            parameter.copy_(w + alpha * (parameter.double() - w))
    return model


def scaled_in(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    alpha: float,
    names: Iterable[str] = MLP,
    layers: Iterable[int] | None = None,
) -> PreTrainedModel:
    """W + alpha dW in some matrices alone, of some layers (all, if None); everything else is the tuned model's.

    Raises:
        InputError: as `scaled`, or a matrix or layer that the model does not have.
    """
    _require_finite(alpha)
    known = tuple(name for name in names if name in weight_names(base))
    chosen = range(layer_count(base)) if layers is None else list(layers)
    if not known or not all(0 <= layer < layer_count(base) for layer in chosen):
        raise InputError(
            f"matrices {list(names)}, layers {list(chosen)}: this model has {', '.join(weight_names(base))} "
            f"in layers 0 .. {layer_count(base) - 1}"
        )
    return _with_delta(
        base, tuned, lambda delta: alpha * delta.matrix, names=known, layers=chosen, whole=lambda _: alpha == 1
    )


def truncated(base: PreTrainedModel, tuned: PreTrainedModel, rank: int) -> PreTrainedModel:
    """dW of every matrix of the blocks cut to its largest `rank` singular values; everything else is the tuned model's.

    Raises:
        InputError: a rank below 0, or models that do not match.
    """
    if rank < 0:
        raise InputError(f"rank: {rank} must be at least 0")

    def cut(delta: _Delta) -> Matrix:
        svd = Svd.of(delta.matrix)
        return (svd.u[:, :rank] * svd.s[:rank]) @ svd.v[:, :rank].mT

    return _with_delta(base, tuned, cut, whole=lambda delta: rank >= min(delta.matrix.shape))


def in_null_space(base: PreTrainedModel, tuned: PreTrainedModel) -> PreTrainedModel:
    """Of dW of W_in only what writes into N(W^T); everything else is the tuned model's."""

    def kept(delta: _Delta) -> Matrix:
        return delta.matrix - _onto(column_space(delta.w), delta.matrix)

    return _with_delta(base, tuned, kept, names=("W_in",))


def in_column_space(base: PreTrainedModel, tuned: PreTrainedModel) -> PreTrainedModel:
    """Of dW of W_in only what writes into C(W); everything else is the tuned model's."""
    return _with_delta(base, tuned, lambda delta: _onto(column_space(delta.w), delta.matrix), names=("W_in",))


def in_random_space(base: PreTrainedModel, tuned: PreTrainedModel, stream: Stream) -> PreTrainedModel:
    """The control of `in_null_space`: what writes into a random space of as many dimensions, made as large."""

    def kept(delta: _Delta) -> Matrix:
        columns = column_space(delta.w)
        size, rank = columns.shape
        space = controls.haar(size, size - rank, stream(delta.layer), delta.matrix.device)
        part, wanted = _onto(space, delta.matrix), delta.matrix - _onto(columns, delta.matrix)
        return part * (wanted.norm() / part.norm().clamp(min=torch.finfo(part.dtype).tiny))

    return _with_delta(base, tuned, kept, names=("W_in",))


def reading(base: PreTrainedModel, tuned: PreTrainedModel, spaces: Mapping[Site, Basis]) -> PreTrainedModel:
    """The base with what of dW of its matrices reads from some directions of their inputs, and nothing else of dW.

    Args:
        spaces: orthonormal directions, by the site that a matrix acts on (`models.sites.input_site`).
    """
    return _with_delta(base, tuned, lambda delta: _read(base, delta, spaces), rest=base)


def not_reading(base: PreTrainedModel, tuned: PreTrainedModel, spaces: Mapping[Site, Basis]) -> PreTrainedModel:
    """The tuned model with dW of every matrix kept off some directions of its input; see `reading`."""
    return _with_delta(base, tuned, lambda delta: delta.matrix - _read(base, delta, spaces))


def matrices(base: PreTrainedModel, tuned: PreTrainedModel) -> PreTrainedModel:
    """The base with dW of the blocks' matrices, and nothing else of the tuned model."""
    return _with_delta(base, tuned, lambda delta: delta.matrix, rest=base)


def rotated(base: PreTrainedModel, tuned: PreTrainedModel, stream: Stream) -> PreTrainedModel:
    """The control of `matrices`: dW of every matrix with singular values kept and directions drawn."""

    def turned(delta: _Delta) -> Matrix:
        return controls.rotated(Svd.of(delta.matrix), stream(delta.layer, delta.name)).matrix

    return _with_delta(base, tuned, turned, rest=base)


def transferred(base: PreTrainedModel, tuned: PreTrainedModel, other: PreTrainedModel) -> PreTrainedModel:
    """The tuned model with another fine-tune's dW on top of its own, in every parameter.

    Raises:
        InputError: models that do not match.
    """
    _require_match(base, tuned)
    _require_match(base, other)
    model = deepcopy(tuned)
    before, more = dict(base.named_parameters()), dict(other.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameter.double() + (more[name].double() - before[name].double()))
    return model


def _onto(basis: Basis, delta: Matrix) -> Matrix:
    """What dW writes into the span of a basis."""
    return basis @ (basis.mT @ delta)


def _read(base: PreTrainedModel, delta: _Delta, spaces: Mapping[Site, Basis]) -> Matrix:
    basis = spaces[input_site(base, delta.layer, delta.name)].to(delta.matrix)
    return (delta.matrix @ basis) @ basis.mT


def _with_delta(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    change: Callable[[_Delta], Matrix],
    *,
    names: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    rest: PreTrainedModel | None = None,
    whole: Callable[[_Delta], bool] = lambda _: False,
) -> PreTrainedModel:
    """A model whose matrices are W + change(dW).

    Args:
        names, layers: which matrices; all, if None.
        rest: gives all other parameters; the tuned model, if None.
        whole: where the change changes nothing, so that the tuned matrix can stay as it is to the bit.
    """
    _require_match(base, tuned)
    model = deepcopy(rest or tuned)
    chosen = range(layer_count(base)) if layers is None else layers
    for layer, name in product(chosen, names or weight_names(base)):
        before = weight(base, layer, name).double()
        delta = _Delta(weight(tuned, layer, name).double() - before, before, layer, name)
        if not whole(delta):
            weight(model, layer, name).copy_(before + change(delta))
    return model


def _require_finite(alpha: float) -> None:
    """Raises InputError."""
    if not math.isfinite(alpha):
        raise InputError(f"alpha: {alpha} must be a finite number")


def _require_match(base: PreTrainedModel, tuned: PreTrainedModel) -> None:
    """Raises InputError."""
    shapes = [{name: list(p.shape) for name, p in model.named_parameters()} for model in (base, tuned)]
    if shapes[0] != shapes[1]:
        name = next(n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n))
        raise InputError(
            f"{name}: {shapes[0].get(name, 'absent')} in the base, {shapes[1].get(name, 'absent')} in the other; "
            "the two must be of one architecture, size and vocabulary"
        )
