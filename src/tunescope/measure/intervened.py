"""What models do when dW, or the direction of refusal, is another: are they the cause of refusal?"""

from collections.abc import Mapping, Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from tunescope.attacks.attacks import Attacked
from tunescope.measure.findings import Findings, PerPrompt
from tunescope.measure.interventions import EVERYWHERE, Intervention
from tunescope.models.inputs import Inputs
from tunescope.models.logps import which_follows

OUTCOMES = ("compliance", "refusal")
HALF, BEYOND = 0.5, 1.5  # values of alpha that claims speak of
REFUSED = (  # interventions whose refusals claims compare
    "in_null_space",
    "in_random_space",
    "matrices",
    "rotated",
    "on_unsafe_inputs",
    "on_safe_inputs",
    "direction_added",
    "random_direction_added",
)
LOST = ("off_unsafe_inputs", "off_safe_inputs")  # and those of which they compare what is no longer refused


def measure_interventions(
    found: Findings,
    tuned: PreTrainedModel,
    changed: Sequence[Intervention],
    prompts: Mapping[str, Attacked],
    rows: int,
) -> None:
    """Compliance and refusal of every changed model, as `<outcome>_<intervention>`, and what claims are tested on.

    Where something was drawn, rates and scores are means over draws, with the intervals of one: they hold for these
    draws.

    Args:
        prompts: by kind; `unsafe` must be there.
    """
    intact = _outcomes(tuned, prompts, rows)
    greatest: dict[str, float] = {}
    for each in changed:
        greatest[each.name] = max(each.dial or 0.0, greatest.get(each.name, 0.0))
    bar = tqdm(changed, desc=f"interventions on {found.subject.model}", unit="change", disable=None, leave=False)
    for intervention in bar:
        draws = []
        for make in intervention.makes:
            with make() as model:
                draws.append(_outcomes(model, prompts, rows))
        for kind, before in intact.items():
            after = {outcome: torch.stack([draw[kind][outcome] for draw in draws]).mean(0) for outcome in before}
            where = {
                "kind": kind,
                "strength": intervention.dial,
                "site": intervention.scope,
                "layer": intervention.layer,
            }
            for outcome, hits in after.items():
                found.rate(f"{outcome}_{intervention.name}", hits, **where)
            if (intervention.dial or 0.0) == greatest[intervention.name] or intervention.name == "scaled":
                _scores(found, intervention, kind, before, after)


def _outcomes(model: PreTrainedModel, prompts: Mapping[str, Attacked], rows: int) -> dict[str, dict[str, PerPrompt]]:
    """Which prompts of each kind a model answers and which it refuses; all of them at once, which is faster."""
    attacks, sizes = prompts.values(), [len(attack.answer) for attack in prompts.values()]
    together = Inputs.joined([attack.inputs(model) for attack in attacks])
    wanted = [torch.cat([attack.answer for attack in attacks]), torch.cat([attack.refusal for attack in attacks])]
    said = dict(zip(OUTCOMES, which_follows(model, together, wanted, rows), strict=True))
    parts = {outcome: hits.double().split(sizes) for outcome, hits in said.items()}
    return {kind: {outcome: parts[outcome][i] for outcome in said} for i, kind in enumerate(prompts)}


def _scores(
    found: Findings,
    intervention: Intervention,
    kind: str,
    before: Mapping[str, PerPrompt],
    after: Mapping[str, PerPrompt],
) -> None:
    name, dial = intervention.name, intervention.dial
    if name == "scaled" and intervention.scope == EVERYWHERE and dial == HALF:
        found.score("refusal_lost_at_half", before["refusal"] - after["refusal"], kind=kind)
    if name == "scaled" and intervention.scope == EVERYWHERE and dial == BEYOND:
        found.score("compliance_lost_beyond", before["compliance"] - after["compliance"], kind=kind)
    if name in REFUSED:
        found.score(f"refused_{name}", after["refusal"], kind=kind)
    if name in LOST:
        found.score(f"refusal_lost_{name}", before["refusal"] - after["refusal"], kind=kind)
