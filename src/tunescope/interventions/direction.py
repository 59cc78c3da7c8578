"""The difference of class means taken out of the residual stream everywhere, or added to it after one layer.

Of which layer is chosen on prompts that nothing else is measured on: where fewest unsafe prompts stay refused without
it and safe answers stay what they were, and where most safe ones are refused with it (Arditi et al. 2024).
"""

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from tunescope.interventions.base import Bench, Intervention, Make, intervention
from tunescope.interventions.directions import (
    DirectionConfig,
    mediating,
    refusal_directions,
    with_vector,
    without_direction,
)
from tunescope.models.sites import Site
from tunescope.probes.controls import haar
from tunescope.records.names import SAFE


@intervention("direction", settings=DirectionConfig, weights=False)
def direction(bench: Bench, settings: DirectionConfig) -> Iterator[Intervention]:
    model, safe = bench.model, bench.fit[SAFE].first(settings.prompts)
    found = refusal_directions(model, bench.fit, bench.rows, settings)

    def take(unit: Tensor) -> Make:
        return partial(without_direction, model, unit)

    def put(unit: Tensor, site: Site) -> Make:
        return partial(with_vector, model, found[site].size * unit, site.layer or 0)

    def refused_with(site: Site) -> tuple[int, float]:
        """How many safe prompts; of equals the smaller change is the better one."""
        with put(found[site].unit, site)():
            return int(bench.outcomes(safe).refusal.sum()), -found[site].share

    def both(name: str, site: Site, own: Make, drawn: list[Make]) -> Iterator[Intervention]:
        yield Intervention(name, None, site.name, (own,), site.layer)
        yield Intervention(f"random_{name}", None, site.name, tuple(drawn), site.layer)

    into = max(found, key=refused_with)
    width, device = len(found[into].unit), found[into].unit.device
    random = [haar(width, 1, bench.stream("direction", i), device)[:, 0] for i in range(bench.draws)]
    yield from both("direction_added", into, put(found[into].unit, into), [put(each, into) for each in random])
    out = mediating(model, bench.task, bench.fit, found, bench.rows, settings)
    yield from both("direction_ablated", out, take(found[out].unit), [take(each) for each in random])
