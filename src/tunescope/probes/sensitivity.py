"""Sensitivity: how much does the model's output change with its input? (Jain et al. 2024, observation 4)"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

_TINY = 1e-300
Map = Callable[[Float[Tensor, "n t width"]], Float[Tensor, "n out"]]


def top_logit_gradient(logits: Map, embeddings: Float[Tensor, "n t width"]) -> Float[Tensor, " n"]:
    """Norm of the gradient of each prompt's largest logit with respect to all of its input embeddings.

    Args:
        logits: row by row independent map from embeddings to logits of the first output token, [n, vocab].
    """
    inputs = embeddings.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(logits(inputs).amax(dim=1).sum(), inputs)
    return gradient.flatten(1).double().norm(dim=1)


def jacobian_norm(
    function: Map, embeddings: Float[Tensor, "n t width"], start: Float[Tensor, "n t width"], steps: int = 12
) -> Float[Tensor, " n"]:
    """Largest singular value of each prompt's Jacobian of a row by row independent map, by power iteration.

    The Jacobian is never built: its transpose is applied by a backward pass (vjp), itself by a backward pass through
    that one (jvp), which is linear. From below, and exact in the limit.

    Args:
        start: where the iteration begins; random numbers, without a row of zeros.
        steps: iterations.
    """
    inputs = embeddings.detach().clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        output = function(inputs)
    dual = torch.zeros_like(output, requires_grad=True)
    (pulled,) = torch.autograd.grad(output, inputs, dual, create_graph=True)
    v, size = start.double(), torch.zeros(len(inputs), dtype=torch.float64, device=inputs.device)
    for _ in range(steps):  # what goes through the model has norm 1: squares of a large norm overflow half precision
        v = v / v.flatten(1).norm(dim=1).clamp(min=_TINY)[:, None, None]
        (pushed,) = torch.autograd.grad(pulled, dual, v.to(inputs), retain_graph=True)
        size = pushed.double().norm(dim=1)
        unit = pushed.double() / size.clamp(min=_TINY)[:, None]
        (back,) = torch.autograd.grad(output, inputs, unit.to(output), retain_graph=True)
        v = back.double()
    return size
