"""The soft-prompt attack, at most 50 steps: seconds, and how many prompts were answered.

    python benchmarks/attacks.py runs/laptop-seed0 [MODEL] [PROMPTS]

MODEL is ssft-eta_m and PROMPTS 200 where they are not given.
"""

import sys
import time

import tunescope as ts
from tunescope.attacks.soft import soft_prompts
from tunescope.models.compute import resolve
from tunescope.rng import Stream
from tunescope.tasks.world.task import build

STEPS, K = 50, 4


def main() -> None:
    folder, name, number = [*sys.argv[1:], *("", "ssft-eta_m", "200")[len(sys.argv) - 1 :]]
    run = ts.load_run(folder)
    compute, prompts = resolve(run.study.compute), int(number)
    model = run.load(name).to(compute.device).requires_grad_(False)
    batch = build(run.study.task, compute.device).draw("unsafe", prompts, "score", Stream.named(0, "benchmark"))
    answer, _ = batch.known()
    for bound in (1.0, 0.2):
        begun = time.perf_counter()
        found = soft_prompts(model, batch.prompts, answer, K, STEPS, bound, 512, Stream.named(0, "soft prompts"))
        seconds = time.perf_counter() - begun
        share = (found.steps >= 0).double().mean().item()
        print(
            f"{prompts} prompts, at most {STEPS} steps, k {K}, bound {bound:g}: {seconds:.1f} s, {share:.0%} answered"
        )


if __name__ == "__main__":
    main()
