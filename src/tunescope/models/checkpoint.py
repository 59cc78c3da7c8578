"""Models on disk: a folder that plain transformers loads, and that is checked in full when it is read."""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
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

from tunescope.errors import shown
from tunescope.files import atomic_path
from tunescope.models.shards import ADAPTER as ADAPTER
from tunescope.models.shards import (
    AGAIN,
    CONFIG,
    GENERATION,
    Generation,
    Settings,
    plain,
    read_json,
    refusal,
    tensors_in,
    weight_files,
)
from tunescope.models.shards import CheckpointError as CheckpointError
from tunescope.models.shards import convert_command as convert_command

_TOKENIZER = "tokenizer.json"
_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_ROOM = 2**28  # more elements than that, and twice the stored ones, are not asked of memory


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
            shutil.copymode(partial / CONFIG, weights)


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
    attention: str | None = "eager",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    spread: Spread | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in eval mode, and its tokenizer, from a folder of safetensors (one file or several).

    Nothing is fetched, unpickled or run from the folder, and no tensor is left to chance.

    Args:
        attention: transformers' `attn_implementation`; None: fused (sdpa) where the family has it.
        dtype: of the parameters; `auto` is what the config says.
        spread: in place of the one device.

    Raises:
        CheckpointError: a file is missing or cannot be read, weights are pickled, tensors are missing, unexpected, of
            the wrong shape, or not finite, or memory is too small.
    """
    if os.path.exists(folder / ADAPTER):
        raise refusal(folder, "has an adapter; merge it into its base model and save the whole model")
    stored = sum(prod(shape) for file in weight_files(folder) for shape, _ in tensors_in(file).values())
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    # transformers would allocate whatever the files lack.
    model = skeleton(folder, config)
    asked = sum(each.numel() for each in (*model.parameters(), *model.buffers()))
    if asked > 2 * stored + _ROOM and not getattr(config, "quantization_config", None):
        raise refusal(folder / CONFIG, f"asks for {asked:,} weights where the files hold {stored:,}; {AGAIN}")
    try:
        with quiet():
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
        model, info = loaded
        require_tensors(folder, model, info)
        return (model if spread else model.to(device)).eval(), tokenizer
    except CheckpointError:
        raise
    except Exception as error:  # whatever validators, accelerate and torch raise
        if out_of_memory(error):
            raise refusal(
                folder,
                f"memory is too small for this model ({shown(error)}); "
                "free some, choose a smaller dtype (bfloat16), or spread the model over more memory",
            ) from error
        raise refusal(folder, f"transformers cannot load this model: {shown(error)}; {AGAIN}") from error


def out_of_memory(error: Exception) -> bool:
    """Whether memory, of this machine or of a GPU, was too small."""
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in said or "out of memory" in said)
    )


def skeleton(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a config without memory: names and shapes of its parameters.

    Raises:
        CheckpointError: no model can have this config.
    """
    try:
        with torch.device("meta"), quiet():
            return AutoModelForCausalLM.from_config(deepcopy(config), trust_remote_code=False)
    except Exception as error:  # whatever the architecture raises
        raise refusal(folder / CONFIG, f"not a usable config ({shown(error)}); {AGAIN}") from error


def _placement(spread: Spread | None) -> dict[str, Any]:
    if spread is None:
        return {}
    return {"device_map": "auto", "max_memory": spread.memory, "offload_folder": spread.offload}


def load_config(folder: Path, tokens: bool = True) -> PreTrainedConfig:
    """The config of a model folder.

    Args:
        tokens: whether its tokens, which end or fill an answer, are going to be used.

    Raises:
        CheckpointError: it is missing or not usable, sizes are no model's, or tokens are not in the vocabulary.
    """
    file = folder / CONFIG
    told = read_json(file, Settings)
    # This entry would have transformers read weights from a file that has not been checked.
    if told.transformers_weights is not None:
        raise refusal(file, "transformers_weights is not supported; rename the file to model.safetensors")
    try:
        with quiet():
            config: PreTrainedConfig = AutoConfig.from_pretrained(folder, **_LOCAL)
            text = config.get_text_config(decoder=True)
    except Exception as error:  # whatever validators of the architecture raise
        raise refusal(file, f"not a usable config ({shown(error)}); {AGAIN}") from error
    if tokens:
        _check_tokens(file, text, text)
        if os.path.exists(folder / GENERATION):
            _check_tokens(folder / GENERATION, read_json(folder / GENERATION, Generation), text)
    return config


def _check_tokens(file: Path, told: object, config: PreTrainedConfig) -> None:
    size = getattr(config, "vocab_size", None)
    for name in ("eos_token_id", "pad_token_id"):
        found = getattr(told, name, None)
        for token in found if isinstance(found, list) else [found]:
            if token is not None and not (isinstance(token, int) and isinstance(size, int) and 0 <= token < size):
                raise refusal(
                    file, f"{name} {shown(token)} is not in the vocabulary, 0 to {size} - 1; name one that is, or null"
                )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        CheckpointError: there is none that can be used.
    """
    file = folder / _TOKENIZER
    # Without it, transformers would make an empty tokenizer for some architectures.
    if not os.path.exists(file):
        if other := [name for name in ("tokenizer.model", "vocab.json") if os.path.exists(folder / name)]:
            command = convert_command(folder, "AutoTokenizer", "sys.argv[1]")
            raise refusal(file, f"no such file; {other[0]} is an older form, convert it: {command}")
        raise refusal(file, f"no such file; {AGAIN}")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, **_LOCAL)
    except BaseException as error:  # the tokenizers library raises plain Exception, and where it panics, no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise refusal(file, f"not a usable tokenizer ({shown(error)}); {AGAIN}") from error
    return as_kept(tokenizer)


def as_kept(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same, saved as it was read: transformers would write down, with it, how it was loaded."""
    for how in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(how, None)
    return tokenizer


def require_tensors(folder: Path, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse a model whose tensors, by what transformers says of loading them, are not those of its files.

    Raises:
        CheckpointError: one is missing, unexpected, of the wrong shape or not finite.
    """
    faults = [
        *(f"tensor {plain(name)} is missing" for name in sorted(info["missing_keys"])),
        *(f"tensor {plain(name)} is not part of the model" for name in sorted(info["unexpected_keys"])),
        *(
            f"tensor {plain(name)} has shape {list(found)} where {CONFIG} asks for {list(wanted)}"
            for name, found, wanted in sorted(info["mismatched_keys"])
        ),
    ]
    if not faults:
        here = ((name, p) for name, p in model.named_parameters() if not p.is_meta)  # meta: it is on disk
        faults = [f"tensor {name} has NaN or inf" for name, p in here if not p.isfinite().all()]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise refusal(folder, f"{faults[0]}{more}; {AGAIN}")


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
