"""Optimizers: Muon for the matrices of the blocks, AdamW for the rest; AdamW alone for fine-tuning."""

import torch
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel

from tunescope.config import PretrainConfig

BETAS = (0.9, 0.95)


def adamw(parameters: list[torch.nn.Parameter], lr: float, weight_decay: float) -> AdamW:
    return AdamW(parameters, lr=lr, betas=BETAS, weight_decay=weight_decay, fused=True)


def muon_and_adamw(model: PreTrainedModel, config: PretrainConfig) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) on every matrix inside a block, AdamW on embeddings, norms and biases."""
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    embeddings |= {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.ndim == 2 and id(p) not in embeddings]
    rest = [p for p in parameters if p.ndim != 2 or id(p) in embeddings]
    return [
        Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay),
        adamw(rest, config.lr, config.weight_decay),
    ]
