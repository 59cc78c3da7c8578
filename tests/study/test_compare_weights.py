"""Weights of two folders beside each other: planted changes are found, and what cannot be compared is refused."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from tunescope import cli
from tunescope.models import hub
from tunescope.models.sites import weight, weight_names
from tunescope.models.weights import StoredWeights
from tunescope.probes.subspaces import Svd, column_space, null_lengths
from tunescope.records.tables import read_records, read_scores
from tunescope.study import weights as compare

LAYERS, PLANTED = 2, (1, "W_in")
SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
GPT2 = {"n_layer": LAYERS, "n_head": 4, "n_embd": 16, "vocab_size": 30, "n_positions": 32}


def build(architecture: str, **sizes: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[architecture](**((GPT2 if architecture == "gpt2" else SIZES) | sizes))
    return AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def planted(base: PreTrainedModel) -> PreTrainedModel:
    """W_in of one layer has changed by a matrix of rank two, of which all lies in the left null space."""
    tuned = deepcopy(base)
    w = weight(base, *PLANTED)
    outside = torch.linalg.svd(w.double()).U[:, w.shape[1] : w.shape[1] + 2]
    weight(tuned, *PLANTED).add_((outside @ torch.randn(2, w.shape[1], dtype=torch.float64)).float())
    return tuned


@pytest.fixture(scope="module", params=["gpt2", "mistral", "qwen3", "gemma2", "phi3"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a base, in one file, and a fine-tune of it, in several. Not to be changed."""
    base, folder = build(request.param), tmp_path_factory.mktemp("pair")
    base.save_pretrained(folder / "base")
    planted(base).save_pretrained(folder / "tuned", max_shard_size="10KB")
    assert len(list((folder / "tuned").glob("*.safetensors"))) > 1
    return folder / "base", folder / "tuned"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same of one architecture, to be copied and spoilt."""
    base, folder = build("llama"), tmp_path_factory.mktemp("one")
    base.save_pretrained(folder / "base")
    planted(base).save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned"


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "render", lambda folder: folder / "report.html")


def values(records: pd.DataFrame, metric: str) -> dict[tuple[int, str], float]:
    rows = records[(records["metric"] == metric) & (records["control"] == "")]
    return {(r.layer, r.site): r.value for r in rows.itertuples()}


@pytest.mark.usefixtures("no_page")
def test_the_planted_change_is_found_and_nothing_else(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert cli.main(["weights", *map(str, pair), "--out", str(tmp_path / "out")]) == 0
    records = read_records(tmp_path / "out" / "records.parquet")
    sizes, ranks, shares = (values(records, m) for m in ("relative_norm", "effective_rank", "null_share"))
    model = AutoModelForCausalLM.from_pretrained(pair[0])
    assert set(sizes) == {(layer, name) for layer in range(LAYERS) for name in weight_names(model)}
    assert {place for place, size in sizes.items() if size > 0} == {PLANTED}
    assert 1 < ranks[PLANTED] <= 2.001
    assert shares[PLANTED] == pytest.approx(1, abs=1e-5)
    scores = read_scores(tmp_path / "out" / "scores.parquet")
    found = scores[(scores["layer"] == 1) & (scores["kind"] == "W_in")]["value"].to_numpy()
    assert (found > 1e-6).sum() == 2


@pytest.mark.usefixtures("no_page")
def test_the_numbers_are_those_of_the_models(one: tuple[Path, Path], tmp_path: Path) -> None:
    """Against a decomposition of what transformers loads, with every matrix changed."""
    base, tuned = (AutoModelForCausalLM.from_pretrained(folder) for folder in one)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    tuned.save_pretrained(tmp_path / "tuned")
    for options in ([], ["--svd"]):
        out = tmp_path / f"out{len(options)}"
        assert cli.main(["weights", str(one[0]), str(tmp_path / "tuned"), "--out", str(out), *options]) == 0
        records = read_records(out / "records.parquet")
        shares, ranks, sizes = (values(records, m) for m in ("null_share", "effective_rank", "relative_norm"))
        for (layer, name), rank in ranks.items():
            w = weight(base, layer, name)
            delta = Svd.of(weight(tuned, layer, name) - w)
            assert rank == pytest.approx(delta.effective_rank(), rel=1e-6)
            assert sizes[layer, name] == pytest.approx((delta.s.norm() / w.double().norm()).item(), rel=1e-6)
            if (layer, name) in shares:
                lengths = null_lengths(delta.u, column_space(w))
                assert shares[layer, name] == pytest.approx((delta.energy @ lengths.square()).item(), abs=1e-6)
        assert {name for _, name in shares} == {"W_in", "W_gate"}


def test_it_goes_on_where_it_stopped(one: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, read = ["weights", *map(str, one), "--out", str(tmp_path / "out")], StoredWeights.matrix
    seen: list[tuple[int, str]] = []

    def counted(shards: StoredWeights, layer: int, name: str) -> torch.Tensor:
        seen.append((layer, name))
        if len(seen) == 7:
            raise KeyboardInterrupt
        return read(shards, layer, name)

    monkeypatch.setattr(StoredWeights, "matrix", counted)
    assert cli.main(command) == 130
    seen[:] = [(9, "")] * 20  # never seven again
    assert cli.main(command) == 0
    assert len(seen) == 20 + 2 * (LAYERS * 7 - 3)  # three matrices were done, each read from both
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure") == 1
    assert "a fine-tune from elsewhere" in page
    whole = read_records(tmp_path / "out" / "records.parquet")
    assert cli.main([*command[:-1], str(tmp_path / "afresh")]) == 0
    pd.testing.assert_frame_equal(whole, read_records(tmp_path / "afresh" / "records.parquet"))


def test_bfloat16_is_read_as_float32(one: tuple[Path, Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(one[0], dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    matrix = StoredWeights(tmp_path / "half").matrix(0, "W_in")
    assert matrix.dtype == torch.float32
    assert torch.equal(matrix, weight(model, 0, "W_in").float())


def test_names_may_lack_their_first_part(tmp_path: Path) -> None:
    model = build("gpt2")
    model.transformer.save_pretrained(tmp_path / "bare")  # as the first GPT-2 is kept
    assert torch.equal(StoredWeights(tmp_path / "bare").matrix(1, "W_out"), weight(model, 1, "W_out"))


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize(
    ("architecture", "module", "changed"),
    [
        ("llama", "model.layers.1.mlp.up_proj", {(1, "W_in")}),
        ("gpt2", "transformer.h.0.attn.c_attn", {(0, "W_Q"), (0, "W_K"), (0, "W_V")}),
    ],
)
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_s_change_is_its_factors(
    architecture: str, module: str, changed: set, rslora: bool, tmp_path: Path
) -> None:
    """Beside a copy of the base into which they were merged by hand."""
    base = build(architecture)
    base.save_pretrained(tmp_path / "base")
    parameter = base.get_submodule(module).weight
    out, into = parameter.shape[::-1] if architecture == "gpt2" else parameter.shape
    a, b = 0.1 * torch.randn(2, into), 0.1 * torch.randn(out, 2)
    adapter(tmp_path / "adapter", {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, use_rslora=rslora)
    delta = 8 / (2**0.5 if rslora else 2) * b @ a
    with torch.no_grad():
        parameter.add_(delta.T if architecture == "gpt2" else delta)
    base.save_pretrained(tmp_path / "merged")
    found = {}
    for name in ("adapter", "merged"):
        out_folder = tmp_path / f"out-{name}"
        assert cli.main(["weights", *map(str, (tmp_path / "base", tmp_path / name)), "--out", str(out_folder)]) == 0
        found[name] = values(read_records(out_folder / "records.parquet"), "relative_norm")
    assert {place for place, size in found["adapter"].items() if size > 0} == changed
    assert found["adapter"] == pytest.approx(found["merged"], rel=1e-5)
    ranks = values(read_records(tmp_path / "out-adapter" / "records.parquet"), "effective_rank")
    assert all(1 < ranks[place] <= 2.001 for place in changed)


def adapter(folder: Path, factors: dict[str, torch.Tensor], **config: object) -> None:
    folder.mkdir()
    save_file(
        {f"base_model.model.{name}": factor.contiguous() for name, factor in factors.items()},
        folder / "adapter_model.safetensors",
    )
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 8} | config
    (folder / "adapter_config.json").write_text(json.dumps(told))


def test_bad_adapters(one: tuple[Path, Path], refused: Callable, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.lora_"
    good = {f"{name}A.weight": torch.ones(2, 16), f"{name}B.weight": torch.ones(48, 2)}
    cases = {
        "kind": (good, {"peft_type": "IA3"}, ["adapter_config.json", "IA3", "only plain LoRA"]),
        "dora": (good, {"use_dora": True}, ["use_dora", "only plain LoRA"]),
        "rank": (good, {"r": 0}, ["r 0", "rank above 0"]),
        "other": (good, {"r": 3}, ["[48, 2] and [2, 16]", "[48, 3] and [3, 16]"]),
        "pissa": (good, {"init_lora_weights": "pissa"}, ["init_lora_weights=pissa", "only plain LoRA"]),
        "strange": ({"lm_head.lora_A.weight": torch.ones(2, 16)}, {}, ["lm_head.lora_A", "no factor"]),
        "half": ({f"{name}A.weight": torch.ones(2, 16)}, {}, ["up_proj.lora_B.weight is missing"]),
        "shape": (good | {f"{name}B.weight": torch.ones(40, 2)}, {}, ["[40, 2] and [2, 16]", "[48, 2] and [2, 16]"]),
        "nan": (good | {f"{name}B.weight": torch.full((48, 2), torch.nan)}, {}, ["NaN"]),
    }
    for case, (factors, config, says) in cases.items():
        adapter(tmp_path / case, factors, **config)
        refused(["weights", str(one[0]), str(tmp_path / case), "--out", str(tmp_path / "out")], *says)
        assert not (tmp_path / "out").exists()
    refused(["weights", str(tmp_path / "kind"), str(one[1]), "--out", str(tmp_path / "out")], "is an adapter")
    (tmp_path / "kind" / "adapter_model.safetensors").rename(tmp_path / "kind" / "adapter_model.bin")
    (tmp_path / "kind" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8}))
    refused(
        ["weights", str(one[0]), str(tmp_path / "kind"), "--out", str(tmp_path / "o")], "adapter_model.bin", "pickled"
    )


# What cannot be compared


@pytest.fixture
def spoilt(one: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the fine-tune."""
    return Path(shutil.copytree(one[1], tmp_path / "tuned"))


