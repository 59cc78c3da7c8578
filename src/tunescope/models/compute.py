"""Where and how models run: device, autocast type, attention implementation, compilation."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import convert_file_size_to_int
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import ComputeConfig
from tunescope.errors import InputError, shown
from tunescope.models.logps import token_logps


@dataclass(frozen=True)
class Compute:
    """The resolved form of a `ComputeConfig`.

    Attributes:
        dtype: autocast type of training and scoring; float32 means without autocast.
        attention: transformers' name of the attention implementation.
        rows: sequences per forward pass.
        logps: `token_logps(model, tokens, last, positions, mask)` with the dtype filled in, compiled if so configured.
    """

    device: torch.device
    dtype: torch.dtype
    attention: str
    rows: int
    logps: Callable[..., Tensor]


def resolve(config: ComputeConfig) -> Compute:
    """Choose what `auto` stands for on this machine.

    On CPUs transformers' eager attention is the faster one at these lengths (backward above all), and compilation
    does not pay for its start (see docs/results.md); on GPUs it is the other way round.

    Raises:
        InputError: unknown or unavailable device.
    """
    device = _device(config.device)
    on_gpu = device.type == "cuda"
    dtype = getattr(torch, config.dtype) if config.dtype != "auto" else _fastest_dtype(device)
    compiled = on_gpu if config.compile == "auto" else config.compile == "on"

    def logps(model: PreTrainedModel, tokens: Tensor, *more: Any) -> Tensor:
        return token_logps(model, tokens, dtype, *more)

    return Compute(
        device=device,
        dtype=dtype,
        attention="sdpa" if on_gpu else "eager",
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


def _device(name: str) -> torch.device:
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


def _fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster than float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        # Not in every version of torch that we allow.
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32
