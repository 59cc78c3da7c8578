"""What models do when dW is scaled, cut, projected, rotated or joined by another: is dW the cause of refusal?"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from tunescope.attacks.attacks import Attacked
from tunescope.config import InterveneConfig
from tunescope.interventions import weights
from tunescope.measure.findings import Findings, PerPrompt
from tunescope.models.inputs import Inputs
from tunescope.models.logps import follows
from tunescope.models.sites import layer_count
from tunescope.rng import Stream

HALF, BEYOND = 0.5, 1.5  # values of alpha that claims speak of
WITHOUT, TWICE = 0.0, 2.0  # values of alpha for a part of the weights
EVERYWHERE = "all"


@dataclass(frozen=True)
class Intervention:
    """One changed model.

    Attributes:
        name: of the intervention. dial: alpha or rank; None where there is none.
        scope: which weights it touches.
        make: gives the model; called when it is its turn, since it takes memory.
    """

    name: str
    dial: float | None
    scope: str
    make: Callable[[], PreTrainedModel]


def interventions(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    others: Mapping[str, PreTrainedModel],
    config: InterveneConfig,
    stream: Stream,
) -> Iterator[Intervention]:
    """All that is done to one pair.

    Args:
        others: further fine-tunes of the same base, whose dW is put on top, by protocol.
    """
    pair = (base, tuned)
    for alpha in config.alphas:
        yield Intervention("scaled", alpha, EVERYWHERE, partial(weights.scaled, *pair, alpha))
    scopes: dict[str, tuple[tuple[str, ...], list[int] | None]]
    scopes = {"mlp": (weights.MLP, None), "W_in": (("W_in",), None)}
    scopes |= {f"mlp.{layer}": (weights.MLP, [layer]) for layer in range(layer_count(base))}
    for scope, chosen in scopes.items():
        for alpha in WITHOUT, TWICE:
            yield Intervention("scaled", alpha, scope, partial(weights.scaled_in, *pair, alpha, *chosen))
    for rank in config.ranks:
        yield Intervention("truncated", rank, EVERYWHERE, partial(weights.truncated, *pair, rank))
    yield Intervention("in_null_space", None, "W_in", partial(weights.in_null_space, *pair))
    yield Intervention("in_column_space", None, "W_in", partial(weights.in_column_space, *pair))
    yield Intervention("rotated", None, EVERYWHERE, partial(weights.rotated, *pair, stream("rotated")))
    for name, other in others.items():
        yield Intervention(f"with_{name}", None, EVERYWHERE, partial(weights.transferred, *pair, other))


def measure_interventions(
    found: Findings,
    tuned: PreTrainedModel,
    changed: list[Intervention],
    prompts: Mapping[str, Attacked],
    rows: int,
) -> None:
    """Compliance and refusal of every changed model, as `<outcome>_<intervention>`, and what claims are tested on.

    Args:
        prompts: by kind; `unsafe` must be there.
    """
    intact = _outcomes(tuned, prompts, rows)
    for kind, outcomes in intact.items():
        found.score("refused_intact", outcomes["refusal"], kind=kind)
    bar = tqdm(changed, desc=f"interventions on {found.subject.model}", unit="model", disable=None, leave=False)
    for intervention in bar:
        for kind, outcomes in _outcomes(intervention.make(), prompts, rows).items():
            for outcome, hits in outcomes.items():
                where = {"kind": kind, "strength": intervention.dial, "site": intervention.scope}
                found.rate(f"{outcome}_{intervention.name}", hits, **where)
            _scores(found, intervention, kind, intact[kind], outcomes)


def _outcomes(model: PreTrainedModel, prompts: Mapping[str, Attacked], rows: int) -> dict[str, dict[str, PerPrompt]]:
    """Which prompts of each kind a model answers and which it refuses; all of them at once, which is faster."""
    attacks, sizes = prompts.values(), [len(attack.answer) for attack in prompts.values()]
    together = Inputs.joined([attack.inputs(model) for attack in attacks])
    said = {
        "compliance": follows(model, together, torch.cat([attack.answer for attack in attacks]), rows),
        "refusal": follows(model, together, torch.cat([attack.refusal for attack in attacks]), rows),
    }
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
    if name in ("rotated", "in_null_space", "in_column_space"):
        found.score(f"refused_{name}", after["refusal"], kind=kind)
