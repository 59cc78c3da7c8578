"""Time of all probes of one fine-tuned model and its base, as a share of the goal of 10 seconds on two cores.

python benchmarks/probes.py runs/laptop-seed0 [MODEL]
"""

import sys
import time
from pathlib import Path

from tunescope.config import Study
from tunescope.measure.inside import look_inside
from tunescope.rng import Stream
from tunescope.steps import Run, Tuned

GOAL_SECONDS = 10


def main() -> None:
    folder = Path(sys.argv[1])
    name = sys.argv[2] if len(sys.argv) > 2 else "ssft-eta_m"
    study = Study.from_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
    run = Run(study, folder)
    sample, base, model = run.sample(), run.load("models/base"), run.load(f"models/{name}")
    subject = run.subject(name, Tuned(*name.split("-")), study.tune.steps)
    begun = time.perf_counter()
    found = look_inside(subject, model, base, sample, study.probe, run.refused, Stream.named(study.seed, "probes"))
    seconds = time.perf_counter() - begun
    prompts = len(next(iter(sample.score.values())))
    print(
        f"{name}: {len(found.records)} records from {prompts} prompts of {len(sample.score)} kinds in {seconds:.1f} s, "
        f"{seconds / GOAL_SECONDS:.0%} of the goal of {GOAL_SECONDS} s"
    )


if __name__ == "__main__":
    main()
