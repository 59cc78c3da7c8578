"""Time of all probes of one fine-tuned model, as a share of the goal of 10 seconds on two cores.

    python benchmarks/probes.py runs/laptop-seed0 [MODEL]

What the base has at the inputs of W_in, which a study reads once for all fine-tunes, is read here, too.
"""

import sys
import time
from pathlib import Path

import tunescope as ts
from tunescope.models.sites import Site
from tunescope.probes.collect import stored
from tunescope.probes.view import INPUT, View, look_inside
from tunescope.study.context import Context
from tunescope.study.graph import graph_of

GOAL_SECONDS = 10


def main() -> None:
    folder, name = [*sys.argv[1:], *("", "ssft-eta_m")[len(sys.argv) - 1 :]]
    study = ts.load_run(folder).study
    given = next(s.inputs for s in graph_of(study, Path(folder)).stages if s.name == f"probe-{name}")
    this = Context(given, Path(folder))
    fit, score = this.sample(this.task(), study.probe)
    model, base = this.load(), this.load(given.base)
    begun = time.perf_counter()
    sites = [Site(layer, INPUT) for layer in range(this.pair().layers)]
    inputs = {kind: stored(base, batch.prompts, sites, study.probe.rows) for kind, batch in score.items()}
    view = View(model, fit, score, study.probe, this.stream("probes"), pair=this.pair(), base_inputs=inputs)
    found = look_inside(view, given.model.subject(study.seed, given.model.step or 0))
    seconds = time.perf_counter() - begun
    prompts = len(next(iter(score.values())))
    print(
        f"{name}: {len(found.records)} records from {prompts} prompts of {len(score)} kinds in {seconds:.1f} s, "
        f"{seconds / GOAL_SECONDS:.0%} of the goal of {GOAL_SECONDS} s"
    )


if __name__ == "__main__":
    main()
