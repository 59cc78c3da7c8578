"""Pretraining with instruction tuning, in one run."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import PretrainConfig
from tunescope.models.compute import Compute
from tunescope.models.inputs import Inputs
from tunescope.models.logps import follows
from tunescope.rng import Stream
from tunescope.training.fit import Row, fit
from tunescope.training.optimizers import muon_and_adamw
from tunescope.training.schedules import settle_then_cool
from tunescope.world.batches import pretraining_batch
from tunescope.world.kinds import Kind
from tunescope.world.prompts import sample_prompts
from tunescope.world.world import World

HELD_OUT = "held_out_compliance"
HELD_OUT_KINDS = (Kind.SAFE, Kind.UNSAFE, Kind.SAFE_DIALECT)
HELD_OUT_PROMPTS = 512  # of each


def pretrain(
    model: PreTrainedModel, world: World, config: PretrainConfig, compute: Compute, stream: Stream, resume: Path
) -> list[Row]:
    """Train `model` in place until it answers held-out instructions, then cool down; returns the learning curve.

    Held-out compliance is in the curve every `config.check_every` steps and at the end.

    Raises:
        TrainingDivergedError: see `fit`.
    """

    def losses(step: int) -> Iterator[Tensor]:
        batch = pretraining_batch(world, config.batch, stream("batch", step), min(1.0, step / config.steps))
        learn = batch.learn[:, 1:]
        count = learn.sum()
        for tokens, mask in zip(batch.tokens.split(compute.rows), learn.split(compute.rows), strict=True):
            yield -(compute.logps(model, tokens) * mask).sum() / count

    def held_out() -> Row:
        return {HELD_OUT: held_out_compliance(model, world, compute, stream("held-out"))}

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


def held_out_compliance(model: PreTrainedModel, world: World, compute: Compute, stream: Stream) -> float:
    """Share of held-out plain prompts, safe and unsafe, that greedy decoding would answer wholly right."""
    right = []
    for kind in HELD_OUT_KINDS:
        prompts = sample_prompts(world, kind, HELD_OUT_PROMPTS, stream(kind), strength=float(kind.has_strength))
        right.append(follows(model, Inputs(prompts.prompt), prompts.answer, compute.rows, compute.dtype))
    return torch.cat(right).double().mean().item()
