"""The one fit loop: every model of a study is trained by it, and it can be stopped and resumed at any step."""

import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field, Json
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from tunescope.errors import InputError, shown
from tunescope.files import atomic_path
from tunescope.progress import progress

SAVE_SECONDS = 30.0  # between two saves; up to ten times as long where a save takes more than a second

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
        resume: file for the loop's own state; read if there, written every half minute or less often, removed by the
            caller.
        clip: largest gradient norm.

    Raises:
        TrainingDivergedError: when the loss or the gradient norm is not finite.
    """
    state = _load(resume, model, optimizers) if resume and resume.exists() else FitState()
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    saved, cost = time.monotonic(), 0.0
    model.eval()  # without dropout, which would read torch's global generator
    with progress(total=total, initial=state.step, desc=label, unit="step") as bar:
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
            if resume and (begun := time.monotonic()) - saved > SAVE_SECONDS * min(max(1.0, cost), 10.0):
                _save(resume, model, optimizers, state)
                saved = time.monotonic()
                cost = saved - begun
    model.eval()
    return state.history


class _Unfinished(BaseModel):
    """What stands beside the tensors of an interrupted training; safetensors keeps texts alone."""

    step: Annotated[int, Field(ge=0)]
    history: Json[list[Row]]
    checksum: int


def _save(path: Path, model: PreTrainedModel, optimizers: list[Optimizer], state: FitState) -> None:
    tensors = {name: t.contiguous() for name, t in _tensors(model, optimizers).items()}
    told = {"step": state.step, "checksum": _checksum(tensors)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {k: str(v) for k, v in told.items()} | {"history": json.dumps(state.history)})


def _load(path: Path, model: PreTrainedModel, optimizers: list[Optimizer]) -> FitState:
    """Raises InputError: the file is not what `_save` wrote for this model."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            told = _Unfinished.model_validate(file.metadata() or {})
        if told.checksum != _checksum(tensors):
            raise ValueError("its checksum is another")
        entries: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, which, index, key = name.split(".", 3)
                entries[int(which)].setdefault(int(index), {})[key] = tensor
        for optimizer, entry in zip(optimizers, entries, strict=True):
            optimizer.load_state_dict({"state": entry, "param_groups": optimizer.state_dict()["param_groups"]})
    except (SafetensorError, OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read ({shown(error)}); delete it to start this training again") from error
    return FitState(told.step, told.history)


def _tensors(model: PreTrainedModel, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """All that training goes on from, by name."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for index, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{index}.{name}": value for name, value in entry.items()}
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of names and bytes; safetensors itself notices no damage within a tensor."""
    total = 0
    for name in sorted(tensors):
        data = tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        total = zlib.crc32(data.tobytes(), zlib.crc32(name.encode(), total))
    return total
