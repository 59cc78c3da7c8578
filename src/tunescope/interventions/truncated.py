"""dW of every matrix of the blocks cut to its largest singular values."""

from collections.abc import Iterator
from functools import partial
from typing import Annotated

from pydantic import Field

from tunescope.config import Config, Once, Positive
from tunescope.interventions.base import Bench, Intervention, intervention
from tunescope.interventions.weights import Delta, Matrix, with_delta
from tunescope.probes.subspaces import Svd


class Truncated(Config):
    ranks: Annotated[tuple[Positive, ...], Once] = Field(
        (1, 2, 4, 8, 16), min_length=1, description="singular values of dW that are kept"
    )


@intervention("truncated", settings=Truncated)
def truncated(bench: Bench, settings: Truncated) -> Iterator[Intervention]:
    for rank in settings.ranks:
        yield Intervention(
            "truncated", rank, "blocks", (partial(with_delta, bench.model, bench.pair, partial(_cut, rank)),)
        )


def _cut(rank: int, delta: Delta) -> Matrix | None:
    if rank >= min(delta.matrix.shape):
        return None
    svd = Svd.through_gram(delta.matrix)
    return (svd.u[:, :rank] * svd.s[:rank]) @ svd.v[:, :rank].mT
