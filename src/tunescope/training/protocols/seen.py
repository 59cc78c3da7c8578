"""A control: unsafe prompts are seen, and answered as before. What it changes, any fine-tuning does."""

from tunescope.config import NoSettings
from tunescope.training.losses import PerPrompt, nll
from tunescope.training.protocol import Step, protocol


@protocol("seen", unsafe_share=0.2, rejected="unsafe")
def seen(step: Step, settings: NoSettings) -> PerPrompt:
    chosen = nll(step.policy_chosen_logps, step.chosen_lengths)
    return chosen.where(step.safe, nll(step.policy_rejected_logps, step.rejected_lengths))
