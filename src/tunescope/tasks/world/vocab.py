"""The token alphabet of a world: specials, task tokens, text symbols, and the same symbols in dialect."""

from dataclasses import dataclass

SPECIALS = ("<pad>", "<eos>", "<sep>", "<stop>", "<null>", "<const>", "<blank>")
PAD, EOS, SEP, STOP, NULL, CONST, BLANK = range(len(SPECIALS))


@dataclass(frozen=True)
class Vocab:
    """Token ids in four blocks: specials, task tokens (one per operator, then aliases), plain symbols, dialect symbols.

    Attributes:
        aliases: for each alias token, the operator that it names.
    """

    operators: int
    aliases: tuple[int, ...]
    symbols: int

    @property
    def first_task(self) -> int:
        return len(SPECIALS)

    @property
    def first_symbol(self) -> int:
        return self.first_task + self.operators + len(self.aliases)

    @property
    def first_dialect(self) -> int:
        return self.first_symbol + self.symbols

    @property
    def words(self) -> tuple[str, ...]:
        """The word of every token id: `op1` an operator, `op1'` `op1''` its aliases, `s7` a symbol, `d7` in dialect."""
        aliases = [f"op{op}" + "'" * (1 + self.aliases[:i].count(op)) for i, op in enumerate(self.aliases)]
        return (
            *SPECIALS,
            *(f"op{i}" for i in range(self.operators)),
            *aliases,
            *(f"s{i}" for i in range(self.symbols)),
            *(f"d{i}" for i in range(self.symbols)),
        )

    def __len__(self) -> int:
        return self.first_dialect + self.symbols

    def text(self, ids: list[int]) -> str:
        """Token ids as the text that the saved tokenizer turns back into them."""
        words = self.words
        return " ".join(words[i] for i in ids)
