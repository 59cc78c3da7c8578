"""A world on a device: vocabulary, grammars and operators, compiled once from its config."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tunescope.config import WorldConfig
from tunescope.errors import InputError
from tunescope.tasks.world.grammar import Sampler, read_grammar_file
from tunescope.tasks.world.operators import Choices, bijections, context_operators, task_tokens, unsafe_table
from tunescope.tasks.world.vocab import BLANK, Vocab


@dataclass(frozen=True)
class World:
    """Everything that prompts are made from.

    Attributes:
        maps: bijections, [operators, symbols + 1] (the last symbol is the blank).
        symbol_tokens: token of every symbol, [plain / dialect, symbols + 1].
        names, name_counts: task tokens of each operator, [operators, names] and [operators].
        safe_choices, unsafe_choices: operators besides the identity that are safe / unsafe per grammar and branch.
        context_choices: context-dependent operators per grammar (the same for both branches).
    """

    config: WorldConfig
    vocab: Vocab
    sampler: Sampler
    device: torch.device
    maps: Int[Tensor, "operators symbols_and_blank"]
    symbol_tokens: Int[Tensor, "2 symbols_and_blank"]
    names: Int[Tensor, "operators names"]
    name_counts: Int[Tensor, " operators"]
    safe_choices: Choices
    unsafe_choices: Choices
    context_choices: Choices

    @property
    def slots(self) -> int:
        """Task tokens per prompt."""
        return self.config.stages * self.config.slots

    @property
    def width(self) -> int:
        """Symbols in the operand field."""
        return self.config.operand[1]

    @property
    def prompt_length(self) -> int:
        return self.slots + self.width + 1

    @property
    def answer_length(self) -> int:
        return self.config.stages * (self.width + 1)

    @property
    def sequence_length(self) -> int:
        return self.prompt_length + self.answer_length


def build_world(config: WorldConfig, device: torch.device) -> World:
    """Compile a world.

    Raises:
        InputError: when the config does not fit its grammar file.
    """
    file = read_grammar_file(config.grammar)
    if len(config.safe) != len(file.phrases):
        raise InputError(
            f"world.safe: {len(config.safe)} entries, but the {config.grammar} grammar file has "
            f"{len(file.phrases)} grammars"
        )
    sampler = Sampler(file, device)
    shortest = min(sampler.shortest[v] for v in ("full", "safe", "unsafe"))
    if config.operand[1] > shortest:
        raise InputError(
            f"world.operand: {list(config.operand)}: the longest must be at most {shortest}, "
            f"the length of the shortest string of the {config.grammar} grammars"
        )
    vocab = Vocab(config.operators, config.aliases, file.terminals)
    blank = torch.tensor([BLANK])
    symbols = torch.arange(file.terminals)
    table = unsafe_table(config)
    context = context_operators(config)
    if not all(context):
        raise InputError(
            "world.safe, world.unsafe: every grammar needs a context-dependent operator (listed in neither)"
        )
    names, counts = task_tokens(vocab)

    def options(unsafe: bool) -> Choices:
        rows = [[(branch == unsafe).nonzero().flatten().tolist() for branch in grammar] for grammar in table]
        return Choices([[[op for op in ops if op != 0] for ops in row] for row in rows], device)

    return World(
        config=config,
        vocab=vocab,
        sampler=sampler,
        device=device,
        maps=bijections(config, file.terminals).to(device),
        symbol_tokens=torch.stack(
            [torch.cat([vocab.first_symbol + symbols, blank]), torch.cat([vocab.first_dialect + symbols, blank])]
        ).to(device),
        names=names.to(device),
        name_counts=counts.to(device),
        safe_choices=options(False),
        unsafe_choices=options(True),
        context_choices=Choices([[ops, ops] for ops in context], device),
    )
