"""Optimizers: Muon for the matrices of the blocks, AdamW for the rest; AdamW alone for fine-tuning."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from tunescope.config import PretrainConfig

BETAS = (0.9, 0.95)
MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of Jordan et al. 2024: the steepest at zero


class Muon(Optimizer):
    """Muon (Jordan et al. 2024) with Nesterov momentum and decoupled weight decay.

    torch's own iterates in bfloat16 always, which on a CPU without bfloat16 instructions takes longer than the rest
    of the training step, and one matrix at a time; this one in any type, and all matrices of a shape at once.

    Args:
        dtype: type of the Newton-Schulz iteration.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, dtype: torch.dtype) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                by_shape[p.shape].append(p)
            for (rows, columns), parameters in by_shape.items():
                updates = torch.stack([self._momentum(p) for p in parameters]).to(self.dtype)
                size = group["lr"] * max(1.0, rows / columns) ** 0.5
                for p, update in zip(parameters, orthogonalize(updates), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)

    def _momentum(self, p: Tensor) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        state["momentum_buffer"].lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(state["momentum_buffer"], MOMENTUM)


def orthogonalize(matrices: Float[Tensor, "b m n"], steps: int = 5, eps: float = 1e-7) -> Float[Tensor, "b m n"]:
    """About U V^T of each matrix U S V^T: its singular values go to between .7 and 1.2 (Newton-Schulz iteration)."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def adamw(parameters: list[torch.nn.Parameter], lr: float, weight_decay: float) -> AdamW:
    return AdamW(parameters, lr=lr, betas=BETAS, weight_decay=weight_decay, fused=True)


def muon_and_adamw(model: PreTrainedModel, config: PretrainConfig, dtype: torch.dtype) -> list[Optimizer]:
    """Muon on every matrix inside a block, AdamW on embeddings, norms and biases."""
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    embeddings |= {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.ndim == 2 and id(p) not in embeddings]
    rest = [p for p in parameters if p.ndim != 2 or id(p) in embeddings]
    return [
        Muon(matrices, config.muon_lr, config.weight_decay, dtype),
        adamw(rest, config.lr, config.weight_decay),
    ]
