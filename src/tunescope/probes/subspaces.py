"""Subspaces: which directions does the weight change dW write to and read from? (Jain et al. 2024, observation 2)

Matrices are [out, in], of y = W a: the column space C(W) is what W can write, its orthogonal complement is the left
null space N(W^T). Everything is computed in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from tunescope.rng import Stream

RANK_THRESHOLD = 1e-3  # singular values above this share of the largest count as rank
GRAM_FLOOR = 1e-7  # singular values up to this share of the largest, by way of a Gram matrix, are noise


@dataclass(frozen=True)
class Svd:
    """Thin singular value decomposition U diag(s) V^T, in float64, without the part that is rounding.

    Attributes:
        u: [out, rank]. s: [rank], descending. v: [in, rank]. All empty for a zero matrix.
    """

    u: Float[Tensor, "out rank"]
    s: Float[Tensor, " rank"]
    v: Float[Tensor, "in rank"]

    @classmethod
    def of(cls, matrix: Float[Tensor, "out in"], threshold: float = 1e-9) -> "Svd":
        """Args:
            threshold: singular values up to this share of the largest are dropped.

        Raises:
            ValueError: the matrix has NaN or inf.
        """
        if not matrix.isfinite().all():
            raise ValueError("matrix: has NaN or inf")
        u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
        rank = int((s > threshold * s[0]).sum())
        return cls(u[:, :rank], s[:rank], vh[:rank].mT)

    @classmethod
    def through_gram(cls, matrix: Float[Tensor, "out in"]) -> "Svd":
        """The same by the eigenvectors of the smaller Gram matrix: several times faster for large matrices.

        Singular values are right to about 1e-8 of the largest (the root of float64's precision); those below
        `GRAM_FLOOR` of it are dropped, and so are their vectors.
        """
        if len(matrix) < matrix.shape[1]:
            turned = cls.through_gram(matrix.mT)
            return cls(turned.v, turned.s, turned.u)
        if not matrix.isfinite().all():
            raise ValueError("matrix: has NaN or inf")
        matrix = matrix.double()
        energies, v = torch.linalg.eigh(matrix.mT @ matrix)
        s, v = energies.flip(0).clamp(min=0).sqrt(), v.flip(1)
        rank = int((s > GRAM_FLOOR * s[0]).sum())
        return cls(matrix @ v[:, :rank] / s[:rank], s[:rank], v[:, :rank])

    @property
    def matrix(self) -> Float[Tensor, "out in"]:
        """What was decomposed, but for rounding."""
        return (self.u * self.s) @ self.v.mT

    @property
    def energy(self) -> Float[Tensor, " rank"]:
        """Share of each singular direction in the squared Frobenius norm."""
        return self.s**2 / (self.s**2).sum()

    def columns(self, threshold: float) -> Float[Tensor, "out _"]:
        """Orthonormal basis of the column space, counting singular values above `threshold` of the largest."""
        return self.u[:, self.s > threshold * self.s[:1]]

    def effective_rank(self) -> float:
        """See `effective_rank`."""
        return effective_rank(self.s)


def effective_rank(values: Float[Tensor, " k"]) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 for a zero matrix."""
    return torch.special.entr(values / values.sum()).sum().exp().item() if values.any() else 0.0


def column_space(matrix: Float[Tensor, "out in"], threshold: float = RANK_THRESHOLD) -> Float[Tensor, "out rank"]:
    """Orthonormal basis of C(W), counting singular values above `threshold` of the largest."""
    return Svd.of(matrix).columns(threshold)


def null_lengths(u: Float[Tensor, "out k"], columns: Float[Tensor, "out rank"]) -> Float[Tensor, " k"]:
    """Length of each unit column of `u` projected on N(W^T), given a basis of C(W): the paper's plot, in [0, 1]."""
    return (1 - (columns.mT @ u).square().sum(0)).clamp(0, 1).sqrt()


def haar_share(out: int, rank: int) -> float:
    """Expected share in N(W^T) of a vector in uniformly random direction: the dimension of the one over the other."""
    return (out - rank) / out


def random_null_lengths(normal: Float[Tensor, "draws out k"], rank: int) -> Float[Tensor, "draws k"]:
    """`null_lengths` of the columns of Haar-random orthonormal bases against any C(W) of the given rank.

    Args:
        normal: standard normal numbers; their Gram-Schmidt bases (by Cholesky) are Haar-distributed.
    """
    if rank >= normal.shape[1]:
        return normal.new_zeros(len(normal), normal.shape[2])
    lower = torch.linalg.cholesky(normal.mT @ normal)
    # Where C(W) lies does not matter: take it to be the first coordinates.
    inside = torch.linalg.solve_triangular(lower, normal[:, :rank].mT, upper=False)
    return (1 - inside.square().sum(2)).clamp(0, 1).sqrt()


def rotated_null_shares(delta: Svd, lengths: Float[Tensor, "draws k"]) -> Float[Tensor, " draws"]:
    """`null_share` of dW with its singular values kept and its left basis drawn at random, once per draw.

    Args:
        lengths: `random_null_lengths`, with k at least the rank of dW.
    """
    return lengths[:, : len(delta.s)].square() @ delta.energy


def principal_angles(first: Float[Tensor, "out k"], second: Float[Tensor, "out m"]) -> Float[Tensor, " angles"]:
    """Principal angles between two subspaces given by orthonormal bases, in radians, ascending."""
    cosines = torch.linalg.svdvals(first.mT @ second).clamp(0, 1)
    return cosines.arccos()


def overlap(first: Float[Tensor, "d k"], second: Float[Tensor, "d k"]) -> float:
    """Mean squared cosine of the principal angles between two subspaces given by orthonormal bases, in [0, 1].

    The cosines are the singular values of U1^T U2 (Björck & Golub 1973, theorem 1), so that it is |U1^T U2|_F^2 / k.
    """
    return (first.mT @ second).square().sum().item() / first.shape[1]


def haar_overlap(d: int, k: int) -> float:
    """Expected `overlap` of k-dimensional subspaces of d dimensions of which one is uniformly random: exactly k / d."""
    return k / d


def _exact_null_lengths(
    stream: Stream, draws: int, out: int, k: int, rank: int, device: torch.device
) -> Float[Tensor, "{draws} {k}"]:
    return random_null_lengths(stream.normal((draws, out, k), device), rank)


def _beta_null_lengths(
    stream: Stream, draws: int, out: int, k: int, rank: int, device: torch.device
) -> Float[Tensor, "{draws} {k}"]:
    if rank >= out:
        return torch.zeros(draws, k, dtype=torch.float64, device=device)
    uniform = stream.uniform((draws, k), torch.device("cpu")).double().numpy()
    return torch.from_numpy(stats.beta.ppf(uniform, (out - rank) / 2, rank / 2)).to(device).sqrt()


@dataclass(frozen=True)
class Arithmetic:
    """How matrices are decomposed, and random bases drawn.

    Attributes:
        random_null_lengths: from a stream, how many draws, the rows and columns of the bases, and the rank of C(W), to
            what `random_null_lengths` says of such bases: [draws, columns].
    """

    decompose: Callable[[Float[Tensor, "out in"]], Svd]
    random_null_lengths: Callable[[Stream, int, int, int, int, torch.device], Float[Tensor, "draws k"]]


EXACT = Arithmetic(Svd.of, _exact_null_lengths)
# For matrices of real models. The columns of a random basis are drawn by themselves, each with its own law (Beta);
# as they hardly depend on each other where there are thousands, means over them vary next to no more than they should.
LARGE = Arithmetic(Svd.through_gram, _beta_null_lengths)
MOST_EXACT = 2048  # rows or columns up to which a full decomposition takes seconds at most


def arithmetic_for(matrix: Float[Tensor, "out in"]) -> Arithmetic:
    """Exact where that is cheap."""
    return EXACT if max(matrix.shape) <= MOST_EXACT else LARGE
