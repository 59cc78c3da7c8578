"""Named, counter-based random streams: the same numbers on every device, in any order of asking.

A stream is a 64-bit key. Element `i` of a draw is SplitMix64 (Steele, Lea & Flood 2014) of `key + i`, computed with
torch integer arithmetic, so batch 1,000 needs nothing of batch 999, workers may share a stream in any way, and a CPU
and a GPU draw the same numbers. Nothing here or elsewhere in tunescope reads torch's global generator.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _hash(*scope: object) -> int:
    """64-bit signed key of a path of names and numbers; numpy's numbers count as Python's."""
    plain = tuple(part.item() if isinstance(part, np.generic) else part for part in scope)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _shift(z: Tensor, by: int) -> Tensor:
    """Logical right shift in place of a copy of z: torch's `>>` on int64 is arithmetic."""
    return (z >> by).bitwise_and_((1 << (64 - by)) - 1)


@dataclass(frozen=True)
class Stream:
    """A named source of random numbers; call it with a scope to get a stream of its own below it.

    >>> stream = Stream.named(0, "pretraining")
    >>> stream("batch", 7).integers(4, (2, 3), torch.device("cpu")).shape
    torch.Size([2, 3])
    """

    key: int

    @classmethod
    def named(cls, seed: int, *scope: object) -> "Stream":
        return cls(_hash(seed, *scope))

    def __call__(self, *scope: object) -> "Stream":
        return Stream(_hash(self.key, *scope))

    def bits(self, shape: tuple[int, ...], device: torch.device) -> Int[Tensor, "*shape"]:
        """64 random bits per element, int64."""
        count = 1
        for size in shape:
            count *= size
        z = torch.arange(1, count + 1, dtype=torch.int64, device=device).mul_(_GOLDEN).add_(self.key)
        z = _shift(z, 30).bitwise_xor_(z).mul_(_MIX_1)
        z = _shift(z, 27).bitwise_xor_(z).mul_(_MIX_2)
        return _shift(z, 31).bitwise_xor_(z).view(shape)

    def uniform(self, shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "*shape"]:
        """Uniform in [0, 1), float64, 53 random bits."""
        return _shift(self.bits(shape, device), 11).double().mul_(2.0**-53)

    def normal(self, shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "*shape"]:
        """Standard normal, float64."""
        return torch.special.ndtri(self.uniform(shape, device).add_(2.0**-54).clamp_(max=1 - 2.0**-53))

    def integers(
        self, high: int | Int[Tensor, "*#shape"], shape: tuple[int, ...], device: torch.device
    ) -> Int[Tensor, "*shape"]:
        """Uniform in 0 .. high - 1 (high < 2**31, a number or a tensor that broadcasts), int64; bias below 2**-31."""
        return (_shift(self.bits(shape, device), 33) * high).bitwise_right_shift_(31)

    def choose(self, options: Shaped[Tensor, " k"], shape: tuple[int, ...]) -> Shaped[Tensor, "*shape"]:
        """Uniform choice among the k entries of `options`."""
        return options[self.integers(len(options), shape, options.device)]
