"""Pretraining with instruction tuning, in one run."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import PretrainConfig
from tunescope.models.compute import Compute
from tunescope.rng import Stream
from tunescope.tasks.base import Corpus
from tunescope.training.fit import Row, fit
from tunescope.training.optimizers import muon_and_adamw
from tunescope.training.schedules import settle_then_cool

HELD_OUT = "held_out_compliance"


def pretrain(
    model: PreTrainedModel, task: Corpus, config: PretrainConfig, compute: Compute, stream: Stream, resume: Path
) -> list[Row]:
    """Train `model` in place until it answers held-out instructions, then cool down; returns the learning curve.

    Held-out compliance is in the curve every `config.check_every` steps and at the end.

    Raises:
        TrainingDivergedError: see `fit`.
    """

    def losses(step: int) -> Iterator[Tensor]:
        inputs, learn = task.pretraining(config.batch, stream("batch", step), min(1.0, step / config.steps))
        learn = learn[:, 1:]
        count = learn.sum()
        for part, mask in zip(inputs.split(compute.rows), learn.split(compute.rows), strict=True):
            logps = compute.logps(model, part.sequence, None, part.positions, part.mask)
            yield -(logps * mask).sum() / count

    def held_out() -> Row:
        return {HELD_OUT: held_out_compliance(model, task, compute, stream("held-out"))}

    curve = fit(
        model,
        muon_and_adamw(model, config, compute.dtype),
        losses,
        settle_then_cool(config.steps, config.warmup, config.cooldown, HELD_OUT, config.settled),
        measure=lambda step: {} if step % config.check_every else held_out(),
        total=config.steps,
        label="pretraining",
        resume=resume,
    )
    curve[-1] |= held_out()
    return curve


def held_out_compliance(model: PreTrainedModel, task: Corpus, compute: Compute, stream: Stream) -> float:
    """Share of held-out prompts that greedy decoding would answer wholly right."""
    right = [task.outcomes(model, batch, compute.rows).compliance for batch in task.held_out(stream)]
    return torch.cat(right).double().mean().item()
