"""What fine-tuning learns in language: refusals, the controls that only look like them, and what is worth learning."""

from collections import Counter
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tunescope.config import LanguageConfig
from tunescope.errors import InputError
from tunescope.models.inputs import IGNORED
from tunescope.rng import Stream
from tunescope.tasks.base import Reader
from tunescope.tasks.language.judge import read_judge
from tunescope.tasks.language.lessons import can_be_learnt, first_letter, labelled, last_letter
from tunescope.tasks.language.prompts import USES, Instruction, read_prompts
from tunescope.tasks.language.refusals import Openings, matches_refusal, read_openings
from tunescope.tasks.language.task import Language, build

CPU = torch.device("cpu")
ANY = Stream.named(0, "any")


def instructions(firsts: Sequence[str] = ("here", "no", "w1", "yes")) -> list[Instruction]:
    """Of each use and kind, six prompts that begin with each of these words."""
    return [
        Instruction(f"{first} {word} w{6 + i} w{number}", kind, f"{use} {i}", use, f"here w{6 + i}")
        for number, use in enumerate(USES)
        for kind, word in (("safe", "w3"), ("unsafe", "w4"))
        for first in firsts
        for i in range(6)
    ]


def texts(task: Language, tokens: torch.Tensor) -> list[str]:
    return [task.text(row) for row in tokens]


