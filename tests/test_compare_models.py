"""Two models beside each other: the numbers of a study, planted changes in many families, and what is refused."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from tunescope import cli
from tunescope.compare.how import How
from tunescope.compare.models import compare_models
from tunescope.config import ProbeConfig, Study
from tunescope.errors import InputError
from tunescope.evidence.records import read_records, read_scores
from tunescope.models.checkpoint import load_tokenizer, save_model
from tunescope.models.sites import stored_name, weight
from tunescope.models.tokenizer import build_tokenizer
from tunescope.report.html import load_records
from tunescope.steps import Run

WORDS = ["<eos>", "<pad>", "<user>", "<assistant>", "no", "yes", *(f"w{i}" for i in range(14))]
TEMPLATE = "<user> {{ messages[0].content }}{% if add_generation_prompt %} <assistant>{% endif %}"
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "eos_token_id": 0,
    "bos_token_id": 0,
}
FAMILIES = ("llama", "mistral", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2")
PROBES = ProbeConfig(few_prompts=6, jacobian_prompts=2, jacobian_steps=2, draws=20, rows=8)


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it accelerate collects garbage at every stage, which takes seconds where so many modules are loaded."""
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda garbage_collection=False: None)


def numbers(records: pd.DataFrame) -> pd.Series:
    keys = ["model", "metric", "control", "kind", "layer", "site"]
    return records.set_index(keys)["value"].sort_index()


# (a) the lab's own models


@pytest.mark.usefixtures("no_report")
def test_the_labs_models_give_the_numbers_of_the_study(tiny_run: Path, tmp_path: Path) -> None:
    study = Study.from_yaml((tiny_run / "config.yaml").read_text())
    run = Run(study, tiny_run)
    tokenizer, rows = load_tokenizer(tiny_run / "models/base"), []
    for split, half in (("fit", run.sample().fit), ("score", run.sample().score)):
        for kind, prompts in half.items():
            texts = tokenizer.batch_decode(prompts.sequence)
            rows += [{"prompt": text, "label": kind, "split": split} for text in texts]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    length = run.world.answer_length
    (tmp_path / "openings.json").write_text(json.dumps({"refusal": [" ".join(["<null>"] * (length - 1))]}))
    how = How(
        prompts=(str(tmp_path / "prompts.jsonl"),),
        openings=str(tmp_path / "openings.json"),
        new_tokens=length,
        seed=study.seed,
    )
    models = [str(tiny_run / "models" / name) for name in ("base", "ssft-eta_m")]
    compare_models(*models, tmp_path / "out", how, config=study.probe)
    found = read_records(tmp_path / "out/records.parquet")
    expected = read_records(tiny_run / "records.parquet")
    final = expected[expected["step"] == expected.groupby("model")["step"].transform("max")]
    for name, model in (("base", "base"), ("tuned", "ssft-eta_m")):
        mine = numbers(found[(found["model"] == name) & ~found["metric"].str.contains("refusal|compliance|opening")])
        theirs = numbers(final[final["model"] == model].assign(model=name))
        assert mine.index.is_unique
        assert len(mine) > (25 if name == "base" else 100)
        theirs = theirs.loc[mine.index]
        # Where matrices may be large, random null spaces are drawn another way.
        drawn = (mine.index.get_level_values("metric") == "null_share") & (
            mine.index.get_level_values("control") == "rotated"
        )
        pd.testing.assert_series_equal(mine[~drawn], theirs[~drawn], rtol=1e-4, atol=1e-6)
        pd.testing.assert_series_equal(mine[drawn], theirs[drawn], rtol=0.02)


# (b) other families, with a planted change


def texts(kind: str) -> list[str]:
    """Safe prompts are of the lower words, all others of the upper; of two lengths."""
    words = WORDS[6:13] if kind == "safe" else WORDS[13:]
    draws = torch.Generator().manual_seed(len(kind))
    picked = torch.randint(len(words), (24, 4), generator=draws).tolist()
    return list(dict.fromkeys(" ".join(words[i] for i in row[: 3 + n % 2]) for n, row in enumerate(picked)))


def how(prompts: tuple[str, ...], **more: Any) -> How:
    openings = Path(prompts[0].partition("=")[2]).parent / "openings.json"
    return How(prompts=prompts, openings=str(openings), new_tokens=2, **more)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("prompts")
    for kind in ("safe", "unsafe"):
        (folder / f"{kind}.txt").write_text("\n".join(texts(kind)))
    mixed = [f"{a} {b}" for a, b in zip(texts("safe")[:9], texts("unsafe")[:9], strict=True)]
    (folder / "mixed.txt").write_text("\n".join(mixed))
    (folder / "openings.json").write_text('{"refusal": ["no"], "compliance": ["yes"]}')
    return tuple(f"{kind}={folder}/{kind}.txt" for kind in ("safe", "unsafe", "mixed"))


