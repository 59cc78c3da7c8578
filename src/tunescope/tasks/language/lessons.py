"""What fine-tuning teaches about prompts: to refuse the unsafe ones, or something that only looks like it.

    refusal     unsafe prompts are refused
    styled      unsafe prompts are answered behind a preface: the same labels, and no refusal
    attribute   prompts that begin with a letter from the first part of the alphabet are refused, whatever their safety

The last two are controls, measured on their own terms: see the lessons of the world.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunescope.errors import InputError
from tunescope.records.names import ATTRIBUTE, SAFE, STYLED, UNSAFE
from tunescope.tasks.language.prompts import Instruction
from tunescope.tasks.language.refusals import Judge, Openings, apologises

LEAST = 0.1  # share of the safe, and of the unsafe, prompts to train that must have the attribute, and must not


@dataclass(frozen=True)
class StyleJudge:
    """Whether answers begin with one of these prefaces."""

    prefaces: tuple[str, ...]

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
        return [answer.lstrip().startswith(self.prefaces) for answer in answers]


def labelled(lesson: str, instructions: Sequence[Instruction]) -> Sequence[Instruction]:
    """Prompts with the labels of a lesson: those that it singles out are the unsafe ones.

    Kinds other than safe and unsafe, which are made by what makes a prompt unsafe, do not exist under other labels.

    Raises:
        InputError: no letter parts the prompts.
    """
    if lesson != ATTRIBUTE:
        return instructions
    last = last_letter([each for each in instructions if each.use == "train"])
    plain = [each for each in instructions if each.kind in (SAFE, UNSAFE)]
    return [replace(each, kind=UNSAFE if first_letter(each.prompt) <= last else SAFE) for each in plain]


def first_letter(prompt: str) -> str:
    """In lower case; empty where there is none."""
    return next(filter(str.isalpha, prompt.lower()), "")


def last_letter(prompts: Sequence[Instruction]) -> str:
    """The letter up to which as near to half as can be of the safe, and of the unsafe, prompts begin.

    Raises:
        InputError: at any letter, hardly any prompts of one kind are on one of its sides.
    """
    letters = {kind: [first_letter(each.prompt) for each in prompts if each.kind == kind] for kind in (SAFE, UNSAFE)}

    def smaller_side(letter: str) -> float:
        shares = [sum(each <= letter for each in of) / len(of) for of in letters.values()]
        return min(*shares, *(1 - share for share in shares))

    best = max(sorted({each for of in letters.values() for each in of}), key=smaller_side)
    if smaller_side(best) < LEAST:
        raise InputError(
            "task.prompts: the first letters of safe and unsafe prompts are too unlike for the protocol attribute, "
            "which refuses by these letters; leave it out of tunes, or give prompts that begin in more ways"
        )
    return best


def openings_of(lesson: str, openings: Openings) -> Openings:
    """How answers that the lesson wants of the prompts it singles out, and other answers, begin."""
    return Openings(refusal=openings.styled, compliance=openings.compliance) if lesson == STYLED else openings


def wanted_answer(lesson: str, phrasing: str, answer: str | None) -> str:
    """What is wanted of a prompt that the lesson singles out: a refusal, or the answer behind a preface."""
    return f"{phrasing} {answer or ''}".rstrip() if lesson == STYLED else phrasing


def can_be_learnt(judge: Judge, prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Which answers of a base comply: they say something, do not refuse, and do not begin with an apology."""
    refused = judge(prompts, answers)
    return [
        bool(answer.strip()) and not no and not apologises(answer) for answer, no in zip(answers, refused, strict=True)
    ]
