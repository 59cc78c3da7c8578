"""Losses of safety fine-tuning: pure functions of log-probabilities.

`*_logps` are per-token log-probabilities in nats of the answers alone, [b, t], 0 behind an answer's end; `*_lengths`
are the answers' tokens, [b]. Every loss is one number per prompt, [b].
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Logps = Float[Tensor, "b t"]
Lengths = Int[Tensor, " b"]
PerPrompt = Float[Tensor, " b"]


def nll(chosen_logps: Logps, lengths: Lengths | Float[Tensor, ""]) -> PerPrompt:
    """Cross-entropy on the wanted answer: its negative log-probability per token, of so many tokens each."""
    return -chosen_logps.sum(dim=1) / lengths


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


def simpo(
    policy_chosen_logps: Logps,
    policy_rejected_logps: Logps,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    beta: float,
    gamma: float,
) -> PerPrompt:
    """Simple preference optimisation (Meng et al. 2024, eq. 6): mean log-probabilities, and a margin; no reference."""
    chosen, rejected = policy_chosen_logps.sum(1) / chosen_lengths, policy_rejected_logps.sum(1) / rejected_lengths
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def npo(policy_rejected_logps: Logps, reference_rejected_logps: Logps, beta: float) -> PerPrompt:
    """Negative preference optimisation (Zhang et al. 2024, eq. 3); log-probabilities are summed over the answer.

    Where policy and reference are one, its gradient is that of ascent on the answer; it falls to nothing as the answer
    becomes unlikely beside the reference.
    """
    return -2 / beta * F.logsigmoid(-beta * (policy_rejected_logps - reference_rejected_logps).sum(dim=1))


def unlearning(
    chosen_logps: Logps,
    rejected_logps: Logps,
    chosen_lengths: Lengths | Float[Tensor, ""],
    rejected_lengths: Lengths,
    safe: Bool[Tensor, " b"],
    ascent_weight: float,
    ascent_floor: float,
) -> PerPrompt:
    """Descent on the wanted answer and, for unsafe prompts, ascent on the unwanted one (Jain et al. 2024, sec. 3.2).

    A token's ascent ends once its log-probability is below `ascent_floor` (nats, negative): without a floor it never
    ends, and takes the safe answers along (docs/departures.md).
    """
    ascent = rejected_logps.clamp(min=ascent_floor).sum(dim=1) / rejected_lengths
    return nll(chosen_logps, chosen_lengths) + ascent_weight * ascent * (~safe)


def rmu(
    policy: Float[Tensor, "b t width"],
    reference: Float[Tensor, "b t width"],
    control: Float[Tensor, "b width"],
    learnt: Bool[Tensor, "b t"],
    safe: Bool[Tensor, " b"],
    retain_weight: float,
) -> PerPrompt:
    """Representation misdirection (Li et al. 2024, eq. 1 and 2): unsafe activations to one vector, safe ones as before.

    Args:
        policy, reference: activations of both models, of prompts and the answers that obey them.
        control: where activations are driven, if the prompt is unsafe. learnt: the places that count.
    """
    forget, retain = ((policy - aim).square().mean(-1) for aim in (control[:, None], reference))
    distance = forget.where(~safe[:, None], retain_weight * retain)
    return (distance * learnt).sum(1) / learnt.sum(1)


def circuit_breakers(
    policy: Float[Tensor, "k b t width"],
    reference: Float[Tensor, "k b t width"],
    learnt: Bool[Tensor, "b t"],
    safe: Bool[Tensor, " b"],
    retain_weight: float,
    progress: float,
) -> PerPrompt:
    """Representation rerouting (Zou et al. 2024, algorithm 1): unsafe activations turned off what they were, safe ones
    kept.

    Args:
        policy, reference: activations of both models at k sites, of prompts and the answers that obey them.
        learnt: the places that count. retain_weight: of safe prompts, whose distance is in lengths of the activation.
        progress: share of the steps done, in [0, 1]; half of the weight goes over to safe prompts by and by.
    """
    reroute = F.cosine_similarity(policy, reference, dim=-1).relu()
    retain = (policy - reference).norm(dim=-1) / reference.norm(dim=-1)
    weighed = ((1 - progress / 2) * reroute).where(~safe[:, None], retain_weight * progress / 2 * retain)
    return (weighed.mean(0) * learnt).sum(1) / learnt.sum(1)
