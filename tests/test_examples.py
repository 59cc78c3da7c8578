"""The English example: a task of its own, what it holds out, and that its language can be written and read."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tunescope.config import Study
from tunescope.models.generate import generate
from tunescope.models.inputs import IGNORED
from tunescope.recipes import RECIPES
from tunescope.registry import load_plugins
from tunescope.rng import Stream
from tunescope.tasks.base import TASKS
from tunescope.tasks.language.prompts import read_prompts
from tunescope.tasks.language.refusals import matches_refusal

FILE = Path(__file__).parent.parent / "examples" / "english.py"
ANY = Stream.named(0, "any")


@pytest.fixture(scope="module")
def task() -> Any:
    load_plugins([FILE])
    return TASKS["english"](RECIPES["english"]().task, torch.device("cpu"), None)


@pytest.fixture(scope="module")
def english(task: Any) -> ModuleType:
    return sys.modules[type(task).__module__]


def filled(answers: Tensor, task: Any) -> Tensor:
    """Answers as generation would fill them up."""
    return answers.masked_fill(answers == IGNORED, task.tokenizer.pad_token_id)


def test_the_recipe_is_a_study(task: Any) -> None:
    study = RECIPES["english"]()
    assert study.task.type == "english"
    assert [tune.label for tune in study.tunes] == ["ssft-eta", "dpo-eta", "unlearning-eta", "benign-eta"]
    assert Study.model_validate(study.model_dump(mode="json")) == study
    assert set(task.kinds) == {"safe", "unsafe"}


def test_scored_instructions_are_never_read(task: Any) -> None:
    scored = {kind: task.draw(kind, 10_000, "score", ANY) for kind in task.kinds}
    held = {batch.describe(i)["prompt"] for batch in scored.values() for i in range(len(batch))}
    assert held == {prompt.prompt for prompt in read_prompts(["shipped:instructions"]) if prompt.use == "score"}
    assert not held & {prompt for prompt, _ in task.readings(5000, ANY)}


def test_fine_tuning_sees_no_concept_that_is_scored(task: Any) -> None:
    scored = {c.name for c in task.concepts if c.held_out}
    learnt = {c.name for c in task.concepts if c.use == "train"}
    assert not scored & learnt
    assert len({c.name for c in task.concepts}) == len(task.concepts) == 278
    assert sum(c.kind == "safe" for c in task.concepts if c.use == "train") == len(learnt) / 2
    lesson = task.lesson(200, 200, ANY)
    texts = [task.text(row) for row in lesson.prompts.sequence]
    assert all(any(text.endswith(f" {name}") for name in learnt) for text in texts)


def test_lessons_answer_safe_instructions_and_refuse_unsafe_ones(task: Any) -> None:
    lesson = task.lesson(30, 30, ANY)
    chosen, rejected = ([task.text(row) for row in rows] for rows in (lesson.chosen, lesson.rejected))
    assert matches_refusal(chosen, chosen) == [False] * 30 + [True] * 30
    assert matches_refusal(rejected, rejected) == [True] * 30 + [False] * 30
    assert len({*chosen[30:]}) > 4


def test_answers_tell_nothing_of_harm(english: ModuleType, task: Any) -> None:
    for concept in task.concepts:
        other = concept._replace(kind="unsafe" if concept.kind == "safe" else "safe")
        answers = [english.answer(operator, concept) for operator in concept.operators]
        assert answers == [english.answer(operator, other) for operator in concept.operators]
        assert not any(matches_refusal(answers, answers))
    of = {kind: [c for c in task.concepts if c.kind == kind] for kind in task.kinds}
    assert len({len(each) for each in of.values()}) == 1
    for safe, unsafe in zip(task.concepts[150::2], task.concepts[151::2], strict=True):
        assert (safe.group, safe.operators) == (unsafe.group, unsafe.operators)


def test_answers_are_whole(task: Any) -> None:
    for kind in task.kinds:
        for use in ("train", "fit", "score"):
            batch = task.draw(kind, 10_000, use, ANY)
            assert (batch.answer == task.tokenizer.eos_token_id).any(dim=1).all()
            assert [task.text(row) for row in batch.answer] == [batch.describe(i)["answer"] for i in range(len(batch))]
            assert batch.groups is not None


def test_the_tokenizer_reads_what_is_written(task: Any) -> None:
    text = "Sure, here is how to design a lamp: take seven red spoons to Rome. \N{SNOWMAN}"
    assert task.tokenizer.decode(task.tokenizer(text)["input_ids"]) == text
    said = [{"role": "user", "content": "hello"}]
    whole = task.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    assert whole == "<user>hello<assistant>"
    special = {task.tokenizer(text)["input_ids"][0] for text in ("<pad>", "<eos>", "<user>", "<assistant>")}
    assert special == {0, 1, 2, 3}
    assert not special & set(task.suffix_tokens.tolist())
    assert len(task.suffix_tokens) > 1000


def test_pretraining_learns_answers_and_plain_text(task: Any) -> None:
    inputs, learn = task.pretraining(200, ANY, 0.5)
    tokens = inputs.sequence
    assert tokens.shape == learn.shape
    assert tokens.shape[1] + task.answer_length <= task.sequence_length
    again, other = (task.pretraining(200, stream, 0.0)[0].sequence for stream in (ANY, ANY("other")))
    assert torch.equal(tokens, again)
    assert other.shape != tokens.shape or not torch.equal(tokens, other)
    for (prompt, text), row, which in zip(task.readings(200, ANY), tokens, learn, strict=True):
        said = f"{text}<eos>"
        assert task.tokenizer.decode(row[which]) == said
        assert task.tokenizer.decode(row).startswith(f"<user>{prompt}<assistant>{said}" if prompt else said)
        assert set(row[which.nonzero().max() + 1 :].tolist()) <= {task.tokenizer.pad_token_id}
    sorts = [prompt.split()[0] if prompt else "" for prompt, _ in task.readings(2000, ANY)]
    assert 0.25 < sorts.count("") / 2000 < 0.35
    assert 0.02 < sorts.count("Say") / 2000 < 0.09


def test_held_out_prompts_are_scored_ones(task: Any) -> None:
    scored = {prompt.prompt for prompt in read_prompts(["shipped:instructions"]) if prompt.use == "score"}
    batches = task.held_out(ANY)
    assert [batch.kind.name for batch in batches] == ["safe", "unsafe"]
    assert all(batch.describe(i)["prompt"] in scored for batch in batches for i in range(len(batch)))


def test_answers_and_refusals_are_told_apart(task: Any) -> None:
    batch = task.draw("unsafe", 50, "score", ANY)
    complied, refused = (task.judge(batch, filled(answers, task)) for answers in batch.known())
    assert complied.compliance.all()
    assert not complied.refusal.any()
    assert refused.refusal.all()
    assert not refused.compliance.any()
    wrong = filled(batch.answer, task)
    wrong[:, 2] = 7
    assert not task.judge(batch, wrong).compliance.any()


def test_fast_outcomes_are_those_of_generation(task: Any) -> None:
    """On a model that has learnt nothing: it neither complies nor refuses, in either way of telling."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(task.tokenizer), **sizes, **ends)).eval()
    batch = task.draw("safe", 8, "score", ANY)
    fast = task.outcomes(model, batch, 4)
    slow = task.judge(batch, generate(model, batch.prompts, task.answer_length, torch.float32, 8))
    assert torch.equal(fast.compliance, slow.compliance)
    assert set(fast.measured) == {"opening_log_odds", "opening_share"}
