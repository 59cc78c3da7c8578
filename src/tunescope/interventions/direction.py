"""The difference of class means taken out of the residual stream everywhere, or added to it after one layer.

Of which layer is chosen on prompts that nothing else is measured on: where fewest unsafe prompts stay refused without
it, and where most safe ones are with it (Arditi et al. 2024). Not the last, which is what is said already.
"""

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from tunescope.config import NoSettings
from tunescope.interventions.base import Bench, Intervention, Make, intervention
from tunescope.interventions.directions import refusal_directions, with_vector, without_direction
from tunescope.models.sites import Site
from tunescope.probes.controls import haar
from tunescope.records.names import SAFE


@intervention("direction", weights=False)
def direction(bench: Bench, settings: NoSettings) -> Iterator[Intervention]:
    model = bench.model
    units, sizes, out = refusal_directions(model, bench.task, bench.fit, bench.rows)

    def take(unit: Tensor) -> Make:
        return partial(without_direction, model, unit)

    def put(unit: Tensor, site: Site) -> Make:
        return partial(with_vector, model, sizes[site] * unit, site.layer or 0)

    def newly_refused(site: Site) -> int:
        with put(units[site], site)():
            return int(bench.refused(bench.fit[SAFE]).sum())

    into = max(units, key=newly_refused)
    width, device = len(units[out]), units[out].device
    random = [haar(width, 1, bench.stream("direction", i), device)[:, 0] for i in range(bench.draws)]
    for name, makes, site in (
        ("direction_ablated", (take(units[out]),), out),
        ("random_direction_ablated", tuple(map(take, random)), out),
        ("direction_added", (put(units[into], into),), into),
        ("random_direction_added", tuple(put(drawn, into) for drawn in random), into),
    ):
        yield Intervention(name, None, site.name, makes, site.layer)
