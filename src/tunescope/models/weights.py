"""The parameters of a model wherever they are: in memory, in a folder, or as a LoRA adapter of others.

Parameters have the names that transformers' model gives them; weight matrices of a layer have those of `sites`.
"""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tunescope.errors import shown
from tunescope.models.checkpoint import load_config, skeleton
from tunescope.models.families import FAMILIES
from tunescope.models.shards import (
    ADAPTER,
    CONFIG,
    FACTORS,
    Lora,
    plain,
    read_json,
    read_tensor,
    refusal,
    tensors_in,
    weight_files,
)
from tunescope.models.sites import (
    fused_sizes,
    layer_count,
    matrix_names,
    own_outputs,
    stored_name,
    weight,
    weight_names,
    within_stored,
)

Matrix = Float[Tensor, "out in"]
Parameter = Shaped[Tensor, "..."]
# safetensors' names of the types that hold numbers as they are
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_INITS = (True, False, None, "gaussian", "orthogonal", "eva")  # of an adapter, that leave W as it is
# Settings of an adapter with which dW is not scale B A, or not all that changes.
_NOT_PLAIN = (
    *("use_dora", "use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config", "lora_bias"),
    *("rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "alora_invocation_tokens"),
    *("target_parameters", "trainable_token_indices"),
)


@runtime_checkable
class Weights(Protocol):
    """All parameters of one model.

    Attributes:
        label: what messages call the model. config: the model's.
    """

    label: str
    config: PreTrainedConfig

    def names(self) -> tuple[str, ...]:
        """Parameters, as `named_parameters` of transformers' model calls them; tied ones once."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a parameter."""

    def dtype(self, name: str) -> torch.dtype:
        """Of a parameter that holds weight matrices, as files keep it; of an adapter, the base's."""

    def stored(self, name: str) -> Parameter:
        """A parameter exactly as it is kept, so that copying it into a model gives the model that has it."""

    def matrix(self, layer: int, name: str) -> Matrix:
        """W of y = W a, in float32 or float64."""


class StoredWeights:
    """Of a model folder, of one safetensors file or several, read one tensor at a time.

    Raises:
        CheckpointError: no such folder, a file is missing or cannot be read, weights are pickled or quantised, there is
            no map of the architecture, or a matrix is missing or not as the config has it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.label = folder, str(folder)
        if os.path.exists(folder / ADAPTER):
            raise refusal(folder, "is an adapter; the base must be a whole model")
        self._files: dict[str, Path] = {}
        self._found: dict[str, tuple[tuple[int, ...], str]] = {}
        for file in weight_files(folder):
            found = tensors_in(file)
            self._found |= found
            self._files |= dict.fromkeys(found, file)
        self.config: PreTrainedConfig = load_config(folder, tokens=False)
        if self.config.model_type not in FAMILIES:
            raise refusal(
                folder / CONFIG,
                f"no map of architecture {shown(self.config.model_type)}; there is one for {', '.join(FAMILIES)}",
            )
        if getattr(self.config, "quantization_config", None):
            raise refusal(folder / CONFIG, "the model is quantised; dequantise and save it first")
        for layer, name in places(self):
            self._require_whole(layer, name)

    def _require_whole(self, layer: int, name: str) -> None:
        """A matrix is of numbers as they are; of those that are kept as one, config and file agree on the sizes."""
        key = self._key(stored_name(self.config, layer, name))
        (shape, kind), parts = self._found[key], fused_sizes(self.config, name)
        if kind not in FLOATS:
            raise refusal(
                self._files[key],
                f"tensor {plain(key)} is of type {kind}, not {', '.join(FLOATS)}; "
                "if it is quantised, dequantise the model and save it first",
            )
        if len(shape) != 2 or (parts and sum(parts) != shape[-1 if FAMILIES[self.config.model_type].transposed else 0]):
            raise refusal(
                self._files[key],
                f"tensor {plain(key)} has shape {list(shape)}, where config.json asks for a matrix"
                + (f" with {' + '.join(map(str, parts))} outputs" if parts else ""),
            )

    @cached_property
    def _names(self) -> tuple[str, ...]:
        parameters = skeleton(self.folder, self.config).named_parameters()
        return tuple(name for name, _ in parameters if name in self._found or name.partition(".")[2] in self._found)

    def names(self) -> tuple[str, ...]:
        """Parameters, of those that the folder holds.

        Raises:
            CheckpointError: no model can have the config.
        """
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._found[self._key(name)][0]

    def dtype(self, name: str) -> torch.dtype:
        return FLOATS[self._found[self._key(name)][1]]

    def stored(self, name: str) -> Parameter:
        """A parameter exactly as it is kept.

        Raises:
            CheckpointError: it is missing or cannot be read.
        """
        key = self._key(name)
        return read_tensor(self._files[key], key)

    def matrix(self, layer: int, name: str) -> Matrix:
        """W of y = W a, in float32 or, where it is kept so, float64.

        Raises:
            CheckpointError: it is missing, cannot be read, or has NaN or inf.
        """
        whole = stored_name(self.config, layer, name)
        matrix = within_stored(self.config, name, self.stored(whole))
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        if not matrix.isfinite().all():
            key = self._key(whole)
            raise refusal(self._files[key], f"tensor {plain(key)} has NaN or inf")
        return matrix

    def _key(self, name: str) -> str:
        """The tensor of a parameter; some checkpoints leave out the first part of its name."""
        for known in (name, name.partition(".")[2]):
            if known in self._found:
                return known
        raise refusal(self.folder, f"tensor {plain(name)} is missing; fetch the model again")


class AdapterWeights:
    """Of a base with a LoRA adapter (Hu et al. 2021), whose change is kept as factors: dW = scale B A.

    Raises:
        CheckpointError: a file is missing or cannot be read, weights are pickled, the adapter is no plain LoRA, or
            changes something that is no weight matrix of a layer.
    """

    def __init__(self, base: Weights, folder: Path) -> None:
        self.base, self.folder, self.label, self.config = base, folder, str(folder), base.config
        self._file = folder / FACTORS
        self._scale, rank = _read_scale(folder / ADAPTER)
        if not os.path.exists(self._file) and os.path.exists(pickled := folder / "adapter_model.bin"):
            raise refusal(pickled, "pickled weights, which can run code, are not read; save as safetensors")
        shapes = {name: shape for name, (shape, _) in tensors_in(self._file).items()}
        transposed = FAMILIES[base.config.model_type].transposed
        matrices = dict.fromkeys(stored_name(base.config, *place) for place in places(base))
        self.changes = tuple(name for name in matrices if shapes.keys() & _factor_names(name))
        known = {factor for name in self.changes for factor in _factor_names(name)}
        if strange := sorted(shapes.keys() - known):
            raise refusal(self._file, f"tensor {plain(strange[0])} is no factor of a matrix of the base's layers")
        if missing := sorted(known - shapes.keys()):
            raise refusal(self._file, f"tensor {plain(missing[0])} is missing; fetch the adapter again")
        for name in self.changes:
            out, into = base.shape(name)[::-1] if transposed else base.shape(name)
            found = [shapes[factor] for factor in _factor_names(name)]
            if found != [(out, rank), (rank, into)]:
                raise refusal(
                    self._file,
                    f"the factors of {name} have shapes {list(found[0])} and {list(found[1])}, "
                    f"where base and rank ask for {[out, rank]} and {[rank, into]}",
                )
            self._factors(name)

    def names(self) -> tuple[str, ...]:
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self.base.dtype(name)

    def stored(self, name: str) -> Parameter:
        """The base's parameter, or in float64 its sum with scale B A, which a model rounds once."""
        w = self.base.stored(name)
        if name not in self.changes:
            return w
        change = self._change(name).to(w.device)
        return w.double() + (change.T if FAMILIES[self.config.model_type].transposed else change)

    def matrix(self, layer: int, name: str) -> Matrix:
        w = self.base.matrix(layer, name)
        return w + self.delta(layer, name, w)

    def delta(self, layer: int, name: str, w: Matrix) -> Matrix:
        """dW, exact, in float64: scale B A; zero, as the base's W, for a matrix that the adapter leaves alone."""
        whole = stored_name(self.config, layer, name)
        if whole not in self.changes:
            return torch.zeros_like(w)
        # As y = W a has it, whichever way the base keeps W; of matrices that the base keeps as one, for all of them.
        return self._change(whole)[own_outputs(self.config, name)].to(w.device)

    def _change(self, name: str) -> Matrix:
        b, a = self._factors(name)
        return self._scale * b @ a

    def _factors(self, name: str) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r in"]]:
        b, a = (read_tensor(self._file, factor).double() for factor in _factor_names(name))
        if not (b.isfinite().all() and a.isfinite().all()):
            raise refusal(self._file, f"the factors of {name} have NaN or inf")
        return b, a


def _read_scale(file: Path) -> tuple[float, int]:
    """Scale and rank of an adapter that is plain LoRA."""
    told = read_json(file, Lora)
    odd = [key for key in _NOT_PLAIN if (told.model_extra or {}).get(key)]
    if told.init_lora_weights not in _INITS:
        odd.append(f"init_lora_weights={plain(told.init_lora_weights)}")  # which moves a part of W into the factors
    if told.peft_type.upper() != "LORA" or odd:
        kind = plain(told.peft_type) + (f" with {', '.join(odd)}" if odd else "")
        raise refusal(file, f"adapter of type {kind}; only plain LoRA is read, merge it first")
    rank, alpha = told.r, told.lora_alpha
    if (
        not (isinstance(rank, int) and not isinstance(rank, bool) and 0 < rank <= 2**20)
        or not (isinstance(alpha, int | float) and not isinstance(alpha, bool))
        or not abs(alpha) <= 1e6  # nor NaN
    ):
        raise refusal(
            file, f"r {shown(rank)}, lora_alpha {shown(alpha)}: must be a rank above 0 and a number of 1e6 at most"
        )
    return alpha / (math.sqrt(rank) if told.use_rslora else rank), rank


def _factor_names(name: str) -> tuple[str, str]:
    """B and A of a parameter, as peft calls them."""
    module = f"base_model.model.{name.removesuffix('.weight')}"
    return f"{module}.lora_B.weight", f"{module}.lora_A.weight"


def places(weights: Weights) -> Iterator[tuple[int, str]]:
    """Every weight matrix of every layer, as layer and name."""
    for layer in range(int(weights.config.num_hidden_layers)):
        for name in matrix_names(weights.config):
            yield layer, name


def in_memory(model: PreTrainedModel) -> bool:
    """Whether all weights are: of weights that come from disk and go, a gradient would keep all."""
    return not any(parameter.is_meta for parameter in model.parameters())


def require_finite(model: PreTrainedModel) -> None:
    """Refuse a model from which no numbers can come.

    Raises:
        ValueError: a parameter is not finite; one of a weight matrix is named as that.
    """
    for layer in range(layer_count(model)):
        for name in weight_names(model):
            if not weight(model, layer, name).isfinite().all():
                raise ValueError(f"{name} of layer {layer}: has NaN or inf")
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"{name}: has NaN or inf")


