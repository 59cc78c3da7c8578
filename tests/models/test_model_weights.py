"""Parameters are the same wherever they are kept, and a model changed in place is itself again, bit for bit."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from live import LiveWeights
from tunescope.models.checkpoint import CheckpointError
from tunescope.models.pair import Pair, changed_elsewhere, open_pair, require_match, rounding
from tunescope.models.sites import stored_name, weight, weight_names
from tunescope.models.weights import (
    AdapterWeights,
    StoredWeights,
    Weights,
    fill,
    parameter_of,
    places,
    replaced,
)

ARCHITECTURES = ("gpt2", "llama", "phi3", "gemma2")  # fused and transposed, plain, fused, tied
Build = Callable[..., PreTrainedModel]


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, build: Build) -> PreTrainedModel:
    return build(request.param)


@torch.no_grad()
def tuned_of(base: PreTrainedModel) -> PreTrainedModel:
    tuned = deepcopy(base)
    for parameter in tuned.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))
    return tuned


def save(model: PreTrainedModel, folder: Path, **options: object) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def state(model: PreTrainedModel) -> dict[str, bytes]:
    return {name: p.detach().contiguous().view(torch.uint8).numpy().tobytes() for name, p in model.named_parameters()}


def adapter(folder: Path, factors: dict[str, Tensor], **config: object) -> Path:
    folder.mkdir()
    tensors = {f"base_model.model.{name}": factor.contiguous() for name, factor in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 8} | config
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


def factors_of(model: PreTrainedModel, layer: int, name: str) -> dict[str, Tensor]:
    """Random factors for all that is kept as one with a matrix."""
    whole = stored_name(model.config, layer, name)
    out, into = model.get_parameter(whole).shape[:: -1 if model.config.model_type == "gpt2" else 1]
    module = whole.removesuffix(".weight")
    return {f"{module}.lora_A.weight": torch.randn(2, into), f"{module}.lora_B.weight": torch.randn(out, 2)}


# One interface


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_gives_what_the_model_has(model: PreTrainedModel, dtype: torch.dtype, tmp_path: Path) -> None:
    model.to(dtype)
    live, stored = LiveWeights(model), StoredWeights(save(model, tmp_path / "model", max_shard_size="5KB"))
    assert isinstance(live, Weights)
    assert isinstance(stored, Weights)
    assert stored.names() == live.names() == tuple(dict(model.named_parameters()))
    for name in live.names():
        assert stored.shape(name) == live.shape(name)
        assert stored.dtype(name) == live.dtype(name) == stored.stored(name).dtype == dtype
        assert torch.equal(stored.stored(name), live.stored(name))
    for place in places(live):
        assert stored.matrix(*place).dtype == torch.float32
        assert live.matrix(*place).dtype == torch.float64
        assert torch.equal(stored.matrix(*place).double(), live.matrix(*place))


def test_float64_stays_float64(build: Build, tmp_path: Path) -> None:
    stored = StoredWeights(save(build("llama").double(), tmp_path / "model"))
    assert stored.matrix(0, "W_in").dtype == torch.float64


def test_names_may_lack_their_first_part(build: Build, tmp_path: Path) -> None:
    model = build("gpt2")
    model.transformer.save_pretrained(tmp_path / "bare")  # as the first GPT-2 is kept
    stored = StoredWeights(tmp_path / "bare")
    assert stored.names() == LiveWeights(model).names()
    assert torch.equal(stored.matrix(1, "W_out"), weight(model, 1, "W_out"))


def test_weights_that_are_not_finite_are_refused(build: Build, tmp_path: Path) -> None:
    model = build("llama")
    weight(model, 1, "W_in")[2, 3] = torch.nan
    with pytest.raises(ValueError, match="W_in of layer 1: has NaN or inf"):
        LiveWeights(model)
    stored = StoredWeights(save(model, tmp_path / "model"))
    stored.matrix(0, "W_in")
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor model.layers.1.mlp.up_proj.weight has NaN"):
        stored.matrix(1, "W_in")


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_is_its_base_with_its_factors_merged(model: PreTrainedModel, rslora: bool, tmp_path: Path) -> None:
    base = StoredWeights(save(model, tmp_path / "base"))
    factors = factors_of(model, 1, "W_Q")
    lora = AdapterWeights(base, adapter(tmp_path / "lora", factors, use_rslora=rslora))
    pair, whole = Pair(base, lora), parameter_of(model, 1, "W_Q")
    assert lora.changes == (whole,)
    assert lora.names() == base.names()
    a, b = factors.values()
    delta = 8 / (2**0.5 if rslora else 2) * b.double() @ a.double()
    merged = deepcopy(model).double()
    merged.get_parameter(whole).detach().add_(delta.T if model.config.model_type == "gpt2" else delta)
    for layer, name in places(base):
        w, dw = pair.matrices(layer, name)
        assert torch.equal(w, base.matrix(layer, name))
        assert (dw.dtype == torch.float64) == (parameter_of(model, layer, name) == whole)
        torch.testing.assert_close(w + dw, weight(merged, layer, name), check_dtype=False)
        assert torch.equal(lora.matrix(layer, name), w + dw)
    fill(model, lora, lora.changes)
    assert torch.equal(model.get_parameter(whole), merged.get_parameter(whole).float())
    again = state(model)
    with replaced(model, [((1, "W_Q"), torch.zeros_like(weight(model, 1, "W_Q")))], lora):
        assert state(model) != again
    assert state(model) == again


def test_bad_adapters(build: Build, tmp_path: Path) -> None:
    base = StoredWeights(save(build("llama"), tmp_path / "base"))
    name = "model.layers.1.mlp.up_proj.lora_"
    good = {f"{name}A.weight": torch.ones(2, 16), f"{name}B.weight": torch.ones(64, 2)}
    cases = {
        "kind": (good, {"peft_type": "IA3"}, ["adapter_config.json", "IA3", "only plain LoRA"]),
        "dora": (good, {"use_dora": True}, ["use_dora", "only plain LoRA"]),
        "rank": (good, {"r": 0}, ["r 0", "rank above 0"]),
        "true": (good, {"r": True}, ["r True", "rank above 0"]),
        "other": (good, {"r": 3}, ["[64, 2] and [2, 16]", "[64, 3] and [3, 16]"]),
        "alpha": (good, {"lora_alpha": float("nan")}, ["lora_alpha nan"]),
        "infinite": (good, {"lora_alpha": float("-inf")}, ["lora_alpha -inf"]),
        "huge": (good, {"lora_alpha": 10**400}, ["lora_alpha 1000"]),
        "kasa": (good, {"kasa_config": {"beta": 1}}, ["kasa_config", "only plain LoRA"]),
        "pissa": (good, {"init_lora_weights": "pissa"}, ["init_lora_weights=pissa", "only plain LoRA"]),
        "strange": ({"lm_head.lora_A.weight": torch.ones(2, 16)}, {}, ["lm_head.lora_A", "no factor"]),
        "half": ({f"{name}A.weight": torch.ones(2, 16)}, {}, ["up_proj.lora_B.weight is missing"]),
        "shape": (good | {f"{name}B.weight": torch.ones(40, 2)}, {}, ["[40, 2] and [2, 16]", "[64, 2] and [2, 16]"]),
        "nan": (good | {f"{name}B.weight": torch.full((64, 2), torch.nan)}, {}, ["NaN"]),
    }
    for case, (factors, config, says) in cases.items():
        adapter(tmp_path / case, factors, **config)
        with pytest.raises(CheckpointError) as caught:
            open_pair(tmp_path / "base", tmp_path / case)
        assert all(part in str(caught.value) for part in (case, *says))
    with pytest.raises(CheckpointError, match="is an adapter"):
        StoredWeights(tmp_path / "kind")
    folder = adapter(tmp_path / "pickled", good)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin: pickled"):
        AdapterWeights(base, folder)


# Pairs


def test_a_pair_gives_the_base_and_its_change(model: PreTrainedModel, tmp_path: Path) -> None:
    tuned = tuned_of(model)
    live = Pair(LiveWeights(model), LiveWeights(tuned))
    stored = open_pair(save(model, tmp_path / "base"), save(tuned, tmp_path / "tuned"))
    assert (live.layers, live.names) == (stored.layers, stored.names) == (2, weight_names(model))
    for layer, name in places(live.before):
        before, after = weight(model, layer, name), weight(tuned, layer, name)
        assert all(map(torch.equal, live.matrices(layer, name), (before.double(), after.double() - before.double())))
        assert all(map(torch.equal, stored.matrices(layer, name), (before, after - before)))
    for name, parameter in tuned.named_parameters():
        assert torch.equal(live.parameters(name)[1], parameter)
        assert all(map(torch.equal, live.parameters(name), stored.parameters(name)))


def test_what_does_not_match_is_refused(build: Build, tmp_path: Path) -> None:
    base = LiveWeights(build("llama"), "the base")
    for other, message in (
        (build("mistral"), "the base and a model in memory: llama and mistral, two architectures"),
        (build("llama", layers=3), "2 and 3 layers"),
        (build("llama", intermediate_size=40), r"W_gate of layer 0 is \[64, 16\] in one and \[40, 16\] in the other"),
    ):
        for each in (LiveWeights(other), StoredWeights(save(other, tmp_path / other.name_or_path / message[:4]))):
            with pytest.raises(CheckpointError, match=message if isinstance(each, LiveWeights) else message[-9:]):
                Pair(base, each)


def test_fused_matrices_that_are_cut_elsewhere_are_refused(build: Build) -> None:
    one = build("phi3", num_attention_heads=4, num_key_value_heads=2, head_dim=4)
    other = build("phi3", num_attention_heads=2, num_key_value_heads=3, head_dim=4, hidden_size=16)
    assert weight(one, 0, "W_in").shape == weight(other, 0, "W_in").shape
    with pytest.raises(CheckpointError, match=r"W_Q of layer 0 is \[16, 16\] in one and \[8, 16\] in the other"):
        Pair(LiveWeights(one), LiveWeights(other))


def test_a_fine_tune_may_have_more_tokens(build: Build) -> None:
    base, more = LiveWeights(build("llama")), LiveWeights(build("llama", 31))
    pair = Pair(base, more)
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight is \[30, 16\] in one and \[31, 16\]"):
        pair.parameters("model.embed_tokens.weight")
    with pytest.raises(CheckpointError, match="embed_tokens"):
        require_match(base, more, every=True)
    assert "lm_head.weight" in changed_elsewhere(base, more)


def test_what_changed_elsewhere_is_named(model: PreTrainedModel, tmp_path: Path) -> None:
    tuned = deepcopy(model)
    weight(tuned, 0, "W_in").mul_(2)
    folders = save(model, tmp_path / "base"), save(tuned, tmp_path / "tuned")
    for pair in (open_pair(*folders), Pair(LiveWeights(model), LiveWeights(tuned))):
        assert changed_elsewhere(pair.before, pair.after) == []
    matrices = {parameter_of(model, *place) for place in places(LiveWeights(model))}
    rest = [name for name, _ in model.named_parameters() if name not in matrices]
    for name in (rest[0], rest[-1]):
        tuned.get_parameter(name).detach().view(-1)[-1] += 1
    assert changed_elsewhere(StoredWeights(folders[0]), LiveWeights(tuned)) == [rest[0], rest[-1]]
    lora = AdapterWeights(StoredWeights(folders[0]), adapter(tmp_path / "lora", factors_of(model, 0, "W_O")))
    assert changed_elsewhere(lora.base, lora) == []
    assert rounding(lora.base, lora) is None


def test_types_that_differ_are_told(build: Build, tmp_path: Path) -> None:
    base = build("llama")
    half, tuned = deepcopy(base).bfloat16(), tuned_of(base)
    whole = StoredWeights(save(base, tmp_path / "base"))
    for after, says in (
        (base, None),
        (tuned, None),
        (half, "float32 and the fine-tune in bfloat16, and apart from rounding they are equal"),
        (deepcopy(tuned).bfloat16(), "float32 and the fine-tune in bfloat16: dW has the rounding errors"),
    ):
        stored = StoredWeights(save(after, tmp_path / "after"))
        found = rounding(whole, stored)
        assert (found is None) if says is None else (says in str(found))
    assert "in bfloat16 and the fine-tune in float32, and apart" in str(rounding(LiveWeights(half), whole))
    assert changed_elsewhere(LiveWeights(half), whole) == []


# In place, and back


@pytest.fixture(params=["disk", "memory"])
def original(request: pytest.FixtureRequest, model: PreTrainedModel, tmp_path: Path) -> Weights:
    if request.param == "disk":
        return StoredWeights(save(model, tmp_path / "original"))
    return LiveWeights(model)


def test_a_model_is_itself_again(model: PreTrainedModel, original: Weights) -> None:
    before, tied = state(model), model.get_output_embeddings().weight is model.get_input_embeddings().weight
    new = {name: torch.randn(p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
    with replaced(model, new.items(), original) as changed:
        assert changed is model
        for name, p in model.named_parameters():
            assert torch.equal(p, new[name].float())
        assert tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert state(model) == before


def test_parts_of_fused_matrices_are_replaced_alone(model: PreTrainedModel, original: Weights) -> None:
    before, w = state(model), {name: weight(model, 1, name).clone() for name in weight_names(model)}
    new = torch.randn_like(w["W_K"])
    with replaced(model, [((1, "W_K"), new), ((1, "W_V"), 2 * w["W_V"])], original):
        assert torch.equal(weight(model, 1, "W_K"), new)
        assert torch.equal(weight(model, 1, "W_V"), 2 * w["W_V"])
        assert all(torch.equal(weight(model, 1, name), w[name]) for name in w if name not in ("W_K", "W_V"))
        assert all(p == before[name] for name, p in state(model).items() if ".1." not in name)
    assert state(model) == before


def test_models_in_half_precision_are_themselves_again(build: Build, tmp_path: Path) -> None:
    for kept in (torch.bfloat16, torch.float32):
        folder = save(build("gemma2").to(kept), tmp_path / str(kept))  # tied
        for dtype in (torch.bfloat16, torch.float32):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            before = state(model)
            new = [(name, torch.randn(p.shape)) for name, p in model.named_parameters()]
            with replaced(model, new, StoredWeights(folder)):
                assert not set(state(model).items()) & set(before.items())
            assert state(model) == before


def test_failures_leave_no_trace(model: PreTrainedModel, original: Weights) -> None:
    before, name = state(model), parameter_of(model, 0, "W_in")

    def failing() -> Iterator[tuple[str, Tensor]]:
        yield name, torch.zeros(model.get_parameter(name).shape)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"), replaced(model, failing(), original):
        pass
    assert state(model) == before
    good = (name, torch.zeros_like(weight_of(model, name)))
    with pytest.raises(KeyboardInterrupt), replaced(model, [good], original):
        raise KeyboardInterrupt
    assert state(model) == before
    for bad, message in (
        (("nonsense.weight", torch.zeros(1)), "'nonsense.weight': the model has no such parameter"),
        (("nonsense", torch.zeros(1)), "no such parameter"),
        ((name, torch.zeros(3, 4)), r"\[3, 4\] does not fit"),
        (((0, "W_up"), torch.zeros(3, 4)), "unknown weight 'W_up'"),
    ):
        with pytest.raises(ValueError, match=message), replaced(model, [good, bad], original):
            pass
        assert state(model) == before


def test_what_was_there_can_be_read_meanwhile(model: PreTrainedModel, original: Weights) -> None:
    """So that a change may be computed, parameter by parameter, from a model that it has changed already."""
    before = {name: original.stored(name).clone() for name in original.names()}
    w = {name: original.matrix(0, name).clone() for name in weight_names(model)}
    zeros = ((name, torch.zeros_like(tensor)) for name, tensor in before.items())
    with replaced(model, zeros, original):
        assert all(torch.equal(original.stored(name), tensor) for name, tensor in before.items())
        assert all(torch.equal(original.matrix(0, name), matrix) for name, matrix in w.items())
    weight(model, 0, "W_in").fill_(2)
    assert (original.matrix(0, "W_in") == 2).all() == _is_own(model, original)


def _is_own(model: PreTrainedModel, weights: Weights) -> bool:
    name = parameter_of(model, 0, "W_in")
    return weights.stored(name).data_ptr() == model.get_parameter(name).data_ptr()


def weight_of(model: PreTrainedModel, name: str) -> Tensor:
    return model.get_parameter(name).detach()


def test_no_second_model_is_kept(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there is read from disk at the end, one parameter after the other, and each but once."""
    model = build("llama")
    original, read = StoredWeights(save(model, tmp_path / "model")), StoredWeights.stored
    asked: list[str] = []
    monkeypatch.setattr(StoredWeights, "stored", lambda self, name: asked.append(name) or read(self, name))
    with replaced(model, [((0, "W_Q"), torch.zeros(16, 16)), ((0, "W_Q"), torch.ones(16, 16))], original):
        assert asked == []
    assert asked == [parameter_of(model, 0, "W_Q")]