def build(architecture: str, **sizes: int) -> PreTrainedModel:
    torch.manual_seed(0)
    known = CONFIG_MAPPING[architecture]().to_dict()
    config = CONFIG_MAPPING[architecture](**{k: v for k, v in (SIZES | sizes).items() if k in known})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # as initialised, the blocks change next to nothing
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def save(model: PreTrainedModel, folder: Path, words: list[str] = WORDS) -> str:
    tokenizer = build_tokenizer(words)
    tokenizer.chat_template = TEMPLATE
    save_model(model, tokenizer, folder, 4)
    return str(folder)


@torch.no_grad()
def planted(base: PreTrainedModel) -> tuple[PreTrainedModel, torch.Tensor]:
    """W_in of layer 1 changes by a matrix of rank two, all of it in the left null space."""
    tuned, w = deepcopy(base), weight(base, 1, "W_in")
    outside = torch.linalg.svd(w.double()).U[:, w.shape[1] : w.shape[1] + 2]
    delta = (outside @ torch.randn(2, w.shape[1], dtype=torch.float64)).float()
    weight(tuned, 1, "W_in").add_(delta)
    return tuned, delta


def value(records: pd.DataFrame, **where: object) -> float:
    for name, wanted in where.items():
        records = records[records[name] == wanted]
    (found,) = records["value"]
    return float(found)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2"])
def test_a_change_planted_in_any_family_is_found(architecture: str, prompts: tuple[str, ...], tmp_path: Path) -> None:
    base = build(architecture)
    tuned, delta = planted(base)
    folders = [save(model, tmp_path / name) for name, model in (("base", base), ("tuned", tuned))]
    compare_models(*folders, tmp_path / "out", how(prompts), config=PROBES)
    found = read_records(tmp_path / "out/records.parquet")
    own = found[(found["model"] == "tuned") & (found["control"] == "")]
    about = {"layer": 1, "site": "W_in"}
    assert value(own, metric="null_share", **about) == pytest.approx(1, abs=1e-3)
    assert value(own, metric="effective_rank", **about) == pytest.approx(2, abs=0.3)
    size = delta.norm().item() / weight(base, 1, "W_in").norm().item()
    assert value(own, metric="relative_norm", **about) == pytest.approx(size, rel=1e-3)
    others = own[(own["metric"] == "relative_norm") & ~((own["layer"] == 1) & (own["site"] == "W_in"))]
    assert (others["value"] == 0).all()
    assert set(own.loc[own["metric"] == "gain", "layer"]) == {1}
    assert value(own, metric="gain", layer=1, kind="safe") > 0
    # Before layer 1 nothing has changed, so that what comes into it is the base's.
    for kind in ("safe", "unsafe", "mixed"):
        gains = [value(own, metric=f"gain{suffix}", layer=1, kind=kind) for suffix in ("", "_of_base_input")]
        assert gains[0] == pytest.approx(gains[1], rel=1e-5)
    taus = found[(found["metric"] == "tau_auc") & (found["control"] == "") & (found["layer"] == 0)]
    assert taus["value"].nunique() == 1  # of the layer below the change, in both models


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder, base = tmp_path_factory.mktemp("pair"), build("llama")
    return save(base, folder / "base"), save(planted(base)[0], folder / "tuned")


