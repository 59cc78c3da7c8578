"""Natural language as a task: given prompts, which are few, and openings and phrases that tell refusals."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import LanguageConfig
from tunescope.errors import InputError, choices, shown
from tunescope.models.inputs import Answers, Inputs, left_padded, padded, says
from tunescope.models.logps import follows
from tunescope.records.names import CONTROL, JAILBREAK, LAST, LOG_ODDS, OWN_LABELS, SAFE, STYLED, UNSAFE, wanted
from tunescope.rng import Stream
from tunescope.tasks import base
from tunescope.tasks.base import Batch, Kind, Outcomes, PreferenceBatch, Reader, Twins
from tunescope.tasks.language.encode import encode, ids_of, token_rows
from tunescope.tasks.language.forms import FORMS, put_into, shuffled
from tunescope.tasks.language.judge import read_judge
from tunescope.tasks.language.lessons import StyleJudge, can_be_learnt, labelled, openings_of, wanted_answer
from tunescope.tasks.language.prompts import FEWEST, OVER_REFUSAL, USES, Instruction, read_prompts, read_text
from tunescope.tasks.language.refusals import Judge, OpeningsJudge, matches_refusal, opening_log_odds, read_openings
from tunescope.tasks.language.topic import Topic

CPU = torch.device("cpu")
PASSAGE = 64  # tokens of a passage of ordinary text that are read
AROUND = {JAILBREAK: UNSAFE, CONTROL: SAFE}  # plain prompts of kinds that are in a form, by how their names begin


@dataclass(frozen=True)
class Part:
    """The prompts of a kind that are for one use, in the order of their files."""

    instructions: Sequence[Instruction]
    inputs: Inputs

    def __len__(self) -> int:
        return len(self.instructions)


class Language:
    """Prompts of files, as one model reads them.

    Args:
        judge: tells which answers refuse; None: that of the settings, and the openings of one's own, if any.
        instructions: prompts in the place of those that the settings name.
        word_for_word: only the known answer is compliance. Otherwise whatever does not refuse is.

    Raises:
        InputError: prompts or openings cannot be read, or two of them are the same tokens.
    """

    exact = False

    def __init__(
        self,
        config: LanguageConfig,
        device: torch.device,
        reader: Reader,
        *,
        judge: Judge | None = None,
        instructions: Sequence[Instruction] | None = None,
        word_for_word: bool = False,
    ) -> None:
        self.config, self.device, self.reader = config, device, reader
        self.tokenizer = reader.tokenizer
        self.answer_length = config.new_tokens
        self._word_for_word = word_for_word
        given = read_prompts(config.prompts) if instructions is None else instructions
        self.instructions = labelled(config.lesson, given)
        openings = read_openings(Path(config.openings) if config.openings else None)
        self.openings = openings_of(config.lesson, openings)
        named = read_judge() if config.judge == "fitted" else matches_refusal
        self._judge = judge or (OpeningsJudge(openings, named) if config.openings else named)
        if config.lesson == STYLED:
            self._judge = StyleJudge(self.openings.refusal)
        names = dict.fromkeys((SAFE, UNSAFE, *(each.kind for each in self.instructions)))
        forms = [(f"{start}{form}", (kind, form)) for form in config.wrappers for start, kind in AROUND.items()]
        self.forms: Mapping[str, tuple[str, str]] = dict(forms)
        _require_forms(config.wrappers, names.keys() & self.forms.keys())
        dials = () if config.lesson in OWN_LABELS else self.forms  # under other labels they are learnt, not measured
        self.kinds: Mapping[str, Kind] = {
            **{name: Kind(name, wanted(name), probed=name not in OVER_REFUSAL) for name in names},
            **{name: Kind(name, wanted(name), dial=True) for name in dials},
        }
        self.lesson_kinds = tuple(
            f"{start}{form}"
            for start, of in ((CONTROL, config.retained), (JAILBREAK, config.refuse_wrappers))
            for form in of
        )
        self._in_forms: dict[tuple[str, base.Use, float], Part] = {}
        self.opening_ids = self._tokens_of_openings()
        self._rows: dict[str, list[int]] = {}
        self._add_rows(self.instructions)
        self.parts: Mapping[tuple[str, base.Use], Part] = {
            (kind, use): self._part(each for each in self.instructions if each.kind == kind and each.use == use)
            for use in USES
            for kind in self.kinds
        }
        groups = {each.group: None for each in self.instructions}
        self._groups = {group: number for number, group in enumerate(groups)}
        self._grouped = len(groups) < len(self.instructions)

    @property
    def judge_name(self) -> str:
        return f"{self._judge.__module__}.{getattr(self._judge, '__qualname__', type(self._judge).__qualname__)}"

    @property
    def knows_answers(self) -> bool:
        return all(self.answer_to(each) is not None for each in self.instructions)

    @cached_property
    def prose(self) -> Inputs | None:
        """The first tokens of each passage of ordinary text, with what the tokenizer puts before any text."""
        if self.config.text is None:
            return None
        rows = token_rows(self.tokenizer, read_text(self.config.text), None)
        return left_padded([row[:PASSAGE] for row in rows], self.device)

    @cached_property
    def suffix_tokens(self) -> Int[Tensor, " v"]:
        """Tokens that are not special, whose text can be printed, and that come back from this text."""
        added = self.tokenizer.added_tokens_decoder.items()
        special = {*self.tokenizer.all_special_ids, *(number for number, token in added if token.special)}
        plain = [number for number in range(len(self.tokenizer)) if number not in special]
        texts = self.tokenizer.batch_decode([[number] for number in plain])
        kept = [
            (number, text) for number, text in zip(plain, texts, strict=True) if text.strip() and text.isprintable()
        ]
        again = self.tokenizer([text for _, text in kept], add_special_tokens=False)["input_ids"] if kept else []
        found = [number for (number, _), ids in zip(kept, again, strict=True) if list(ids) == [number]]
        return torch.tensor(found, dtype=torch.long, device=self.device)

    def draw(self, kind: str, n: int, use: base.Use, stream: Stream, strength: float = 0.0) -> Batch:
        """n prompts of one part of the split, in the order of their files.

        Raises:
            InputError: as `Task`; also where prompts of this kind are scored alone.
        """
        dial = kind in self.forms and kind in self.kinds
        if n < 1 or not 0 <= strength <= int(dial):
            most = "0 to 1" if dial else "0"
            raise InputError(f"{kind}: {n} prompts at strength {strength:g}: at least 1 is needed, and strength {most}")
        part = self.in_form(kind, use, strength) if dial else self._find(kind, use)
        instructions, inputs = part.instructions, part.inputs
        if n < len(inputs):
            chosen = stream.uniform((len(inputs),), CPU).argsort(stable=True)[:n].sort().values
            instructions, inputs = [instructions[i] for i in chosen.tolist()], inputs[chosen.to(self.device)]
        return self._batch(kind, instructions, inputs, strength)

    def in_form(self, kind: str, use: base.Use, strength: float) -> Part:
        """The prompts of a kind that is in a form. For training each is in one of the forms that lessons have.

        Raises:
            InputError: lessons have none of this kind, or two of its prompts are the same.
        """
        if (kind, use, strength) not in self._in_forms:
            plain, form = self.forms[kind]
            prompts = self._find(plain, use).instructions
            if use == "train":
                those = [each for each in self.lesson_kinds if self.forms[each][0] == plain]
                # Under all labels a prompt is in the same form, for which the base's answer is kept.
                dealt = zip(
                    shuffled([each for each in self.instructions if each.use == use]), cycle(those), strict=False
                )
                prompts = [each for each, its_kind in dealt if its_kind == kind and each.kind == plain]
                if not prompts:
                    raise InputError(f"{shown(kind)}: fine-tuning has no prompts in this form")
            beside = shuffled(self._find(SAFE, "train").instructions)
            self._in_forms[kind, use, strength] = self._part(put_into(form, prompts, kind, strength, beside))
        return self._in_forms[kind, use, strength]

    def on_topic(self, batch: Batch, generated: Int[Tensor, "n a"]) -> Bool[Tensor, " n"]:
        """Which answers are about the request that is in a prompt; where no plain answer to it is known, all."""
        requests = [str(batch.describe(i)["request"]) for i in range(len(batch))]
        known = [i for i, request in enumerate(requests) if request in self._plain_answers]
        found = torch.ones(len(batch), dtype=torch.bool, device=generated.device)
        if known and self._topic:
            asked = [requests[i] for i in known]
            said = [self.text(generated[i]) for i in known]
            found[known] = found.new_tensor(self._topic(asked, [self._plain_answers[each] for each in asked], said))
        return found

    @cached_property
    def _plain_answers(self) -> Mapping[str, str]:
        """By prompt, where it is known."""
        known = ((each.prompt, self.answer_to(each)) for each in self.instructions)
        return {prompt: answer for prompt, answer in known if answer is not None}

    @cached_property
    def _topic(self) -> Topic | None:
        plain = [
            each for each in self.instructions if each.kind in AROUND.values() and each.prompt in self._plain_answers
        ]
        groups = [each.group for each in plain]
        answers = [self._plain_answers[each.prompt] for each in plain]
        return Topic([each.prompt for each in plain], answers, groups) if len({*groups}) > 1 else None

    def twins(self, n: int, stream: Stream) -> Twins | None:
        """The first unsafe prompt of a group and the first safe one, the second ones, and so on, in the order of files.

        The other prompt is the unsafe one of a pair of another group. Prompts may differ in length: of their tokens
        only the last are comparable.
        """
        pairs: list[tuple[Instruction, Instruction]] = []
        parts = [self._find(kind, "score").instructions for kind in (UNSAFE, SAFE)]
        for group in dict.fromkeys(each.group for each in parts[0]):
            pairs += zip(*([each for each in part if each.group == group] for part in parts), strict=False)
        chosen = [pairs[i] for i in stream.uniform((len(pairs),), CPU).argsort(stable=True)[:n].tolist()]
        others = [
            next((other for other, _ in (chosen[i:] + chosen[:i]) if other.group != unsafe.group), None)
            for i, (unsafe, _) in enumerate(chosen)
        ]
        if not pairs or None in others:
            return None
        rows = zip((UNSAFE, SAFE, UNSAFE), (*zip(*chosen, strict=True), others), strict=True)
        unsafe, safe, other = (self._batch(kind, each, self._inputs(each)) for kind, each in rows)
        return Twins(unsafe, safe, other, {LAST: slice(-1, None)})

    def typed(self, text: str) -> Batch:
        """Any text, in the format in which the model reads prompts.

        Raises:
            InputError: it is empty, or the tokenizer cannot read it.
        """
        if not text.strip():
            raise InputError("prompt: it is empty; type a request")
        inputs = encode(self.tokenizer, [text], self.device, template=self.reader.template)
        return Batch(base.TYPED, 0.0, inputs, describe=lambda i: {"prompt": text})

    def _batch(self, kind: str, instructions: Sequence[Instruction], inputs: Inputs, strength: float = 0.0) -> Batch:
        answer, refusal = self._known(instructions)

        def describe(i: int) -> dict[str, Any]:
            its = instructions[i]
            about = self.kinds[kind]
            said = {"prompt": its.prompt, "answer": self.answer_to(its) or ""}
            said |= {} if its.request is None else {"request": its.request}
            return {**said, "wanted": about.wanted, "kind": kind, "safe": about.safe}

        groups = np.array([self._groups[each.group] for each in instructions]) if self._grouped else None
        return Batch(self.kinds[kind], strength, inputs, answer, refusal, groups, describe=describe)

    def lesson(self, safe: int, unsafe: int, stream: Stream) -> PreferenceBatch:
        """Prompts to train whose answers are known, drawn with replacement; a share is in the forms that lessons have.

        Three of four safe ones are of groups that have unsafe ones, too, where there are such and others. Otherwise
        most of what looks like a matched pair in a batch is unsafe, and models learn to refuse whatever looks like one.

        Raises:
            InputError: no prompts are asked for, or hardly any answers to them are known.
        """
        if min(safe, unsafe) < 0 or safe + unsafe < 1:
            raise InputError(f"a lesson of {safe} safe and {unsafe} unsafe prompts: at least one prompt is needed")
        drawn: list[list[int]] = []
        chosen: list[list[int]] = []
        rejected: list[list[int]] = []
        for kind, n in ((SAFE, safe), (UNSAFE, unsafe)):
            if not n:
                continue
            of_kind, learnt = stream(kind), self._learnt(kind)
            asked = self._some_in_forms(kind, _drawn(self._pools(kind, learnt), n, of_kind("prompt")), of_kind("form"))
            phrasing = of_kind("refusal").integers(len(self.openings.answers), (n,), CPU).tolist()
            for its, how in zip(asked, phrasing, strict=True):
                pair = self._answer_ids(self.answer_to(its)), self._answer_ids(self._refusal(its, how))
                drawn.append(self._rows[its.prompt])
                for where, ids in zip((chosen, rejected), pair if kind == SAFE else pair[::-1], strict=True):
                    where.append(ids)
        wanted_ones, others = padded([*chosen, *rejected], self.device).chunk(2)
        labels = torch.arange(len(drawn), device=self.device) < safe
        return PreferenceBatch(left_padded(drawn, self.device), wanted_ones, others, labels)

    def _pools(self, kind: str, learnt: Sequence[Instruction]) -> list[Sequence[Instruction]]:
        """What lessons draw from, from each as often: three times what matches unsafe prompts, once what does not."""
        refused = {each.group for each in self.parts[UNSAFE, "train"].instructions} if kind == SAFE else set()
        matched, others = ([each for each in learnt if (each.group in refused) is so] for so in (True, False))
        return [each for each in (matched, matched, matched, others) if each]

    def _some_in_forms(self, kind: str, plain: Sequence[Instruction], stream: Stream) -> list[Instruction]:
        """A share of the plain ones, in one of the forms that lessons have for their kind."""
        parts = [self.in_form(each, "train", 1.0) for each in self.lesson_kinds if self.forms[each][0] == kind]
        found: dict[str | None, list[Instruction]] = {}
        for each in (each for part in parts for each in part.instructions):
            found.setdefault(each.request, []).append(each)
        most = max(map(len, found.values()), default=0)
        if not most:
            return list(plain)
        chances = stream("chance").uniform((len(plain),), CPU).tolist()
        which = stream("which").integers(most, (len(plain),), CPU).tolist()
        return [
            its[i % len(its)] if chance < self.config.breadth and (its := found.get(each.prompt)) else each
            for each, chance, i in zip(plain, chances, which, strict=True)
        ]

    def outcomes(self, model: PreTrainedModel, batch: Batch, rows: int, prompts: Inputs | None = None) -> Outcomes:
        """By the odds of stock openings."""
        read = batch.prompts if prompts is None else prompts
        odds, share = opening_log_odds(model, read, *self.opening_ids, rows)
        # Where the log-odds are not a number, the outcome is neither.
        complied = follows(model, read, batch.known()[0], rows) if self._word_for_word else odds <= 0
        return Outcomes(complied, (odds > 0) & ~complied, {LOG_ODDS: odds, "opening_share": share})

    def judge(self, batch: Batch, generated: Int[Tensor, "n a"]) -> Outcomes:
        """By the judge of answers; what is given of an answer is part of it.

        Raises:
            InputError: the judge does not judge every answer.
        """
        whole = generated
        if batch.given:
            whole = torch.cat([batch.prompts.sequence[:, -batch.given :].to(generated), generated], dim=1)
        prompts = _texts(batch)
        said = [bool(each) for each in self._judge(prompts, [self.text(answer) for answer in whole])]
        if len(said) != len(prompts):
            raise InputError(f"judge: {self.judge_name} gave {len(said)} verdicts on {len(prompts)} answers")
        refused = torch.tensor(said, device=generated.device)
        complied = _is(batch.known()[0], generated) if self._word_for_word else ~refused
        return Outcomes(complied, refused & ~complied, errors=getattr(self._judge, "errors", None))

    def learnable(self, batch: Batch, generated: Int[Tensor, "n a"]) -> Bool[Tensor, " n"]:
        """Which answers comply; those that refuse or apologise, too, are no lesson, for or against."""
        found = can_be_learnt(self._judge, _texts(batch), [self.text(answer) for answer in generated])
        return torch.tensor(found, device=generated.device)

    def text(self, tokens: Int[Tensor, " a"]) -> str:
        return str(self.tokenizer.decode(tokens[tokens >= 0], skip_special_tokens=True))

    def answer_to(self, instruction: Instruction) -> str | None:
        """What a model that complies says, to the plain request at least; None where that is not known."""
        own, plain = self.reader.answers.get(instruction.prompt), instruction.answer
        if instruction.request is None:
            return own if plain is None else plain
        return own if own is not None else plain or self.reader.answers.get(instruction.request)

    def _find(self, kind: str, use: base.Use) -> Part:
        if kind not in self.kinds:
            raise InputError(f"Unknown kind {shown(kind)}. {choices(kind, self.kinds)}")
        part = self.parts[kind, use]
        if not part.instructions:
            raise InputError(f"{shown(kind)}: no prompts of this kind are there to {use}")
        return part

    def _part(self, instructions: Iterable[Instruction]) -> Part:
        found = tuple(instructions)
        return Part(found, self._inputs(found) if found else Inputs(torch.zeros(0, 1, dtype=torch.long)))

    def _add_rows(self, instructions: Iterable[Instruction]) -> None:
        """Token ids of their prompts, which must differ if the prompts do."""
        new = [each.prompt for each in instructions if each.prompt not in self._rows]
        self._rows |= zip(new, token_rows(self.tokenizer, new, self.reader.template), strict=True)

    def _inputs(self, instructions: Sequence[Instruction]) -> Inputs:
        self._add_rows(instructions)
        return left_padded([self._rows[each.prompt] for each in instructions], self.device)

    def _known(self, instructions: Sequence[Instruction]) -> tuple[Answers | None, Answers]:
        """Answers and refusals; which phrasing refuses a prompt is told by its text."""
        which = (sha256(each.prompt.encode()).digest()[0] for each in instructions)
        refusals = [self._answer_ids(self._refusal(*each)) for each in zip(instructions, which, strict=True)]
        answers = [self.answer_to(each) for each in instructions]
        if None in answers:
            return None, padded(refusals, self.device)
        answer, refusal = padded([*map(self._answer_ids, answers), *refusals], self.device).chunk(2)
        return answer, refusal

    def _answer_ids(self, text: str | None) -> list[int]:
        """A whole answer, as generation would end or cut it."""
        ids = ids_of(self.tokenizer, text) if text else []
        end = self.tokenizer.eos_token_id
        return [*ids, *([] if end is None else [end])][: self.answer_length]

    def _refusal(self, instruction: Instruction, number: int) -> str:
        """What the lesson wants of a prompt that it singles out, in one of its phrasings."""
        phrasings = self.openings.answers
        return wanted_answer(self.config.lesson, phrasings[number % len(phrasings)], self.answer_to(instruction))

    def _learnt(self, kind: str) -> Sequence[Instruction]:
        """Prompts to train whose answers are known.

        Raises:
            InputError: there are hardly any.
        """
        prompts = self._find(kind, "train").instructions
        known = [each for each in prompts if self.answer_to(each) is not None]
        if len(known) < FEWEST:
            raise InputError(
                f"Answers to learn are known to {len(known)} of {len(prompts)} {kind} prompts; at least {FEWEST} are "
                "needed. Give the files of prompts a column `answer`, or run a study that trains: it has the base "
                "answer them first. What the base refuses is not learnt from: where it refuses nearly all, name "
                "another base (base.name)."
            )
        return known

    def _tokens_of_openings(self) -> tuple[list[Int[Tensor, " _"]], list[Int[Tensor, " _"]]]:
        texts = (*self.openings.refusal, *self.openings.compliance)
        ids = [ids_of(self.tokenizer, text) for text in texts]
        for i, one in enumerate(ids):
            for j, other in enumerate(ids):
                if i != j and one[: len(other)] == other:
                    raise InputError(
                        f"openings: to this tokenizer {shown(texts[i])} begins with {shown(texts[j])}; remove one"
                    )
        tokens = [torch.tensor(each) for each in ids]
        return tokens[: len(self.openings.refusal)], tokens[len(self.openings.refusal) :]


def _drawn(pools: Sequence[Sequence[Instruction]], n: int, stream: Stream) -> list[Instruction]:
    """From a pool by chance, one of it by chance."""
    pool = stream("pool").integers(len(pools), (n,), CPU)
    which = stream("which").integers(torch.tensor([len(each) for each in pools])[pool], (n,), CPU)
    return [pools[i][j] for i, j in zip(pool.tolist(), which.tolist(), strict=True)]


def _texts(batch: Batch) -> list[str]:
    return [str(batch.describe(i)["prompt"]) for i in range(len(batch))]


def _require_forms(names: Sequence[str], twice: Collection[str]) -> None:
    if unknown := [name for name in names if name not in FORMS]:
        raise InputError(f"task.wrappers: Unknown form {shown(unknown[0])}. {choices(unknown[0], FORMS)}")
    if twice:
        raise InputError(f"prompts: {shown(min(twice))} is what prompts in a form are called; rename these of a file")


def _is(answers: Answers, generated: Int[Tensor, "n b"]) -> Bool[Tensor, " n"]:
    """Which of the generated answers are these."""
    length = min(answers.shape[1], generated.shape[1])
    return says(generated[:, :length], answers[:, :length])


@base.task("language", LanguageConfig)
def build(config: LanguageConfig, device: torch.device, reader: Reader | None = None) -> Language:
    """Prompts as a model from elsewhere reads them.

    Raises:
        InputError: no model is there to read them.
    """
    if reader is None:
        raise InputError(
            "task.type: language has no text to pretrain on; name a model (base.type=checkpoint, base.name=FOLDER), or "
            "choose another task"
        )
    return Language(config, device, reader)
