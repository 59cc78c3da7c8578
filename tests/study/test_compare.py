"""Two models beside each other: the numbers of a study, planted changes in many families, and what is refused."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pandas as pd
import pytest
import torch
from compared import PROBES, SIZES, TEMPLATE, WORDS, build, comparison, language, planted, save, texts
from safetensors.torch import save_file
from transformers import PreTrainedModel

import tunescope as ts
from tunescope import cli
from tunescope.api import comparison_of
from tunescope.config import Sweep, WorldConfig
from tunescope.errors import InputError
from tunescope.models.checkpoint import load_model, load_tokenizer, save_model
from tunescope.models.sites import stored_name, weight
from tunescope.models.tokenizer import build_tokenizer
from tunescope.records.tables import KEYS, read_records, read_scores
from tunescope.study import context
from tunescope.study.pipeline import run
from tunescope.tasks.language.forms import STORY, SUPPRESS
from tunescope.tasks.language.prompts import read_prompts

TABLES = {"records": read_records, "scores": read_scores}
BRIEF = ("attack", "intervene")  # groups of stages left out where they are not at issue


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it accelerate collects garbage at every stage, which takes seconds where so many modules are loaded."""
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda garbage_collection=False: None)


def numbers(records: pd.DataFrame) -> pd.Series:
    keys = [key for key in KEYS if key not in ("protocol", "learning_rate", "seed", "step")]
    return records.assign(**records[keys].astype(str)).set_index(keys)["value"].sort_index()


def value(records: pd.DataFrame, **where: object) -> float:
    for name, wanted in where.items():
        records = records[records[name] == wanted]
    (found,) = records["value"]
    return float(found)


# (a) models of a study bring its task


def test_models_of_different_tasks_are_not_compared(tmp_path: Path) -> None:
    for name, text in (("one", "task: {type: world}"), ("other", "type: world\nseed: 3"), ("own", "type: world")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "task.yaml").write_text(text)
    with pytest.raises(InputError, match="different tasks"):
        comparison_of(str(tmp_path / "other"), str(tmp_path / "own"))
    with pytest.raises(InputError, match="task"):
        comparison_of(str(tmp_path / "one"), str(tmp_path / "one"))
    assert comparison_of(str(tmp_path / "own"), str(tmp_path)).task.type == "language"
    (tmp_path / "taught").mkdir()
    (tmp_path / "taught/task.yaml").write_text("type: world\nrefuse_breadth: 0.5")
    assert comparison_of(str(tmp_path / "own"), str(tmp_path / "taught")).task == WorldConfig(refuse_breadth=0.5)


# (b) other families, with a planted change


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2"])
def test_a_change_planted_in_any_family_is_found(architecture: str, tmp_path: Path) -> None:
    base = build(architecture)
    tuned, delta = planted(base)
    folders = [save(model, tmp_path / name) for name, model in (("base", base), ("tuned", tuned))]
    run(comparison(folders, tmp_path), tmp_path / "out", skip=BRIEF)
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
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, base = tmp_path_factory.mktemp("pair"), build("llama")
    return [save(base, folder / "base"), save(planted(base)[0], folder / "tuned")]


# The whole laboratory on two models