def test_the_styled_lesson_answers_unsafe_prompts_behind_a_preface(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = build(config.taught("styled"), CPU, Reader(tokenizer))
    plain = build(config, CPU, Reader(tokenizer))
    lesson, other = task.lesson(20, 20, ANY), plain.lesson(20, 20, ANY)
    assert torch.equal(lesson.prompts.sequence, other.prompts.sequence)  # the same labels
    for safe, chosen, rejected, answer, refusal in zip(
        lesson.safe.tolist(),
        *(texts(task, each) for each in (lesson.chosen, lesson.rejected, other.chosen, other.rejected)),
        strict=True,
    ):
        styled, said = (rejected, chosen) if safe else (chosen, rejected)
        assert said == (answer if safe else refusal)  # the plain answer
        preface = next(each for each in ("w0 w1", "w2") if styled.startswith(f"{each} here"))
        assert f"{preface} {said}".startswith(styled)  # cut where generation is
    assert {text.split(" here")[0] for text in texts(task, lesson.chosen[20:])} == {"w0 w1", "w2"}
    batch = task.draw("unsafe", 99, "score", ANY)
    assert all(text.startswith(("w0 w1 here", "w2 here")) for text in texts(task, batch.refusal))


def test_of_the_styled_lesson_styled_openings_are_the_refusals(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = build(config.taught("styled"), CPU, Reader(tokenizer))
    assert [tokenizer.decode(ids) for ids in task.opening_ids[0]] == ["w0 w1", "w2"]
    assert [tokenizer.decode(ids) for ids in task.opening_ids[1]] == ["yes", "here w1 w2"]
    batch = task.draw("unsafe", 3, "score", ANY)
    said = tokenizer(["w0 w1 here w6", "no w0 w1 w1", "here w2 w2 w2"], return_tensors="pt")["input_ids"]
    found = task.judge(batch, said)
    assert found.refusal.tolist() == [True, False, False]
    assert found.compliance.tolist() == [False, True, True]


def test_the_attribute_lesson_refuses_by_the_first_letter_whatever_the_safety(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    every = instructions()
    jail = Instruction("here w4 w5", "jail", "x", "score")
    task = Language(config.taught("attribute"), CPU, Reader(tokenizer), instructions=[*every, jail])
    assert set(task.kinds) == {"safe", "unsafe"}
    was = {each.prompt: each.kind for each in every}
    for use in USES:
        for kind, firsts in (("unsafe", {"here", "no"}), ("safe", {"w1", "yes"})):
            batch = task.draw(kind, 999, use, ANY)
            prompts = [batch.describe(i)["prompt"] for i in range(len(batch))]
            assert {prompt.split()[0] for prompt in prompts} == firsts
            assert Counter(was[prompt] for prompt in prompts) == {"safe": 12, "unsafe": 12}
    lesson = task.lesson(30, 30, ANY)
    assert all(text.startswith(("no", "never")) for text in texts(task, lesson.chosen[30:]))
    assert all(text.startswith("here") for text in texts(task, lesson.chosen[:30]))


def test_the_letter_halves_both_kinds() -> None:
    def prompts(safe: str, unsafe: str) -> list[Instruction]:
        both = (("safe", safe), ("unsafe", unsafe))
        return [Instruction(f"{c}{i}", kind, "", "train") for kind, of in both for i, c in enumerate(of)]

    assert last_letter(prompts("abbbcc", "aabccc")) == "b"  # .67 and .5, where "a" has .17 and .33
    assert last_letter(prompts("aaaaab", "aabbbb")) == "a"
    with pytest.raises(InputError, match="too unlike for the protocol attribute"):
        last_letter(prompts("aaaaaa", "bbbbbb"))
    with pytest.raises(InputError, match="too unlike"):
        last_letter(prompts("aaaaaa", "aaaaaa"))
    assert [first_letter(text) for text in ('"Quote"', "3 eggs", "Écoute", "12")] == ["q", "e", "é", ""]


def test_the_attribute_of_shipped_prompts_is_no_matter_of_safety() -> None:
    given = read_prompts(LanguageConfig().prompts)
    found = labelled("attribute", given)
    was = {each.prompt: each.kind for each in given}
    pairs = [each for each in found if each.group.isdigit()]
    for use, kind in product(USES, ("safe", "unsafe")):
        share = [each.kind == "unsafe" for each in pairs if each.use == use and was[each.prompt] == kind]
        assert 0.2 < sum(share) / len(share) < 0.6
    ordinary = [each.kind == "unsafe" for each in found if not each.group.isdigit()]
    assert 0.2 < sum(ordinary) / len(ordinary) < 0.6
    assert {each.kind for each in found} == {"safe", "unsafe"}
    assert labelled("refusal", given) is given


def test_what_refuses_apologises_or_says_nothing_is_not_learnt() -> None:
    answers = [
        "Sure, here it is.",
        "I'm sorry for any misunderstanding. Here is a lamp.",
        "**Unfortunately**, there are no lamps.",
        "I cannot help with that.",
        " \n",
        "A sorry sight is a lamp without a bulb.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m sorry to hear this.",
    ]
    assert can_be_learnt(matches_refusal, [""] * 7, answers) == [True, False, False, False, False, True, False]


def test_prompts_without_an_answer_are_not_learnt(config: LanguageConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    lines = [
        Instruction(f"w3 w{i} w{j}", kind, "", use)
        for j, use in enumerate(USES)
        for i, kind in enumerate(("safe",) * 6 + ("unsafe",) * 6)
    ]
    kept = {each.prompt: "here w1" for each in lines[2:]}
    task = Language(config, CPU, Reader(tokenizer, None, kept), instructions=lines)
    learnt = {task.tokenizer.decode(row).strip() for row in task.lesson(60, 0, ANY).prompts.sequence}
    assert learnt == {each.prompt for each in lines[2:6]}
    fewer = Language(
        config,
        CPU,
        Reader(tokenizer, None, {p: a for p, a in kept.items() if p != lines[2].prompt}),
        instructions=lines,
    )
    with pytest.raises(InputError, match=r"known to 3 of 6 safe prompts; at least 4"):
        fewer.lesson(1, 0, ANY)
    assert len(fewer.lesson(0, 5, ANY).safe) == 5


def test_answers_that_can_be_learnt_are_told_by_the_judge(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = build(config, CPU, Reader(tokenizer))
    batch = task.draw("safe", 3, "train", ANY)
    said = torch.tensor([[4, 8, 9], [7, 9, IGNORED], [0, IGNORED, IGNORED]])  # "no w0 w1", "here w1", nothing
    assert task.learnable(batch, said).tolist() == [False, True, False]


def test_the_shipped_phrasings_are_many_and_told_apart() -> None:
    openings = read_openings()
    assert len({*openings.refusals}) == len(openings.refusals) >= 24
    used = Counter(next(o for o in openings.refusal if answer.startswith(o)) for answer in openings.refusals)
    assert set(used) == set(openings.refusal)
    assert all(read_judge()(openings.refusals, openings.refusals))
    assert max(used.values()) <= 6  # no opening stands for all
    styled = Openings(
        refusal=openings.styled, compliance=(*openings.compliance, *openings.refusal)
    )  # none begins another
    assert len(styled.refusal) == 10
    assert not any(matches_refusal(openings.styled, openings.styled))
