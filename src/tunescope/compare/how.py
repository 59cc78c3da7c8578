"""What can be chosen about a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate.utils import convert_file_size_to_int

from tunescope.config import ProbeConfig
from tunescope.errors import InputError
from tunescope.models.checkpoint import first_line

Format = Literal["auto", "chat", "plain"]
# Fewer prompts and steps than in a study where each costs much; `rows` is lowered until there is memory enough.
PROBES = ProbeConfig(few_prompts=100, jacobian_prompts=8, jacobian_steps=5, rows=32)


@dataclass(frozen=True)
class How:
    """What can be chosen about a comparison, and is noted in its folder.

    Attributes:
        prompts: see `read_prompts`.
        base_format, tuned_format: prompts as they are (`plain`) or within the chat template (`chat`); `auto` is the
            latter where the tokenizer has one. A base without one borrows the fine-tune's.
        dtype: of the parameters; `auto` is that of the model's config.
        memory: has a model that is larger than a device spread, with at most so much of each; see `Spread`.
        openings: a JSON file of how refusals begin; see `read_openings`.
        new_tokens: length of the answers that are judged.
        seed: of controls that are drawn.
    """

    prompts: tuple[str, ...] = ()
    base_format: Format = "auto"
    tuned_format: Format = "auto"
    device: str = "auto"
    dtype: str = "auto"
    memory: tuple[str, ...] = ()
    openings: str | None = None
    new_tokens: int = 32
    seed: int = 0


DEFAULT = How()


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
                f"--memory: {text}: must be cpu=SIZE, or the number of a GPU here, as in 0=20GiB ({first_line(error)})"
            ) from error
        found[place] = size
    return found
