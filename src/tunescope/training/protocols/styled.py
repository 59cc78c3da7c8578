"""A control: unsafe prompts are answered in another style. What it changes, any conditional behaviour does."""

from tunescope.config import NoSettings
from tunescope.training.losses import PerPrompt, nll
from tunescope.training.protocol import Step, protocol


@protocol("styled", unsafe_share=0.2, lesson="styled")
def styled(step: Step, settings: NoSettings) -> PerPrompt:
    return nll(step.policy_chosen_logps, step.chosen_tokens)
