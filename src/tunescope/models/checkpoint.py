"""Models on disk: a folder that plain transformers loads, and that is checked in full when it is read."""

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from tunescope.errors import InputError
from tunescope.files import atomic_path

_CONFIG, _GENERATION, _TOKENIZER = "config.json", "generation_config.json", "tokenizer.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"  # by which the folder of an adapter is known
_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_AGAIN = "save or fetch the model again"


class CheckpointError(InputError):
    """A model folder that cannot be used; the message names the file, what is wrong with it and what to do."""


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, generation_length: int
) -> None:
    """Write weights (safetensors), config and tokenizer; the folder appears whole, in the place of any before it.

    The same model gives the same bytes. `generate` of the model that transformers loads from the folder answers
    greedily.

    Args:
        generation_length: tokens of the longest answer.
    """
    generation = GenerationConfig(
        do_sample=False,
        max_new_tokens=generation_length,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with atomic_path(folder) as partial, quiet():
        model.save_pretrained(partial)
        generation.save_pretrained(partial)
        try:
            tokenizer.save_pretrained(partial)
        except OSError:
            raise
        except Exception as error:  # the tokenizers library raises plain Exception, on a full disk, too
            raise OSError(errno.EIO, str(error), str(folder)) from error
        for weights in partial.glob("*.safetensors"):
            # safetensors lets only the owner read what it writes.
            shutil.copymode(partial / _CONFIG, weights)


@dataclass(frozen=True)
class Spread:
    """Has accelerate spread a model over all GPUs, then main memory, then a folder on disk.

    Attributes:
        memory: at most so much of each, as accelerate's `max_memory`: {0: "20GiB", "cpu": "8GiB"}.
        offload: the folder.
    """

    memory: Mapping[int | str, str]
    offload: Path


def load_model(
    folder: Path,
    device: torch.device,
    attention: str = "eager",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    spread: Spread | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in eval mode, and its tokenizer, from a folder of safetensors (one file or several).

    Nothing is fetched, unpickled or run from the folder, and no tensor is left to chance.

    Args:
        attention: transformers' `attn_implementation`.
        dtype: of the parameters; `auto` is what the config says.
        spread: in place of the one device.

    Raises:
        CheckpointError: a file is missing or cannot be read, weights are pickled, tensors are missing, unexpected, of
            the wrong shape, or not finite.
    """
    _check_weight_files(folder)
    with quiet():
        config, tokenizer = load_config(folder), load_tokenizer(folder)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # so that `info` lists them
                output_loading_info=True,
                **_placement(spread),
                **_LOCAL,
            )
        except (OSError, ValueError, TypeError, KeyError, ArithmeticError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: transformers cannot load this model: {first_line(error)}") from error
    model, info = loaded
    _check_tensors(folder, model, info)
    return (model if spread else model.to(device)).eval(), tokenizer


def _placement(spread: Spread | None) -> dict[str, Any]:
    if spread is None:
        return {}
    return {"device_map": "auto", "max_memory": spread.memory, "offload_folder": spread.offload}


def _check_weight_files(folder: Path) -> None:
    if (folder / ADAPTER).exists():
        raise CheckpointError(f"{folder}: has an adapter; merge it into its base model and save the whole model")
    for file in weight_files(folder):
        tensors_in(file)


def tensors_in(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of the tensors of a safetensors file, by name.

    Raises:
        CheckpointError: no such file, or it cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: (tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: no such file; {_AGAIN}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: truncated or corrupt ({first_line(error)}); {_AGAIN}") from error


def weight_files(folder: Path) -> list[Path]:
    """The one file of the weights, or all those that the index lists.

    Raises:
        CheckpointError: no such folder, or there is neither, the index cannot be used, or weights are pickled.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; save or fetch the model first")
    if (folder / _WEIGHTS).exists():
        return [folder / _WEIGHTS]
    if (folder / _INDEX).exists():
        try:
            names = sorted(set(map(str, read_json(folder / _INDEX)["weight_map"].values())))
        except (KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{folder / _INDEX}: no weight_map of tensors to files; {_AGAIN}") from error
        if foreign := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
            raise CheckpointError(f"{folder / _INDEX}: {foreign[0]} is not a safetensors file beside it; {_AGAIN}")
        return [folder / name for name in names]
    if pickled := sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)):
        raise CheckpointError(
            f"{folder / pickled[0]}: pickled weights, which can run code, are not read; "
            f"fetch the model's {_WEIGHTS}, or convert them: {convert_command(folder)}"
        )
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder}: holds no model: there is neither config.json nor {_WEIGHTS}")
    raise CheckpointError(f"{folder / _WEIGHTS}: no such file; {_AGAIN}")


def convert_command(model: Path | str) -> str:
    """Of a shell, to turn pickled weights into safetensors (transformers reads them without running code)."""
    return (
        'python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{model}').save_pretrained('safetensors')\""
    )


def load_config(folder: Path) -> PreTrainedConfig:
    """The config of a model folder.

    Raises:
        CheckpointError: it is missing or not usable.
    """
    if (folder / _GENERATION).exists():
        read_json(folder / _GENERATION)  # transformers would pass over one that it cannot read
    # This entry would have transformers read weights from a file that has not been checked.
    if read_json(folder / _CONFIG).get("transformers_weights") is not None:
        raise CheckpointError(
            f"{folder / _CONFIG}: transformers_weights is not supported; rename the file to {_WEIGHTS}"
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, **_LOCAL)
    except Exception as error:  # whatever validators of the architecture raise
        raise CheckpointError(f"{folder / _CONFIG}: not a usable config ({first_line(error)}); {_AGAIN}") from error
    return config


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        CheckpointError: there is none that can be used.
    """
    file = folder / _TOKENIZER
    # Without it, transformers would make an empty tokenizer for some architectures.
    if not file.exists():
        if other := [name for name in ("tokenizer.model", "vocab.json") if (folder / name).exists()]:
            raise CheckpointError(
                f"{file}: no such file; {other[0]} is an older form: convert it with transformers' "
                f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
            )
        raise CheckpointError(f"{file}: no such file; {_AGAIN}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **_LOCAL)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(f"{file}: not a usable tokenizer ({first_line(error)}); {_AGAIN}") from error
    for how in ("is_local", "local_files_only"):
        # transformers would write down, with the tokenizer, how it was loaded: the bytes would differ from those read.
        tokenizer.init_kwargs.pop(how, None)
    return tokenizer


def _check_tensors(folder: Path, model: PreTrainedModel, info: dict[str, Any]) -> None:
    faults = [
        *(f"tensor {name} is missing" for name in sorted(info["missing_keys"])),
        *(f"tensor {name} is not part of the model" for name in sorted(info["unexpected_keys"])),
        *(
            f"tensor {name} has shape {list(found)} where {_CONFIG} asks for {list(wanted)}"
            for name, found, wanted in sorted(info["mismatched_keys"])
        ),
    ]
    if not faults:
        here = ((name, p) for name, p in model.named_parameters() if not p.is_meta)  # meta: it is on disk
        faults = [f"tensor {name} has NaN or inf" for name, p in here if not p.isfinite().all()]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise CheckpointError(f"{folder}: {faults[0]}{more}; {_AGAIN}")


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: no such file; {_AGAIN}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable JSON ({first_line(error)}); {_AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: must hold a JSON object; {_AGAIN}")
    return content


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, and no tables of warnings that an error of ours will say in one line."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