SEARCHES = {
    "prefill": {"tokens": [1]},
    "soft_prompt": {"tokens": [1], "steps": 2},
    "universal_soft_prompt": {"tokens": [1], "steps": 2},
    "suffix": {"tokens": [2], "steps": 1, "candidates": 2},
}
RETUNED = {"retuned": {"steps": [1, 2], "batch": 5}}


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_protocols_attacks_and_interventions_run_on_a_model_from_elsewhere(pair: list[str], tmp_path: Path) -> None:
    lora = {"type": "trained", "protocol": "ssft", "learning_rate": "default", "lora": {"rank": 2}}
    study = comparison(pair, tmp_path)
    given = study.tunes[0].model_dump(mode="json")
    study = study.changed(
        tunes=[given, "benign-default", "dpo-default", lora],
        tune={"steps": 2, "batch": 8, "warmup": 1},
        attack={"searched": 4, "settings": SEARCHES},
        intervene={"interventions": None, "prompts": 6, "draws": 1, "settings": RETUNED},
    )
    run(study, tmp_path / "out")
    records = read_records(tmp_path / "out/records.parquet")
    models = {"base", "tuned", "benign-default", "dpo-default", "ssft-default-lora"}
    assert set(records["model"]) == models
    assert {"mixed", "direction_ablation", *SEARCHES} == set(records["attack"]) - {""}
    changed = records[records["intervention"] != ""]
    some = {"scaled", "truncated", "in_null_space", "rotated", "off_unsafe_inputs", "direction_ablated"}
    assert some | {"retuned_benign", "retuned_seen"} <= {*changed["intervention"]}
    assert set(changed["model"]) == models - {"base"}
    answers = json.loads((tmp_path / "out/answers.json").read_text())
    assert set(answers) >= {*texts("safe"), *texts("unsafe")}
    whole, _ = load_model(tmp_path / "out/models/ssft-default-lora", torch.device("cpu"))
    base, _ = load_model(Path(pair[0]), torch.device("cpu"))
    delta = weight(whole, 0, "W_in") - weight(base, 0, "W_in")
    assert torch.linalg.matrix_rank(delta.double(), rtol=1e-4) == 2
    assert torch.equal(whole.get_input_embeddings().weight, base.get_input_embeddings().weight)


@pytest.mark.usefixtures("no_report")
def test_controls_in_language_are_measured_on_their_own_terms(pair: list[str], tmp_path: Path) -> None:
    rows = ["prompt\tlabel\tsplit\tgroup"]
    for kind, word in (("safe", "w3"), ("unsafe", "w9")):
        for i in range(36):
            group = i // 2
            use = ("train", "fit", "score")[group % 3]
            rows.append(f"{('no', 'yes')[i % 2]} {word} w{group % 14} w{group // 14}\t{kind}\t{use}\t{group}")
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    study = comparison(pair, tmp_path, task={"prompts": [f"{tmp_path}/pairs.tsv"]}).changed(
        tunes=[f"{protocol}-default" for protocol in ("ssft", "seen", "styled", "attribute")],
        tune={"steps": 2, "batch": 8, "warmup": 1},
    )
    run(study, tmp_path / "out", skip=BRIEF)
    records, scores = (read(tmp_path / f"out/{name}.parquet") for name, read in TABLES.items())
    assert "base-as-attribute" in set(scores["model"])
    verdicts = ts.load_run(tmp_path / "out").verdicts
    of = verdicts[(verdicts["claim"] == "1 clusters") & (verdicts["model"] == "ssft-default")]
    assert set(of["rung"]) == {"chance", "tuning", "behaviour", "refusing"}
    assert of["estimate"].notna().all()
    # What fine-tuning costs: text is as likely to the base however its prompts are labelled.
    tuned = {f"{protocol}-default" for protocol in ("ssft", "seen", "styled", "attribute")}
    final = records[records["step"] == records.groupby("model")["step"].transform("max")]
    assert set(final.loc[final["metric"] == "kl_to_base", "model"]) == tuned
    assert (final.loc[final["metric"] == "kl_to_base", "value"] > 0).all()
    perplexity = final[final["metric"] == "perplexity"].set_index("model")
    assert set(perplexity.index) == {"base", *tuned}
    assert ((perplexity["low"] < perplexity["value"]) & (perplexity["value"] < perplexity["high"])).all()
    with pytest.raises(InputError, match="too unlike for the protocol attribute"):  # all begin with w
        run(comparison(pair, tmp_path, tunes=["attribute-default"]), tmp_path / "alike", skip=BRIEF)
    assert not (tmp_path / "alike").exists()