def test_the_command_writes_a_report_with_verdicts(
    pair: tuple[str, str], prompts: tuple[str, ...], tmp_path: Path
) -> None:
    given = ["--prompts", *prompts, "--openings", str(Path(prompts[0].partition("=")[2]).parent / "openings.json")]
    command = ["compare", *pair, *given, "--new-tokens", "3", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    told = json.loads((tmp_path / "out/verdicts.json").read_text())
    names = [claim["name"] for claim in told["claims"]]
    assert names[0] == "0 it refuses"
    assert {"5a mixed", "5b mixed", "5c mixed"} <= set(names)
    assert {verdict["claim"] for verdict in told["verdicts"]} == set(names)
    page = (tmp_path / "out/report.html").read_text()
    assert "5b mixed" in page
    assert page.count("<figure") >= 5
    scores = read_scores(tmp_path / "out/scores.parquet")
    assert {"refused", "refusal_margin", "scaled_tau", "log_gain", "log_sensitivity"} <= set(scores["metric"])
    assert json.loads((tmp_path / "out/pair.json").read_text())["formats"] == {"base": "chat", "tuned": "chat"}
    load_records(tmp_path / "out/records.parquet")


def test_it_goes_on_where_it_stopped(
    pair: tuple[str, str], prompts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:

        def stopped(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr("tunescope.compare.models.Origin", stopped)
        with pytest.raises(KeyboardInterrupt):
            compare_models(*pair, out, how(prompts), config=PROBES)
    before = (out / "parts/probe-base.parquet").stat().st_mtime_ns
    (tmp_path / "other.json").write_text('{"refusal": ["yes"]}')
    other = replace(how(prompts), openings=str(tmp_path / "other.json"))
    with pytest.raises(InputError, match="a comparison with another read"):
        compare_models(*pair, out, other, config=PROBES)
    compare_models(*pair, out, how(prompts), config=PROBES)
    assert (out / "parts/probe-base.parquet").stat().st_mtime_ns == before
    compare_models(*pair, tmp_path / "afresh", how(prompts), config=PROBES)
    pd.testing.assert_frame_equal(*(read_records(folder / "records.parquet") for folder in (out, tmp_path / "afresh")))


@pytest.mark.usefixtures("no_report")
def test_an_adapter_is_the_model_that_it_makes(prompts: tuple[str, ...], tmp_path: Path) -> None:
    base = build("llama")
    tuned, factors = deepcopy(base), {}
    for layer in (0, 1):
        b, a = torch.randn(16, 2), torch.randn(2, 16)
        weight(tuned, layer, "W_Q").add_(0.5 * b @ a)
        module = stored_name(base.config, layer, "W_Q").removesuffix(".weight")
        factors |= {f"base_model.model.{module}.lora_{n}.weight": m for n, m in (("A", a), ("B", b))}
    (tmp_path / "adapter").mkdir()
    save_file(factors, tmp_path / "adapter/adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 1}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
    before, after = save(base, tmp_path / "base"), save(tuned, tmp_path / "tuned")
    with pytest.raises(InputError, match="merge it first"):
        compare_models(before, str(tmp_path / "adapter"), tmp_path / "spread", how(prompts, memory=("cpu=12KB",)))
    for name, other in (("whole", after), ("lora", str(tmp_path / "adapter"))):
        compare_models(before, other, tmp_path / name, how(prompts), config=PROBES)
    # W_in is as it was: there are no claims on what its change does.
    assert "log_gain" not in set(read_scores(tmp_path / "lora/scores.parquet")["metric"])
    whole, lora = (numbers(read_records(tmp_path / name / "records.parquet")) for name in ("whole", "lora"))
    # The factors' rank is exact; that of the difference of rounded matrices is not.
    same = ~whole.index.get_level_values("metric").isin(["effective_rank", "null_share", "principal_angle"])
    pd.testing.assert_series_equal(whole[same], lora.loc[whole.index][same], rtol=1e-2, atol=1e-3)


# (6) larger than one device


@pytest.mark.usefixtures("no_report")
def test_a_model_that_is_partly_on_disk_gives_the_same_activations(
    pair: tuple[str, str], prompts: tuple[str, ...], tmp_path: Path
) -> None:
    compare_models(*pair, tmp_path / "whole", how(prompts), config=PROBES)
    compare_models(*pair, tmp_path / "spread", how(prompts, memory=("cpu=12KB",)), config=PROBES)
    whole, spread = (numbers(read_records(tmp_path / name / "records.parquet")) for name in ("whole", "spread"))
    missing = set(whole.index.get_level_values("metric")) - set(spread.index.get_level_values("metric"))
    assert missing == {
        *("sensitivity", "sensitivity_sd", "jacobian_norm", "jacobian_norm_sd"),
        *("refusal_intact", "refusal_without_direction"),
    }
    pd.testing.assert_series_equal(whole.loc[spread.index], spread, rtol=1e-4, atol=1e-5)


def test_fewer_prompts_go_at_once_where_memory_fails(
    pair: tuple[str, str], prompts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    from tunescope.compare import models

    asked, real = [], models.generate

    def hungry(*arguments: object) -> torch.Tensor:
        asked.append(arguments[-1])
        if len(asked) < 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(models, "generate", hungry)
    compare_models(*pair, tmp_path / "out", how(prompts), config=PROBES)
    assert asked[0] == 8 > asked[1] > asked[2]


# What is refused


def test_what_cannot_be_compared_is_refused_before_any_work(
    pair: tuple[str, str], prompts: tuple[str, ...], refused: Callable, tmp_path: Path
) -> None:
    base, out = pair[0], ["--out", str(tmp_path / "out")]
    wider = save(build("llama", intermediate_size=32), tmp_path / "wider")
    refused(["compare", base, wider, *out], "W_gate of layer 0", "[48, 16]", "[32, 16]")
    other = save(build("llama"), tmp_path / "other", [*WORDS[:4], "yes", "no", *WORDS[6:]])
    refused(["compare", base, other, *out], "two tokenizers: 'no' is token 4 in one, 5 in the other")
    refused(["compare", base, str(tmp_path), *out], "holds no model")
    one_sided = prompts[0]
    refused(["compare", *pair, *out, "--prompts", one_sided], "0 unsafe ones")
    refused(["compare", *pair, *out], "cannot read")  # the shipped ones, in words that are none of its own
    refused(["compare", *pair, *out, "--prompts", *prompts, "--memory", "much"], "--memory", "cpu=SIZE")
    refused(["compare", *pair, *out, "--prompts", *prompts, "--memory", "77=2GiB"], "--memory", "no such GPU")
    refused(
        ["compare", *pair, *out, "--prompts", *prompts, "--openings", str(how(prompts).openings), "--new-tokens", "40"],
        "takes 32 tokens",
        "prompt and its answer",
    )
    refused(["compare", *pair, *out, "--prompts", *prompts, "--new-tokens", "0"], "--new-tokens")
    assert not (tmp_path / "out").exists()
