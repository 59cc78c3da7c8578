"""The protocols, side by side. A new one is one entry here and one loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool
from torch import Tensor

from tunescope.config import TuneConfig
from tunescope.protocols import losses
from tunescope.protocols.losses import Logps, PerPrompt


@dataclass(frozen=True)
class AnswerLogps:
    """Log-probabilities of both answers of some prompts under both models; None or 0 where a protocol reads none."""

    safe: Bool[Tensor, " b"]
    policy_chosen: Logps
    policy_rejected: Logps | None = None
    reference_chosen: Logps | None = None
    reference_rejected: Logps | None = None


@dataclass(frozen=True)
class Protocol:
    """How a model is fine-tuned.

    Attributes:
        unsafe_share: share of unsafe prompts in a batch.
        loss: from log-probabilities to one loss per prompt.
        rejected: of which prompts the loss reads the unwanted answer, too; none if empty.
        reference: whether it reads the reference model.
    """

    unsafe_share: float
    loss: Callable[[AnswerLogps, TuneConfig], PerPrompt]
    rejected: Literal["", "unsafe", "all"] = ""
    reference: bool = False


def _dpo(logps: AnswerLogps, config: TuneConfig) -> PerPrompt:
    assert logps.policy_rejected is not None
    assert logps.reference_chosen is not None
    assert logps.reference_rejected is not None
    preference = losses.dpo(
        logps.policy_chosen, logps.policy_rejected, logps.reference_chosen, logps.reference_rejected, config.beta
    )
    # Without a likelihood term the chosen answers lose likelihood along with the rejected ones (docs/departures.md).
    return preference + config.chosen_weight * losses.nll(logps.policy_chosen)


def _unlearning(logps: AnswerLogps, config: TuneConfig) -> PerPrompt:
    assert logps.policy_rejected is not None
    return losses.unlearning(
        logps.policy_chosen, logps.policy_rejected, logps.safe, config.ascent_weight, config.ascent_floor
    )


PROTOCOLS: dict[str, Protocol] = {
    "ssft": Protocol(0.2, lambda logps, _: losses.nll(logps.policy_chosen)),
    "dpo": Protocol(0.5, _dpo, rejected="all", reference=True),
    "unlearning": Protocol(0.5, _unlearning, rejected="unsafe"),
    # The control: the same budget of training, nothing about safety.
    "benign": Protocol(0.0, lambda logps, _: losses.nll(logps.policy_chosen)),
}
