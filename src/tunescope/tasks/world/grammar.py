"""Probabilistic context-free grammars, sampled exactly and in batches.

A grammar file holds upper rules per variant ("full", "safe", "unsafe") and phrase-level rules per grammar;
all alternatives of a symbol are equally likely. All variants of all grammars are compiled into one rule table, so that
a batch may mix them. A derivation is expanded breadth-first as one flat list of symbols with their owners. Once every
symbol of the list has a yield of one known length, each row's window is drawn and only what it covers is expanded:
exact, and far cheaper than whole derivations.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

import torch
from jaxtyping import Int
from torch import Tensor

from tunescope.errors import InputError
from tunescope.rng import Stream

Rules = dict[str, list[list[str | int]]]


@dataclass(frozen=True)
class GrammarFile:
    """A grammar file as data: `variants[name]` upper rules, `phrases[k]` the phrase-level rules of grammar k."""

    terminals: int
    start: str
    variants: dict[str, Rules]
    phrases: list[Rules]

    def rules(self, variant: str, grammar: int) -> Rules:
        """All rules of one variant of one grammar."""
        return {**self.variants[variant], **self.phrases[grammar]}


def read_grammar_file(name: str) -> GrammarFile:
    """The grammar file shipped under this name (paper.json is from samyakjain0112/Understanding-Jailbreaks, MIT)."""
    text = resources.files("tunescope.tasks.world").joinpath(f"data/{name}.json").read_text(encoding="utf-8")
    data = json.loads(text)
    return GrammarFile(data["terminals"], data["start"], data["grammars"], data["phrases"])


@dataclass(frozen=True)
class Derivations:
    """Terminal strings of n derivations, concatenated in order; `owner` says which row a symbol belongs to."""

    symbols: Int[Tensor, " m"]
    owner: Int[Tensor, " m"]


class Sampler:
    """Compiled rule table of all variants and grammars of a file.

    Args:
        file: the grammars.
        device: where the table lives and where samples are made.

    Raises:
        InputError: when a symbol can derive itself, which would make its strings unbounded.
    """

    def __init__(self, file: GrammarFile, device: torch.device) -> None:
        self.device = device
        self.variants = tuple(file.variants)
        self.grammars = len(file.phrases)
        self.terminals = file.terminals
        # Symbols 0 .. terminals - 1 are terminals; every (variant, grammar) has nonterminals of its own after them.
        rules: list[list[list[int]]] = [[[t]] for t in range(file.terminals)]
        starts = []
        names: dict[int, str] = {}
        for variant in self.variants:
            for grammar in range(self.grammars):
                named = file.rules(variant, grammar)
                ids = {symbol: len(rules) + i for i, symbol in enumerate(named)}
                starts.append(ids[file.start])
                names |= {i: f"{s!r} of the variant {variant!r}, grammar {grammar}," for s, i in ids.items()}
                rules += [
                    [[s if isinstance(s, int) else ids[s] for s in alt] for alt in alts] for alts in named.values()
                ]
        shortest, longest = _yield_lengths(rules, names)
        width = max(len(alt) for alts in rules for alt in alts)
        alternatives = max(len(alts) for alts in rules)
        table = torch.full((len(rules), alternatives, width), -1, dtype=torch.int64)
        for symbol, alts in enumerate(rules):
            for i, alt in enumerate(alts):
                table[symbol, i, : len(alt)] = torch.tensor(alt)
        self._width = width
        self._rules = table.view(-1, width).to(device)
        self._stride = alternatives
        self._alternatives = torch.tensor([len(alts) for alts in rules], device=device)
        self._shortest = torch.tensor(shortest, device=device)
        self._fixed = torch.tensor([a == b for a, b in zip(shortest, longest, strict=True)], device=device)
        self._starts = torch.tensor(starts, device=device).view(len(self.variants), self.grammars)

    @cached_property
    def shortest(self) -> dict[str, int]:
        """Length of the shortest string of each variant, over its grammars."""
        lengths = self._shortest[self._starts].amin(dim=1).tolist()
        return dict(zip(self.variants, lengths, strict=True))

    def _expand(self, symbols: Tensor, owner: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        """One level down: every symbol is replaced by a random alternative (a terminal by itself)."""
        pick = stream.integers(self._alternatives[symbols], tuple(symbols.shape), self.device)
        children = self._rules[symbols * self._stride + pick]
        kept = children >= 0
        return children[kept], owner.repeat_interleave(kept.sum(dim=1))

    def start(self, variant: Int[Tensor, " n"], grammar: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Start symbols for rows of the given variant (index into `variants`) and grammar."""
        return self._starts[variant, grammar]

    def derive(self, start: Int[Tensor, " n"], stream: Stream) -> Derivations:
        """Whole derivations from the given start symbols."""
        symbols, owner = start, torch.arange(len(start), device=self.device)
        level = 0
        while (symbols >= self.terminals).any():
            symbols, owner = self._expand(symbols, owner, stream(level))
            level += 1
        return Derivations(symbols, owner)

    def windows(
        self, start: Int[Tensor, " n"], lengths: Int[Tensor, " n"], width: int, stream: Stream
    ) -> Int[Tensor, "n {width}"]:
        """A uniformly placed window of a fresh derivation per row; positions past the row's length hold -1.

        Args:
            start: start symbol per row.
            lengths: window length per row, at most `width` and at most the row's shortest derivation.
        """
        n, level = len(start), 0
        symbols, owner = start, torch.arange(n, device=self.device)
        while not self._fixed[symbols].all():
            symbols, owner = self._expand(symbols, owner, stream(level))
            level += 1
        # Every symbol now has a known number of terminals: place the windows, then expand only what they cover.
        ends = self._shortest[symbols].cumsum(0)
        counts = torch.bincount(owner, minlength=n)
        row_end = ends[counts.cumsum(0) - 1]
        row_start = torch.cat([row_end.new_zeros(1), row_end[:-1]])
        first = row_start + stream("offset").integers(row_end - row_start - lengths + 1, (n,), self.device)
        while True:
            begins = ends - self._shortest[symbols]
            covered = ((ends > first[owner]) & (begins < (first + lengths)[owner])).nonzero().squeeze(1)
            symbols, owner, begins = symbols[covered], owner[covered], begins[covered]
            if not (symbols >= self.terminals).any():
                break
            parent, base = owner, begins
            pick = stream(level).integers(self._alternatives[symbols], tuple(symbols.shape), self.device)
            children = self._rules[symbols * self._stride + pick]
            kept = children >= 0
            sizes = torch.where(kept, self._shortest[children.clamp(min=0)], 0).cumsum(1)
            ends = (base[:, None] + sizes)[kept]
            symbols, owner = children[kept], parent.repeat_interleave(kept.sum(dim=1))
            level += 1
        out = torch.full((n, width), -1, dtype=torch.int64, device=self.device)
        out[owner, begins - first[owner]] = symbols
        return out


def _yield_lengths(rules: list[list[list[int]]], names: dict[int, str]) -> tuple[list[int], list[int]]:
    """Shortest and longest string of every symbol, by recursion; `names` has the nonterminals."""
    known: dict[int, tuple[int, int]] = {}
    open_symbols: set[int] = set()

    def visit(symbol: int) -> tuple[int, int]:
        if symbol not in names:
            return 1, 1
        if symbol in open_symbols:
            raise InputError(f"grammar: {names[symbol]} derives itself; tunescope's grammars must not recurse")
        if symbol not in known:
            open_symbols.add(symbol)
            spans = [[visit(s) for s in alt] for alt in rules[symbol]]
            known[symbol] = min(sum(a for a, _ in s) for s in spans), max(sum(b for _, b in s) for s in spans)
            open_symbols.remove(symbol)
        return known[symbol]

    pairs = [visit(symbol) for symbol in range(len(rules))]
    return [a for a, _ in pairs], [b for _, b in pairs]
