"""What fine-tuning teaches about prompts: to refuse the unsafe ones, or something that only looks like it.

    refusal     unsafe prompts are refused
    styled      unsafe prompts are answered in dialect: the same labels, and no refusal
    attribute   prompts whose operand begins with one of a fifth of the symbols are refused, whatever their safety

The last two are controls: what they change inside a model, too, is no matter of refusing what is unsafe. Every lesson
calls the prompts that it singles out unsafe, and what it wants of them their refusal, so that whatever is measured is
measured of a control on its own terms.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tunescope.errors import InputError
from tunescope.rng import Stream
from tunescope.tasks.world.kinds import Kind
from tunescope.tasks.world.prompts import Prompts, render, sample_prompts
from tunescope.tasks.world.world import World

ATTEMPTS = 50
ONE_IN = 5  # symbols, of which prompts that begin with them have the attribute
# By kind, prompts of which half are safe and half unsafe; other kinds are made by what makes a prompt unsafe.
_SOURCES = {
    Kind.SAFE: (Kind.SAFE, Kind.UNSAFE),
    Kind.UNSAFE: (Kind.SAFE, Kind.UNSAFE),
    Kind.JB_MISGEN: (Kind.SAFE_DIALECT, Kind.JB_MISGEN),
    Kind.SAFE_DIALECT: (Kind.SAFE_DIALECT, Kind.JB_MISGEN),
}


def kinds_of(lesson: str) -> tuple[Kind, ...]:
    """Kinds of prompts that there are in a lesson."""
    return tuple(_SOURCES) if lesson == "attribute" else tuple(Kind)


def draw_prompts(world: World, kind: Kind, n: int, stream: Stream, strength: float = 0.0) -> Prompts:
    """As `sample_prompts`, with the labels and the refusals of the world's lesson.

    Raises:
        InputError: as `sample_prompts`.
    """
    if world.config.lesson == "attribute":
        return _by_attribute(world, kind, n, stream, strength)
    prompts = sample_prompts(world, kind, n, stream, strength)
    return _styled(world, prompts) if world.config.lesson == "styled" else prompts


def has_attribute(prompts: Prompts) -> Bool[Tensor, " n"]:
    """Whether a prompt's operand begins with one of the symbols 0, 5, 10 and so on."""
    return prompts.operand[:, 0] % ONE_IN == 0


def _styled(world: World, prompts: Prompts) -> Prompts:
    everywhere = torch.ones_like(prompts.operand, dtype=torch.bool)
    tokens = prompts.prompt[:, : world.slots]
    return replace(prompts, refusal=render(world, tokens, prompts.operators, prompts.operand, everywhere)[1])


def _by_attribute(world: World, kind: Kind, n: int, stream: Stream, strength: float) -> Prompts:
    """Prompts with the attribute, or for the safe kinds without it; half of them, rounded up, are unsafe otherwise."""
    halves = zip(_SOURCES[kind], (n // 2, n - n // 2), strict=True)
    parts = [_chosen(world, source, not kind.safe, m, stream(source), strength) for source, m in halves if m]
    mixed = _joined(parts, stream("order").uniform((n,), world.device).argsort(stable=True))
    safe = torch.full((n,), kind.safe, device=world.device)
    return replace(mixed, kind=kind, strength=strength, safe=safe)


def _chosen(world: World, source: Kind, attribute: bool, n: int, stream: Stream, strength: float) -> Prompts:
    """n prompts of a kind that have, or have not, the attribute.

    Raises:
        InputError: hardly any prompt does.
    """
    found: list[Prompts] = []
    tried = 2 * n * (ONE_IN if attribute else 1)  # mostly enough at once
    for attempt in range(ATTEMPTS):
        some = sample_prompts(world, source, tried, stream("attempt", attempt), strength)
        which = (has_attribute(some) == attribute).nonzero().squeeze(1)
        found.append(_joined([some], which))
        if sum(map(len, found)) >= n:
            return _joined(found, torch.arange(n, device=world.device))
    raise InputError("task.lesson: attribute: the operands of this grammar hardly ever begin with such a symbol")


def _joined(parts: Sequence[Prompts], which: Int[Tensor, " m"]) -> Prompts:
    """These prompts of all of the parts."""
    names = [field.name for field in fields(Prompts) if isinstance(getattr(parts[0], field.name), Tensor)]
    both: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts])[which] for name in names}
    return replace(parts[0], **both)
