"""Safety fine-tuning: one function for every protocol."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import TuneConfig
from tunescope.models.compute import Compute
from tunescope.protocols.protocols import AnswerLogps, Protocol
from tunescope.rng import Stream
from tunescope.training.fit import Row, fit
from tunescope.training.optimizers import adamw
from tunescope.training.schedules import warmup_cosine
from tunescope.world.batches import preference_batch
from tunescope.world.world import World


def tune(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    protocol: Protocol,
    lr: float,
    world: World,
    config: TuneConfig,
    compute: Compute,
    stream: Stream,
    *,
    label: str,
    save: Callable[[int], None],
    resume: Path,
) -> list[Row]:
    """Fine-tune `policy` in place; returns the learning curve.

    Args:
        reference: the frozen instruction-tuned model (read by DPO only).
        lr: peak learning rate.
        save: called with the step whenever one of the `config.checkpoints` is due, the last step included.

    Raises:
        TrainingDivergedError: see `fit`.
    """
    unsafe = round(protocol.unsafe_share * config.batch)
    due = {round(config.steps * (i + 1) / config.checkpoints) for i in range(config.checkpoints)}

    def losses(step: int) -> Iterator[Tensor]:
        batch = preference_batch(world, config.batch - unsafe, unsafe, stream("batch", step))
        sides = 2 if protocol.rejected else 1
        rows = max(1, compute.rows // sides)
        parts = zip(batch.chosen.split(rows), batch.rejected.split(rows), batch.safe.split(rows), strict=True)
        for chosen, rejected, safe in parts:
            tokens = torch.cat([chosen, rejected][:sides])
            start = batch.answer_start - 1
            answers = compute.logps(policy, tokens)[:, start:].chunk(sides)
            logps = dict(zip(("policy_chosen", "policy_rejected"), answers, strict=False))
            if protocol.reference:
                with torch.no_grad():
                    answers = compute.logps(reference, tokens)[:, start:].chunk(sides)
                logps |= zip(("reference_chosen", "reference_rejected"), answers, strict=False)
            yield protocol.loss(AnswerLogps(safe, **logps), config).sum() / config.batch

    def measure(step: int) -> Row:
        if step in due:
            save(step)
        return {}

    return fit(
        policy,
        [adamw(list(policy.parameters()), lr, config.weight_decay)],
        losses,
        warmup_cosine(config.steps, config.warmup, config.final_lr),
        measure=measure,
        total=config.steps,
        label=label,
        resume=resume,
    )
