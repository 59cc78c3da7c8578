"""Direct preference optimisation (Rafailov et al. 2023), with a likelihood term on the chosen answer."""

from pydantic import Field

from tunescope.config import Config, Rate
from tunescope.training import losses
from tunescope.training.losses import PerPrompt
from tunescope.training.protocol import Step, protocol


class Dpo(Config):
    beta: Rate = Field(0.1, description="how much log-ratios count")
    chosen_weight: float = Field(2.0, ge=0, description="weight of the likelihood of the chosen answer")


@protocol("dpo", unsafe_share=0.5, rejected="all", reference="logps", settings=Dpo)
def dpo(step: Step, settings: Dpo) -> PerPrompt:
    preference = losses.dpo(
        step.policy_chosen_logps,
        step.policy_rejected_logps,
        step.reference_chosen_logps,
        step.reference_rejected_logps,
        settings.beta,
    )
    # Without a likelihood term the chosen answers lose likelihood along with the rejected ones (docs/departures.md).
    return preference + settings.chosen_weight * losses.nll(step.policy_chosen_logps, step.chosen_tokens)
