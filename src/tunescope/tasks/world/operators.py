"""Operators: bijections on the text symbols, their task tokens, and which of them are unsafe on which text."""

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tunescope.config import WorldConfig
from tunescope.tasks.world.vocab import Vocab

SAFE_BRANCH, UNSAFE_BRANCH = 0, 1


def bijections(config: WorldConfig, symbols: int) -> Int[Tensor, "operators symbols_and_blank"]:
    """Row i maps symbol s to `[i, s]`; the last column is the blank, which every operator leaves alone.

    Operator 0 is the identity. The others are permutations drawn from the world's own seed.
    """
    rng = np.random.Generator(np.random.Philox(key=config.seed or 0))
    rows = [np.arange(symbols), *(rng.permutation(symbols) for _ in range(config.operators - 1))]
    return torch.from_numpy(np.stack([np.append(row, symbols) for row in rows]))


def classes(config: WorldConfig) -> list[tuple[list[int], list[int]]]:
    """Per grammar, the operators that are always safe, and those that are always unsafe.

    In the world of seed 0 they are as the config has them; others deal the numbers out anew, but for the identity.
    """
    number = np.arange(config.operators)
    if config.seed:
        number[1:] = np.random.Generator(np.random.Philox(key=[config.seed, 1])).permutation(number[1:])
    return [
        ([int(number[op]) for op in safe], [int(number[op]) for op in unsafe])
        for safe, unsafe in zip(config.safe, config.unsafe, strict=True)
    ]


def unsafe_table(config: WorldConfig) -> Bool[Tensor, "grammars 2 operators"]:
    """Whether an operator is unsafe on text of a grammar's safe-dominant (0) or unsafe-dominant (1) branch.

    Always-unsafe operators are unsafe on both, always-safe ones on neither, the rest (context-dependent) only on
    unsafe-dominant text.
    """
    table = torch.zeros(len(config.safe), 2, config.operators, dtype=torch.bool)
    table[:, UNSAFE_BRANCH] = True
    for grammar, (safe, unsafe) in enumerate(classes(config)):
        table[grammar, :, safe] = False
        table[grammar, :, unsafe] = True
    return table


def context_operators(config: WorldConfig) -> list[list[int]]:
    """Per grammar, the operators whose safety depends on the text."""
    everything = range(config.operators)
    return [[op for op in everything if op not in safe and op not in unsafe] for safe, unsafe in classes(config)]


def task_tokens(vocab: Vocab) -> tuple[Int[Tensor, "operators names"], Int[Tensor, " operators"]]:
    """The task tokens that name each operator, padded with the first one, and how many there are."""
    names = [[vocab.first_task + op] for op in range(vocab.operators)]
    for i, op in enumerate(vocab.aliases):
        names[op].append(vocab.first_task + vocab.operators + i)
    width = max(map(len, names))
    padded = [row + row[:1] * (width - len(row)) for row in names]
    return torch.tensor(padded), torch.tensor([len(row) for row in names])


class Choices:
    """For each (grammar, branch) a list of operators to draw from, padded into one table."""

    def __init__(self, lists: list[list[list[int]]], device: torch.device) -> None:
        width = max(1, max(len(ops) for row in lists for ops in row))
        table = torch.zeros(len(lists), len(lists[0]), width, dtype=torch.int64)
        for g, row in enumerate(lists):
            for b, ops in enumerate(row):
                table[g, b, : len(ops)] = torch.tensor(ops, dtype=torch.int64)
        self.table = table.to(device)
        self.counts = torch.tensor([[len(ops) for ops in row] for row in lists], device=device)
