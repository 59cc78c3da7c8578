"""Supervised safety fine-tuning (Jain et al. 2024, sec. 3.2)."""

from tunescope.config import NoSettings
from tunescope.training.losses import PerPrompt, nll
from tunescope.training.protocol import Step, protocol


@protocol("ssft", unsafe_share=0.2)
def ssft(step: Step, settings: NoSettings) -> PerPrompt:
    return nll(step.policy_chosen_logps, step.chosen_tokens)
