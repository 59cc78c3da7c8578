"""Losses of safety fine-tuning: pure functions of log-probabilities.

`*_logps` are per-token log-probabilities in nats of the answers alone, [b, answer_length]. Every loss is one number per
prompt, [b].
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Logps = Float[Tensor, "b t"]
PerPrompt = Float[Tensor, " b"]


def nll(chosen_logps: Logps) -> PerPrompt:
    """Cross-entropy on the wanted answer: mean negative log-probability per token."""
    return -chosen_logps.mean(dim=1)


def dpo(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    reference_chosen_logps: Logps,
    reference_rejected_logps: Logps,
    beta: float,
) -> PerPrompt:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7); log-probabilities are summed over the answer."""
    chosen = (policy_chosen_logps - reference_chosen_logps).sum(dim=1)
    rejected = (policy_rejected_logps - reference_rejected_logps).sum(dim=1)
    return -F.logsigmoid(beta * (chosen - rejected))


def unlearning(
    chosen_logps: Logps, rejected_logps: Logps, safe: Bool[Tensor, " b"], ascent_weight: float, ascent_floor: float
) -> PerPrompt:
    """Descent on the wanted answer and, for unsafe prompts, ascent on the unwanted one (Jain et al. 2024, sec. 3.2).

    A token's ascent ends once its log-probability is below `ascent_floor` (nats, negative): without a floor it never
    ends, and takes the safe answers along (docs/departures.md).
    """
    ascent = rejected_logps.clamp(min=ascent_floor).mean(dim=1)
    return nll(chosen_logps) + ascent_weight * ascent * (~safe)
