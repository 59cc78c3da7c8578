"""What an attack is, what it is told of its target, and what is measured of it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.attacks.insert import inserted
from tunescope.config import Base, Config, NoSettings
from tunescope.models.inputs import Inputs
from tunescope.probes.view import View
from tunescope.registry import Registry
from tunescope.rng import Stream
from tunescope.tasks.base import Batch, Task


@dataclass(frozen=True)
class Attacked:
    """Prompts under attack.

    Attributes:
        attack: its name; that of the kind, where the prompts themselves are the attack.
        dial: how much of it: a strength, tokens given, embeddings; None where there is no telling.
        batch: the prompts, with what the attack wants said and what a safe model says.
        extra: what is put before the last token, embeddings or token ids; None: nothing.
        steps: gradient steps until it first succeeded, -1 where it did not; None: it does not search prompt by prompt.
        budget: gradient steps that it had. tries: prompts that it looked at in each.
        comparable: whether activations are set beside those of plain prompts, which must end alike.
        change: what is done to the model itself for the time of the attack; None: nothing.
    """

    attack: str
    dial: float | None
    batch: Batch
    extra: Float[Tensor, "n k width"] | Int[Tensor, "n k"] | None = None
    steps: Int[Tensor, " n"] | None = None
    budget: int = 0
    tries: int = 1
    comparable: bool = True
    change: Callable[[], AbstractContextManager[PreTrainedModel]] | None = None

    def inputs(self, model: PreTrainedModel) -> Inputs:
        """What a model is given; soft embeddings are the same vectors whichever model reads them."""
        return self.batch.prompts if self.extra is None else inserted(self.batch.prompts, self.extra, model)


@dataclass(frozen=True)
class Target:
    """A model under attack.

    Attributes:
        task: as the model reads it.
        unsafe, safe: plain prompts, as many of each; what is found for the first is put to the second as a control.
        seen: other unsafe prompts, on which an attack may learn what it then does to all.
        view: a look at the model, for attacks on what is inside it.
        rows: prompts per forward pass.
    """

    model: PreTrainedModel
    task: Task
    unsafe: Batch
    safe: Batch
    seen: Batch
    view: View
    rows: int
    stream: Stream


@dataclass(frozen=True)
class Attack:
    """An attack, as it is registered.

    Attributes:
        run: from a target and settings to prompts under attack, in the order in which they are tried.
        needs_answers: whether the task must know what the attack wants said.
        needs_whole: whether it takes gradients, for which all weights must be in memory.
        check: refuses settings that do not fit task and base, before any work.
    """

    name: str
    run: Callable[[Target, Any], Iterator[Attacked]]
    settings: type[Config]
    needs_answers: bool
    needs_whole: bool
    check: Callable[[Any, Task, Base], None] | None


ATTACKS: Registry[Attack] = Registry("attack", "target", "settings")
Run = Callable[[Target, Any], Iterator[Attacked]]


def attack(
    name: str,
    *,
    settings: type[Config] = NoSettings,
    needs_answers: bool = True,
    needs_whole: bool = True,
    check: Callable[[Any, Task, Base], None] | None = None,
) -> Callable[[Run], Run]:
    """Register a function that attacks a target; see `Attack`."""

    def register(run: Run) -> Run:
        ATTACKS.define(name, Attack(name, run, settings, needs_answers, needs_whole, check), run)
        return run

    return register


def on_both(
    name: str, k: int, extra: Tensor, target: Target, steps: Tensor | None = None, budget: int = 0, tries: int = 1
) -> Iterable[Attacked]:
    """What was found for the unsafe prompts, there and on the safe ones."""
    found = Attacked(name, float(k), target.unsafe, extra, steps, budget, tries)
    safe = target.safe.first(len(extra))
    return found, replace(found, batch=safe, extra=extra[: len(safe)], steps=None)
