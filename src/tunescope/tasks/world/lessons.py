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
from tunescope.tasks.world.prompts import Prompts, draw_others, name_operators, render, sample_prompts
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


def draw_twins(world: World, n: int, stream: Stream) -> tuple[Prompts, Prompts, Prompts]:
    """n unsafe prompts; the same made safe; and as unsafe, but by other operators (or another first symbol).

    All operators but the identities are replaced by safe ones of the prompt's grammar and branch, or by other unsafe
    ones. Of an attribute the first symbol is, by one that has not, or has, the attribute. Where there is only one that
    is unsafe, it stays.

    Raises:
        InputError: as `draw_prompts`.
    """
    unsafe = draw_prompts(world, Kind.UNSAFE, n, stream("unsafe"))
    return unsafe, _twin(world, unsafe, Kind.SAFE, stream("safe")), _twin(world, unsafe, Kind.UNSAFE, stream("other"))


def _twin(world: World, prompts: Prompts, kind: Kind, stream: Stream) -> Prompts:
    operators, operand, tokens = prompts.operators, prompts.operand.clone(), prompts.prompt[:, : world.slots]
    if world.config.lesson == "attribute":
        symbols = torch.arange(world.vocab.symbols, device=world.device)
        options = symbols[(symbols % ONE_IN == 0) != kind.safe].expand(len(prompts), -1)
        counts = torch.full((len(prompts), 1), options.shape[1], device=world.device)
        operand[:, :1] = draw_others(operand[:, :1], options, counts, stream)
    else:
        choices, of = world.safe_choices if kind.safe else world.unsafe_choices, (prompts.grammar, prompts.branch)
        drawn = draw_others(operators, choices.table[of], choices.counts[of][:, None], stream("operators"))
        named = operators != 0
        operators = torch.where(named, drawn, operators)
        tokens = torch.where(named, name_operators(world, operators, stream("names")), tokens)
    prompt, answer = render(world, tokens, operators, operand, torch.zeros_like(operand, dtype=torch.bool))
    twin = replace(
        prompts,
        kind=kind,
        prompt=prompt,
        answer=answer,
        safe=torch.full_like(prompts.safe, kind.safe),
        operators=operators,
        operand=operand,
    )
    return _styled(world, twin) if world.config.lesson == "styled" else twin


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
