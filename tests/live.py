"""Weights of a model in memory, for tests that need no folder."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.models.sites import stored_name, within_stored
from tunescope.models.weights import require_finite


class LiveWeights:
    """Copies of a model's parameters as they are now; matrices are in float64.

    Raises:
        ValueError: a parameter is not finite.
    """

    def __init__(self, model: PreTrainedModel, label: str = "a model in memory") -> None:
        self.label, self.config = label, model.config
        self._parameters = {name: each.detach().clone() for name, each in model.named_parameters()}
        require_finite(model)

    def names(self) -> tuple[str, ...]:
        return tuple(self._parameters)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._parameters[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._parameters[name].dtype

    def stored(self, name: str) -> Tensor:
        return self._parameters[name]

    def matrix(self, layer: int, name: str) -> Tensor:
        return within_stored(self.config, name, self.stored(stored_name(self.config, layer, name))).double()
