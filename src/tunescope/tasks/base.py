"""What a task is: kinds of prompts, what is wanted of each, what fine-tuning learns, and what a model did.

The synthetic world and natural language are two tasks. Training, probes, attacks and interventions know no more of a
task than what stands here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunescope.config import TASK_CONFIGS, TaskConfig
from tunescope.errors import InputError
from tunescope.models.generate import Greedy
from tunescope.models.inputs import Answers, Index, Inputs
from tunescope.records.corrected import Errors
from tunescope.records.intervals import Groups, PerPrompt
from tunescope.records.names import COMPLIANCE, OTHER, REFUSAL
from tunescope.registry import Registry
from tunescope.rng import Stream

# What prompts are drawn for: fine-tuning, class means and choices, or measurement. A task with few prompts keeps them
# apart, so that nothing is chosen by, or measured on, what was learnt.
Use = Literal["train", "fit", "score"]


@dataclass(frozen=True)
class Kind:
    """A kind of prompts.

    Attributes:
        wanted: `compliance` or `refusal`: what a safe model does.
        dial: whether it has strengths, from 0 (a plain prompt) to 1.
        probed: whether models are looked into, attacked and changed on it; otherwise their answers alone are read.
    """

    name: str
    wanted: Literal["compliance", "refusal"]
    dial: bool = False
    probed: bool = True

    @property
    def safe(self) -> bool:
        return self.wanted == COMPLIANCE

    @property
    def strongest(self) -> float:
        return 1.0 if self.dial else 0.0


@dataclass(frozen=True)
class Batch:
    """n prompts of one kind.

    Attributes:
        answer: what a model that complies says; None where a task does not know it.
        refusal: what a model that refuses says; None likewise.
        groups: [n]: prompts of one group vary together; None where each is a group of its own.
        given: how many tokens of the answer the prompts end in already, whose rest `answer` and `refusal` are.
        describe: from the number of a prompt to what a reader is shown of it.
    """

    kind: Kind
    strength: float
    prompts: Inputs
    answer: Answers | None = None
    refusal: Answers | None = None
    groups: Groups = None
    given: int = 0
    describe: Callable[[int], Mapping[str, Any]] = field(default=lambda i: {}, repr=False)

    def __len__(self) -> int:
        return len(self.prompts)

    def first(self, n: int) -> "Batch":
        """At most n of them."""
        return self[slice(0, n)]

    def __getitem__(self, index: Index) -> "Batch":
        def of(tokens: Tensor | None) -> Tensor | None:
            return None if tokens is None else tokens[index]

        which = np.arange(len(self))[index if isinstance(index, slice) else index.cpu().numpy()]
        describe = self.describe
        return replace(
            self,
            prompts=self.prompts[index],
            answer=of(self.answer),
            refusal=of(self.refusal),
            groups=None if self.groups is None else self.groups[which],
            describe=lambda i: describe(int(which[i])),
        )

    def known(self) -> tuple[Answers, Answers]:
        """Answer and refusal.

        Raises:
            InputError: the task does not know them.
        """
        if self.answer is None or self.refusal is None:
            raise InputError(f"{self.kind.name} prompts: this task knows no answers to them")
        return self.answer, self.refusal


@dataclass(frozen=True)
class Twins:
    """Prompts that are the same, row by row, but for what makes them safe or unsafe.

    Attributes:
        unsafe: to be refused. safe: the same, made safe. other: the control, another unsafe one, changed as much.
        positions: groups of tokens by name, as slices that mean the same in all three.
    """

    unsafe: Batch
    safe: Batch
    other: Batch
    positions: Mapping[str, slice]


@dataclass(frozen=True)
class PreferenceBatch:
    """What fine-tuning reads: n prompts with the wanted answer and the other one.

    Attributes:
        chosen, rejected: answers; the longest of the one may be longer than that of the other.
        safe: [n].
    """

    prompts: Inputs
    chosen: Answers
    rejected: Int[Tensor, "n b"]
    safe: Bool[Tensor, " n"]


@dataclass(frozen=True)
class Outcomes:
    """What a model did with each prompt; neither is `other`.

    Attributes:
        measured: more that was read off it, by name: numbers per prompt.
        errors: how often the judge of refusals errs, where it does and that is known.
    """

    compliance: Bool[Tensor, " n"]
    refusal: Bool[Tensor, " n"]
    measured: Mapping[str, PerPrompt] = field(default_factory=dict)
    errors: Errors | None = None

    def items(self) -> Iterator[tuple[str, Bool[Tensor, " n"]]]:
        yield COMPLIANCE, self.compliance
        yield REFUSAL, self.refusal

    def of(self, number: int) -> str:
        """What became of one prompt: `compliance`, `refusal` or `other`."""
        return next((outcome for outcome, hits in self.items() if hits[number]), OTHER)


@runtime_checkable
class Task(Protocol):
    """Prompts with their labels.

    Attributes:
        kinds: by name; `safe` and `unsafe` are among them.
        answer_length: most tokens of an answer.
        knows_answers: to all prompts; otherwise a study that needs them has the base answer first.
        exact: whether `outcomes` says just what judging a greedy answer would.
        suffix_tokens: ids that an adversarial suffix may be made of.
    """

    kinds: Mapping[str, Kind]
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    answer_length: int
    exact: bool
    knows_answers: bool

    @property
    def suffix_tokens(self) -> Int[Tensor, " v"]: ...

    def draw(self, kind: str, n: int, use: Use, stream: Stream, strength: float = 0.0) -> Batch:
        """n prompts, or as many as there are. The same stream gives the same prompts at every strength, but for what
        the strength changes.

        Raises:
            InputError: no such kind, n below 1, or a strength that the kind does not have.
        """

    def lesson(self, safe: int, unsafe: int, stream: Stream) -> PreferenceBatch:
        """Safe prompts, then unsafe ones, for a step of fine-tuning.

        Raises:
            InputError: the task knows no answers to them.
        """

    def outcomes(self, model: PreTrainedModel, batch: Batch, rows: int, prompts: Inputs | None = None) -> Outcomes:
        """What a model does, told in few passes and without generating: the fast way.

        Args:
            prompts: what is read in the place of the batch's own prompts.
        """

    def judge(self, batch: Batch, generated: Int[Tensor, "n a"]) -> Outcomes:
        """What greedy answers are."""

    def text(self, tokens: Int[Tensor, " a"]) -> str:
        """An answer as a person reads it."""


def answered(task: Task, greedy: Greedy, batch: Batch, prompts: Inputs | None = None) -> Outcomes:
    """What a model's greedy answers are; generated and judged where nothing faster says exactly that.

    Args:
        prompts: what is read in the place of the batch's own prompts.
    """
    if task.exact:
        return task.outcomes(greedy.model, batch, greedy.rows, prompts)
    left = max(1, task.answer_length - batch.given)
    return task.judge(batch, greedy(batch.prompts if prompts is None else prompts, left))


def read_ahead(task: Task, greedy: Greedy, batches: Iterable[Batch]) -> None:
    """Have greedy answers to several batches at hand, where `answered` will judge them."""
    if not task.exact:
        greedy.ahead([batch.prompts for batch in batches], task.answer_length)


@runtime_checkable
class Capable(Task, Protocol):
    """A task of which it is measured what else fine-tuning changes: answers to safe prompts, and ordinary text.

    Attributes:
        prose: ordinary text; None where there is none.
    """

    @property
    def prose(self) -> Inputs | None: ...


@runtime_checkable
class Answered(Task, Protocol):
    """A task whose answers are those of the base."""

    def learnable(self, batch: Batch, generated: Int[Tensor, "n a"]) -> Bool[Tensor, " n"]:
        """Which answers of the base comply, so that fine-tuning may be for them, or against."""


@runtime_checkable
class Corpus(Task, Protocol):
    """A task on which a base model can be pretrained."""

    sequence_length: int

    def pretraining(self, n: int, stream: Stream, progress: float) -> tuple[Inputs, Bool[Tensor, "n t"]]:
        """n sequences, and which of their tokens are to be learnt, at this `progress` in [0, 1]."""

    def held_out(self, stream: Stream) -> list[Batch]:
        """Prompts whose compliance says when pretraining has settled."""


@runtime_checkable
class Twinned(Task, Protocol):
    """A task that may have twins of its unsafe prompts."""

    def twins(self, n: int, stream: Stream) -> Twins | None:
        """Of n unsafe prompts to score, or as many as have twins; None where none has."""


TYPED = Kind("typed", "compliance", probed=False)  # of prompts that someone typed; what is wanted of them, nobody knows


@runtime_checkable
class Typed(Task, Protocol):
    """A task that reads what a person types."""

    def typed(self, text: str) -> Batch:
        """One prompt.

        Raises:
            InputError: it cannot be read.
        """


@runtime_checkable
class InForms(Task, Protocol):
    """A task that has kinds of prompts in forms, around plain requests.

    Attributes:
        forms: by kind, the kind of the plain requests, and the form.
        lesson_kinds: those that lessons have, too; drawn for training, at strength 1.
    """

    forms: Mapping[str, tuple[str, str]]
    lesson_kinds: tuple[str, ...]

    def on_topic(self, batch: Batch, generated: Int[Tensor, "n a"]) -> Bool[Tensor, " n"]:
        """Which answers are about the request that is in a prompt."""


@dataclass(frozen=True)
class Reader:
    """How a model from elsewhere reads prompts.

    Attributes:
        template: chat template that prompts are put into; None where they are plain.
        answers: what the base says to a prompt, where that was kept: the wanted answers of safe prompts.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | None = None
    answers: Mapping[str, str] = field(default_factory=dict)


# From settings, the device, and how the model reads; the last is None for models that are built.
Build = Callable[[Any, torch.device, Reader | None], Any]
TASKS: Registry[Build] = Registry("task", "config", "device", "reader")


def task(name: str, settings: type[TaskConfig]) -> Callable[[Build], Build]:
    """Register what builds a task from its settings, by the name that is their `type`."""

    def register(build: Build) -> Build:
        TASKS.define(name, build, build)
        TASK_CONFIGS[name] = settings
        return build

    return register
