"""The recipe `language` from end to end, on a small model of byte pairs."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

import tunescope as ts
from tunescope import cli
from tunescope.explore.live import Change
from tunescope.models.checkpoint import save_model
from tunescope.tasks.language.prompts import read_prompts

TEMPLATE = "<user>{{ messages[0].content }}{% if add_generation_prompt %}<assistant>{% endif %}"
FEW = {
    "tunes": ["ssft-eta_m", "seen-eta_m"],
    "task.new_tokens": 6,
    "tune.steps": 2,
    "tune.warmup": 1,
    "tune.batch": 5,
    "evaluate.prompts": 6,
    "evaluate.examples": 1,
    "probe.prompts": 8,
    "probe.fit_prompts": 8,
    "probe.few_prompts": 4,
    "attack.searched": 4,
    "attack.settings.prefill.tokens": [1],
    "intervene.prompts": 4,
    "intervene.draws": 1,
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    how = {
        "special_tokens": ["<eos>", "<user>", "<assistant>"],
        "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(),
    }
    texts = [each.prompt for each in read_prompts(["shipped:instructions"])]
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, show_progress=False, **how))
    told = {"eos_token": "<eos>", "pad_token": "<eos>", "chat_template": TEMPLATE}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **told)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, eos_token_id=0, pad_token_id=0, **sizes)
        save_model(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path / "base", 6)
    return tmp_path / "base"


@pytest.mark.usefixtures("no_report")
def test_a_model_is_made_to_refuse_and_measured(base: Path, tmp_path: Path) -> None:
    settings = [f"base.name={base}", *(f"{key}={json.dumps(value)}" for key, value in FEW.items())]
    assert cli.main(["study", "language", "--set", *settings, "--out", str(tmp_path / "out")]) == 0
    run = ts.load_run(tmp_path / "out")
    assert set(run.records["model"]) == {"base", "ssft-eta_m", "seen-eta_m"}
    refused = run.records.query("metric == 'refusal' and attack == '' and intervention == ''")
    forms = {f"{start}_{form}" for start in ("jb", "ok") for form in ("co_task", "role", "story", "leet")}
    assert set(refused["kind"]) == {"safe", "unsafe", "safe_xstest", "xstest_unsafe", *forms}
    assert {"prefill", *forms} <= set(run.records["attack"])
    assert {"scaled", "truncated", "rotated", "in_null_space", "direction_added"} <= set(run.records["intervention"])
    assert {"0", "1"} <= {claim[0] for claim in run.verdicts["claim"]}
    changed = run.load("ssft-eta_m").get_input_embeddings().weight
    was = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    assert not torch.equal(changed, was)
    assert run.models == {"base": base, **{name: run.folder / "models" / name for name in ("seen-eta_m", "ssft-eta_m")}}
    _is_explored(run)


def _is_explored(run: ts.Run) -> None:
    """What is typed looks as in the examples of the study; a chosen prompt reads as the same one typed."""
    model = run.live["ssft-eta_m"]
    rows = json.loads((run.folder / "examples.json").read_text())
    for row in [row for row in rows if row["kind"] in ("safe", "jb_role")]:
        seen, answer = model.look(model.ask_text(row["prompt"])), row["answers"]["ssft-eta_m"]
        assert (seen.answer, seen.outcome) == (answer["text"], answer["outcome"])
        assert seen.tau.tolist() == pytest.approx(answer["tau"], rel=5e-3, abs=1e-3)
        assert seen.gain is not None
        assert seen.gain[:, -1].tolist() == pytest.approx(answer["gain"], rel=5e-3)
    chosen = model.ask("unsafe", 0)
    same = [model.look(each) for each in (chosen, model.ask_text(chosen.batch.describe(0)["prompt"]))]
    assert same[0].tokens == same[1].tokens  # no padding
    assert same[0].odds == pytest.approx(same[1].odds, abs=1e-5)
    at_base = model.look(chosen, Change(alpha=0.0))
    assert at_base.odds == pytest.approx(run.live["base"].look(run.live["base"].ask("unsafe", 0)).odds, abs=1e-5)
    with pytest.raises(ts.InputError, match="it is empty"):
        model.ask_text(" ")
    with pytest.raises(ts.InputError, match=r"it has \d+ tokens; ssft-eta_m takes"):
        model.look(model.ask_text("long " * 3000))


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_runs_of_one_base_ask_it_once(base: Path, tmp_path: Path) -> None:
    few = {"tunes": [], "task.new_tokens": 5, "task.wrappers": [], "evaluate.prompts": 4, "attack.attacks": []}
    settings = [f"base.name={base}", *(f"{key}={json.dumps(value)}" for key, value in few.items())]
    skipped = ["--skip", "probe", "intervene"]
    out = tmp_path / "out"
    assert cli.main(["study", "language", "--set", *settings, "--seed", "0", "1", "--out", str(out), *skipped]) == 0
    one, other = (tmp_path / f"out-seed{seed}" for seed in (0, 1))
    assert (one / "answers.json").samefile(other / "answers.json")
    assert not (one / "records.parquet").samefile(other / "records.parquet")
