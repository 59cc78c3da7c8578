"""Safety fine-tuning: one function for every protocol."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import TuneConfig
from tunescope.models.compute import Compute
from tunescope.protocols.losses import Logps
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
        rows = max(1, compute.rows // 2 if protocol.rejected else compute.rows)
        parts = zip(batch.chosen.split(rows), batch.rejected.split(rows), batch.safe.split(rows), strict=True)
        for chosen, rejected, safe in parts:
            read = {"": torch.zeros_like(safe), "unsafe": ~safe, "all": torch.ones_like(safe)}[protocol.rejected]
            tokens = torch.cat([chosen, rejected[read]])
            logps = _both_answers(compute.logps(policy, tokens)[:, batch.answer_start - 1 :], read, "policy")
            if protocol.reference:
                with torch.no_grad():
                    answers = compute.logps(reference, tokens)[:, batch.answer_start - 1 :]
                logps |= _both_answers(answers, read, "reference")
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


def _both_answers(answers: Float[Tensor, "m t"], read: Bool[Tensor, " b"], whose: str) -> dict[str, Logps]:
    """Log-probabilities of the chosen answers, and of the rejected ones, which follow them as far as they were read."""
    chosen, rejected = answers.split([len(read), len(answers) - len(read)])
    return {f"{whose}_chosen": chosen, f"{whose}_rejected": torch.zeros_like(chosen).index_put((read,), rejected)}
