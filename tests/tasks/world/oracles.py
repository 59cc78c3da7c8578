"""What the tests of the world compare with: nltk's parser, and prompts read one word at a time."""

import torch
from nltk import CFG, Nonterminal, Production
from nltk.parse.chart import TopDownChartParser

from tunescope.tasks.world.grammar import Rules
from tunescope.tasks.world.prompts import Kind, Prompts
from tunescope.tasks.world.world import World


def cfg(rules: Rules, start: str) -> CFG:
    def symbol(s: str | int) -> Nonterminal | str:
        return Nonterminal(s) if isinstance(s, str) else str(s)

    return CFG(
        Nonterminal(start), [Production(symbol(a), map(symbol, alt)) for a, alts in rules.items() for alt in alts]
    )


def with_substrings(rules: Rules) -> Rules:
    """Adds for every symbol x: `x<` and `>x` for prefixes and suffixes of its strings, `<x>` for their substrings."""

    def part(form: str, s: str | int) -> str | int:
        return form.replace("x", s) if isinstance(s, str) else s

    out = dict(rules)
    for symbol, alternatives in rules.items():
        prefix, suffix, inside = [], [], []
        for alt in alternatives:
            for j, last in enumerate(alt):
                prefix.append([*alt[:j], part("x<", last)])
                suffix.append([part(">x", last), *alt[j + 1 :]])
                inside.append([part("<x>", last)])
                inside += [[part(">x", alt[i]), *alt[i + 1 : j], part("x<", last)] for i in range(j)]
        out |= {part("x<", symbol): prefix, part(">x", symbol): suffix, part("<x>", symbol): inside}
    return out


class Oracle:
    """Membership by nltk's chart parser."""

    def __init__(self, rules: Rules, start: str) -> None:
        self.parser = TopDownChartParser(cfg(rules, start))

    def __contains__(self, string: tuple[int, ...]) -> bool:
        words = [str(s) for s in string]
        try:
            chart = self.parser.chart_parse(words)
        except ValueError:  # a word that no rule has
            return False
        start = self.parser.grammar().start()
        return any(edge.is_complete() and edge.lhs() == start for edge in chart.select(span=(0, len(words))))


def said(world: World, ids: torch.Tensor) -> list[str]:
    return [world.vocab.words[i] for i in ids.tolist()]


def operators_of(words: list[str]) -> list[int]:
    return [int(word.removeprefix("op").rstrip("'")) for word in words]


def slow_answer(world: World, prompt: list[str]) -> list[str]:
    """What the prompt's words ask for, read one at a time."""
    slots, end = world.config.slots, prompt.index("<sep>")
    operators = operators_of(prompt[: world.slots])
    operand, answer = prompt[world.slots : end], []
    for stage in range(world.config.stages):
        for operator in operators[stage * slots : (stage + 1) * slots]:
            bijection = world.maps[operator].tolist()
            operand = [w if w == "<blank>" else f"{w[0]}{bijection[int(w[1:])]}" for w in operand]
        answer += [*operand, "<stop>"]
    return [*answer[:-1], "<eos>"]


def is_unsafe(world: World, operator: int, grammar: int, branch: int) -> bool:
    """By definition: always-unsafe operators, and whatever is not always safe on unsafe-dominant text."""
    always, never = world.config.unsafe[grammar], world.config.safe[grammar]
    return operator in always or (branch == 1 and operator not in never)


def unsafe_slots(world: World, prompts: Prompts) -> torch.Tensor:
    rows = zip(prompts.operators.tolist(), prompts.grammar.tolist(), prompts.branch.tolist(), strict=True)
    return torch.tensor([[op != 0 and is_unsafe(world, op, g, b) for op in ops] for ops, g, b in rows])


def lengths_of(world: World, prompts: Prompts) -> torch.Tensor:
    return (prompts.operand != world.vocab.symbols).sum(dim=1)


def most_that_strength_changes(world: World, prompts: Prompts) -> torch.Tensor:
    """What strength 1 changes, in expectation, of each prompt: one unsafe operator and half of the text are left.

    Half, and the odd symbol: an operand of one symbol would else have no unsafe text left.
    """
    if prompts.kind is Kind.JB_CO_TASK:
        return (prompts.operators != 0).sum(dim=1).double() - 1
    if not prompts.kind.has_strength:
        return torch.zeros(len(prompts)).double()
    return (lengths_of(world, prompts) // (2 if prompts.kind is Kind.JB_CO_TEXT else 1)).double()