def test_bad_pairs(one: tuple[Path, Path], refused: Callable, tmp_path: Path) -> None:
    base, out = str(one[0]), tmp_path / "out"
    others = {
        "mistral": (build("mistral"), "llama and mistral, two architectures"),
        "deep": (build("llama", num_hidden_layers=3), "2 and 3 layers"),
        "wide": (
            build("llama", intermediate_size=40),
            "W_gate of layer 0 is [48, 16] in one and [40, 16] in the other",
        ),
    }
    for name, (model, says) in others.items():
        model.save_pretrained(tmp_path / name)
        refused(["weights", base, str(tmp_path / name), "--out", str(out)], says)
    refused(["weights", base, str(tmp_path / "absent"), "--out", str(out)], "absent", "no such folder")
    assert not out.exists()


def test_bad_files(one: tuple[Path, Path], spoilt: Path, refused: Callable, tmp_path: Path) -> None:
    command = ["weights", str(one[0]), str(spoilt), "--out", str(tmp_path / "out")]
    file, config = spoilt / "model.safetensors", spoilt / "config.json"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, file)
    refused(command, name, "NaN")
    assert not (tmp_path / "out" / "records.parquet").exists()
    shutil.rmtree(tmp_path / "out")
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    refused(command, name, "missing")
    file.write_bytes(file.read_bytes()[:100])
    refused(command, "model.safetensors", "truncated or corrupt")
    file.rename(spoilt / "pytorch_model.bin")
    refused(command, "pytorch_model.bin", "pickled weights")
    save_file(tensors, file)
    save_file(tensors | {name: tensors[name].to(torch.int8)}, file)
    refused(command, name, "type I8", "quantised")
    save_file(tensors, file)
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"quantization_config": {"quant_method": "fp8"}}))
    refused(command, "config.json", "quantised")
    config.write_text(json.dumps({"model_type": "bert"}))
    refused(command, "config.json", "no map of architecture 'bert'", "gpt2, llama, mistral")
    assert not (tmp_path / "out").exists()


