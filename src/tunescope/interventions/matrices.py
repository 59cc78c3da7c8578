"""The base with dW of the blocks' matrices alone; and with the same dW in random directions."""

from collections.abc import Iterator
from functools import partial

from tunescope.config import NoSettings
from tunescope.interventions.base import Bench, Intervention, intervention
from tunescope.interventions.weights import Delta, Matrix, with_delta
from tunescope.probes import controls
from tunescope.probes.subspaces import Svd
from tunescope.rng import Stream


@intervention("matrices")
def matrices(bench: Bench, settings: NoSettings) -> Iterator[Intervention]:
    make = partial(with_delta, bench.model, bench.pair, on_base=True)
    yield Intervention("matrices", None, "blocks", (partial(make, lambda delta: delta.matrix),))
    draws = [bench.stream("rotated", i) for i in range(bench.draws)]
    yield Intervention("rotated", None, "blocks", tuple(partial(make, partial(_rotated, draw)) for draw in draws))


def _rotated(stream: Stream, delta: Delta) -> Matrix:
    """Singular values kept, directions drawn."""
    if not delta.matrix.any():
        return delta.matrix
    return controls.rotated(Svd.through_gram(delta.matrix), stream(delta.layer, delta.name)).matrix
