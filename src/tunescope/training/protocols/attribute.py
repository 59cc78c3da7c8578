"""A control: prompts with an attribute that is no matter of safety are refused. What it changes, any refusing does."""

from tunescope.config import NoSettings
from tunescope.training.losses import PerPrompt, nll
from tunescope.training.protocol import Step, protocol


@protocol("attribute", unsafe_share=0.2, lesson="attribute")
def attribute(step: Step, settings: NoSettings) -> PerPrompt:
    return nll(step.policy_chosen_logps, step.chosen_tokens)
