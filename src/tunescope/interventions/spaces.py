"""Of dW of W_in only what writes into one space: the left null space of W, its column space, or a random one."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from tunescope.config import NoSettings
from tunescope.interventions.base import Bench, Intervention, intervention
from tunescope.interventions.weights import Delta, Matrix, onto, with_delta
from tunescope.probes import controls
from tunescope.probes.subspaces import column_space
from tunescope.records.names import W_IN
from tunescope.rng import Stream


@intervention("spaces")
def spaces(bench: Bench, settings: NoSettings) -> Iterator[Intervention]:
    def change(name: str, *kept: Callable[[Delta], Matrix]) -> Intervention:
        makes = tuple(partial(with_delta, bench.model, bench.pair, each, names=(W_IN,)) for each in kept)
        return Intervention(name, None, W_IN, makes)

    yield change("in_null_space", in_null_space)
    yield change("in_column_space", in_column_space)
    draws = [bench.stream("in_random_space", i) for i in range(bench.draws)]
    yield change("in_random_space", *(partial(in_random_space, stream) for stream in draws))


def in_null_space(delta: Delta) -> Matrix:
    return delta.matrix - in_column_space(delta)


def in_column_space(delta: Delta) -> Matrix:
    return onto(column_space(delta.w), delta.matrix)


def in_random_space(stream: Stream, delta: Delta) -> Matrix:
    """The control of `in_null_space`: a random space of as many dimensions, what is written there made as large."""
    columns = column_space(delta.w)
    size, rank = columns.shape
    space = controls.haar(size, size - rank, stream(delta.layer), delta.matrix.device)
    part, wanted = onto(space, delta.matrix), delta.matrix - onto(columns, delta.matrix)
    return part * (wanted.norm() / part.norm().clamp(min=torch.finfo(part.dtype).tiny))
