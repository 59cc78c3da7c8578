"""The control: the same budget of training on safe prompts alone."""

from tunescope.config import NoSettings
from tunescope.training.losses import PerPrompt, nll
from tunescope.training.protocol import Step, protocol


@protocol("benign", unsafe_share=0.0)
def benign(step: Step, settings: NoSettings) -> PerPrompt:
    return nll(step.policy_chosen_logps, step.chosen_tokens)
