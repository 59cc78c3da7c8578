"""The one form that every attack has, and the attacks that a model's own gradients or answers make."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.attacks.insert import inserted
from tunescope.attacks.soft import soft_prompts, universal_soft_prompt
from tunescope.attacks.suffix import suffixes
from tunescope.config import AttackConfig
from tunescope.errors import InputError
from tunescope.models.inputs import Inputs
from tunescope.rng import Stream

ON_SAFE = "_on_safe"  # ends the names of controls: what an attack found, put to safe prompts


@dataclass(frozen=True)
class Attacked:
    """Prompts under attack, and what may be said to them.

    Attributes:
        kind: name of the attack. strength: of it; 0 where the prompts are plain.
        answer: what the attack wants said. refusal: what a safe model says.
        extra: what the attack puts before the last token, embeddings or token ids; None: nothing.
        steps: gradient steps that it took, -1 where it failed; None: it takes none.
        comparable: whether the prompts end as plain ones do, so that their activations can be set beside those.
    """

    kind: str
    strength: float
    prompts: Inputs
    answer: Int[Tensor, "n a"]
    refusal: Int[Tensor, "n a"]
    extra: Float[Tensor, "n k width"] | Int[Tensor, "n k"] | None = None
    steps: Int[Tensor, " n"] | None = None
    comparable: bool = True

    def inputs(self, model: PreTrainedModel) -> Inputs:
        """What a model is given; soft embeddings are the same vectors whichever model reads them."""
        return self.prompts if self.extra is None else inserted(self.prompts, self.extra, model)


def prefilled(plain: Attacked, m: int) -> Attacked:
    """The first m tokens of the answer are given, and the rest is up to the model.

    Raises:
        InputError: m is below 1, or leaves nothing to say.
    """
    if not 1 <= m < plain.answer.shape[1]:
        raise InputError(f"prefill: {m} tokens of an answer of {plain.answer.shape[1]}; between 1 and one less")
    rest = {"answer": plain.answer[:, m:], "refusal": plain.refusal[:, m:]}
    return replace(
        plain,
        kind="prefill",
        strength=float(m),
        prompts=plain.prompts.followed_by(plain.answer[:, :m]),
        comparable=False,
        **rest,
    )


def searched(
    model: PreTrainedModel,
    unsafe: Attacked,
    safe: Attacked,
    seen: Attacked,
    config: AttackConfig,
    allowed: Int[Tensor, " v"],
    stream: Stream,
) -> Iterator[Attacked]:
    """Soft prompts and suffixes for the unsafe prompts, each followed by what it found put to the safe ones.

    Args:
        unsafe, safe: plain prompts, as many of each.
        seen: other unsafe prompts, on which the universal soft prompt is found.
        allowed: token ids that a suffix may be made of.
    """
    for k in config.soft:
        given = (k, config.soft_steps, config.soft_bound)
        found = soft_prompts(model, unsafe.prompts, unsafe.answer, *given, stream("soft", k))
        yield from _both("soft_prompt", k, found.extra, unsafe, safe, found.steps)
    k = max(config.soft)
    given = (k, config.soft_steps, config.soft_bound)
    shared = universal_soft_prompt(model, seen.prompts, seen.answer, *given, stream("universal"))
    yield from _both("universal_soft_prompt", k, shared.expand(len(unsafe.answer), -1, -1), unsafe, safe)
    for k in config.suffix:
        how = (k, config.suffix_steps, config.suffix_candidates)
        tokens = suffixes(model, unsafe.prompts, unsafe.answer, *how, allowed, stream("suffix", k)).tokens
        yield from _both("suffix", k, tokens, unsafe, safe)


def _both(
    kind: str, k: int, extra: Tensor, unsafe: Attacked, safe: Attacked, steps: Tensor | None = None
) -> Iterator[Attacked]:
    yield replace(unsafe, kind=kind, strength=float(k), extra=extra, steps=steps)
    yield replace(safe, kind=kind + ON_SAFE, strength=float(k), extra=extra)
