"""Fine-tuning: one function for every protocol."""

import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import Config, Lora, TuneConfig
from tunescope.errors import InputError, shown
from tunescope.models.checkpoint import quiet
from tunescope.models.compute import Compute
from tunescope.models.families import FAMILIES
from tunescope.progress import progress
from tunescope.registry import place_of
from tunescope.rng import Stream
from tunescope.tasks.base import PreferenceBatch, Task
from tunescope.training.fit import Row, fit
from tunescope.training.optimizers import adamw
from tunescope.training.protocol import Answered, Protocol, Step, answered, lengths_of, reads_rejected
from tunescope.training.schedules import warmup_cosine

KEPT = ("chosen", "rejected")
Lookup = Callable[[str], Tensor]  # of log-probabilities that are kept, by their name


def tune(
    policy: PreTrainedModel,
    reference: PreTrainedModel | Lookup | None,
    protocol: Protocol,
    settings: Config,
    lr: float,
    task: Task,
    config: TuneConfig,
    compute: Compute,
    stream: Stream,
    *,
    lora: Lora | None = None,
    label: str,
    due: Container[int],
    save: Callable[[int, PreTrainedModel], None],
    resume: Path | None = None,
) -> list[Row]:
    """Fine-tune `policy` in place; returns the learning curve.

    Args:
        reference: the frozen model before, or, by name, what `reference_logps` made of it; None where the protocol
            reads neither.
        settings: the protocol's own.
        lr: peak learning rate.
        lora: train adapters alone, and merge them at the end.
        save: called with the step and the model after each of the steps that are `due`, and after the last.

    Raises:
        TrainingDivergedError: see `fit`.
        InputError: the task knows no answers.
    """
    if compute.attention:  # it may have been loaded to be read, for which another one is faster
        policy.set_attn_implementation(compute.attention)
    adapted = _adapted(policy, lora, stream("adapters")) if lora else None

    def losses(step: int) -> Iterator[Tensor]:
        return losses_of(step, policy, reference, protocol, settings, task, config, compute, stream)

    def measure(step: int) -> Row:
        if step in due and step < config.steps:
            save(step, deepcopy(adapted).merge_and_unload() if adapted else policy)
        return {}

    with nullcontext() if lora is None else quiet():
        curve = fit(
            policy,
            [adamw([p for p in policy.parameters() if p.requires_grad], lr, config.weight_decay)],
            losses,
            warmup_cosine(config.steps, config.warmup, config.final_lr),
            measure=measure,
            total=config.steps,
            label=label,
            resume=resume,
        )
        if adapted:
            adapted.merge_and_unload()
    save(config.steps, policy)
    return curve


def losses_of(
    step: int,
    policy: PreTrainedModel,
    reference: PreTrainedModel | Lookup | None,
    protocol: Protocol,
    settings: Config,
    task: Task,
    config: TuneConfig,
    compute: Compute,
    stream: Stream,
) -> Iterator[Float[Tensor, ""]]:
    """Losses of one step of `tune`, part by part.

    Raises:
        InputError: the protocol gives anything but one number per prompt.
    """
    batch = _batch(step, task, config.batch, protocol.unsafe_of(config.batch, config.unsafe_share), stream)
    for number, part in enumerate(_parts(batch, protocol, compute)):
        known = _known(reference, step, number)
        view = Step(policy, known, part, protocol, compute, stream, step / config.steps, batch)
        loss = protocol.loss(view, settings)
        if not isinstance(loss, Tensor) or loss.shape != part.safe.shape:
            got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else shown(loss)
            raise InputError(
                f"protocol {protocol.name} ({place_of(protocol.loss)}): one loss per prompt is wanted, "
                f"[{len(part.safe)}], summed or averaged over its tokens alone; got {got}"
            )
        yield loss.sum() / config.batch


def equally_spaced(config: TuneConfig) -> set[int]:
    """The steps at which models are saved, the last included."""
    return {round(config.steps * (i + 1) / config.checkpoints) for i in range(config.checkpoints)}


def _adapted(policy: PreTrainedModel, lora: Lora, stream: Stream) -> Any:
    """Puts adapters into every matrix of the model's blocks; the model stays the same object."""
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a number will do
        target_modules="all-linear",
        fan_in_fan_out=FAMILIES[policy.config.model_type].transposed,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what peft calls in transformers
        torch.default_generator.manual_seed(stream.key & 0x7FFFFFFF)
        return get_peft_model(policy, config)


@torch.no_grad()
def reference_logps(
    reference: PreTrainedModel,
    protocol: Protocol,
    task: Task,
    steps: int,
    batch: int,
    unsafe: int,
    compute: Compute,
    stream: Stream,
) -> dict[str, Tensor]:
    """What the frozen model says of all answers of a fine-tuning, of so many steps of `batch` prompts, `unsafe` of them
    unsafe: no learning rate changes it.

    Returns:
        Log-probabilities in nats, float32, [b, a], as `STEP.PART.chosen` and `STEP.PART.rejected`.
    """
    kept: dict[str, Tensor] = {}
    for step in progress(range(steps), desc=f"reference of {protocol.name}", unit="step"):
        for number, part in enumerate(_parts(_batch(step, task, batch, unsafe, stream), protocol, compute)):
            for name, logps in zip(KEPT, answered(reference, part, protocol, compute), strict=True):
                kept[f"{step}.{number}.{name}"] = logps.cpu()
    return kept


def _known(reference: PreTrainedModel | Lookup | None, step: int, number: int) -> PreTrainedModel | Answered | None:
    if reference is None or isinstance(reference, PreTrainedModel):
        return reference
    chosen, rejected = (reference(f"{step}.{number}.{name}") for name in KEPT)
    return chosen, rejected


def _batch(step: int, task: Task, size: int, unsafe: int, stream: Stream) -> PreferenceBatch:
    return task.lesson(size - unsafe, unsafe, stream("batch", step))


def _parts(batch: PreferenceBatch, protocol: Protocol, compute: Compute) -> Iterator[PreferenceBatch]:
    """The batch of a step, as much of it at once as memory has room for; those of like length, which pads least."""
    rows = max(1, compute.rows // 2 if protocol.rejected else compute.rows)
    rejected = lengths_of(batch.rejected) * reads_rejected(protocol, batch)
    lengths = batch.prompts.lengths + torch.maximum(lengths_of(batch.chosen), rejected)
    for of in lengths.argsort(stable=True).split(rows):
        yield PreferenceBatch(batch.prompts[of], batch.chosen[of], batch.rejected[of], batch.safe[of])
