"""What a model reads: token ids, or embeddings in their place, with what goes with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

WORTH_SHARING = 8  # tokens; a pass of its own costs more than to read fewer of them again
IGNORED = -100  # behind the end of an answer shorter than others: read by no loss, as torch's cross entropy has it
# Token ids of answers, one row each, filled up with IGNORED on the right.
Answers = Int[Tensor, "n a"]
Index = slice | Int[Tensor, " _"] | Bool[Tensor, " _"]


@dataclass(frozen=True)
class Inputs:
    """n sequences of one length.

    Attributes:
        sequence: token ids [n, t], or embeddings [n, t, width].
        positions: place of each token, [n, t]; None counts them from 0.
        mask: 1 for tokens, 0 for padding, on the left, so that every row ends in a token. None: no padding.
        shared: number of first tokens that are the same in all sequences.
    """

    sequence: Int[Tensor, "n t"] | Float[Tensor, "n t width"]
    positions: Int[Tensor, "n t"] | None = None
    mask: Int[Tensor, "n t"] | None = None
    shared: int = 0

    def __len__(self) -> int:
        return len(self.sequence)

    def __getitem__(self, index: Index) -> "Inputs":
        positions = None if self.positions is None else self.positions[index]
        return Inputs(self.sequence[index], positions, None if self.mask is None else self.mask[index], self.shared)

    def split(self, rows: int) -> Iterator["Inputs"]:
        """At most so many sequences at a time."""
        return (self[start : start + rows] for start in range(0, len(self), rows))

    @property
    def lengths(self) -> Int[Tensor, " n"]:
        """How many tokens each sequence has."""
        if self.mask is None:
            return torch.full((len(self),), self.sequence.shape[1], device=self.sequence.device)
        return self.mask.sum(1)

    @property
    def ids(self) -> list[tuple[int, ...]]:
        """Token ids of each sequence, without padding."""
        rows, lengths = self.sequence.tolist(), self.lengths.tolist()
        return [tuple(row[len(row) - length :]) for row, length in zip(rows, lengths, strict=True)]

    def trimmed(self) -> "Inputs":
        """The same without the padding that all sequences have."""
        if self.mask is None:
            return self
        start = self.sequence.shape[1] - int(self.lengths.max())
        positions = None if self.positions is None else self.positions[:, start:]
        return replace(self, sequence=self.sequence[:, start:], positions=positions, mask=self.mask[:, start:])

    def arguments(self, start: int = 0) -> dict[str, Tensor]:
        """As keyword arguments of a forward pass; tokens before `start` are left out, since a cache has them."""
        name = "inputs_embeds" if self.sequence.is_floating_point() else "input_ids"
        mask = self.mask
        if self.positions is not None and mask is None:
            # Without a mask transformers takes positions that do not count up for several sequences in one row.
            mask = torch.ones_like(self.positions)
        positions = None if self.positions is None else self.positions[:, start:]
        named = {name: self.sequence[:, start:], "position_ids": positions, "attention_mask": mask}
        return {key: value for key, value in named.items() if value is not None}

    def shared_first(self) -> "Inputs":
        """The same, with the padding after the shared tokens and before the others."""
        if self.mask is None or not self.shared:
            return self
        n, t = self.mask.shape
        place = torch.arange(t - self.shared, device=self.mask.device).expand(n, -1)
        padding = (self.mask.cumsum(1) == 0).sum(1, keepdim=True)
        source = torch.cat(
            [padding + torch.arange(self.shared, device=place.device), place + self.shared * (place >= padding)], dim=1
        )
        positions = None if self.positions is None else self.positions.gather(1, source)
        return replace(
            self, sequence=self.sequence.gather(1, source), positions=positions, mask=self.mask.gather(1, source)
        )

    def embedded(self, model: PreTrainedModel) -> "Inputs":
        """The same with embeddings for token ids, cut off from their table's gradient."""
        if self.sequence.is_floating_point():
            return self
        return replace(self, sequence=model.get_input_embeddings()(self.sequence).detach())

    def followed_by(self, more: Int[Tensor, "n a"] | Float[Tensor, "n a width"]) -> "Inputs":
        """The same with more tokens, or embeddings where these are, behind, at the next positions."""
        positions, mask = self._next(more.shape[1])
        if self.positions is not None and positions is not None:
            positions = torch.cat([self.positions, positions], dim=1)
        return Inputs(torch.cat([self.sequence, more], dim=1), positions, mask, self.shared)

    def followed_by_tokens(self, more: Int[Tensor, "n a"], model: PreTrainedModel) -> "Inputs":
        """The same with more tokens behind, as embeddings where these are."""
        return self.followed_by(Inputs(more).embedded(model).sequence if self.sequence.is_floating_point() else more)

    def next_arguments(self, more: Int[Tensor, "n a"]) -> dict[str, Tensor]:
        """Of a forward pass on more tokens behind these, of which the model has kept keys and values."""
        positions, mask = self._next(more.shape[1])
        if positions is not None and mask is None:
            mask = torch.ones(len(more), self.sequence.shape[1] + more.shape[1], dtype=torch.long, device=more.device)
        named = {"input_ids": more, "position_ids": positions, "attention_mask": mask}
        return {key: value for key, value in named.items() if value is not None}

    def _next(self, length: int) -> tuple[Int[Tensor, "n _"] | None, Int[Tensor, "n _"] | None]:
        """Positions of so many further tokens, and the mask of all."""
        positions, mask = self.positions, self.mask
        if positions is not None:
            positions = positions[:, -1:] + torch.arange(1, length + 1, device=positions.device)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), length)], dim=1)
        return positions, mask


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> Inputs:
    """Rows of token ids as one batch; without mask and positions where all are of one length.

    The head of a chat template, say, is shared by all of them.
    """
    same = sum(1 for _ in takewhile(lambda ids: len({*ids}) == 1, zip(*rows, strict=False)))
    shared = min(same, min(map(len, rows)) - 2)
    shared = shared if len(rows) > 1 and shared >= WORTH_SHARING else 0
    longest = max(map(len, rows))
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows])
    sequence = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in rows])
    if mask.all():
        return Inputs(sequence.to(device), shared=shared)
    return Inputs(sequence.to(device), (mask.cumsum(1) - 1).clamp(min=0).to(device), mask.to(device), shared)


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Answers:
    """Answers of their own lengths as one tensor."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in rows], device=device)


def says(tokens: Int[Tensor, "n a"], answer: Answers) -> Bool[Tensor, " n"]:
    """Which rows of tokens are these answers, as far as each of them goes."""
    return ((tokens == answer) | (answer == IGNORED)).all(dim=1)


def same_length(
    first: Int[Tensor, "n a"], second: Int[Tensor, "n b"]
) -> tuple[Int[Tensor, "n longest"], Int[Tensor, "n longest"]]:
    """Both, the shorter filled up."""
    longest = max(first.shape[1], second.shape[1])

    def filled(answers: Tensor) -> Tensor:
        return torch.nn.functional.pad(answers, (0, longest - answers.shape[1]), value=IGNORED)

    return filled(first), filled(second)
