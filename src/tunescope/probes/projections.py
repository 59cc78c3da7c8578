"""Projections: which inputs does the weight change dW act on? (Jain et al. 2024, observation 3)

a is the input of the changed matrix, [n, in], one row per prompt.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tunescope.probes.subspaces import Svd


def gain(delta: Float[Tensor, "out in"], a: Float[Tensor, "n in"]) -> Float[Tensor, " n"]:
    """|dW a| / |a|: how strongly dW acts on the input; 0 where a is."""
    length = a.double().norm(dim=1)
    return torch.where(length > 0, (a.double() @ delta.double().mT).norm(dim=1) / length.clamp(min=1e-300), 0.0)


def row_projection(delta: Svd, a: Float[Tensor, "n in"]) -> Float[Tensor, " n"]:
    """Sigma-weighted mean of the squared cosines of a with the right singular vectors of dW, in [0, 1].

    1 / in for a in random direction whatever dW, more where a lies along what dW reads; 0 where a or dW is zero.
    """
    a = a.double()
    energy = a.square().sum(dim=1)
    weights = delta.s / delta.s.sum()
    share = (a @ delta.v).square() @ weights / energy.clamp(min=1e-300)
    return torch.where(energy > 0, share, 0.0)
