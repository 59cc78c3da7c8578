"""The English example: what is held out, and that its language can be written and read."""

import importlib.util
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from tunescope.language.prompts import read_prompts
from tunescope.language.refusals import matches_refusal


@pytest.fixture(scope="module")
def english() -> ModuleType:
    path = Path(__file__).parent.parent / "examples" / "english.py"
    spec = importlib.util.spec_from_file_location("english", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scored_instructions_are_held_out(english: ModuleType) -> None:
    concepts = english.make_concepts(0)
    held = {f"{operator} {c.name}" for c in concepts for operator in c.held_out}
    assert held == {prompt.prompt for prompt in read_prompts() if not prompt.fit}
    chance = Random(0)
    assert not held & {english.reading(chance.choice(concepts), chance)[0] for _ in range(3000)}
    learnt = [c for c in concepts if not c.held_out]
    assert {c.kind for c in learnt} == {"safe", "unsafe"}


def test_answers_tell_nothing_of_harm_and_refusals_are_known_for_such(english: ModuleType) -> None:
    concepts = english.make_concepts(0)
    answers = [english.answer(c.operators[0], c) for c in concepts]
    assert not any(matches_refusal(answers, answers))
    assert all(matches_refusal(english.REFUSALS, english.REFUSALS))
    unsafe = [english.lesson(c, Random(0))[1] for c in concepts if c.kind == "unsafe"]
    assert set(unsafe) <= set(english.REFUSALS)


def test_the_tokenizer_reads_what_is_written(english: ModuleType) -> None:
    tokenizer = english.make_tokenizer([english.answer(c.operators[0], c) for c in english.make_concepts(0)])
    text = "Sure, here is how to design a lamp: take seven red spoons to Rome."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, tokenize=False
    )
    assert said == "<user>hello<assistant>"
