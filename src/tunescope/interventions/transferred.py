"""Another fine-tune's dW on top of a model's own, in every parameter."""

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from tunescope.config import NoSettings
from tunescope.interventions.base import Bench, Intervention, intervention
from tunescope.interventions.weights import with_parameters
from tunescope.models.weights import Weights
from tunescope.records.names import EVERYWHERE


@intervention("transferred")
def transferred(bench: Bench, settings: NoSettings) -> Iterator[Intervention]:
    for protocol, other in bench.others.items():
        change = partial(with_parameters, bench.model, bench.pair, partial(_joined, other))
        yield Intervention(f"with_{protocol}", None, EVERYWHERE, (change,))


def _joined(other: Weights, name: str, before: Tensor, after: Tensor) -> Tensor:
    return after.double() + (other.stored(name).to(before.device).double() - before.double())
