"""Weights on disk, read one tensor at a time: no model is built, nothing is unpickled, memory holds what is asked."""

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from tunescope.models.checkpoint import CheckpointError, first_line, load_config, quiet, read_json, weight_files
from tunescope.models.families import FAMILIES
from tunescope.models.sites import matrix_names, stored_name, within_stored

Matrix = Float[Tensor, "out in"]
ADAPTER = "adapter_config.json"  # by which the folder of an adapter is known


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
            found = shapes_in(file)
            self.shapes |= found
            self._files |= dict.fromkeys(found, file)
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

    @property
    def transposed(self) -> bool:
        """Whether tensors hold the transpose of W."""
        return FAMILIES[self.config.model_type].transposed

    def delta(self, layer: int, name: str, w: Matrix) -> Matrix:
        """dW, from the base's W, of this fine-tune. Raises as `matrix`."""
        return self.matrix(layer, name) - w

    def matrix(self, layer: int, name: str) -> Matrix:
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


class Adapter:
    """A LoRA adapter (Hu et al. 2021), whose matrices are kept as factors; they are not merged into those of its base.

    Raises:
        CheckpointError: a file is missing or cannot be read, weights are pickled, the adapter is no plain LoRA, or
            changes something that is no weight matrix of a layer.
    """

    def __init__(self, folder: Path, base: Shards) -> None:
        self.folder, self._base = folder, base
        config, self._file = folder / ADAPTER, folder / "adapter_model.safetensors"
        told = read_json(config)
        odd = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if told.get(key)]
        if str(told.get("peft_type", "")).upper() != "LORA" or odd:
            kind = f"{told.get('peft_type', 'none')} with {', '.join(odd)}" if odd else told.get("peft_type", "none")
            raise CheckpointError(f"{config}: adapter of type {kind}; only plain LoRA is read, merge others first")
        rank, alpha = told.get("r"), told.get("lora_alpha")
        if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float)):
            raise CheckpointError(f"{config}: r {rank}, lora_alpha {alpha}: must be a rank above 0 and a number")
        self._scale = alpha / (rank**0.5 if told.get("use_rslora") else rank)
        if not self._file.exists() and (pickled := folder / "adapter_model.bin").exists():
            raise CheckpointError(f"{pickled}: pickled weights, which can run code, are not read; save as safetensors")
        self._shapes = shapes_in(self._file)
        wanted = {
            f"{self._module(layer, name)}.lora_{factor}.weight"
            for layer in range(base.layers)
            for name in base.names
            for factor in "AB"
        }
        if strange := sorted(self._shapes.keys() - wanted):
            raise CheckpointError(f"{self._file}: tensor {strange[0]} is no factor of a matrix of the base's layers")

    def delta(self, layer: int, name: str, w: Matrix) -> Matrix:
        """dW: scale B A, zero for a matrix that the adapter leaves alone.

        Raises:
            CheckpointError: a factor is missing or has NaN or inf, or they are those of a matrix of another shape.
        """
        module = self._module(layer, name)
        factors = [f"{module}.lora_{factor}.weight" for factor in "BA"]
        missing = [factor for factor in factors if factor not in self._shapes]
        if len(missing) == 2:
            return torch.zeros_like(w)
        if missing:
            raise CheckpointError(f"{self._file}: tensor {missing[0]} is missing; fetch the adapter again")
        with safe_open(self._file, framework="pt") as opened:
            b, a = (opened.get_tensor(factor).to(w) for factor in factors)
        # As y = W a has it, whichever way the base keeps W; of matrices that the base keeps as one, for all of them.
        whole = self._scale * b @ a
        found = within_stored(self._base.config, name, whole.T if self._base.transposed else whole)
        if found.shape != w.shape or not found.isfinite().all():
            raise CheckpointError(
                f"{self._file}: {module} changes by {list(found.shape)} where the base has {list(w.shape)}, or has NaN"
            )
        return found

    def _module(self, layer: int, name: str) -> str:
        return f"base_model.model.{stored_name(self._base.config, layer, name).removesuffix('.weight')}"


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a safetensors file, by name.

    Raises:
        CheckpointError: no such file, or it cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: no such file; fetch the model again") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: truncated or corrupt ({first_line(error)}); fetch the model again") from error


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
