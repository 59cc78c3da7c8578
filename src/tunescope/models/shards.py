"""Weights on disk, read one tensor at a time: no model is built, nothing is unpickled, memory holds what is asked."""

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from tunescope.models.checkpoint import (
    ADAPTER,
    CheckpointError,
    load_config,
    quiet,
    read_json,
    tensors_in,
    weight_files,
)
from tunescope.models.families import FAMILIES
from tunescope.models.sites import fused_sizes, matrix_names, own_outputs, stored_name, within_stored

Matrix = Float[Tensor, "out in"]
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of the types that hold numbers as they are

# Settings of an adapter with which dW is not scale B A, or not all that changes.
_NOT_PLAIN = (
    "use_dora",
    "use_qalora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
)
_INITS = (True, False, "gaussian", "orthogonal", "eva")  # that leave W as it is


class Shards:
    """The weight matrices of a model folder, of one safetensors file or several.

    Raises:
        CheckpointError: no such folder, a file is missing or cannot be read, weights are pickled, or there is no map of
            the architecture.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        if (folder / ADAPTER).exists():
            raise CheckpointError(f"{folder}: is an adapter; the base must be a whole model")
        kinds: dict[str, str] = {}
        for file in weight_files(folder):
            found = tensors_in(file)
            self.shapes |= {name: shape for name, (shape, _) in found.items()}
            kinds |= {name: kind for name, (_, kind) in found.items()}
            self._files |= dict.fromkeys(found, file)
        with quiet():
            self.config: PreTrainedConfig = load_config(folder)
        if self.config.model_type not in FAMILIES:
            raise CheckpointError(
                f"{folder / 'config.json'}: no map of architecture {self.config.model_type!r}; "
                f"there is one for {', '.join(FAMILIES)}"
            )
        if getattr(self.config, "quantization_config", None):
            raise CheckpointError(f"{folder / 'config.json'}: the model is quantised; dequantise and save it first")
        for layer in range(self.layers):
            for name in self.names:
                stored = self.stored(layer, name)
                if kinds[stored] not in FLOATS:
                    raise CheckpointError(
                        f"{self._files[stored]}: tensor {stored} is of type {kinds[stored]}, not {', '.join(FLOATS)}; "
                        "if it is quantised, dequantise the model and save it first"
                    )
                self._require_whole(stored, name)

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

    def _require_whole(self, stored: str, name: str) -> None:
        """Of matrices that are kept as one, the config and the file must agree on their sizes."""
        shape, parts = self.shapes[stored], fused_sizes(self.config, name)
        rows = shape[-1 if self.transposed else 0]
        if len(shape) != 2 or (parts and sum(parts) != rows):
            raise CheckpointError(
                f"{self._files[stored]}: tensor {stored} has shape {list(shape)}, where config.json asks for a matrix"
                + (f" with {' + '.join(map(str, parts))} outputs" if parts else "")
            )

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
        odd = [key for key in _NOT_PLAIN if told.get(key)]
        if told.get("init_lora_weights", True) not in _INITS:
            odd.append(f"init_lora_weights={told['init_lora_weights']}")  # which moves a part of W into the factors
        kind = str(told.get("peft_type", "none"))
        if kind.upper() != "LORA" or odd:
            with_them = f" with {', '.join(odd)}" if odd else ""
            raise CheckpointError(
                f"{config}: adapter of type {kind}{with_them}; only plain LoRA is read, merge it first"
            )
        rank, alpha = told.get("r"), told.get("lora_alpha")
        if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float)):
            raise CheckpointError(f"{config}: r {rank}, lora_alpha {alpha}: must be a rank above 0 and a number")
        self._scale = alpha / (rank**0.5 if told.get("use_rslora") else rank)
        if not self._file.exists() and (pickled := folder / "adapter_model.bin").exists():
            raise CheckpointError(f"{pickled}: pickled weights, which can run code, are not read; save as safetensors")
        shapes = {name: shape for name, (shape, _) in tensors_in(self._file).items()}
        self._modules = {name.rpartition(".lora_")[0] for name in shapes}
        stored = {self._module(i, n): base.shapes[base.stored(i, n)] for i in range(base.layers) for n in base.names}
        known = {f"{module}.lora_{factor}.weight" for module in self._modules & stored.keys() for factor in "AB"}
        if strange := sorted(shapes.keys() - known):
            raise CheckpointError(f"{self._file}: tensor {strange[0]} is no factor of a matrix of the base's layers")
        if missing := sorted(known - shapes.keys()):
            raise CheckpointError(f"{self._file}: tensor {missing[0]} is missing; fetch the adapter again")
        for module in sorted(self._modules):
            out, into = stored[module][::-1] if base.transposed else stored[module]
            found = [shapes[f"{module}.lora_{factor}.weight"] for factor in "BA"]
            if found != [(out, rank), (rank, into)]:
                raise CheckpointError(
                    f"{self._file}: the factors of {module} have shapes {list(found[0])} and {list(found[1])}, "
                    f"where base and rank ask for {[out, rank]} and {[rank, into]}"
                )
            self._factors(module)

    def delta(self, layer: int, name: str, w: Matrix) -> Matrix:
        """dW: scale B A, in float64; zero for a matrix that the adapter leaves alone."""
        module = self._module(layer, name)
        if module not in self._modules:
            return torch.zeros_like(w)
        b, a = self._factors(module)
        # As y = W a has it, whichever way the base keeps W; of matrices that the base keeps as one, for all of them.
        return (self._scale * b @ a)[own_outputs(self._base.config, name)]

    def _factors(self, module: str) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r in"]]:
        with safe_open(self._file, framework="pt") as opened:
            b, a = (opened.get_tensor(f"{module}.lora_{factor}.weight").double() for factor in "BA")
        if not (b.isfinite().all() and a.isfinite().all()):
            raise CheckpointError(f"{self._file}: the factors of {module} have NaN or inf")
        return b, a

    def _module(self, layer: int, name: str) -> str:
        return f"base_model.model.{stored_name(self._base.config, layer, name).removesuffix('.weight')}"


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
