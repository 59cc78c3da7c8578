"""Damaged, incomplete and dangerous model folders are refused, in one line that says what to do."""

import json
import pickle
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunescope.models.checkpoint import CheckpointError, convert_command, load_model

FIRST = {"gpt2": "transformer.h.0.mlp.c_fc.weight", "llama": "model.layers.0.mlp.up_proj.weight"}


def refused(folder: Path, *says: str) -> None:
    """load_model refuses the folder in one line that says all of this."""
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, torch.device("cpu"))
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    for part in says:
        assert part in message


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder", "first")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"{name}: no such file", "save or fetch the model again")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    refused(folder, "model.safetensors: truncated or corrupt", "save or fetch the model again")


def test_corrupt_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[8:40] = b"\xff" * 32
    weights.write_bytes(bytes(content))
    refused(folder, "model.safetensors: truncated or corrupt")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff"])
def test_unreadable_settings_are_refused(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    refused(folder, f"{name}: ", "save or fetch the model again")


@pytest.mark.parametrize("change", [{"model_type": None}, {"model_type": "nonsense"}, {"vocab_size": "many"}])
def test_a_config_that_means_nothing_is_refused(folder: Path, change: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    refused(folder, "config.json: not ", "usable", "save or fetch the model again")


def test_a_config_that_no_model_can_have_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    heads = "n_head" if config["model_type"] == "gpt2" else "num_attention_heads"
    (folder / "config.json").write_text(json.dumps(config | {heads: 5}))
    refused(folder)


def test_missing_tensors_are_refused(model: PreTrainedModel, folder: Path) -> None:
    name = FIRST[model.config.model_type]
    change_weights(folder, lambda w: w.pop(name))
    refused(folder, f"tensor {name} is missing", "save or fetch the model again")


def test_a_missing_embedding_is_refused(model: PreTrainedModel, folder: Path) -> None:
    """Tied to the output in GPT-2, where neither is then in the file."""
    name = {"gpt2": "transformer.wte.weight", "llama": "lm_head.weight"}[model.config.model_type]
    change_weights(folder, lambda w: w.pop(name))
    refused(folder, "is missing")


def test_tensors_of_another_model_are_refused(folder: Path) -> None:
    change_weights(folder, lambda w: w.update({"extra.weight": torch.zeros(2)}))
    refused(folder, "tensor extra.weight is not part of the model")


def test_weights_of_a_deeper_model_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    layers = "n_layer" if config["model_type"] == "gpt2" else "num_hidden_layers"
    (folder / "config.json").write_text(json.dumps(config | {layers: 1}))
    refused(folder, "is not part of the model", "more)")


def test_tensors_of_the_wrong_shape_are_refused(model: PreTrainedModel, folder: Path) -> None:
    name = FIRST[model.config.model_type]
    wanted = list(load_file(folder / "model.safetensors")[name].shape)
    change_weights(folder, lambda w: w.update({name: torch.zeros(3, 4)}))
    refused(folder, f"tensor {name} has shape [3, 4] where config.json asks for {wanted}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_tensors_that_are_not_finite_are_refused(model: PreTrainedModel, folder: Path, value: float) -> None:
    name = FIRST[model.config.model_type]
    change_weights(folder, lambda w: w[name].view(-1)[5].fill_(value))
    refused(folder, f"tensor {name} has NaN or inf", "save or fetch the model again")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pth"])
def test_pickled_weights_are_refused_and_not_opened(folder: Path, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "exploded"
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    (folder / "model.safetensors").unlink()
    refused(folder, f"{name}: pickled weights", "convert them: python -c")
    assert not mark.exists()


def test_pickled_weights_beside_safetensors_are_ignored(folder: Path, tmp_path: Path, cpu: torch.device) -> None:
    mark = tmp_path / "exploded"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    load_model(folder, cpu)
    assert not mark.exists()


@pytest.mark.parametrize("shard", ["model.bin", "../copy/other.safetensors"])
def test_an_index_may_only_list_safetensors_beside_it(folder: Path, shard: str) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    refused(folder, f"{shard} is not a safetensors file")


def test_a_missing_shard_is_refused(model: PreTrainedModel, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    shard = min(folder.glob("*.safetensors"))
    shard.unlink()
    refused(folder, f"{shard.name}: no such file")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": 1}', "nonsense"])
def test_an_unreadable_index_is_refused(folder: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    refused(folder, "model.safetensors.index.json: ")


def test_other_places_for_weights_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter_model.bin"}))
    refused(folder, "transformers_weights is not supported")


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "merge it into its base model")


@pytest.mark.parametrize("auto", ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"])
def test_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path, auto: str, cpu: torch.device) -> None:
    mark = tmp_path / "exploded"
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Evil: pass\n")
    for file in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / file).read_text())
        remote = ["evil.Evil", None] if auto == "AutoTokenizer" else "evil.Evil"
        (folder / file).write_text(json.dumps(content | {"auto_map": {auto: remote}}))
    load_model(folder, cpu)  # the architecture is one of transformers' own, whose code is used
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil"}))
    refused(folder, "config.json: ")
    assert not mark.exists()


def change_json(file: Path, **change: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("name", ["pad_token_id", "eos_token_id"])
@pytest.mark.parametrize("token", [-1, 10_000, [1, 10_000]])
def test_tokens_outside_the_vocabulary_are_refused(folder: Path, file: str, name: str, token: object) -> None:
    change_json(folder / file, **{name: token})
    if isinstance(token, list) and name == "pad_token_id":
        return refused(folder, f"{file}: ", name)
    return refused(folder, f"{file}: {name} ", "is not in the vocabulary")


@pytest.mark.parametrize("size", [-4, 0, 10**12, 16.5, True, "16"])
@pytest.mark.parametrize("name", ["vocab_size", "n_layer", "num_hidden_layers", "n_embd", "hidden_size", "num_labels"])
def test_sizes_of_no_model_are_refused(folder: Path, name: str, size: object) -> None:
    change_json(folder / "config.json", **{name: size})
    refused(folder, "config.json: not usable: ", name, repr(size))


def test_a_model_far_larger_than_its_files_is_refused_before_memory_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    change_json(folder / "config.json", vocab_size=2**24, hidden_size=2**16, n_embd=2**16)
    refused(folder, "config.json: asks for ", "weights where the files hold ")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory\nbacktrace"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_told(folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    refused(folder, "memory is too small for this model", "bfloat16")


def test_other_failures_of_transformers_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("no\nsuch thing")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    refused(folder, "transformers cannot load this model: no;")


def test_suggested_commands_are_safe_to_paste(tmp_path: Path) -> None:
    folder = tmp_path / "it's $(touch x); 'a'"
    folder.mkdir()
    for command in (convert_command(folder), convert_command(folder, "AutoTokenizer", "sys.argv[1]")):
        python, option, code, place = shlex.split(command)
        assert (python, option, place) == ("python", "-c", str(folder))
        compile(code, "command", "exec")
    assert convert_command("a\nb").endswith(" FOLDER")
    (folder / "pytorch_model.bin").touch()
    refused(folder, convert_command(folder))