# Changing a model in place


def parameter_of(model: PreTrainedModel, layer: int, name: str) -> str:
    """The parameter that holds a weight matrix, by itself or with others.

    Raises:
        ValueError: the model has no such matrix, or there is no map of its architecture.
    """
    return stored_name(model.config, layer, name)


def fill(model: PreTrainedModel, weights: Weights, names: Iterable[str]) -> None:
    """Copy parameters into a model in place: those that an adapter changes, say, or all."""
    for name in names:
        model.get_parameter(name).detach().copy_(weights.stored(name))


@contextmanager
def replaced(
    model: PreTrainedModel, new: Iterable[tuple[str | tuple[int, str], Tensor]], original: Weights
) -> Iterator[PreTrainedModel]:
    """The model with other weights, in place; in the end it has its own again, bit for bit, whatever happens.

    There is no second model in memory: `new` may make its tensors one by one, each from what `original` has, and of
    what was there before, nothing is kept that `original` can read from elsewhere. Not to be nested.

    Args:
        new: whole parameters by name, in the shape of the parameter, or weight matrices by layer and name, out x in,
            whichever way the model keeps them. Each is rounded once, to the model's own type.
        original: the weights that the model was made of.

    Raises:
        ValueError: a name that the model lacks, or a tensor of another shape.
        CheckpointError: `original` cannot be read.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    touched: set[str] = set()
    with ExitStack() as undo:
        for place, tensor in new:
            name = place if isinstance(place, str) else parameter_of(model, *place)
            if name not in parameters or parameters[name].is_meta:  # meta: accelerate keeps it elsewhere
                raise ValueError(f"{shown(name)}: the model has no such parameter in memory")
            whole = parameters[name]
            target = whole if isinstance(place, str) else weight(model, *place)
            for shape, there in ((tensor.shape, target.shape), (original.shape(name), whole.shape)):
                if tuple(shape) != tuple(there):
                    raise ValueError(f"{place}: {list(shape)} does not fit {list(there)}")
            if name not in touched:
                touched.add(name)
                undo.callback(_restore, whole, original, name)
            target.copy_(tensor)
        yield model


def _restore(parameter: Parameter, original: Weights, name: str) -> None:
    parameter.copy_(original.stored(name))
