"""The weights of a fine-tuned model changed in place, and put back: what if dW were another?

Changes are computed in float64 and rounded once; the weights come back as they are stored, bit for bit. A change of
nothing, or of all, gives the base's or the fine-tune's weights to the bit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.models.pair import Pair
from tunescope.models.sites import layer_count, weight_names
from tunescope.models.weights import replaced

MLP = ("W_gate", "W_in", "W_out")
Matrix = Float[Tensor, "out in"]
Basis = Float[Tensor, "size k"]
Changed = AbstractContextManager[PreTrainedModel]


@dataclass(frozen=True)
class Delta:
    """dW of one matrix, in float64, what it changes, and where."""

    matrix: Matrix
    w: Matrix
    layer: int
    name: str


def with_parameters(model: PreTrainedModel, pair: Pair, change: Callable[[str, Tensor, Tensor], Tensor]) -> Changed:
    """Inside the block every parameter is what `change` makes of its name and its values in base and fine-tune."""

    def new() -> Iterator[tuple[str, Tensor]]:
        for name, _ in model.named_parameters():
            before, after = (each.to(model.device) for each in pair.parameters(name))
            yield name, change(name, before, after)

    return replaced(model, new(), pair.after)


def with_delta(
    model: PreTrainedModel,
    pair: Pair,
    change: Callable[[Delta], Matrix | None],
    *,
    names: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    on_base: bool = False,
) -> Changed:
    """Inside the block the matrices are W + change(dW); None leaves one as it is in the fine-tune.

    Args:
        names, layers: which matrices; all, if None.
        on_base: all other parameters are the base's, not the fine-tune's.
    """

    def new() -> Iterator[tuple[str | tuple[int, str], Tensor]]:
        if on_base:
            yield from ((name, pair.parameters(name)[0]) for name, _ in model.named_parameters())
        for layer in range(layer_count(model)) if layers is None else layers:
            for name in weight_names(model):
                if names is None or name in names:
                    w, delta = (each.to(model.device).double() for each in pair.matrices(layer, name))
                    made = change(Delta(delta, w, layer, name))
                    if made is not None:
                        yield (layer, name), w + made

    return replaced(model, new(), pair.after)


def onto(basis: Basis, delta: Matrix) -> Matrix:
    """What dW writes into the span of a basis."""
    return basis @ (basis.mT @ delta)