def test_a_missing_shard(pair: tuple[Path, Path], refused: Callable, tmp_path: Path) -> None:
    tuned = Path(shutil.copytree(pair[1], tmp_path / "tuned"))
    lost = sorted(tuned.glob("*.safetensors"))[0]
    lost.unlink()
    refused(["weights", str(pair[0]), str(tuned), "--out", str(tmp_path / "out")], lost.name, "no such file")
    assert not (tmp_path / "out").exists()


def test_a_config_that_disagrees_with_a_fused_matrix(refused: Callable, tmp_path: Path) -> None:
    model = build("phi3")
    model.save_pretrained(tmp_path / "base")
    model.config.num_key_value_heads = 4
    model.save_pretrained(tmp_path / "tuned")
    command = ["weights", str(tmp_path / "base"), str(tmp_path / "tuned"), "--out", str(tmp_path / "out")]
    refused(command, "qkv_proj", "[32, 16]", "16 + 16 + 16")


@pytest.mark.usefixtures("no_page")
def test_a_folder_of_another_adapter(one: tuple[Path, Path], refused: Callable, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.lora_"
    factors = {f"{name}A.weight": torch.ones(2, 16), f"{name}B.weight": torch.ones(48, 2)}
    adapter(tmp_path / "adapter", factors)
    command = ["weights", str(one[0]), str(tmp_path / "adapter"), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace("8", "80"))
    refused(command, "another tuned")


@pytest.mark.usefixtures("no_page")
def test_a_run_stopped_at_its_very_start_is_begun_again(one: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out" / "parts").mkdir(parents=True)
    (tmp_path / "out" / ".lock").touch()
    assert cli.main(["weights", *(f"{folder}/" for folder in one), "--out", str(tmp_path / "out")]) == 0
    assert cli.main(["weights", *map(str, one), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.usefixtures("no_page")
def test_a_folder_of_something_else(one: tuple[Path, Path], refused: Callable, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    refused(["weights", *map(str, one), "--out", str(tmp_path / "full")], "full", "not a comparison of two models")
    assert cli.main(["weights", *map(str, one), "--out", str(out)]) == 0
    refused(["weights", *map(str, reversed(one)), "--out", str(out)], "another base, tuned", "choose another --out")
    refused(["weights", *map(str, one), "--out", str(out), "--svd"], "another exact")


def test_a_repository_is_fetched_at_a_commit_and_without_a_network_refused(
    one: tuple[Path, Path], refused: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        if name == "owner/base":
            return str(one[0])
        raise LocalEntryNotFoundError("cannot reach the hub\nat all")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    found = hub.fetched("owner/base@v1.0", ("*.safetensors", "config.json"))
    assert found == (one[0], "owner/base", "base")
    assert asked == [("owner/base", "v1.0", ["*.safetensors", "config.json"])]
    refused(["weights", "owner/absent", str(one[1]), "--out", str(tmp_path / "out")], "owner/absent", "cannot reach")
    asked.clear()
    refused(["weights", "owner/base", "owner/absent", "--out", str(tmp_path / "out")], "owner/absent", "cannot reach")
    assert not any(
        "safetensors" in pattern and "index" not in pattern for *_, patterns in asked for pattern in patterns
    )


@pytest.mark.usefixtures("no_page")
def test_a_repository_is_called_by_its_name(one: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: str(one[name == "owner/tuned"]))
    assert cli.main(["weights", "owner/base", "owner/tuned", "--out", str(tmp_path / "out")]) == 0
    assert set(read_records(tmp_path / "out" / "records.parquet")["model"]) == {"owner/tuned"}


def test_a_repository_of_pickles(one: tuple[Path, Path], refused: Callable, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "snapshot").mkdir()
    shutil.copy(one[1] / "config.json", tmp_path / "snapshot")
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: str(tmp_path / "snapshot"))
    refused(["weights", str(one[0]), "owner/old", "--out", str(tmp_path / "out")], "no safetensors", "save_pretrained")
