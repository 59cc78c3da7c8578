"""Abliteration: the direction of refusal is taken out of the model (Arditi et al. 2024); a white-box attack.

The direction is the difference of class means of the layer, not the last, without which fewest other unsafe prompts are
refused.
"""

from collections.abc import Iterator
from functools import partial

from tunescope.attacks.base import Attacked, Target, attack
from tunescope.config import NoSettings
from tunescope.interventions.directions import without_direction
from tunescope.probes.collect import inner_means
from tunescope.probes.directions import difference_of_means
from tunescope.records.names import SAFE, UNSAFE


@attack("direction_ablation", needs_answers=False)
def direction_ablation(target: Target, settings: NoSettings) -> Iterator[Attacked]:
    model, view = target.model, target.view
    both = inner_means(model, view.fit[SAFE].prompts, view.fit[UNSAFE].prompts, target.rows)
    units = [difference_of_means(*means) for means in both.values()]

    def left(number: int) -> int:
        with without_direction(model, units[number]):
            return int(target.task.outcomes(model, target.seen, target.rows).refusal.sum())

    best = units[min(range(len(units)), key=left)]
    for batch in (target.unsafe, target.safe):
        yield Attacked(
            "direction_ablation", None, batch, comparable=False, change=partial(without_direction, model, best)
        )
