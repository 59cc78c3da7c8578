"""W + alpha dW (Jain et al. 2024, sec. 6; Ilharco et al. 2023): in every parameter, and in parts of the MLPs alone."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated

from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import Config, Once
from tunescope.interventions.base import Bench, Intervention, intervention
from tunescope.interventions.weights import MLP, Changed, with_delta, with_parameters
from tunescope.models.pair import Pair
from tunescope.models.sites import spaced_layers
from tunescope.records.names import EVERYWHERE, W_IN

WITHOUT, TWICE = 0.0, 2.0  # values of alpha for a part of the weights


class Scaled(Config):
    alphas: Annotated[tuple[Annotated[float, Field(ge=-10, le=10)], ...], Once] = Field(
        (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0), min_length=1, description="values of alpha, every parameter"
    )
    layers: int = Field(8, ge=0, description="at most so many layers, evenly spaced, whose MLP alone is changed")


@intervention("scaled", settings=Scaled, control=True)
def scaled(bench: Bench, settings: Scaled) -> Iterator[Intervention]:
    for alpha in settings.alphas:
        yield Intervention("scaled", alpha, EVERYWHERE, (partial(with_all_scaled, bench.model, bench.pair, alpha),))
    scopes: dict[str, tuple[tuple[str, ...], list[int] | None]] = {"mlp": (MLP, None), W_IN: ((W_IN,), None)}
    scopes |= {f"mlp.{layer}": (MLP, [layer]) for layer in spaced_layers(bench.model, settings.layers)}
    for scope, (names, layers) in scopes.items():
        for alpha in WITHOUT, TWICE:
            yield Intervention("scaled", alpha, scope, (partial(with_matrices_scaled, bench, alpha, names, layers),))


def with_all_scaled(model: PreTrainedModel, pair: Pair, alpha: float) -> Changed:
    """Inside the block every parameter is W + alpha dW."""
    return with_parameters(model, pair, partial(_between, alpha))


def with_matrices_scaled(
    bench: Bench, alpha: float, names: Sequence[str], layers: Sequence[int] | None = None
) -> Changed:
    """The same of these matrices, of these layers or of all; all else is the fine-tuned model's."""
    return with_delta(bench.model, bench.pair, lambda delta: alpha * delta.matrix, names=names, layers=layers)


def _between(alpha: float, name: str, before: Tensor, after: Tensor) -> Tensor:
    if alpha == 1:
        return after
    w = before.double()
    return w + alpha * (after.double() - w)
