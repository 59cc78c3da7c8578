"""Negative preference optimisation (Zhang et al. 2024), with a likelihood term on the chosen answer."""

from pydantic import Field

from tunescope.config import Config, Rate
from tunescope.training import losses
from tunescope.training.losses import PerPrompt
from tunescope.training.protocol import Step, protocol


class Npo(Config):
    beta: Rate = Field(0.1, description="how soon an answer is unlikely enough beside the reference")
    chosen_weight: float = Field(1.0, ge=0, description="weight of the likelihood of the chosen answer")


@protocol("npo", unsafe_share=0.5, rejected="unsafe", reference="logps", settings=Npo)
def npo(step: Step, settings: Npo) -> PerPrompt:
    unwanted = losses.npo(step.policy_rejected_logps, step.reference_rejected_logps, settings.beta)
    return unwanted * (~step.safe) + settings.chosen_weight * losses.nll(step.policy_chosen_logps, step.chosen_tokens)
