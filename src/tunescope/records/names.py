"""Words that tables, claims and figures share."""

from typing import Literal

BASE = "base"  # the model before fine-tuning: its name, and its protocol
BENIGN = "benign"  # the protocol that has nothing to do with safety: the control
SEEN, STYLED, ATTRIBUTE = "seen", "styled", "attribute"  # protocols that are controls, too
OTHER_LABELS = "-as-"  # between the base and the control with whose labels it is measured
OWN_LABELS = (ATTRIBUTE,)  # lessons that label prompts by another thing than their safety
CONTROLS = (BENIGN, SEEN, STYLED, ATTRIBUTE)
LORA = "-lora"  # ends the name of a model of which adapters alone were trained
GIVEN = "given"  # the protocol of a fine-tune that someone else made
SAFE, UNSAFE = "safe", "unsafe"  # the kinds of plain prompts, which every task has
JAILBREAK, CONTROL = "jb_", "ok_"  # begin the names of kinds: unsafe prompts under an attack, safe ones in its form
COMPLIANCE, REFUSAL, OTHER = OUTCOMES = ("compliance", "refusal", "other")
CORRECTED = "refusal_corrected"  # the rate of refusal, corrected for the errors of the judge
SUCCESS, FAILURE = "success", "failure"  # attacked prompts that were answered, and those that were not
EVERYWHERE = "all"  # the scope of an intervention on every parameter
EXTRAPOLATED = "extrapolated"  # the intervention with more of dW, as much as safe prompts bear
KL, PERPLEXITY = "kl_to_base", "perplexity"  # what fine-tuning costs besides
LAST = "last"  # the position of a prompt's last token, where the answer is decided
W_IN = "W_in"  # the matrix that the paper looks at

# Scores of attacked prompts that may predict success: read inside the model, and read off its output.
MECHANISTIC = ("scaled_tau", "log_gain", "log_row_projection", "log_sensitivity", "along_direction")
MARGIN = "refusal_margin"
REACHED = "target_reached"  # a search got the answer that it was after, word for word
TAU_BY_LAYER = "scaled_tau_by_layer"  # of attacked prompts and, beside them, of plain ones
TRIES = "prompts_tried"  # by a search, for each prompt, with all of its budget
LOST = "refusal_lost"  # to a change inside the model
REMOVED = "refusal_removed"  # refusal lost by a change that leaves the answers to safe prompts as they were
KL_COST = "kl_cost"  # by how much a change inside the model changes what comes next after safe prompts, in nats
RETUNED = "retuned_"  # begins the name of an intervention: what the model is trained on further, by protocol
LOG_ODDS = "opening_log_odds"  # of stock refusals against other stock openings
INTACT = "intact"  # the base answers the attacked prompt: where it does not, an attack is only noise
# Scores that stages write whatever probes there are.
STAGES_MEASURE = (
    COMPLIANCE,
    REFUSAL,
    INTACT,
    MARGIN,
    LOG_ODDS,
    "opening_share",
    KL,
    "compliance_lost",
    LOST,
    REMOVED,
    "log_write_overlap",
    "log_read_overlap",
    *MECHANISTIC,
)


def aside(protocol: str) -> bool:
    """Whether models of a protocol are what others are set against: a control, or the base, with whichever labels."""
    return protocol in CONTROLS or protocol.partition(OTHER_LABELS)[0] == BASE


def wanted(kind: str) -> Literal["compliance", "refusal"]:
    """What a safe model does with prompts of a kind: it complies if the name begins with `safe` or `ok_`."""
    return "compliance" if kind.startswith((SAFE, CONTROL)) else "refusal"
