"""Is there one safety subspace? How far the directions that dW writes and reads most are those of other fine-tunes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from jaxtyping import Float
from torch import Tensor

from tunescope.models.pair import Pair
from tunescope.models.weights import places
from tunescope.probes.subspaces import RANK_THRESHOLD, arithmetic_for, haar_overlap, overlap
from tunescope.progress import progress
from tunescope.records.findings import Findings, logarithm

SIDES = ("write", "read")  # the left and the right singular vectors of dW


@dataclass(frozen=True)
class Overlaps:
    """Of every two fine-tunes, matrix by matrix, for both of `SIDES`; NaN where one has left the matrix as it was.

    Attributes:
        shared: `overlap` of the leading singular vectors of dW. chance: that of random ones as many.
    """

    shared: Float[Tensor, "sides models models matrices"]
    chance: Float[Tensor, "sides models models matrices"]


def overlaps(pairs: Sequence[Pair], k: int, device: torch.device) -> Overlaps:
    """Of the k leading directions, or as many as both have; one matrix of all fine-tunes is in memory at a time."""
    matrices = [*places(pairs[0].before)]
    shared = torch.full((len(SIDES), len(pairs), len(pairs), len(matrices)), torch.nan, dtype=torch.float64)
    chance = shared.clone()
    for number, place in enumerate(progress(matrices, desc="overlap", unit="matrix")):
        bases = [_leading(pair.matrices(*place)[1].to(device), k) for pair in pairs]
        for (i, first), (j, second) in combinations_with_replacement(enumerate(bases), 2):
            for side, (one, other) in enumerate(zip(first, second, strict=True)):
                if rank := min(one.shape[1], other.shape[1]):
                    shared[side, [i, j], [j, i], number] = overlap(one[:, :rank], other[:, :rank])
                    chance[side, [i, j], [j, i], number] = haar_overlap(len(one), rank)
    return Overlaps(shared, chance)


def _leading(delta: Float[Tensor, "out in"], k: int) -> tuple[Float[Tensor, "out _"], Float[Tensor, "in _"]]:
    """What dW writes and reads most; fewer than k directions where its rank, but for rounding, is lower."""
    svd = arithmetic_for(delta).decompose(delta)
    rank = int((svd.s[:k] > RANK_THRESHOLD * svd.s[:1]).sum())
    return svd.u[:, :rank].clone(), svd.v[:, :rank].clone()  # a view would keep all of them


def measure_overlaps(found: Mapping[str, Findings], of: Overlaps, methods: Mapping[str, Sequence[str]]) -> None:
    """Means over matrices for every two fine-tunes; and, matrix by matrix, scores of each against the safety methods.

    Args:
        found: by fine-tune, in the order of `of`.
        methods: by fine-tune, the safety-trained ones that it is set against. Those without any have no scores.
    """
    at = {label: number for number, label in enumerate(found)}
    beside = {label: [at[other] for other in others] for label, others in methods.items() if others}
    # Scores are compared matrix by matrix, so that all are of the same ones.
    scored = [at[label] for label in beside]
    whole = ~of.shared[:, scored, scored].isnan().any(1).any(0)
    for side, name in enumerate(SIDES):
        for label, findings in found.items():
            for other in found:
                for control, values in (("", of.shared), ("haar", of.chance)):
                    both = values[side, at[label], at[other]]
                    if other != label and not both.isnan().all():
                        findings.value(f"{name}_overlap", both.nanmean().item(), scope=other, control=control)
            if others := beside.get(label):
                ratio = of.shared[side, at[label], others].mean(0) / of.chance[side, at[label], others].mean(0)
                findings.score(f"log_{name}_overlap", logarithm(ratio[whole]))
