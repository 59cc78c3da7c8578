"""Simple preference optimisation (Meng et al. 2024), with a likelihood term on the chosen answer."""

from pydantic import Field

from tunescope.config import Config, Rate
from tunescope.training import losses
from tunescope.training.losses import PerPrompt
from tunescope.training.protocol import Step, protocol


class Simpo(Config):
    beta: Rate = Field(2.0, description="how much mean log-probabilities count")
    gamma: float = Field(1.0, ge=0, description="margin, in units of the loss's argument")
    chosen_weight: float = Field(1.0, ge=0, description="weight of the likelihood of the chosen answer")


@protocol("simpo", unsafe_share=0.5, rejected="all", settings=Simpo)
def simpo(step: Step, settings: Simpo) -> PerPrompt:
    lengths = step.chosen_lengths, step.rejected_lengths
    preference = losses.simpo(
        step.policy_chosen_logps, step.policy_rejected_logps, *lengths, settings.beta, settings.gamma
    )
    return preference + settings.chosen_weight * losses.nll(step.policy_chosen_logps, step.chosen_tokens)
