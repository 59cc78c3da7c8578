"""Controls: what the weight change would look like had nothing to do with safety happened.

The other controls are models: the base itself, and the benign fine-tune of the same steps and learning rate.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tunescope.probes.subspaces import Svd
from tunescope.rng import Stream


def gaussian(delta: Float[Tensor, "out in"], stream: Stream) -> Float[Tensor, "out in"]:
    """Independent normal entries, at the Frobenius norm of dW."""
    noise = stream.normal(tuple(delta.shape), delta.device)
    return noise * (delta.double().norm() / noise.norm())


def rotated(delta: Svd, stream: Stream) -> Svd:
    """dW with its singular values kept and both of its bases drawn from the Haar measure."""
    k = len(delta.s)
    u, v = (haar(len(side), k, stream(name), side.device) for name, side in (("left", delta.u), ("right", delta.v)))
    return Svd(u, delta.s, v)


def haar(size: int, k: int, stream: Stream, device: torch.device) -> Float[Tensor, "{size} {k}"]:
    """k orthonormal columns in uniformly random directions."""
    q, r = torch.linalg.qr(stream.normal((size, k), device))
    return q * r.diagonal().sign()  # without the signs, QR's own convention would bias the columns


def shuffled(n: int, stream: Stream, device: torch.device) -> Int[Tensor, " {n}"]:
    """A random order of n prompts, by which labels are dealt out anew."""
    return stream.uniform((n,), device).argsort()
