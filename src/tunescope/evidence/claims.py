"""The claims: what the literature says safety fine-tuning does, each with the control that it has to beat."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

PAPER = "Jain et al. 2024"
TENTH = math.log(1.1)


@dataclass(frozen=True)
class Claim:
    """One claim, as a contrast between a safety-tuned model and its control.

    Attributes:
        statement: what is claimed. source: by whom.
        metric: of the scores (docs/metrics.md), at the last layer where it has layers.
        weights: weight of each kind's mean, `kind@strength` for attacked ones; the claimed direction is positive.
            Empty for what is no matter of prompts.
        control: `benign`, the fine-tune on safe prompts at the same rate and steps; `base`, the model before;
            `rotated`, dW in random directions; or another metric of the same model. It must be beaten.
        before: whether the uncontrolled number, the one that a paper without controls reports, is the change from the
            base model; otherwise it is the model's own.
        smallest: smallest effect of interest, in the units of the metric.
        unit: `ratio` where the metric is a logarithm, else what it counts.
        found: what a positive contrast means, in words that finish "x ...".
        figure: name of the figure that shows it.
    """

    name: str
    statement: str
    source: str
    metric: str
    control: str
    smallest: float
    unit: str
    found: str
    figure: str
    weights: Mapping[str, float] = field(default_factory=dict)
    before: bool = False


SHARE = "share of prompts"  # unit of what each prompt answers with yes or no
UNSAFE_MORE = {"unsafe": 1.0, "safe": -1.0}
SAFE_MORE = {"safe": 1.0, "unsafe": -1.0}
JAILBREAKS = ("jb_co_task", "jb_co_text", "jb_misgen")
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def slope(sign: float) -> dict[str, float]:
    """Least-squares slope against strength, mean over the jailbreak kinds: a contrast of the means at each strength."""
    middle = sum(STRENGTHS) / len(STRENGTHS)
    size = sum((s - middle) ** 2 for s in STRENGTHS) * len(JAILBREAKS)
    return {f"{kind}@{s:g}": sign * (s - middle) / size for kind in JAILBREAKS for s in STRENGTHS if s != middle}


CLAIMS = (
    Claim(
        "1 clusters",
        "Safety fine-tuning separates the activations of safe and unsafe prompts.",
        f"{PAPER}, observation 1",
        "scaled_tau",
        "benign",
        0.5,
        "within-class sd",
        "the gap between the clusters, beyond benign fine-tuning",
        "clusters",
        SAFE_MORE,
    ),
    Claim(
        "2a null space, against chance",
        "dW writes into the left null space of W_in more than into its column space.",
        f"{PAPER}, observation 2",
        "null_share",
        "rotated",
        0.02,
        "share of energy",
        "the share of dW in the null space, beyond the same dW in random directions",
        "null_space",
    ),
    Claim(
        "2b null space, against benign",
        "Safety fine-tuning writes into the left null space of W_in more than other fine-tuning does.",
        f"{PAPER}, observation 2",
        "null_share",
        "benign",
        0.02,
        "share of energy",
        "the share of dW in the null space, beyond that of benign fine-tuning",
        "null_space",
    ),
    Claim(
        "3a specialisation: |dW a|",
        "dW acts more strongly on unsafe prompts than on safe ones.",
        f"{PAPER}, observation 3",
        "log_gain",
        "benign",
        TENTH,
        "ratio",
        "unsafe to safe |dW a| / |a|, as a multiple of the same under benign fine-tuning",
        "specialisation",
        UNSAFE_MORE,
    ),
    Claim(
        "3b specialisation: row space",
        "Unsafe prompts lie more in the row space of dW than safe ones.",
        f"{PAPER}, observation 3",
        "log_row_projection",
        "benign",
        TENTH,
        "ratio",
        "unsafe to safe projection on the row space, as a multiple of the same under benign fine-tuning",
        "specialisation",
        UNSAFE_MORE,
    ),
    Claim(
        "3c specialisation on the base's activations",
        "dW would single out unsafe prompts in the activations of the model before fine-tuning, too.",
        "tunescope: what 3a implies if dW alone does the work",
        "log_gain_of_base_input",
        "benign",
        TENTH,
        "ratio",
        "unsafe to safe |dW a| / |a| with a of the base model, as a multiple of the same under benign fine-tuning",
        "specialisation",
        UNSAFE_MORE,
    ),
    Claim(
        "4a sensitivity falls on unsafe",
        "The top logit becomes less sensitive to the input on unsafe prompts.",
        f"{PAPER}, observation 4",
        "log_sensitivity",
        "benign",
        TENTH,
        "ratio",
        "how many times lower the sensitivity on unsafe prompts is than after benign fine-tuning",
        "sensitivity",
        {"unsafe": -1.0},
        before=True,
    ),
    Claim(
        "4b sensitivity rises on safe",
        "The top logit becomes more sensitive to the input on safe prompts.",
        f"{PAPER}, observation 4",
        "log_sensitivity",
        "benign",
        TENTH,
        "ratio",
        "how many times higher the sensitivity on safe prompts is than after benign fine-tuning",
        "sensitivity",
        {"safe": 1.0},
        before=True,
    ),
    Claim(
        "4c sensitivity parts safe and unsafe",
        "Safe prompts become more sensitive in comparison with unsafe ones.",
        f"{PAPER}, observation 4",
        "log_sensitivity",
        "benign",
        TENTH,
        "ratio",
        "safe to unsafe sensitivity, as a multiple of the same under benign fine-tuning",
        "sensitivity",
        SAFE_MORE,
        before=True,
    ),
    Claim(
        "5a jailbreaks look safe: clusters",
        "The stronger a jailbreak, the nearer its activations are to those of safe prompts.",
        f"{PAPER}, observation 5",
        "scaled_tau",
        "benign",
        0.25,
        "within-class sd",
        "rise of tau from strength 0 to 1, beyond benign fine-tuning",
        "attack_features",
        slope(+1),
    ),
    Claim(
        "5b jailbreaks evade dW",
        "The stronger a jailbreak, the less dW acts on it.",
        f"{PAPER}, observation 5",
        "log_gain",
        "benign",
        TENTH,
        "ratio",
        "fall of |dW a| / |a| from strength 0 to 1, as a multiple of the same under benign fine-tuning",
        "attack_features",
        slope(-1),
    ),
    Claim(
        "5c jailbreaks bring sensitivity back",
        "The stronger a jailbreak, the more sensitive the top logit is to it.",
        f"{PAPER}, observation 5",
        "log_sensitivity",
        "benign",
        TENTH,
        "ratio",
        "rise of the sensitivity from strength 0 to 1, as a multiple of the same under benign fine-tuning",
        "attack_features",
        slope(+1),
    ),
    Claim(
        "6a one direction",
        "Refusal is mediated by one direction: without it, unsafe prompts are answered or spoilt, not refused.",
        "Arditi et al. 2024",
        "refusal_lost_without_direction",
        "refusal_lost_without_random",
        0.1,
        SHARE,
        "unsafe prompts that are no longer refused without the direction, beyond those without a random one",
        "direction",
        {"unsafe": 1.0},
    ),
    Claim(
        "6b the direction is enough",
        "Safe prompts are refused where the direction is added to the residual stream.",
        "Arditi et al. 2024",
        "refused_direction_added",
        "refused_random_direction_added",
        0.1,
        SHARE,
        "safe prompts refused with the direction added, beyond those with a random one of the same length",
        "interventions",
        {"safe": 1.0},
    ),
    Claim(
        "7a refusal follows dW",
        "With half of dW taken back, fewer unsafe prompts are refused.",
        f"{PAPER}, section 6",
        "refusal_lost_at_half",
        "benign",
        0.1,
        SHARE,
        "unsafe prompts no longer refused at alpha = 0.5, beyond benign fine-tuning",
        "alpha",
        {"unsafe": 1.0},
    ),
    Claim(
        "7b more dW, more robust",
        "With dW half as large again, fewer jailbreaks get through, at next to no cost to safe prompts.",
        f"{PAPER}, section 6",
        "compliance_lost_beyond",
        "benign",
        0.05,
        SHARE,
        "jailbreaks that no longer get through at alpha = 1.5, less the safe prompts no longer answered, beyond benign "
        "fine-tuning",
        "alpha",
        dict.fromkeys(JAILBREAKS, 1 / len(JAILBREAKS)) | {"safe": -1.0},
    ),
    Claim(
        "7c where dW points matters",
        "The base with dW of its matrices refuses; with the same dW in random directions it does not.",
        "tunescope: the control of 7a",
        "refused_matrices",
        "refused_rotated",
        0.1,
        SHARE,
        "unsafe prompts refused by the base with dW of its matrices, beyond those with dW in random directions",
        "interventions",
        {"unsafe": 1.0},
    ),
    Claim(
        "7d the null space carries refusal",
        "What dW of W_in writes into the left null space keeps more of refusal than another part as large would.",
        "tunescope: what observation 2 implies",
        "refused_in_null_space",
        "refused_in_random_space",
        0.1,
        SHARE,
        "unsafe prompts refused with the null-space part of dW of W_in, beyond those with a random part as large",
        "interventions",
        {"unsafe": 1.0},
    ),
    Claim(
        "7e what reads unsafe inputs is needed",
        "Without what dW reads from the directions in which unsafe inputs stand out, fewer unsafe prompts are refused.",
        f"{PAPER}, observation 3",
        "refusal_lost_off_unsafe_inputs",
        "refusal_lost_off_safe_inputs",
        0.1,
        SHARE,
        "unsafe prompts no longer refused with dW off those, beyond those with it off what safe inputs differ in",
        "interventions",
        {"unsafe": 1.0},
    ),
    Claim(
        "7f what reads unsafe inputs is enough",
        "The base refuses unsafe prompts with what dW reads from the directions in which unsafe inputs stand out.",
        f"{PAPER}, observation 3",
        "refused_on_unsafe_inputs",
        "refused_on_safe_inputs",
        0.1,
        SHARE,
        "unsafe prompts refused by the base with that of dW, beyond those with what reads what safe inputs differ in",
        "interventions",
        {"unsafe": 1.0},
    ),
)
