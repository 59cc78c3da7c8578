"""Weights on disk, read one tensor at a time: no model is built, nothing is unpickled, memory holds what is asked."""

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from tunescope.models.checkpoint import CheckpointError, first_line, load_config, quiet, weight_files
from tunescope.models.families import FAMILIES
from tunescope.models.sites import matrix_names, stored_name, within_stored


class Shards:
    """The weight matrices of a model folder, of one safetensors file or several.

    Raises:
        CheckpointError: no such folder, a file is missing or cannot be read, weights are pickled, or there is no map of
            the architecture.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder; save or fetch the model first")
        self.folder = folder
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in weight_files(folder):
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 (no mapping)
                        self._files[name] = file
                        self.shapes[name] = tuple(opened.get_slice(name).get_shape())
            except FileNotFoundError as error:
                raise CheckpointError(f"{file}: no such file; fetch the model again") from error
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{file}: truncated or corrupt ({first_line(error)}); fetch the model again"
                ) from error
        with quiet():
            self.config: PreTrainedConfig = load_config(folder)
        if self.config.model_type not in FAMILIES:
            raise CheckpointError(
                f"{folder / 'config.json'}: no map of architecture {self.config.model_type!r}; "
                f"there is one for {', '.join(FAMILIES)}"
            )

    @property
    def layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def names(self) -> tuple[str, ...]:
        """Kinds of weight matrix that every layer has."""
        return matrix_names(self.config)

    def stored(self, layer: int, name: str) -> str:
        """The tensor that holds a matrix; some checkpoints leave out the first part of its name.

        Raises:
            CheckpointError: there is none.
        """
        whole = stored_name(self.config, layer, name)
        for known in (whole, whole.partition(".")[2]):
            if known in self._files:
                return known
        raise CheckpointError(f"{self.folder}: tensor {whole} is missing; fetch the model again")

    def matrix(self, layer: int, name: str) -> Float[Tensor, "out in"]:
        """W of y = W a, in float32 or, where it is kept so, float64.

        Raises:
            CheckpointError: it is missing, or has NaN or inf.
        """
        known = self.stored(layer, name)
        with safe_open(self._files[known], framework="pt") as opened:
            matrix = within_stored(self.config, name, opened.get_tensor(known))
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        if not matrix.isfinite().all():
            raise CheckpointError(f"{self._files[known]}: tensor {known} has NaN or inf")
        return matrix


def require_pair(base: Shards, tuned: Shards) -> None:
    """Refuse two folders that are no base and fine-tune of one architecture, size by size.

    Raises:
        CheckpointError: architecture, layers or the shape of a matrix differ; the first that does is named.
    """
    where = f"{base.folder} and {tuned.folder}"
    if base.config.model_type != tuned.config.model_type:
        raise CheckpointError(f"{where}: {base.config.model_type} and {tuned.config.model_type}, two architectures")
    if base.layers != tuned.layers:
        raise CheckpointError(f"{where}: {base.layers} and {tuned.layers} layers")
    for layer in range(base.layers):
        for name in base.names:
            shapes = [each.shapes[each.stored(layer, name)] for each in (base, tuned)]
            if shapes[0] != shapes[1]:
                raise CheckpointError(
                    f"{where}: {name} of layer {layer} is {list(shapes[0])} in one and {list(shapes[1])} in the other"
                )
