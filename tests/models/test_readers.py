"""Whatever lies in a model folder, reading it either works or is refused in one short line."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import PreTrainedModel

from tunescope.errors import InputError
from tunescope.models.checkpoint import load_config, load_model, load_tokenizer
from tunescope.models.pair import open_pair
from tunescope.models.shards import tensors_in, weight_files
from tunescope.models.weights import StoredWeights

FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 10**400, float("nan"), float("inf"), 1e308, -0.0]),
    st.text(max_size=6),
    st.sampled_from(["\ud800", "\x00", "\n", "../x", "x" * 5000, "a\nb.safetensors", "/etc/passwd", "\x1b[31m"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=5,
)
DEEP = "[" * 100_000 + "]" * 100_000
ODD = [b"", b"null", b"[]", b"\xff\xfe{}", b'{"a": ' + DEEP.encode() + b"}", b'{"a":1,"a":2}', b'{"a": 1' + b"0" * 9999]


def survives(read: Callable[[], object]) -> None:
    try:
        read()
    except InputError as error:
        message = str(error)
        assert message.isprintable(), message
        assert len(message) <= 600, message


def changed(content: dict[str, Any], data: st.DataObject) -> str:
    """A good file with entries of it, and others, replaced by anything."""
    keys = st.one_of(st.sampled_from(sorted(content)), st.text(max_size=6))
    return json.dumps(content | data.draw(st.dictionaries(keys, JSON, min_size=1, max_size=3)))


def damaged(good: bytes, data: st.DataObject) -> bytes:
    """A good file with some bytes overwritten, or cut."""
    content = bytearray(good)
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=6)):
        content[place] = byte
    return bytes(content[: data.draw(st.one_of(st.just(len(good)), st.integers(0, len(good))))])


def fuzzed(file: Path, data: st.DataObject, read: Callable[[], object]) -> None:
    good = file.read_bytes()
    try:
        if data.draw(st.booleans()):
            file.write_bytes(damaged(good, data))
        else:
            file.write_text(changed(json.loads(good), data), encoding="utf-8")
        survives(read)
    finally:
        file.write_bytes(good)


@FUZZ
@given(data=st.data())
def test_config(folder: Path, data: st.DataObject) -> None:
    fuzzed(folder / "config.json", data, lambda: (load_config(folder), StoredWeights(folder).names()))


@FUZZ
@given(data=st.data())
def test_generation_config(folder: Path, data: st.DataObject) -> None:
    fuzzed(folder / "generation_config.json", data, lambda: load_model(folder, torch.device("cpu")))


@FUZZ
@given(data=st.data())
def test_tokenizer(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    fuzzed(folder / name, data, lambda: load_tokenizer(folder))


@pytest.fixture
def adapted(model: PreTrainedModel, folder: Path, tmp_path: Path) -> Path:
    lora = tmp_path / "lora"
    lora.mkdir()
    module = "transformer.h.0.mlp.c_fc" if model.config.model_type == "gpt2" else "model.layers.0.mlp.up_proj"
    factors = {"A": torch.ones(2, 16), "B": torch.ones(64, 2)}
    tensors = {f"base_model.model.{module}.lora_{n}.weight": f for n, f in factors.items()}
    save_file(tensors, lora / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "use_rslora": False, "init_lora_weights": True}
    (lora / "adapter_config.json").write_text(json.dumps(settings))
    return lora


@FUZZ
@given(data=st.data())
def test_adapter_config(folder: Path, adapted: Path, data: st.DataObject) -> None:
    fuzzed(adapted / "adapter_config.json", data, lambda: open_pair(folder, adapted).matrices(0, "W_in"))


@FUZZ
@given(data=st.data())
def test_index(folder: Path, data: st.DataObject) -> None:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        names = dict.fromkeys(tensors_in(folder / "model-1.safetensors"), "model-1.safetensors")
        index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    survives(lambda: StoredWeights(folder))
    if data.draw(st.booleans()):
        good = index.read_bytes()
        index.write_text(json.dumps({"weight_map": data.draw(st.dictionaries(st.text(), SCALARS, min_size=1))}))
        survives(lambda: StoredWeights(folder))
        index.write_bytes(good)
    fuzzed(index, data, lambda: (weight_files(folder), load_model(folder, torch.device("cpu"))))


@FUZZ
@given(data=st.data())
def test_safetensors(folder: Path, data: st.DataObject) -> None:
    file = folder / "model.safetensors"
    good = file.read_bytes()
    (size,) = struct.unpack("<Q", good[:8])
    header = json.loads(good[8 : 8 + size])
    try:
        if data.draw(st.booleans()):
            file.write_bytes(damaged(good[: 8 + size], data) + good[8 + size :])
        else:
            entry = st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON}) | JSON
            name = data.draw(st.sampled_from(sorted(header)) | st.text(max_size=4))
            told = json.dumps(header | {name: data.draw(entry)}).encode()
            file.write_bytes(struct.pack("<Q", len(told)) + told + good[8 + size :])
        survives(lambda: tensors_in(file))
        survives(lambda: StoredWeights(folder).matrix(0, "W_in"))
    finally:
        file.write_bytes(good)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_odd_files_and_folders_in_their_place(folder: Path, name: str) -> None:
    for content in ODD:
        (folder / name).write_bytes(content)
        survives(lambda: load_model(folder, torch.device("cpu")))
    (folder / name).unlink()
    (folder / name).mkdir()
    survives(lambda: load_model(folder, torch.device("cpu")))


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_config.json"])
def test_folders_in_the_place_of_files(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    for read in (lambda: load_model(folder, torch.device("cpu")), lambda: open_pair(folder, folder)):
        with pytest.raises(InputError):
            read()
        survives(read)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), IsADirectoryError(), MemoryError()])
def test_files_that_may_not_be_read(folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise error

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(InputError, match=r"config\.json: not readable JSON"):
        load_config(folder)


@pytest.mark.parametrize("name", ["a\nb", "x" * 250, "sp ace'\"$(touch x)"])
def test_odd_names_of_folders(tmp_path: Path, name: str) -> None:
    for folder in (tmp_path / name, tmp_path / name / ("y" * 250)):
        survives(lambda: load_model(folder, torch.device("cpu")))  # noqa: B023
        folder.mkdir()
        (folder / "pytorch_model.bin").touch()
        survives(lambda: load_model(folder, torch.device("cpu")))  # noqa: B023
        (folder / "tokenizer.model").touch()
        survives(lambda: load_tokenizer(folder))  # noqa: B023
