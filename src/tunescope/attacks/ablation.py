"""Abliteration: the direction of refusal is taken out of the model (Arditi et al. 2024); a white-box attack."""

from collections.abc import Iterator
from functools import partial

from tunescope.attacks.base import Attacked, Target, attack
from tunescope.interventions.directions import DirectionConfig, mediating, refusal_directions, without_direction


@attack("direction_ablation", settings=DirectionConfig, needs_answers=False)
def direction_ablation(target: Target, settings: DirectionConfig) -> Iterator[Attacked]:
    model, few = target.model, target.view.few
    found = refusal_directions(model, few, target.rows, settings)
    site = mediating(model, target.task, few, found, target.rows, settings)
    change = partial(without_direction, model, found[site].unit)
    for batch in (target.unsafe, target.safe):
        yield Attacked("direction_ablation", None, batch, comparable=False, change=change)
