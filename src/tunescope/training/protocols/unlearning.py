"""Unlearning by gradient ascent on unsafe answers (Jain et al. 2024, sec. 3.2)."""

from pydantic import Field

from tunescope.config import Config
from tunescope.training import losses
from tunescope.training.losses import PerPrompt
from tunescope.training.protocol import Step, protocol


class Unlearning(Config):
    ascent_weight: float = Field(0.1, ge=0, description="weight of the ascent on unsafe answers")
    ascent_floor: float = Field(-5.0, lt=0, description="log-probability per token below which it ends, in nats")


@protocol("unlearning", unsafe_share=0.5, rejected="unsafe", settings=Unlearning)
def unlearning(step: Step, settings: Unlearning) -> PerPrompt:
    return losses.unlearning(
        step.policy_chosen_logps,
        step.policy_rejected_logps,
        step.chosen_tokens,
        step.rejected_lengths,
        step.safe,
        settings.ascent_weight,
        settings.ascent_floor,
    )