def test_quantised_and_missing_tensors_are_refused(build: Build, tmp_path: Path) -> None:
    folder = save(build("llama"), tmp_path / "model")
    file, config = folder / "model.safetensors", folder / "config.json"
    tensors, name = load_file(file), "model.layers.1.mlp.up_proj.weight"
    for spoilt, says in (
        ({key: value for key, value in tensors.items() if key != name}, "is missing"),
        (tensors | {name: tensors[name].to(torch.int8)}, "type I8.*quantised"),
    ):
        save_file(spoilt, file)
        with pytest.raises(CheckpointError, match=f"{name} {says}" if "miss" in says else says):
            StoredWeights(folder)
    save_file(tensors, file)
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(CheckpointError, match="quantised"):
        StoredWeights(folder)
    config.write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="no map of architecture 'bert'; there is one for gpt2, llama, mistral"):
        StoredWeights(folder)


def test_a_config_that_disagrees_with_a_fused_matrix_is_refused(build: Build, tmp_path: Path) -> None:
    model = build("phi3", num_key_value_heads=1)
    model.config.num_key_value_heads = 2
    with pytest.raises(CheckpointError, match=r"qkv_proj.weight has shape \[32, 16\].*16 \+ 16 \+ 16 outputs"):
        StoredWeights(save(model, tmp_path / "model"))