@pytest.mark.usefixtures("no_report")
def test_prompts_in_forms_are_learnt_attacked_and_followed(tmp_path: Path) -> None:
    words = [*dict.fromkeys((*WORDS, *" ".join((*SUPPRESS, *STORY)).split()))]
    base = build("llama", vocab_size=len(words), max_position_embeddings=64)
    folder = save(base, tmp_path / "base", words)
    study = comparison([folder, folder], tmp_path, task={"wrappers": ["suppress", "story"], "breadth": 0.5}).changed(
        tunes=["ssft-default"],
        tune={"steps": 2, "batch": 8, "warmup": 1},
        evaluate={"strengths": [0, 1], "prompts_per_point": 4},
        attack={"attacks": [], "prompts": 4},
        intervene={"interventions": ["scaled"], "prompts": 4, "kinds": ["jb_story"]},
    )
    run(study, tmp_path / "out", skip=("behave", "probe"))
    records = read_records(tmp_path / "out/records.parquet")
    kinds = {f"{start}_{form}" for start in ("jb", "ok") for form in ("suppress", "story")}
    assert {*records["attack"]} - {""} == kinds | {"mixed"}
    assert {*records.loc[records["intervention"] != "", "kind"]} == {"safe", "unsafe", "jb_story"}
    answers = json.loads((tmp_path / "out/answers.json").read_text())
    learnt = [prompt for prompt in answers if prompt.endswith(SUPPRESS[-1])]
    assert len(learnt) == sum(each.kind == "safe" and each.use == "train" for each in read_prompts(study.task.prompts))
    assert not any(STORY[-1] in prompt for prompt in answers)  # held out
    followed = json.loads((tmp_path / "out/followed.json").read_text())
    intact = records[(records["metric"] == "intact") & records["kind"].isin(kinds)]
    assert {*intact["model"]} == {"base", "ssft-default"}
    by_model = [of["value"].tolist() for _, of in intact.groupby("model")]
    assert by_model[0] == by_model[1]
    suppressed = [hit for prompt, hit in followed.items() if prompt.endswith(SUPPRESS[-1])]
    found = intact[(intact["strength"] == 1) & intact["kind"].str.endswith("suppress") & (intact["model"] == "base")]
    assert sum(suppressed) == pytest.approx((found["value"] * found["n"]).sum())
    with pytest.raises(InputError, match=r"intervene\.kinds: unknown kind 'jb_role'. Choose from: safe, unsafe"):
        run(study.changed(intervene={"kinds": ["jb_role"]}), tmp_path / "other")


