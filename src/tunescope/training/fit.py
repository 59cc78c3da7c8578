"""The one fit loop: every model of a study is trained by it, and it can be stopped and resumed at any step."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm
from transformers import PreTrainedModel

from tunescope.errors import InputError
from tunescope.files import atomic_path

SAVE_SECONDS = 30.0

Row = dict[str, float]
# Losses of one step, part by part; their sum is the step's loss. Each part's graph is freed before the next is built.
Losses = Callable[[int], Iterator[Float[Tensor, ""]]]
# Share of the peak learning rate at a step, given what was measured so far; None ends the training.
Schedule = Callable[[int, list[Row]], float | None]


@dataclass
class FitState:
    """Where a run of the loop stands: the next step, and one row per step done."""

    step: int = 0
    history: list[Row] = field(default_factory=list)


class TrainingDivergedError(InputError):
    """The loss or a gradient is not finite."""


def fit(
    model: PreTrainedModel,
    optimizers: list[Optimizer],
    losses: Losses,
    schedule: Schedule,
    *,
    measure: Callable[[int], Row],
    total: int,
    label: str,
    resume: Path | None = None,
    clip: float = 1.0,
) -> list[Row]:
    """Train until the schedule says stop; returns one row per step: loss (nats), lr_scale, and what `measure` adds.

    Args:
        losses: must depend on the step alone, not on what came before: that makes a resumed run bit for bit the same.
        measure: called with the number of steps done, after each; it may also save checkpoints.
        total: most steps there can be, for the progress bar.
        resume: file for the loop's own state; read if there, written every half minute, removed by the caller.
        clip: largest gradient norm.

    Raises:
        TrainingDivergedError: when the loss or the gradient norm is not finite.
    """
    state = _load(resume, model, optimizers) if resume and resume.exists() else FitState()
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    saved = time.monotonic()
    model.train()
    with tqdm(total=total, initial=state.step, desc=label, unit="step", disable=None, leave=False) as bar:
        while (scale := schedule(state.step, state.history)) is not None:
            for optimizer, rates in zip(optimizers, peaks, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * scale
            loss = torch.zeros((), device=model.device)
            for part in losses(state.step):
                part.backward()
                loss += part.detach()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            if not torch.isfinite(loss + norm):
                raise TrainingDivergedError(
                    f"{label}: the loss is not finite at step {state.step}; lower the learning rate"
                )
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.history.append({"step": state.step, "loss": loss.item(), "lr_scale": scale, **measure(state.step)})
            bar.update()
            if resume and time.monotonic() - saved > SAVE_SECONDS:
                _save(resume, model, optimizers, state)
                saved = time.monotonic()
    model.eval()
    return state.history


def _save(path: Path, model: PreTrainedModel, optimizers: list[Optimizer], state: FitState) -> None:
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for index, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{index}.{name}": value for name, value in entry.items()}
    with atomic_path(path) as temporary:
        save_file(
            {name: t.contiguous() for name, t in tensors.items()},
            temporary,
            {"step": str(state.step), "history": json.dumps(state.history)},
        )


def _load(path: Path, model: PreTrainedModel, optimizers: list[Optimizer]) -> FitState:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata: dict[str, str] = file.metadata()
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it to start this training again") from error
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for i, optimizer in enumerate(optimizers):
        entries: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                _, _, index, key = name.split(".", 3)
                entries.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return FitState(int(metadata["step"]), json.loads(metadata["history"]))
