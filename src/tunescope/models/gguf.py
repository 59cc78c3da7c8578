"""GGUF files, llama.cpp's form of a model, to folders that every other part reads."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tunescope.errors import InputError, shown
from tunescope.models.checkpoint import as_kept, out_of_memory, quiet, require_tensors, save_model
from tunescope.models.families import FAMILIES
from tunescope.models.shards import refusal

_ANSWER = 256  # tokens of the longest answer that `generate` of the folder's model gives
_LOCAL = {"local_files_only": True, "trust_remote_code": False}
# How texts are cut before byte pairs are merged, by the names in the files. Of the first, transformers does not know:
# single digits, and white space before them by itself.
_SINGLE_DIGITS = "smollm"
_CUTS = (_SINGLE_DIGITS, "gpt-2", "llama-bpe", "qwen2", "tekken")


def import_gguf(file: Path, folder: Path) -> Path:
    """Write the model of a GGUF file, in float32, with its tokenizer and chat template, as a folder; returns it.

    Quantised weights become the numbers that they stand for. The folder appears whole, or not at all.

    Raises:
        InputError: the package `gguf` is missing, or the folder is there already.
        CheckpointError: no such file, it is no GGUF file, truncated, of an architecture without a map, or has something
            that transformers would leave out.
    """
    if os.path.lexists(folder):
        raise InputError(f"{folder}: is there already; name a folder that is not")
    cut = _checked(file)
    # By itself: transformers would also read configs that lie beside it.
    with TemporaryDirectory() as alone:
        os.symlink(file.resolve(), Path(alone) / "model.gguf")
        try:
            model, tokenizer = _model(file, Path(alone)), _tokenizer(Path(alone), cut)
        except InputError:
            raise
        except Exception as error:  # whatever gguf, transformers and tokenizers raise
            if out_of_memory(error):
                raise refusal(file, f"memory is too small for this model in float32 ({shown(error)})") from error
            raise refusal(file, f"transformers cannot read this file: {shown(error)}") from error
    save_model(model, tokenizer, folder, _ANSWER)
    return folder


def _checked(file: Path) -> str | None:
    """How the file has texts cut, once it is known that all is there and can be read."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError("GGUF files are read with a package of their own: pip install 'tunescope[gguf]'") from error
    if not file.is_file():
        raise refusal(file, "no such file")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise refusal(file, "is no GGUF file: it does not begin with GGUF")
    try:
        reader: Any = GGUFReader(file)  # maps every tensor, and so finds those that lie behind the end
        architecture = reader.fields["general.architecture"].contents()
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise refusal(file, f"truncated or damaged ({shown(error)}); fetch it again") from error
    if not {architecture, f"{architecture}_text"} & {*FAMILIES}:
        raise refusal(file, f"no map of architecture {shown(architecture)}; there is one for {', '.join(FAMILIES)}")
    scaled = f"{architecture}.rope.scaling.type"
    left_out = [scaled] if scaled in reader.fields and reader.fields[scaled].contents() != "none" else []
    left_out += [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_")]
    if left_out:
        raise refusal(
            file,
            f"its positions are scaled ({shown(left_out[0])}), which transformers does not read from GGUF; "
            "fetch the model's safetensors",
        )
    cut = _text(reader, "tokenizer.ggml.pre")
    if _text(reader, "tokenizer.ggml.model") == "gpt2" and cut not in _CUTS:
        raise refusal(
            file,
            f"its tokenizer cuts texts by {shown(cut)}, which is not one of {', '.join(_CUTS)}; "
            "fetch the model's safetensors and tokenizer",
        )
    return cut


def _text(reader: Any, key: str) -> str | None:
    return str(reader.fields[key].contents()) if key in reader.fields else None


def _model(file: Path, alone: Path) -> PreTrainedModel:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        alone, gguf_file="model.gguf", dtype=torch.float32, output_loading_info=True, **_LOCAL
    )
    read, info = loaded
    require_tensors(file, read, info)
    # transformers does not save a model that it has read from GGUF; it saves another one with the same tensors.
    vars(read.config).pop("quantization_config", None)
    with torch.device("meta"), quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    return model


def _tokenizer(alone: Path, cut: str | None) -> PreTrainedTokenizerBase:
    with quiet():
        tokenizer: Any = as_kept(AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf", **_LOCAL))
    if cut == _SINGLE_DIGITS:
        digits, pairs = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pairs])
    return tokenizer
