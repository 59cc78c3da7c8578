"""Where and how models run: device, autocast type, attention implementation, compilation."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from accelerate.utils import convert_file_size_to_int
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import ComputeConfig
from tunescope.errors import InputError, shown
from tunescope.models.logps import autocast, token_logps


@dataclass(frozen=True)
class Compute:
    """The resolved form of a `ComputeConfig`.

    Attributes:
        dtype: autocast type of training and scoring; float32 means without autocast.
        attention: transformers' name of the attention implementation; None: the one it chooses for a model's family.
        rows: sequences per forward pass.
        logps: `token_logps(model, tokens, last, positions, mask, shared)` with the dtype filled in, compiled if so
            configured.
    """

    device: torch.device
    dtype: torch.dtype
    attention: str | None
    rows: int
    logps: Callable[..., Tensor]


def resolve(config: ComputeConfig) -> Compute:
    """Choose what `auto` stands for on this machine.

    On CPUs transformers' eager attention is the faster one in training, and compilation does not pay for its start (a
    tenth of a step at most, after half a minute); on GPUs it is the other way round.

    Raises:
        InputError: unknown or unavailable device.
    """
    device = device_of(config)
    on_gpu = device.type == "cuda"
    dtype = getattr(torch, config.dtype if config.dtype != "auto" else fastest_dtype(device))
    compiled = on_gpu if config.compile == "auto" else config.compile == "on"

    def logps(model: PreTrainedModel, tokens: Tensor, *more: Any) -> Tensor:
        return token_logps(model, tokens, dtype, *more)

    return Compute(
        device=device,
        dtype=dtype,
        attention=None if on_gpu else "eager",
        rows=config.rows,
        logps=torch.compile(logps) if compiled else logps,
    )


def limits(memory: Sequence[str]) -> dict[int | str, str]:
    """Of texts such as `cpu=8GiB` and `0=20GiB`, for the first GPU.

    Raises:
        InputError: one is neither, or there is no such GPU.
    """
    found: dict[int | str, str] = {}
    for text in memory:
        name, _, size = text.partition("=")
        try:
            convert_file_size_to_int(size)
            place = name if name == "cpu" else int(name)
            if place != "cpu" and place not in range(torch.cuda.device_count()):
                raise ValueError("no such GPU")
        except ValueError as error:
            raise InputError(
                f"--memory: {shown(text)} must be cpu=SIZE, or the number of a GPU here, as in 0=20GiB ({shown(error)})"
            ) from error
        found[place] = size
    return found


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On a GPU, have torch choose, where it can, kernels that give the same bits every time; a CPU's do so anyway."""
    before = torch.are_deterministic_algorithms_enabled()
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS wants for it
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def device_of(config: ComputeConfig) -> torch.device:
    """Raises InputError: unknown or unavailable device."""
    name = config.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("only cpu and cuda are supported")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"compute.device: {name!r} cannot be used here ({reason}); try auto or cpu") from error
    return device


@cache
def fastest_dtype(device: torch.device, width: int = 96) -> Literal["float32", "bfloat16"]:
    """The type in which the products of a training step are faster here: bfloat16 where it saves a fifth of the time.

    Timed, in turn, on the first matrix of an MLP, forward and back, under autocast. What a CPU says that it can do is
    no guide: some multiply bfloat16 at half the rate of float32.

    Args:
        width: of the residual stream. On a CPU the products are of 2048 tokens at width 96, and of fewer at others.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float32"
    rows = 2048 if device.type == "cuda" else max(1, 2048 * 96 // width)
    x = torch.ones(rows, width, device=device, requires_grad=True)
    w = torch.ones(4 * width, width, device=device, requires_grad=True)

    def seconds(dtype: torch.dtype) -> float:
        begun = time.perf_counter()
        with autocast(device, dtype):
            torch.nn.functional.linear(x, w).float().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    both = torch.float32, torch.bfloat16
    taken: list[list[float]] = []
    for times in (2, 6):
        taken += [[seconds(dtype) for dtype in both] for _ in range(times + 1)][1:]  # the first ones set up
        float32, bfloat16 = (min(of) for of in zip(*taken, strict=True))
        if bfloat16 > 3 * float32:  # a CPU without bfloat16 takes minutes for all
            break
    return "bfloat16" if bfloat16 < 0.8 * float32 else "float32"
