"""Observation 1: do safe and unsafe prompts form clusters of activations? (Jain et al. 2024)"""

from tunescope.models.sites import Site
from tunescope.probes import clusters
from tunescope.probes.view import View, probe
from tunescope.records.findings import Findings
from tunescope.records.names import SAFE, UNSAFE


@probe("clusters", fit=("mlp_post",), score=("mlp_post",), measures=("scaled_tau",))
def measure(view: View, found: Findings) -> None:
    """By layer: tau of every kind against class means, and the shape of the clusters."""
    few = view.config.few_prompts
    for layer in range(view.layers):
        site = Site(layer, "mlp_post")
        points = view.scored(site)
        tau = {kind: clusters.tau(a, *view.means(site)) for kind, a in points.items()}
        for kind, values in tau.items():
            found.mean("tau", values, kind=kind, layer=layer)
        found.separation("tau", tau[UNSAFE], tau[SAFE], (UNSAFE, SAFE), layer=layer)
        dealt = view.dealt(site)
        drawn = clusters.auc_of_draws(*(clusters.tau_of_draws(points[kind], *dealt) for kind in (UNSAFE, SAFE)))
        found.draws("tau_auc", drawn, control="shuffled", layer=layer)
        where = {"layer": layer, "site": site.name}
        pair = [points[kind][:few] for kind in (SAFE, UNSAFE)]
        found.value("silhouette", clusters.silhouette(*pair), n=sum(map(len, pair)), **where)
        for kind in (SAFE, UNSAFE):
            cluster = view.activations("fit", kind, site)
            found.value("top_singular_share", clusters.top_share(cluster), kind=kind, n=len(cluster), **where)
        spread = clusters.within_class_sd(tau[SAFE], tau[UNSAFE])
        for kind, values in tau.items():
            # In units of the spread within a class, so that larger activations do not seem to separate more.
            found.score("scaled_tau", clusters.in_units_of(values, spread), kind=kind, layer=layer)
