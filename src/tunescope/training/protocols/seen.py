"""A control: unsafe prompts are seen, and answered as before. What it changes, any fine-tuning does."""

from tunescope.config import NoSettings
from tunescope.training.losses import PerPrompt, nll
from tunescope.training.protocol import Step, protocol


@protocol("seen", unsafe_share=0.2, rejected="unsafe")
def seen(step: Step, settings: NoSettings) -> PerPrompt:
    obeyed = step.policy_chosen_logps.where(step.safe[:, None], step.policy_rejected_logps)
    return nll(obeyed, step.obeyed_tokens)
