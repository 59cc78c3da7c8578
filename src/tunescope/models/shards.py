"""The files of a model folder, read through schemas: nothing is unpickled, and each refusal is one line that names the
file and the remedy.
"""

import json
import os
import shlex
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import safe_open
from torch import Tensor

from tunescope.errors import InputError, shown

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, FACTORS = "adapter_config.json", "adapter_model.safetensors"  # by the first, an adapter's folder is known
AGAIN = "save or fetch the model again"


class CheckpointError(InputError):
    """A model that cannot be used; the message names the file, what is wrong with it and what to do."""


def refusal(file: Path, why: str) -> CheckpointError:
    """The error of a file or folder, in one line."""
    text = str(file)
    return CheckpointError(f"{plain(text if len(text) <= 200 else f'...{text[-197:]}', 200)}: {why}")


def plain(name: object, limit: int = 120) -> str:
    """A name in a message: as it is if it is short and printable, else as `shown`."""
    text = str(name)
    return text if text.isprintable() and len(text) <= limit else shown(text, limit)


# Schemas. What is not read here is let through as it is.


class Schema(BaseModel):
    """What is read of one kind of JSON file."""

    model_config = ConfigDict(strict=True, extra="ignore")


_Layers = Annotated[int, Field(gt=0, le=2**12)] | None
_Width = Annotated[int, Field(gt=0, le=2**20)] | None
_Count = Annotated[int, Field(gt=0, le=2**31)] | None
_Token = int | None


class Sizes(Schema):
    """Sizes in config.json, under all the names that architectures give them; no model is near these limits."""

    vocab_size: Annotated[int, Field(gt=0, le=2**24)] | None = None
    num_hidden_layers: _Layers = None
    n_layer: _Layers = None
    hidden_size: _Width = None
    n_embd: _Width = None
    intermediate_size: _Width = None
    n_inner: _Width = None
    num_attention_heads: _Width = None
    n_head: _Width = None
    num_key_value_heads: _Width = None
    head_dim: _Width = None
    num_labels: _Width = None
    max_position_embeddings: _Count = None
    n_positions: _Count = None


class Settings(Sizes):
    """config.json; its other entries are transformers' to check."""

    text_config: Sizes | None = None
    transformers_weights: JsonValue = None


class Generation(Schema):
    """generation_config.json: tokens that end or fill an answer."""

    eos_token_id: _Token | list[int] = None
    pad_token_id: _Token = None


class Index(Schema):
    """model.safetensors.index.json: the file of every tensor."""

    weight_map: dict[str, str] = Field(min_length=1)


class Lora(Schema):
    """adapter_config.json: scale and rank, and as `model_extra` what else is set."""

    model_config = ConfigDict(extra="allow")

    peft_type: str = "none"
    r: JsonValue = None
    lora_alpha: JsonValue = None
    use_rslora: bool | None = None
    init_lora_weights: bool | str | None = True


S = TypeVar("S", bound=Schema)


def read_json(file: Path, schema: type[S]) -> S:
    """What a schema reads of a JSON file.

    Raises:
        CheckpointError: there is no such file, it is no JSON object, or it is not as the schema has it.
    """
    try:
        content: Any = json.loads(file.read_bytes().decode("utf-8"))
        if not isinstance(content, dict):
            raise refusal(file, f"must hold a JSON object; {AGAIN}")
        return schema.model_validate(content)
    except FileNotFoundError as error:
        raise refusal(file, f"no such file; {AGAIN}") from error
    except ValidationError as error:
        raise refusal(file, f"not usable: {_first(error)}; {AGAIN}") from error
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise refusal(file, f"not readable JSON ({shown(error)}); {AGAIN}") from error


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{plain('.'.join(map(str, first['loc'])))}: {plain(first['msg'])}, got {shown(first['input'])}"


def tensors_in(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of the tensors of a safetensors file, by name.

    Raises:
        CheckpointError: no such file, or it cannot be read.
    """
    if not os.path.exists(file):
        raise refusal(file, f"no such file; {AGAIN}")
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: (tuple(each.get_shape()), str(each.get_dtype())) for name, each in slices.items()}
    except Exception as error:  # OSError, SafetensorError, ValueError of a name
        raise refusal(file, f"truncated or corrupt ({shown(error)}); {AGAIN}") from error


def read_tensor(file: Path, name: str) -> Tensor:
    """One tensor of a safetensors file, as it is stored.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)
    except Exception as error:  # as in `tensors_in`; RuntimeError and MemoryError if it does not fit
        raise refusal(file, f"tensor {plain(name)} cannot be read ({shown(error)}); {AGAIN}") from error


def weight_files(folder: Path) -> list[Path]:
    """The one file of the weights, or all those that the index lists.

    Raises:
        CheckpointError: no such folder, or there is neither, the index cannot be used, or weights are pickled.
    """
    if not os.path.isdir(folder):
        raise refusal(folder, "no such folder; save or fetch the model first")
    if os.path.exists(folder / WEIGHTS):
        return [folder / WEIGHTS]
    if os.path.exists(folder / INDEX):
        names = sorted(set(read_json(folder / INDEX, Index).weight_map.values()))
        if foreign := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
            raise refusal(folder / INDEX, f"{plain(foreign[0])} is not a safetensors file beside it; {AGAIN}")
        return [folder / name for name in names]
    if pickled := sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)):
        raise refusal(
            folder / pickled[0],
            "pickled weights, which can run code, are not read; "
            f"fetch the model's {WEIGHTS}, or convert them: {convert_command(folder)}",
        )
    if not os.path.exists(folder / CONFIG):
        raise refusal(folder, f"holds no model: there is neither {CONFIG} nor {WEIGHTS}")
    raise refusal(folder / WEIGHTS, f"no such file; {AGAIN}")


def convert_command(model: Path | str, auto: str = "AutoModelForCausalLM", to: str = '"safetensors"') -> str:
    """Of a shell, to save a model in the form that is read here (transformers reads pickles without running code)."""
    code = f"import sys; from transformers import {auto} as M; M.from_pretrained(sys.argv[1]).save_pretrained({to})"
    known = str(model).isprintable() and len(str(model)) <= 160
    return f"python -c {shlex.quote(code)} {shlex.quote(str(model)) if known else 'FOLDER'}"
