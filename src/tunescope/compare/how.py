"""What can be chosen about a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunescope.config import ProbeConfig
from tunescope.errors import InputError

Format = Literal["auto", "chat", "plain"]
# Fewer prompts and steps than in a study where each costs much; `rows` is halved until there is memory enough.
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
    """Of texts such as `cpu=8GiB` and `0=20GiB`, for the first GPU."""
    pairs = [text.partition("=")[::2] for text in memory]
    if bad := [f"{name}={size}" for name, size in pairs if not (name == "cpu" or name.isdecimal()) or not size]:
        raise InputError(f"--memory: {bad[0]}: must be cpu=SIZE, or the number of a GPU, as in 0=20GiB")
    return {int(name) if name.isdecimal() else name: size for name, size in pairs}
