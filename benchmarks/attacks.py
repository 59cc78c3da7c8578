"""The soft-prompt attack, 200 prompts and at most 50 steps: seconds, and how many were answered.

python benchmarks/attacks.py runs/laptop-seed0

"""

import sys
import time
from pathlib import Path

from tunescope.attacks.soft import soft_prompts
from tunescope.config import Study
from tunescope.models.inputs import Inputs
from tunescope.rng import Stream
from tunescope.steps import Run
from tunescope.world.kinds import Kind
from tunescope.world.prompts import sample_prompts

PROMPTS, STEPS, K = 200, 50, 4


def main() -> None:
    folder = Path(sys.argv[1])
    run = Run(Study.from_yaml((folder / "config.yaml").read_text(encoding="utf-8")), folder)
    model = run.load("models/ssft-eta_m").requires_grad_(False)
    prompts = sample_prompts(run.world, Kind.UNSAFE, PROMPTS, Stream.named(0, "benchmark"))
    for bound in (1.0, 0.2):
        begun = time.perf_counter()
        found = soft_prompts(
            model, Inputs(prompts.prompt), prompts.answer, K, STEPS, bound, Stream.named(0, "soft prompts")
        )
        seconds = time.perf_counter() - begun
        share = (found.steps >= 0).double().mean().item()
        print(
            f"{PROMPTS} prompts, at most {STEPS} steps, k {K}, bound {bound:g}: {seconds:.1f} s, {share:.0%} answered"
        )


if __name__ == "__main__":
    main()
