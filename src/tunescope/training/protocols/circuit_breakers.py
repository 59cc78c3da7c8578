"""Circuit breakers: representation rerouting (Zou et al. 2024). A loss on activations; it makes no refusals."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from tunescope.config import Config, Once, Rate
from tunescope.models.sites import Site, layer_count
from tunescope.training import losses
from tunescope.training.losses import PerPrompt
from tunescope.training.protocol import Step, protocol


class CircuitBreakers(Config):
    depths: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Once] = Field(
        (1 / 3, 2 / 3), min_length=1, description="after which shares of all layers activations are rerouted and kept"
    )
    retain_weight: Rate = Field(10.0, description="weight of keeping safe activations as they were")


@protocol("circuit_breakers", unsafe_share=0.5, reference="model", settings=CircuitBreakers)
def circuit_breakers(step: Step, settings: CircuitBreakers) -> PerPrompt:
    layers = reached(layer_count(step.policy), settings.depths)
    activations = step.activations(*(Site(layer, "resid_post") for layer in layers))
    return losses.circuit_breakers(*activations, step.safe, settings.retain_weight, step.progress)


def reached(layers: int, depths: Sequence[float]) -> list[int]:
    """The last layer of each share of all layers; each once."""
    return sorted({max(1, round(depth * layers)) - 1 for depth in depths})
