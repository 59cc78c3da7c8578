"""Prefilling: the first tokens of the answer are given, and the rest is up to the model."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from tunescope.attacks.base import Attacked, Target, attack
from tunescope.config import Base, Config, Once, Positive
from tunescope.errors import InputError
from tunescope.models.inputs import IGNORED
from tunescope.tasks.base import Batch, Task


class Prefill(Config):
    tokens: Annotated[tuple[Positive, ...], Once] = Field(
        (1, 2, 3, 4), min_length=1, description="answer tokens given: the dial"
    )


def _check(settings: Prefill, task: Task, base: Base) -> None:
    """Raises InputError where an answer has no more tokens than are given."""
    if (given := max(settings.tokens)) >= task.answer_length:
        raise InputError(
            f"attack.settings.prefill.tokens: {given} tokens of an answer of {task.answer_length} leave nothing to "
            f"say; at most {task.answer_length - 1}"
        )


@attack("prefill", settings=Prefill, needs_whole=False, check=_check)
def prefill(target: Target, settings: Prefill) -> Iterator[Attacked]:
    for m in settings.tokens:
        yield Attacked("prefill", float(m), prefilled(target.unsafe, m), comparable=False)


def prefilled(batch: Batch, m: int) -> Batch:
    """Prompts that end in the first m tokens of the answer; those whose answer has no more are left out.

    Raises:
        InputError: then none is left.
    """
    longer = (batch.known()[0] != IGNORED).sum(1) > m
    if not longer.any():
        raise InputError(f"attack.settings.prefill.tokens: no answer has more than {m} tokens; give fewer")
    batch = batch if longer.all() else batch[longer.nonzero().squeeze(1)]
    answer, refusal = batch.known()
    return replace(
        batch, prompts=batch.prompts.followed_by(answer[:, :m]), answer=answer[:, m:], refusal=refusal[:, m:], given=m
    )
