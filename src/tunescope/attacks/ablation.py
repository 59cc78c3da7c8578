"""Abliteration: the direction of refusal is taken out of the model (Arditi et al. 2024); a white-box attack."""

from collections.abc import Iterator
from functools import partial

from tunescope.attacks.base import Attacked, Target, attack
from tunescope.config import NoSettings
from tunescope.interventions.directions import refusal_directions, without_direction


@attack("direction_ablation", needs_answers=False)
def direction_ablation(target: Target, settings: NoSettings) -> Iterator[Attacked]:
    model, view = target.model, target.view
    found = refusal_directions(model, target.task, view.few, target.rows)
    change = partial(without_direction, model, found.units[found.best])
    for batch in (target.unsafe, target.safe):
        yield Attacked("direction_ablation", None, batch, comparable=False, change=change)
