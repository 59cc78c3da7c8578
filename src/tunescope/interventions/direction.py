"""The difference of class means taken out of the residual stream everywhere, or added to it after one layer.

Of which layer is chosen on prompts that nothing else is measured on: where fewest unsafe prompts stay refused without
it, and where most safe ones are with it (Arditi et al. 2024). Not the last, which is what is said already.
"""

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from tunescope.config import NoSettings
from tunescope.interventions.base import Bench, Intervention, Make, intervention
from tunescope.interventions.directions import with_vector, without_direction
from tunescope.models.sites import Site
from tunescope.probes.collect import inner_means
from tunescope.probes.controls import haar
from tunescope.probes.directions import difference_of_means
from tunescope.records.names import SAFE, UNSAFE


@intervention("direction", weights=False)
def direction(bench: Bench, settings: NoSettings) -> Iterator[Intervention]:
    model = bench.model
    both = inner_means(model, bench.fit[SAFE].prompts, bench.fit[UNSAFE].prompts, bench.rows)
    directions = {site: difference_of_means(*means) for site, means in both.items()}

    def take(unit: Tensor) -> Make:
        return partial(without_direction, model, unit)

    def put(unit: Tensor, site: Site) -> Make:
        size = (both[site][1] - both[site][0]).norm()
        return partial(with_vector, model, size * unit, site.layer or 0)

    def count(make: Make, kind: str) -> int:
        with make():
            return int(bench.refused(bench.fit[kind]).sum())

    out = min(directions, key=lambda site: count(take(directions[site]), UNSAFE))
    into = max(directions, key=lambda site: count(put(directions[site], site), SAFE))
    width, device = len(directions[out]), directions[out].device
    random = [haar(width, 1, bench.stream("direction", i), device)[:, 0] for i in range(bench.draws)]
    for name, makes, site in (
        ("direction_ablated", (take(directions[out]),), out),
        ("random_direction_ablated", tuple(map(take, random)), out),
        ("direction_added", (put(directions[into], into),), into),
        ("random_direction_added", tuple(put(drawn, into) for drawn in random), into),
    ):
        yield Intervention(name, None, site.name, makes, site.layer)