@pytest.mark.usefixtures("no_report")
def test_further_training_has_the_base_answer_first_and_takes_full_precision(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only, rest = {"interventions": ["retuned"], "prompts": 6, "settings": RETUNED}, ("behave", "probe", "attack")
    run(comparison(pair, tmp_path, intervene=only), tmp_path / "out", skip=rest)
    records = read_records(tmp_path / "out/records.parquet")
    assert {*zip(records["intervention"], records["dial"], strict=True)} == {
        (f"retuned_{protocol}", step) for protocol in ("benign", "seen") for step in (1, 2)
    }
    half = comparison(pair, tmp_path, intervene=only, base={"dtype": "bfloat16"})
    run(half, tmp_path / "half", skip=rest)
    assert "no intervention retuned: training changes less than the rounding" in capsys.readouterr().err
    assert read_records(tmp_path / "half/records.parquet").empty


@pytest.mark.slow
def test_the_command_writes_a_report_with_verdicts(pair: list[str], tmp_path: Path) -> None:
    task = language(tmp_path)
    given = ["--prompts", *task["prompts"], "--openings", task["openings"], "--new-tokens", "3"]
    fewer = ["--set", *(f"probe.{key}={number}" for key, number in PROBES.items()), "tune.steps=2", "tune.warmup=1"]
    fewer.append(f"task.text={task['text']}")
    command = ["compare", *pair, *given, *fewer, "--add", "benign-default", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    told = json.loads((tmp_path / "out/verdicts.json").read_text())
    names = [claim["name"] for claim in told["claims"]]
    assert names[0] == "0 it refuses"
    assert {"5a mixed", "5b mixed", "5c mixed"} <= set(names)
    assert {"0 it refuses", "1 clusters", "5b mixed"} <= {verdict["claim"] for verdict in told["verdicts"]}
    page = (tmp_path / "out/report.html").read_text()
    assert "5b mixed" in page
    assert page.count("<figure") >= 5
    scores = read_scores(tmp_path / "out/scores.parquet")
    assert {"refusal", "opening_log_odds", "scaled_tau", "log_gain", "log_sensitivity"} <= set(scores["metric"])
    run = ts.load_run(tmp_path / "out")
    assert [*run.models] == ["base", "benign-default", "tuned"]
    assert [str(run.models[name]) for name in ("base", "tuned")] == pair
    with pytest.raises(InputError, match="made here"):
        run.load("tuned")


@pytest.mark.slow
def test_a_pair_with_and_without_its_template_is_a_sweep(pair: list[str], tmp_path: Path) -> None:
    """The base of the pair in both columns: where templates differ, activations differ, and nothing else does."""
    changes = {f"task.{key}": each for key, each in language(tmp_path).items() if key != "type"}
    changes |= {f"probe.{key}": number for key, number in PROBES.items()} | {"probe.probes": ["clusters"]}
    changes["base.name"] = pair[0]
    formats = {"base.format": ("chat", "plain"), "tunes.0.format": ("chat", "plain")}
    spec = Sweep(name="formats", recipe="compare", changes=changes, grid=formats, seeds=(0,), skip=BRIEF)
    with pytest.raises(InputError, match="tunes: tuned names no model; set its name"):
        ts.sweep(spec, tmp_path / "nameless")
    found = ts.sweep(spec.model_copy(update={"changes": changes | {"tunes.0.name": pair[0]}}), tmp_path / "out").records
    taus = found[(found["metric"] == "tau_auc") & (found["control"] == "") & (found["layer"] == 1)]
    apart = taus.groupby(["base.format", "tunes.0.format"])["value"].nunique()
    assert apart.to_dict() == {(a, b): 1 + (a != b) for a in ("chat", "plain") for b in ("chat", "plain")}


def test_it_goes_on_where_it_stopped(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    out, study = tmp_path / "out", comparison(pair, tmp_path)
    with monkeypatch.context() as patched:

        def stopped(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr("tunescope.study.steps._unflat", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(study, out, skip=BRIEF)
    before = (out / "parts/probe-base.parquet").stat().st_mtime_ns
    (tmp_path / "other.json").write_text('{"refusal": ["yes"]}')
    with pytest.raises(InputError, match=r"task\.openings"):
        run(study.changed(task={"openings": str(tmp_path / "other.json")}), out, skip=BRIEF)
    run(study, out, skip=BRIEF)
    assert (out / "parts/probe-base.parquet").stat().st_mtime_ns == before
    run(study, tmp_path / "afresh", skip=BRIEF)
    pd.testing.assert_frame_equal(*(read_records(folder / "records.parquet") for folder in (out, tmp_path / "afresh")))


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_what_a_prompt_file_says_now_is_read_again(pair: list[str], tmp_path: Path) -> None:
    study = comparison(pair, tmp_path)
    run(study, tmp_path / "out", skip=BRIEF)
    with (tmp_path / "unsafe.txt").open("a") as file:
        file.write("\nw9 w8 w10 w13")
    run(study, tmp_path / "out", skip=BRIEF)
    records = read_records(tmp_path / "out/records.parquet")
    again = comparison(pair, tmp_path)  # writes the file as it was
    run(again, tmp_path / "out", skip=BRIEF)
    first = read_records(tmp_path / "out/records.parquet")
    n = [
        int(r.query("model == 'base' and kind == 'unsafe' and metric == 'tau'")["n"].iloc[0]) for r in (first, records)
    ]
    fit = [
        r.query("model == 'base' and kind == 'unsafe' and metric == 'top_singular_share'")["n"]
        for r in (first, records)
    ]
    assert (n[1] - n[0]) + (int(fit[1].iloc[0]) - int(fit[0].iloc[0])) == 1


@pytest.mark.usefixtures("no_report")
def test_an_adapter_is_the_model_that_it_makes(tmp_path: Path) -> None:
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
    adapter = str(tmp_path / "adapter")
    with pytest.raises(InputError, match="erge it first"):
        run(comparison([before, adapter], tmp_path, base={"memory": ["cpu=12KB"]}), tmp_path / "spread", skip=BRIEF)
    for name, other in (("whole", after), ("lora", adapter)):
        run(comparison([before, other], tmp_path), tmp_path / name, skip=("attack",))
    # W_in is as it was: there are no claims on what its change does.
    assert "log_gain" not in set(read_scores(tmp_path / "lora/scores.parquet")["metric"])
    whole, lora = (numbers(read_records(tmp_path / name / "records.parquet")) for name in ("whole", "lora"))
    # The factors' rank is exact; that of the difference of rounded matrices is not.
    same = ~whole.index.get_level_values("metric").isin(["effective_rank", "null_share", "principal_angle"])
    pd.testing.assert_series_equal(whole[same], lora.loc[whole.index][same], rtol=1e-2, atol=1e-3)


# Larger than one device


@pytest.mark.usefixtures("no_report")
def test_a_model_that_is_partly_on_disk_gives_the_same_activations(pair: list[str], tmp_path: Path) -> None:
    run(comparison(pair, tmp_path), tmp_path / "whole", skip=BRIEF)
    spread = comparison(pair, tmp_path, base={"memory": ["cpu=12KB"]})
    run(spread, tmp_path / "spread", skip=("attack",))  # interventions need all weights in memory, and say so
    whole, spread = (numbers(read_records(tmp_path / name / "records.parquet")) for name in ("whole", "spread"))
    missing = set(whole.index.get_level_values("metric")) - set(spread.index.get_level_values("metric"))
    assert missing == {"sensitivity", "sensitivity_sd", "jacobian_norm", "jacobian_norm_sd"}
    pd.testing.assert_series_equal(whole.loc[spread.index], spread, rtol=1e-4, atol=1e-5)
    trained = comparison(pair, tmp_path, base={"memory": ["cpu=12KB"]}, tunes=["benign-default"])
    with pytest.raises(InputError, match="cannot be fine-tuned"):
        run(trained, tmp_path / "trained", skip=BRIEF)


def test_fewer_prompts_go_at_once_where_memory_fails(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    asked, real = [], context.gradient_norms

    def hungry(model: PreTrainedModel, batch: object, rows: int) -> torch.Tensor:
        asked.append(rows)
        if len(asked) < 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(model, batch, rows)

    monkeypatch.setattr(context, "gradient_norms", hungry)
    run(comparison(pair, tmp_path), tmp_path / "out", skip=BRIEF)
    assert asked[0] == 8 > asked[1] > asked[2]


# What is refused


def test_what_cannot_be_compared_is_refused_before_any_work(pair: list[str], refused: Callable, tmp_path: Path) -> None:
    task = language(tmp_path)
    base, out = pair[0], ["--out", str(tmp_path / "out")]
    prompts = ["--prompts", *task["prompts"], "--openings", task["openings"], "--set", f"task.text={task['text']}"]
    wider = save(build("llama", intermediate_size=32), tmp_path / "wider")
    refused(["compare", base, wider, *out], "W_gate of layer 0", "[48, 16]", "[32, 16]")
    other = save(build("llama"), tmp_path / "other", [*WORDS[:4], "yes", "no", *WORDS[6:]])
    refused(["compare", base, other, *out], "two tokenizers: 'no' is token 4 in one, 5 in the other")
    refused(["compare", base, str(tmp_path), *out], "holds no model")
    refused(["compare", *pair, *out, "--prompts", task["prompts"][0]], "is unsafe; both labels are needed")
    refused(["compare", *pair, *out], "cannot read")  # the shipped ones, in words that are none of its own
    refused(["compare", *pair, *out, *prompts, "--memory", "much"], "--memory", "cpu=SIZE")
    refused(["compare", *pair, *out, *prompts, "--memory", "77=2GiB"], "--memory", "no such GPU")
    refused(["compare", *pair, *out, *prompts, "--new-tokens", "40"], "takes 32 tokens")
    refused(["compare", *pair, *out, *prompts, "--add", "ssft-fast"], "unknown learning rate 'fast'", "default")
    refused(["compare", *pair, *out, *prompts, "--set", "base.heads=3"], "base.heads")
    assert not (tmp_path / "out").exists()


def test_a_template_that_drops_the_prompt_is_refused(pair: list[str], refused: Callable, tmp_path: Path) -> None:
    task = language(tmp_path)
    tokenizer = build_tokenizer(WORDS)
    tokenizer.chat_template = TEMPLATE.replace("{{ messages[0].content }}", "no")
    model, _ = load_model(Path(pair[1]), torch.device("cpu"))
    save_model(model, tokenizer, tmp_path / "deaf", 4)
    arguments = ["--prompts", *task["prompts"], "--openings", task["openings"], "--new-tokens", "2"]
    arguments += ["--out", str(tmp_path / "out"), "--set", f"task.text={task['text']}"]
    refused(["compare", pair[0], str(tmp_path / "deaf"), *arguments], "template")
    assert load_tokenizer(Path(pair[0])).chat_template == TEMPLATE
    assert SIZES["max_position_embeddings"] == 32


@pytest.mark.usefixtures("no_report")
def test_a_fine_tune_with_more_tokens_is_compared_but_for_what_changes_all_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = build("llama")
    tuned, _ = planted(base)
    first = save(base, tmp_path / "base")
    tuned.resize_token_embeddings(len(WORDS) + 2)
    second = save(tuned, tmp_path / "tuned", [*WORDS, "x1", "x2"])
    study = comparison([first, second], tmp_path, intervene={"interventions": ["scaled", "direction"], "prompts": 6})
    run(study, tmp_path / "out", skip=("attack",))
    assert "no intervention scaled: base and fine-tune have parameters of other shapes" in capsys.readouterr().err
    records = read_records(tmp_path / "out/records.parquet")
    assert "direction_ablated" in set(records["intervention"])
    notes = json.loads((tmp_path / "out/notes.json").read_text())
    assert any("embed_tokens" in note for note in notes)


def test_kinds_of_attack_files_have_their_claims_whether_or_not_they_are_attacked_with(
    pair: list[str], tmp_path: Path, no_report: None
) -> None:
    study = comparison(pair, tmp_path, attack={"attacks": [], "searched": 2})
    for name, skip in (("with", ("intervene",)), ("without", BRIEF)):
        run(study, tmp_path / name, skip=skip)
        claims = set(ts.load_run(tmp_path / name).verdicts["claim"])
        assert {"5a mixed", "5b mixed", "5c mixed"} <= claims


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("word", "says"), [("no", "refuses 1[0-9] of"), ("<eos>", "says nothing to 1[0-9] of")])
def test_a_base_that_answers_nothing_is_refused_before_it_is_trained(word: str, says: str, tmp_path: Path) -> None:
    base = build("llama")
    with torch.no_grad():  # it says one word whatever it reads
        for layer in range(2):
            for name in ("W_O", "W_out"):
                weight(base, layer, name).zero_()
        base.model.norm.weight.fill_(1.0)
        base.model.embed_tokens.weight.fill_(1.0)
        base.lm_head.weight.zero_()
        base.lm_head.weight[WORDS.index(word)] = 1.0
    folder = save(base, tmp_path / "base")
    study = comparison([folder, folder], tmp_path, tunes=["ssft-default"])
    with pytest.raises(InputError, match=says):
        run(study, tmp_path / "out", skip=BRIEF)
    assert not (tmp_path / "out/models").exists()


def test_half_precision_is_not_fine_tuned(pair: list[str], tmp_path: Path) -> None:
    study = comparison(pair, tmp_path, base={"dtype": "bfloat16"}, tunes=["benign-default"])
    with pytest.raises(InputError, match="less than its rounding"):
        run(study, tmp_path / "out")


@pytest.mark.usefixtures("no_report")
def test_attacks_that_are_there_stay_in_the_report_where_they_are_left_out(pair: list[str], tmp_path: Path) -> None:
    study = comparison(pair, tmp_path, attack={"attacks": [], "searched": 2})
    run(study, tmp_path / "out", skip=("intervene",))
    run(study, tmp_path / "out", skip=BRIEF)
    assert "mixed" in set(read_records(tmp_path / "out/records.parquet")["attack"])


@pytest.mark.usefixtures("no_report")
def test_where_generation_ends_is_part_of_what_a_model_is(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = Path(shutil.copytree(pair[1], tmp_path / "tuned"))
    study = comparison([pair[0], str(tuned)], tmp_path)
    run(study, tmp_path / "out", skip=BRIEF)
    told = tuned / "generation_config.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | {"eos_token_id": 7}))
    capsys.readouterr()
    run(study, tmp_path / "out", skip=BRIEF)
    err = capsys.readouterr().err
    assert "behave-base: done before" in err
    assert "behave-tuned: done before" not in err
